"""What a model makes up: loops, and text where there is silence.

Both are counted without judging the words, so they hold for any language.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillery.audio.loudness import silent_share
from distillery.text.compression import compression_ratio
from distillery.text.timestamps import Segment, shared_s, union

# The same 1 to 60 characters at least four times in a row, 12 characters or more in all.
_LOOP = re.compile(r"(?P<unit>.{1,60}?)(?P=unit){3,}", re.DOTALL)
MIN_LOOP_CHARACTERS = 12

MAX_SPEECH_SHARE = 0.1  # a segment with less speech than this in its span is text in silence


def loops(text: str) -> list[str]:
    """Return the stretches of a text that repeat themselves.

    A loop is one piece of 1 to 60 characters, at least four times in a row, that takes 12
    characters or more in all; spaces count.
    """
    return [m[0] for m in _LOOP.finditer(text) if len(m[0]) >= MIN_LOOP_CHARACTERS]


def in_silence(segments: Sequence[Segment], silent: NDArray[np.bool_]) -> list[Segment]:
    """Return the segments with text of whose span less than a tenth is speech.

    Args:
        segments: what a model wrote for a recording.
        silent: per frame, as `distillery.audio.loudness.silent_frames` returns it.
    """
    return [
        segment
        for segment in segments
        if segment.text.strip()
        and 1 - silent_share(silent, segment.start, segment.end) < MAX_SPEECH_SHARE
    ]


def in_gaps(segments: Sequence[Segment], references: Sequence[Segment]) -> list[Segment]:
    """Return the segments with text of whose span the references cover less than a tenth.

    A segment without any length is left out.
    """
    spoken = union(references)
    return [
        segment
        for segment in segments
        if segment.text.strip()
        and segment.duration > 0
        and shared_s(spoken, [segment[:2]]) < MAX_SPEECH_SHARE * segment.duration
    ]


@dataclass(frozen=True)
class Hallucinations:
    """Counts for one recording, or for a test set.

    Attributes:
        num_loops, loop_characters: see `loops`.
        max_compression_ratio: the highest of any segment (see `text.compression`).
        num_segments_in_silence, characters_in_silence: see `in_silence`.
        num_segments_in_gaps: see `in_gaps`; None without the times of references.
    """

    num_loops: int
    loop_characters: int
    max_compression_ratio: float
    num_segments_in_silence: int
    characters_in_silence: int
    num_segments_in_gaps: int | None

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        silent: NDArray[np.bool_],
        references: Sequence[Segment] | None,
    ) -> "Hallucinations":
        """Count in one recording; arguments as for `in_silence` and `in_gaps`."""
        looped = loops("".join(segment.text for segment in segments))
        silent_segments = in_silence(segments, silent)
        return cls(
            num_loops=len(looped),
            loop_characters=sum(map(len, looped)),
            max_compression_ratio=max((compression_ratio(s.text) for s in segments), default=0.0),
            num_segments_in_silence=len(silent_segments),
            characters_in_silence=sum(len(segment.text.strip()) for segment in silent_segments),
            num_segments_in_gaps=None if references is None else len(in_gaps(segments, references)),
        )

    def __add__(self, other: "Hallucinations") -> "Hallucinations":
        gaps = [n for n in (self.num_segments_in_gaps, other.num_segments_in_gaps) if n is not None]
        return Hallucinations(
            self.num_loops + other.num_loops,
            self.loop_characters + other.loop_characters,
            max(self.max_compression_ratio, other.max_compression_ratio),
            self.num_segments_in_silence + other.num_segments_in_silence,
            self.characters_in_silence + other.characters_in_silence,
            sum(gaps) if gaps else None,
        )
