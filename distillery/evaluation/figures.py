"""Figures on the report page: the filters that write them as text, and the axes of their bars."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from distillery.evaluation.results import Result

OUTLIER = 5  # a bar that is more than this many times as long as the next is cut off


@dataclass(frozen=True)
class Axis:
    """An axis from 0 to `end`, in percent."""

    end: float
    ticks: list[float]

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the axis."""
        return round(min(100 * value / self.end, 100), 3)


def axis_for(values: Iterable[float]) -> Axis:
    """Return an axis with round ticks for values; outliers above half of them do not count.

    A model that loops has an error rate of several hundred percent, a good one of five: its bar
    would be too short to see.
    """
    kept = sorted(values)
    for index in range((len(kept) + 1) // 2, len(kept)):
        if kept[index] > OUTLIER * kept[index - 1] > 0:
            del kept[index:]
            break
    largest = max(kept[-1], 0.1)
    magnitude = 10.0 ** math.floor(math.log10(largest))
    step = next(s for s in (0.2, 0.5, 1, 2) if largest / (s * magnitude) <= 5.001) * magnitude
    count = math.ceil(round(largest / step, 6))
    return Axis(count * step, [round(i * step, 6) for i in range(count + 1)])


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _figure(value: float | None) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "–" if value is None else str(value)


def _interval(result: Result, rate: str) -> str:
    """Return the 95 % interval of a rate as text, "" where the result has none."""
    return "–".join(map(_rate, (result.ci or {}).get(rate) or []))


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def _signed_interval(bounds: Sequence[float] | None) -> str:
    return " to ".join(map(_signed, bounds)) if bounds else "–"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _millions(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.1f} M"


def _minutes(duration_s: float | None) -> str:
    return "–" if duration_s is None else f"{duration_s / 60:.1f} min"


def _seconds(bounds: Mapping[str, Any]) -> str:
    if bounds["to_s"] is None:
        return f"over {bounds['from_s']:g} s"
    return f"{bounds['from_s']:g}–{bounds['to_s']:g} s"


def _breakable(name: str) -> Markup:
    """Let a long name be broken where its parts meet."""
    return Markup("").join(
        Markup("{}<wbr>").format(part) for part in re.split(r"(?<=[/._-])", name)
    )


FILTERS = {
    "breakable": _breakable,
    "rate": _rate,
    "figure": _figure,
    "interval": _interval,
    "signed": _signed,
    "signed_interval": _signed_interval,
    "ratio": _ratio,
    "millions": _millions,
    "minutes": _minutes,
    "seconds": _seconds,
}
