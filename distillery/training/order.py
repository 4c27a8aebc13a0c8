"""The order in which rows are trained on, as a pure function of (seed, epoch, position).

Nothing is kept between two steps: to resume at a step is to ask for its rows. The same rows come
for any number of processes, as long as the global batch is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    """An endless sequence of epochs over several datasets that stand one behind the other.

    Attributes:
        sizes: number of rows of each dataset.
        weights: shares in which the datasets are mixed; None mixes by size. An epoch always has
            as many rows as the datasets together: a dataset with more than its natural share
            repeats rows (all of them before any again), one with less leaves rows to other epochs.
        seed: of the shuffling.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    seed: int

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows in one epoch."""
        return sum(self.sizes)

    def __getitem__(self, span: slice) -> list[tuple[int, int]]:
        """Return (row, epoch) at positions `start:stop`; a span may cross the end of an epoch."""
        rows = []
        for position in range(span.start, span.stop):
            epoch, place = divmod(position, self.rows_per_epoch)
            row = _epoch(self.sizes, self.weights, self.seed, epoch)[place]
            rows.append((int(row), epoch))
        return rows

    def num_distinct(self, stop: int) -> int:
        """Return how many different rows there are at the positions before `stop`."""
        is_there = np.zeros(self.rows_per_epoch, dtype=bool)
        for epoch, start in enumerate(range(0, stop, self.rows_per_epoch)):
            rows = _epoch(self.sizes, self.weights, self.seed, epoch)
            is_there[rows[: stop - start]] = True
        return int(is_there.sum())


@lru_cache(maxsize=2)
def _epoch(
    sizes: tuple[int, ...], weights: tuple[float, ...] | None, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the rows of one epoch, in order."""
    rng = np.random.default_rng([seed, epoch])
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [
        start + _cycled(size, count, rng)
        for start, size, count in zip(starts, sizes, _shares(sizes, weights), strict=True)
    ]
    return rng.permutation(np.concatenate(parts))


def _shares(sizes: tuple[int, ...], weights: tuple[float, ...] | None) -> list[int]:
    """Return how many rows of each dataset an epoch has; they add up to all rows."""
    if weights is None:
        return list(sizes)
    bounds = np.cumsum([0.0, *weights]) / sum(weights) * sum(sizes)
    return [int(n) for n in np.diff(np.rint(bounds).astype(int))]


def _cycled(size: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` rows of `size`, each as often as any other, or once more."""
    rounds = -(-count // size)
    return np.concatenate([np.empty(0, int), *(rng.permutation(size) for _ in range(rounds))])[
        :count
    ]


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut into micro-batches: first by accumulation, then by process.

    Attributes:
        per_device: rows of a micro-batch.
        accumulation: micro-batches that one process adds up for an update.
        num_processes: number of processes.
    """

    per_device: int
    accumulation: int
    num_processes: int

    @property
    def global_size(self) -> int:
        """Rows that one update learns from."""
        return self.per_device * self.accumulation * self.num_processes

    def spans(
        self, first_update: int, num_updates: int, num_rows: int, process: int
    ) -> Iterator[slice]:
        """Yield, for one process, the span of positions of each of its micro-batches.

        Args:
            first_update: updates already done.
            num_updates: the update to stop before.
            num_rows: positions there are in all; the last batch may be short, or empty.
            process: which process asks.
        """
        for update in range(first_update, num_updates):
            for micro in range(self.accumulation):
                start = update * self.global_size
                start += (micro * self.num_processes + process) * self.per_device
                start = min(start, num_rows)
                yield slice(start, min(start + self.per_device, num_rows))
