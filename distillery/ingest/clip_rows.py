"""Clips of a folder or an archive of audio as rows, with the contract's column names."""

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, NamedSplit, Value
from datasets.table import InMemoryTable

from distillery.data import schema
from distillery.ingest import manifests, row_streams
from distillery.ingest.archives import is_archive, open_archive
from distillery.ingest.file_trees import MAX_MEMBER_BYTES, FileTree

# Of an archive, while its clips are copied to the cache.
_ROWS_IN_MEMORY, _BYTES_IN_MEMORY = 20, 256 << 20


class Clip(NamedTuple):
    """What is known about one audio file."""

    id: str
    text: str | None = None
    speaker_id: str | None = None
    recording_id: str | None = None
    subtitles: str | None = None


COLUMNS = dict(
    zip(
        Clip._fields,
        (schema.ID, schema.TEXT, schema.SPEAKER_ID, schema.RECORDING_ID, schema.SUBTITLES),
        strict=True,
    )
)
Index: TypeAlias = dict[str, Clip]  # by the name of the audio file


def load(
    tree: FileTree, index: Index, split: NamedSplit, streaming: bool, cache_dir: str | None
) -> Dataset | IterableDataset:
    """Return clips as rows.

    Args:
        tree: a folder, whose rows hold paths, or an archive, whose rows hold bytes.
        index: the clips that are wanted.
        split: what they are called.
        streaming: read clips as they are asked for. Those of an archive are copied to the cache of
            the datasets library without it.
        cache_dir: in place of that.
    """
    if not is_archive(tree.root):
        return _stream(tree, index, split) if streaming else _paths(tree, index, split)
    if streaming and tree.offsets is not None:
        return _stream(tree, index, split)
    return _read_through(tree, index, split, streaming, cache_dir)


def _columns(index: Index) -> dict[str, list[str | None]]:
    """Return the columns that some clip has a value in."""
    columns = {
        column: [getattr(clip, name) for clip in index.values()] for name, column in COLUMNS.items()
    }
    return {name: values for name, values in columns.items() if any(v is not None for v in values)}


def _features(index: Index) -> Features:
    text = Value("string")
    audio = {"bytes": Value("binary"), "path": text}
    return Features({schema.AUDIO: audio, **dict.fromkeys(_columns(index), text)})


def _paths(tree: FileTree, index: Index, split: NamedSplit) -> Dataset:
    folder = tree.root.resolve()
    audio = manifests.audio_array([str(folder / name) for name in index])
    table = InMemoryTable(pa.table({schema.AUDIO: audio, **_columns(index)}))
    # A fingerprint of its own: the library would copy the whole table to compute one.
    return Dataset(table, split=split, fingerprint=uuid.uuid4().hex)


# --- clips that can be read in any order ----------------------------------------------------------


def _stream(tree: FileTree, index: Index, split: NamedSplit) -> IterableDataset:
    """Return the clips of a folder, or of an archive that is not compressed."""
    names, features, state = list(index), _features(index), _state(tree.root)
    if tree.offsets is not None:
        names.sort(key=tree.offsets.__getitem__)

    def read(_shard: int, row: int) -> dict[str, Any]:
        name = names[row]
        audio = _stored(tree, name, state)
        return {schema.AUDIO: audio, **_values(index[name], tuple(features))}

    return row_streams.of_rows(np.arange(len(names)) + 1, read, features, str(split))


def _stored(tree: FileTree, name: str, state: tuple[int, int]) -> dict[str, Any]:
    """Return the audio of a clip: its content in an archive, its path in a folder."""
    if tree.offsets is None:
        return {"bytes": None, "path": str(tree.root.resolve() / name)}
    if _state(tree.root) != state:
        raise _changed(tree.root)
    with tree.root.open("rb") as file:
        file.seek(tree.offsets[name])
        return {"bytes": file.read(tree.sizes[name]), "path": name}


def _state(root: Path) -> tuple[int, int]:
    """Return what differs once a file was replaced."""
    state = root.stat()
    return state.st_size, state.st_mtime_ns


def _changed(root: Path) -> ValueError:
    return ValueError(f"dataset {root} was changed while it was read: start again")


def _values(clip: Clip, columns: Sequence[str]) -> dict[str, str | None]:
    known = dict(zip(COLUMNS.values(), clip, strict=True))
    return {column: known[column] for column in columns if column in known}


# --- archives that can only be read from their start to their end ---------------------------------


def _read_through(
    tree: FileTree, index: Index, split: NamedSplit, streaming: bool, cache_dir: str | None
) -> Dataset | IterableDataset:
    features = _features(index)
    source = {
        "root": str(tree.root.resolve()),
        "index": index,
        "columns": tuple(features),
        # Part of the name in the cache: another file of this name must not meet an older copy.
        "version": _state(tree.root),
    }
    if streaming:
        return IterableDataset.from_generator(_examples, features, source, split)
    rows_in_memory = _BYTES_IN_MEMORY // max(1, *(tree.sizes[name] for name in index))
    return Dataset.from_generator(
        _examples,
        features,
        cache_dir,
        gen_kwargs=source,
        split=split,
        writer_batch_size=max(1, min(_ROWS_IN_MEMORY, rows_in_memory)),
    )


def _examples(
    root: str, index: Index, columns: Sequence[str], version: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    num_found = 0
    with open_archive(Path(root), MAX_MEMBER_BYTES) as archive:
        for name, member in archive.members({}):
            if name in index:
                num_found += 1
                audio = {"bytes": archive.read(member), "path": name}
                yield {schema.AUDIO: audio, **_values(index[name], columns)}
    if num_found != len(index):
        raise _changed(Path(root))
