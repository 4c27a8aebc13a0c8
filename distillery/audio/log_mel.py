"""From samples to log-mel windows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperFeatureExtractor

from distillery.audio.decoding import Waveform


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
        filters = torch.from_numpy(np.asarray(extractor.mel_filters, dtype=np.float32))
        # Transform window and filters, by device.
        self._on = {torch.device("cpu"): (torch.hann_window(self._fft), filters)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what lies on a GPU to the process that put it there."""
        cpu = torch.device("cpu")
        return {**vars(self), "_on": {cpu: self._on[cpu]}}

    @property
    def window_s(self) -> float:
        """Length of the model's window in seconds."""
        return self.window_samples / self.sampling_rate

    @property
    def bytes_per_s(self) -> float:
        """Bytes that the features of a second take as float16."""
        return 2 * self.num_mels * self.num_frames / self.window_s

    def __call__(self, waveforms: Sequence[Waveform], device: torch.device | str = "cpu") -> Tensor:
        """Return float32 (batch, mels, frames of the window); longer clips are cut at its end.

        A GPU is given the real samples only, and is not waited for.

        Args:
            waveforms: of clips.
            device: where the features are made, and are wanted.
        """
        return torch.stack([self.pad(self.real_frames(wave, device)) for wave in waveforms])

    def of_batch(self, waveforms: Tensor) -> Tensor:
        """Return float32 (batch, mels, frames of the window), made in one pass on their device.

        All are transformed as far as the longest reaches; a GPU does that sooner than one after the
        other, a CPU does not.

        Args:
            waveforms: float32 (batch, samples), zero behind the end of each; no longer than the
                window.
        """
        return _padded(self._frames(waveforms), self.num_frames)

    def real_frames(self, waveform: Waveform, device: torch.device | str = "cpu") -> Tensor:
        """Return float32 (mels, frames that touch a real sample) of one clip, on a device."""
        samples = torch.from_numpy(waveform[: self.window_samples])
        if torch.device(device).type == "cuda":
            samples = samples.pin_memory()  # what is not pinned is copied while the program waits
        return self._frames(samples.to(device, non_blocking=True))

    def _frames(self, samples: Tensor) -> Tensor:
        """Return (…, mels, frames that touch a sample) of (…, samples)."""
        hann, filters = self._constants(samples.device)
        # One transform length of silence behind the clip: the frames that end in it are exact, and
        # the reflection at the end of the signal mirrors only silence.
        padded_length = min(samples.shape[-1] + self._fft, self.window_samples)
        samples = functional.pad(samples, (0, padded_length - samples.shape[-1]))
        spectrum = torch.stft(samples, self._fft, self._hop, window=hann, return_complex=True)
        power = spectrum[..., : padded_length // self._hop].abs() ** 2
        log_mel = (filters.T @ power).clamp(min=1e-10).log10()
        floor = log_mel.amax((-2, -1), keepdim=True) - 8.0
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on:
            hann, filters = self._on[torch.device("cpu")]
            self._on[device] = hann.to(device), filters.to(device)
        return self._on[device]

    def pad(self, frames: Tensor) -> Tensor:
        """Fill (mels, real frames) up to the window with the value that silence has."""
        return _padded(frames, self.num_frames)


def _padded(frames: Tensor, num_frames: int) -> Tensor:
    """Fill (…, mels, frames) up to so many with the value that silence has in each clip."""
    # The loudest frame is at `floor + 8`, and silence (log 1e-10) is raised to the floor.
    silence = (frames.amax((-2, -1), keepdim=True) - 2.0).clamp(min=(-10.0 + 4.0) / 4.0)
    num_silent = num_frames - frames.shape[-1]
    return torch.cat([frames, silence.expand(*frames.shape[:-1], num_silent)], dim=-1)
