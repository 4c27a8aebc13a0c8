"""Sealed shards: files whose seal holds a checksum and the account of their rows."""

from collections.abc import Callable
from pathlib import Path

from distillery.storage.files import json_text, read_json, replacing, sha256
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs, Written

SEAL = ".seal.json"  # follows the name of the shard


def write_sealed(
    outputs: Outputs, path: Path, ledger: Ledger, write: Callable[[Path], None]
) -> None:
    """Write a shard, and then its seal: a JSON file with the shard's checksum and its account.

    A shard without a seal does not exist for `read_seal`, whatever the file holds. Both are listed
    as spare: a finished run can do without its shards of work.

    Args:
        outputs: list of the run's files.
        path: of the shard.
        ledger: the account of its rows.
        write: writes the shard to the path that it is given.
    """
    outputs.refuse_foreign(path)
    with replacing(path) as temporary:
        write(temporary)
        written = Written.of(temporary, spare=True)
        outputs.add({path: written})
    with outputs.replacing(seal_path(path), spare=True) as temporary:
        seal = {"sha256": written.sha256, "ledger": ledger.to_dict()}
        temporary.write_text(json_text(seal), encoding="utf-8")


def read_seal(path: Path, moved_to: Path | None = None) -> Ledger | None:
    """Return the account of a whole shard, or None where it must be written (again).

    Args:
        path: of the shard.
        moved_to: where a whole shard has been moved since, if it was; it is not read again.
    """
    try:
        seal = read_json(seal_path(path))
        ledger = Ledger.from_dict(seal["ledger"])
        is_whole = moved_to is not None or seal["sha256"] == sha256(path)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is not there, or it is no seal
    return ledger if is_whole else None


def seal_path(path: Path) -> Path:
    """Return where a shard's seal is kept."""
    return path.with_name(path.name + SEAL)
