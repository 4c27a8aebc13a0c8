"""Speed of the log-mel features against transformers' feature extractor, in the same run.

    PYTHONPATH=. python benchmarks/features.py --seconds 6

Both are checked for equal values first, then timed in strict alternation, one clip at a time as a
data worker does it.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from distillery.audio.log_mel import LogMel

NUM_CLIPS = 20
NUM_RUNS = 5


def main() -> None:
    """Check that both agree, then measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip")
    parser.add_argument("--mels", type=int, default=128, help="mel bins")
    args = parser.parse_args()
    torch.set_num_threads(1)
    extractor = WhisperFeatureExtractor(feature_size=args.mels)
    log_mel = LogMel(extractor)
    rng = np.random.default_rng(0)
    clips = [
        rng.standard_normal(round(args.seconds * 16_000)).astype(np.float32) * 0.1
        for _ in range(NUM_CLIPS)
    ]

    def reference(clip: np.ndarray) -> torch.Tensor:
        return extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features[0]

    def ours(clip: np.ndarray) -> torch.Tensor:
        return log_mel.pad(log_mel.real_frames(clip))

    worst = max(float((reference(clip) - ours(clip)).abs().max()) for clip in clips)
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-4, "the two do not agree: their times mean nothing"
    times: dict[str, list[float]] = {"transformers": [], "ours": []}
    for _ in range(NUM_RUNS):
        for name, function in (("transformers", reference), ("ours", ours)):
            started = time.perf_counter()
            for clip in clips:
                function(clip)
            times[name].append((time.perf_counter() - started) / NUM_CLIPS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:>12}: {seconds * 1000:.2f} ms a clip (median of {NUM_RUNS} runs)")
    print(f"       ratio: {medians['transformers'] / medians['ours']:.1f} times faster")


if __name__ == "__main__":
    main()
