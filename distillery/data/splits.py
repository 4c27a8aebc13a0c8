"""Datasets that a stage reads, and writes again as splits of one."""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from distillery.data import hub_layout, sources
from distillery.data.specs import DatasetSpec


def load_splits(
    specs: Sequence[DatasetSpec], column: str, flag: str
) -> dict[DatasetSpec, sources.Rows]:
    """Load datasets that are written as splits of one; their names are filled in.

    Args:
        specs: what the flags name.
        column: that the stage cannot do without.
        flag: that names this column.

    Raises:
        ValueError: a dataset lacks the column, or two would be written to the same files.
    """
    splits = []
    for spec in specs:
        rows = sources.load(spec)
        sources.require_column(rows, spec, column, flag)
        splits.append((sources.with_split(spec, rows), rows))
    hub_layout.refuse_same_split_twice([spec for spec, _ in splits])
    return dict(splits)


def describe_splits(splits: Mapping[DatasetSpec, sources.Rows]) -> str:
    """Say how many rows there are of which datasets, for a line of the log."""
    return ", ".join(
        f"{len(rows):,} rows of {spec}" if isinstance(rows, Dataset) else f"{spec}, streamed"
        for spec, rows in splits.items()
    )
