"""Where somebody speaks, in stretches that fit into a window: found by the network Silero VAD."""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch

from distillery.audio.decoding import Waveform
from distillery.audio.loudness import quietest

VAD_RATE = 16_000  # Hz, which Silero VAD was trained at
VAD_PADDING_MS = 200  # kept before and behind speech, so that no soft sound is lost
MAX_PAUSE_MS = 3000  # a longer one is no part of a clip


def speech_windows(samples: Waveform, max_s: float) -> list[tuple[int, int]]:
    """Return (start, end) in milliseconds of stretches of speech of at most `max_s` seconds.

    Neighbours are joined as long as the result fits and the pause between is short. Speech without
    a pause that is longer than `max_s` is cut at the quietest place in the second half of what
    fits.

    Args:
        samples: float32 (samples,) at 16 kHz.
        max_s: length of a model's window, in seconds.
    """
    per_ms = VAD_RATE // 1000
    most = int(max_s * VAD_RATE)
    windows: list[list[int]] = []
    for speech in speech_finder()(samples):
        for start, end in _fitting(samples, *speech, most):
            is_near = windows and start - windows[-1][1] <= MAX_PAUSE_MS * per_ms
            if is_near and end - windows[-1][0] <= most:
                windows[-1][1] = end
            else:
                windows.append([start, end])
    return [(start // per_ms, end // per_ms) for start, end in windows]


def _fitting(samples: Waveform, start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    while end - start > most:
        last = min(start + most, end - most // 4)  # what is left is worth a clip
        middle = quietest(samples, VAD_RATE, start + most // 2, last)
        yield start, middle
        start = middle
    yield start, end


@functools.cache
def speech_finder() -> Callable[[Waveform], Sequence[tuple[int, int]]]:
    """Load Silero VAD, whose weights are in its package.

    Raises:
        ValueError: it is not installed.
    """
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps_sequence, load_silero_vad

        # The same numbers as the network that is run frame by frame, several times as fast.
        model = load_silero_vad(sequence=True)
    except ImportError as error:
        raise ValueError(
            "--segment vad needs silero-vad and onnxruntime: "
            "pip install 'silero-vad>=6.2.3' onnxruntime"
        ) from error
    finally:
        torch.set_num_threads(threads)  # importing it sets one thread for the whole process

    def find(samples: Waveform) -> list[tuple[int, int]]:
        spans = get_speech_timestamps_sequence(samples, model, speech_pad_ms=VAD_PADDING_MS)
        return [(span["start"], span["end"]) for span in spans]

    return find
