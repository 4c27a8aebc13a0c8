"""Decoding of recordings of any length, many at a time.

A recording is read window by window, and features are computed for a batch of windows alone, so
that hours take no more memory than their samples. Both algorithms cut where it is quiet, so that
no word is cut in two, and skip digital silence, for which models make up text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from distillery.audio.decoding import Waveform
from distillery.audio.loudness import next_sound, quietest
from distillery.text.compression import compression_ratio
from distillery.text.labels import plain_text, text_ids
from distillery.text.timestamps import Passage, Segment, passages
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.windows import Decoding, Transcript, transcribe_windows

# When a window is decoded again, at the next temperature (Radford et al. 2022, section 4.5).
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_PROBABILITY = 0.6  # above it, a window with an unsure transcript is silence
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


@torch.inference_mode()
def transcribe_sequentially(
    whisper: Whisper,
    waveforms: Iterable[Waveform],
    decoding: Decoding,
    batch_size: int,
    *,
    condition_on_prev_tokens: bool = False,
    temperatures: Sequence[float] = TEMPERATURES[:1],
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
        temperatures: tried in order as long as a window's transcript looks bad.

    Yields:
        The number of a recording and its segments, as soon as it is finished.
    """
    decoding = replace(decoding, timestamps=True)
    waiting = enumerate(waveforms)
    reading: list[_Reading] = []
    while reading := reading + [
        _Reading(number, wave) for number, wave in islice(waiting, batch_size - len(reading))
    ]:
        _read_next_windows(whisper, reading, decoding, condition_on_prev_tokens, temperatures)
        yield from ((r.number, r.segments) for r in reading if r.is_finished)
        reading = [recording for recording in reading if not recording.is_finished]


def _read_next_windows(
    whisper: Whisper,
    reading: Sequence["_Reading"],
    decoding: Decoding,
    condition_on_prev_tokens: bool,
    temperatures: Sequence[float],
) -> None:
    """Decode the next window of each recording, in one batch; digital silence is skipped first."""
    for recording in reading:
        recording.position = next_sound(
            recording.waveform, whisper.log_mel.sampling_rate, recording.position
        )
    audible = [recording for recording in reading if not recording.is_finished]
    windows = [recording.window(whisper) for recording in audible]
    prompts = [r.prompt(whisper) if condition_on_prev_tokens else [] for r in audible]
    decoded = _decode_with_fallback(whisper, windows, prompts, decoding, temperatures)
    for recording, (transcript, temperature) in zip(audible, decoded, strict=True):
        recording.read(whisper, transcript)
        if temperature > MAX_TEMPERATURE_OF_PROMPT:
            recording.history.clear()


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

    def read(self, whisper: Whisper, transcript: Transcript | None) -> None:
        """Keep a window's passages and go on behind them; None is a window without speech."""
        rate, size = whisper.log_mel.sampling_rate, whisper.log_mel.window_samples
        ids = text_ids(transcript.ids, whisper.tokens) if transcript else []
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


def _decode_with_fallback(
    whisper: Whisper,
    windows: Sequence[Waveform],
    prompts: Sequence[list[int]],
    decoding: Decoding,
    temperatures: Sequence[float],
) -> list[tuple[Transcript | None, float]]:
    """Return the transcript of each window, None where it has no speech, and its temperature."""
    if not windows:
        return []
    features = whisper.log_mel(windows, whisper.model.device)
    transcripts: dict[int, tuple[Transcript | None, float]] = {}
    pending = list(range(len(windows)))
    for temperature in temperatures:
        shown = [prompts[index] for index in pending]
        found = transcribe_windows(
            whisper, features[pending], decoding, prompts=shown, temperature=temperature
        )
        tried = list(zip(pending, found, strict=True))
        transcripts.update({i: (each, temperature) for i, each in tried})
        if len(temperatures) == 1:
            break
        transcripts.update({i: (None, temperature) for i, each in tried if _is_silence(each)})
        pending = [i for i, each in tried if not _is_silence(each) and _looks_bad(whisper, each)]
        if not pending:
            break
    return [transcripts[i] for i in range(len(windows))]


def _is_unsure(transcript: Transcript) -> bool:
    return transcript.avg_logprob < MIN_AVG_LOGPROB


def _is_silence(transcript: Transcript) -> bool:
    """Tell whether `<|nospeech|>` is likely and what is written is not."""
    silence = transcript.no_speech_prob
    return _is_unsure(transcript) and silence is not None and silence > NO_SPEECH_PROBABILITY


def _looks_bad(whisper: Whisper, transcript: Transcript) -> bool:
    text = plain_text(transcript.ids, whisper.tokens, whisper.tokenizer)
    return _is_unsure(transcript) or compression_ratio(text) > MAX_COMPRESSION_RATIO


@torch.inference_mode()
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
    segments: dict[int, list[Segment]] = {}

    def cut_all() -> Iterator[_Chunk]:
        for number, waveform in enumerate(waveforms):
            segments[number] = []  # silence has no chunk, and is a recording all the same
            for start, end in chunk_bounds(waveform, rate, chunk_length_s, 2 * stride_s):
                yield _Chunk(number, start, waveform[start:end])

    chunks = cut_all()
    while batch := list(islice(chunks, batch_size)):
        features = whisper.log_mel([chunk.samples for chunk in batch], whisper.model.device)
        transcripts = transcribe_windows(whisper, features, decoding)
        for chunk, transcript in zip(batch, transcripts, strict=True):
            segments[chunk.number] += chunk.segments(whisper, transcript)
        # A recording is finished once a chunk of a later one was seen.
        for number in [number for number in segments if number < batch[-1].number]:
            yield number, segments.pop(number)
    yield from segments.items()


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


@dataclass(frozen=True)
class _Chunk:
    """A piece of a recording; `start` in samples."""

    number: int
    start: int
    samples: Waveform

    def segments(self, whisper: Whisper, transcript: Transcript) -> list[Segment]:
        """Return the segments of a chunk's transcript, at their times in the recording."""
        rate = whisper.log_mel.sampling_rate
        offset, duration = self.start / rate, len(self.samples) / rate
        return [
            Segment(
                offset + min(passage.start, duration),
                offset + min(duration if passage.end is None else passage.end, duration),
                whisper.tokenizer.decode(list(passage.ids), skip_special_tokens=True),
            )
            for passage in passages(text_ids(transcript.ids, whisper.tokens), whisper.tokens)
            if passage.ids
        ]
