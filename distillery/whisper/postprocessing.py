"""Steps after decoding, as in the saved pipeline: fit timestamps to the sound, punctuate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillery.audio.decoding import Waveform
from distillery.text.labels import has_timestamps, plain_text
from distillery.text.timestamps import Segment
from distillery.text.tokens import TIMESTAMP_STEP_S
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.pipelines.punctuation import Punctuator, load_punctuator
from distillery.whisper.pipelines.recognition import finish
from distillery.whisper.pipelines.silence import load_stable_ts


@dataclass(frozen=True)
class Postprocessor:
    """Turns token ids into the text that is scored.

    As in kotoba-whisper v1.1, timestamps are fitted to the sound before the texts are punctuated.
    Fitting them changes no text.
    """

    punctuator: Punctuator | None = None
    stable_ts: bool = False

    @classmethod
    def load(cls, punctuator: str | None, stable_ts: bool) -> "Postprocessor":
        """Load what the steps need.

        Args:
            punctuator: as in `load_punctuator`; None for none.
            stable_ts: fit timestamps to the sound.

        Raises:
            ImportError: a package is missing.
            OSError: the punctuator's model is missing.
        """
        if stable_ts:
            load_stable_ts()
        return cls(load_punctuator(punctuator) if punctuator else None, stable_ts)

    def __call__(self, whisper: Whisper, ids: Sequence[int], waveform: Waveform | None) -> str:
        """Return the text of one window.

        Args:
            whisper: the model that wrote it.
            ids: what it wrote, prefix included.
            waveform: float32 (samples,); needed where timestamps are fitted.
        """
        text = plain_text(ids, whisper.tokens, whisper.tokenizer)
        if self.punctuator is None and not self.stable_ts:
            return text
        timed = has_timestamps(ids, whisper.tokens)
        if not timed:
            return self.punctuated(text)
        audio = {"raw": waveform, "sampling_rate": whisper.log_mel.sampling_rate}
        chunks = chunks_of(whisper, ids)
        chunks = finish(chunks, self.punctuator, audio if self.stable_ts else None)
        return "".join(chunk["text"] for chunk in chunks).strip()

    def segments(
        self, segments: Sequence[Segment], waveform: Waveform, sampling_rate: int
    ) -> list[Segment]:
        """Return the segments of a recording, in order, with their times and texts processed.

        Args:
            segments: what the model wrote.
            waveform: the recording, float32 (samples,).
            sampling_rate: samples a second.
        """
        chunks = [{"timestamp": (each.start, each.end), "text": each.text} for each in segments]
        audio = {"raw": waveform, "sampling_rate": sampling_rate} if self.stable_ts else None
        finished = finish(chunks, self.punctuator, audio) if chunks else []
        times = [chunk["timestamp"] for chunk in finished]
        texts = [chunk["text"] for chunk in finished]
        return [Segment(start, end, text) for (start, end), text in zip(times, texts, strict=True)]

    def punctuated(self, text: str) -> str:
        """Punctuate a text without timestamps."""
        return text if self.punctuator is None else self.punctuator([text])[0]


def chunks_of(whisper: Whisper, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Split what a model wrote for one window at its timestamps, as a pipeline does.

    Each chunk has `text`, and `timestamp`: start and end in seconds, None where there is none.
    """
    _, optional = whisper.tokenizer._decode_asr(
        [{"tokens": np.array([ids])}],
        return_timestamps=True,
        return_language=False,
        time_precision=TIMESTAMP_STEP_S,
    )
    return list(optional["chunks"])
