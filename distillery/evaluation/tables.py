"""Tables of models by test sets, as Markdown, from the results that evaluations left."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distillery.evaluation.results import Result

TITLES = {"cer_norm": "CER", "wer_norm": "WER", "cer_raw": "Raw CER", "wer_raw": "Raw WER"}

# What a user chooses beside model and data. Results of one model that differ in any of these get a
# line each in a table. Where they differ in something else, such as the weights in the folder, the
# newer result replaces the older.
SETTINGS = (
    *("algorithm", "chunk_length_s", "stride_length_s"),
    *("condition_on_prev_tokens", "temperature_fallback"),
    *("language", "task", "timestamps", "num_beams", "max_length", "normalizer"),
    *("model_revision", "dtype", "attention", "max_rows", "assistant_model", "punctuator"),
)


def titles_for(results: Iterable[Result]) -> dict[str, str]:
    """Return the titles of the rates: words first where all texts have spaces between words."""
    spaced = all(result.unit == "word" for result in results)
    order = ("wer_norm", "cer_norm", "wer_raw", "cer_raw") if spaced else tuple(TITLES)
    return {rate: TITLES[rate] for rate in order}


def error_tables(results: Iterable[Result]) -> str:
    """Return four Markdown tables: CER, WER, raw CER and raw WER of each model on each test set.

    The newest result counts where one model was evaluated on one set several times with the same
    settings; with other settings it has a line of its own, which names what differs.
    """
    kept = newest(results)
    folders = folder_names(result.model for result in kept)
    names = distinct_names(kept, folders)
    sets = set_names(kept)
    return "\n".join(
        f"- {title}\n\n{_error_table(kept, names, sets, rate)}"
        for rate, title in titles_for(kept).items()
    )


def _error_table(
    results: Sequence[Result], names: Sequence[str], sets: Sequence[str], rate: str
) -> str:
    lines: dict[str, dict[str, Any]] = {}
    rates = zip(results, names, sets, strict=True)
    for result, name, test_set in sorted(rates, key=lambda each: each[1]):
        lines.setdefault(name, {"model": name})[test_set] = result.figure(rate)
    return markdown_table(lines.values(), ["model", *sorted(set(sets))])


def result_table(results: Sequence[Result], shown: Mapping[str, str]) -> str:
    """Return a Markdown table with a line for each result.

    Args:
        results: its lines.
        shown: the names to print, by the models' full names.
    """
    lines = [{**result.to_row(), "model": shown[result.model]} for result in results]
    columns = ["model", "dataset", "algorithm", *titles_for(results), "rtfx", "num_rows"]
    columns = [column for column in columns if any(column in line for line in lines)]
    return markdown_table(lines, columns)


def newest(results: Iterable[Result]) -> list[Result]:
    """Return the last of the results that agree in model, test set and settings."""
    kept: dict[str, Result] = {}
    for result in results:
        key = repr((_with_steps(result, result.model), _test_set(result), _settings(result)))
        kept.pop(key, None)
        kept[key] = result
    return list(kept.values())


def folder_names(models: Iterable[str]) -> dict[str, str]:
    """Return the names of models in a table: of a folder its last part, where that is unique.

    Hub ids, and the paths of folders of the same name, stay as they are.
    """
    names = {model: Path(model).name if Path(model).is_absolute() else model for model in models}
    count = Counter(names.values())
    return {model: name if count[name] == 1 else model for model, name in names.items()}


def _with_steps(result: Result, name: str) -> str:
    """Return a model's name with the steps of postprocessing."""
    steps = " + ".join(result.postprocessing)
    return f"{name} ({steps})" if steps else name


def _test_set(result: Result) -> tuple[str, str, str, str]:
    # The same set decoded as long recordings is another test set.
    form = "" if result.form == "short_form" else result.form.replace("_", " ")
    return result.dataset, result.config or "", result.split or "", form


def _settings(result: Result) -> dict[str, Any]:
    # An option of long-form decoding that is off needs no mention: the other algorithm lacks it.
    long_form = result.more.get("long_form") or {}
    options = {name: value for name, value in long_form.items() if value}
    flat = {**result.more, "normalizer": result.normalizer, **(result.decoding or {}), **options}
    return {name: flat.get(name) for name in SETTINGS}


def distinct_names(results: Sequence[Result], shown: Mapping[str, str]) -> list[str]:
    """Return a name for each result: the model's, and the settings in which its results differ.

    Args:
        results: the lines of a table.
        shown: the names to print, by the models' full names.
    """
    by_model: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for result in results:
        name = _with_steps(result, result.model)
        by_model.setdefault(name, []).append((_test_set(result), _settings(result)))
    names = []
    for result in results:
        settings = _settings(result)
        rivals = [
            other
            for test_set, other in by_model[_with_steps(result, result.model)]
            if test_set == _test_set(result)
        ]
        differing = [k for k in SETTINGS if any(other[k] != settings[k] for other in rivals)]
        chosen = ", ".join(f"{k}={settings[k]}" for k in differing if settings[k] is not None)
        name = _with_steps(result, shown[result.model])
        names.append(f"{name} ({chosen})" if chosen else name)
    return names


def set_names(results: Sequence[Result], shown: Mapping[str, str] | None = None) -> list[str]:
    """Return a name for each result's test set: the dataset alone, where that says which.

    Args:
        results: the columns of a table.
        shown: the names to print, by the datasets' full names; default: the full names.
    """
    sets = {_test_set(result) for result in results}
    names = []
    for result in results:
        dataset, config, split, form = _test_set(result)
        parts = {other[1:3] for other in sets if other[0] == dataset}
        details = [config, split] if len(parts) > 1 else []
        title = shown[dataset] if shown else dataset
        name = " ".join(part for part in (title, *details) if part)
        names.append(f"{name} ({form})" if form else name)
    return names


def markdown_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], decimals: int = 1
) -> str:
    """Return a Markdown table; floats are rounded to `decimals`, what is missing stays blank."""
    rows = list(rows)
    cells = [[_cell(row.get(column), decimals) for column in columns] for row in rows]
    numeric = [any(_is_number(row.get(column)) for row in rows) for column in columns]
    rules = ["---:" if right else ":---" for right in numeric]
    titles = [_cell(column, decimals) for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, rules, *cells]) + "\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, decimals: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return re.sub(r"\s*\n\s*", " ", str(value)).replace("|", r"\|")
