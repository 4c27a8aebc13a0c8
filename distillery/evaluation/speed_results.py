"""Figures of speed: rows in `speed.jsonl`, and the table and plot that are made from them."""

import csv
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.evaluation.results import JsonRecord, find_row
from distillery.evaluation.tables import folder_names, markdown_table
from distillery.storage.files import replacing
from distillery.storage.json_lines import JsonRow, read_rows

logger = logging.getLogger(__name__)

ONE, SATURATING = "batch 1", "saturating batch"

COLUMNS = (
    *("model", "length_s", "setting", "batch_size", "num_windows", "sound_s", "wall_s", "rtfx"),
    *("encoder_share", "decoder_share", "peak_memory_mb", "weights_mb"),
    *("speed_ratio", "speed_ratio_low", "speed_ratio_high"),
)


@dataclass(frozen=True)
class SpeedResult(JsonRecord):
    """A row of `speed.jsonl`: how fast a model is at one length and batch, over several runs.

    Attributes:
        model: the whole path of a folder, or a Hub id.
        length_s: of each recording.
        setting: `ONE` or `SATURATING`.
        batch_size: windows decoded at once.
        num_recordings, num_windows, num_bad: in a run; unusable clips of the dataset.
        num_parameters, weights_mb: of the model.
        sound_s, wall_s, rtfx: seconds of audio, what they took (median), and the ratio.
        rtfx_runs: of each run.
        encoder_share, decoder_share: of the wall time (median).
        peak_memory_mb, memory_kind: see `speed.memory_kind`.
        speed_ratio, speed_ratio_low, speed_ratio_high: to the first model, with a 95 % interval.
        search, search_ended_by: see `speed.Search`; of the saturating batch alone.
        more: what identifies the measurement.
    """

    model: str
    length_s: float
    batch_size: int
    num_recordings: int
    num_windows: int
    num_bad: int
    num_parameters: int
    sound_s: float
    wall_s: float
    rtfx: float
    rtfx_runs: Sequence[float]
    encoder_share: float
    decoder_share: float
    weights_mb: float
    peak_memory_mb: float | None = None
    memory_kind: str | None = None
    setting: str = ONE
    speed_ratio: float | None = None
    speed_ratio_low: float | None = None
    speed_ratio_high: float | None = None
    search: Sequence[Sequence[float]] | None = None
    search_ended_by: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> JsonRow:
        """Return the row of JSON, without ratio and search where there are none."""
        row = super().to_row()
        absent = [name for name in row if name.startswith(("speed_ratio", "search"))]
        return {k: v for k, v in row.items() if v is not None or k not in absent}


def earlier_results(
    path: Path, identity: JsonRow, models: Sequence[str], length_s: float
) -> list[SpeedResult]:
    """Return the results of a length from an earlier, identical run; none unless all are there."""
    rows = read_rows(path)
    wanted = [
        {**identity, "length_s": length_s, "setting": setting, "model": model}
        for setting in (ONE, SATURATING)
        for model in models
    ]
    there = [row for row in (find_row(rows, each) for each in wanted) if row is not None]
    return [SpeedResult.from_row(row) for row in there] if len(there) == len(wanted) else []


def speed_table(results: Sequence[SpeedResult]) -> str:
    """Return a Markdown table of the figures, ratio and interval in one cell."""
    names = folder_names(result.model for result in results)
    lines = [{**result.to_row(), "model": names[result.model]} for result in results]
    for line in lines:
        if "speed_ratio" in line:
            figures = (line["speed_ratio"], line["speed_ratio_low"], line["speed_ratio_high"])
            line["speed ratio"] = "{:.2f} [{:.2f}, {:.2f}]".format(*figures)
    shown = [name for name in COLUMNS if not name.startswith(("speed_ratio", "weights", "sound"))]
    return markdown_table(lines, [*shown, "speed ratio"], decimals=2)


def write_csv(path: Path, results: Sequence[SpeedResult]) -> None:
    """Write the figures of one run as CSV, replacing an earlier run's."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(result.to_row() for result in results)


def draw(path: Path, results: Sequence[SpeedResult]) -> None:
    """Draw real-time factor over length, a line for each model and batch."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("%s was not drawn: pip install matplotlib", path)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    names = folder_names(result.model for result in results)
    for index, (model, name) in enumerate(names.items()):
        for setting, style in ((ONE, "--"), (SATURATING, "-")):
            line = [r for r in results if (r.model, r.setting) == (model, setting)]
            points = [r.length_s for r in line], [r.rtfx for r in line]
            axes.plot(*points, style, marker="o", color=f"C{index}", label=f"{name}, {setting}")
    axes.set(xlabel="seconds of audio in a recording", ylabel="seconds of audio per second")
    axes.set(xscale="log", yscale="log")
    lengths_s = sorted({result.length_s for result in results})
    axes.set_xticks(lengths_s, [f"{length_s:g}" for length_s in lengths_s])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
