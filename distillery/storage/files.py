"""Files that are either whole or not there."""

import glob
import hashlib
import json
import os
import re
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
    temporary = temporary_path(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a name beside a file or a folder that nobody else has, until it is whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers left under temporary names; nobody may be writing there now.

    Args:
        folder: in which, and in the folders in it.
        name: delete only what was to get this name, right in the folder.
    """
    paths = folder.rglob(".*.tmp") if name is None else folder.glob(f".{glob.escape(name)}.*.tmp")
    for path in sorted(paths):
        is_ours = re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", path.name)
        if is_ours and not path.is_symlink() and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return JSON for people to read, too."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_json(path: Path) -> bool:
    """Tell whether a file holds JSON."""
    try:
        read_json(path)
    except ValueError:  # bad JSON, or bytes that are no text
        return False
    return True


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class DamagedFileError(Exception):
    """A file whose content is not what it should be; the message says what is wrong."""
