"""Labels of windows that hold several utterances: split into those of the parts, or made of them.

The times of a part are those of its window less the part's start. Both directions are exact where
parts start at multiples of 0.02 s, as `distillery.data.packing` lays them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distillery.text.labels import LabelRule, has_timestamps, without_timestamps
from distillery.text.spacing import needs_space
from distillery.text.timestamps import Passage, passages
from distillery.text.tokens import SpecialTokens

# A passage that reaches no further than this into another part does so because models set their
# timestamps a little beside the sound, not because it holds words of both.
TOLERANCE_S = 0.2


class Span(NamedTuple):
    """From when to when a part lasts, in seconds of its window."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


@dataclass(frozen=True)
class SplitLabel:
    """What a model wrote for each part of a window.

    Attributes:
        parts: text and timestamps of each, in the part's own time; None where no timestamp tells
            which part words belong to.
        ambiguous: numbers of the parts that share a passage with another one. Its words went to
            the part in which its middle lies, and may belong to the other.
        num_crossing: passages of several parts.
    """

    parts: list[list[int] | None]
    ambiguous: frozenset[int]
    num_crossing: int


def split_label(ids: Sequence[int], spans: Sequence[Span], tokens: SpecialTokens) -> SplitLabel:
    """Give each part of a window the passages whose middle lies in it.

    What is written for the silence behind a part belongs to that part. Times are bounded by the
    part's length.

    Args:
        ids: of the window: text and timestamps, without prefix and end.
        spans: of the parts, in order; the first begins at 0.
        tokens: of the model.
    """
    if len(spans) == 1:
        return SplitLabel([list(ids)], frozenset(), 0)
    if ids and not has_timestamps(ids, tokens):
        return SplitLabel([None] * len(spans), frozenset(range(len(spans))), 0)
    parts: list[list[int]] = [[] for _ in spans]
    ambiguous: set[int] = set()
    num_crossing = 0
    for passage in passages(ids, tokens):
        if not passage.ids:  # nothing is said any more
            continue
        own = _part_at(_middle(passage), spans)
        end = spans[-1].end if passage.end is None else passage.end
        touched = {own, *_parts_within(passage.start, end, spans)}
        parts[own] += _moved(passage, -spans[own].start, spans[own].duration, tokens)
        if len(touched) > 1:
            ambiguous |= touched
            num_crossing += 1
    return SplitLabel(list(parts), frozenset(ambiguous), num_crossing)


def packed_label(parts: Sequence[tuple[Sequence[int], Span]], tokens: SpecialTokens) -> list[int]:
    """Put the labels of the parts of a window together; the inverse of `split_label`.

    Timestamps are moved to the window's time and kept where every part with words has them; else
    all are left out. A passage without end, as stands where a clip cuts it off, ends with its part,
    unless it is the window's last.

    Args:
        parts: text and timestamps of each part in its own time, without prefix and end, and where
            the part lies.
        tokens: of the model.
    """
    if len(parts) == 1:
        return list(parts[0][0])
    bodies = [ids for ids, _ in parts if without_timestamps(ids, tokens)]
    if not all(has_timestamps(ids, tokens) for ids in bodies):
        return [i for ids in bodies for i in without_timestamps(ids, tokens)]
    packed: list[int] = []
    for number, (ids, span) in enumerate(parts, start=1):
        for passage in passages(ids, tokens):
            if not passage.ids:
                continue
            if passage.end is None and number < len(parts):
                passage = passage._replace(end=span.duration)
            packed += _moved(passage, span.start, span.end, tokens)
    return packed


def packed_body(
    transcripts: Sequence[tuple[str | Sequence[int], Span]], rule: LabelRule
) -> list[int]:
    """Return the same as `packed_label`, of transcripts as `LabelRule.body` takes them.

    Words get the space between two parts that their script needs; ids have it in them, and so have
    words with timestamps, as Whisper writes them.
    """
    parts = []
    before = ""
    for transcript, span in transcripts:
        if isinstance(transcript, str) and not transcript.startswith("<|"):
            spaced = needs_space(before, transcript)
            before = transcript or before
            transcript = f" {transcript}" if spaced else transcript
        parts.append((rule.body(transcript), span))
    return packed_label(parts, rule.tokens)


def _middle(passage: Passage) -> float:
    """Return the middle of a passage; one without end may be cut short, and counts at its start."""
    if passage.end is None:
        return passage.start + TOLERANCE_S
    return (passage.start + passage.end) / 2


def _part_at(time_s: float, spans: Sequence[Span]) -> int:
    return max(0, bisect_right(spans, time_s, key=lambda span: span.start) - 1)


def _parts_within(start: float, end: float, spans: Sequence[Span]) -> list[int]:
    """Return the parts that a passage reaches into."""
    return [
        number
        for number, span in enumerate(spans)
        if min(end, span.end) - max(start, span.start) > TOLERANCE_S
    ]


def _moved(passage: Passage, by_s: float, last_s: float, tokens: SpecialTokens) -> list[int]:
    """Return a passage's ids with its times moved, and bounded by 0 and a last one."""

    def moved(time_s: float) -> int:
        return tokens.timestamp(min(max(time_s + by_s, 0.0), last_s))

    end = [] if passage.end is None else [moved(passage.end)]
    return [moved(passage.start), *passage.ids, *end]
