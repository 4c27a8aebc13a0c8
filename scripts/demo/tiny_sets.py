"""Write a demonstration corpus's clips once more, as manifests in the shape of public datasets.

    python scripts/demo/tiny_sets.py --corpus runs/corpus

Beside the corpus's own manifests:

- `common_voice.jsonl`: as Common Voice, with splits `train`, `validation` and `test`;
- `test_set.jsonl`: as the test sets of kotoba-whisper and FLEURS;
- `talks.jsonl`: the training clips as parts of recordings, a few clips each.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distillery.data.schema import AUDIO, ID, RECORDING_ID, SPEAKER_ID, TEXT
from distillery.storage.files import write_text

Row = dict[str, Any]

CLIPS_PER_TALK = 4
EACH_VALIDATES = 6  # every so-many-th clip of the training set is validation


def common_voice(train: list[Row], test: list[Row]) -> list[Row]:
    """Return rows with Common Voice's columns."""
    splits = ["train" if index % EACH_VALIDATES else "validation" for index, _ in enumerate(train)]
    splits += ["test"] * len(test)
    return [
        {
            "split": split,
            "client_id": row[SPEAKER_ID],
            "path": f"{row[ID]}.flac",
            AUDIO: row[AUDIO],
            "sentence": row[TEXT],
        }
        for split, row in zip(splits, [*train, *test], strict=True)
    ]


def test_set(test: Iterable[Row]) -> list[Row]:
    """Return rows with a reference called `transcription`."""
    return [
        {"split": "test", ID: row[ID], AUDIO: row[AUDIO], "transcription": row[TEXT]}
        for row in test
    ]


def talks(train: Iterable[Row]) -> list[Row]:
    """Return rows whose neighbours are of one recording and speaker."""
    return [
        {
            ID: row[ID],
            AUDIO: row[AUDIO],
            TEXT: row[TEXT],
            SPEAKER_ID: f"speaker-{index // CLIPS_PER_TALK}",
            RECORDING_ID: f"talk-{index // CLIPS_PER_TALK}",
        }
        for index, row in enumerate(train)
    ]


def read(path: Path) -> list[Row]:
    """Return the rows of a manifest."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a manifest."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main() -> None:
    """Write the manifests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of make_corpus.py")
    corpus = parser.parse_args().corpus
    train, test = read(corpus / "train.jsonl"), read(corpus / "test.jsonl")
    write(corpus / "common_voice.jsonl", common_voice(train, test))
    write(corpus / "test_set.jsonl", test_set(test))
    write(corpus / "talks.jsonl", talks(train))


if __name__ == "__main__":
    main()
