"""How loud a recording is from moment to moment: where to cut it, and where nobody speaks."""

import numpy as np
from numpy.typing import NDArray

from distillery.audio.decoding import Waveform

FRAME_S = 0.02
FLOOR_DB = -70.0  # below full scale; what is quieter counts as equally silent

SCAN_S = 10.0  # a recording is searched for sound in pieces of this length
LEAD_S = 0.25  # of silence is kept before a sound, so that no word loses its start

CUT_S = 0.2  # around a cut, in which its level is measured
EQUALLY_QUIET_DB = 3.0

SILENCE_BELOW_LOUD_DB = 35.0


def levels_db(samples: Waveform, rate: int) -> NDArray[np.float64]:
    """Return the level of each whole frame of `FRAME_S` (at least one), in dB below full scale.

    Args:
        samples: float32 (samples,), between -1 and 1.
        rate: samples a second.
    """
    size = min(round(FRAME_S * rate), len(samples))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    # einsum squares and adds without a copy of the recording.
    return _decibels(np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / size)


def next_sound(samples: Waveform, rate: int, start: int) -> int:
    """Return where to go on reading: a quarter of a second before the next sound.

    A sound is what rises above the floor of -70 dB: digital silence is skipped, mere quiet is not.

    Args:
        samples: float32 (samples,) of the whole recording.
        rate: samples a second.
        start: the earliest place.

    Returns:
        A place from `start` on; the end of the recording where no sound follows.
    """
    frame, piece = round(FRAME_S * rate), round(SCAN_S * rate)
    for first in range(start, len(samples), piece):
        loud = np.flatnonzero(levels_db(samples[first : first + piece], rate) > FLOOR_DB)
        if len(loud):
            return max(start, first + int(loud[0]) * frame - round(LEAD_S * rate))
    return len(samples)


def silent_frames(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which frames are silence.

    Silence is what lies 35 dB below the recording's loud frames (the 95th percentile of those
    that are above the floor), and what is below the floor of -70 dB in any case.
    """
    audible = levels[levels > FLOOR_DB]
    if not len(audible):
        return np.ones(len(levels), dtype=np.bool_)
    return levels <= max(FLOOR_DB, float(np.percentile(audible, 95)) - SILENCE_BELOW_LOUD_DB)


def silent_share(silent: NDArray[np.bool_], start_s: float, end_s: float) -> float:
    """Return the share of a span's frames that are silence; behind the recording all are."""
    first = int(start_s / FRAME_S)
    last = max(first + 1, round(end_s / FRAME_S))
    return 1.0 - float(np.count_nonzero(~silent[first:last])) / (last - first)


def quietest(samples: Waveform, rate: int, first: int, last: int) -> int:
    """Return the sample between two where a cut is heard least.

    Of places that are about equally quiet it is the latest, so that silence is not read twice.

    Args:
        samples: float32 (samples,) of the whole recording.
        rate: samples a second.
        first, last: the earliest and the latest place; `first` is returned where they are equal.
    """
    step, half = max(1, round(0.01 * rate)), round(CUT_S / 2 * rate)
    places = np.arange(first, max(last, first) + 1, step)
    before = max(0, first - half)
    nearby = samples[before : last + half].astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(nearby**2)])
    left = np.clip(places - half - before, 0, len(nearby))
    right = np.clip(places + half - before, 0, len(nearby))
    levels = _decibels((total[right] - total[left]) / (2 * half))
    return int(places[np.flatnonzero(levels <= levels.min() + EQUALLY_QUIET_DB)[-1]])


def _decibels(power: NDArray[np.float64]) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(power, 1e-12))
    return np.maximum(levels, FLOOR_DB)
