"""Results as the card of a model has them: a table with intervals, and the Hub's own formats.

The header's model index takes any test set. `.eval_results/*.yaml` is for the Hub's benchmarks
alone, whose `eval.yaml` names their tasks (https://huggingface.co/docs/hub/eval-results).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from distillery.evaluation import tables
from distillery.evaluation.results import Result, read_folder
from distillery.storage.publication import public_names
from distillery.whisper import checkpoint

TASK = "automatic-speech-recognition"


def results_of(folders: Iterable[str], model: Path, repo_id: str | None) -> list[Result]:
    """Return the newest results of a model on each test set, with each settings.

    Args:
        folders: of evaluations.
        model: its folder.
        repo_id: its name on the Hub, where it was evaluated by that.

    Raises:
        ValueError: there is none, or the model has been trained again since.
    """
    measured = [result for folder in folders for result in read_folder(folder)]
    names = {str(model.resolve()), repo_id}
    found = [result for result in tables.newest(measured) if result.model in names]
    if not found:
        there = ", ".join(sorted({result.model for result in measured}))
        raise ValueError(f"{' + '.join(folders)} holds no result of {model}, but of {there}")
    now = checkpoint.fingerprint(str(model))
    current = [result for result in found if result.figure("model_fingerprint") in (None, now)]
    if not current:
        raise ValueError(f"{model} has changed since it was evaluated: evaluate it again")
    return current


def table(results: Sequence[Result]) -> str:
    """Return a table of Markdown: error rates in percent with their 95 % intervals, and speed."""
    shown = {result.dataset: public_names(result.dataset) for result in results}
    sets = tables.set_names(results, shown)
    rates = tables.titles_for(results)
    lines = []
    for result, test_set in zip(results, sets, strict=True):
        algorithm = result.figure("algorithm")
        line: dict[str, Any] = {"test set": f"{test_set}, {algorithm}" if algorithm else test_set}
        line |= {title: _with_interval(result, rate) for rate, title in rates.items()}
        lines.append({**line, "rows": result.num_rows, "RTFx": result.rtfx})
    normalizers = "`, `".join(sorted({result.normalizer for result in results}))
    units = (
        "In percent, with 95 % intervals; raw: before normalisation; RTFx: seconds of audio per "
        f"second. Normaliser: `{normalizers}`."
    )
    columns = ["test set", "rows", *rates.values(), "RTFx"]
    return f"{tables.markdown_table(lines, columns)}\n{units}"


def _with_interval(result: Result, rate: str) -> str:
    value = result.figure(rate)
    bounds = (result.ci or {}).get(rate)
    return f"{value:.1f}" + (f" ({bounds[0]:.1f} to {bounds[1]:.1f})" if bounds else "")


def model_index(results: Sequence[Result]) -> list[EvalResult]:
    """Return CER and WER of each result for the header of a card."""
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=public_names(result.dataset),
            dataset_name=public_names(result.dataset),
            dataset_config=result.config,
            dataset_split=result.split,
            metric_type=metric,
            metric_name=" ".join([metric.upper(), *_decoding(result)]),
            metric_value=round(result.figure(f"{metric}_norm"), 2),
        )
        for result in results
        for metric in ("wer", "cer")
    ]


def _decoding(result: Result) -> list[str]:
    algorithm = result.figure("algorithm")
    return [f"({result.form.replace('_', ' ')}, {algorithm})"] if algorithm else []


def benchmark_entries(
    results: Sequence[Result], tasks: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return what `.eval_results` holds, by the name of the benchmark.

    Args:
        results: of the model.
        tasks: of each benchmark its tasks, as its `eval.yaml` has them; one is found by
            configuration and split.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        place = (result.config or "default", result.split)
        for task in tasks.get(result.dataset, ()):
            if (task.get("config", "default"), task.get("split")) == place:
                entries.setdefault(result.dataset, []).append(_entry(result, str(task["id"])))
    return entries


def _entry(result: Result, task_id: str) -> dict[str, Any]:
    rate = tables.TITLES[result.main_rate]
    notes = ", ".join([f"{rate} in percent", f"normaliser {result.normalizer}", *_decoding(result)])
    return {
        "dataset": {"id": result.dataset, "task_id": task_id},
        "value": round(result.figure(result.main_rate), 2),
        "notes": notes,
    }
