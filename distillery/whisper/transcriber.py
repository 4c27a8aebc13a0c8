"""Transcription of recordings of any length, with all that is asked of it beside the text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
                yield from self._run(self._at_once, short, len(short))
                short.clear()
        if short:
            yield from self._run(self._at_once, short, len(short))

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
        together: int = 1,
    ) -> Iterator[tuple[Key, Heard]]:
        """Transcribe recordings by one algorithm, and finish so many at a time."""
        waiting: dict[int, tuple[Key, Waveform]] = {}

        def waveforms() -> Iterator[Waveform]:
            for number, (key, waveform) in enumerate(recordings):
                waiting[number] = key, waveform
                yield waveform

        found = algorithm(waveforms())
        while some := list(islice(found, together)):
            keys, heard = zip(*(waiting.pop(number) for number, _ in some), strict=True)
            segments = [segments for _, segments in some]
            yield from zip(keys, self._finished(heard, segments), strict=True)

    def _finished(
        self, waveforms: Sequence[Waveform], segments: Sequence[list[Segment]]
    ) -> list[Heard]:
        rate = self.whisper.log_mel.sampling_rate
        recordings = [
            (waveform, self.postprocess.segments(each, waveform, rate))
            for waveform, each in zip(waveforms, segments, strict=True)
        ]
        if self.word_timer is None:
            return [Heard(each, None) for _, each in recordings]
        words = self.word_timer(recordings)
        return [Heard(each, timed) for (_, each), timed in zip(recordings, words, strict=True)]
