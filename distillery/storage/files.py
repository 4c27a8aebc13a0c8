"""Files that are either whole or not there."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUN_RECORD = "run.json"  # what a stage leaves beside its output: flags, versions, counts


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; on success it becomes `path`, durably and at once.

    A reader sees the old file or the new one, and a killed writer leaves only a `.tmp` file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Give a file another name on the same disk, durably; a file of that name is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    sync(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left under temporary names; nobody may be writing there now."""
    for path in folder.rglob(".*.tmp"):
        path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder is on, or will be on."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that it is whole or not there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that it is whole or not there."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class DamagedFileError(Exception):
    """A file whose content is not what it should be; the message says what is wrong."""
