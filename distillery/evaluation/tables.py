"""Tables of models by test sets, from the rows that evaluations left."""

from collections.abc import Iterable, Sequence
from typing import Any

from distillery.evaluation.results import Row, markdown_table

TITLES = {"cer_norm": "CER", "wer_norm": "WER", "cer_raw": "Raw CER", "wer_raw": "Raw WER"}

# What a user chooses beside model and data. Rows of one model that differ in any of these stand
# side by side in a table; rows that differ in something else, such as the weights in the same
# folder, are an older and a newer state of one thing.
SETTINGS = (
    *("algorithm", "chunk_length_s", "stride_length_s"),
    *("condition_on_prev_tokens", "temperature_fallback"),
    *("language", "task", "timestamps", "num_beams", "max_length", "normalizer"),
    *("model_revision", "dtype", "attention", "max_rows", "assistant_model", "punctuator"),
)


def error_tables(rows: Iterable[Row]) -> str:
    """Return four Markdown tables: CER, WER, raw CER and raw WER of each model on each test set.

    The newest row counts where one model was evaluated on one set several times with the same
    settings; with other settings it has a line of its own, which names what differs.
    """
    kept = newest(rows)
    names = distinct_names(kept)
    sets = set_names(kept)
    return "\n".join(
        f"- {title}\n\n{_table(kept, names, sets, rate)}" for rate, title in TITLES.items()
    )


def _table(rows: Sequence[Row], names: Sequence[str], sets: Sequence[str], rate: str) -> str:
    lines: dict[str, dict[str, Any]] = {}
    for row, name, test_set in sorted(zip(rows, names, sets, strict=True), key=lambda x: x[1]):
        lines.setdefault(name, {"model": name})[test_set] = row[rate]
    return markdown_table(lines.values(), ["model", *sorted(set(sets))])


def newest(rows: Iterable[Row]) -> list[Row]:
    """Return the last of the rows that agree in model, test set and settings."""
    newest: dict[str, Row] = {}
    for row in rows:
        key = repr((_model_name(row), _test_set(row), _settings(row)))
        newest.pop(key, None)
        newest[key] = row
    return list(newest.values())


def _model_name(row: Row) -> str:
    """Return a model's full name: two models may share its last part."""
    added = " + ".join(row.get("postprocessing") or ())
    return f"{row['model']} ({added})" if added else str(row["model"])


def _test_set(row: Row) -> tuple[str, str, str, str]:
    # A set that was decoded as long recordings, too, is another test.
    form = "" if row["form"] == "short_form" else row["form"].replace("_", " ")
    return row["dataset"], row.get("config") or "", row.get("split") or "", form


def _settings(row: Row) -> dict[str, Any]:
    # An option of long-form decoding that is off needs no mention: the other algorithm lacks it.
    options = {name: value for name, value in (row.get("long_form") or {}).items() if value}
    flat = {**row, **(row.get("decoding") or {}), **options}
    return {name: flat.get(name) for name in SETTINGS}


def distinct_names(rows: Sequence[Row]) -> list[str]:
    """Return a name for each row: the model's, and the settings in which its rows differ."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(_model_name(row), []).append({**_settings(row), "set": _test_set(row)})
    names = []
    for row in rows:
        name, own = _model_name(row), _settings(row)
        rivals = [other for other in by_model[name] if other["set"] == _test_set(row)]
        differing = [k for k in SETTINGS if any(other[k] != own[k] for other in rivals)]
        chosen = ", ".join(f"{key}={own[key]}" for key in differing if own[key] is not None)
        names.append(f"{name} ({chosen})" if chosen else name)
    return names


def set_names(rows: Sequence[Row]) -> list[str]:
    """Return a name for each row's test set: the dataset alone, where that says which."""
    sets = {_test_set(row) for row in rows}
    names = []
    for row in rows:
        dataset, config, split, form = _test_set(row)
        parts = {other[1:3] for other in sets if other[0] == dataset}
        details = [config, split] if len(parts) > 1 else []
        name = " ".join(part for part in (dataset, *details) if part)
        names.append(f"{name} ({form})" if form else name)
    return names
