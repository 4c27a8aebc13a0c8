"""Which rows of which dataset a stage reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillery.data import schema

# How long recordings are cut: not at all, the cues of subtitles being their reference; at the cues;
# and, without cues, at pauses.
NONE, CUES, VAD = MODES = ("none", "cues", "vad")

# What labels are made of: the first there is of `schema.TARGET_COLUMNS`; the references alone; the
# references of a dataset that has any, else as the first.
PSEUDO_LABELS_FIRST, REFERENCES, REFERENCES_FIRST = (
    "pseudo-labels",
    "references",
    "any references",
)


@dataclass(frozen=True)
class DatasetSpec:
    """Which rows to read: one split of one configuration of one dataset, and its column names.

    A column name of None means the contract's own name (`distillery.data.schema`), where the
    dataset has it; for the text, any of `schema.REFERENCE_NAMES`. `samples` is the dataset's weight
    where several are mixed; `max_bad_fraction` the share of a manifest's rows that may be unusable;
    `labels_dir` a dataset without audio that holds the labels (`distillery.ingest.label_folders`),
    `targets` what labels are made of.

    In training, `language` and `task`, or the columns with those of each row, are what its labels
    ask for; `kl_weight` says how much its rows follow a teacher.
    """

    name: str
    config: str | None = None
    split: str | None = None
    audio_column: str = schema.AUDIO
    text_column: str | None = None
    id_column: str | None = None
    speaker_id_column: str | None = None
    recording_id_column: str | None = None
    samples: float | None = None
    data_dir_suffix: str | None = None
    streaming: bool = False
    cache_dir: str | None = None
    max_rows: int | None = None
    segment: str = CUES
    segment_max_s: float = 30.0
    max_bad_fraction: float | None = 0.0
    labels_dir: str | None = None
    targets: str = PSEUDO_LABELS_FIRST
    language: str | None = None
    task: str | None = None
    language_column: str | None = None
    task_column: str | None = None
    kl_weight: float | None = None

    def __str__(self) -> str:
        parts = [self.name, self.config, self.split]
        return " ".join(part for part in parts if part)


def broadcast_specs(columns: Mapping[str, list[Any]], **shared: Any) -> list[DatasetSpec]:
    """Return one spec per dataset from lists that hold one value for each, or one for all.

    Args:
        columns: for fields of `DatasetSpec`, their values; an empty list leaves the default.
        shared: fields that are the same for all.
    """
    given = {name: values for name, values in columns.items() if values}
    count = max(len(values) for values in given.values())
    return [
        DatasetSpec(**{name: values[i % len(values)] for name, values in given.items()}, **shared)
        for i in range(count)
    ]


def choose(
    what: str, wanted: str | None, names: Sequence[str], preferred: str | None, of: Any
) -> str:
    """Return the name that is wanted; where none is, the preferred or the only one there is.

    Raises:
        ValueError: it is not there, or one must be named; the message lists them.
    """
    if wanted is not None:
        if wanted in names:
            return wanted
        raise ValueError(f"dataset {of} has no {what} {wanted!r}: {', '.join(names)}")
    if preferred is not None and preferred in names:
        return preferred
    if len(names) == 1:
        return names[0]
    raise ValueError(f"dataset {of} has several {what}s: name one of {', '.join(names)}")
