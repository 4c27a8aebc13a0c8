"""Speech by espeak-ng: speakers, their utterances, and recordings of several."""

import ctypes
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import soxr
from espeakng_loader import get_data_path, get_library_path

from distillery.text.tokens import TIMESTAMP_STEP_S

SAMPLE_RATE = 16_000
VOICES = ("ja", "ja+m1", "ja+m2", "ja+m3", "ja+m7", "ja+f1", "ja+f2", "ja+f4")
RATES_WPM = (180, 240)
PITCHES = (30, 70)
PEAKS = (0.3, 0.9)
FULL_STOP_FROM = 3  # words: whether a sentence ends in "。" must be audible to be learnt
SPEECH_FLOOR = 0.02  # of the peak: quieter than this at either end is silence

SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
RATE_PARAMETER, PITCH_PARAMETER = 1, 3
SYNCHRONOUS_RETRIEVAL = 2
UTF8 = 1


class Espeak:
    """espeak-ng through ctypes.

    Its noise source and its phase run on from call to call, so that only the whole sequence of
    calls since the process started is reproducible, not a single one.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(get_library_path())
        self._sample_rate = self._library.espeak_Initialize(
            SYNCHRONOUS_RETRIEVAL, 0, get_data_path().encode(), 0
        )
        if self._sample_rate <= 0:
            raise RuntimeError(f"espeak-ng cannot start with the data in {get_data_path()}")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else it is the time of day
        self._chunks: list[np.ndarray] = []
        self._callback = SYNTH_CALLBACK(self._receive)  # kept: C holds no reference to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, num_samples: int, events: Any) -> int:
        if num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def say(self, words: list[str], voice: str, rate: int, pitch: int) -> np.ndarray:
        """Return speech (float32 at 16 kHz, peak 1)."""
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(RATE_PARAMETER, rate, 0)
        self._library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
        text = " ".join(words).encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None)
        if not self._chunks:
            raise RuntimeError(f"espeak-ng said nothing instead of {words}")
        samples = np.concatenate(self._chunks).astype(np.float32)
        samples = soxr.resample(samples, self._sample_rate, SAMPLE_RATE)
        return samples / np.abs(samples).max()


@dataclass(frozen=True)
class Speaker:
    """A voice with its way of speaking."""

    voice: str
    rate: int
    pitch: int
    peak: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Speaker":
        """Draw a voice, rate (words per minute), pitch (0 to 99) and peak level (0 to 1)."""
        return cls(
            voice=rng.choice(VOICES),
            rate=rng.randint(*RATES_WPM),
            pitch=rng.randint(*PITCHES),
            peak=rng.uniform(*PEAKS),
        )


@dataclass(frozen=True)
class Utterance:
    """Words spoken in one go, without silence at either end; `samples` is float32 at 16 kHz."""

    words: tuple[str, ...]
    full_stop: bool
    samples: np.ndarray

    @classmethod
    def speak(cls, espeak: Espeak, speaker: Speaker, words: tuple[str, ...]) -> "Utterance":
        """Let a speaker say the words and cut the silence off."""
        samples = espeak.say(list(words), speaker.voice, speaker.rate, speaker.pitch)
        loud = np.flatnonzero(np.abs(samples) > SPEECH_FLOOR)
        first, last = int(loud[0]), int(loud[-1])
        return cls(
            words=words,
            full_stop=len(words) >= FULL_STOP_FROM,
            samples=samples[first : last + 1] * speaker.peak,
        )

    @cached_property
    def text(self) -> str:
        """The reference: words without spaces, as Japanese is written."""
        return "".join(self.words) + "。" * self.full_stop

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Recording:
    """Utterances of one speaker with silence before, between and after; `starts` in seconds."""

    utterances: tuple[Utterance, ...]
    starts: tuple[float, ...]
    samples: np.ndarray

    @classmethod
    def join(cls, utterances: list[Utterance], pauses: list[float]) -> "Recording":
        """Join utterances with pauses (seconds), of which there is one more than utterances."""
        parts, starts, position = [], [], 0
        for pause, utterance in zip(pauses, utterances, strict=False):
            silence = np.zeros(round(pause * SAMPLE_RATE), np.float32)
            starts.append((position + len(silence)) / SAMPLE_RATE)
            parts += [silence, utterance.samples]
            position += len(silence) + len(utterance.samples)
        parts.append(np.zeros(round(pauses[-1] * SAMPLE_RATE), np.float32))
        return cls(tuple(utterances), tuple(starts), np.concatenate(parts))

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE

    @cached_property
    def ends(self) -> tuple[float, ...]:
        """The end of each utterance, in seconds."""
        return tuple(
            start + utterance.duration
            for start, utterance in zip(self.starts, self.utterances, strict=True)
        )

    @cached_property
    def spans(self) -> list[tuple[Utterance, float, float]]:
        """Each utterance with its start and end."""
        return list(zip(self.utterances, self.starts, self.ends, strict=True))

    def text(self) -> str:
        """Return the plain text of all utterances."""
        return "".join(utterance.text for utterance in self.utterances)

    def timestamped_text(self) -> str:
        """Return the text with Whisper's timestamps around each utterance."""
        return self.timestamped_between(0.0, self.duration)

    def between(self, start: float, end: float) -> list[tuple[Utterance, float, float]]:
        """Return the utterances that lie wholly between two times, with their start and end."""
        return [span for span in self.spans if start <= span[1] and span[2] <= end]

    def complete_between(self, start: float, end: float) -> str:
        """Return the plain text of the utterances that lie wholly between two times."""
        return "".join(utterance.text for utterance, _, _ in self.between(start, end))

    def timestamped_between(self, start: float, end: float) -> str:
        """Return timestamped text as Whisper writes it for a window.

        An utterance that the window's end cuts off leaves its start timestamp alone: that is how
        Whisper was trained, and what tells its decoder to go on from the last end.
        """
        parts = []
        for utterance, left, right in self.spans:
            if start <= left and right <= end:
                parts.append(timestamp(left - start) + utterance.text + timestamp(right - start))
            elif start <= left < end:
                parts.append(timestamp(left - start))
        return "".join(parts)

    def cut(self, start: float, seconds: float) -> np.ndarray:
        """Return the samples of a window, with silence behind the recording's end."""
        first, count = round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
        inside = self.samples[first : first + count]
        return np.pad(inside, (0, count - len(inside)))


def timestamp(seconds: float) -> str:
    """Return the nearest of Whisper's timestamps."""
    return f"<|{round(seconds / TIMESTAMP_STEP_S) * TIMESTAMP_STEP_S:.2f}|>"
