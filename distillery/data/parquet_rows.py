"""Rows of Parquet files, read where they lie: no copy is made of them.

Only the columns that are asked for are read, and of one row its row group alone, up to the row. In
small row groups, as `hub_layout` writes them, rows can be read in any order; in large ones that is
slow, and reading in order is not, nor reading rows of a few groups that are kept in memory
(`keeping`). Else, in memory are a few rows, and the page of the file that they are in (a part of a
row group, or all of it).
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features
from datasets.table import CastError, table_cast
from numpy.typing import NDArray

from distillery.data.regions import Regions

TABLE_BYTES = 4 << 20  # of the rows that are in memory at a time, about
TABLE_ROWS = 10_000  # the most of them
BUFFER_BYTES = 1 << 16  # read ahead, and not a row group whole
LARGE_GROUP_BYTES = 4 << 20  # from there on, on average, rows are not read in any order
OPEN_FILES = 64  # each with its list of row groups, about a megabyte


class FileState(NamedTuple):
    """A file, and what differs once it was replaced."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> "FileState":
        """Look at a file."""
        stat = Path(path).stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)


class _OpenFile(NamedTuple):
    parquet: pq.ParquetFile
    ends: list[int]  # number of rows up to the end of each row group


@lru_cache(maxsize=OPEN_FILES)
def _opened(state: FileState) -> _OpenFile:
    with _errors_naming(state.path):
        if FileState.of(state.path) != state:
            raise ValueError(f"{state.path} has changed since this run began to read it")
        parquet = pq.ParquetFile(state.path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        sizes = (parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))
        return _OpenFile(parquet, list(accumulate(sizes)))


@contextmanager
def _errors_naming(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged, or no Parquet file: {error}") from error


class _Scan:
    """Consecutive rows of a file from the first row of a row group on, of which some are loaded."""

    def __init__(self, first: int, tables: Iterator[pa.Table]) -> None:
        self.loaded = range(first, first)
        self.table = pa.table({})
        self._tables = tables

    def load(self, number: int) -> None:
        """Read on up to a row."""
        while number not in self.loaded:
            self.table = next(self._tables)
            self.loaded = range(self.loaded.stop, self.loaded.stop + len(self.table))


@dataclass(frozen=True, eq=False)
class ParquetFiles:
    """Parquet files whose rows are numbered as if they were one.

    Attributes:
        states: of the files.
        ends: int64 (files,), the number of rows up to the end of each.
        features: types of the columns.
        num_groups: row groups of all files.
        kept_bytes: of row groups that are kept in memory for single rows; 0 keeps none. One group
            is kept in any case, if it were larger.
    """

    states: tuple[FileState, ...]
    ends: NDArray[np.int64]
    features: Features
    num_groups: int
    kept_bytes: int = 0
    # Where reading goes on, for rows in order and for single rows, by the columns that are read.
    _scans: dict[Any, _Scan] = field(default_factory=dict, repr=False)
    # By file, number and columns; the one that was used last is the last.
    _kept: dict[Any, pa.Table] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, paths: Sequence[str], features: Features | None = None) -> "ParquetFiles":
        """Look at the ends of files, which tell of their columns and rows.

        Args:
            paths: at least one.
            features: types of the columns; None takes those that the first file names.

        Raises:
            ValueError: a file is damaged, or its columns do not fit the others'.
        """
        states, sizes, num_groups = [], [], 0
        schema: pq.ParquetSchema | None = None
        for path in paths:
            with _errors_naming(path):
                states.append(FileState.of(path))
                metadata = pq.read_metadata(path)
                sizes.append(metadata.num_rows)
                num_groups += metadata.num_row_groups
            if schema is None or not metadata.schema.equals(schema):
                schema = metadata.schema
                found = schema.to_arrow_schema()
                features = _undecoded(features or Features.from_arrow_schema(found))
                _refuse_other_columns(path, found, features)
        assert features is not None
        return cls(tuple(states), np.cumsum(sizes, dtype=np.int64), features, num_groups)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files to each process."""
        return {**self.__dict__, "_scans": {}, "_kept": {}}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def group_ends(self) -> NDArray[np.int64]:
        """Return the number of rows up to the end of each row group, int64 (groups,)."""
        return np.cumsum([size for state in self.states for size, _ in _groups(state)], dtype=int)

    def row(self, number: int, columns: Collection[str]) -> pa.Table:
        """Return one row; to read the others of its row group next costs little."""
        if self.kept_bytes:
            return self._row_of_kept(number, columns)
        scan = self._scan(number, columns, in_order=False)
        return scan.table.slice(number - scan.loaded.start, 1)

    def regions(self) -> Regions | None:
        """Return which rows are read together; None where row groups are small."""
        if sum(state.size for state in self.states) < LARGE_GROUP_BYTES * self.num_groups:
            return None
        return Regions.of(_groups(state) for state in self.states)

    def keeping(self, num_bytes: int) -> "ParquetFiles":
        """Return the same files, of which row groups are kept in memory once rows are read."""
        return replace(self, kept_bytes=num_bytes, _scans={}, _kept={})

    def _row_of_kept(self, number: int, columns: Collection[str]) -> pa.Table:
        file, group, first = self._place(number)
        key = file, group, tuple(columns)
        table = self._kept.pop(key, None)
        if table is None:
            table = pa.concat_tables(self._read(file, range(group, group + 1), columns))
            room = self.kept_bytes - table.nbytes
            while self._kept and sum(kept.nbytes for kept in self._kept.values()) > room:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = table
        return table.slice(number - first, 1)

    def _place(self, number: int) -> tuple[int, int, int]:
        """Return the file and the row group that a row is in, and the first row of that group."""
        file = int(np.searchsorted(self.ends, number, side="right"))
        start = int(self.ends[file - 1]) if file else 0
        ends = _opened(self.states[file]).ends
        group = bisect_right(ends, number - start)
        return file, group, start + (ends[group - 1] if group else 0)

    def tables(self, numbers: NDArray[np.int64], columns: Collection[str]) -> Iterator[pa.Table]:
        """Yield rows in the order of their numbers, as tables of about `TABLE_BYTES` at most."""
        place = 0
        while place < len(numbers):
            scan = self._scan(int(numbers[place]), columns, in_order=True)
            next_numbers = numbers[place : place + len(scan.loaded)]
            is_loaded = (next_numbers >= scan.loaded.start) & (next_numbers < scan.loaded.stop)
            found = next_numbers[: int(np.argmin(np.append(is_loaded, False)))]
            places = found - scan.loaded.start
            if places[-1] - places[0] + 1 == len(places) and np.all(np.diff(places) == 1):
                yield scan.table.slice(int(places[0]), len(places))
            else:
                yield scan.table.take(places)
            place += len(places)

    def _scan(self, number: int, columns: Collection[str], in_order: bool) -> _Scan:
        """Return what has a row loaded."""
        key = tuple(columns), in_order
        scan = self._scans.pop(key, None)  # one that fails is not gone on with
        if scan is None or number not in scan.loaded:
            file, group, first = self._place(number)
            num_groups = len(_opened(self.states[file]).ends)
            start = int(self.ends[file - 1]) if file else 0
            begin, last = (start, num_groups) if in_order else (first, group + 1)
            if scan is None or not (
                begin <= scan.loaded.start and first <= scan.loaded.stop <= number
            ):
                scan = _Scan(first, self._read(file, range(group, last), columns))
            scan.load(number)
        self._scans[key] = scan
        return scan

    def _read(self, file: int, groups: range, columns: Collection[str]) -> Iterator[pa.Table]:
        state = self.states[file]
        parquet = _opened(state).parquet
        wanted = Features({name: self.features[name] for name in columns}).arrow_schema
        there = [name for name in columns if name in parquet.schema_arrow.names]
        size = _rows_per_table(parquet.metadata.row_group(groups[0]), columns)
        with _errors_naming(state.path):
            for batch in parquet.iter_batches(size, list(groups), there, use_threads=False):
                yield _cast(pa.Table.from_batches([batch]), wanted, state.path)


def _groups(state: FileState) -> Iterator[tuple[int, int]]:
    """Yield the numbers of rows and bytes of the row groups of a file."""
    metadata = _opened(state).parquet.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        yield group.num_rows, group.total_byte_size


def _undecoded(features: Features) -> Features:
    """Leave audio as it is stored, which needs no decoder."""
    return Features(
        {
            name: Audio(decode=False) if isinstance(kind, Audio) else kind
            for name, kind in features.items()
        }
    )


def _cast(table: pa.Table, wanted: pa.Schema, path: str) -> pa.Table:
    try:
        return table_cast(table, wanted)
    except pa.ArrowException as error:
        raise ValueError(
            f"{path} has values of another type than the first file of the dataset: {error}"
        ) from error


def _refuse_other_columns(path: str, found: pa.Schema, features: Features) -> None:
    try:
        table_cast(found.empty_table(), features.arrow_schema)
    except (CastError, pa.ArrowException, TypeError, ValueError) as error:
        wanted = features.arrow_schema
        raise ValueError(
            f"{path} has other columns than the files before it: {_described(found)}, not "
            f"{_described(wanted)}"
        ) from error


def _described(columns: pa.Schema) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in columns)


def _rows_per_table(group: Any, columns: Collection[str]) -> int:
    """Return how many rows like those of a group take `TABLE_BYTES`, in some of their columns."""
    chunks = (group.column(index) for index in range(group.num_columns))
    num_bytes = sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in columns
    )
    return min(max(1, int(TABLE_BYTES * group.num_rows // max(1, num_bytes))), TABLE_ROWS)


@dataclass(frozen=True, eq=False)
class ParquetRows:
    """Some rows and columns of Parquet files; has of `datasets.Dataset` what the stages use.

    Attributes:
        files: where the rows are.
        numbers: int64 (rows,), which rows of the files.
        names: of the columns, each with its name in the files.
        added: columns that are not in the files: an array with a value for each row.
        features: types of the columns, in their order.
        split: what the rows are called.
    """

    files: ParquetFiles
    numbers: NDArray[np.int64]
    names: Mapping[str, str]
    added: Mapping[str, pa.Array]
    features: Features
    split: str | None = None

    @classmethod
    def of(
        cls, files: ParquetFiles, numbers: NDArray[np.int64] | None = None, split: str | None = None
    ) -> "ParquetRows":
        """Return rows of files, all of them if no numbers are given, with all columns."""
        if numbers is None:
            numbers = np.arange(len(files))
        return cls(
            files, numbers, {name: name for name in files.features}, {}, files.features, split
        )

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.features)

    def __getitem__(self, key: int | str) -> Any:
        """Return a row as a dict, or the values of a column as a list."""
        if isinstance(key, str):
            return self.select_columns(key).table()[key].to_pylist()
        row = {name: values[int(key)].as_py() for name, values in self.added.items()}
        if self.names:
            (found,) = self.files.row(int(self.numbers[key]), self.names.values()).to_pylist()
            row |= {name: found[given] for name, given in self.names.items()}
        return {name: row[name] for name in self.features}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield row after row."""
        for table in self.tables():
            yield from table.to_pylist()

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows as tables, each of about `TABLE_BYTES` at most."""
        if not self.names:
            yield pa.table(dict(self.added))
            return
        start = 0
        for table in self.files.tables(self.numbers, self.names.values()):
            columns = {name: table[given] for name, given in self.names.items()}
            columns |= {name: some.slice(start, len(table)) for name, some in self.added.items()}
            yield pa.table({name: columns[name] for name in self.features})
            start += len(table)

    def table(self) -> pa.Table:
        """Return all rows, in memory."""
        return pa.concat_tables([self.features.arrow_schema.empty_table(), *self.tables()])

    def select(self, indices: "Sequence[int] | NDArray[np.integer[Any]]") -> "ParquetRows":
        """Return some rows."""
        places = np.asarray(indices, np.int64)
        added = {name: values.take(pa.array(places)) for name, values in self.added.items()}
        return replace(self, numbers=self.numbers[places], added=added)

    def take(self, count: int) -> "ParquetRows":
        """Return the first rows."""
        return self.select(range(min(count, len(self))))

    def regions(self) -> Regions | None:
        """Return which rows are read together; None where they can be read in any order."""
        regions = self.files.regions()
        return None if regions is None else regions.select(self.numbers)

    def keeping(self, num_bytes: int) -> "ParquetRows":
        """Return the same rows, whose row groups are kept in memory once single rows are read."""
        return replace(self, files=self.files.keeping(num_bytes))

    def select_columns(self, names: str | Sequence[str]) -> "ParquetRows":
        """Return some columns."""
        return self._with_columns(
            {name: name for name in ([names] if isinstance(names, str) else names)}
        )

    def remove_columns(self, name: str) -> "ParquetRows":
        """Return all columns but one."""
        return self._with_columns({other: other for other in self.features if other != name})

    def rename_column(self, given: str, name: str) -> "ParquetRows":
        """Return the same columns, with another name for one."""
        return self._with_columns({name if old == given else old: old for old in self.features})

    def _with_columns(self, columns: Mapping[str, str]) -> "ParquetRows":
        """Return columns under new names; each has the name that it had so far."""
        return replace(
            self,
            names={name: self.names[old] for name, old in columns.items() if old in self.names},
            added={name: self.added[old] for name, old in columns.items() if old in self.added},
            features=Features({name: self.features[old] for name, old in columns.items()}),
        )

    def add_column(
        self, name: str, values: pa.Array | Sequence[Any], feature: Any
    ) -> "ParquetRows":
        """Return one column more, with a value for each row."""
        features = Features({**self.features, name: feature})
        if not isinstance(values, pa.Array):
            values = pa.array(values, features.arrow_schema.field(name).type)
        return replace(self, added={**self.added, name: values}, features=features)
