"""The rules of `labels` for many rows at once: lists of token ids, one behind the other.

Filtering takes a fifth of the time so. The tests hold each function equal to that for one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distillery.text.labels import LabelRule, drawn
from distillery.text.tokens import SpecialTokens

ID_LISTS = pa.list_(pa.int32())
Mask = NDArray[np.bool_]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class IdLists:
    """Lists of token ids.

    Attributes:
        ids: int32 (ids,): those of all lists.
        starts: int64 (lists + 1,): where each list begins, and where the last one ends.
    """

    ids: NDArray[np.int32]
    starts: Places

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray) -> "IdLists":
        """Return the lists of an Arrow column, of any integers; one that is null is empty."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        column = column.cast(ID_LISTS)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return cls(pc.list_flatten(column).to_numpy(zero_copy_only=False), _starts(lengths))

    @property
    def lengths(self) -> Places:
        """The number of ids in each list."""
        return np.diff(self.starts)

    @property
    def rows(self) -> Places:
        """The number of the list that each id is in."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)

    @property
    def places(self) -> Places:
        """The place of each id in its list."""
        return np.arange(len(self.ids)) - np.repeat(self.starts[:-1], self.lengths)

    def count(self, mask: Mask) -> Places:
        """Return how many ids of each list a mask over all ids takes."""
        return np.diff(_starts(mask)[self.starts])

    def take(self, mask: Mask) -> "IdLists":
        """Return the lists without the ids that a mask leaves out."""
        return IdLists(self.ids[mask], _starts(mask)[self.starts])

    def split(self) -> list[NDArray[np.int32]]:
        """Return the lists one by one; nothing is copied."""
        return [self.ids[start:end] for start, end in pairwise(self.starts.tolist())]


def _starts(lengths: NDArray[np.generic]) -> Places:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def text_ids(lists: IdLists, tokens: SpecialTokens) -> IdLists:
    """Return what `labels.text_ids` does for each list."""
    starts_so_far = _starts(lists.ids == tokens.start_of_transcript)
    before, after = starts_so_far[lists.starts[:-1]], starts_so_far[lists.starts[1:]]
    rows = lists.rows
    is_prompt = (starts_so_far[1:] == before[rows]) & (after > before)[rows]
    return lists.take(~is_prompt & ~np.isin(lists.ids, list(tokens.control_ids)))


def without_timestamps(lists: IdLists, tokens: SpecialTokens) -> IdLists:
    """Return what `labels.without_timestamps` does for each list."""
    return lists.take(lists.ids < tokens.timestamp_begin)


def labels_of(
    rule: LabelRule,
    row_ids: Sequence[str],
    transcripts: IdLists,
    previous: IdLists,
    truncated: Mask,
) -> tuple[IdLists, Places]:
    """Return what the rule makes of each row, and the lengths without prompts.

    Args:
        rule: how a transcript becomes labels.
        row_ids: of the rows.
        transcripts: ids that the teacher wrote.
        previous: ids of the window before; an empty list where there is none.
        truncated: bool (rows,): no end is learnt from these.
    """
    tokens = rule.tokens
    draws = np.array([drawn(rule.seed, 0, row_id) for row_id in row_ids]).reshape(-1, 2)
    body = text_ids(transcripts, tokens)
    is_time = body.ids >= tokens.timestamp_begin
    timed = (draws[:, 0] < rule.timestamp_probability) & (body.count(is_time) > 0)
    body = body.take(~is_time | timed[body.rows])
    prompts = previous.take((draws[:, 1] < rule.condition_on_prev_probability)[previous.rows])
    prompts = text_ids(prompts, tokens)
    prompts = prompts.take((prompts.ids < tokens.timestamp_begin) | timed[prompts.rows])
    prefixes = {
        with_times: tokens.prefix(rule.language, rule.task, with_times)
        for with_times in (True, False)
    }
    num_prefix = np.where(timed, len(prefixes[True]), len(prefixes[False]))
    num_text = num_prefix + body.lengths + ~truncated
    prompts = _last(prompts, np.minimum(rule.longest_prompt, rule.longest - num_text - 1))
    num_prompt = prompts.lengths + (prompts.lengths > 0)
    starts = _starts(num_prompt + num_text)
    ids = np.full(starts[-1], tokens.end_of_text, np.int32)
    ids[starts[:-1][num_prompt > 0]] = tokens.start_of_prev
    ids[starts[prompts.rows] + 1 + prompts.places] = prompts.ids
    text_starts = starts[:-1] + num_prompt
    for with_times, prefix in prefixes.items():
        ids[text_starts[timed == with_times, None] + np.arange(len(prefix))] = prefix
    ids[(text_starts + num_prefix)[body.rows] + body.places] = body.ids
    return IdLists(ids, starts), num_text


def _last(lists: IdLists, most: Places) -> IdLists:
    """Return the last ids of each list, so many as are allowed."""
    num_left_out = np.maximum(lists.lengths - np.maximum(most, 0), 0)
    return lists.take(lists.places >= num_left_out[lists.rows])
