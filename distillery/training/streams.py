"""Streams to train on: shuffled by shard and row, dealt out to processes, and their place kept.

A pass has all shards of all streams in an order of its own, and pass follows pass without end.
Shard number i of this sequence belongs to lane `i % num_lanes`, and row number n of the training
comes from lane `n % num_lanes`: both whatever the number of processes, so that a global batch has
the same rows for any. A process reads the lanes that its rows come from. Lanes are not equally
long: a shorter one begins the next pass while the others end theirs. Every pass has every row once.

A lane reads a block of rows and shuffles it. To go on in it is to read its block again.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, cycle, islice
from typing import TypeAlias

import numpy as np
import torch

from distillery.data.packing import Part, Window
from distillery.filtering.filters import TranscriptFilter
from distillery.storage.ledger import Ledger
from distillery.text.labels import LabelRule
from distillery.training.examples import example_of, unusable_reason
from distillery.training.order import BatchPlan
from distillery.training.packed_examples import Packing
from distillery.training.shard_cycles import MOST_LANES, Place, Row, ShardCycle, Stream

logger = logging.getLogger(__name__)

# In the blocks of all lanes together; utterances fill windows better where there are more of them.
SHUFFLED_ROWS, PACKED_ROWS = 1024, 4096

WindowRows: TypeAlias = tuple[int, list[Row]]  # the pass over the streams, the rows of a window


class StreamExamples(torch.utils.data.Dataset[Row]):
    """Makes windows of a stream into examples, wherever batches are made."""

    def __init__(self, rule: LabelRule, packing: Packing | None) -> None:
        """Keep what decides about labels and windows."""
        self.rule = rule
        self.packing = packing

    def __getitem__(self, window: WindowRows) -> Row:
        """Return a window as a row, with its labels."""
        epoch, rows = window
        return example_of(self.packing.row(rows) if self.packing else rows[0], self.rule, epoch)


class Lane:
    """Windows of one lane, block by block, in a shuffled order."""

    def __init__(
        self,
        number: int,
        cycles: Sequence[ShardCycle],
        shares: Sequence[float] | None,
        block_size: int,
        seed: int,
        packing: Packing | None,
    ) -> None:
        """Begin at the start.

        Args:
            number: of the lane.
            cycles: of which its rows are drawn.
            shares: in which they are; None where there is one.
            block_size: rows of a block.
            seed: of the order in a block.
            packing: how rows share windows; None gives each its own.
        """
        self.number = number
        self._cycles = cycles
        self._shares = shares
        self._block_size = block_size
        self._seed = seed
        self._packing = packing
        self._block = self._position = 0
        self._places: deque[Place] = deque()

    def seek(self, place: Place) -> None:
        """Go on with the block that begins at a place."""
        self._block, self._position = place["block"], place["position"]
        for shards, its_place, account in zip(
            self._cycles, place["cycles"], place["before"], strict=True
        ):
            shards.seek(its_place)
            shards.account = Ledger.from_dict(account)

    def windows(self, position: int, step: int) -> Iterator[WindowRows]:
        """Yield every so many windows from a position on, which is not before the place."""
        return islice(self._windows(), position - self._position, None, step)

    def place(self, position: int) -> Place:
        """Return the last place that is not behind a position, and forget those before it."""
        if not self._places:  # nothing was read yet
            return self._place()
        while len(self._places) > 1 and self._places[1]["position"] <= position:
            self._places.popleft()
        return self._places[0]

    def _place(self) -> Place:
        accounts = [shards.account.to_dict() for shards in self._cycles]
        return {
            "lane": self.number,
            "position": self._position,
            "block": self._block,
            "cycles": [shards.place() for shards in self._cycles],
            "before": accounts,
            "account": accounts,  # after the block; the first pass is over then, or not
            "num_passes": min(shards.num_passes for shards in self._cycles),
        }

    def _windows(self) -> Iterator[WindowRows]:
        while True:
            place = self._place()
            rng = np.random.default_rng([self._seed, self.number, self._block])
            block = self._read(rng)
            place["account"] = [shards.account.to_dict() for shards in self._cycles]
            place["num_passes"] = min(shards.num_passes for shards in self._cycles)
            self._places.append(place)
            windows = self._laid([row for _, row in block])
            self._block += 1
            self._position += len(windows)
            for number in rng.permutation(len(windows)):
                parts = windows[number].parts
                yield block[parts[0].row][0], [block[part.row][1] for part in parts]

    def _read(self, rng: np.random.Generator) -> list[tuple[int, Row]]:
        """Return the rows of the next block; a stream with a larger share gives more of them."""
        # The first blocks differ in size, so that lanes do not all read in the same update.
        size = self._block_size if self._block else -(-self._block_size // (self.number + 1))
        if self._shares is None:
            return self._cycles[0].take(size)
        drawn = rng.choice(len(self._cycles), size, p=self._shares)
        sizes = np.bincount(drawn, minlength=len(self._cycles)).tolist()
        parts = [shards.take(size) for shards, size in zip(self._cycles, sizes, strict=True)]
        return [row for part in parts for row in part]

    def _laid(self, rows: Sequence[Row]) -> list[Window[int]]:
        """Return the windows of a block, of the numbers of its rows."""
        if self._packing is None:
            return [Window((Part(index, 0, 0),)) for index in range(len(rows))]
        return list(self._packing.windows(rows, [self._seed, self.number, self._block]))


class StreamedRows:
    """Micro-batches of one process out of streams without end.

    Which rows an update gets depends on the streams, the seed and its number alone.

    Attributes:
        rule: how labels are made.
        examples: makes windows into examples.
        num_lanes: that the rows of all processes come from.
        account: of the rows of the first pass, as far as it was read at the last checkpoint.
        rows_per_pass: rows that are used in a pass; None until a checkpoint knows them.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        weights: Sequence[float] | None,
        rule: LabelRule,
        limits: TranscriptFilter,
        packing: Packing | None = None,
    ) -> None:
        """Keep the streams and what decides about their rows.

        Args:
            streams: at least one. Without weights, a pass has every row of each of them once.
            weights: shares in which rows are drawn of the streams, each of which has passes of its
                own.
            rule: how labels are made.
            limits: that rows must keep to.
            packing: how utterances of one block share windows, which are the rows then.
        """
        shards = [[(stream, i) for i in range(stream.num_shards)] for stream in streams]
        if weights is None or len(streams) == 1:
            self._shares, self._shards = None, [[each for some in shards for each in some]]
        else:
            self._shares, self._shards = [each / sum(weights) for each in weights], shards
        self._judge = partial(unusable_reason, rule=rule, limits=limits)
        self.rule = rule
        self.examples = StreamExamples(rule, packing)
        fewest = min(map(len, self._shards))
        self.num_lanes = min(MOST_LANES, 1 << fewest.bit_length() - 1)  # which processes share
        self.account = Ledger()
        self.rows_per_pass: int | None = None
        self._begun: dict[int, Place] = {}
        self._lanes: list[Lane] = []

    def batches(
        self, plan: BatchPlan, first_update: int, process: int
    ) -> Iterator[list[WindowRows]]:
        """Yield the windows of a process's micro-batches, from an update on, without end."""
        shared = math.gcd(plan.num_processes, self.num_lanes)
        positions = count(first_update * plan.global_size + process, plan.num_processes)
        firsts = list(islice(positions, self.num_lanes // shared))  # one in each of its lanes
        self._lanes = [self._lane(position % self.num_lanes) for position in firsts]
        # Where processes cannot share the lanes evenly, each passes over what is the others'.
        step = plan.num_processes // shared
        windows = [
            lane.windows(position // self.num_lanes, step)
            for lane, position in zip(self._lanes, firsts, strict=True)
        ]
        turns = cycle(windows)
        while True:
            yield [next(next(turns)) for _ in range(plan.per_device)]

    def places(self, plan: BatchPlan, update: int) -> list[Place]:
        """Return, for a checkpoint after an update, where this process's lanes go on."""
        position = update * plan.global_size
        return [lane.place(self._position(lane.number, position)) for lane in self._lanes]

    def go_on(self, places: Sequence[Place]) -> None:
        """Go on at the places of all lanes, and know what was counted up to them.

        Raises:
            ValueError: they are of other shards.
        """
        now = [len(shards) for shards in self._shards]
        saved = [[shards["num_shards"] for shards in place["cycles"]] for place in places]
        if any(then != now for then in saved):
            raise ValueError(
                f"the checkpoint was saved while the stream had {_joined(saved[0])} shards, and "
                f"now it has {_joined(now)}: its files have changed, or the library splits them "
                "in another way; start over with --overwrite_output_dir"
            )
        self._begun = {place["lane"]: place for place in places}
        self.account = sum(
            (Ledger.from_dict(account) for place in places for account in place["account"]),
            Ledger(),
        )
        is_over = bool(places) and min(place["num_passes"] for place in places) > 0
        if is_over and self.rows_per_pass is None:
            self.rows_per_pass = self.account.num_out
            logger.info("one pass over the stream: %s", self.account)

    def _lane(self, number: int) -> Lane:
        seed = self.rule.seed
        cycles = [
            ShardCycle(shards, self._judge, (seed, index), number, self.num_lanes)
            for index, shards in enumerate(self._shards)
        ]
        packing = self.examples.packing
        size = (SHUFFLED_ROWS if packing is None else PACKED_ROWS) // self.num_lanes
        lane = Lane(number, cycles, self._shares, size, seed, packing)
        if number in self._begun:
            lane.seek(self._begun[number])
        return lane

    def _position(self, lane: int, position: int) -> int:
        """Return how many windows of a lane are before a position."""
        return -(-(position - lane) // self.num_lanes) if position > lane else 0


def _joined(counts: Sequence[int]) -> str:
    return " + ".join(map(str, counts))
