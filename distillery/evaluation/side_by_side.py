"""One recording heard by several models, side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distillery.audio.decoding import Waveform, decode_audio
from distillery.storage.names import file_name
from distillery.text.subtitles import srt_text
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.long_form import transcribe_in_chunks, transcribe_sequentially
from distillery.whisper.transcriber import Heard, Transcriber


@dataclass(frozen=True)
class Answer:
    """What a model heard.

    Attributes:
        model: its name.
        heard: segments and text.
        audio_s, wall_s: seconds of the recording, and seconds that it took to transcribe it.
    """

    model: str
    heard: Heard
    audio_s: float
    wall_s: float

    @property
    def summary(self) -> str:
        """How long it took, for people to read."""
        rtfx = self.audio_s / max(self.wall_s, 1e-9)
        return (
            f"{self.wall_s:.2f} s for {self.audio_s:.1f} s of audio: {rtfx:.1f} times faster than "
            "real time"
        )

    def write_srt(self, folder: Path, recording: str) -> Path:
        """Write subtitles to a folder, and return their path.

        Args:
            folder: which is made if need be.
            recording: its name.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{file_name(f'{recording}.{Path(self.model).name}')}.srt"
        path.write_text(srt_text(self.heard.segments), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Listener:
    """A model that answers one recording at a time.

    Attributes:
        name: of the model.
        whisper: the model, on its device.
        batch_size: windows side by side.
        asked: how it decodes; language, task and timestamps are asked for each recording.
    """

    name: str
    whisper: Whisper
    batch_size: int
    asked: Decoding

    def answer(
        self, waveform: Waveform, language: str | None, task: str, timestamps: bool
    ) -> Answer:
        """Transcribe a recording of any length.

        A long one is decoded sequentially with timestamps, in chunks without.

        Args:
            waveform: float32 (samples,), at the rate of the model.
            language: spoken; None lets a multilingual model detect it.
            task: `transcribe` or `translate`.
            timestamps: predict the times of segments.

        Raises:
            ValueError: the model does not know the language.
        """
        asked = replace(self.asked, language=language, task=task, timestamps=timestamps)
        whisper = self.whisper
        if whisper.tokens.is_multilingual:
            decoding = asked.fitted_to(whisper, detect_language=True)
        else:
            decoding = asked.in_language_of(whisper).fitted_to(whisper)
        window_s, size = whisper.log_mel.window_s, self.batch_size
        settings: dict[str, Any] = {"decoding": decoding, "batch_size": size}
        long_form = (
            partial(transcribe_sequentially, whisper, **settings)
            if timestamps
            else partial(transcribe_in_chunks, whisper, chunk_length_s=window_s, **settings)
        )
        transcribe = Transcriber[None](whisper, decoding, size, long_form, window_s)
        started = time.perf_counter()
        ((_, heard),) = transcribe([(None, waveform)])
        wall_s = time.perf_counter() - started
        return Answer(self.name, heard, len(waveform) / whisper.log_mel.sampling_rate, wall_s)


def answers(
    listeners: Sequence[Listener], path: Path, language: str | None, task: str, timestamps: bool
) -> list[Answer]:
    """Let models hear a file, one after the other.

    Raises:
        AudioError: it cannot be decoded.
        ValueError: a model does not know the language.
    """
    waveforms = {
        rate: decode_audio({"bytes": None, "path": str(path)}, rate)
        for rate in {listener.whisper.log_mel.sampling_rate for listener in listeners}
    }
    return [
        listener.answer(
            waveforms[listener.whisper.log_mel.sampling_rate], language, task, timestamps
        )
        for listener in listeners
    ]


def languages_of(listeners: Sequence[Listener]) -> list[str]:
    """Return the codes of the languages that all models know; none where one knows English only."""
    known = [listener.whisper.tokens.languages for listener in listeners]
    return [code for code in known[0] if all(code in languages for languages in known)]
