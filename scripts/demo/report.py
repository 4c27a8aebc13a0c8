"""Put the quickstart's results together: a table, one JSON row per model and set, loss curves.

    python scripts/demo/report.py --eval_dir runs/quickstart/eval --output_dir runs/quickstart \
        --role teacher=runs/quickstart/teacher --role student=runs/quickstart/student
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

from distillery.evaluation.results import Result, read_folder
from distillery.evaluation.tables import markdown_table
from distillery.storage.files import replacing
from distillery.storage.json_lines import read_rows
from distillery.training.loss_curve import LOSS_LOG

matplotlib.use("agg")  # a machine without a screen
from matplotlib import pyplot

FIGURES = ["cer_norm", "wer_norm", "cer_raw", "wer_raw", "num_parameters", "rtfx"]
COLUMNS = ["model", "role", "test_set", *FIGURES]


def main(arguments: list[str] | None = None) -> None:
    """Write results.jsonl, results.md and losses.png, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--eval_dir", type=Path, required=True, help="folder with a folder for each evaluation"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--role", action="append", required=True, help="ROLE=MODEL_FOLDER; once for each model"
    )
    args = parser.parse_args(arguments)
    models = dict(role.split("=", 1) for role in args.role)
    folders = sorted(path for path in args.eval_dir.iterdir() if path.is_dir())
    measured = [result for folder in folders for result in read_folder(folder)]
    rows = [row for role, model in models.items() for row in _rows_of(role, Path(model), measured)]
    with replacing(args.output_dir / "results.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = markdown_table(rows, COLUMNS)
    with replacing(args.output_dir / "results.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    _plot_losses(models, args.output_dir / "losses.png")
    print(table)
    print(f"also in {args.output_dir}: results.jsonl, results.md, losses.png")


def _rows_of(role: str, model: Path, measured: list[Result]) -> list[dict[str, Any]]:
    """Return the newest row of a model for each test set."""
    newest = {
        _test_set(result): result for result in measured if result.model == str(model.resolve())
    }
    if not newest:
        raise ValueError(f"no evaluation of {model} was found: run the evaluation scripts first")
    return [
        {
            **{"model": model.name, "role": role, "test_set": name},
            **{figure: result.figure(figure) for figure in FIGURES},
        }
        for name, result in sorted(newest.items(), reverse=True)
    ]


def _test_set(result: Result) -> str:
    """Return what a result is about: the set of clips, or how long recordings were decoded."""
    return f"{result.form}, {result.figure('algorithm') or Path(result.dataset).stem}"


def _plot_losses(models: dict[str, str], path: Path) -> None:
    """Draw the training losses of every model that has a log."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for role, model in models.items():
        log = Path(model) / LOSS_LOG
        if log.exists():
            rows = [row for row in read_rows(log) if row["kind"] == "train"]
            axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=role)
    axes.set(xlabel="update", ylabel="loss per token", yscale="log", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
