"""Training rows of one utterance each, laid into windows of the model's length.

Which utterances share a window follows from the rows and the seed alone: an epoch has each window
once, any process can make any window, and a resumed run makes the same ones.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from distillery.audio.decoding import AudioError, encode_wav
from distillery.data import schema
from distillery.data.collators import PROBLEM
from distillery.data.column_types import MapStyleRows, tables
from distillery.data.packed_windows import SAME_RECORDING, window_audio
from distillery.data.packing import Fill, Layout, Utterance, Window, best_fit, fill, in_order
from distillery.ingest.label_folders import LabelledRows
from distillery.text.labels import LabelRule
from distillery.text.packed_labels import Span, packed_body
from distillery.text.spacing import joined

BLOCK = 1000  # rows, or windows, that are in memory at once


@dataclass(frozen=True)
class Packing:
    """How utterances share windows.

    Attributes:
        layout: of a window.
        rule: how labels are made.
        max_ids: of the labels of a window.
    """

    layout: Layout
    rule: LabelRule
    max_ids: int

    def windows(
        self, rows: Iterable[Mapping[str, Any]], seed: int | Sequence[int]
    ) -> Iterator[Window[int]]:
        """Yield windows of the numbers of rows.

        Utterances of one recording and speaker stand in their order, all others where they fit
        best: those of no recording, or the only ones of theirs. Alone stands one whose duration is
        not known or whose transcript was cut, and what is a window already or holds features.

        Args:
            rows: with metadata and targets; audio is not looked at.
            seed: of the order in which the others come.
        """
        utterances: list[Utterance[int]] = []
        num_ids = array("l")
        for number, row in enumerate(rows):
            num_ids.append(len(self.rule.body(schema.target(row))))
            utterances.append(Utterance(number, self._num_samples(row), _place(row, number)))
        ordered, free = _by_order(utterances)
        shuffled = np.random.default_rng(seed).permutation(len(free))
        windows = chain(
            in_order(ordered, self.layout), best_fit((free[i] for i in shuffled), self.layout)
        )
        for window in windows:
            yield from self._with_short_labels(window, num_ids)

    def _num_samples(self, row: Mapping[str, Any]) -> int:
        return round((row.get(schema.DURATION) or 0.0) * self.layout.sampling_rate)

    def _with_short_labels(
        self, window: Window[int], num_ids: Sequence[int]
    ) -> Iterator[Window[int]]:
        """Yield a window, or several where its labels are too long for one."""
        rule = self.rule
        # Two timestamps may come to each utterance, and the end to all of them.
        left = most = self.max_ids - len(rule.tokens.prefix(rule.language, rule.task, True)) - 1
        parts: list[Utterance[int]] = []
        for part in window.parts:
            needed = num_ids[part.row] + 2
            if parts and needed > left:
                yield self.layout.window(parts)
                parts, left = [], most
            parts.append(Utterance(part.row, part.num_samples))
            left -= needed
        yield self.layout.window(parts)

    def row(self, rows: Sequence[Mapping[str, Any]], starts: Sequence[int]) -> dict[str, Any]:
        """Return a window as a row whose transcript and audio are those of its parts.

        Args:
            rows: its parts, with audio.
            starts: first sample of each in the window.

        Returns:
            The row; with the `PROBLEM` that makes it unusable where the audio of a part cannot be
            read, or is longer than the part's duration says.
        """
        if len(rows) == 1:
            return dict(rows[0])
        offsets = [start / self.layout.sampling_rate for start in starts]
        spans = [
            Span(offset, offset + row[schema.DURATION])
            for offset, row in zip(offsets, rows, strict=True)
        ]
        texts: list[Any] = [row.get(schema.TEXT) for row in rows]
        window = {
            schema.ID: rows[0][schema.ID],
            schema.TEXT: None if None in texts else joined(texts),
            schema.WHISPER_TRANSCRIPT: packed_body(
                [(schema.target(row), span) for row, span in zip(rows, spans, strict=True)],
                self.rule,
            ),
            schema.CONDITION_ON_PREV: rows[0].get(schema.CONDITION_ON_PREV),
            schema.SEGMENT_IDS: [row[schema.ID] for row in rows],
            schema.SEGMENT_OFFSETS: offsets,
        }
        audio = [row[schema.AUDIO] for row in rows]
        try:
            window[schema.AUDIO] = window_audio(
                window, audio, self.layout.sampling_rate, encode_wav
            )
        except AudioError as error:
            window[PROBLEM] = str(error)
        return window


def _by_order(
    utterances: Sequence[Utterance[int]],
) -> tuple[list[Utterance[int]], list[Utterance[int]]]:
    """Return utterances whose order counts, and those that may stand beside any other."""
    sizes = Counter(utterance.group for utterance in utterances)
    ordered: list[Utterance[int]] = []
    free: list[Utterance[int]] = []
    for each in utterances:
        is_lone = isinstance(each.group, tuple) and sizes[each.group] == 1
        if each.group is None or is_lone:
            free.append(replace(each, group=None))
        else:
            ordered.append(each)
    return ordered, free


def _place(row: Mapping[str, Any], number: int) -> Hashable:
    """Return what a window's parts have in common: a recording and speaker, or nothing (None)."""
    is_fixed = any(
        row.get(name) is not None for name in (schema.SEGMENT_IDS, schema.INPUT_FEATURES)
    )
    if is_fixed or row.get(schema.TRUNCATED) or not row.get(schema.DURATION):
        return number  # nobody's but its own
    if row.get(schema.RECORDING_ID) is None:
        return None
    return tuple(row.get(name) for name in SAME_RECORDING)


@dataclass(frozen=True)
class PackedRows:
    """Labelled rows as windows of several; has of `datasets.Dataset` what training needs.

    Attributes:
        rows: an utterance each.
        packing: how they share windows.
        numbers: of the rows, window by window, and `starts`, the first sample of each there.
        ends: where each window ends in these two.
        fill: of the windows.
    """

    rows: MapStyleRows | LabelledRows
    packing: Packing
    numbers: "array[int]"
    starts: "array[int]"
    ends: "array[int]"
    fill: Fill

    @classmethod
    def of(cls, rows: MapStyleRows | LabelledRows, packing: Packing) -> "PackedRows":
        """Lay all rows into windows."""
        numbers, starts, ends, filled = array("q"), array("q"), array("q"), Fill()
        columns = (*schema.TARGET_COLUMNS, *SAME_RECORDING, schema.DURATION, schema.TRUNCATED)
        slim = rows.select_columns([name for name in columns if name in rows.column_names])
        blocks = tables(slim, sys.maxsize, BLOCK)
        slim_rows = (row for block in blocks for row in block.to_pylist())
        windows = packing.windows(slim_rows, packing.rule.seed)
        while block := list(islice(windows, BLOCK)):
            filled += fill(block, packing.layout)
            for window in block:
                numbers.extend(part.row for part in window.parts)
                starts.extend(part.start for part in window.parts)
                ends.append(len(numbers))
        return cls(rows, packing, numbers, starts, ends, filled)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a window with its audio, or with the `PROBLEM` that makes it unusable."""
        span = slice(self.ends[index - 1] if index else 0, self.ends[index])
        parts = [self.rows[number] for number in self.numbers[span]]
        return self.packing.row(parts, self.starts[span])
