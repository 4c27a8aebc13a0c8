"""Shards of labels that labelling seals chunk by chunk, and the columns made from them.

A shard holds the labels of consecutive rows of the source, without their audio. Rows and labels are
joined by id.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, Value

from distillery.data import column_types, schema
from distillery.data.clip_states import changed_clips, clip_state
from distillery.data.collators import CLIP_STATE, PROBLEM
from distillery.data.hub_layout import embed_audio
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
        CLIP_STATE: Value("string"),
    }
)


class ChangedClipError(ValueError):
    """A clip's audio is no longer what was labelled."""


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a shard."""
    return list(pq.read_table(path).to_pylist())


def stale_clips(path: Path, chunk: Any) -> list[str]:
    """Return the ids of the clips of a shard whose audio has changed since they were labelled.

    Args:
        path: of the shard.
        chunk: its rows, as `changed_clips` takes them.
    """
    states = pq.read_table(path, columns=[schema.ID, CLIP_STATE]).to_pylist()
    return changed_clips(chunk, {row[schema.ID]: row[CLIP_STATE] for row in states})


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
        ChangedClipError: a clip is no longer what was labelled.
        ValueError: a label does not find its row, or there are two for it.
    """
    labels_of_rows = list(added)
    unmatched = {row[schema.ID]: row for row in labels_of_rows}
    if len(unmatched) < len(labels_of_rows):
        raise ValueError(f"{path}: two rows of the input have one id")
    for row in chunk:
        label = unmatched.pop(row[schema.ID], None)
        if label is not None:
            if clip_state(row[schema.AUDIO]) != label[CLIP_STATE]:
                raise ChangedClipError(
                    f"the audio of clip {row[schema.ID]!r} is no longer what was labelled: give "
                    "the command again, and what has changed is labelled anew"
                )
            yield {**row, **label, schema.AUDIO: embed_audio(row)}
    if unmatched:
        first = next(iter(unmatched))
        raise ValueError(f"{path}: the input has no longer a row for label {first!r}")
