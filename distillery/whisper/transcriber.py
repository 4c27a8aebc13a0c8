"""Transcription of recordings of any length, with all that is asked of it beside the text."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from distillery.audio.decoding import Waveform
from distillery.text.timestamps import Segment
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.long_form import NumberedSegments, text_of, transcribe_in_chunks
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.word_times import WordTimer

Key = TypeVar("Key")


class Heard(NamedTuple):
    """What a model heard in a recording: segments in order, and their words, if asked for."""

    segments: list[Segment]
    words: list[list[Segment]] | None

    @property
    def text(self) -> str:
        """The whole text."""
        return text_of(self.segments)


@dataclass(frozen=True)
class Transcriber(Generic[Key]):
    """A model, and what is asked of it.

    Attributes:
        whisper: the model, on its device.
        decoding: fitted to the model.
        batch_size: windows side by side.
        long_form: the algorithm for recordings that are longer than `longest_s`.
        longest_s: what is no longer is decoded at once; at most the model's window.
        postprocess: steps after decoding, over the segments of a recording.
        word_timer: finds the times of words; None where they are not asked for.
    """

    whisper: Whisper
    decoding: Decoding
    batch_size: int
    long_form: Callable[[Iterable[Waveform]], NumberedSegments]
    longest_s: float
    postprocess: Postprocessor = field(default_factory=Postprocessor)
    word_timer: WordTimer | None = None

    def __call__(self, recordings: Iterable[tuple[Key, Waveform]]) -> Iterator[tuple[Key, Heard]]:
        """Transcribe recordings; each is taken when there is room for it.

        Args:
            recordings: float32 (samples,), with the caller's name for each.

        Yields:
            The name of a recording and what was heard, as they are finished: not in order.
        """
        source = iter(recordings)
        short: list[tuple[Key, Waveform]] = []

        def long_ones(first: tuple[Key, Waveform]) -> Iterator[tuple[Key, Waveform]]:
            """Yield long recordings until a batch of short ones has gathered."""
            yield first
            while len(short) < self.batch_size and (following := next(source, None)):
                if self._is_long(following[1]):
                    yield following
                else:
                    short.append(following)

        for recording in source:
            if self._is_long(recording[1]):
                yield from self._run(self.long_form, long_ones(recording))
            else:
                short.append(recording)
            if len(short) >= self.batch_size:
                yield from self._run(self._at_once, short)
                short.clear()
        if short:
            yield from self._run(self._at_once, short)

    def _is_long(self, waveform: Waveform) -> bool:
        return len(waveform) > self.longest_s * self.whisper.log_mel.sampling_rate

    def _at_once(self, waveforms: Iterable[Waveform]) -> NumberedSegments:
        window_s = self.whisper.log_mel.window_s
        return transcribe_in_chunks(
            self.whisper, waveforms, self.decoding, self.batch_size, chunk_length_s=window_s
        )

    def _run(
        self,
        algorithm: Callable[[Iterable[Waveform]], NumberedSegments],
        recordings: Iterable[tuple[Key, Waveform]],
    ) -> Iterator[tuple[Key, Heard]]:
        waiting: dict[int, tuple[Key, Waveform]] = {}

        def waveforms() -> Iterator[Waveform]:
            for number, (key, waveform) in enumerate(recordings):
                waiting[number] = key, waveform
                yield waveform

        for number, segments in algorithm(waveforms()):
            key, waveform = waiting.pop(number)
            yield key, self._finished(waveform, segments)

    def _finished(self, waveform: Waveform, segments: list[Segment]) -> Heard:
        rate = self.whisper.log_mel.sampling_rate
        segments = self.postprocess.segments(segments, waveform, rate)
        return Heard(segments, self.word_timer(waveform, segments) if self.word_timer else None)
