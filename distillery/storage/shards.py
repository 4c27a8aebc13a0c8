"""Sealed shards: files whose seal holds a checksum and the account of their rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.storage.files import read_json, replacing, sha256, write_json
from distillery.storage.ledger import Ledger

SUFFIX = ".seal.json"


@dataclass(frozen=True)
class Seal:
    """What is known of a shard.

    Attributes:
        sha256: checksum of the file.
        ledger: the account of its rows.
        notes: what else the stage wrote down.
    """

    sha256: str
    ledger: Ledger
    notes: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Seal":
        """Read a seal.

        Raises:
            FileNotFoundError, ValueError, KeyError, TypeError, AttributeError: it is not there, or
                it is no seal.
        """
        seal = read_json(path)
        return cls(seal["sha256"], Ledger.from_dict(seal["ledger"]), seal.get("notes", {}))


def write_sealed(
    path: Path,
    ledger: Ledger,
    write: Callable[[Path], None],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a shard, and then its seal: a JSON file with the shard's checksum and its account.

    A shard without a seal does not exist for `read_seal`, whatever the file holds.

    Args:
        path: of the shard.
        ledger: the account of its rows.
        write: writes it under a temporary name.
        notes: what else its seal is to hold.
    """
    with replacing(path) as temporary:
        write(temporary)
    seal = {"sha256": sha256(path), "ledger": ledger.to_dict(), "notes": dict(notes or {})}
    write_json(seal_path(path), seal)


def read_seal(path: Path, file: Path | None = None) -> Ledger | None:
    """Return the account of a whole shard, or None where it must be written (again).

    Args:
        path: of the shard when it was sealed.
        file: where it is now, if it has got another name since.
    """
    try:
        seal = Seal.read(seal_path(path))
        is_whole = seal.sha256 == sha256(file or path)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is not there, or it is no seal
    return seal.ledger if is_whole else None


def seal_path(path: Path) -> Path:
    """Return where a shard's seal is kept."""
    return path.with_name(path.name + SUFFIX)
