"""The report of a filtered dataset, for people: `filter_report.md` and its figure."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distillery.filtering.filter_summary import BIN_ENDS, KEPT, Example, FilterSummary
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.text.error_rates import Unit, alignment
from distillery.text.normalizers import Normalizer

logger = logging.getLogger(__name__)

REPORT = "filter_report.md"
FIGURE = "filter_report.png"
TITLES = {"wer": "WER in %", "cer": "CER in %", "duration_s": "seconds"}


def write(
    outputs: Outputs,
    summary: FilterSummary,
    ledger: Ledger,
    flags: Sequence[str],
    normalizer: Normalizer,
) -> None:
    """Write report and figure.

    Args:
        outputs: of the run, in whose folder they are written.
        summary, ledger: of all rows.
        flags: that were given another value than their default.
        normalizer: that texts were compared under.
    """
    parts = [
        "# Filter report",
        f"Flags: `{' '.join(flags) or 'all as by default'}`. Texts are compared under the "
        f"normaliser `{normalizer.id}`.",
        _outcome_table(summary, ledger),
        f"![distributions]({FIGURE})" if _draw(outputs, summary) else "",
        *(_histogram(summary, name) for name in BIN_ENDS),
        *_examples("Worst that were kept", summary.worst_kept, summary.ranked_by, normalizer),
        *_examples("Best that were dropped", summary.best_dropped, summary.ranked_by, normalizer),
    ]
    outputs.write_text(outputs.folder / REPORT, "\n\n".join(part for part in parts if part) + "\n")


def _outcome_table(summary: FilterSummary, ledger: Ledger) -> str:
    """Return rows and hours that came in, by what became of them."""
    counts = {KEPT: ledger.num_out + ledger.quarantined.total(), **ledger.dropped}
    ordered = sorted(counts, key=lambda name: (name != KEPT, -counts[name]))
    lines = ["| outcome | rows | hours | share of the hours |", "|---|---:|---:|---:|"]
    total = sum(summary.seconds.values())
    for name, num_rows, seconds in [
        ("in", ledger.num_in, total),
        *((name, counts[name], summary.seconds.get(name, 0.0)) for name in ordered),
    ]:
        share = f"{100 * seconds / total:.1f} %" if total else "–"
        lines.append(f"| {name} | {num_rows:,} | {seconds / 3600:,.2f} | {share} |")
    notes = [
        f"Of unknown duration, and in no hours: {name}: {count:,} rows."
        for name, count in sorted(summary.unknown.items())
    ]
    bad = ledger.quarantined.total()
    notes += [f"Kept, but without sound that can be read: {bad:,} rows."] if bad else []
    return "\n".join([*lines, "", *notes]).rstrip()


def _histogram(summary: FilterSummary, name: str) -> str:
    """Return the distribution of one figure as a table; bins without rows are left out."""
    sides = summary.bins.get(name, {})
    if not any(map(sum, sides.values())):
        return ""
    lines = [f"## {TITLES[name]}", "", "| | kept | dropped |", "|---|---:|---:|"]
    for label, kept, dropped in zip(
        _bin_labels(name), sides["kept"], sides["dropped"], strict=True
    ):
        if kept or dropped:
            lines.append(f"| {label} | {kept:,} | {dropped:,} |")
    return "\n".join(lines)


def _bin_labels(name: str) -> list[str]:
    ends = [f"{end:g}" for end in BIN_ENDS[name]]
    first = "0" if ends[0] == "0" else f"to {ends[0]}"
    between = [f"{a} to {b}" for a, b in pairwise(ends)]
    return [first, *between, f"over {ends[-1]}"]


def _examples(
    title: str, examples: Sequence[Example], ranked_by: str, normalizer: Normalizer
) -> list[str]:
    """Return rows with their texts aligned, as sections of Markdown."""
    if not examples:
        return []
    unit: Unit = "word" if ranked_by == "wer" else "char"
    sections = [f"## {title}"]
    for example in examples:
        aligned = alignment(normalizer(example.reference), normalizer(example.transcript), unit)
        block = "\n".join(f"    {line}" for line in aligned.splitlines())
        rates = f"WER {example.wer:.1f} %, CER {example.cer:.1f} %"
        sections.append(f"`{example.row_id}`: {rates}\n\n{block}")
    return sections


def _draw(outputs: Outputs, summary: FilterSummary) -> bool:
    """Draw the distributions; return whether that could be done."""
    names = [name for name, sides in summary.bins.items() if any(map(sum, sides.values()))]
    if not names:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("%s was not drawn: pip install matplotlib", outputs.folder / FIGURE)
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        _draw_bars(axes, name, summary.bins[name])
    axes.legend()
    with outputs.replacing(outputs.folder / FIGURE) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def _draw_bars(axes: Any, name: str, sides: Mapping[str, Sequence[int]]) -> None:
    """Draw kept and dropped rows of each bin side by side; a step up is ten times the rows."""
    places = np.arange(len(BIN_ENDS[name]) + 1)
    for side, shift, colour in (("kept", -0.2, "C0"), ("dropped", 0.2, "C3")):
        axes.bar(places + shift, np.log10(np.add(sides[side], 1)), 0.4, label=side, color=colour)
    powers = 10 ** np.arange(len(str(max(map(max, sides.values())))))
    axes.set_yticks(np.log10(powers + 1), [f"{power:,}" for power in powers])
    axes.set_xticks(places[::5], _bin_labels(name)[::5])
    axes.set(xlabel=TITLES[name], ylabel="rows")
    axes.grid(axis="y", alpha=0.3)
