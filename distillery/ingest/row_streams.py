"""Streams of rows that can be read by number: each begins anywhere at once, and has many shards."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Audio, Features, IterableDataset, NamedSplit, SplitDict, SplitInfo, Value
from datasets.features import List
from numpy.typing import NDArray

from distillery.data.parquet_rows import ParquetRows

SHARD_ROWS = 100  # at least; shards are shuffled as they are
MOST_SHARDS = 1000  # the library looks at all of them to take one
OPEN_SHARDS = 32  # more than are read in turns

NUMBER = "row_number"


def num_shards(num_rows: int) -> int:
    """Return into how many shards rows are split."""
    return max(1, min(MOST_SHARDS, num_rows // SHARD_ROWS))


def of_rows(
    ends: NDArray[np.int64],
    read: Callable[[int, int], dict[str, Any]],
    features: Features,
    split: str | None,
) -> IterableDataset:
    """Return a stream of rows; one that is passed over is not read.

    Args:
        ends: ascending, where shards may end; the last is the number of rows, at least 1.
        read: returns a row, from the number of its shard and its own.
        features: of the rows.
        split: what they are called.
    """
    name = split or "train"
    numbers = IterableDataset.from_generator(
        _numbers,
        Features({NUMBER: List(Value("int64"))}),
        {"spans": _spans(ends)},
        NamedSplit(name),
    )
    rows = numbers.map(
        lambda example: read(*example[NUMBER]), remove_columns=[NUMBER], features=features
    )
    rows.info.splits = SplitDict({name: SplitInfo(name, num_examples=int(ends[-1]))})
    return rows


def _spans(ends: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return the number, the first row and the stop of each shard."""
    num_rows = int(ends[-1])
    size, start = -(-num_rows // num_shards(num_rows)), 0
    spans: list[tuple[int, int, int]] = []
    while start < num_rows:
        stop = int(ends[min(int(np.searchsorted(ends, start + size)), len(ends) - 1)])
        spans.append((len(spans), start, stop))
        start = stop
    return spans


def _numbers(spans: Sequence[tuple[int, int, int]]) -> Iterator[dict[str, Any]]:
    for shard, start, stop in spans:
        yield from ({NUMBER: [shard, row]} for row in range(start, stop))


def of_parquet(rows: ParquetRows) -> IterableDataset:
    """Return rows of Parquet files as a stream, whose shards are some row groups each."""

    @lru_cache(maxsize=OPEN_SHARDS)
    def opened(_shard: int) -> ParquetRows:
        return rows.keeping(0)  # else shards that are read in turns would begin again each time

    features = Features(
        {
            name: {"bytes": Value("binary"), "path": Value("string")}
            if isinstance(kind, Audio)
            else kind
            for name, kind in rows.features.items()
        }
    )
    # Where another row group begins, reading can begin without reading what is before.
    groups = np.searchsorted(rows.files.group_ends(), rows.numbers, side="right")
    ends = np.append(np.flatnonzero(np.diff(groups)) + 1, len(rows))
    return of_rows(ends, lambda shard, row: opened(shard)[row], features, rows.split)
