"""Recordings that are still to be transcribed, dealt out to the processes of a launch."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, TypeVar

from datasets import IterableDataset

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.storage.shares import WHOLE, Share

Item = TypeVar("Item")

ROWS_READ = 16  # of a stream at once


class RecordingQueue:
    """The recordings that are left to this process: of those not done, processes take turns.

    Attributes:
        splits: the datasets.
        done: transcribed before, by id.
        ids: of all recordings, in order; those of a stream once they were gone through.
        num_left: to this process; None where a stream does not say.
    """

    def __init__(
        self,
        splits: Mapping[DatasetSpec, sources.Rows],
        done: Collection[str],
        share: Share = WHOLE,
    ) -> None:
        """Look at the ids of what is not streamed.

        Args:
            splits: as above.
            done: ids of what is transcribed.
            share: of this process.

        Raises:
            ValueError: two datasets have a recording of the same id.
        """
        self.splits, self.done = splits, done
        self.ids: dict[str, None] = {}
        self._share = share
        self._turn = count()
        numbers = {
            spec: self._mine(enumerate(rows.select_columns(schema.ID)[schema.ID]))
            for spec, rows in splits.items()
            if not isinstance(rows, IterableDataset)
        }
        self._numbers = {spec: list(mine) for spec, mine in numbers.items()}
        is_known = len(self._numbers) == len(splits)
        self.num_left = sum(map(len, self._numbers.values())) if is_known else None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield rows, undecoded."""
        for spec, rows in self.splits.items():
            if spec in self._numbers:
                yield from rows.select(self._numbers[spec])
            else:
                chunks = sources.iterate_chunks(rows, ROWS_READ)
                streamed = ((row, row[schema.ID]) for _, chunk in chunks for row in chunk)
                yield from self._mine(streamed)

    def _mine(self, named: Iterable[tuple[Item, str]]) -> Iterator[Item]:
        """Note the ids of all, and yield those that are left to this process."""
        for item, row_id in named:
            if row_id in self.ids:
                raise ValueError(
                    f"two datasets have a recording {row_id!r:.200}: run the stage once for each"
                )
            self.ids[row_id] = None
            if row_id not in self.done and self._share.has(next(self._turn)):
                yield item
