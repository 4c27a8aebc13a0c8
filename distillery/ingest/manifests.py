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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset
from datasets.table import InMemoryTable

from distillery.data import schema
from distillery.ingest.file_trees import BYTE_ORDER_MARK, is_file, not_there
from distillery.ingest.manifest_rows import Entry, RowCheck, names

logger = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".json", *DELIMITERS)
NEMO_AUDIO = "audio_filepath"  # NeMo's manifests are JSON lines, often with the suffix .json
SPLIT = "split"
BATCH_ROWS = 1000
MAX_MISSES = 3
_BLOCK = 1 << 20
_BETWEEN_ITEMS = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Manifest:
    """A manifest, and what is wanted of it.

    Attributes:
        path: of the file.
        split: the rows that are wanted; it is any split if it has no such column.
        id_column: names the rows, if it has such a column.
        max_bad_fraction: the share of rows that may be unusable; they are counted and left out.
            With 0, the first one is an error.
    """

    path: Path
    split: str | None = None
    id_column: str = schema.ID
    max_bad_fraction: float | None = 0.0

    @property
    def columns(self) -> list[str]:
        """Names of the columns, as the first rows show them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has no rows, or none that can be read.
        """
        return self._head[0]

    @property
    def has_splits(self) -> bool:
        """Whether rows belong to splits, as the first rows show; errors are those of `columns`."""
        return self._head[1]

    @cached_property
    def _head(self) -> tuple[list[str], bool]:
        """The columns of the first batch, and whether rows in it belong to splits."""
        if not self.path.is_file():
            raise FileNotFoundError(not_there(self.path))
        first = list(islice(_entries(self.path), BATCH_ROWS))
        if not first:
            raise ValueError(f"dataset {self.path} has no rows")
        rows = [(line, row) for line, row in first if isinstance(row, dict)]
        if not rows:
            raise ValueError(f"{self.path}, line {first[0][0]}: {first[0][1]}")
        return names(rows), any(row.get(SPLIT) is not None for _, row in rows)

    def audio_column(self, wanted: str) -> str:
        """Return the column with the audio: NeMo's name is understood where none was given."""
        is_absent = wanted == schema.AUDIO and wanted not in self.columns
        return NEMO_AUDIO if is_absent and NEMO_AUDIO in self.columns else wanted

    def rows(self, audio_column: str) -> Dataset:
        """Read all rows into memory, as one Arrow table.

        Raises:
            ValueError: the file is damaged, the split is not there, or too many rows cannot be
                used: a line is damaged or names no audio, a time is none, a part has no duration,
                a value is of another type than the column. File and line are named.
        """
        table = pa.concat_tables(self._tables(audio_column), promote_options="permissive")
        # A fingerprint of its own: the library would copy the whole table to compute one.
        return Dataset(InMemoryTable(table), fingerprint=uuid.uuid4().hex)

    def stream(self, audio_column: str) -> IterableDataset:
        """Read rows as they are asked for; the first batch decides about columns and types.

        Raises:
            ValueError: as `rows` does, now, at the row or after the last one; a row that has
                another column than the first ones cannot be used either.
        """
        kinds = next(self._tables(audio_column)).schema
        for index, field in enumerate(kinds):
            if pa.types.is_null(field.type):
                is_time = field.name in (schema.OFFSET, schema.DURATION)
                kind = pa.float64() if is_time else pa.string()
                kinds = kinds.set(index, field.with_type(kind))
        return IterableDataset.from_generator(
            _stream,
            Features.from_arrow_schema(kinds),
            {"manifest": self, "audio_column": audio_column, "kinds": kinds},
        )

    def _tables(self, audio_column: str, kinds: pa.Schema | None = None) -> Iterator[pa.Table]:
        """Yield the rows in batches, with the types of `kinds`, else with those of the batch."""
        folders = _AudioFolders(self.path.parent)
        check = self._row_check(audio_column, kinds)
        entries = _entries(self.path)
        if self.split is not None and self.has_splits:
            entries = self._of_split(entries)
        while batch := list(islice(entries, BATCH_ROWS)):
            columns = check.columns(batch)
            if paths := columns[audio_column]:
                audio = audio_array([folders.locate(path) for path in paths])
                yield pa.table({**columns, audio_column: audio})
        check.close()

    def _row_check(self, audio_column: str, kinds: pa.Schema | None) -> RowCheck:
        return RowCheck(
            self.path,
            audio_column,
            self.id_column if self.id_column in self.columns else None,
            self.max_bad_fraction,
            {} if kinds is None else {field.name: field.type for field in kinds},
            is_settled=kinds is not None,
        )

    def _of_split(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        counts: Counter[str | None] = Counter()
        for line, row in entries:
            if not isinstance(row, dict):
                yield line, row  # of any split
                continue
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


def audio_array(paths: list[str]) -> pa.StructArray:
    """Return a column of audio that is given by its paths."""
    absent = pa.nulls(len(paths), pa.binary())
    return pa.StructArray.from_arrays([absent, pa.array(paths)], names=["bytes", "path"])


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
        place = next((folder for folder in candidates if is_file(folder / name)), None)
        self._misses[head] += place is None
        located = str((place or candidates[0]).resolve())
        # A file may be missing though its folder is there; a whole folder that is missing must not
        # be looked for a million times.
        if place or self._misses[head] >= MAX_MISSES:
            self._places[head] = located
        return located


def _entries(path: Path) -> Iterator[Entry]:
    """Yield the rows of a manifest, whatever its kind.

    Raises:
        ValueError: the file is damaged so that what follows cannot be read; the message names file
            and line.
    """
    if path.suffix in DELIMITERS:
        yield from _table_entries(path)
        return
    for line, row in _array_items(path) if _is_array(path) else _json_lines(path):
        if not isinstance(row, dict | ValueError):
            row = ValueError(f"not a JSON object: {str(row)[:80]}")
        yield line, row


def _lines(path: Path) -> Iterator[bytes]:
    # Not splitlines(): it also cuts where a text holds U+2028 and the like.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _table_entries(path: Path) -> Iterator[Entry]:
    # What is not UTF-8 becomes a character that no column can hold: one row is lost, not the file.
    lines = (line.decode("utf-8", "surrogateescape") for line in _lines(path))
    reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix], strict=True)
    try:
        header = next((fields for fields in reader if fields), [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line {reader.line_num}: a column is in the header twice")
        for fields in reader:
            if len(fields) > len(header):
                yield reader.line_num, ValueError("more fields than the header has columns")
            elif fields:
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
            yield number, _json_value(line)


def _json_value(line: bytes) -> Any:
    """Return the value of a line, or the error that says why there is none."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        return ValueError(f"not JSON: {error}")


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
    except UnicodeDecodeError as error:
        line = next(number for number, line in enumerate(_lines(path), 1) if not _is_utf8(line))
        raise ValueError(f"{path}, line {line}: not UTF-8: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


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
        except ValueError as error:  # a number of too many digits
            line += text.count("\n", start, position)
            raise ValueError(f"{path}, line {line} or below: not JSON: {error}") from error
        else:
            yield line, item
            line += text.count("\n", start, position)
