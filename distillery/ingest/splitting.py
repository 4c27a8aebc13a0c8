"""Splits of a dataset by speaker, so that no voice that is trained on is also tested on.

Where a clip goes follows from its speaker's name and a seed alone: rows that are added later never
move a speaker from one split to another. Rows without a speaker go by their recording, and those
without either by their own id.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from distillery.audio.decoding import stated_seconds
from distillery.data import column_types, schema
from distillery.data.specs import DatasetSpec
from distillery.ingest.manifests import SPLIT, Manifest
from distillery.ingest.segmentation import is_part

SPLITS = TRAIN, VALIDATION, TEST = ("train", "validation", "test")
SPEAKERS, RECORDINGS, CLIPS = KINDS = ("speakers", "recordings", "clips")


class Group(NamedTuple):
    """Rows that stay together: all of one speaker, of one recording, or one clip."""

    kind: str
    name: str


@dataclass(frozen=True)
class Shares:
    """How large the splits are: shares of the speakers, from 0 to 1. Training takes the rest."""

    validation: float
    test: float
    seed: int

    def split_of(self, group: Group) -> str:
        """Return the split that a group belongs to."""
        key = f"{self.seed} {group.kind} {group.name}".encode()
        place = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64
        if place < self.test:
            return TEST
        return VALIDATION if place < self.test + self.validation else TRAIN

    def asked(self) -> list[str]:
        """Return the splits that are not to be empty."""
        sizes = {TRAIN: 1.0, VALIDATION: self.validation, TEST: self.test}
        return [split for split in SPLITS if sizes[split] > 0]


@dataclass
class SplitRows:
    """What goes into one split.

    Attributes:
        places: of its rows, in their order.
        groups: how many rows each of its groups has.
        audio_s: seconds of audio whose length is known.
        num_unknown: clips of which it is not.
    """

    places: list[int] = field(default_factory=list)
    groups: Counter[Group] = field(default_factory=Counter)
    audio_s: float = 0.0
    num_unknown: int = 0

    def counts(self) -> dict[str, int | float]:
        """Return rows, groups by kind, and hours; kinds of which there is none are left out."""
        kinds = Counter(group.kind for group in self.groups)
        found = {kind: kinds[kind] for kind in KINDS if kinds[kind]}
        hours = {"hours": round(self.audio_s / 3600, 4)}
        unknown = {"rows of unknown length": self.num_unknown} if self.num_unknown else {}
        return {"rows": len(self.places), **found, **hours, **unknown}


@dataclass(frozen=True)
class RawManifest:
    """The rows of a manifest as they are written, which the loader would rename and cut.

    Attributes:
        rows: with the manifest's own columns.
        spec: names these columns.
    """

    rows: Dataset
    spec: DatasetSpec

    @classmethod
    def read(cls, spec: DatasetSpec) -> "RawManifest":
        """Read a manifest.

        Raises:
            FileNotFoundError, ValueError: as `Manifest.rows`; or it lacks a column that is named.
        """
        id_column = spec.id_column or schema.ID
        manifest = Manifest(Path(spec.name), spec.split, id_column, spec.max_bad_fraction)
        spec = replace(spec, audio_column=manifest.audio_column(spec.audio_column))
        for name, flag in (
            (spec.audio_column, "--audio_column_name"),
            (spec.id_column, "--id_column_name"),
            (spec.speaker_id_column, "--speaker_id_column_name"),
            (spec.recording_id_column, "--recording_id_column_name"),
        ):
            if name is not None and name not in manifest.columns:
                listed = ", ".join(manifest.columns)
                raise ValueError(f"{flag}: {spec.name} has no column {name!r}, but {listed}")
        rows = manifest.rows(spec.audio_column)
        return cls(rows if spec.max_rows is None else rows.take(spec.max_rows), spec)

    def contract_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows with the contract's names for what splitting looks at."""
        spec, folder = self.spec, Path(self.spec.name).parent.resolve()
        for row in self.rows:
            audio = row[spec.audio_column]
            file = os.path.relpath(audio["path"], folder)
            recording = row.get(spec.recording_id_column or schema.RECORDING_ID)
            yield {
                schema.AUDIO: audio,
                schema.ID: row.get(spec.id_column or schema.ID) or file,
                schema.SPEAKER_ID: row.get(spec.speaker_id_column or schema.SPEAKER_ID),
                schema.RECORDING_ID: recording or (file if is_part(row) else None),
                schema.DURATION: row.get(schema.DURATION),
            }

    def written(self, places: list[int], split: str, folder: Path) -> Iterator[dict[str, Any]]:
        """Yield rows of a split as they stand in a manifest in another folder."""
        here, there = Path(self.spec.name).parent, folder.resolve()
        for row in self.rows.select(places):
            audio = row[self.spec.audio_column]["path"]
            row[self.spec.audio_column] = os.path.relpath(audio, there)
            if row.get(schema.SUBTITLES):
                cues = (here / row[schema.SUBTITLES]).resolve()
                row[schema.SUBTITLES] = os.path.relpath(cues, there)
            yield {**row, SPLIT: split} if SPLIT in row else row


def divide(rows: Iterable[Mapping[str, Any]], shares: Shares) -> dict[str, SplitRows]:
    """Share rows out among the splits.

    Args:
        rows: with the columns of the contract.
        shares: how large the splits are.

    Raises:
        ValueError: there is one group only, or a split would be empty.
    """
    splits = {split: SplitRows() for split in SPLITS}
    for place, row in enumerate(rows):
        group = _group(row)
        split = splits[shares.split_of(group)]
        split.places.append(place)
        split.groups[group] += 1
        lasts_s = _seconds(row)
        split.audio_s += lasts_s or 0.0
        split.num_unknown += lasts_s is None
    _refuse_empty(splits, shares)
    return splits


def _group(row: Mapping[str, Any]) -> Group:
    names = (row.get(schema.SPEAKER_ID), row.get(schema.RECORDING_ID), row[schema.ID])
    kind, name = next(
        (kind, name)
        for kind, name in zip(KINDS, names, strict=True)
        if name not in (None, "") or kind == CLIPS
    )
    return Group(kind, str(name))


def _seconds(row: Mapping[str, Any]) -> float | None:
    """Return how long a clip lasts: as its row says, else as its header does."""
    try:
        lasts_s = column_types.seconds(row.get(schema.DURATION))
    except ValueError:
        lasts_s = None
    return stated_seconds(row.get(schema.AUDIO)) if lasts_s is None else lasts_s


def _refuse_empty(splits: Mapping[str, SplitRows], shares: Shares) -> None:
    groups = {group for split in splits.values() for group in split.groups}
    kinds = Counter(group.kind for group in groups)
    counts = ((kinds[kind], kind) for kind in KINDS if kinds[kind])
    named = [f"{count} {kind if count > 1 else kind[:-1]}" for count, kind in counts]
    found = " and ".join(named) or "no rows"
    asked = shares.asked()
    if len(groups) < len(asked):
        raise ValueError(
            f"{found} cannot be shared out among {', '.join(asked)}, as none may be in two of "
            "them: leave out a split with --validation_share 0 or --test_share 0, or name another "
            "column with --speaker_id_column_name"
        )
    empty = [split for split in asked if not splits[split].places]
    if empty:
        raise ValueError(
            f"none of {found} falls into {' and '.join(empty)}: raise --validation_share or "
            "--test_share, or take another --seed"
        )
