"""Sound without speech: silence, and noise of many levels and colours."""

import numpy as np

from distillery.audio.decoding import Waveform

SHORTEST_S = 0.5
SILENT_SHARE = 0.1  # of all; a microphone that is switched off
LEVELS_DB = (-80.0, -25.0)  # root mean square against full scale: from a still room to a loud one
COLOURS = (0.0, 2.0)  # the power of a noise falls with the frequency to the power of so much


def background(seed: int, sampling_rate: int, longest_s: float) -> Waveform:
    """Return silence or noise, float32 (samples,), whose kind and length are drawn from a seed.

    Args:
        seed: the same seed gives the same sound.
        sampling_rate: samples per second.
        longest_s: seconds.
    """
    rng = np.random.default_rng(seed)
    num_samples = round(rng.uniform(min(SHORTEST_S, longest_s), longest_s) * sampling_rate)
    if rng.random() < SILENT_SHARE:
        return np.zeros(num_samples, np.float32)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequencies = np.arange(1, len(spectrum) + 1)
    noise = np.fft.irfft(spectrum * frequencies ** (-rng.uniform(*COLOURS) / 2), num_samples)
    level = 10 ** (rng.uniform(*LEVELS_DB) / 20)
    wave: Waveform = np.clip(noise * level / np.sqrt(np.mean(noise**2)), -1, 1).astype(np.float32)
    return wave
