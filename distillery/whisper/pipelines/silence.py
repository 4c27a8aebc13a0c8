"""Timestamps moved out of silence, by the package `stable-ts`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A silence inside a chunk moves its start or end only if what lies beyond lasts less than this
# share of the silence: words are seldom so short. kotoba-whisper has the same.
NONSPEECH_ERROR = 0.1


def load_stable_ts() -> Any:
    """Import the package.

    Raises:
        ImportError: it, or what it needs itself, is missing.
    """
    try:
        return import_module("stable_whisper")
    except (ImportError, OSError) as error:  # OSError: torchaudio was built for another torch
        raise ImportError(
            f"stable_ts needs the package stable-ts ({error}): pip install stable-ts, and the "
            "torchaudio that fits your torch (https://pytorch.org/get-started)"
        ) from error


def fit_to_silence(
    chunks: Sequence[Mapping[str, Any]], samples: NDArray[np.float32], sampling_rate: int
) -> list[dict[str, Any]]:
    """Move starts and ends that lie in silence to where the sound begins and ends.

    Args:
        chunks: `text`, and `timestamp`: start and end in seconds, either of which may be None.
        samples: float (samples,), the recording.
        sampling_rate: samples a second; other than 16,000 needs a working torchaudio.

    Returns:
        The chunks in the same order, each with a start and an end; texts are as before.

    Raises:
        ImportError: see `load_stable_ts`.
    """
    if not chunks or not len(samples):
        return [dict(chunk) for chunk in chunks]
    # Each chunk is handed over as one word: of a segment without words only the start would move.
    words = [
        {"start": start, "end": end, "word": chunk["text"]}
        for chunk, (start, end) in zip(
            chunks, _whole_times(chunks, len(samples) / sampling_rate), strict=True
        )
    ]
    result = load_stable_ts().WhisperResult([words], check_sorted=False)
    result.adjust_by_silence(
        np.array(samples, dtype=np.float32),
        sample_rate=sampling_rate,
        nonspeech_error=NONSPEECH_ERROR,
        use_word_position=False,  # else only the first start and the last end move
        verbose=None,
    )
    return [
        {**chunk, "timestamp": (float(word.start), float(word.end))}
        for chunk, word in zip(chunks, result.all_words(), strict=True)
    ]


def _whole_times(chunks: Sequence[Mapping[str, Any]], duration: float) -> list[tuple[float, float]]:
    """Fill in missing times from the neighbours, and end no chunk behind the recording."""
    times: list[tuple[float, float]] = []
    following = [*(chunk["timestamp"][0] for chunk in chunks[1:]), None]
    for chunk, next_start in zip(chunks, following, strict=True):
        start, end = chunk["timestamp"]
        if start is None:
            start = times[-1][1] if times else 0.0
        if end is None:
            end = duration if next_start is None else next_start
        start = min(start, duration)
        times.append((start, min(max(start, end), duration)))
    return times
