"""Datasets to read: one loader behind every `--dataset_name`, and what is asked of its rows."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Audio,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    load_from_disk,
)

from distillery.data import schema
from distillery.data.column_types import MapStyleRows, read_columns
from distillery.data.column_types import Rows as Rows  # what `load` returns
from distillery.data.hub_layout import DEFAULT_CONFIG, refuse_same_split_twice
from distillery.data.ids import SeenIds, file_names, first_repeated
from distillery.data.parquet_rows import ParquetRows
from distillery.data.specs import NONE, DatasetSpec, choose
from distillery.ingest import (
    builders,
    cue_references,
    file_trees,
    folders,
    hub_datasets,
    manifests,
    row_streams,
    segmentation,
)
from distillery.ingest.manifests import Manifest
from distillery.storage.files import sha256

logger = logging.getLogger(__name__)

STORED = {"bytes": Value("binary"), "path": Value("string")}  # what an `Audio` is stored as


def load(spec: DatasetSpec, in_shards: bool = False) -> Rows:
    """Load a dataset's rows with the contract's column names.

    Every row has `id` and `audio` (undecoded: the bytes, or the path); `text`, `speaker_id` and
    `recording_id` are there where the source has them. Other columns keep their names.

    Args:
        spec: the dataset.
        in_shards: whether the shards of a stream will be read each by itself. Where there are
            several, and the source has no ids, there are none: numbers of rows are not known.

    Raises:
        FileNotFoundError: no such file or folder, and not a Hub id.
        ValueError: a missing column or split, ids that are not unique, no rows, a bad manifest.
    """
    rows = _undecoded(_source(spec), spec)
    rows = _rename_columns(rows, spec, in_shards)
    if spec.segment == NONE and {schema.AUDIO, schema.SUBTITLES} <= set(rows.column_names):
        rows = cue_references.with_references(rows, Path(spec.name).parent)
    cuts = segmentation.Segmentation(spec.segment, spec.segment_max_s, Path(spec.name).parent)
    if schema.AUDIO in rows.column_names and cuts.applies(rows):  # labels alone were cut before
        if schema.ID not in rows.column_names:
            raise ValueError(
                f"dataset {spec}: clips are named by the ids of their recordings, and these have "
                "none: name a column with --id_column_name, or leave out --streaming"
            )
        _check_ids(rows, spec)
        rows = segmentation.cut(rows, cuts, spec.cache_dir, spec.max_rows)
    if spec.max_rows is not None:
        rows = rows.take(spec.max_rows)
    _check_ids(rows, spec)
    return rows


def _check_ids(rows: Rows, spec: DatasetSpec) -> None:
    """Raise ValueError if there are no rows, or two of one id; a stream shows that as it is read.

    See `iterate_chunks`.
    """
    if isinstance(rows, IterableDataset):
        return
    if len(rows) == 0:
        raise ValueError(f"dataset {spec} has no rows")
    ids = _ids(rows)
    if ids.null_count:
        raise ValueError(
            f"dataset {spec}: row {pc.index(ids.is_null(), True)} has no id; name a column in "
            "which every row has one with --id_column_name"
        )
    twice = first_repeated(ids)
    if twice is not None:
        raise ValueError(
            f"dataset {spec}: id {twice!r:.200} occurs more than once; name a column that is "
            "unique with --id_column_name"
        )


def fingerprint(spec: DatasetSpec) -> str:
    """Return a checksum that changes when the dataset's files do.

    Of a manifest it covers the text; of a folder or an archive of audio the names and sizes of
    the files and the contents of the texts; of a folder in the Hub's layout names, sizes and last
    bytes, where Parquet keeps its statistics; of a Hub id only the id. A copy has the
    same checksum.
    """
    digest = hashlib.sha256(str(spec).encode())
    if (spec.segment, spec.segment_max_s) != (DatasetSpec.segment, DatasetSpec.segment_max_s):
        digest.update(f"{spec.segment} {spec.segment_max_s:g}".encode())
    for name in (spec.name, spec.labels_dir):
        digest.update(_content(Path(name)) if name else b"")
    return digest.hexdigest()


def content(spec: DatasetSpec) -> str | None:
    """Return the part of the fingerprint that is the files' alone; None for a Hub id."""
    path = Path(spec.name)
    return hashlib.sha256(_content(path)).hexdigest() if path.exists() else None


def _content(path: Path) -> bytes:
    if folders.is_layout(path):
        return file_trees.fingerprint(path)
    if path.is_file():
        return sha256(path).encode()
    return hub_datasets.folder_state(path) if path.is_dir() else b""


def _source(spec: DatasetSpec) -> Rows:
    path = Path(spec.name)
    if path.suffix in manifests.SUFFIXES:
        return _from_manifest(spec)
    if path.suffix == ".py":
        return builders.load(spec)
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _from_save_to_disk(spec)
    if folders.is_layout(path):
        return folders.load(path, spec.config, spec.split, spec.streaming, spec.cache_dir)
    looks_local = path.is_absolute() or spec.name.startswith(".")
    if not path.exists() and (looks_local or spec.name.count("/") != 1):
        raise FileNotFoundError(
            f"{file_trees.not_there(spec.name)}, and it is no Hub id, which looks like "
            "'organisation/name'"
        )
    return hub_datasets.load(spec)


def _undecoded(rows: Rows, spec: DatasetSpec) -> Rows:
    """Keep audio as the bytes that were stored, which needs no decoder."""
    if isinstance(rows, ParquetRows):
        return rows  # as it is stored
    if rows.features is None:
        rows = rows._resolve_features()  # a stream of JSON or CSV learns them from its first rows
    if isinstance(rows.features.get(spec.audio_column), Audio):
        is_stream = isinstance(rows, IterableDataset)
        # What a stream's rows pass through would encode an `Audio`, which needs torchcodec.
        rows = rows.cast_column(spec.audio_column, STORED if is_stream else Audio(decode=False))
    return rows


def _from_save_to_disk(spec: DatasetSpec) -> Rows:
    loaded = load_from_disk(spec.name)
    if isinstance(loaded, DatasetDict):
        loaded = loaded[choose("split", spec.split, list(loaded), None, spec.name)]
    if not spec.streaming:
        return loaded
    return loaded.to_iterable_dataset(row_streams.num_shards(len(loaded)))


def _from_manifest(spec: DatasetSpec) -> Rows:
    id_column = spec.id_column or schema.ID
    manifest = Manifest(Path(spec.name), spec.split, id_column, spec.max_bad_fraction)
    column = manifest.audio_column(spec.audio_column)
    if column not in manifest.columns:
        raise missing_column(spec, "--audio_column_name", column, manifest.columns)
    rows = manifest.stream(column) if spec.streaming else manifest.rows(column)
    return rows if column == spec.audio_column else rows.rename_column(column, spec.audio_column)


def _rename_columns(rows: Rows, spec: DatasetSpec, in_shards: bool) -> Rows:
    usual = next((name for name in schema.REFERENCE_NAMES if name in rows.column_names), None)
    wanted = {
        schema.AUDIO: (spec.audio_column, "--audio_column_name"),
        schema.TEXT: (spec.text_column or usual, "--text_column_name"),
        schema.ID: (spec.id_column, "--id_column_name"),
        schema.SPEAKER_ID: (spec.speaker_id_column, "--speaker_id_column_name"),
        schema.RECORDING_ID: (spec.recording_id_column, "--recording_id_column_name"),
    }
    for name, (given, flag) in wanted.items():
        rows = _rename_column(rows, spec, name, given, flag)
    if schema.ID in rows.column_names and not _is_meant_as_id(rows, spec):
        rows = rows.remove_columns(schema.ID)
    if schema.ID not in rows.column_names:
        if in_shards and isinstance(rows, IterableDataset) and rows.num_shards > 1:
            logger.info("dataset %s has no column of ids: rows are named by shard and number", spec)
            return rows
        return _add_row_ids(rows, spec)
    for name in (schema.ID, schema.SPEAKER_ID, schema.RECORDING_ID):
        rows = _as_text(rows, name)
    return rows


def _rename_column(rows: Rows, spec: DatasetSpec, name: str, given: str | None, flag: str) -> Rows:
    columns = list(rows.column_names)
    if given is None or given == name:
        return rows
    if given not in columns:
        # A dataset that one of our stages wrote has the contract's names already. In another one
        # the name is mistyped, and what happens to have the usual name may be no reference.
        is_ours = bool({schema.WHISPER_TRANSCRIPT, schema.LABELS} & set(columns))
        if is_ours and name in columns:
            # Expected: the stages of a recipe are given the names that the source has.
            logger.info("dataset %s has no column %r: its %r is read", spec, given, name)
        if is_ours and name in (*columns, schema.AUDIO):  # which labels may lie without
            return rows
        raise missing_column(spec, flag, given, columns)
    if name in columns:
        rows = rows.remove_columns(name)
    return rows.rename_column(given, name)


def missing_column(spec: DatasetSpec, flag: str, name: str, columns: list[str]) -> ValueError:
    """Return the error of a dataset without a column that a flag names."""
    return ValueError(
        f"{flag}: dataset {spec} has no column {name!r}; its columns are {', '.join(columns)}"
    )


def _as_text(rows: Rows, name: str) -> Rows:
    """Turn a column of numbers that name something into the strings of the contract."""
    kind = rows.features.get(name)
    if kind in (None, Value("string")):
        return rows
    if isinstance(rows, IterableDataset):
        return rows.cast_column(name, Value("string"))
    column = read_columns(rows, name)[name].cast(pa.string()).combine_chunks()
    # Casting in place would copy the audio beside it.
    return rows.remove_columns(name).add_column(name, column, feature=Value("string"))


def _is_meant_as_id(rows: Rows, spec: DatasetSpec) -> bool:
    """Tell whether a column that happens to be called `id` names the rows.

    It does where the user says so, in a manifest, and in what our stages wrote. In other datasets
    it may be the id of a sentence that several speakers read, unless it is unique; in a stream
    that cannot be seen, and it is believed.
    """
    is_certain = spec.id_column is not None or Path(spec.name).suffix in manifests.SUFFIXES
    if (
        is_certain
        or schema.WHISPER_TRANSCRIPT in rows.column_names
        or isinstance(rows, IterableDataset)
    ):
        return True
    ids = _ids(rows)
    return ids.null_count == 0 and first_repeated(ids) is None


def _add_row_ids(rows: Rows, spec: DatasetSpec) -> Rows:
    """Name the rows of a manifest by their files, and where that is not unique by their number.

    Ids by number depend on the order of the source. A stream is always numbered: whether its names
    are unique would be known only at its end.
    """
    if isinstance(rows, IterableDataset):
        logger.info("dataset %s has no column of ids: its rows are named by their number", spec)
        features = Features({schema.ID: Value("string"), **rows.features})
        return rows.map(
            lambda row, i: {schema.ID: _row_id(i), **row}, with_indices=True, features=features
        )
    if Path(spec.name).suffix in manifests.SUFFIXES:
        names = file_names(read_columns(rows, schema.AUDIO)[schema.AUDIO])
        if pc.count_distinct(names, mode="all").as_py() == len(rows):
            logger.info("dataset %s has no column of ids: its rows are named by their files", spec)
            return rows.add_column(schema.ID, names.combine_chunks(), feature=Value("string"))
    logger.info("dataset %s has no column of unique ids: its rows are named by their number", spec)
    return rows.add_column(schema.ID, _row_ids(len(rows)), feature=Value("string"))


def is_numbered_as_stream(spec: DatasetSpec) -> bool:
    """Tell whether rows get other ids while they are streamed than when they are not."""
    path = Path(spec.name)
    if not spec.streaming or path.suffix not in manifests.SUFFIXES:
        return False
    return (spec.id_column or schema.ID) not in Manifest(path).columns


def _row_id(index: int) -> str:
    return f"row-{index:09d}"


def _row_ids(count: int) -> pa.Array:
    """Return the ids of `_row_id`, without a Python object for each."""
    digits = pc.utf8_lpad(pa.array(np.arange(count)).cast(pa.string()), 9, "0")
    return pc.binary_join_element_wise("row-", digits, "")


def _ids(rows: MapStyleRows) -> pa.ChunkedArray:
    return read_columns(rows, schema.ID)[schema.ID]


def require_column(rows: Rows, spec: DatasetSpec, name: str, flag: str) -> None:
    """Raise ValueError if a column that a stage needs is not there."""
    if name in rows.column_names:
        return
    if name == schema.TEXT and spec.text_column is None:
        raise ValueError(
            f"{flag}: dataset {spec} has no column that is known to hold references (such are "
            f"{', '.join(schema.REFERENCE_NAMES)}): name one of its columns, which are "
            f"{', '.join(rows.column_names)}"
        )
    raise missing_column(spec, flag, name, list(rows.column_names))


def iterate_chunks(rows: Rows, size: int) -> Iterator[tuple[int, Rows | list[dict[str, Any]]]]:
    """Yield (index, rows) for consecutive chunks; a map-style chunk reads nothing until used.

    Raises:
        ValueError: two rows of a stream have one id, or one has none.
    """
    if not isinstance(rows, IterableDataset):
        for index, start in enumerate(range(0, len(rows), size)):
            yield index, rows.select(range(start, min(start + size, len(rows))))
        return
    seen, stream = SeenIds(), iter(rows)
    for index in count():
        chunk = list(islice(stream, size))
        if not chunk:
            return
        ids = [row[schema.ID] for row in chunk]
        if None in ids:
            raise ValueError(f"row {index * size + ids.index(None)} of the stream has no id")
        twice = seen.add(ids)
        if twice is not None:
            raise ValueError(
                f"id {twice!r:.200} occurs more than once in the stream; name a column that is "
                "unique with --id_column_name"
            )
        yield index, chunk


def with_split(spec: DatasetSpec, rows: Rows) -> DatasetSpec:
    """Fill in the split and configuration that were loaded where the user named none."""
    split = spec.split or str(getattr(rows, "split", None) or "train")
    return replace(spec, split=split_name(split), config=spec.config or DEFAULT_CONFIG)


def split_name(split: str) -> str:
    """Return the name that a split is written under: a part such as train[:10] is one of its own.

    The name must be that of a file.
    """
    return re.sub(r"\W+", "_", split).strip("_")


def load_splits(specs: Sequence[DatasetSpec], column: str, flag: str) -> dict[DatasetSpec, Rows]:
    """Load datasets that are written as splits of one; their names are filled in.

    Args:
        specs: what the flags name.
        column: that the stage needs.
        flag: that names this column.

    Raises:
        ValueError: a dataset lacks the column, or two would be written to the same files.
    """
    splits = []
    for spec in specs:
        rows = load(spec)
        require_column(rows, spec, column, flag)
        splits.append((with_split(spec, rows), rows))
    refuse_same_split_twice([spec for spec, _ in splits])
    return dict(splits)


def describe_splits(splits: Mapping[DatasetSpec, Rows]) -> str:
    """Return the datasets and their numbers of rows, for a line of the log."""
    return ", ".join(
        f"{spec}, streamed"
        if isinstance(rows, IterableDataset)
        else f"{len(rows):,} rows of {spec}"
        for spec, rows in splits.items()
    )
