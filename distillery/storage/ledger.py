"""The account of rows, lines or files: each one is passed on, dropped or quarantined."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distillery.storage.names import printable

MOST_NAMED = 5  # places of one reason, in a line of the log

# What may be unusable where nobody says otherwise: a share, or a few rows of a small set.
USUAL_BAD_FRACTION = 0.001
FEW_ROWS, FEW_FRACTION = 3, 0.2


def most_bad(num_rows: int, max_bad_fraction: float | None) -> float:
    """Return how many rows may be unusable.

    Args:
        num_rows: all of them.
        max_bad_fraction: the share that is allowed. None allows `USUAL_BAD_FRACTION`, or else
            `FEW_ROWS` as long as these are no more than `FEW_FRACTION` of all.
    """
    if max_bad_fraction is not None:
        return max_bad_fraction * num_rows
    return max(USUAL_BAD_FRACTION * num_rows, min(FEW_ROWS, FEW_FRACTION * num_rows))


def allowance(max_bad_fraction: float | None) -> str:
    """Return the flag that was exceeded, in the words of a message."""
    if max_bad_fraction is not None:
        return f"--max_bad_fraction {max_bad_fraction:g} allows"
    return (
        f"--max_bad_fraction {USUAL_BAD_FRACTION:g} allows (where it is not given, {FEW_ROWS} pass "
        "too that are no more than a fifth of all)"
    )


@dataclass
class Ledger:
    """The account of rows, lines or files: in = out + dropped + quarantined.

    What is dropped was refused on purpose, what is quarantined could not be used; both by reason.

    Attributes:
        num_in, num_out: what came in, and what goes on.
        dropped, quarantined: numbers by reason.
        places: by reason, what or where it was: a row's id, a file, `file:line`. Only the reasons
            that were noted with a place are there.
    """

    num_in: int = 0
    num_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def quarantine(self, reason: str, *places: str) -> None:
        """Count what cannot be used, and note what or where it is."""
        if places:
            self.quarantined[reason] += len(places)
            self.places.setdefault(reason, []).extend(places)

    def __add__(self, other: "Ledger") -> "Ledger":
        reasons = [*self.places, *(reason for reason in other.places if reason not in self.places)]
        return Ledger(
            self.num_in + other.num_in,
            self.num_out + other.num_out,
            self.dropped + other.dropped,
            self.quarantined + other.quarantined,
            {
                reason: [*self.places.get(reason, ()), *other.places.get(reason, ())]
                for reason in reasons
            },
        )

    @property
    def balances(self) -> bool:
        """Whether all that came in is accounted for."""
        gone = self.dropped.total() + self.quarantined.total()
        return self.num_in == self.num_out + gone

    def check(
        self,
        max_bad_fraction: float | None,
        remedy: str = "start over with --overwrite_output_dir",
    ) -> None:
        """Raise unless the account balances and few enough rows were unusable.

        Args:
            max_bad_fraction: share of the rows that may be quarantined; see `most_bad`.
            remedy: what to do once they are mended.

        Raises:
            AssertionError: rows were lost or doubled: a fault of the stage itself.
            ValueError: more rows are quarantined than that.
        """
        if not self.balances:
            raise AssertionError(f"the ledger does not balance: {self}")
        bad = self.quarantined.total()
        if bad > most_bad(self.num_in, max_bad_fraction):
            raise ValueError(
                f"{bad} of {self.num_in} rows cannot be used{self._reasons(self.quarantined)}; "
                f"that is more than {allowance(max_bad_fraction)}; allow more, or mend them and "
                f"{remedy}"
            )

    def check_written(self, num_rows: int) -> None:
        """Raise AssertionError unless as many rows lie in the finished files as went out."""
        if num_rows != self.num_out:
            raise AssertionError(f"{num_rows} rows lie in the files, but the ledger says {self}")

    def to_dict(self) -> dict[str, Any]:
        """Return the account for a JSON file."""
        return {
            "in": self.num_in,
            "out": self.num_out,
            "dropped": dict(self.dropped),
            "quarantined": dict(self.quarantined),
            **({"places": self.places} if self.places else {}),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Ledger":
        """Read what `to_dict` returned."""
        return cls(
            value["in"],
            value["out"],
            Counter(value["dropped"]),
            Counter(value["quarantined"]),
            value.get("places", {}),
        )

    def __str__(self) -> str:
        return (
            f"{self.num_in} in = {self.num_out} out + {self.dropped.total()} dropped"
            f"{self._reasons(self.dropped)} + {self.quarantined.total()} quarantined"
            f"{self._reasons(self.quarantined)}"
        )

    def _reasons(self, counts: Counter[str]) -> str:
        listed = ", ".join(
            f"{reason}: {count}{listed_places(self.places.get(reason, ()))}"
            for reason, count in counts.most_common()
        )
        return f" ({listed})" if listed else ""


def listed_places(places: Sequence[str]) -> str:
    """Return the first few places in brackets, behind a number in a line of the log."""
    if not places:
        return ""
    more = ", …" if len(places) > MOST_NAMED else ""
    return f" [{', '.join(map(printable, places[:MOST_NAMED]))}{more}]"
