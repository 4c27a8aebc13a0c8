"""Training examples: rows with labels, and the account of those that are left out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from distillery.data import hub_layout, schema
from distillery.data.collators import DATASET, NO_SPEECH, SOUND_SEED
from distillery.data.column_types import tables
from distillery.data.specs import DatasetSpec
from distillery.filtering.filters import FilterReason, TranscriptFilter
from distillery.ingest import label_folders, sources
from distillery.ingest.label_folders import LabelledRows
from distillery.storage.ledger import Ledger
from distillery.text.labels import LabelRule, draw_seed, has_timestamps, num_text_labels, plain_text
from distillery.training.label_lengths import LabelLengths
from distillery.training.packed_examples import AnyRows
from distillery.training.prompts import prompts_of

logger = logging.getLogger(__name__)

TABLE_BYTES, TABLE_ROWS = 32 << 20, 10_000  # of metadata in memory at once, while rows are judged
JUDGED_BY = (
    *(schema.ID, *schema.TARGET_COLUMNS, schema.DURATION, schema.TRUNCATED),
    *(schema.AVG_LOGPROB, schema.COMPRESSION_RATIO),
)


class TrainingRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of several datasets, one behind the other, with labels for the epoch that asks.

    Each knows by `DATASET` which one it is of.
    """

    def __init__(self, parts: Sequence[AnyRows], rule: LabelRule, first: int = 0) -> None:
        """Keep the datasets, numbered from `first` on; `parts` must not be empty."""
        self.parts = parts
        self.first = first
        self.rule = rule
        self.sizes = tuple(len(part) for part in parts)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return row `key[0]` with its labels in epoch `key[1]`."""
        index, epoch = key
        for number, (part, size) in enumerate(zip(self.parts, self.sizes, strict=True), self.first):
            if index < size:
                return example_of({**part[index], DATASET: number}, self.rule, epoch)
            index -= size
        raise IndexError(key)


def example_of(row: Mapping[str, Any], rule: LabelRule, epoch: int) -> dict[str, Any]:
    """Return a row with its labels in an epoch, and with what its sound is drawn from."""
    rule, row_id = rule.of(row), row[schema.ID]
    seed = draw_seed(rule.seed, epoch, row_id, "sound")
    labels = rule.without_speech(row_id, epoch)
    if labels is not None:
        changed = {schema.LABELS: labels, schema.TEXT: "", NO_SPEECH: True}
        return {**row, SOUND_SEED: seed, **changed}
    return {**row, SOUND_SEED: seed, schema.LABELS: labels_of(row, rule, epoch)}


def labels_of(row: Mapping[str, Any], rule: LabelRule, epoch: int) -> list[int]:
    """Return a row's labels: stored, or from the teacher's transcript, or from the reference."""
    stored = row.get(schema.LABELS)
    if stored is not None:
        return list(stored)
    return rule.of(row)(
        row[schema.ID],
        schema.target(row),
        row.get(schema.CONDITION_ON_PREV),
        truncated=bool(row.get(schema.TRUNCATED)),
        epoch=epoch,
    )


class UsableRows(NamedTuple):
    """Rows that can be learnt from.

    Attributes:
        rows: of a dataset.
        ledger: the account of all its rows.
        lengths: int16 (rows,), of their labels with all timestamps; of the prompts that labels may
            be drawn with, nothing is in it.
    """

    rows: AnyRows
    ledger: Ledger
    lengths: NDArray[np.int16]


def usable_rows(
    spec: DatasetSpec, rule: LabelRule, limits: TranscriptFilter, sampling_rate: int
) -> UsableRows:
    """Load a dataset and leave out rows that cannot be learnt from, with their number by reason.

    Only text and metadata are read. Rows of a source that have no labels are left out, too.

    Args:
        spec: as `label_folders.load` takes it.
        rule: how labels are made.
        limits: that rows must keep to.
        sampling_rate: of the model, for windows of several clips.

    Raises:
        ValueError: there is nothing to learn from in it, or every row is left out.
    """
    rows = label_folders.load(spec, sampling_rate)
    prompts = prompts_of(spec, rule, rows.column_names)
    prompts.check(rows)
    rule = prompts.given_to(rule)
    if rule.prompt_of is None:
        limits = limits.of(rule.language, rule.task)
    column = next((name for name in schema.TARGET_COLUMNS if name in rows.column_names), None)
    if column is None:
        sources.require_column(rows, spec, schema.TEXT, "--text_column_name")
    if column == schema.LABELS:
        limits = _tightened(limits, label_folders.labels_spec(spec))
    columns = dict.fromkeys([*JUDGED_BY, *prompts.columns.names])
    slim = rows.select_columns([name for name in columns if name in rows.column_names])
    ledger = Ledger(num_in=len(rows))
    if isinstance(rows, LabelledRows) and rows.num_unlabelled:
        ledger.num_in += rows.num_unlabelled
        ledger.dropped[FilterReason.UNLABELLED] = rows.num_unlabelled
    is_kept, all_lengths = [], []
    for table in tables(slim, TABLE_BYTES, TABLE_ROWS):
        lengths = LabelLengths.of(table, rule)
        reasons = _reasons(table, lengths, rule, limits)
        ledger.dropped.update(filter(None, reasons))
        is_kept.append(np.array([reason is None for reason in reasons]))
        all_lengths.append(lengths.whole)
    kept = np.flatnonzero(np.concatenate(is_kept))
    ledger.num_out = len(kept)
    logger.info("%s, learning from %r: %s", spec, column, ledger)
    if not len(kept):
        raise ValueError(f"dataset {spec}: no row is left to learn from: {ledger}")
    return UsableRows(rows.select(kept), ledger, np.concatenate(all_lengths)[kept])


def _tightened(limits: TranscriptFilter, spec: DatasetSpec) -> TranscriptFilter:
    """Leave out an error-rate limit that the dataset's own record says it was filtered by."""
    if limits.wer_threshold is None:
        return limits
    filtered = hub_layout.read_run_record(spec.name).get("wer_threshold")
    if filtered is None or limits.wer_threshold < filtered:
        return limits
    return replace(limits, wer_threshold=None)


def _reasons(
    table: pa.Table, lengths: LabelLengths, rule: LabelRule, limits: TranscriptFilter
) -> list[str | None]:
    """Return the `unusable_reason` of each row; ids are counted where no limit reads them."""
    if limits.reads_text or rule.clean is not None:
        return [unusable_reason(row, rule, limits) for row in table.to_pylist()]
    scalars = table.drop_columns(
        [name for name in schema.TARGET_COLUMNS if name in table.schema.names]
    )
    return [
        _reason_by_lengths(row, num_stored, num_text, rule, limits)
        for row, num_stored, num_text in zip(
            scalars.to_pylist(), lengths.stored.tolist(), lengths.text.tolist(), strict=True
        )
    ]


def _reason_by_lengths(
    row: Mapping[str, Any],
    num_stored: int,
    num_text: int,
    rule: LabelRule,
    limits: TranscriptFilter,
) -> str | None:
    if num_text < 0:
        return FilterReason.EMPTY_REFERENCE
    if num_stored < 0:
        return limits.reason(row, "", num_text)
    if num_stored - 1 > rule.max_positions:
        return FilterReason.TOO_LONG_LABELS
    return limits.reason({**row, schema.TRUNCATED: False}, "", num_text)


def unusable_reason(
    row: Mapping[str, Any], rule: LabelRule, limits: TranscriptFilter
) -> str | None:
    """Return why a row cannot be learnt from; None if it can.

    Raises:
        ValueError: its labels are built already, and its text is to be changed; or it names a
            language or a task that the model does not know.
    """
    rule = rule.of(row)
    limits, stored = limits.of(rule.language, rule.task), row.get(schema.LABELS)
    if stored is not None:
        if rule.clean is not None:
            raise ValueError(
                f"row {row[schema.ID]}: its labels are built already, so that --do_lower_case, "
                "--do_remove_punctuation and --chars_to_ignore come too late: leave them out"
            )
        return _reason_against_labels(stored, row, rule, limits)
    target = schema.target(row)
    if target is None:
        return FilterReason.EMPTY_REFERENCE
    body = rule.body(target)
    # At its longest, with all timestamps: whether they are kept is drawn for each epoch.
    timestamps = has_timestamps(body, rule.tokens)
    longest = rule.tokens.prefix(rule.language, rule.task, timestamps) + body
    return limits.reason(row, _text(longest, rule, limits), len(longest) + 1)


def _reason_against_labels(
    stored: Sequence[int], row: Mapping[str, Any], rule: LabelRule, limits: TranscriptFilter
) -> str | None:
    """Judge stored labels; filtering has already decided about truncated transcripts."""
    if len(stored) - 1 > rule.max_positions:  # prompts cannot be cut here
        return FilterReason.TOO_LONG_LABELS
    decided = {**row, schema.TRUNCATED: False}
    return limits.reason(decided, _text(stored, rule, limits), num_text_labels(stored, rule.tokens))


def _text(labels: Sequence[int], rule: LabelRule, limits: TranscriptFilter) -> str:
    """Return the text of labels if a limit reads it, else "": decoding is most of the work."""
    return plain_text(labels, rule.tokens, rule.tokenizer) if limits.reads_text else ""
