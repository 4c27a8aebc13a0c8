"""Scales for the bars of the report page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

OUTLIER = 5  # bars that are so many times longer than the next one are cut off


@dataclass(frozen=True)
class Axis:
    """A scale from 0 to `end`, in percent."""

    end: float
    ticks: list[float]

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the axis."""
        return round(min(100 * value / self.end, 100), 3)


def axis_for(values: Iterable[float]) -> Axis:
    """Return a round scale for values; those far above at least half of them do not count.

    A model that loops has an error rate of several hundred percent, a good one of five, which
    would not be seen on one scale.
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
