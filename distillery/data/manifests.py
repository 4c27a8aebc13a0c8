"""Manifests: one row per clip in a JSON, JSON-lines, CSV or TSV file beside the audio.

A manifest is read in batches, each of which becomes an Arrow table, so that a million rows take
neither a Python object each nor a look at a million files: one that is missing is found when its
clip is decoded, and counted there.
"""

import csv
import json
import logging
import re
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset
from datasets.table import InMemoryTable

from distillery.data import schema
from distillery.data.file_trees import BYTE_ORDER_MARK, not_there

logger = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".json", *DELIMITERS)
NEMO_AUDIO = "audio_filepath"  # NeMo's manifests are JSON lines, often with the suffix .json
SPLIT = "split"
BATCH_ROWS = 1000
MAX_MISSES = 3
_BLOCK = 1 << 20
_BETWEEN_ITEMS = re.compile(r"[\s,]*")

Entry: TypeAlias = tuple[int, dict[str, Any]]  # line, from 1; row


@dataclass(frozen=True)
class Manifest:
    """A manifest, and the split that is wanted of it; it is any split if it has no such column."""

    path: Path
    split: str | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the columns, as the first rows show them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has no rows, or a line is damaged.
        """
        return self._head[0]

    @cached_property
    def _head(self) -> tuple[list[str], bool]:
        """The columns of the first batch, and whether rows in it belong to splits."""
        if not self.path.is_file():
            raise FileNotFoundError(not_there(self.path))
        first = list(islice(_entries(self.path), BATCH_ROWS))
        if not first:
            raise ValueError(f"dataset {self.path} has no rows")
        return _names(first), any(row.get(SPLIT) is not None for _, row in first)

    def audio_column(self, wanted: str) -> str:
        """Return the column with the audio: NeMo's name is understood where none was given."""
        is_absent = wanted == schema.AUDIO and wanted not in self.columns
        return NEMO_AUDIO if is_absent and NEMO_AUDIO in self.columns else wanted

    def rows(self, audio_column: str) -> Dataset:
        """Read all rows into memory, as one Arrow table.

        Raises:
            ValueError: a line is damaged, names no audio, a part has no duration, a column holds
                several types, or the split is not there. File and line are named.
        """
        tables = list(self._tables(audio_column))
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{self.path}: values of several types: {error}") from error
        # A fingerprint of its own: the library would copy the whole table to compute one.
        return Dataset(InMemoryTable(table), fingerprint=uuid.uuid4().hex)

    def stream(self, audio_column: str) -> IterableDataset:
        """Read rows as they are asked for; the first batch decides about columns and types.

        Raises:
            ValueError: as `rows` does, now or at the row; or a later row has another column.
        """
        kinds = next(self._tables(audio_column)).schema
        for index, field in enumerate(kinds):
            if pa.types.is_null(field.type):
                kinds = kinds.set(index, field.with_type(pa.string()))
        return IterableDataset.from_generator(
            _stream,
            Features.from_arrow_schema(kinds),
            {"manifest": self, "audio_column": audio_column, "kinds": kinds},
        )

    def _tables(self, audio_column: str, kinds: pa.Schema | None = None) -> Iterator[pa.Table]:
        """Yield the rows in batches, with the types of `kinds`, else with those of the batch."""
        folders = _AudioFolders(self.path.parent)
        entries = _entries(self.path)
        if self.split is not None and self._head[1]:
            entries = self._of_split(entries)
        while batch := list(islice(entries, BATCH_ROWS)):
            paths = [self._audio_file(line, row, audio_column) for line, row in batch]
            columns = {audio_column: audio_array([folders.locate(path) for path in paths])}
            for name in _names(batch):
                if name != audio_column:
                    columns[name] = self._column(name, batch, kinds)
            yield pa.table(columns)

    def _audio_file(self, line: int, row: dict[str, Any], column: str) -> str:
        path = row.get(column)
        if not isinstance(path, str) or not path:
            raise ValueError(
                f"{self.path}, line {line}: column {column!r} names no audio file: {path!r}"
            )
        if not _is_zero(row.get(schema.OFFSET)) and not row.get(schema.DURATION):
            raise ValueError(
                f"{self.path}, line {line}: column {schema.OFFSET!r} is {row[schema.OFFSET]!r}, "
                f"but a row that is a part of a file needs a {schema.DURATION!r} too"
            )
        return path

    def _column(self, name: str, batch: Sequence[Entry], kinds: pa.Schema | None) -> pa.Array:
        if kinds is not None and name not in kinds.names:
            line = next(line for line, row in batch if name in row)
            raise ValueError(
                f"{self.path}, line {line}: column {name!r} is not in the first {BATCH_ROWS:,} "
                "rows: write it in the first row too (null will do), or leave out --streaming"
            )
        try:
            kind = None if kinds is None else kinds.field(name).type
            return pa.array([row.get(name) for _, row in batch], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(
                f"{self.path}: column {name!r} holds values of several types, or what no column "
                f"can hold, between lines {batch[0][0]} and {batch[-1][0]}: {error}"
            ) from error

    def _of_split(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        counts: Counter[str | None] = Counter()
        for line, row in entries:
            name = None if row.get(SPLIT) is None else str(row[SPLIT])
            counts[name] += 1
            if name == self.split:
                yield line, row
        if not counts[self.split]:
            names = sorted(name for name in counts if name is not None and name != self.split)
            raise ValueError(
                f"dataset {self.path} has no split {self.split!r}: its column {SPLIT!r} holds "
                f"{', '.join(names)}"
            )
        logger.info(
            "%s: %d of %d rows belong to split %s",
            *(self.path, counts[self.split], counts.total(), self.split),
        )


def _stream(manifest: Manifest, audio_column: str, kinds: pa.Schema) -> Iterator[dict[str, Any]]:
    for table in manifest._tables(audio_column, kinds):
        yield from table.to_pylist()


def _names(batch: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for _, row in batch for name in row))


def audio_array(paths: list[str]) -> pa.StructArray:
    """Return a column of audio that is given by its paths."""
    absent = pa.nulls(len(paths), pa.binary())
    return pa.StructArray.from_arrays([absent, pa.array(paths)], names=["bytes", "path"])


def _is_zero(offset: Any) -> bool:
    try:
        return offset in (None, "") or float(offset) == 0
    except (TypeError, ValueError):
        return False


class _AudioFolders:
    """Where a manifest's audio files are: relative to the manifest.

    A manifest that was moved together with its audio names folders that are no longer there. Then
    the longest end of the path that exists beside the manifest is taken. Each folder is looked up
    once, not once for each file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, str] = {}
        self._misses: Counter[str] = Counter()

    def locate(self, path: str) -> str:
        """Return the absolute path of a file, from its path in the manifest."""
        name = path.rpartition("/")[2]
        head = path[: len(path) - len(name)]
        place = self._places.get(head)
        return f"{place or self._look_up(head, name)}/{name}"

    def _look_up(self, head: str, name: str) -> str:
        parts = Path(head).parts
        ends = (self._folder.joinpath(*parts[i:]) for i in range(1, len(parts) + 1))
        candidates = [self._folder / head, *ends]
        place = next((folder for folder in candidates if _is_file(folder / name)), None)
        self._misses[head] += place is None
        located = str((place or candidates[0]).resolve())
        # A file may be missing though its folder is there; a whole folder that is missing must not
        # be looked for a million times.
        if place or self._misses[head] >= MAX_MISSES:
            self._places[head] = located
        return located


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no permission, or a name that is none
        return False


def _entries(path: Path) -> Iterator[Entry]:
    """Yield the rows of a manifest, whatever its kind.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    if path.suffix in DELIMITERS:
        yield from _table_entries(path)
        return
    for line, row in _array_items(path) if _is_array(path) else _json_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: not a JSON object: {str(row)[:80]}")
        yield line, row


def _lines(path: Path) -> Iterator[str]:
    # Not splitlines(): it also cuts where a text holds U+2028 and the like.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8: {error}") from error


def _table_entries(path: Path) -> Iterator[Entry]:
    reader = csv.reader(_lines(path), delimiter=DELIMITERS[path.suffix], strict=True)
    try:
        header = next((fields for fields in reader if fields), [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line {reader.line_num}: a column is in the header twice")
        for fields in reader:
            if len(fields) > len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: more fields than the header has columns"
                )
            if fields:
                missing = [None] * (len(header) - len(fields))
                yield reader.line_num, dict(zip(header, [*fields, *missing], strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error} (a field that begins with a quote must be "
            "quoted as a whole, with its own quotes doubled)"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error


def _is_array(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return file.read(_BLOCK).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _array_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON array one by one, with memory for little more than one of them."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _items(path, file)
    except UnicodeDecodeError:
        deque(_lines(path), maxlen=0)  # names the line
        raise
    except RecursionError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _items(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    text = file.read(_BLOCK)
    position, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        between = _BETWEEN_ITEMS.match(text, position)
        assert between is not None  # it may be empty
        start = between.end()
        line += text.count("\n", position, start)
        if text[start : start + 1] == "]":
            if text[start + 1 :].strip() or file.read().strip():
                raise ValueError(f"{path}, line {line}: not JSON: more follows after the array")
            return
        try:
            item, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            # Perhaps only cut by the end of what was read. That doubles each time, so that the
            # rest behind a damaged place is not gone through once for each block.
            more = file.read(max(_BLOCK, len(text) - start))
            if not more:
                line += text.count("\n", start, error.pos)
                raise ValueError(f"{path}, line {line}: not JSON: {error.msg}") from error
            text, position = text[start:] + more, 0
        else:
            yield line, item
            line += text.count("\n", start, position)
