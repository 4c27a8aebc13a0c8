"""Filtering of rows: judge them, build their labels, keep or transform their audio."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from distillery.audio.decoding import AudioError, decode_audio
from distillery.audio.log_mel import LogMel
from distillery.data import column_types, schema
from distillery.data.filters import TranscriptFilter
from distillery.data.hub_layout import embed_audio
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable
from distillery.text.labels import LabelRule, num_text_labels, plain_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowFilter:
    """What is done to each row; small enough to be sent to other processes.

    Attributes:
        rule: how a transcript becomes labels.
        filter: which rows pass.
        log_mel: how features are made of audio, where they are stored in its place.
    """

    rule: LabelRule
    filter: TranscriptFilter
    log_mel: LogMel | None

    def features(self, source: Mapping[str, Any] | None) -> Features:
        """Return the columns of the output: those of the input, labels, and features for audio."""
        columns = dict(source or column_types.source_features())
        if self.log_mel is None:
            columns[schema.AUDIO] = column_types.AUDIO_TYPE
        else:
            columns.pop(schema.AUDIO, None)
            columns[schema.INPUT_FEATURES] = List(List(Value("float16")))
        return Features({**columns, schema.LABELS: column_types.TOKEN_IDS})

    def passing_rows(self, chunk: Any, ledger: Ledger) -> Iterator[dict[str, Any]]:
        """Yield the rows that pass, with their labels; count the others by reason.

        Args:
            chunk: a map-style dataset, whose audio is read only for the rows that pass, or a list
                of rows.
            ledger: where the others are counted.
        """
        labels = self._passing_labels(chunk, ledger)
        passing = (
            chunk.select(list(labels))
            if isinstance(chunk, Dataset)
            else map(chunk.__getitem__, labels)
        )
        for row, row_labels in zip(passing, labels.values(), strict=True):
            try:
                signal = self._signal(row)
            except AudioError as error:
                logger.warning("clip %s %s", printable(row[schema.ID]), printable(error))
                ledger.quarantined[schema.AUDIO] += 1
                continue
            yield {**row, **signal, schema.LABELS: row_labels}

    def _passing_labels(self, chunk: Any, ledger: Ledger) -> dict[int, list[int]]:
        """Return the labels of the rows that pass, by their place in the chunk.

        Only text and metadata are read.
        """
        slim = chunk.select_columns(_light_columns(chunk)) if isinstance(chunk, Dataset) else chunk
        passing = {}
        for place, row in enumerate(slim):
            labels = self.rule(
                row[schema.ID],
                row[schema.WHISPER_TRANSCRIPT],
                row.get(schema.CONDITION_ON_PREV),
                truncated=bool(row.get(schema.TRUNCATED)),
            )
            tokens = self.rule.tokens
            transcript = plain_text(labels, tokens, self.rule.tokenizer)
            reason = self.filter.reason(row, transcript, num_text_labels(labels, tokens))
            if reason is None:
                passing[place] = labels
            else:
                ledger.dropped[reason] += 1
        return passing

    def _signal(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row's audio, or its features where those are stored."""
        if self.log_mel is None:
            return {schema.AUDIO: embed_audio(row)}
        wave = decode_audio(row[schema.AUDIO], self.log_mel.sampling_rate, self.log_mel.window_s)
        frames = self.log_mel.real_frames(wave).numpy().astype(np.float16)
        return {schema.INPUT_FEATURES: frames.tolist()}


def _light_columns(chunk: Dataset) -> list[str]:
    heavy = (schema.AUDIO, schema.INPUT_FEATURES)
    return [name for name in chunk.column_names if name not in heavy]
