"""Which rows a model is trained and evaluated on, with which labels, and in which batches."""

import logging
import signal
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader

from distillery.data import schema
from distillery.data.collators import Batch, SpeechCollator
from distillery.data.column_types import Rows
from distillery.data.packing import Layout
from distillery.data.regions import Regions
from distillery.data.specs import REFERENCES_FIRST, DatasetSpec
from distillery.filtering.filters import TranscriptFilter
from distillery.ingest.label_folders import LabelledRows
from distillery.storage.ledger import Ledger
from distillery.text.labels import LabelRule
from distillery.text.tokens import TRANSCRIBE
from distillery.training.examples import TrainingRows, UsableRows, usable_rows
from distillery.training.order import BatchPlan, Order
from distillery.training.packed_examples import AnyRows, PackedRows, Packing, regions_of
from distillery.training.prompts import prompts_of, rule_of_all
from distillery.training.settings import LabelSettings, Length
from distillery.training.shard_cycles import Stream
from distillery.training.streams import StreamedRows, StreamExamples
from distillery.whisper.checkpoint import Processor

logger = logging.getLogger(__name__)


def label_rule(student: Processor, settings: LabelSettings) -> LabelRule:
    """Return how transcripts become labels for a student; language and task are a dataset's."""
    return LabelRule(
        tokens=student.tokens,
        tokenizer=student.tokenizer,
        language=None,
        task=TRANSCRIBE,
        max_positions=student.max_label_length,
        timestamp_probability=settings.timestamp_probability,
        condition_on_prev_probability=settings.condition_on_prev_probability,
        seed=settings.seed,
        clean=settings.cleaning if settings.cleaning.changes_texts else None,
        no_speech_probability=settings.no_speech_probability,
    )


@dataclass(frozen=True)
class BatchLoader:
    """How rows are read and made into batches.

    Attributes:
        collate: makes a batch of rows.
        num_workers: processes that do so beside the training; 0 does it between two updates. What
            they decode of a stream is read between two updates.
        pin_memory: copy batches where a GPU fetches them faster.
    """

    collate: SpeechCollator
    num_workers: int
    pin_memory: bool

    def batches(
        self, rows: TrainingRows | StreamExamples, keys: Iterable[Sequence[Any]]
    ) -> Iterable[Batch]:
        """Return a batch for each list of keys of rows."""
        return DataLoader(
            rows,
            batch_sampler=keys,  # type: ignore[arg-type]  # any iterable of lists will do
            collate_fn=self.collate,
            num_workers=self.num_workers,
            worker_init_fn=_outlive_first_signal,
            pin_memory=self.pin_memory,
        )


def _outlive_first_signal(_worker: int) -> None:
    """Let a worker go on when all processes of a job are told to stop: its owner must save first.

    The owner ends it when it is done.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    # A terminal sends Ctrl-C to workers too; without them the owner could not fetch its next batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class TrainingData:
    """What a model is trained on, and in which order.

    Attributes:
        rows: with their labels.
        order: of the rows; None for a stream, which has its own.
        ledger: the account of the rows that are left out; None for a stream, which has its own.
        plan: how a global batch is cut.
        num_rows: rows in all, those of a later epoch counted again.
        num_updates: updates that these are.
        loader: makes batches of them.
    """

    rows: TrainingRows | StreamedRows
    order: Order | None
    ledger: Ledger | None
    plan: BatchPlan
    num_rows: int
    num_updates: int
    loader: BatchLoader

    def __str__(self) -> str:
        plan = self.plan
        return (
            f"{self.num_updates} updates of {plan.global_size} rows ({plan.per_device} per process "
            f"x {plan.accumulation} accumulated x {plan.num_processes} processes), "
            f"{self.num_rows} rows in all"
        )

    def micro_batches(self, first_update: int, process: int) -> Generator[Batch, None, None]:
        """Yield a process's micro-batches from an update on; to close it ends its workers."""
        if isinstance(self.rows, StreamedRows):
            windows = self.rows.batches(self.plan, first_update, process)
            yield from self.loader.batches(self.rows.examples, windows)
        else:
            assert self.order is not None
            updates = range(first_update, self.num_updates)
            keys = self.plan.micro_batches(self.order, updates, self.num_rows, process)
            yield from self.loader.batches(self.rows, keys)

    @property
    def account(self) -> Ledger | None:
        """The account of all rows; of a stream, of those that were read in the first pass."""
        return self.rows.account if isinstance(self.rows, StreamedRows) else self.ledger

    def num_clips(self, clips_per_row: float) -> int:
        """Return how many different clips there are among all rows that are trained on.

        Args:
            clips_per_row: more than one where rows are windows of several clips.
        """
        if isinstance(self.rows, StreamedRows):
            num_clips = round(self.num_rows * clips_per_row)
            return min(num_clips, self.rows.rows_per_pass or num_clips)
        assert self.order is not None
        return round(self.order.num_distinct(self.num_rows) * clips_per_row)


def training_data(
    specs: Sequence[DatasetSpec],
    student: Processor,
    settings: LabelSettings,
    length: Length,
    plan: BatchPlan,
    loader: BatchLoader,
) -> TrainingData:
    """Load the datasets to train on, and leave out what cannot be learnt from.

    Args:
        specs: all streamed or none; `samples` weighs them, where all have it.
        student: whose labels are made.
        settings: of rows and labels.
        length: of the run.
        plan: how a global batch is cut.
        loader: makes batches of the rows.

    Raises:
        ValueError: a dataset has nothing to learn from, or a stream is to be read in epochs.
    """
    rule = label_rule(student, settings)
    max_ids = min(settings.max_label_length, rule.max_positions)
    limits = TranscriptFilter(
        normalizer=student.normalizer(rule.language, rule.task),
        normalizer_of=lru_cache(student.normalizer),
        wer_threshold=settings.wer_threshold,
        min_duration_s=settings.min_duration_s,
        max_duration_s=settings.max_duration_s,
        max_label_length=max_ids,
    )
    log_mel = student.log_mel
    layout = Layout(log_mel.sampling_rate, log_mel.window_samples)
    samples = [spec.samples for spec in specs if spec.samples is not None]
    weights = tuple(map(float, samples)) if len(samples) == len(specs) else None
    if specs[0].streaming:
        streams = [Stream.of(spec, number) for number, spec in enumerate(specs)]
        rule = _rule_of(specs, [stream.rows for stream in streams], rule)
        is_packed = [_is_packable(x.rows, spec) for x, spec in zip(streams, specs, strict=True)]
        packing = Packing(layout, rule, max_ids) if settings.pack and any(is_packed) else None
        streamed = StreamedRows(streams, weights, rule, limits, packing)
        return TrainingData(streamed, None, None, plan, *length.count(plan, None), loader)
    loaded = [usable_rows(spec, rule, limits, log_mel.sampling_rate) for spec in specs]
    joint_rule = _rule_of(specs, [usable.rows for usable in loaded], rule)
    if settings.pack:
        packing = Packing(layout, rule, max_ids)
        loaded = [
            _in_windows(usable, spec, packing) for usable, spec in zip(loaded, specs, strict=True)
        ]
    order = _order(loaded, weights, rule.seed)
    parts = [
        _kept(usable.rows, spec, regions, order.pool_bytes)
        for usable, spec, regions in zip(loaded, specs, order.regions, strict=True)
    ]
    ledger = sum((usable.ledger for usable in loaded), Ledger())
    counts = length.count(plan, order.rows_per_epoch)
    return TrainingData(TrainingRows(parts, joint_rule), order, ledger, plan, *counts, loader)


def _rule_of(specs: Sequence[DatasetSpec], datasets: Sequence[Any], rule: LabelRule) -> LabelRule:
    """Return the rule for the rows of several datasets, which are not packed yet."""
    prompts = [
        prompts_of(spec, rule, rows.column_names)
        for spec, rows in zip(specs, datasets, strict=True)
    ]
    return rule_of_all([each.given_to(rule) for each in prompts])


def _in_windows(usable: UsableRows, spec: DatasetSpec, packing: Packing) -> UsableRows:
    """Lay the rows of a dataset into windows; return them as they are if they cannot be packed."""
    if not _is_packable(usable.rows, spec):
        return usable
    assert not isinstance(usable.rows, PackedRows)
    prompts = prompts_of(spec, packing.rule, usable.rows.column_names)
    packing = replace(packing, rule=prompts.given_to(packing.rule))
    packed = PackedRows.of(usable.rows, packing, prompts.columns.names)
    logger.info("%s: %s", spec, packed.fill)
    return usable._replace(rows=packed, lengths=packed.sums(usable.lengths))


def _order(loaded: Sequence[UsableRows], weights: tuple[float, ...] | None, seed: int) -> Order:
    """Return the order of datasets, one behind the other."""
    return Order(
        tuple(len(usable.rows) for usable in loaded),
        weights,
        seed,
        np.concatenate([usable.lengths for usable in loaded]),
        tuple(regions_of(usable.rows) for usable in loaded),
    )


def _kept(rows: AnyRows, spec: DatasetSpec, regions: Regions | None, pool_bytes: int) -> AnyRows:
    """Return rows that keep in memory what they read, if they are read by regions."""
    if regions is None or isinstance(rows, Dataset):
        return rows
    logger.info(
        "%s has large row groups: rows are shuffled within %d MiB of %d MiB at a time",
        *(spec, pool_bytes >> 20, int(regions.num_bytes.sum()) >> 20),
    )
    return rows.keeping(2 * pool_bytes)


def _is_packable(rows: Rows | LabelledRows, spec: DatasetSpec) -> bool:
    """Tell whether rows are clips of known length, and neither windows nor features."""
    columns = set(rows.column_names)
    if schema.SEGMENT_IDS in columns or schema.INPUT_FEATURES in columns:
        return False
    if schema.DURATION not in columns:
        logger.warning("%s is not packed: it has no column `duration`", spec)
        return False
    return True


@dataclass(frozen=True)
class EvalSet:
    """A dataset to evaluate on while training.

    Attributes:
        name: of the dataset.
        rows: with their labels.
        weight: among all sets, where one figure tells which model is the best.
    """

    name: str
    rows: TrainingRows
    weight: float = 1.0

    def keys(
        self, batch_size: int, process: int, num_processes: int
    ) -> list[list[tuple[int, int]]]:
        """Return, for one process, the (row, epoch) of each of its batches."""
        num_rows = sum(self.rows.sizes)
        starts = range(0, num_rows, batch_size)[process::num_processes]
        return [
            [(row, 0) for row in range(start, min(start + batch_size, num_rows))]
            for start in starts
        ]


def eval_sets(
    specs: Sequence[DatasetSpec], student: Processor, settings: LabelSettings
) -> list[EvalSet]:
    """Load the datasets to evaluate on, whole: the same rows are needed again and again.

    As in distil-whisper, a model is compared with references, where a dataset has any.

    Raises:
        ValueError: there is none, or nothing in one of them.
    """
    if not specs:
        raise ValueError("--do_eval needs --eval_dataset_name")
    rule = label_rule(student, settings.for_evaluation())
    limits = TranscriptFilter(
        normalizer=student.normalizer(rule.language, rule.task),
        max_label_length=rule.max_positions,
        drop_truncated=False,
    )
    rate = student.log_mel.sampling_rate
    whole = [replace(spec, streaming=False, targets=REFERENCES_FIRST) for spec in specs]
    loaded = [usable_rows(spec, rule, limits, rate).rows for spec in whole]
    return [
        EvalSet(
            name, TrainingRows([rows], _rule_of([spec], [rows], rule), number), spec.samples or 1.0
        )
        for number, (name, spec, rows) in enumerate(
            zip(_names_of(specs), specs, loaded, strict=True)
        )
    ]


def _names_of(specs: Sequence[DatasetSpec]) -> list[str]:
    """Return a name for each dataset, with its language and task where one comes several times.

    Raises:
        ValueError: one comes twice all the same.
    """
    times = Counter(map(str, specs))
    names = [
        str(spec) if times[str(spec)] == 1 else f"{spec} {spec.language} {spec.task or TRANSCRIBE}"
        for spec in specs
    ]
    for name, number in Counter(names).items():
        if number > 1:
            raise ValueError(f"--eval_dataset_name: {name} is there {number} times; name it once")
    return names
