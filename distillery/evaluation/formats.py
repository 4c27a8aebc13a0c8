"""How figures and names are written on the report page: the filters of its template."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distillery.evaluation.results import Result


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
