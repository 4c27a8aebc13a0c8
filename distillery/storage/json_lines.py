"""Rows as JSON lines: a file that is only ever appended to, a whole row at a time."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from distillery.storage.files import sync

logger = logging.getLogger(__name__)

JsonRow = dict[str, Any]

LOCK_TIMEOUT_S = 60  # a row is written in milliseconds: whoever holds the lock longer is stuck
BLOCK_BYTES = 1 << 16  # read at once, from the end, to find the last line


def append_row(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Add one row to a JSON-lines file, durably, so that readers see all of it or none.

    What a killed writer left behind without an end of line is completed if it is a whole row, else
    moved to `<path>.torn`.

    Raises:
        ValueError: if a figure is not finite, which JSON cannot hold; nothing is written.
        filelock.Timeout: if another process keeps the file locked.
    """
    path = Path(path)
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: cannot write the row {row!r}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S):
        is_new = not path.exists()
        with path.open("ab+") as file:
            torn = _unterminated(path)
            if torn and not _is_whole(torn):
                _quarantine(path, torn)
                file.truncate(path.stat().st_size - len(torn))
                torn = b""
            file.write((b"\n" if torn else b"") + line.encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(path.parent)


def read_rows(path: str | os.PathLike[str]) -> list[JsonRow]:
    """Return all rows of a JSON-lines file in order; none if there is no such file.

    A torn last line is left out and reported through logging.

    Raises:
        ValueError: for any other line that is not a JSON object, naming file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    rows = [_parse_row(path, number, line) for number, line in enumerate(lines, start=1)]
    if tail and _is_whole(tail):
        rows.append(_parse_row(path, len(lines) + 1, tail))
    elif tail:
        logger.warning("%s:%d: left out a line that was cut short", path, len(lines) + 1)
    return rows


def _unterminated(path: Path) -> bytes:
    """Return what follows the last end of line: nothing, unless a writer was killed."""
    with path.open("rb") as file:
        start, tail = file.seek(0, os.SEEK_END), b""
        while start > 0 and b"\n" not in tail:  # the file may be large: only its end is read
            start = max(0, start - BLOCK_BYTES)
            file.seek(start)
            tail = file.read()
    return tail.rpartition(b"\n")[2]


def _is_whole(line: bytes) -> bool:
    """Say whether a line is a complete row; a JSON object cut short never is one."""
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except ValueError:  # bad JSON, or UTF-8 cut inside a character
        return False


def _quarantine(path: Path, torn: bytes) -> None:
    """Copy a torn line to `<path>.torn`, which is on disk before the results are truncated."""
    aside = Path(f"{path}.torn")
    with aside.open("ab") as file:
        file.write(torn + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)
    logger.warning("%s: moved %d bytes of a line cut short to %s", path, len(torn), aside)


def _parse_row(path: Path, number: int, line: bytes) -> JsonRow:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}:{number}: not a row of JSON ({error}): mend or remove it"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: expected a JSON object, got {row!r}: mend or remove it")
    return row
