"""What a teacher says at every label position of a dataset, kept in a folder.

Training then reads a row's `TopTokens` in place of running the teacher. They are kept shard by
shard, each with a seal, by the number of the row; a row is known by its id, labels and parts, so
that nothing is read that was written of other labels. What is kept is the same in every epoch, and
so are the labels: what is drawn for a row is drawn once, as for the first epoch.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from distillery.data import schema
from distillery.data.collators import CACHED, Batch
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.storage.progress import ProgressBar
from distillery.storage.shards import Seal, read_seal, seal_path, write_sealed
from distillery.storage.stops import StopRequest
from distillery.text.labels import IGNORED, draw_seed
from distillery.training.examples import TrainingRows
from distillery.training.rows import TrainingData
from distillery.training.step import Learner
from distillery.training.top_tokens import POSITION, Positions, TopTokens
from distillery.whisper.memory import enough_memory

logger = logging.getLogger(__name__)

FILES = "teacher-[0-9]*.arrow*"
# A killed run makes at most one shard of each process again: a hundredth of the rows, or fewer.
SHARDS, MOST_ROWS = 100, 2000
CHUNK = 1024  # positions whose logits exist at one time
OPEN_SHARDS = 256  # in one process
KEY, TARGETS = "key", "targets"
SHARD = pa.schema([(KEY, pa.uint64()), (TARGETS, pa.large_binary())])


@dataclass(frozen=True)
class TeacherCache:
    """The shards of a folder.

    Attributes:
        folder: in which they are.
        num_rows: of the dataset, usable or not.
        temperature: of the loss.
    """

    folder: Path
    num_rows: int
    temperature: float

    @property
    def shard_rows(self) -> int:
        """Rows of one shard."""
        return min(MOST_ROWS, math.ceil(self.num_rows / SHARDS))

    def numbers(self, shard: int) -> range:
        """Return the numbers of a shard's rows."""
        start = shard * self.shard_rows
        return range(start, min(start + self.shard_rows, self.num_rows))

    def path(self, shard: int) -> Path:
        """Return where a shard is kept."""
        return self.folder / f"teacher-{shard:05d}.arrow"

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(math.ceil(self.num_rows / self.shard_rows))

    def missing(self, verify: bool = False) -> list[int]:
        """Return the shards that are to be made, or made again.

        Args:
            verify: compare checksums of large shards, too.
        """
        return [
            shard for shard in self.shards if read_seal(self.path(shard), verify=verify) is None
        ]

    def ledger(self) -> Ledger:
        """Return the account of all rows."""
        seals = (Seal.read(seal_path(self.path(shard))) for shard in self.shards)
        return sum((seal.ledger for seal in seals), Ledger())

    def write(self, shard: int, entries: Mapping[int, tuple[int, Positions]]) -> None:
        """Write and seal a shard.

        Args:
            shard: its number.
            entries: for the number of each row that can be used, its key and what is kept of it.
        """
        numbers = self.numbers(shard)
        ledger = Ledger(num_in=len(numbers), num_out=len(entries))
        if len(entries) < len(numbers):
            ledger.quarantined[schema.AUDIO] = len(numbers) - len(entries)
        rows = [entries.get(number, (None, np.empty(0, POSITION))) for number in numbers]
        columns = [[key for key, _ in rows], [positions.tobytes() for _, positions in rows]]
        table = pa.Table.from_arrays(
            [pa.array(column, kind) for column, kind in zip(columns, SHARD.types, strict=True)],
            schema=SHARD,
        )

        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SHARD) as writer:
                writer.write_table(table)

        write_sealed(Outputs(self.folder), self.path(shard), ledger, write)

    def read(self, number: int, row: Mapping[str, Any]) -> Positions:
        """Return what is kept of a row: no position if its clip could not be used.

        Args:
            number: of the row.
            row: with its labels.

        Raises:
            ValueError: it is kept of another row, or of other labels.
        """
        path = self.path(number // self.shard_rows)
        if not path.exists():
            raise ValueError(
                f"--cache_teacher: {path} is gone, or not seen by this process: all processes must "
                "see the folder, and a new start makes again what is missing"
            )
        table = _shard(path, path.stat().st_mtime_ns)
        place = number % self.shard_rows
        if table[KEY][place].as_py() not in (None, key_of(row)):
            raise ValueError(
                f"--cache_teacher {self.folder} was made of other rows or other labels: row "
                f"{row[schema.ID]} is not what it was then. Give the flags of data and labels "
                "(and, where labels are built here or --pack is on, --seed) that it was made "
                "with, or name another folder"
            )
        return np.frombuffer(table[TARGETS][place].as_buffer(), POSITION)


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(path: Path, _changed_ns: int) -> pa.Table:
    """Map a shard into memory: only what is looked at is read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def key_of(row: Mapping[str, Any]) -> int:
    """Return 64 bits that another row has others of, or the same with other labels or parts."""
    parts = row.get(schema.SEGMENT_IDS), row.get(schema.SEGMENT_OFFSETS)
    return draw_seed(row[schema.ID], row[schema.LABELS], *parts)


class FixedRows(TrainingRows):
    """Rows whose labels are those of the first epoch in every epoch, with what is known of them."""

    def __init__(self, rows: TrainingRows, known: Callable[[int, Mapping[str, Any]], Any]) -> None:
        """Keep the rows.

        Args:
            rows: as they are trained on without a cache.
            known: takes a row's number, and the row; what it returns becomes `CACHED` of the row.
        """
        super().__init__(rows.parts, rows.rule)
        self.known = known

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return row `key[0]` with its labels."""
        row = super().__getitem__((key[0], 0))
        return {**row, CACHED: self.known(key[0], row)}


# --- writing --------------------------------------------------------------------------------------


def fill(
    cache: TeacherCache,
    shards: Sequence[int],
    learner: Learner,
    data: TrainingData,
    stop: StopRequest,
    bar: ProgressBar,
) -> None:
    """Make shards, until all are there or a request to stop comes.

    Args:
        cache: that they belong to.
        shards: numbers of those that this process is to make.
        learner: with its teacher.
        data: all rows that are trained on.
        stop: a request leaves the shard that is at hand unmade.
        bar: of the rows.
    """
    assert isinstance(data.rows, TrainingRows)
    rows = FixedRows(data.rows, _number_and_key)
    spans = list(_spans(cache, shards, data.plan.per_device))
    batches = data.loader.batches(rows, [[(number, 0) for number in span] for _, span in spans])
    entries: dict[int, tuple[int, Positions]] = {}
    for (shard, span), batch in zip(spans, batches, strict=True):
        if stop.is_set:
            return
        with enough_memory(
            f"the teacher with {len(span)} rows at once", "lower --per_device_train_batch_size"
        ):
            entries |= _entries(learner, batch, cache.temperature)
        if span[-1] == cache.numbers(shard)[-1]:
            cache.write(shard, entries)
            entries = {}
        bar.update(len(span))


def _number_and_key(number: int, row: Mapping[str, Any]) -> tuple[int, int]:
    return number, key_of(row)


def _spans(cache: TeacherCache, shards: Sequence[int], size: int) -> Iterator[tuple[int, range]]:
    """Yield the numbers of the rows of each batch, and the number of its shard."""
    for shard in shards:
        numbers = cache.numbers(shard)
        for start in range(0, len(numbers), size):
            yield shard, numbers[start : start + size]


@torch.no_grad()
def _entries(
    learner: Learner, batch: Batch, temperature: float
) -> dict[int, tuple[int, Positions]]:
    """Return key and kept positions of each row of a batch that can be used, by its number."""
    if not batch.ids:
        return {}
    assert learner.teacher is not None
    features, inputs, targets = learner.tensors(batch)
    outputs = learner.teacher(features, inputs)
    assert isinstance(outputs.decoder_states, torch.Tensor) and outputs.head is not None
    counts = targets != IGNORED
    states, head = outputs.decoder_states[counts], outputs.head
    kept = [
        TopTokens.of((chunk @ head.T).float(), temperature).to_positions()
        for chunk in torch.split(states, CHUNK)
    ]
    ends = counts.sum(1).cumsum(0).tolist()
    rows = np.split(np.concatenate(kept), ends[:-1])
    return {
        number: (key, positions)
        for (number, key), positions in zip(batch.cached, rows, strict=True)
    }
