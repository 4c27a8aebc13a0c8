"""What cards say of datasets: rows and hours by what became of them, an example, how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distillery.data import schema
from distillery.data.hub_layout import DEFAULT_CONFIG
from distillery.data.lineage import FILTERING, MadeDataset
from distillery.storage.names import printable
from distillery.storage.publication import public_names
from distillery.text.tokens import language_code

HOURS = "hours"  # in a record: of audio, by what became of it; `IN` and `OUT` beside the reasons
IN, OUT = "in", "out"
NOT_SHOWN = (schema.AUDIO, schema.INPUT_FEATURES)
MOST_SHOWN = 200  # characters of a value
# Flags of the filter that say which rows are kept.
LIMITS = (
    *("wer_threshold", "cer_threshold", "min_duration_in_seconds", "max_duration_in_seconds"),
    *("max_label_length", "min_avg_logprob", "max_compression_ratio"),
    *("strict_limits", "keep_truncated", "drop_all_capitals"),
)


def header(
    language: str | None, license: str | None, sources: list[str] | None = None
) -> dict[str, Any]:
    """Return what the header of a dataset's card says beside its files, as far as it is known.

    Args:
        language: code or name.
        license: as the Hub names it.
        sources: datasets of the Hub that it was made of.
    """
    said = {
        "language": language_code(language) if language else None,
        "license": license,
        "source_datasets": sources,
    }
    return {name: value for name, value in said.items() if value}


def account(record: Mapping[str, Any]) -> str:
    """Return a table of Markdown: rows and hours by what became of them.

    Args:
        record: of a stage: its `ledger`, and its `hours` as far as they are known.
    """
    ledger, hours = record["ledger"], record.get(HOURS) or {}
    rows = {IN: ledger["in"], OUT: ledger["out"], **ledger["dropped"], **ledger["quarantined"]}
    lines = ["| | rows | hours |", "|:---|---:|---:|"]
    for outcome, num_rows in rows.items():
        known = f"{hours[outcome]:,.2f}" if hours.get(outcome) is not None else ""
        lines.append(f"| {outcome} | {num_rows:,} | {known} |")
    return "\n".join(lines)


def limits(flags: Mapping[str, Any]) -> str:
    """Return the limits of a filter, as its flags have them."""
    given = ((name, flags.get(name)) for name in LIMITS)
    said = [f"`{name}` {value}" for name, value in given if value not in (None, False)]
    return ", ".join(said) or "none"


def describe(made: MadeDataset) -> str:
    """Return what cards say of a dataset that one of our stages made, as Markdown."""
    flags = made.flags
    source = f"`{public_names(made.made_of)}`"
    if made.stage == FILTERING:
        said = f"Of {source} was kept what is within the limits: {limits(flags)}."
    else:
        teacher = public_names(flags["model_name_or_path"])
        said = f"{source} was transcribed by `{teacher}`."
    return f"{said}\n\n{account(made.record)}"


def scores(by_split: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return the error rates of transcripts against the references; "" where there are none."""
    lines = [
        f"| {public_names(split)} | {each['cer_norm']:.1f} | {each['wer_norm']:.1f} |"
        for split, each in by_split.items()
        if each is not None
    ]
    if not lines:
        return ""
    head = ["Against the references, in percent:", "", "| | CER | WER |", "|:---|---:|---:|"]
    return "\n".join([*head, *lines])


def example(files: list[Path]) -> str:
    """Return the first row of a dataset as a table of Markdown; "" where there is none."""
    for file in files:
        parquet = pq.ParquetFile(file)
        names = [name for name in parquet.schema_arrow.names if name not in NOT_SHOWN]
        for batch in parquet.iter_batches(batch_size=1, columns=names):
            (row,) = batch.to_pylist()
            shown = (f"| `{name}` | {_shown(value)} |" for name, value in row.items())
            return "\n".join(["## A row", "", "| column | value |", "|:---|:---|", *shown])
    return ""


def _shown(value: Any) -> str:
    text = printable(str(value)).replace("|", "\\|")
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} …"


def usage(name: str, config: str, split: str) -> str:
    """Return how the dataset is loaded, as Markdown."""
    words = [f'"{name}"', *([] if config == DEFAULT_CONFIG else [f'"{config}"'])]
    return f"""## Use

```python
from datasets import load_dataset

rows = load_dataset({", ".join(words)}, split="{split}")
```"""
