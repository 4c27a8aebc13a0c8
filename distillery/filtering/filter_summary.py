"""What filtering did to a dataset: hours by outcome, distributions, and rows near the threshold.

Each shard has a summary of its own, of bounded size, and the summary of a dataset is their sum: the
scores of all rows are never held in one place.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from distillery.filtering.row_filter import JudgedRow

KEPT = "kept"
MOST_EXAMPLES = 20

# A value is counted in the first bin whose end it does not exceed; behind the last end is one more.
BIN_ENDS: Mapping[str, tuple[float, ...]] = {
    "wer": (0, *range(5, 101, 5)),  # percent
    "cer": (0, *range(5, 101, 5)),
    "duration_s": tuple(range(1, 31)),
}


class Example(NamedTuple):
    """A row that was compared with its reference."""

    row_id: str
    reference: str
    transcript: str
    wer: float
    cer: float


@dataclass
class FilterSummary:
    """An account of rows that were judged.

    Attributes:
        ranked_by: `wer` or `cer`, by which examples are chosen; the other one decides ties.
        seconds: of audio, by outcome: `KEPT`, or the reason.
        unknown: rows whose duration is not known, by outcome.
        bins: for each of `BIN_ENDS`, of the kept and of the dropped rows, the rows in each bin.
        worst_kept: rows that were kept, with the highest error rates, in that order.
        best_dropped: rows that were dropped for their error rate, with the lowest.
    """

    ranked_by: str
    seconds: dict[str, float] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    bins: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    worst_kept: list[Example] = field(default_factory=list)
    best_dropped: list[Example] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[JudgedRow], ranked_by: str) -> "FilterSummary":
        """Return the summary of some rows."""
        summary = cls(ranked_by)
        for row in rows:
            outcome = row.verdict.reason or KEPT
            if row.duration_s is None:
                summary.unknown[outcome] += 1
            else:
                summary.seconds[outcome] = summary.seconds.get(outcome, 0.0) + row.duration_s
        kept = [row for row in rows if row.verdict.reason is None]
        dropped = [row for row in rows if row.verdict.reason is not None]
        sides = {"kept": _values(kept), "dropped": _values(dropped)}
        summary.bins = {
            name: {side: _binned(ends, values[name]) for side, values in sides.items()}
            for name, ends in BIN_ENDS.items()
        }
        summary.worst_kept = summary._worst(_examples(kept))
        summary.best_dropped = summary._best(_examples(dropped))
        return summary

    def __add__(self, other: "FilterSummary") -> "FilterSummary":
        bins = {
            name: {
                side: [a + b for a, b in zip(counts, other.bins[name][side], strict=True)]
                for side, counts in sides.items()
            }
            for name, sides in self.bins.items()
        }
        return FilterSummary(
            self.ranked_by,
            {
                outcome: self.seconds.get(outcome, 0.0) + other.seconds.get(outcome, 0.0)
                for outcome in {**self.seconds, **other.seconds}
            },
            self.unknown + other.unknown,
            bins or other.bins,
            self._worst([*self.worst_kept, *other.worst_kept]),
            self._best([*self.best_dropped, *other.best_dropped]),
        )

    def hours(self) -> dict[str, float]:
        """Return hours of audio, as records have them: in, out, and by the reason for dropping."""
        hours = {outcome: seconds / 3600 for outcome, seconds in self.seconds.items()}
        if not hours:
            return {}
        return {"in": sum(hours.values()), "out": hours.pop(KEPT, 0.0), **hours}

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for a JSON file."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "FilterSummary":
        """Read what `to_dict` returned."""
        return cls(
            value["ranked_by"],
            value["seconds"],
            Counter(value["unknown"]),
            value["bins"],
            [Example(*example) for example in value["worst_kept"]],
            [Example(*example) for example in value["best_dropped"]],
        )

    def _worst(self, examples: Sequence[Example]) -> list[Example]:
        wrong = (example for example in examples if self._rank(example)[:2] != (0, 0))
        ranked = sorted(wrong, key=lambda e: [*(-rate for rate in self._rank(e)), e.row_id])
        return ranked[:MOST_EXAMPLES]

    def _best(self, examples: Sequence[Example]) -> list[Example]:
        return sorted(examples, key=lambda e: [*self._rank(e), e.row_id])[:MOST_EXAMPLES]

    def _rank(self, example: Example) -> tuple[float, float]:
        rates = (example.wer, example.cer)
        return rates if self.ranked_by == "wer" else rates[::-1]


def _examples(rows: Iterable[JudgedRow]) -> list[Example]:
    """Return the rows that have error rates."""
    return [
        Example(row.row_id, row.reference or "", row.transcript, row.verdict.wer, row.verdict.cer)
        for row in rows
        if row.verdict.wer is not None and row.verdict.cer is not None
    ]


def _values(rows: Sequence[JudgedRow]) -> dict[str, list[float | None]]:
    """Return the values of each of `BIN_ENDS`."""
    return {
        "wer": [row.verdict.wer for row in rows],
        "cer": [row.verdict.cer for row in rows],
        "duration_s": [row.duration_s for row in rows],
    }


def _binned(ends: Sequence[float], values: Sequence[float | None]) -> list[int]:
    """Return how many values are in each bin; those that are not known are in none."""
    numbers = np.array(values, dtype=float)  # None becomes NaN
    places = np.searchsorted(ends, numbers[~np.isnan(numbers)], side="left")
    return [int(count) for count in np.bincount(places, minlength=len(ends) + 1)]
