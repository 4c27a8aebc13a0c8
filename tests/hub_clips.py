"""A small dataset as our stages write it: five clips of noise."""

import io
from pathlib import Path

import numpy as np
import soundfile

from distillery.data import column_types, hub_layout


def wav(seed: int) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, 160)
    soundfile.write(buffer, samples, 16_000, format="WAV")
    return buffer.getvalue()


CLIPS = [wav(seed) for seed in range(5)]
IDS = [f"clip-{i}" for i in range(5)]


def rows_of(numbers):
    return [
        {
            "id": IDS[i],
            "audio": {"bytes": CLIPS[i], "path": f"{IDS[i]}.wav"},
            "text": f"文 {i}",
            "speaker_id": "s",
            "recording_id": None,
            "duration": 0.5,
        }
        for i in numbers
    ]


def hub_folder(folder: Path, splits) -> Path:
    """Write a dataset as our stages do: {config: {split: row numbers}}."""
    for config, by_split in splits.items():
        for split, numbers in by_split.items():
            path = hub_layout.shard_path(folder, config, split, 0, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            hub_layout.write_parquet(path, rows_of(numbers), column_types.source_features())
    hub_layout.write_card(folder, splits, "Clips", "Made by a test.")
    return folder
