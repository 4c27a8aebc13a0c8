"""From stored audio bytes to log-mel windows."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import WhisperFeatureExtractor

Waveform = NDArray[np.float32]

UNKNOWN_LENGTH = 2**63 - 1  # frames, as libsndfile gives them; it cannot read such a file


class AudioError(ValueError):
    """A clip that cannot be used; the message says why, without naming the clip."""


def decode_audio(
    audio: Mapping[str, Any] | None, sampling_rate: int, max_duration_s: float | None = None
) -> Waveform:
    """Decode one clip to mono at a sampling rate.

    Args:
        audio: `bytes`, or the `path` of a file where `bytes` is None; None for a row without audio.
        sampling_rate: of the result, in Hz; channels are averaged.
        max_duration_s: refuse longer clips, before any sample is decoded.

    Returns:
        float32 (samples,), nominally between -1 and 1.

    Raises:
        AudioError: the clip is missing, unreadable, empty, too long, or holds NaN or infinities.
    """
    source = _open(audio)
    try:
        with soundfile.SoundFile(source) as file:
            _check_length(file.frames, file.samplerate, max_duration_s)
            samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        # Its full text names the address of a buffer, which differs from run to run.
        raise AudioError(f"cannot be decoded: {error.error_string}") from error
    except (OSError, TypeError, MemoryError) as error:  # a broken header may claim any length
        raise AudioError(f"cannot be decoded: {error}") from error
    if not np.isfinite(samples).all():
        raise AudioError("holds NaN or infinite samples")
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    if samples.size == 0:  # a truncated file, or less than one sample at the new rate
        raise AudioError("holds no samples")
    return np.ascontiguousarray(samples, dtype=np.float32)


def _open(audio: Mapping[str, Any] | None) -> io.BytesIO | str:
    if audio is None:
        raise AudioError("has no audio")
    content = audio.get("bytes")
    if content is not None:
        if not content:
            raise AudioError("is an empty file")
        return io.BytesIO(content)
    path = audio.get("path")
    if not path or not Path(path).is_file():
        raise AudioError(f"file not found: {path}")
    return str(path)


def _check_length(frames: int, rate: int, max_duration_s: float | None) -> None:
    if frames <= 0:
        raise AudioError("holds no samples")
    if frames == UNKNOWN_LENGTH:
        raise AudioError(
            "does not say how long it is, as a FLAC written to a pipe; encode it again"
        )
    if max_duration_s is not None and frames > max_duration_s * rate:
        raise AudioError(
            f"lasts {frames / rate:.2f} s, longer than the model's window of {max_duration_s:g} s"
        )


class LogMel:
    """Whisper's log-mel features, computed from the real samples only.

    The feature extractor of transformers pads every clip to the window and transforms the silence
    too. Silence has a constant value, so it is filled in here, which gives the same numbers for a
    fraction of the work where clips are short.
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        """Take window length, mel bins and transform sizes from a feature extractor."""
        self.sampling_rate: int = extractor.sampling_rate
        self.window_samples: int = extractor.n_samples
        self.num_frames: int = extractor.nb_max_frames
        self.num_mels: int = extractor.feature_size
        self._hop: int = extractor.hop_length
        self._fft: int = extractor.n_fft
        self._hann = torch.hann_window(self._fft)
        self._filters = torch.from_numpy(np.asarray(extractor.mel_filters, dtype=np.float32))

    @property
    def window_s(self) -> float:
        """Length of the model's window in seconds."""
        return self.window_samples / self.sampling_rate

    def __call__(self, waveforms: Sequence[Waveform]) -> Tensor:
        """Return float32 (batch, mels, frames of the window); longer clips are cut at its end."""
        return torch.stack([self.pad(self.real_frames(wave)) for wave in waveforms])

    def real_frames(self, waveform: Waveform) -> Tensor:
        """Return float32 (mels, frames that touch a real sample) of one clip."""
        samples = torch.from_numpy(waveform[: self.window_samples])
        # One transform length of silence behind the clip: the frames that end in it are exact, and
        # the reflection at the end of the signal mirrors only silence.
        padded_length = min(samples.shape[0] + self._fft, self.window_samples)
        samples = functional.pad(samples, (0, padded_length - samples.shape[0]))
        spectrum = torch.stft(samples, self._fft, self._hop, window=self._hann, return_complex=True)
        power = spectrum[..., : padded_length // self._hop].abs() ** 2
        log_mel = (self._filters.T @ power).clamp(min=1e-10).log10()
        floor = log_mel.max() - 8.0
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0

    def pad(self, frames: Tensor) -> Tensor:
        """Fill (mels, real frames) up to the window with the value that silence has."""
        # The loudest frame is at `floor + 8`, and silence (log 1e-10) is raised to the floor.
        silence = max((-10.0 + 4.0) / 4.0, float(frames.max()) - 2.0)
        return functional.pad(frames, (0, self.num_frames - frames.shape[-1]), value=silence)
