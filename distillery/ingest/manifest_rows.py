"""Rows of a manifest, checked one by one: what cannot be used is quarantined, by file and line."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from distillery.data import column_types, schema
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable

logger = logging.getLogger(__name__)

MOST_LOGGED = 20  # rows with a fault in the same column
MAX_DEPTH = 32  # of lists and objects in each other: the libraries behind us call themselves
_CONVERSION_ERRORS = (
    *(pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError),
    *(OverflowError, UnicodeEncodeError),
)

LINE = "line"  # the reason, in the account, for what is no row at all
Row: TypeAlias = dict[str, Any]
Entry: TypeAlias = tuple[int, Row | ValueError]  # line, from 1; the row, or why it is none
Usable: TypeAlias = tuple[int, Row]


@dataclass
class RowCheck:
    """Sorts out the rows that cannot be used, and keeps the account of all.

    Attributes:
        path: of the manifest.
        audio_column: the column that names each row's file.
        id_column: the column that names each row; None where there is none.
        max_bad_fraction: the share of rows that may be unusable; see `ledger.most_bad`. With 0, the
            first one is an error.
        kinds: types of columns, as the rows before have shown them.
        is_settled: no other columns and types than those of `kinds` may come.
        account: of the rows; what is quarantined is counted by column.
    """

    path: Path
    audio_column: str
    id_column: str | None
    max_bad_fraction: float | None
    kinds: dict[str, pa.DataType] = field(default_factory=dict)
    is_settled: bool = False
    account: Ledger = field(default_factory=Ledger)

    def columns(self, batch: Sequence[Entry]) -> dict[str, Any]:
        """Return the columns of the rows that can be used: paths of audio, Arrow arrays else.

        Raises:
            ValueError: a row cannot be used, and none may be.
        """
        self.account.num_in += len(batch)
        usable = [(line, row) for line, row in batch if self._is_usable(line, row)]
        rows, columns = self._converted(usable)  # type: ignore[arg-type]  # errors are out
        self.account.num_out += len(rows)
        return {self.audio_column: [row[self.audio_column] for _, row in rows], **columns}

    def close(self) -> None:
        """Check and log the account, after the last row.

        Raises:
            ValueError: too many rows cannot be used, or all of them.
        """
        if not self.account.quarantined:
            return
        logger.warning("%s: %s", self.path, self.account)
        try:
            self.account.check(self.max_bad_fraction)
        except ValueError as error:
            raise ValueError(f"dataset {self.path}: {error}") from error
        if not self.account.num_out:
            raise ValueError(f"dataset {self.path} has no rows that can be used: {self.account}")

    def _is_usable(self, line: int, row: Row | ValueError) -> bool:
        fault = self._fault(row)
        if fault is not None:
            self._refuse(line, *fault)
        return fault is None

    def _refuse(self, line: int, column: str, problem: str) -> None:
        if self.max_bad_fraction == 0:
            raise ValueError(f"{self.path}, line {line}: {problem}")
        self.account.quarantine(column, f"{self.path.name}:{line}")
        count = self.account.quarantined[column]
        if count <= MOST_LOGGED:
            more = " (more of these are only counted)" if count == MOST_LOGGED else ""
            text = printable(problem)
            logger.warning("%s, line %d: %s: left out%s", self.path, line, text, more)

    def _fault(self, row: Row | ValueError) -> tuple[str, str] | None:
        """Return the column that a row cannot be used for, and why; None where it can be used."""
        if isinstance(row, ValueError):
            return LINE, str(row)
        path = row.get(self.audio_column)
        if not isinstance(path, str) or not path or "\0" in path or not _is_utf8(path):
            return self.audio_column, (
                f"column {self.audio_column!r} names no audio file: {path!r:.80}"
            )
        if self.id_column is not None and row.get(self.id_column) in (None, ""):
            return self.id_column, f"column {self.id_column!r} is empty"
        cues = row.get(schema.SUBTITLES)
        if cues is not None and not isinstance(cues, str):
            return schema.SUBTITLES, f"column {schema.SUBTITLES!r} names no file: {cues!r:.80}"
        return self._fault_in_times(row) or self._fault_in_columns(row)

    def _fault_in_times(self, row: Row) -> tuple[str, str] | None:
        """Check offset and duration, and make them numbers."""
        offset, duration = row.get(schema.OFFSET), row.get(schema.DURATION)
        if not _is_zero(offset) and not duration:
            return schema.OFFSET, (
                f"column {schema.OFFSET!r} is {offset!r:.80}, but a row that is a part of a file "
                f"needs a {schema.DURATION!r} too"
            )
        for name in (schema.OFFSET, schema.DURATION):
            if name in row:
                try:
                    row[name] = column_types.seconds(row[name])
                except ValueError as error:
                    return name, f"column {name!r} is {error}"
        return None

    def _fault_in_columns(self, row: Row) -> tuple[str, str] | None:
        for name, value in row.items():
            if not _is_utf8(name):
                return LINE, f"column {name!r:.80} has a name that is not UTF-8"
            if isinstance(value, (list, dict)) and not _is_shallow(value):
                return name, f"column {name!r} holds more than {MAX_DEPTH} lists in each other"
            if self.is_settled and name not in self.kinds:
                return name, (
                    f"column {name!r} is not in the first rows: write it in the first row too "
                    "(null will do), or leave out --streaming"
                )
        return None

    # --- values of one type ----------------------------------------------------------------------

    def _converted(self, rows: list[Usable]) -> tuple[list[Usable], dict[str, pa.Array]]:
        """Return the rows whose values fit into columns, and these, beside that of the audio."""
        columns: dict[str, pa.Array] = {}
        for name in names(rows):
            if name == self.audio_column:
                continue
            try:
                columns[name] = self._array(name, [row.get(name) for _, row in rows])
            except _CONVERSION_ERRORS as error:
                return self._converted(self._fitting(name, rows, error))
        self.kinds |= {
            name: column.type
            if self.is_settled
            else _promoted(self.kinds.get(name, pa.null()), column.type)
            for name, column in columns.items()
        }
        return rows, columns

    def _array(self, name: str, values: Sequence[Any]) -> pa.Array:
        if self.is_settled:
            return pa.array(values, self.kinds[name])
        array = pa.array(values)
        _promoted(self.kinds.get(name, pa.null()), array.type)  # raises where they do not go
        return array

    def _fitting(self, name: str, rows: list[Usable], error: Exception) -> list[Usable]:
        """Refuse the rows whose value is of another type than the column is, or than most are."""
        usual = None if self.kinds.get(name) else self._usual(name, rows)
        fitting = []
        for line, row in rows:
            value = row.get(name)
            if value is None or self._fits(name, [value] if usual is None else [usual, value]):
                fitting.append((line, row))
            else:
                self._refuse(line, name, _misfit(name, value))
        if len(fitting) == len(rows):
            raise ValueError(
                f"{self.path}: column {name!r} holds values of several types between lines "
                f"{rows[0][0]} and {rows[-1][0]}: {error}"
            ) from error
        return fitting

    def _usual(self, name: str, rows: Sequence[Usable]) -> Any:
        """Return a value of the type that most values have; None where none can be used."""
        values = [row[name] for _, row in rows if row.get(name) is not None]
        usable = [value for value in values if self._fits(name, [value])]
        counts = Counter(type(value) for value in usable)
        most = counts.most_common(1)[0][0] if counts else None
        return next((value for value in usable if type(value) is most), None)

    def _fits(self, name: str, values: Sequence[Any]) -> bool:
        try:
            self._array(name, values)
        except _CONVERSION_ERRORS:
            return False
        return True


def names(rows: Sequence[tuple[int, Any]]) -> list[str]:
    """Return the names of all columns, in the order in which they come."""
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _promoted(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type that holds both, such as a double for integers.

    Raises:
        pa.ArrowTypeError: there is none.
    """
    if one == other:
        return one
    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _misfit(name: str, value: Any) -> str:
    if isinstance(value, str) and not _is_utf8(value):
        return f"not UTF-8: column {name!r} is {value!r:.80}"
    return (
        f"column {name!r} holds values of several types, or what no column can hold: {value!r:.80}"
    )


def _is_zero(offset: Any) -> bool:
    try:
        return offset in (None, "") or float(offset) == 0
    except (TypeError, ValueError, OverflowError):
        return False


def _is_utf8(text: str) -> bool:
    """Tell whether a text has no half of a character, as from `"\\ud800"` in JSON."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not level
