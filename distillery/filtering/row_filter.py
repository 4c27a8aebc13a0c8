"""Filtering of rows: judge their text and metadata, label those that pass, and copy them.

While rows are judged, audio is not read. Rows that pass are copied as Arrow tables, so that no
clip becomes a Python object; a few at a time, so that memory is bounded whatever they hold.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from numpy.typing import NDArray

from distillery.audio.decoding import AudioError, decode_audio
from distillery.audio.log_mel import LogMel
from distillery.data import column_types, schema
from distillery.data.column_types import MapStyleRows, read_columns, tables
from distillery.data.hub_layout import embedded_audio
from distillery.filtering.filters import FilterReason, TranscriptFilter, Verdict
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable
from distillery.text.label_columns import (
    ID_LISTS,
    IdLists,
    Places,
    labels_of,
    text_ids,
    without_timestamps,
)
from distillery.text.labels import LabelRule
from distillery.text.token_bytes import TokenBytes

logger = logging.getLogger(__name__)

# Of audio or of features that are in memory at a time, about: 50 clips of 30 s as FLAC.
TABLE_BYTES = 32 << 20

JUDGED_BY = (
    schema.ID,
    schema.TEXT,
    schema.DURATION,
    schema.WHISPER_TRANSCRIPT,
    schema.CONDITION_ON_PREV,
    schema.AVG_LOGPROB,
    schema.COMPRESSION_RATIO,
    schema.TRUNCATED,
)
IDS = (schema.WHISPER_TRANSCRIPT, schema.CONDITION_ON_PREV)
NO_TRANSCRIPT = Verdict(FilterReason.NO_TRANSCRIPT)
VERDICT_TYPES = {
    schema.FILTER_REASON: Value("string"),
    schema.FILTER_WER: Value("float32"),
    schema.FILTER_CER: Value("float32"),
}


class JudgedRow(NamedTuple):
    """A row's text and metadata, the labels that it gets, and the verdict."""

    row_id: str
    reference: str | None
    transcript: str
    duration_s: float | None
    labels: Sequence[int] | NDArray[np.int32]
    verdict: Verdict


@dataclass(frozen=True)
class RowFilter:
    """What is done to each row; small enough to be sent to other processes.

    Rows without audio, whose source has it, pass as they are.

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
        columns = _stored(source or column_types.source_features())
        if self.log_mel is not None:
            columns.pop(schema.AUDIO, None)
            columns[schema.INPUT_FEATURES] = column_types.STORED_FEATURES
        return Features({**columns, schema.LABELS: column_types.TOKEN_IDS})

    def judge(self, chunk: MapStyleRows) -> list[JudgedRow]:
        """Label and judge rows by their text and metadata alone."""
        names = [name for name in JUDGED_BY if name in chunk.column_names]
        table = read_columns(chunk, *names)
        labels, num_text = self._labels(table)
        words = without_timestamps(text_ids(labels, self.rule.tokens), self.rule.tokens)
        texts = self._token_bytes.texts(words)
        rows = table.drop_columns([name for name in IDS if name in names]).to_pylist()
        normalized = self._normalized(rows, texts)
        has_transcript = table[schema.WHISPER_TRANSCRIPT].is_valid().to_pylist()
        return [
            JudgedRow(
                row[schema.ID],
                row.get(schema.TEXT),
                text,
                row.get(schema.DURATION),
                row_labels,
                self.filter.verdict(row, text, num, normalized) if is_there else NO_TRANSCRIPT,
            )
            for row, row_labels, num, text, is_there in zip(
                rows, labels.split(), num_text.tolist(), texts, has_transcript, strict=True
            )
        ]

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes.of(self.rule.tokenizer)

    def _labels(self, table: pa.Table) -> tuple[IdLists, Places]:
        """Return the labels of each row, and their lengths without prompts."""
        nothing = pa.nulls(len(table))
        columns = {name: table[name] for name in table.column_names}
        transcripts = columns[schema.WHISPER_TRANSCRIPT]
        if pa.types.is_string(transcripts.type) or pa.types.is_large_string(transcripts.type):
            texts = transcripts.to_pylist()
            bodies = [None if text is None else self.rule.body(text) for text in texts]
            transcripts = pa.array(bodies, ID_LISTS)
        truncated = columns.get(schema.TRUNCATED, nothing).cast(pa.bool_()).fill_null(False)
        return labels_of(
            self.rule,
            columns[schema.ID].to_pylist(),
            IdLists.of(transcripts),
            IdLists.of(columns.get(schema.CONDITION_ON_PREV, nothing)),
            truncated.to_numpy(zero_copy_only=False),
        )

    def _normalized(
        self, rows: Sequence[Mapping[str, Any]], transcripts: Sequence[str]
    ) -> Callable[[str], str] | None:
        """Return the normaliser of these texts, each of which was normalised once."""
        if not (self.filter.compares and self.filter.normalizer.joins):
            return None
        references = (row.get(schema.TEXT) for row in rows)
        texts = list(dict.fromkeys([*filter(None, references), "", *transcripts]))
        normalized = self.filter.normalizer.many(texts)
        return dict(zip(texts, normalized, strict=True)).__getitem__

    def passing(
        self, chunk: MapStyleRows, judged: Sequence[JudgedRow], ledger: Ledger
    ) -> Iterator[pa.Table]:
        """Yield the rows that pass, with their labels and their audio or features.

        Args:
            chunk: the rows that were judged.
            judged: what `judge` returned for them.
            ledger: where rows are counted whose audio cannot be decoded.
        """
        kept = [place for place, row in enumerate(judged) if row.verdict.reason is None]
        for table, places in _tables(chunk, kept, self._most_rows()):
            labels = pa.array([judged[place].labels for place in places], pa.list_(pa.int32()))
            table = _with_column(table, schema.LABELS, labels)
            yield _embedded(table) if self.log_mel is None else self._transformed(table, ledger)

    def _most_rows(self) -> int:
        """Return how many rows fit into `TABLE_BYTES` if features of whole windows are made."""
        if self.log_mel is None:
            return sys.maxsize
        return max(1, int(TABLE_BYTES / (self.log_mel.bytes_per_s * self.log_mel.window_s)))

    def _transformed(self, table: pa.Table, ledger: Ledger) -> pa.Table:
        """Return rows with log-mel features in the place of audio, less those without sound."""
        features = [
            self._stored_features(row_id, audio, ledger)
            for row_id, audio in zip(
                table[schema.ID].to_pylist(), table[schema.AUDIO].to_pylist(), strict=True
            )
        ]
        column = pa.array(features, pa.list_(pa.binary()))
        return _with_column(table.drop_columns(schema.AUDIO), schema.INPUT_FEATURES, column).filter(
            column.is_valid()
        )

    def _stored_features(self, row_id: str, audio: Any, ledger: Ledger) -> list[bytes] | None:
        """Return a clip's features as `schema.INPUT_FEATURES` holds them; None without sound."""
        assert self.log_mel is not None
        try:
            wave = decode_audio(audio, self.log_mel.sampling_rate, self.log_mel.window_s)
        except AudioError as error:
            logger.warning("clip %s %s", printable(row_id), printable(error))
            ledger.quarantined[schema.AUDIO] += 1
            return None
        frames = self.log_mel.real_frames(wave).numpy().astype(np.float16)
        return [mel_bin.tobytes() for mel_bin in frames]


def rejected_features(source: Mapping[str, Any]) -> Features:
    """Return the columns of rejected rows: those of the input, and the verdict's."""
    return Features({**_stored(source), **VERDICT_TYPES})


def _stored(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of the input as they are written: audio, if any, as its bytes."""
    audio = {schema.AUDIO: column_types.AUDIO_TYPE} if schema.AUDIO in source else {}
    return {**source, **audio}


def rejected(chunk: MapStyleRows, judged: Sequence[JudgedRow]) -> Iterator[pa.Table]:
    """Yield the rows that were dropped, with the reason and the error rates."""
    dropped = [place for place, row in enumerate(judged) if row.verdict.reason is not None]
    for table, places in _tables(chunk, dropped):
        verdicts = [judged[place].verdict for place in places]
        for name, values in zip(VERDICT_TYPES, zip(*verdicts, strict=True), strict=True):
            kind = VERDICT_TYPES[name].pa_type
            table = _with_column(table, name, pa.array(values, kind))
        yield _embedded(table)


def _tables(
    chunk: MapStyleRows, places: Sequence[int], most_rows: int = sys.maxsize
) -> Iterator[tuple[pa.Table, list[int]]]:
    """Yield some rows of a chunk as tables of bounded size, each with the places of its rows."""
    start, wanted = 0, np.asarray(places, np.int64)
    for table in tables(chunk, TABLE_BYTES, most_rows):
        first, stop = np.searchsorted(wanted, [start, start + len(table)])
        if first < stop:
            # One after the other, rows would be tables of their own, which are slow to write.
            yield table.take(pa.array(wanted[first:stop] - start)), wanted[first:stop].tolist()
        start += len(table)


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        table = table.drop_columns(name)
    return table.append_column(name, values)


def _embedded(table: pa.Table) -> pa.Table:
    if schema.AUDIO not in table.column_names:
        return table
    return _with_column(table, schema.AUDIO, embedded_audio(table[schema.AUDIO]))
