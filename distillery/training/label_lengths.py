"""How long the labels of many rows are, counted in their columns: rows do not become objects."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distillery.data import schema
from distillery.text.label_columns import IdLists, Places, text_ids
from distillery.text.labels import LabelRule


class LabelLengths(NamedTuple):
    """Numbers of ids, for each row.

    Attributes:
        stored: int64 (rows,), of labels that are stored; -1 where there are none.
        text: int64 (rows,), of labels without their prompt, at their longest, with all timestamps;
            -1 where there is nothing to make them of.
    """

    stored: Places
    text: Places

    @classmethod
    def of(cls, table: pa.Table, rule: LabelRule) -> "LabelLengths":
        """Count the labels that come of the first value in `schema.TARGET_COLUMNS`."""
        lengths = cls(np.full(len(table), -1), np.full(len(table), -1))
        is_left = np.ones(len(table), np.bool_)
        for name in schema.TARGET_COLUMNS:
            if name not in table.column_names:
                continue
            is_here = is_left & table[name].is_valid().to_numpy()
            values = table[name].filter(pa.array(is_here)).combine_chunks()
            if name == schema.LABELS:
                lists = IdLists.of(values)
                lengths.stored[is_here] = lists.lengths
                lengths.text[is_here] = lists.lengths - _prompt_lengths(lists, rule)
            else:
                lengths.text[is_here] = _longest(_bodies(values, rule), rule)
            is_left &= ~is_here
        return lengths

    @property
    def whole(self) -> NDArray[np.int16]:
        """Of what is learnt, int16 (rows,): stored, or made; more than fits is the most that does.

        Where a rule cleans lists of ids they are a little shorter.
        """
        lengths = np.where(self.stored < 0, self.text, self.stored)
        return lengths.clip(0, np.iinfo(np.int16).max).astype(np.int16)


def _prompt_lengths(labels: IdLists, rule: LabelRule) -> Places:
    """Return how many ids stand before the first start of a transcript; 0 where there is none."""
    is_start = labels.ids == rule.tokens.start_of_transcript
    rows, first = np.unique(labels.rows[is_start], return_index=True)
    lengths = np.zeros(len(labels.lengths), np.int64)
    lengths[rows] = labels.places[is_start][first]
    return lengths


def _bodies(values: pa.Array, rule: LabelRule) -> IdLists:
    """Return what `LabelRule.body` does for each transcript, of a rule that does not clean them."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return text_ids(IdLists.of(values), rule.tokens)
    return IdLists.of(pa.array(map(rule.body, values.to_pylist()), pa.list_(pa.int32())))


def _longest(bodies: IdLists, rule: LabelRule) -> Places:
    """Return the lengths of labels with these bodies, an end, and a prefix for their timestamps."""
    has_times = bodies.count(bodies.ids >= rule.tokens.timestamp_begin) > 0
    timed, plain = map(rule.tokens.prefix_length, (True, False))
    return np.where(has_times, timed, plain) + bodies.lengths + 1
