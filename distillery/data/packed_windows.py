"""Packed windows as rows of a dataset, and their audio.

A window's row looks like that of any clip: its audio is that of its parts with short silences
between, `text` their texts, `duration` its length. `segment_ids`, `segment_offsets`,
`segment_durations` and `segment_texts` name the parts, so that each can be found and scored. The
window's `id` is that of its first part: no other window has it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeAlias

import numpy as np

from distillery.audio.decoding import AudioError, Waveform, decode_audio, encode_flac
from distillery.audio.log_mel import LogMel
from distillery.data import schema
from distillery.data.clip_states import refuse_changed
from distillery.data.collators import (
    ANY_DURATION,
    CLIP_STATE,
    PROBLEM,
    DurationLimits,
    Windows,
    decode_clip,
)
from distillery.data.column_types import Rows
from distillery.data.hub_layout import embed_audio
from distillery.data.packing import PAUSE_S, Fill, Layout, Packer, Part, Utterance, Window
from distillery.text.packed_labels import Span
from distillery.text.spacing import joined

SAME_RECORDING = (schema.RECORDING_ID, schema.SPEAKER_ID)  # what an ordered window has one of
NUM_LOOKED_AT = 100  # rows, to see whether there is anything to pack

Clip: TypeAlias = tuple[dict[str, Any], Waveform]  # a row without its audio, and its samples


def has_neighbours(rows: Rows) -> bool:
    """Tell whether rows at the start have a neighbour of the same recording and speaker.

    A look at more would read the start of a stream twice.
    """
    columns = [name for name in SAME_RECORDING if name in rows.column_names]
    if not columns:
        return False
    head = islice(rows.select_columns(columns), NUM_LOOKED_AT)
    places = (tuple(row[name] for name in columns) for row in head)
    return any(
        before == after and after.count(None) < len(columns) for before, after in pairwise(places)
    )


@dataclass(frozen=True)
class Clips:
    """Decoded rows.

    `usable` are rows without their audio and with their real duration, and their samples, float32
    (samples,); `bad` are the others, in which `PROBLEM` names why they are not taken.
    """

    usable: list[Clip]
    bad: list[dict[str, Any]]


@dataclass(frozen=True)
class ClipCollator:
    """Decode clips of at most one window each, at the model's sampling rate.

    What is longer than the window is refused, as it is where nothing is packed; what is outside
    of `limits` is dropped.
    """

    sampling_rate: int
    window_s: float
    limits: DurationLimits = ANY_DURATION

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Clips:
        """Decode rows with `audio`."""
        clips = Clips([], [])
        for row in rows:
            slim, wave = decode_clip(row, self.sampling_rate, self.window_s, self.limits)
            if wave is None:
                clips.bad.append(slim)
            else:
                clips.usable.append((slim, wave))
        return clips


@dataclass(frozen=True)
class WindowPacking:
    """How clips become windows.

    Attributes:
        pack: one of `packing.PACKERS`.
        columns: in which all parts of a window agree, and which its row keeps: `SAME_RECORDING`
            where order counts, and those of language and task where there are any.
        log_mel: of the model.
        pause_s: least silence between two parts.
    """

    pack: Packer
    columns: Sequence[str]
    log_mel: LogMel
    pause_s: float = PAUSE_S

    @property
    def layout(self) -> Layout:
        """How parts lie in the model's window."""
        return Layout(self.log_mel.sampling_rate, self.log_mel.window_samples, self.pause_s)

    def batches(self, clips: Iterable[Clips], size: int) -> Iterator[Windows]:
        """Yield batches of windows, as `WindowCollator` makes them of clips.

        Rows that cannot be used are in the batch that is made when they come. They leave no other
        trace: windows are the same as if the dataset did not have these rows.

        Args:
            clips: in the order of the rows.
            size: windows in a batch, at most.
        """
        bad: list[dict[str, Any]] = []
        windows = self.pack(self._utterances(clips, bad), self.layout)
        while batch := list(islice(windows, size)):
            rows = [window_row(window, self.layout, self.columns) for window in batch]
            yield Windows([*rows, *bad], [waveform(window) for window in batch], {})
            bad.clear()
        if bad:
            yield Windows(bad, [], {})

    def _utterances(
        self, clips: Iterable[Clips], bad: list[dict[str, Any]]
    ) -> Iterator[Utterance[Clip]]:
        """Yield usable clips, and add the others to `bad`."""
        for batch in clips:
            bad += [{**row, schema.SEGMENT_IDS: [row[schema.ID]]} for row in batch.bad]
            for row, wave in batch.usable:
                yield Utterance((row, wave), len(wave), self._group(row))

    def _group(self, row: Mapping[str, Any]) -> Hashable:
        """Return what the parts of a window have in common; what is nobody's stands alone."""
        places = [row.get(name) for name in self.columns if name in SAME_RECORDING]
        if places and not any(place is not None for place in places):
            return str(row[schema.ID])
        return tuple(row.get(name) for name in self.columns)


def waveform(window: Window[Clip]) -> Waveform:
    """Return a window's audio, float32 (samples up to the end of its last part,)."""
    samples = np.zeros(window.num_samples, dtype=np.float32)
    for part in window.parts:
        samples[part.start : part.end] = part.row[1]
    return samples


def window_row(window: Window[Clip], layout: Layout, columns: Sequence[str] = ()) -> dict[str, Any]:
    """Return the row of a window, without audio.

    Args:
        window: of clips.
        layout: that it was laid out by.
        columns: in which its parts agree; they are kept. The contract's others are null.
    """
    rows = [part.row[0] for part in window.parts]
    texts: list[Any] = [row.get(schema.TEXT) for row in rows]
    rate = layout.sampling_rate
    return {
        schema.ID: rows[0][schema.ID],
        # A text in which that of one part lacks would be no reference for what is heard.
        schema.TEXT: None if None in texts else joined(texts),
        schema.DURATION: window.num_samples / rate,
        **{name: rows[0].get(name) for name in columns},
        schema.SEGMENT_IDS: [row[schema.ID] for row in rows],
        schema.SEGMENT_OFFSETS: [part.start / rate for part in window.parts],
        schema.SEGMENT_DURATIONS: [part.num_samples / rate for part in window.parts],
        schema.SEGMENT_TEXTS: texts,
        CLIP_STATE: [row[CLIP_STATE] for row in rows],
        PROBLEM: None,
    }


def spans(row: Mapping[str, Any]) -> list[Span]:
    """Return where the parts of a window's row lie, for `split_label`."""
    return [
        Span(offset, offset + duration)
        for offset, duration in zip(
            row[schema.SEGMENT_OFFSETS], row[schema.SEGMENT_DURATIONS], strict=True
        )
    ]


def fill_of_rows(rows: Iterable[Mapping[str, Any]], window_s: float) -> Fill:
    """Return how full the windows of rows are; rows that could not be used count for nothing."""
    return sum(
        (
            Fill(len(row[schema.SEGMENT_IDS]), 1, sum(row[schema.SEGMENT_DURATIONS]), window_s)
            for row in rows
            if not row[PROBLEM]
        ),
        Fill(),
    )


def whole_windows(
    chunk: Iterable[Mapping[str, Any]], windows: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """Yield each window with the audio of its parts, as it is stored.

    The order is that in which the windows' last parts stand in the chunk. Of a chunk only what
    belongs to windows that are not whole yet is kept, undecoded.

    Args:
        chunk: rows of the source, the parts of all windows among them.
        windows: rows with `segment_ids` and, while they are known, the `CLIP_STATE` of the parts.

    Raises:
        ValueError: a part is no longer in the source, or has changed since it was decoded.
    """
    window_of = {name: row for row in windows for name in row[schema.SEGMENT_IDS]}
    missing = {row[schema.ID]: len(row[schema.SEGMENT_IDS]) for row in window_of.values()}
    audio: dict[str, Any] = {}
    for row in chunk:
        window = window_of.get(row[schema.ID])
        if window is None:
            continue
        audio[row[schema.ID]] = row[schema.AUDIO]
        missing[window[schema.ID]] -= 1
        if not missing[window[schema.ID]]:
            parts = [audio.pop(name) for name in window[schema.SEGMENT_IDS]]
            # Windows that were stored have lost the states.
            states = window.get(CLIP_STATE, ())
            for name, part, state in zip(window[schema.SEGMENT_IDS], parts, states, strict=False):
                refuse_changed(name, part, state)
            yield window, parts
    lost = [name for name in window_of if missing[window_of[name][schema.ID]] and name not in audio]
    if lost:
        raise ValueError(f"the input has no longer a row for id {lost[0]!r}, which is in a window")


def with_audio(
    chunk: Iterable[Mapping[str, Any]], windows: Iterable[Mapping[str, Any]], sampling_rate: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of windows with their audio, as FLAC at the model's sampling rate.

    Arguments and order are those of `whole_windows`; windows have `segment_offsets`, too.

    Raises:
        ValueError: as there; or a part cannot be decoded any more.
    """
    for window, parts in whole_windows(chunk, windows):
        try:
            audio = window_audio(window, parts, sampling_rate)
        except AudioError as error:
            raise ValueError(str(error)) from error
        yield {**window, schema.AUDIO: audio}


def window_audio(
    window: Mapping[str, Any],
    parts: Sequence[Any],
    sampling_rate: int,
    encode: Callable[[Waveform, int], bytes] = encode_flac,
) -> dict[str, Any]:
    """Return the audio of a window; a clip that has a window of its own stays as it came in.

    Args:
        window: its row.
        parts: the audio of its parts, as it is stored.
        sampling_rate: of the model.
        encode: makes 16 bits of the samples.

    Raises:
        AudioError: a part cannot be decoded, or reaches into the next one.
    """
    if len(parts) == 1:
        return embed_audio({schema.AUDIO: parts[0]})
    placed: list[Part[Clip]] = []
    for name, offset, stored in zip(
        window[schema.SEGMENT_IDS], window[schema.SEGMENT_OFFSETS], parts, strict=True
    ):
        try:
            wave = decode_audio(stored, sampling_rate)
        except AudioError as error:
            raise AudioError(f"clip {name}, which is a part of a window, {error}") from error
        start = round(offset * sampling_rate)
        if placed and start < placed[-1].end:
            raise AudioError(f"the clip before {name} is longer than when it was labelled")
        placed.append(Part(({}, wave), start, len(wave)))
    return {"bytes": encode(waveform(Window(tuple(placed))), sampling_rate), "path": None}
