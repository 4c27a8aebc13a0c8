"""Decoding of recordings of any length, many at a time.

A recording is read window by window, and features are computed for a batch of windows alone, so
that hours take no more memory than their samples. Both algorithms cut where it is quiet, so that
no word is cut in two, and skip digital silence, for which models make up text.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap

from distillery.audio.decoding import Waveform
from distillery.audio.loudness import next_sound, quietest
from distillery.text.labels import text_ids
from distillery.text.timestamps import Passage, Segment, passages
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.greedy import Key, Window
from distillery.whisper.sampling import seed_of
from distillery.whisper.windows import Decoding, Transcript, transcribe_stream

MAX_TEMPERATURE_OF_PROMPT = 0.5  # text drawn at a higher one misleads the next windows

MIN_ADVANCE = 0.1  # of a window: the least step to the next one, however odd the timestamps

# A small model tends to end a passage at the window's end though the speech goes on. A passage that
# ends this near to it, and is not the window's first, is read again from its start. (CER of the
# quickstart's models on long recordings: 6.3 to 4.2 and 2.2 to 1.5.)
CUT_OFF_S = 0.3

# The number of each recording, and its segments, as recordings are finished.
NumberedSegments = Iterator[tuple[int, list[Segment]]]


def text_of(segments: Sequence[Segment]) -> str:
    """Return the text of segments in a row."""
    return "".join(segment.text for segment in segments).strip()


def transcribe_sequentially(
    whisper: Whisper,
    waveforms: Iterable[Waveform],
    decoding: Decoding,
    batch_size: int,
    *,
    condition_on_prev_tokens: bool = False,
) -> NumberedSegments:
    """Transcribe recordings window by window, each from where the timestamps of the last one end.

    This is OpenAI's long-form algorithm (https://arxiv.org/abs/2212.04356, section 4.5), over
    several recordings at once, and with one change: where the model leaves a gap (between the last
    end and the start of what the window cuts off, or between the last end and the end of the
    window), the next window begins in the quietest place of the gap, not at one end of it. A small
    model's timestamps are off by a few tenths of a second, which would cut words in two.

    Args:
        whisper: a model that was trained with timestamps.
        waveforms: recordings, float32 (samples,); as many as a batch are held at a time.
        decoding: see `Decoding`; timestamps are always written.
        batch_size: recordings that are read side by side.
        condition_on_prev_tokens: show the decoder what it wrote before in the recording.

    Yields:
        The number of a recording and its segments, as soon as it is finished.
    """
    decoding = replace(decoding, timestamps=True)
    desk = _Desk(whisper, enumerate(waveforms), decoding, batch_size, condition_on_prev_tokens)
    for number, transcript in transcribe_stream(whisper, desk, decoding, batch_size):
        desk.read(number, transcript)
        yield from desk.take_finished()
    yield from desk.take_finished()


class _Desk:
    """Recordings that are read side by side, as an iterator over the windows to be decoded next.

    It ends where no recording has one now, and goes on once a transcript was read.
    """

    def __init__(
        self,
        whisper: Whisper,
        waveforms: Iterator[tuple[int, Waveform]],
        decoding: Decoding,
        num_places: int,
        condition_on_prev_tokens: bool,
    ) -> None:
        self._whisper, self._waveforms, self._decoding = whisper, waveforms, decoding
        self._num_places, self._has_prompts = num_places, condition_on_prev_tokens
        self._ready: deque[_Reading] = deque()
        self._in_decoder: dict[int, _Reading] = {}
        self._finished: list[tuple[int, list[Segment]]] = []

    def __iter__(self) -> "_Desk":
        return self

    def __next__(self) -> Window[int]:
        """Return the next window of a recording; digital silence is skipped first."""
        while recording := self._next():
            rate = self._whisper.log_mel.sampling_rate
            recording.position = next_sound(recording.waveform, rate, recording.position)
            if not recording.is_finished:
                self._in_decoder[recording.number] = recording
                prompt = recording.prompt(self._whisper) if self._has_prompts else []
                samples, number = recording.window(self._whisper), recording.number
                return window_of(self._whisper, number, samples, self._decoding, prompt)
            self._finished.append((recording.number, recording.segments))
        raise StopIteration

    def _next(self) -> "_Reading | None":
        """Return a recording that is ready to be read on, or a new one where there is a place."""
        if self._ready:
            return self._ready.popleft()
        if len(self._in_decoder) == self._num_places:
            return None
        return next(starmap(_Reading, self._waveforms), None)

    def read(self, number: int, transcript: Transcript) -> None:
        """Take in what was written for a recording's window."""
        recording = self._in_decoder.pop(number)
        recording.read(self._whisper, transcript)
        if transcript.temperature > MAX_TEMPERATURE_OF_PROMPT:
            recording.history.clear()
        if recording.is_finished:
            self._finished.append((recording.number, recording.segments))
        else:
            self._ready.append(recording)

    def take_finished(self) -> NumberedSegments:
        """Yield the recordings that were read to their end, once each."""
        while self._finished:
            yield self._finished.pop(0)


def window_of(
    whisper: Whisper,
    key: Key,
    samples: Waveform,
    decoding: Decoding,
    prompt: Sequence[int] = (),
) -> Window[Key]:
    """Return the window of some sound; what is drawn for it depends on its samples."""
    (features,) = whisper.log_mel([samples], whisper.model.device)
    return Window(key, features, decoding, prompt, seed_of(samples.tobytes()))


@dataclass
class _Reading:
    """A recording that is being read sequentially; `position` in samples."""

    number: int
    waveform: Waveform
    position: int = 0
    segments: list[Segment] = field(default_factory=list)
    history: list[int] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return self.position >= len(self.waveform)

    def window(self, whisper: Whisper) -> Waveform:
        """Return what is read next, as long as the model's window or up to the end."""
        return self.waveform[self.position : self.position + whisper.log_mel.window_samples]

    def prompt(self, whisper: Whisper) -> list[int]:
        """Return the text before as ids, as much as half of the decoder's positions hold."""
        most = whisper.max_label_length // 2 - 1
        return [whisper.tokens.start_of_prev, *self.history[-most:]] if self.history else []

    def read(self, whisper: Whisper, transcript: Transcript) -> None:
        """Keep a window's passages and go on behind them."""
        rate, size = whisper.log_mel.sampling_rate, whisper.log_mel.window_samples
        ids = text_ids(transcript.ids, whisper.tokens)
        window_end = min(self.position + size, len(self.waveform))
        window_s = (window_end - self.position) / rate
        is_last = window_end == len(self.waveform)
        complete, gap = _complete_passages(passages(ids, whisper.tokens), window_s, is_last)
        for passage in complete:
            if passage.start < window_s:  # else it was written for the silence behind the recording
                self._keep(whisper, passage, window_s)
        earliest = self.position + round(MIN_ADVANCE * size)
        first, last = (min(self.position + round(time * rate), window_end) for time in gap)
        first = max(first, earliest)
        # Nothing is left to be cut where the window holds all of the rest.
        at_end = is_last and last == window_end
        self.position = (
            window_end if at_end else quietest(self.waveform, rate, first, max(first, last))
        )

    def _keep(self, whisper: Whisper, passage: Passage, window_s: float) -> None:
        offset, end = self.position / whisper.log_mel.sampling_rate, passage.end or 0.0
        text = whisper.tokenizer.decode(list(passage.ids), skip_special_tokens=True)
        self.segments.append(Segment(offset + passage.start, offset + min(end, window_s), text))
        timestamp = whisper.tokens.timestamp
        self.history += [timestamp(passage.start), *passage.ids, timestamp(end)]


def _complete_passages(
    in_window: list[Passage], window_s: float, at_end: bool = False
) -> tuple[list[Passage], tuple[float, float]]:
    """Return the passages of a window to keep, and the gap in which the next window begins.

    Times are seconds from the window's start; `window_s` is how much of the recording it holds,
    `at_end` whether that is all the rest.
    """
    *complete, last = in_window or [Passage(window_s, None, ())]
    if complete and last.end is not None and last.end > window_s - CUT_OFF_S and not at_end:
        last = last._replace(end=None)
    if last.end is not None:
        return in_window, (min(last.end, window_s), window_s)
    if complete:
        end = complete[-1].end or 0.0
        return complete, (min(end, window_s), min(max(end, last.start), window_s))
    if last.ids:  # an utterance as long as the window, or a model that writes no end
        return [last._replace(end=window_s)], (window_s, window_s)
    # The first start alone: behind it something begins that the window cuts off. Whisper also
    # writes the very first timestamp alone where there is nothing to hear.
    return [], (0.0, last.start) if 0 < last.start < window_s else (window_s, window_s)


def transcribe_in_chunks(
    whisper: Whisper,
    waveforms: Iterable[Waveform],
    decoding: Decoding,
    batch_size: int,
    *,
    chunk_length_s: float,
    stride_length_s: float | None = None,
) -> NumberedSegments:
    """Transcribe recordings in chunks that are decoded in batches, without regard to each other.

    Distil-Whisper's algorithm (https://arxiv.org/abs/2311.00430, section 5.3) lets chunks overlap
    and joins their texts where they agree. Here the same overlap is where a chunk may end: it does
    so in its quietest place, and the next begins there. No sound is decoded twice, and no texts
    have to be joined; where there is no pause, a cut may go through a word.

    Args:
        whisper: the model.
        waveforms: recordings, float32 (samples,).
        decoding: see `Decoding`.
        batch_size: chunks that are decoded at once, of one or several recordings.
        chunk_length_s: most seconds of a chunk, at most the model's window.
        stride_length_s: half of the overlap; None for a sixth of a chunk.

    Yields:
        The number of a recording and its segments, once it is finished. Without timestamps, a
        segment is a chunk.
    """
    rate = whisper.log_mel.sampling_rate
    stride_s = chunk_length_s / 6 if stride_length_s is None else stride_length_s
    recordings: dict[int, _Chunks] = {}

    def windows() -> Iterator[Window[tuple[int, int]]]:
        for number, waveform in enumerate(waveforms):
            bounds = list(chunk_bounds(waveform, rate, chunk_length_s, 2 * stride_s))
            recordings[number] = _Chunks(bounds)
            for index, (start, end) in enumerate(bounds):
                yield window_of(whisper, (number, index), waveform[start:end], decoding)

    for (number, index), transcript in transcribe_stream(whisper, windows(), decoding, batch_size):
        recordings[number].read(whisper, index, transcript)
        # Silence has no chunk, and is a recording all the same.
        for done in [n for n, recording in recordings.items() if recording.is_finished]:
            yield done, recordings.pop(done).segments
    yield from ((number, recording.segments) for number, recording in recordings.items())


def chunk_bounds(
    waveform: Waveform, rate: int, chunk_length_s: float, overlap_s: float
) -> Iterator[tuple[int, int]]:
    """Yield start and end sample of the chunks of a recording; between them is only silence.

    Args:
        waveform: float32 (samples,).
        rate: samples a second.
        chunk_length_s: most seconds of a chunk.
        overlap_s: length of the end of a chunk in which it is cut, at the quietest place.
    """
    longest, overlap = round(chunk_length_s * rate), round(overlap_s * rate)
    start = next_sound(waveform, rate, 0)
    while start < len(waveform):
        end = len(waveform)
        if end - start > longest:
            end = quietest(waveform, rate, start + longest - overlap, start + longest)
        yield start, end
        start = next_sound(waveform, rate, end)


@dataclass
class _Chunks:
    """A recording whose chunks, from `bounds` in samples, are being decoded in any order."""

    bounds: list[tuple[int, int]]
    read_segments: dict[int, list[Segment]] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return len(self.read_segments) == len(self.bounds)

    @property
    def segments(self) -> list[Segment]:
        """All that was written, in the order of the recording."""
        return [each for _, found in sorted(self.read_segments.items()) for each in found]

    def read(self, whisper: Whisper, index: int, transcript: Transcript) -> None:
        """Keep the segments of a chunk's transcript, at their times in the recording."""
        rate = whisper.log_mel.sampling_rate
        start, end = self.bounds[index]
        offset, duration = start / rate, (end - start) / rate
        self.read_segments[index] = [
            Segment(
                offset + min(passage.start, duration),
                offset + min(duration if passage.end is None else passage.end, duration),
                whisper.tokenizer.decode(list(passage.ids), skip_special_tokens=True),
            )
            for passage in passages(text_ids(transcript.ids, whisper.tokens), whisper.tokens)
            if passage.ids
        ]
