"""Sealed shards: files whose seal holds size, checksum, and the account of their rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.storage.files import json_text, read_json, replacing, sha256
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import SMALL_BYTES, Outputs, Written

SEAL = ".seal.json"  # follows the name of the shard


@dataclass(frozen=True)
class Seal:
    """What is known of a shard.

    Attributes:
        size, sha256: of the file, in bytes and hexadecimal.
        ledger: the account of its rows.
        notes: what else the stage wrote down.
    """

    size: int
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
        ledger = Ledger.from_dict(seal["ledger"])
        return cls(seal["size"], seal["sha256"], ledger, seal["notes"])

    def fits(self, file: Path, verify: bool) -> bool:
        """Tell whether a file is what was sealed; the content of a large one is read to verify."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        return not (verify or self.size <= SMALL_BYTES) or sha256(file) == self.sha256


def write_sealed(
    outputs: Outputs,
    path: Path,
    ledger: Ledger,
    write: Callable[[Path], None],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a shard, and then its seal: a JSON file with the shard's checksum and its account.

    A shard without a seal does not exist for `read_seal`, whatever the file holds. Both are listed
    as spare: a finished run can do without its shards of work.

    Args:
        outputs: list of the run's files.
        path: of the shard.
        ledger: the account of its rows.
        write: writes the shard to the path that it is given.
        notes: what else its seal is to hold.
    """
    outputs.refuse_foreign(path)
    with replacing(path) as temporary:
        write(temporary)
        written = Written.of(temporary, spare=True)
        outputs.add({path: written})
    content = {"size": written.size, "sha256": written.sha256}
    seal = {**content, "ledger": ledger.to_dict(), "notes": dict(notes or {})}
    with outputs.replacing(seal_path(path), spare=True) as temporary:
        temporary.write_text(json_text(seal), encoding="utf-8")


def read_seal(path: Path, moved_to: Path | None = None, verify: bool = False) -> Ledger | None:
    """Return the account of a whole shard, or None where it must be written (again).

    Args:
        path: of the shard when it was sealed.
        moved_to: where it has been moved since, if it was.
        verify: read large files, too, and compare their checksums; else only their sizes.
    """
    try:
        seal = Seal.read(seal_path(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is not there, or it is no seal
    return seal.ledger if seal.fits(moved_to or path, verify) else None


def seal_path(path: Path) -> Path:
    """Return where a shard's seal is kept."""
    return path.with_name(path.name + SEAL)
