"""Shards of streams, pass after pass, each in an order of its own; a place can be gone back to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from datasets import IterableDataset
from numpy.typing import NDArray

from distillery.data import schema
from distillery.data.collators import DATASET
from distillery.data.specs import DatasetSpec
from distillery.ingest import label_folders
from distillery.storage.ledger import Ledger

MOST_LANES = 16  # as many shards are open at once, in all processes together

Row: TypeAlias = dict[str, Any]
Place: TypeAlias = dict[str, Any]  # for a JSON file


@dataclass(frozen=True)
class Stream:
    """A dataset that is read from the start of a shard to its end.

    Attributes:
        rows: of all shards.
        num_shards: of it; one, where the rows depend on those before them.
        number: of the dataset, which its rows get as `DATASET`.
    """

    rows: IterableDataset
    num_shards: int
    number: int = 0

    @classmethod
    def of(cls, spec: DatasetSpec, number: int = 0) -> "Stream":
        """Open a dataset.

        Raises:
            FileNotFoundError, ValueError: as `label_folders.stream`.
        """
        rows = label_folders.stream(spec)
        if spec.max_rows is not None:  # the first ones are wanted
            return cls(rows, 1, number)
        if rows.num_shards < MOST_LANES:
            rows = _split_further(rows)
        return cls(rows, rows.num_shards, number)

    def shard(self, number: int) -> IterableDataset:
        """Return the rows of one shard."""
        rows = self.rows.shard(self.num_shards, number)  # an object of its own: it has a state
        return rows if self.num_shards == 1 else _split_further(rows)


def _split_further(rows: IterableDataset) -> IterableDataset:
    """Let row groups of Parquet on the Hub be shards: what is before a place need not be read.

    Earlier releases of the library cannot, and read a file from its start.
    """
    return rows.reshard() if hasattr(rows, "reshard") else rows


class ShardCycle:
    """A lane's usable rows: those of every `num_lanes`-th shard, pass after pass without end.

    Attributes:
        account: of the rows of the first pass that were read; all passes have the same ones.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Stream, int]],
        judge: Callable[[Row], str | None],
        seed: tuple[int, ...],
        lane: int,
        num_lanes: int,
    ) -> None:
        """Begin with the first pass.

        Args:
            shards: streams with numbers of their shards.
            judge: returns why a row cannot be learnt from, None if it can.
            seed: of the order of the shards.
            lane: of `num_lanes`, which are no more than the shards.
        """
        self.account = Ledger()
        self._shards = shards
        self._judge = judge
        self._seed = seed
        self._num_lanes = num_lanes
        self._turn = lane  # number of the shard in the sequence of all passes
        self._num_read = 0  # rows of this shard
        self._shard: IterableDataset | None = None
        self._state: dict[str, Any] | None = None
        self._rows = self._usable()

    @property
    def num_passes(self) -> int:
        """How many passes have ended for this lane."""
        return self._turn // len(self._shards)

    def take(self, num_rows: int) -> list[tuple[int, Row]]:
        """Return the next rows, each with the number of its pass.

        Raises:
            ValueError: no row of any shard can be learnt from.
        """
        return list(islice(self._rows, num_rows))

    def place(self) -> Place:
        """Return where reading would go on."""
        state = self._shard.state_dict() if self._shard is not None else self._state
        return {
            "num_shards": len(self._shards),  # else the turn means nothing
            "turn": self._turn,
            "num_read": self._num_read,
            "state": state,
        }

    def seek(self, place: Place) -> None:
        """Go on at a place; no row before it is read, unless its shard can only be read through."""
        self._turn, self._num_read = place["turn"], place["num_read"]
        self._shard, self._state = None, place["state"]
        self._rows = self._usable()

    def _usable(self) -> Iterator[tuple[int, Row]]:
        barren: set[int] = set()  # shards without a row to learn from
        while True:
            epoch, place = divmod(self._turn, len(self._shards))
            number = int(_order(self._seed, epoch, len(self._shards))[place])
            num_used = self._num_read  # of a shard that is gone on with, some row may have been
            for row in self._unread(number) if number not in barren else ():
                reason = self._judge(row)
                if epoch == 0:
                    self._count(reason)
                if reason is None:
                    num_used += 1
                    yield epoch, row
            if not num_used:
                barren.add(number)
                if len(barren) == len(self._shards):
                    raise ValueError(f"the stream has no row to learn from: {self.account}")
            self._turn += self._num_lanes
            self._num_read = 0

    def _unread(self, number: int) -> Iterator[Row]:
        """Yield the rows of a shard, from the place on."""
        stream, shard = self._shards[number]
        self._shard = stream.shard(shard)
        if self._state is not None:
            self._shard.load_state_dict(self._state)
            self._state = None
        for row in self._shard:
            # A stream of several shards without ids: see `sources.load`.
            row.setdefault(schema.ID, f"row-{shard:05d}-{self._num_read:09d}")
            self._num_read += 1
            row[DATASET] = stream.number
            yield row
        self._shard = None

    def _count(self, reason: str | None) -> None:
        self.account.num_in += 1
        if reason is None:
            self.account.num_out += 1
        else:
            self.account.dropped[reason] += 1


@lru_cache(maxsize=64)  # lanes are in different passes, over different streams
def _order(seed: tuple[int, ...], epoch: int, num_shards: int) -> NDArray[np.int64]:
    return np.random.default_rng([*seed, epoch]).permutation(num_shards)
