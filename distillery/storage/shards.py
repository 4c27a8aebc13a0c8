"""Files that are either whole or not there, and the counts that prove that no row was lost."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.storage.files import read_json, replacing, sha256, write_json


@dataclass
class Ledger:
    """The account of a stage's rows: in = out + dropped + quarantined.

    Dropped rows were refused on purpose, quarantined ones could not be used; both by reason.
    """

    num_in: int = 0
    num_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(
            self.num_in + other.num_in,
            self.num_out + other.num_out,
            self.dropped + other.dropped,
            self.quarantined + other.quarantined,
        )

    def check(self, max_bad_fraction: float) -> None:
        """Raise unless the account balances and few enough rows were unusable.

        Raises:
            AssertionError: rows were lost or doubled: a fault of the stage itself.
            ValueError: more than `max_bad_fraction` of the rows are quarantined.
        """
        gone = self.dropped.total() + self.quarantined.total()
        if self.num_in != self.num_out + gone:
            raise AssertionError(f"the ledger does not balance: {self}")
        bad = self.quarantined.total()
        if bad > max_bad_fraction * self.num_in:
            raise ValueError(
                f"{bad} of {self.num_in} rows cannot be used{self._reasons(self.quarantined)}; "
                f"that is more than --max_bad_fraction {max_bad_fraction:g} allows; allow more, or "
                "mend them and start over with --overwrite_output_dir"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the account for a JSON file."""
        return {
            "in": self.num_in,
            "out": self.num_out,
            "dropped": dict(self.dropped),
            "quarantined": dict(self.quarantined),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Ledger":
        """Read what `to_dict` returned."""
        return cls(
            value["in"], value["out"], Counter(value["dropped"]), Counter(value["quarantined"])
        )

    def __str__(self) -> str:
        return (
            f"{self.num_in} in = {self.num_out} out + {self.dropped.total()} dropped"
            f"{self._reasons(self.dropped)} + {self.quarantined.total()} quarantined"
            f"{self._reasons(self.quarantined)}"
        )

    @staticmethod
    def _reasons(counts: Counter[str]) -> str:
        listed = ", ".join(f"{reason}: {n}" for reason, n in counts.most_common())
        return f" ({listed})" if listed else ""


def write_sealed(path: Path, ledger: Ledger, write: Callable[[Path], None]) -> None:
    """Write a shard, and then its seal: a JSON file with the shard's sum and its account.

    A shard without a seal does not exist for `read_seal`, whatever the file holds.
    """
    with replacing(path) as temporary:
        write(temporary)
    write_json(seal_path(path), {"sha256": sha256(path), "ledger": ledger.to_dict()})


def read_seal(path: Path) -> Ledger | None:
    """Return the account of a whole shard, or None where it must be written (again)."""
    try:
        seal = read_json(seal_path(path))
        whole = seal["sha256"] == sha256(path)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there, or not a seal
        return None
    return Ledger.from_dict(seal["ledger"]) if whole else None


def seal_path(path: Path) -> Path:
    """Return where a shard's seal is kept."""
    return path.with_name(path.name + ".seal.json")
