"""The clips that a process labels: read, decoded, and numbered by shard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader, Sampler

from distillery.audio.log_mel import LogMel
from distillery.data import schema
from distillery.data.collators import ANY_DURATION, DurationLimits, WindowCollator, Windows
from distillery.data.packed_windows import ClipCollator, Clips, WindowPacking
from distillery.ingest import sources
from distillery.storage.shares import Share

CONTEXT = -1  # the position of the clip before a shard's first


class Clip(NamedTuple):
    """A clip to be labelled.

    Attributes:
        shard: number of its shard.
        position: in the shard, or `CONTEXT`.
        row: of the dataset by its number, or, of a stream, the row itself.
    """

    shard: int
    position: int
    row: Any


class ShardQueue(Sampler[Clip]):
    """The clips of one split that are left to a share, shard by shard.

    The clip before a shard's first comes along where it is the window before it: its transcript is
    the prompt of the first, and no shard then waits for another.

    Attributes:
        num_shards: of the split; None until a stream was read to its end.
        chunks: the rows of each shard that has begun and was not yet forgotten.
        followers: those of them whose first clip has a window before it, which comes along.
    """

    def __init__(
        self,
        rows: sources.Rows,
        size: int,
        share: Share,
        is_done: Callable[[int, Callable[[], Any]], bool],
        with_context: bool = True,
    ) -> None:
        """Read nothing yet.

        Args:
            rows: of the split.
            size: rows of a shard.
            share: whose shards are wanted.
            is_done: tells of a shard, and of what returns its rows, that nothing is left to do.
            with_context: whether the clip before a shard's first is wanted.
        """
        self.rows = rows
        self.num_shards: int | None = None
        self.chunks: dict[int, Any] = {}
        self.followers: set[int] = set()
        self._size, self._share, self._is_done = size, share, is_done
        self._with_context = with_context
        names = [n for n in (schema.RECORDING_ID, schema.SPEAKER_ID) if n in rows.column_names]
        is_stream = isinstance(rows, IterableDataset)
        self._places = rows.select_columns(names) if names and not is_stream else None

    def __iter__(self) -> Iterator[Clip]:
        """Yield clip after clip; within a shard in the order of the rows."""
        shard, before = -1, None
        for shard, (rows, chunk) in enumerate(self._shards()):
            if self._share.has(shard) and not self._is_done(shard, chunk):
                self.chunks[shard] = chunk()
                if before is not None and self._with_context and self._follows(before, rows[0]):
                    self.followers.add(shard)
                    yield Clip(shard, CONTEXT, before)
                for position, row in enumerate(rows):
                    yield Clip(shard, position, row)
            before = rows[-1]
        self.num_shards = shard + 1

    def _shards(self) -> Iterator[tuple[Sequence[Any], Callable[[], Any]]]:
        """Yield each shard's rows, by number where they have one, and what returns them.

        To select rows of a dataset takes milliseconds; there may be many shards that are done.
        """
        if isinstance(self.rows, IterableDataset):
            for _, chunk in sources.iterate_chunks(self.rows, self._size):
                assert isinstance(chunk, list)
                yield chunk, partial(list, chunk)
            return
        for start in range(0, len(self.rows), self._size):
            numbers = range(start, min(start + self._size, len(self.rows)))
            yield numbers, partial(self.rows.select, numbers)

    def _follows(self, before: Any, row: Any) -> bool:
        first, second = self._place(before), self._place(row)
        return first == second and any(name is not None for name in first)

    def _place(self, row: Any) -> tuple[str | None, str | None]:
        if isinstance(row, int):
            row = self._places[row] if self._places is not None else {}
        return row.get(schema.RECORDING_ID), row.get(schema.SPEAKER_ID)


class ClipBatch(NamedTuple):
    """Clips that were decoded: where they belong, and their windows, in the same order."""

    clips: list[tuple[int, int]]
    windows: Windows


class _ClipRows(torch.utils.data.Dataset[tuple[int, int, Mapping[str, Any]]]):
    """Rows by clip: a stream's come with it."""

    def __init__(self, rows: sources.Rows) -> None:
        self.rows = None if isinstance(rows, IterableDataset) else rows

    def __getitem__(self, clip: Clip) -> tuple[int, int, Mapping[str, Any]]:
        row = clip.row if self.rows is None else self.rows[clip.row]
        return clip.shard, clip.position, row


Numbered: TypeAlias = tuple[int, int, Mapping[str, Any]]  # shard, position, row


@dataclass(frozen=True)
class _WindowsOfClips:
    """Collates clips that have a window each."""

    collate: WindowCollator

    def __call__(self, clips: Sequence[Numbered]) -> ClipBatch:
        places = [(shard, position) for shard, position, _ in clips]
        return ClipBatch(places, self.collate([row for _, _, row in clips]))


@dataclass(frozen=True)
class _PartsOfWindows:
    """Collates clips that are still to be packed; returns each with the number of its shard."""

    collate: ClipCollator

    def __call__(self, clips: Sequence[Numbered]) -> list[tuple[int, Clips]]:
        return [(shard, self.collate([row])) for shard, _, row in clips]


def batches(
    queue: ShardQueue,
    log_mel: LogMel,
    batch_size: int,
    num_workers: int,
    limits: DurationLimits = ANY_DURATION,
) -> Iterator[ClipBatch]:
    """Yield a split's clips, decoded, each in a window of its own.

    Batches run over the borders of shards.

    Args:
        queue: of the split.
        log_mel: of the model.
        batch_size: clips.
        num_workers: processes that decode, for as long as the split lasts; 0 decodes in this one.
        limits: what is outside is dropped.
    """
    collate = _WindowsOfClips(WindowCollator(log_mel, limits=limits))
    return iter(_loader(queue, collate, batch_size, num_workers))


def packed_batches(
    queue: ShardQueue,
    packing: WindowPacking,
    batch_size: int,
    num_workers: int,
    limits: DurationLimits = ANY_DURATION,
) -> Iterator[ClipBatch]:
    """Yield a split's clips, decoded and packed into windows, which are numbered in their shard.

    Arguments are those of `batches`; the clips of each shard are packed for themselves.
    """
    log_mel = packing.log_mel
    collate = _PartsOfWindows(ClipCollator(log_mel.sampling_rate, log_mel.window_s, limits))
    loader = _loader(queue, collate, batch_size, num_workers)
    numbered = (clip for batch in loader for clip in batch)
    for shard, clips in groupby(numbered, key=itemgetter(0)):
        position = 0
        for windows in packing.batches((clip for _, clip in clips), batch_size):
            places = [(shard, position + index) for index in range(len(windows.rows))]
            position += len(places)
            yield ClipBatch(places, windows)


def _loader(
    queue: ShardQueue, collate: Callable[[Any], Any], batch_size: int, num_workers: int
) -> "DataLoader[Any]":
    return DataLoader(
        _ClipRows(queue.rows),
        sampler=queue,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
    )
