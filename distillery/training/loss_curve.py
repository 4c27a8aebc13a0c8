"""The log of a training run's losses, `train_log.jsonl`, and the figure of it, `loss.png`."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from distillery.storage.outputs import Outputs
from distillery.storage.publication import public_names

logger = logging.getLogger(__name__)

LOSS_LOG = "train_log.jsonl"
TRAIN = "train"  # the kind of the lines with losses
FIGURE = "loss.png"
LOSSES = ("loss", "ce", "kl", "mse")


def draw(folder: Path) -> bool:
    """Draw the losses of a run so far; return whether that could be done.

    Args:
        folder: of the run, with its log.
    """
    rows = read_log(folder / LOSS_LOG)
    if not rows:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("%s is not drawn: pip install matplotlib", folder / FIGURE)
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    _plot(axes, rows)
    axes.set(xlabel="update", ylabel="per token")
    axes.grid(alpha=0.3)
    axes.legend()
    # A finished run can do without it, and draws it anew where it goes on.
    with Outputs(folder).replacing(folder / FIGURE, spare=True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return True


def _plot(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Plot the losses on the training rows, and on each evaluation set."""
    kinds = {row["kind"]: None for row in rows}
    for kind in kinds:
        of_kind = [row for row in rows if row["kind"] == kind]
        for name in LOSSES if kind == TRAIN else LOSSES[:1]:
            points = [(row["step"], row[name]) for row in of_kind if row.get(name) is not None]
            if any(value for _, value in points):  # without a teacher there is no KL
                label = name if kind == TRAIN else f"{name}, {public_names(kind)}"
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1, marker=".")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's log; none where there is no log."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
