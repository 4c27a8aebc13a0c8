"""Shards of labels that labelling seals chunk by chunk, and the columns made from them.

A shard holds the labels of consecutive rows of the source, without their audio. Rows and labels are
joined by id.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from distillery.data import column_types, schema
from distillery.data.collators import PROBLEM
from distillery.data.hub_layout import SplitFiles, embed_audio, write_parquet
from distillery.storage.ledger import Ledger
from distillery.storage.shards import read_seal, write_sealed
from distillery.text import labels
from distillery.text.compression import compression_ratio
from distillery.text.normalizers import raw_text
from distillery.text.tokens import SpecialTokens, Tokenizer

FEATURES = Features(
    {
        schema.ID: Value("string"),
        schema.SPEAKER_ID: Value("string"),
        schema.RECORDING_ID: Value("string"),
        schema.TEXT: Value("string"),
        schema.DURATION: Value("float32"),
        schema.WHISPER_TRANSCRIPT: column_types.TOKEN_IDS,
        schema.AVG_LOGPROB: Value("float32"),
        schema.TRUNCATED: Value("bool"),
        PROBLEM: Value("string"),
    }
)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a shard."""
    return list(pq.read_table(path).to_pylist())


def usable(path: Path, chunk: Any) -> dict[str, dict[str, Any]]:
    """Return the labels of a shard by id, but for clips that could not be used.

    Args:
        path: of the shard; if it is not there, or damaged, there are no labels.
        chunk: the rows of the source that it is for.

    Raises:
        ValueError: the source has other rows now.
    """
    if read_seal(path) is None:
        return {}
    rows = {row[schema.ID]: row for row in read(path)}
    _refuse_other_rows(chunk, rows, path)
    return {row_id: row for row_id, row in rows.items() if not row[PROBLEM]}


def seal(files: SplitFiles, index: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Seal the labels of a chunk of rows, with their account.

    What was made of earlier labels is deleted before: the file of these rows, and the next one,
    whose first label has the last one of this shard before it.
    """
    files.withdraw(index, index + 1)
    num_bad = sum(bool(row[PROBLEM]) for row in rows)
    ledger = Ledger(num_in=len(rows), num_out=len(rows) - num_bad)
    if num_bad:
        ledger.quarantined[schema.AUDIO] = num_bad
    write = partial(write_parquet, rows=rows, features=FEATURES)
    write_sealed(files.outputs, files.sealed(index), ledger, write)


def without(chunk: Any, there: Collection[str]) -> Any:
    """Return the rows of the source whose ids are not there yet, in order."""
    if not there:
        return chunk
    left = [place for place, row_id in enumerate(ids(chunk)) if row_id not in there]
    if isinstance(chunk, Dataset):
        return chunk.select(left)
    return [chunk[place] for place in left]


def in_order(chunk: Any, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return labels in the order of the rows of the source."""
    by_id = {row[schema.ID]: row for row in rows}
    return [by_id[row_id] for row_id in ids(chunk)]


def ids(chunk: Any) -> list[str]:
    """Return the ids of some rows."""
    if isinstance(chunk, Dataset):
        return list(chunk.select_columns(schema.ID)[schema.ID])
    return [row[schema.ID] for row in chunk]


def _refuse_other_rows(chunk: Any, labelled: Collection[str], path: Path) -> None:
    """Raise ValueError if the source no longer has the very rows that a shard has labels of."""
    if ids(chunk) != list(labelled):
        raise ValueError(
            f"{path}: the input has other rows now than those that were labelled: "
            "--retry_quarantined wants the same rows, of which some clips were mended; start over "
            "with --overwrite_output_dir"
        )


def dataset_features(source: Mapping[str, Any] | None, decode_token_ids: bool) -> Features:
    """Return the columns of the dataset: the contract's, and whatever else the source has."""
    ours = {**column_types.source_features(), **column_types.label_features(decode_token_ids)}
    more = {name: kind for name, kind in (source or {}).items() if name not in ours}
    return Features({**ours, **more})


def contract_rows(
    shards: Sequence[Path],
    index: int,
    tokens: SpecialTokens,
    tokenizer: Tokenizer,
    decode_token_ids: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the columns that labelling adds, and the id, for the usable rows of one shard.

    Args:
        shards: all of the split, in the order of the rows.
        index: of the shard; the window before its first row is in the shard before.
        tokens, tokenizer: of the teacher.
        decode_token_ids: store text, with Whisper's timestamps, instead of token ids.
    """
    before = read(shards[index - 1])[-1:] if index else []
    rows = before + read(shards[index])
    windows = [
        (row[schema.RECORDING_ID], row[schema.SPEAKER_ID], _text_ids(row, tokens)) for row in rows
    ]
    contexts = labels.previous_windows(iter(windows))
    labelled = zip(rows, windows, contexts, strict=True)
    for row, (_, _, ids), context in list(labelled)[len(before) :]:
        if ids is None:
            continue
        text = tokenizer.decode(ids, decode_with_timestamps=True)
        yield {
            **row,
            schema.WHISPER_TRANSCRIPT: text if decode_token_ids else row[schema.WHISPER_TRANSCRIPT],
            schema.CONDITION_ON_PREV: context,
            schema.COMPRESSION_RATIO: compression_ratio(raw_text(text)),
        }


def _text_ids(row: Mapping[str, Any], tokens: SpecialTokens) -> list[int] | None:
    """Return what the teacher wrote for a row; None where the clip could not be used."""
    return None if row[PROBLEM] else labels.text_ids(row[schema.WHISPER_TRANSCRIPT], tokens)


def joined(
    chunk: Iterable[Mapping[str, Any]], added: Iterable[Mapping[str, Any]], path: Path
) -> Iterator[dict[str, Any]]:
    """Join rows and labels by id; rows without labels are left out.

    Args:
        chunk: rows of the source.
        added: what `contract_rows` yields for them.
        path: of the file that the rows are for.

    Raises:
        ValueError: a label does not find its row.
    """
    unmatched = {row[schema.ID]: row for row in added}
    for row in chunk:
        label = unmatched.pop(row[schema.ID], None)
        if label is not None:
            yield {**row, **label, schema.AUDIO: embed_audio(row)}
    if unmatched:
        first = next(iter(unmatched))
        raise ValueError(f"{path}: the input has no longer a row for label {first!r}")
