"""Filtered rows as sealed shards, written by one process or by several."""

import gc
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset

from distillery.data import hub_layout
from distillery.data.column_types import MapStyleRows
from distillery.data.hub_layout import SplitFiles, write_tables
from distillery.data.specs import DatasetSpec
from distillery.filtering.filter_summary import FilterSummary
from distillery.filtering.row_filter import RowFilter, rejected, rejected_features
from distillery.ingest import sources
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.storage.shards import Seal, read_seal, seal_path, write_sealed
from distillery.storage.stops import end_with_parent

# Sealed shards, renamed into place when all are there. The seals, which hold the account, stay, so
# that a damaged file of the dataset can be made again alone.
WORK_FOLDER = ".filtered"
SUMMARY = "summary"  # in the notes of a seal
REJECTED = "rejected"  # the dataset of what was dropped, in the folder of what was kept

Account = tuple[Ledger, FilterSummary]


@dataclass(frozen=True)
class ShardWriter:
    """Filters chunks of one split into sealed shards.

    Attributes:
        row_filter: what is done to each row.
        source: columns of the input.
        files: of the split that is written.
        rejected: files of what is dropped, where it is kept.
        num_sealed: shards that an earlier start of the run sealed; all, if it published any.
    """

    row_filter: RowFilter
    source: Features
    files: SplitFiles
    rejected: SplitFiles | None
    num_sealed: int

    def write(self, index: int, chunk: MapStyleRows) -> Account:
        """Filter one chunk, unless its shard is whole; return the chunk's account."""
        account = self._sealed_account(index)
        if account is not None:
            return account
        ledger, notes = Ledger(num_in=len(chunk)), dict[str, Any]()
        write = partial(self._write, index, chunk, ledger, notes)
        write_sealed(self.files.outputs, self.files.sealed(index), ledger, write, notes)
        return ledger, FilterSummary.from_dict(notes[SUMMARY])

    def _sealed_account(self, index: int) -> Account | None:
        if self.rejected is not None and not self._place(self.rejected, index).exists():
            return None
        path = self.files.sealed(index)
        ledger = read_seal(path, self._place(self.files, index))
        if ledger is None:
            return None
        return ledger, FilterSummary.from_dict(Seal.read(seal_path(path)).notes[SUMMARY])

    def _place(self, files: SplitFiles, index: int) -> Path:
        """Return where a shard is: in the dataset, else where it was sealed."""
        published = files.published(index, self.num_sealed)
        return published if published.exists() else files.sealed(index)

    def _write(
        self, index: int, chunk: MapStyleRows, ledger: Ledger, notes: dict[str, Any], path: Path
    ) -> None:
        judged = self.row_filter.judge(chunk)
        ledger.dropped.update(row.verdict.reason for row in judged if row.verdict.reason)
        passing = self.row_filter.passing(chunk, judged, ledger)
        ledger.num_out = write_tables(path, passing, self.row_filter.features(self.source))
        # What belongs to a shard is whole before the shard is sealed.
        if self.rejected is not None:
            target = self.rejected.sealed(index)
            with self.rejected.outputs.replacing(target, spare=True) as temporary:
                write_tables(temporary, rejected(chunk, judged), rejected_features(self.source))
        notes[SUMMARY] = FilterSummary.of(judged, self.row_filter.filter.ranked_by).to_dict()


def split_files(outputs: Outputs, spec: DatasetSpec) -> SplitFiles:
    """Return the files of the rows of one split that pass."""
    return SplitFiles(outputs, WORK_FOLDER, str(spec.config), str(spec.split))


def rejected_files(outputs: Outputs, spec: DatasetSpec) -> SplitFiles:
    """Return the files of the other rows, in a folder that is a dataset of its own."""
    return SplitFiles(outputs, WORK_FOLDER, f"{REJECTED}/{spec.config}", str(spec.split))


def publish_rejected(outputs: Outputs, specs: Collection[DatasetSpec]) -> None:
    """Make a dataset of what was dropped; shards that are in it already keep their names.

    Args:
        outputs: the run's, whose shards are all sealed.
        specs: the splits.
    """
    for spec in specs:
        count = len(split_files(outputs, spec).all_sealed())
        files = rejected_files(outputs, spec)
        targets = {files.sealed(index): files.published(index, count) for index in range(count)}
        outputs.move({path: target for path, target in targets.items() if path.exists()})
    folder = outputs.folder / REJECTED
    body = f"What `{outputs.folder.name}` left out, with the reason."
    splits = hub_layout.splits_by_config(specs)
    hub_layout.write_card(folder, splits, "Rejected pseudo-labels", body, outputs)


def filter_rows(
    writer: ShardWriter, rows: sources.Rows, rows_per_shard: int, num_workers: int
) -> Iterator[Account]:
    """Yield the account of one shard after the other; streams are filtered by one process."""
    # What imports have made stays: to look through it for garbage, over and over, takes a third of
    # the time that rows are judged in.
    gc.freeze()
    try:
        if isinstance(rows, IterableDataset):
            arrow_schema = writer.source.arrow_schema
            for index, chunk in sources.iterate_chunks(rows, rows_per_shard):
                yield writer.write(index, Dataset(pa.Table.from_pylist(chunk, schema=arrow_schema)))
        elif num_workers == 1:
            for index, chunk in sources.iterate_chunks(rows, rows_per_shard):
                yield writer.write(index, chunk)
        else:
            yield from _by_workers(writer, rows, rows_per_shard, num_workers)
    finally:
        gc.unfreeze()


def _by_workers(
    writer: ShardWriter, rows: MapStyleRows, rows_per_shard: int, num_workers: int
) -> Iterator[Account]:
    starts = range(0, len(rows), rows_per_shard)
    # Forking a process that runs threads (torch's, the tokenizer's) can hang; a fresh one cannot.
    with ProcessPoolExecutor(
        min(num_workers, len(starts)),
        mp_context=get_context("spawn"),
        initializer=_prepare_worker,
        initargs=(writer, rows, rows_per_shard),
    ) as executor:
        yield from executor.map(_write_shard, range(len(starts)))


# What a worker process holds: sent once, and not with every shard.
_work: tuple[ShardWriter, MapStyleRows, int]


def _prepare_worker(writer: ShardWriter, rows: MapStyleRows, rows_per_shard: int) -> None:
    global _work
    end_with_parent()
    gc.freeze()
    _work = writer, rows, rows_per_shard


def _write_shard(index: int) -> Account:
    writer, rows, size = _work
    start = index * size
    return writer.write(index, rows.select(range(start, min(start + size, len(rows)))))
