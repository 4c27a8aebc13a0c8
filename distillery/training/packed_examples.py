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
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from distillery.audio.decoding import encode_wav
from distillery.data import schema
from distillery.data.collators import BAD_PARTS, DATASET, PROBLEM
from distillery.data.column_types import MapStyleRows, tables
from distillery.data.packed_windows import (
    SAME_RECORDING,
    Clip,
    ClipCollator,
    spans,
    waveform,
    window_row,
)
from distillery.data.packing import Fill, Layout, Part, Utterance, Window, best_fit, fill, in_order
from distillery.data.regions import Regions
from distillery.ingest.label_folders import LabelledRows
from distillery.text.labels import LabelRule
from distillery.text.packed_labels import packed_body
from distillery.training.prompts import PROMPT

BLOCK = 1000  # rows, or windows, that are in memory at once
NO_ROOM = "has no room in its window: clips of it last longer than their `duration` says"


class Group(NamedTuple):
    """What all parts of a window have in common.

    Attributes:
        place: recording and speaker; None where there is none, and any will do; a number, which is
            nobody's but its own, of a row that must stand alone.
        kind: dataset, language and task.
    """

    place: Hashable
    kind: Hashable


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
        self,
        rows: Iterable[Mapping[str, Any]],
        seed: int | Sequence[int],
        regions: Regions | None = None,
    ) -> Iterator[Window[int]]:
        """Yield windows of the numbers of rows.

        Utterances of one recording and speaker stand in their order, all others where they fit
        best: those of no recording, or the only ones of theirs. Alone stands one whose duration is
        not known or whose transcript was cut, and what is a window already or holds features. All
        parts of a window are of one dataset, language and task.

        Args:
            rows: with metadata and targets; audio is not looked at.
            seed: of the order in which the others come.
            regions: where rows are read by regions; the others share windows within one.
        """
        utterances: list[Utterance[int]] = []
        num_ids = array("l")
        for number, row in enumerate(rows):
            num_ids.append(len(self.rule.of(row).body(schema.target(row))))
            group = Group(_place(row, number), self._kind(row))
            utterances.append(Utterance(number, self._num_samples(row), group))
        ordered, free = _by_order(utterances)
        windows = chain(
            in_order(ordered, self.layout),
            *(best_fit(block, self.layout) for block in _shuffled(free, seed, regions)),
        )
        for window in windows:
            yield from self._with_short_labels(window, num_ids)

    def _kind(self, row: Mapping[str, Any]) -> Hashable:
        prompt_of = self.rule.prompt_of
        return row.get(DATASET), prompt_of(row) if prompt_of else None

    def _num_samples(self, row: Mapping[str, Any]) -> int:
        return round((row.get(schema.DURATION) or 0.0) * self.layout.sampling_rate)

    def _with_short_labels(
        self, window: Window[int], num_ids: Sequence[int]
    ) -> Iterator[Window[int]]:
        """Yield a window, or several where its labels are too long for one."""
        # Two timestamps may come to each utterance, and the end to all of them.
        left = most = self.max_ids - self.rule.tokens.prefix_length(True) - 1
        parts: list[Utterance[int]] = []
        for part in window.parts:
            needed = num_ids[part.row] + 2
            if parts and needed > left:
                yield self.layout.window(parts)
                parts, left = [], most
            parts.append(Utterance(part.row, part.num_samples))
            left -= needed
        yield self.layout.window(parts)

    def row(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a window as a row whose transcript and audio are those of its parts.

        Args:
            rows: its parts, with audio.

        Returns:
            The row. `BAD_PARTS` are those that cannot be read, or for which, as they last longer
            than their durations say, no room is left; the window is made of the others. Where there
            are none, `PROBLEM` says what is wrong with the first.
        """
        if len(rows) == 1:
            return dict(rows[0])
        rate = self.layout.sampling_rate
        clips = ClipCollator(rate, self.layout.window_samples / rate)(rows)
        bad = [(row[schema.ID], row[PROBLEM]) for row in clips.bad]
        window = self.layout.window(Utterance(clip, len(clip[1])) for clip in clips.usable)
        bad += [(part.row[0][schema.ID], NO_ROOM) for part in window.parts if self._is_out(part)]
        parts = tuple(part for part in window.parts if not self._is_out(part))
        if not parts:
            (first, problem), *others = bad
            kept = self._kept(rows[0])
            return {
                **kept,
                schema.ID: first,
                schema.LABELS: [],
                PROBLEM: problem,
                BAD_PARTS: others,
            }
        return {**self._row_of(Window(parts)), BAD_PARTS: bad}

    def _is_out(self, part: Part[Clip]) -> bool:
        return part.end > self.layout.window_samples

    def _row_of(self, window: Window[Clip]) -> dict[str, Any]:
        row = window_row(window, self.layout)
        first = window.parts[0].row[0]
        targets = [schema.target(part.row[0]) for part in window.parts]
        transcripts = list(zip(targets, spans(row), strict=True))
        return {
            **row,
            **self._kept(first),
            schema.WHISPER_TRANSCRIPT: packed_body(transcripts, self.rule.of(first)),
            schema.CONDITION_ON_PREV: first.get(schema.CONDITION_ON_PREV),
            schema.AUDIO: {
                "bytes": encode_wav(waveform(window), self.layout.sampling_rate),
                "path": None,
            },
        }

    def _kept(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a window knows of the dataset and the prompt of all of its parts."""
        kept = {DATASET: row[DATASET]} if DATASET in row else {}
        if self.rule.prompt_of is not None:
            kept[PROMPT] = self.rule.prompt_of(row)
        return kept


def _shuffled(
    utterances: Sequence[Utterance[int]], seed: int | Sequence[int], regions: Regions | None
) -> Iterator[list[Utterance[int]]]:
    """Yield utterances in random order, those of each region by themselves."""
    places = np.random.default_rng(seed).permutation(len(utterances))
    blocks = [places]
    if regions is not None:
        numbers = np.array([each.row for each in utterances], np.int64)
        of_places = regions.of_rows[numbers[places]]
        by_region = places[np.argsort(of_places, kind="stable")]
        blocks = np.split(by_region, np.flatnonzero(np.diff(np.sort(of_places))) + 1)
    for block in blocks:
        yield [utterances[place] for place in block]


def _by_order(
    utterances: Sequence[Utterance[int]],
) -> tuple[list[Utterance[int]], list[Utterance[int]]]:
    """Return utterances whose order counts, and those that may stand beside any other."""
    sizes = Counter(utterance.group for utterance in utterances)
    ordered: list[Utterance[int]] = []
    free: list[Utterance[int]] = []
    for each in utterances:
        group = each.group
        assert isinstance(group, Group)
        is_lone = isinstance(group.place, tuple) and sizes[group] == 1
        if group.place is None or is_lone:
            free.append(replace(each, group=group._replace(place=None)))
        else:
            ordered.append(each)
    return ordered, free


def _place(row: Mapping[str, Any], number: int) -> Hashable:
    """Return the place of a row, as `Group` has it."""
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
        numbers: of the rows, window by window.
        ends: where each window ends in them.
        fill: of the windows.
    """

    rows: MapStyleRows | LabelledRows
    packing: Packing
    numbers: "array[int]"
    ends: "array[int]"
    fill: Fill

    @classmethod
    def of(
        cls,
        rows: MapStyleRows | LabelledRows,
        packing: Packing,
        prompt_columns: Sequence[str] = (),
    ) -> "PackedRows":
        """Lay all rows into windows; their prompts are read from some columns."""
        numbers, ends, filled = array("q"), array("q"), Fill()
        metadata = schema.ID, schema.DURATION, schema.TRUNCATED, *SAME_RECORDING
        columns = dict.fromkeys([*metadata, *schema.TARGET_COLUMNS, *prompt_columns])
        slim = rows.select_columns([name for name in columns if name in rows.column_names])
        blocks = tables(slim, sys.maxsize, BLOCK)
        slim_rows = (row for block in blocks for row in block.to_pylist())
        windows = packing.windows(slim_rows, packing.rule.seed, regions_of(rows))
        while block := list(islice(windows, BLOCK)):
            filled += fill(block, packing.layout)
            for window in block:
                numbers.extend(part.row for part in window.parts)
                ends.append(len(numbers))
        return cls(rows, packing, numbers, ends, filled)

    def __len__(self) -> int:
        return len(self.ends)

    def sums(self, values: NDArray[np.int16]) -> NDArray[np.int16]:
        """Return for each window the sum of what its parts have."""
        ends = np.asarray(self.ends)
        totals = np.concatenate([[0], np.cumsum(values[np.asarray(self.numbers)], dtype=np.int64)])
        sums: NDArray[np.int64] = np.diff(totals[ends], prepend=0)
        return np.minimum(sums, np.iinfo(np.int16).max).astype(np.int16)

    def regions(self) -> Regions | None:
        """Return which windows are read together, each with its first part."""
        regions = regions_of(self.rows)
        first = np.concatenate([[0], np.asarray(self.ends)[:-1]])
        return regions and regions.select(np.asarray(self.numbers)[first])

    def keeping(self, num_bytes: int) -> "PackedRows":
        """Return the same windows, with row groups of their parts kept in memory."""
        assert not isinstance(self.rows, Dataset)
        return replace(self, rows=self.rows.keeping(num_bytes))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a window with its audio."""
        span = slice(self.ends[index - 1] if index else 0, self.ends[index])
        return self.packing.row([self.rows[number] for number in self.numbers[span]])


AnyRows: TypeAlias = MapStyleRows | LabelledRows | PackedRows


def regions_of(rows: AnyRows) -> Regions | None:
    """Return which rows are read together; None where they can be read in any order."""
    return None if isinstance(rows, Dataset) else rows.regions()
