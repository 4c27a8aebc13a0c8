"""Clips on their way through a model: one stream, in which no clip waits for a slower one."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from distillery.audio.decoding import Waveform
from distillery.data import schema
from distillery.data.collators import PROBLEM, Windows
from distillery.evaluation.evaluations import Transcription, reference_of
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.greedy import Window
from distillery.whisper.long_form import text_of, transcribe_in_chunks
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.sampling import seed_of
from distillery.whisper.windows import Decoding, transcribe_stream

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class ClipTranscriber:
    """Transcribes clips of at most one window each, and longer ones in chunks.

    Attributes:
        whisper: the model, on its device.
        decoding: see `Decoding`.
        batch_size: windows side by side.
        chunk_length_s: most seconds of a chunk; None where no clip is longer than the window.
        postprocess: what is done to the texts.
    """

    whisper: Whisper
    decoding: Decoding
    batch_size: int
    chunk_length_s: float | None
    postprocess: Postprocessor

    def transcribe(self, batches: Iterable[Windows]) -> Iterator[Transcription]:
        """Yield what became of each row, not in order.

        Args:
            batches: decoded clips; taken as there is room for them in the decoder.
        """
        at_once: deque[Transcription] = deque()
        heard: dict[int, tuple[Row, Waveform]] = {}
        windows = self._windows(batches, heard, at_once)
        for number, transcript in transcribe_stream(
            self.whisper, windows, self.decoding, self.batch_size
        ):
            while at_once:
                yield at_once.popleft()
            row, waveform = heard.pop(number)
            yield _transcription(row, self.postprocess(self.whisper, transcript.ids, waveform))
        yield from at_once

    def _windows(
        self,
        batches: Iterable[Windows],
        heard: dict[int, tuple[Row, Waveform]],
        at_once: deque[Transcription],
    ) -> Iterator[Window[int]]:
        """Yield the windows of clips, which go to `heard`; the others are `at_once` complete."""
        number = 0
        for batch in batches:
            texts = self._texts_in_chunks(batch)
            waveforms = iter(batch.waveforms)
            for row in batch.rows:
                if row[PROBLEM] or row[schema.ID] in texts:
                    at_once.append(_transcription(row, texts.get(row[schema.ID], "")))
                    continue
                waveform = next(waveforms)
                heard[number] = row, waveform
                (features,) = self.whisper.log_mel([waveform], self.whisper.model.device)
                yield Window(number, features, self.decoding, seed=seed_of(row[schema.ID]))
                number += 1

    def _texts_in_chunks(self, batch: Windows) -> dict[str, str]:
        """Return the texts, by id, of the clips that are longer than a chunk."""
        if self.chunk_length_s is None or not batch.long:
            return {}
        ids = list(batch.long)
        numbered = transcribe_in_chunks(
            self.whisper,
            batch.long.values(),
            self.decoding,
            self.batch_size,
            chunk_length_s=self.chunk_length_s,
        )
        # Of its chunks only the text is left; times would not change it.
        return {ids[n]: self.postprocess.punctuated(text_of(found)) for n, found in numbered}


def _transcription(row: Row, text: str) -> Transcription:
    duration_s = 0.0 if row[PROBLEM] else row[schema.DURATION]
    return Transcription(row[schema.ID], reference_of(row), text, duration_s, row[PROBLEM])
