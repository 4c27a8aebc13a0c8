"""Folders of labels without audio, and their rows with the audio of the dataset they are of.

Labelling and filtering write such folders on request, so that audio lies on the disk once. Their
record names the source of each split. Rows are joined by id, windows by the ids of their parts.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import IterableDataset
from numpy.typing import NDArray

from distillery.audio.decoding import AudioError, encode_wav
from distillery.data import hub_layout, schema
from distillery.data.collators import PROBLEM
from distillery.data.column_types import MapStyleRows, read_columns
from distillery.data.ids import first_repeated
from distillery.data.packed_windows import window_audio
from distillery.data.parquet_rows import ParquetRows
from distillery.data.regions import Regions
from distillery.data.specs import PSEUDO_LABELS_FIRST, REFERENCES_FIRST, DatasetSpec
from distillery.ingest import sources
from distillery.storage.publication import public_names

logger = logging.getLogger(__name__)

SOURCES = "sources"  # in the record of a folder of labels
SIGNALS = (schema.AUDIO, schema.INPUT_FEATURES)
# Do not say which rows there are.
HERE_ONLY = (
    *("streaming", "cache_dir", "samples", "labels_dir", "targets"),
    *("language", "task", "language_column", "task_column", "kl_weight"),
)


# --- where the audio is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The dataset that labels are of.

    Attributes:
        spec: which rows, as labelling read them; local paths are absolute.
        content: checksum of its files; None for a dataset on the Hub.
    """

    spec: DatasetSpec
    content: str | None

    @classmethod
    def of(cls, spec: DatasetSpec) -> "Source":
        """Describe a dataset as it is now."""
        path = Path(spec.name)
        name = str(path.resolve()) if path.exists() else spec.name
        return cls(replace(spec, name=name), sources.content(spec))

    def to_dict(self) -> dict[str, Any]:
        """Return it for a record."""
        defaults = {each.name: each.default for each in fields(DatasetSpec)}
        said = {name: value for name, value in asdict(self.spec).items() if name not in HERE_ONLY}
        slim = {name: value for name, value in said.items() if value != defaults[name]}
        return {"spec": slim, "content": self.content}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Source":
        """Read what `to_dict` returned."""
        return cls(DatasetSpec(**value["spec"]), value["content"])


def record_of(splits: Mapping[DatasetSpec, Source]) -> dict[str, Any]:
    """Return what a record says of splits that hold labels alone: of which source each is.

    Args:
        splits: as they are written, each with its source.

    Returns:
        An entry for the record; none where there are no such splits.
    """
    entries = [
        {"config": spec.config, "split": spec.split, **source.to_dict()}
        for spec, source in splits.items()
    ]
    return {SOURCES: entries} if entries else {}


def refuse_numbers_of_stream(spec: DatasetSpec) -> None:
    """Raise ValueError for rows whose labels alone would not lead back to them."""
    if sources.is_numbered_as_stream(spec):
        raise ValueError(
            f"--output_format labels: the rows of {spec} have no ids, and as a stream they are "
            "numbered; what reads the labels would not find them by that: name a column with "
            "--id_column_name, or leave out --streaming"
        )


def passed_on(splits: Mapping[DatasetSpec, DatasetSpec]) -> dict[str, Any]:
    """Return what a record says of splits that were made of other labels: the same sources.

    Args:
        splits: as they are written, each with what it was made of.
    """
    found = {spec: recorded_source(read) for spec, read in splits.items()}
    return record_of({spec: source for spec, source in found.items() if source is not None})


def card_text(recorded: Mapping[str, Any]) -> str:
    """Return what a card says of labels without audio; "" where `record_of` returned nothing."""
    names = {f"`{public_names(each['spec']['name'])}`": None for each in recorded.get(SOURCES, ())}
    if not names:
        return ""
    return f" Without audio: the rows are those of {' and '.join(names)} with the same `id`."


def recorded_source(spec: DatasetSpec) -> Source | None:
    """Return the source that the record of a folder of labels names; None where it names none."""
    split = spec.split.partition("[")[0] if spec.split else None
    found = [
        entry
        for entry in hub_layout.read_record(spec.name).get(SOURCES, ())
        if spec.config in (None, entry["config"]) and split in (None, entry["split"])
    ]
    return Source.from_dict(found[0]) if len(found) == 1 else None


def labels_spec(spec: DatasetSpec) -> DatasetSpec:
    """Return which rows hold the labels of a dataset: its own, or those of `labels_dir`."""
    if spec.labels_dir is None:
        return spec
    split = sources.split_name(spec.split) if spec.split else None
    return DatasetSpec(spec.labels_dir, spec.config, split, max_rows=spec.max_rows)


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledRows:
    """Labels with the audio of their source, which stays where it is.

    Has of `datasets.Dataset` what training needs.

    Attributes:
        labels: rows without audio; their order is that of these rows.
        source: rows with audio.
        places: for each row of `labels` the numbers of the rows of `source` that it is of.
        sampling_rate: of the model, for windows.
    """

    labels: MapStyleRows
    source: MapStyleRows
    places: pa.ListArray
    sampling_rate: int

    @property
    def num_unlabelled(self) -> int:
        """Number of rows of the source without labels."""
        return len(self.source) - len(self.places.values)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, without the audio's."""
        return list(self.labels.column_names)

    def select_columns(self, names: Sequence[str]) -> MapStyleRows:
        """Return some columns of the labels."""
        return self.labels.select_columns(names)

    def select(self, rows: "Sequence[int] | NDArray[np.integer[Any]]") -> "LabelledRows":
        """Return some rows."""
        return replace(self, labels=self.labels.select(rows), places=self.places.take(rows))

    def regions(self) -> Regions | None:
        """Return which rows have audio that is read together, a window with its first clip."""
        regions = self.source.regions() if isinstance(self.source, ParquetRows) else None
        if regions is None:
            return None
        first = self.places.offsets.to_numpy()[:-1]
        return regions.select(self.places.values.to_numpy()[first])

    def keeping(self, num_bytes: int) -> "LabelledRows":
        """Return the same rows, of whose source row groups are kept in memory."""
        assert isinstance(self.source, ParquetRows)
        return replace(self, source=self.source.keeping(num_bytes))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row with its audio, or with the `PROBLEM` that makes it unusable."""
        row: dict[str, Any] = self.labels[index]
        parts = [self.source[place][schema.AUDIO] for place in self.places[index].as_py()]
        if schema.SEGMENT_IDS not in row:
            return {**row, schema.AUDIO: parts[0]}
        try:
            audio = window_audio(row, parts, self.sampling_rate, encode_wav)
        except AudioError as error:
            return {**row, PROBLEM: str(error)}
        return {**row, schema.AUDIO: audio}


def load(spec: DatasetSpec, sampling_rate: int) -> MapStyleRows | LabelledRows:
    """Load a dataset with labels; those that lie beside their audio are joined with it.

    Where `spec.targets` says that references are learnt in their place, pseudo-labels are left out.

    Args:
        spec: a dataset, a folder of labels whose record names its source, or a source whose labels
            are in `labels_dir`.
        sampling_rate: of the model.

    Raises:
        FileNotFoundError, ValueError: as `sources.load`; there is no audio, or not that which was
            labelled; ids of labels have no row or come twice.
    """
    of_labels = labels_spec(spec)
    labels = sources.load(replace(of_labels, streaming=False))
    assert not isinstance(labels, IterableDataset)
    if spec.labels_dir is None and not _lacks_signal(labels, spec):
        return _with_targets(labels, spec)
    source_spec = _given_source(spec) if spec.labels_dir else _found_source(spec)
    source = sources.load(source_spec)
    assert not isinstance(source, IterableDataset)
    sources.require_column(source, source_spec, schema.AUDIO, "--audio_column_name")
    labels = _with_targets(labels, spec)
    others = [name for name in labels.column_names if name not in SIGNALS]
    return join(labels.select_columns(others), source, sampling_rate, of_labels, source_spec)


def _with_targets(rows: Any, spec: DatasetSpec) -> Any:
    """Leave out pseudo-labels where references are learnt in their place."""
    if spec.targets == PSEUDO_LABELS_FIRST:
        return rows
    if spec.targets == REFERENCES_FIRST and not _has_references(rows):
        return rows
    sources.require_column(rows, spec, schema.TEXT, "--text_column_name")
    return rows.select_columns([n for n in rows.column_names if n not in schema.PSEUDO_LABELS])


def _has_references(rows: MapStyleRows) -> bool:
    if schema.TEXT not in rows.column_names:
        return False
    texts = read_columns(rows, schema.TEXT)[schema.TEXT]
    return bool(texts.null_count < len(texts))


def stream(spec: DatasetSpec) -> IterableDataset:
    """Load a dataset as a stream whose shards can be read each by itself.

    Raises:
        FileNotFoundError, ValueError: as `sources.load`; it holds labels alone.
    """
    rows = sources.load(spec, in_shards=spec.max_rows is None)
    if _lacks_signal(rows, spec):
        raise ValueError(
            f"dataset {spec} holds labels alone, which are joined with their audio by id: leave "
            "out --streaming"
        )
    return _with_targets(rows, spec)


def _lacks_signal(rows: sources.Rows, spec: DatasetSpec) -> bool:
    """Tell whether rows are labels alone.

    Raises:
        ValueError: they have neither audio nor labels.
    """
    if set(SIGNALS) & set(rows.column_names):
        return False
    if not {schema.WHISPER_TRANSCRIPT, schema.LABELS} & set(rows.column_names):
        sources.require_column(rows, spec, schema.AUDIO, "--audio_column_name")
    return True


def _given_source(spec: DatasetSpec) -> DatasetSpec:
    recorded, content = recorded_source(labels_spec(spec)), sources.content(spec)
    if recorded and recorded.content and content and recorded.content != content:
        logger.warning(
            "%s is not, or no longer, what the labels in %s were made of (%s): rows are joined by "
            "id all the same",
            *(spec, spec.labels_dir, recorded.spec),
        )
    return replace(spec, labels_dir=None, max_rows=None, streaming=False)


def _found_source(spec: DatasetSpec) -> DatasetSpec:
    recorded, remedy = recorded_source(spec), "name the source with -d, and this with --labels_dir"
    if recorded is None:
        raise ValueError(
            f"dataset {spec} has no audio, nor a record that says whose it is: {remedy}"
        )
    if recorded.content is not None and not Path(recorded.spec.name).exists():
        raise ValueError(
            f"dataset {spec} holds labels of {recorded.spec}, which is not here: {remedy}"
        )
    if recorded.content != sources.content(recorded.spec):
        raise ValueError(
            f"dataset {spec} holds labels of {recorded.spec}, which has changed since: label it "
            f"again, or, to go by the ids all the same, {remedy}"
        )
    return replace(recorded.spec, cache_dir=spec.cache_dir)


def join(
    labels: MapStyleRows,
    source: MapStyleRows,
    sampling_rate: int,
    of_labels: DatasetSpec,
    of_source: DatasetSpec,
) -> LabelledRows:
    """Join labels and their source by id; nothing but ids is read.

    Args:
        labels: rows without audio, in the order that is wanted.
        source: rows with audio.
        sampling_rate: of the model.
        of_labels, of_source: which rows these are, for errors.

    Raises:
        ValueError: an id of the labels has no row in the source, or comes twice.
    """
    ids = _column(labels, schema.ID)
    num_parts = np.ones(len(ids), np.int32)
    if schema.SEGMENT_IDS in labels.column_names:
        parts = _column(labels, schema.SEGMENT_IDS)
        ids, num_parts = pc.list_flatten(parts), pc.list_value_length(parts).to_numpy()
    twice = first_repeated(ids)
    if twice is not None:
        raise ValueError(f"{of_labels}: clip {twice!r:.200} has labels more than once")
    places = pc.index_in(ids, value_set=_column(source, schema.ID)).combine_chunks()
    if places.null_count:
        lost = ids[pc.index(places.is_null(), True).as_py()].as_py()
        raise ValueError(
            f"{of_labels}: id {lost!r:.200} has labels, but no row in {of_source}: name the "
            "dataset that was labelled, and the same column of ids (--id_column_name)"
        )
    starts = pa.array(np.concatenate([[0], np.cumsum(num_parts)]), pa.int32())
    placed = pa.ListArray.from_arrays(starts, places)
    return LabelledRows(labels, source.select_columns(schema.AUDIO), placed, sampling_rate)


def _column(rows: MapStyleRows, name: str) -> pa.ChunkedArray:
    return read_columns(rows, name)[name]
