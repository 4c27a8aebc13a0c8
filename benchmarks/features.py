"""Speed of the log-mel features against transformers' feature extractor, in the same run.

    PYTHONPATH=. python benchmarks/features.py --seconds 6

Both are checked for equal values first, then timed in strict alternation, by the processor's
seconds: one clip at a time as a data worker does it, and ours also for a batch of equal clips in
one pass, as a GPU does it.
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

    def in_one_pass() -> torch.Tensor:
        return log_mel.of_batch(torch.from_numpy(np.stack(clips)))

    worst = max(float((reference(clip) - ours(clip)).abs().max()) for clip in clips)
    print(f"largest difference {worst:.1e}")
    worst = max(worst, float((in_one_pass() - torch.stack([*map(ours, clips)])).abs().max()))
    assert worst < 1e-4, "the two do not agree: their times mean nothing"
    programs = {
        "transformers": lambda: [reference(clip) for clip in clips],
        "ours": lambda: [ours(clip) for clip in clips],
        "in one pass": in_one_pass,
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(NUM_RUNS):
        for name, program in programs.items():
            started = time.process_time()
            program()
            times[name].append((time.process_time() - started) / NUM_CLIPS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:>12}: {seconds * 1000:.2f} ms a clip (median of {NUM_RUNS} runs)")
    print(f"       ratio: {medians['transformers'] / medians['ours']:.1f} times faster")


if __name__ == "__main__":
    main()
