"""The order in which rows are trained on, as a pure function of (seed, epoch, position).

Nothing is kept between two steps: to resume at a step is to ask for its rows. The same rows come
for any number of processes, as long as the global batch is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillery.data.regions import Regions

# Of the regions, of all datasets, whose rows are shuffled among each other. A process that reads
# rows keeps what it reads of two such pools in memory: one ends while the next begins.
POOL_BYTES = 512 << 20


@dataclass(frozen=True, eq=False)
class Order:
    """An endless sequence of epochs over several datasets that stand one behind the other.

    Rows of a dataset are shuffled among all others of it. Where it is read by regions, these are,
    and then the rows of so many at a time as `POOL_BYTES` holds; rows of several datasets are
    always mixed.

    Attributes:
        sizes: number of rows of each dataset.
        weights: shares in which the datasets are mixed; None mixes by size. An epoch always has
            as many rows as the datasets together: a dataset with more than its natural share
            repeats rows (all of them before any again), one with less leaves rows to other epochs.
        seed: of the shuffling.
        lengths: int16 (rows,), about how long the labels of each row are; None: all the same.
        regions: of each dataset, None for one that can be read in any order; empty: for all.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    seed: int
    lengths: NDArray[np.int16] | None = None
    regions: tuple[Regions | None, ...] = ()

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows in one epoch."""
        return sum(self.sizes)

    @property
    def pool_bytes(self) -> int:
        """About how much of a dataset that is read by regions is shuffled at a time."""
        return POOL_BYTES // max(1, sum(regions is not None for regions in self.regions))

    def __getitem__(self, span: slice) -> list[tuple[int, int]]:
        """Return (row, epoch) at positions `start:stop`; a span may cross the end of an epoch."""
        rows = []
        for position in range(span.start, span.stop):
            epoch, place = divmod(position, self.rows_per_epoch)
            row = _epoch(self, epoch)[place]
            rows.append((int(row), epoch))
        return rows

    def num_distinct(self, stop: int) -> int:
        """Return how many different rows there are at the positions before `stop`."""
        is_there = np.zeros(self.rows_per_epoch, dtype=bool)
        for epoch, start in enumerate(range(0, stop, self.rows_per_epoch)):
            is_there[_epoch(self, epoch)[: stop - start]] = True
        return int(is_there.sum())

    def by_region(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of rows in the order of their regions; where there are none, as is."""
        if not any(self.regions):
            return np.arange(len(rows))
        starts = np.cumsum([0, *self.sizes])
        parts = np.searchsorted(starts, rows, side="right") - 1
        numbers = np.full(len(rows), -1)
        for part, regions in enumerate(self.regions):
            if regions is not None:
                is_here = parts == part
                numbers[is_here] = regions.of_rows[rows[is_here] - starts[part]]
        return np.lexsort((numbers, parts))

    def by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of rows in the order of the lengths of their labels."""
        if self.lengths is None:
            return np.arange(len(rows))
        return np.argsort(self.lengths[rows], kind="stable")


@lru_cache(maxsize=2)
def _epoch(order: Order, epoch: int) -> NDArray[np.int64]:
    """Return the rows of one epoch, in order."""
    rng = np.random.default_rng([order.seed, epoch])
    starts = np.cumsum([0, *order.sizes[:-1]])
    all_regions = order.regions or (None,) * len(order.sizes)
    shares = _shares(order.sizes, order.weights)
    pools = [
        None if regions is None else _Pools(regions, order.pool_bytes) for regions in all_regions
    ]
    parts = [
        start + _cycled(size, count, each, rng)
        for start, size, count, each in zip(starts, order.sizes, shares, pools, strict=True)
    ]
    if not any(all_regions):
        return rng.permutation(np.concatenate(parts))
    return _mixed(parts, rng)


def _mixed(parts: list[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of all parts, each part's in their order."""
    turns = rng.permutation(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
    rows = np.empty(len(turns), np.int64)
    for number, part in enumerate(parts):
        rows[turns == number] = part
    return rows


def _shares(sizes: tuple[int, ...], weights: tuple[float, ...] | None) -> list[int]:
    """Return how many rows of each dataset an epoch has; they add up to all rows."""
    if weights is None:
        return list(sizes)
    bounds = np.cumsum([0.0, *weights]) / sum(weights) * sum(sizes)
    return [int(n) for n in np.diff(np.rint(bounds).astype(int))]


class _Pools(NamedTuple):
    """Regions of a dataset, and how many bytes of them are shuffled at a time."""

    regions: Regions
    num_bytes: int

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the number of each row's pool."""
        sizes = self.regions.num_bytes
        turns = rng.permutation(len(sizes))
        numbers = np.empty(len(sizes), np.int64)
        numbers[turns] = (np.cumsum(sizes[turns]) - sizes[turns]) // self.num_bytes
        return numbers[self.regions.of_rows]


def _cycled(
    size: int, count: int, pools: _Pools | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return `count` rows of `size`, each as often as any other, or once more."""
    rounds = -(-count // size)
    shuffled = (_shuffled(size, pools, rng) for _ in range(rounds))
    return np.concatenate([np.empty(0, int), *shuffled])[:count]


def _shuffled(size: int, pools: _Pools | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return all rows, pool by pool where there are pools."""
    rows = rng.permutation(size)
    return rows if pools is None else rows[np.argsort(pools.draw(rng)[rows], kind="stable")]


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: by process, and by accumulation.

    Attributes:
        per_device: the most rows of a micro-batch.
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

    def micro_batches(
        self, order: Order, updates: range, num_rows: int, process: int
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield, for one process, the (row, epoch) of each of its micro-batches.

        Which rows an update learns from does not depend on how they are cut. Processes read as few
        regions as they can, and the rows of a micro-batch have labels of like length: what is
        padded is never more than the rows of the update need.

        Args:
            order: of the rows.
            updates: numbers of those to make.
            num_rows: positions there are in all; the last batch may be short, or empty.
            process: which process asks.
        """
        for update in updates:
            stop = min((update + 1) * self.global_size, num_rows)
            batch = order[min(update * self.global_size, num_rows) : stop]
            rows = np.array([row for row, _ in batch], np.int64)
            share = np.array_split(order.by_region(rows), self.num_processes)[process]
            share = share[order.by_length(rows[share])]
            for places in np.array_split(share, self.accumulation):
                yield [batch[place] for place in places]
