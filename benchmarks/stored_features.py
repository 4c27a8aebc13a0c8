"""Reading stored features against decoding audio and computing them, in the same run.

    PYTHONPATH=. python benchmarks/stored_features.py --clip ../shared/data/jfk.flac --seconds 6

Three datasets hold the same clips: FLAC; log-mel as `run_data_filtering.py --vectorize` stores it,
float16 in bytes; and log-mel as lists of numbers, which is how such datasets are usually stored.
Each row is read as training reads it and made a window of the model, in strict alternation of the
three. Clips are cut out of one recording at other places, played round and round; milliseconds are
of this process's CPU.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import torch
from datasets import Dataset, Features, List, Value, load_dataset
from transformers import WhisperFeatureExtractor

from distillery.audio.decoding import decode_audio
from distillery.audio.log_mel import LogMel
from distillery.data import column_types, hub_layout, schema

NUM_CLIPS = 50
NUM_RUNS = 5
RATE = 16_000


def flac_clips(recording: Path, seconds: float) -> list[bytes]:
    """Return clips of one length as FLAC."""
    samples = decode_audio({"bytes": recording.read_bytes(), "path": recording.name}, RATE)
    wanted = round(seconds * RATE)
    looped = np.tile(samples, -(-wanted // len(samples)))
    clips = []
    for index in range(NUM_CLIPS):
        file = io.BytesIO()
        soundfile.write(file, np.roll(looped, -index * 997)[:wanted], RATE, format="FLAC")
        clips.append(file.getvalue())
    return clips


def stored(folder: Path, name: str, kind: Any, values: list[Any]) -> Dataset:
    """Write a dataset of one column and load it."""
    path = folder / f"{name}.parquet"
    hub_layout.write_parquet(path, [{"column": value} for value in values], Features(column=kind))
    print(f"{name:>8}: {path.stat().st_size / NUM_CLIPS / 1000:.0f} kB a clip")
    rows = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(folder / "cache")
    )
    return rows.cast_column("column", kind)


def main() -> None:
    """Check that all give the same windows, then measure them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, required=True, help="a recording")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip")
    parser.add_argument("--mels", type=int, default=80, help="mel bins")
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    log_mel = LogMel(WhisperFeatureExtractor(feature_size=args.mels))
    clips = flac_clips(args.clip, args.seconds)

    def frames_of(audio: Any) -> torch.Tensor:
        return log_mel.real_frames(decode_audio(audio, RATE, log_mel.window_s))

    audio = [{"bytes": clip, "path": "clip.flac"} for clip in clips]
    halves = [frames_of(each).numpy().astype(np.float16) for each in audio]
    in_bytes = [[mel_bin.tobytes() for mel_bin in each] for each in halves]
    folder = Path(tempfile.mkdtemp(prefix="features-"))
    numbers = List(List(Value("float16")))
    readers = {
        schema.AUDIO: (stored(folder, "audio", column_types.AUDIO_TYPE, audio), frames_of),
        "bytes": (
            stored(folder, "bytes", column_types.STORED_FEATURES, in_bytes),
            lambda bins: torch.tensor(np.array([np.frombuffer(b, "<f2") for b in bins], "f4")),
        ),
        "numbers": (
            stored(folder, "numbers", numbers, [each.tolist() for each in halves]),
            lambda rows: torch.tensor(np.array(rows, "f4")),
        ),
    }
    first = [log_mel.pad(make(rows[0]["column"])) for rows, make in readers.values()]
    assert all(torch.allclose(first[0], other, atol=1e-3) for other in first), "not the same"
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(NUM_RUNS):
        for name, (rows, make) in readers.items():
            started = time.process_time()
            for index in range(NUM_CLIPS):
                log_mel.pad(make(rows[index]["column"]))
            times[name].append((time.process_time() - started) / NUM_CLIPS)
    for name, values in times.items():
        print(f"{name:>8}: {1000 * statistics.median(values):.2f} ms a clip, median of {NUM_RUNS}")


if __name__ == "__main__":
    main()
