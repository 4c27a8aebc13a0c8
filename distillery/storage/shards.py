"""Sealed shards: files whose seal holds a checksum and the account of their rows."""

from collections.abc import Callable
from pathlib import Path

from distillery.storage.files import read_json, replacing, sha256, write_json
from distillery.storage.ledger import Ledger


def write_sealed(path: Path, ledger: Ledger, write: Callable[[Path], None]) -> None:
    """Write a shard, and then its seal: a JSON file with the shard's checksum and its account.

    A shard without a seal does not exist for `read_seal`, whatever the file holds.
    """
    with replacing(path) as temporary:
        write(temporary)
    write_json(seal_path(path), {"sha256": sha256(path), "ledger": ledger.to_dict()})


def read_seal(path: Path) -> Ledger | None:
    """Return the account of a whole shard, or None where it must be written (again)."""
    try:
        seal = read_json(seal_path(path))
        ledger = Ledger.from_dict(seal["ledger"])
        is_whole = seal["sha256"] == sha256(path)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is not there, or it is no seal
    return ledger if is_whole else None


def seal_path(path: Path) -> Path:
    """Return where a shard's seal is kept."""
    return path.with_name(path.name + ".seal.json")
