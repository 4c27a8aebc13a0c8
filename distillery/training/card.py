"""The card of a trained model: what it was made of and on, how, and its losses."""

from collections.abc import Sequence
from pathlib import Path

from distillery.data import dataset_card, lineage
from distillery.data.lineage import MadeDataset
from distillery.storage.files import RUN_RECORD
from distillery.storage.ledger import Ledger
from distillery.storage.publication import joined, public_names
from distillery.storage.runs import Run
from distillery.text.tokens import language_code
from distillery.training.loop import Progress
from distillery.training.loss_curve import FIGURE, LOSS_LOG, read_log
from distillery.whisper import checkpoint, model_card


def write(folder: Path, run: Run, progress: Progress, ledger: Ledger | None) -> None:
    """Write the card.

    Args:
        folder: of the model, which may not be the run's yet.
        run: as its flags describe it.
        progress: at the end.
        ledger: of the rows; of a stream, of those that were read in the first pass.
    """
    flags = run.arguments
    data = flags["train_dataset_name"]
    behind = lineage.made_datasets(data)
    languages = _languages(flags["language"], behind)
    language = languages[0] if len(languages) == 1 else None
    name = run.folder.resolve().name
    parts = [
        _summary(run),
        model_card.usage(name, language),
        _training(run, progress, ledger),
        *(["## Data", *map(dataset_card.describe, behind)] if behind else []),
    ]
    header = model_card.header(
        flags.get("teacher_model_name_or_path") or flags["model_name_or_path"],
        language,
        flags["license"],
        lineage.public_sources(data),
    )
    if len(languages) > 1:
        header["language"] = languages
    title = flags.get("model_index_name") or name
    checkpoint.write_card(folder, "\n\n".join(parts), title, header)


def _languages(asked: str | None, behind: Sequence[MadeDataset]) -> list[str]:
    """Return the codes of the languages that flags, or else the datasets' records, name."""
    named = joined(asked) if asked else [made.language for made in behind if made.language][:1]
    return list(dict.fromkeys(map(language_code, named)))


def _summary(run: Run) -> str:
    flags = run.arguments
    teacher = flags.get("teacher_model_name_or_path")
    return (
        f"Made by `{run.stage}` from `{public_names(flags['model_name_or_path'])}`"
        + (f", following `{public_names(teacher)}`" if teacher else "")
        + f", on `{public_names(flags['train_dataset_name'])}`. `{RUN_RECORD}` holds every flag "
        "and version."
    )


def _training(run: Run, progress: Progress, ledger: Ledger | None) -> str:
    """Return updates, rows, losses and the flags that decide what comes out."""
    parts = [f"{progress.step:,} updates."]
    if ledger is not None:
        parts.append(f"Rows: {ledger}.")
    if progress.bad_clips:
        parts.append(f"Clips that could not be used: {len(progress.bad_clips):,}.")
    if progress.dropped_clips:
        parts.append(f"Clips of unwanted length: {len(progress.dropped_clips):,}.")
    lines = ["## Training", "", " ".join(parts), *_evaluation(run, progress)]
    if (run.folder / FIGURE).exists():
        lines += ["", f"![losses]({FIGURE})"]
    lines += ["", "<details><summary>Flags</summary>", "", "| flag | value |", "|:---|:---|"]
    for name, value in run.arguments.items():
        is_off = value is None or value is False or value in ("", [])  # a weight of 0 is not
        if name not in run.may_change and not is_off:
            shown = public_names(value) if isinstance(value, str) else value
            lines.append(f"| `{name}` | {shown} |")
    return "\n".join([*lines, "", "</details>"])


FIGURES = {
    "loss": "loss",
    "ce": "CE",
    "kl": "KL",
    "wer": "WER, %",
    "cer": "CER, %",
    "wer_ortho": "WER as written, %",
}


def _evaluation(run: Run, progress: Progress) -> list[str]:
    """Return what the model that is left was worth on each set: a table; nothing without any."""
    rows = [row for row in read_log(run.folder / LOSS_LOG) if row["kind"].startswith("eval ")]
    steps = sorted({row["step"] for row in rows})
    if not steps:
        return []
    is_best = run.arguments["load_best_model_at_end"] and progress.stale < len(steps)
    step = steps[-1 - progress.stale] if is_best else steps[-1]
    rows = [row for row in rows if row["step"] == step]
    names = [name for name in FIGURES if any(name in row for row in rows)]
    return [
        "",
        f"Evaluated after update {step:,}:",
        "",
        "| " + " | ".join(["set", *(FIGURES[name] for name in names)]) + " |",
        "|:---|" + "---:|" * len(names),
        *(
            " | ".join(
                [
                    f"| {public_names(row['kind'].removeprefix('eval '))}",
                    *(f"{row[name]:.3f}" if name in row else "" for name in names),
                ]
            )
            + " |"
            for row in rows
        ),
    ]
