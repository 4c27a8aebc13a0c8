"""Types of the columns that every stage agrees on."""

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import pyarrow as pa
from datasets import Audio, Dataset, Features, IterableDataset, Value
from datasets.features import List

from distillery.data.parquet_rows import ParquetRows
from distillery.data.schema import (
    AUDIO,
    AVG_LOGPROB,
    COMPRESSION_RATIO,
    CONDITION_ON_PREV,
    DURATION,
    ID,
    LANGUAGE,
    RECORDING_ID,
    SEGMENT_DURATIONS,
    SEGMENT_IDS,
    SEGMENT_OFFSETS,
    SEGMENT_TEXTS,
    SPEAKER_ID,
    TASK,
    TEMPERATURE,
    TEXT,
    TRUNCATED,
    WHISPER_TRANSCRIPT,
)

MapStyleRows: TypeAlias = Dataset | ParquetRows  # by number, in any order
Rows: TypeAlias = MapStyleRows | IterableDataset

AUDIO_TYPE = Audio(decode=False)  # a struct of bytes and path
TOKEN_IDS = List(Value("int32"))
STORED_FEATURES = List(Value("binary"))  # lists of numbers are read 50 times more slowly

SOURCE_TYPES = {
    ID: Value("string"),
    AUDIO: AUDIO_TYPE,
    TEXT: Value("string"),
    SPEAKER_ID: Value("string"),
    RECORDING_ID: Value("string"),
    DURATION: Value("float32"),
}

# What a row has beside those if it is a window of several rows.
SEGMENT_TYPES = {
    SEGMENT_IDS: List(Value("string")),
    SEGMENT_OFFSETS: List(Value("float32")),
    SEGMENT_DURATIONS: List(Value("float32")),
    SEGMENT_TEXTS: List(Value("string")),
}


def read_columns(rows: MapStyleRows, *names: str) -> pa.Table:
    """Return columns of all rows, in memory; nothing else is read."""
    some = rows.select_columns(list(names))
    return some.table() if isinstance(some, ParquetRows) else some.with_format("arrow")[:]


def tables(rows: MapStyleRows, most_bytes: int, most_rows: int) -> Iterator[pa.Table]:
    """Yield rows as tables of bounded size.

    Args:
        rows: with all their columns.
        most_bytes: of a table, about, if it has more than one row.
        most_rows: of a table.
    """
    if isinstance(rows, ParquetRows):
        for table in rows.tables():
            size = min(most_rows, max(1, most_bytes * len(table) // max(1, table.nbytes)))
            yield from (table.slice(start, size) for start in range(0, len(table), size))
        return
    size = min(most_rows, max(1, most_bytes * len(rows.data) // max(1, rows.data.nbytes)))
    in_arrow = rows.with_format("arrow")
    yield from (in_arrow[start : start + size] for start in range(0, len(rows), size))


def source_features() -> Features:
    """Return the types of the columns that every loaded dataset has."""
    return Features(SOURCE_TYPES)


def label_features(
    decode_token_ids: bool, prompts_vary: bool = False, temperatures_vary: bool = False
) -> Features:
    """Return the types of the columns that labelling adds.

    Args:
        decode_token_ids: whether `whisper_transcript` holds text instead of token ids.
        prompts_vary: whether language and task may differ from clip to clip.
        temperatures_vary: whether some transcripts may have been drawn.
    """
    temperatures = {TEMPERATURE: Value("float32")} if temperatures_vary else {}
    prompts = {LANGUAGE: Value("string"), TASK: Value("string")} if prompts_vary else {}
    return Features(
        {
            **prompts,
            WHISPER_TRANSCRIPT: Value("string") if decode_token_ids else TOKEN_IDS,
            CONDITION_ON_PREV: TOKEN_IDS,
            AVG_LOGPROB: Value("float32"),
            COMPRESSION_RATIO: Value("float32"),
            TRUNCATED: Value("bool"),
            **temperatures,
        }
    )


def seconds(value: Any) -> float | None:
    """Return a time that a row gives as a number or as text; None where it gives none.

    Raises:
        ValueError: it is no finite number, or below 0.
    """
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number * 1000 < math.inf:  # false for NaN
        raise ValueError(f"{value!r:.80}, not a number of seconds")
    return number
