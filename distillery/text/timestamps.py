"""Segments of text with their times: read from what a model writes, and compared with references.

All times are in seconds from the start of the recording, unless a docstring says otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from distillery.text.tokens import TIMESTAMP_STEP_S, SpecialTokens, split_at_timestamps


class Segment(NamedTuple):
    """A stretch of a recording and what was said in it."""

    start: float
    end: float
    text: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


class Passage(NamedTuple):
    """Token ids between two timestamps of one window; `end` is None where the model wrote none."""

    start: float
    end: float | None
    ids: tuple[int, ...]


def passages(ids: Sequence[int], tokens: SpecialTokens) -> list[Passage]:
    """Split what a model wrote for one window at its timestamps; times are the window's own.

    A last passage without end, with or without text, is what the window cuts off. Text without a
    timestamp just before it starts where the passage before ended, or at 0.

    Args:
        ids: text and timestamps, without prefix and end.
        tokens: of the model.
    """
    split: list[Passage] = []
    start: float | None = None
    ended = 0.0
    text: list[int] = []
    for token in ids:
        if not tokens.is_timestamp(token):
            text.append(token)
            continue
        time_s = (token - tokens.timestamp_begin) * TIMESTAMP_STEP_S
        if text:
            begun = ended if start is None else start
            ended = max(time_s, begun)
            split.append(Passage(begun, ended, tuple(text)))
            start, text = None, []
        else:
            start = time_s
    if text or start is not None:
        split.append(Passage(ended if start is None else start, None, tuple(text)))
    return split


def segments_of_markup(text: str) -> list[Segment]:
    """Return the segments of a text with Whisper's timestamps; none where it has no such mark.

    A segment without end is left out, and so is text outside two marks.
    """
    parts = split_at_timestamps(text)
    return [
        Segment(start, max(start, end), spoken.strip())
        for (start, spoken), (end, _) in pairwise(parts)
        if spoken.strip()
    ]


@dataclass(frozen=True)
class TimestampScores:
    """How well predicted segments lie on those of the references, over a test set.

    A predicted and a reference segment match if each is the one that the other shares most time
    with.

    Attributes:
        num_reference_segments, num_predicted_segments, num_matched_segments: over all recordings.
        start_error_mean_s, start_error_median_s: distance between the starts of matched segments;
            None where nothing matches.
        end_error_mean_s, end_error_median_s: the same for their ends.
        timestamp_coverage: percent of the references' time that predicted segments cover.
        timestamp_overlap: intersection over union of the two, in percent of time.
    """

    num_reference_segments: int
    num_predicted_segments: int
    num_matched_segments: int
    start_error_mean_s: float | None
    start_error_median_s: float | None
    end_error_mean_s: float | None
    end_error_median_s: float | None
    timestamp_coverage: float
    timestamp_overlap: float


def score_timestamps(
    references: Sequence[Sequence[Segment]], predictions: Sequence[Sequence[Segment]]
) -> TimestampScores:
    """Compare the segments of recordings, in the same order in both.

    Raises:
        ValueError: if the two are not of equal length, or no reference has a segment.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references do not fit {len(predictions)} predictions")
    pairs = [
        pair
        for reference, prediction in zip(references, predictions, strict=True)
        for pair in matches(reference, prediction)
    ]
    starts = [abs(predicted.start - reference.start) for reference, predicted in pairs]
    ends = [abs(predicted.end - reference.end) for reference, predicted in pairs]
    reference_s = predicted_s = both_s = 0.0
    for reference_segments, predicted_segments in zip(references, predictions, strict=True):
        spoken, predicted_spans = union(reference_segments), union(predicted_segments)
        reference_s += sum(end - start for start, end in spoken)
        predicted_s += sum(end - start for start, end in predicted_spans)
        both_s += shared_s(spoken, predicted_spans)
    if reference_s == 0:
        raise ValueError("no reference has a segment that lasts any time: nothing to compare with")
    return TimestampScores(
        num_reference_segments=sum(map(len, references)),
        num_predicted_segments=sum(map(len, predictions)),
        num_matched_segments=len(pairs),
        start_error_mean_s=fmean(starts) if pairs else None,
        start_error_median_s=median(starts) if pairs else None,
        end_error_mean_s=fmean(ends) if pairs else None,
        end_error_median_s=median(ends) if pairs else None,
        timestamp_coverage=100.0 * both_s / reference_s,
        timestamp_overlap=100.0 * both_s / (reference_s + predicted_s - both_s),
    )


def matches(
    references: Sequence[Segment], predictions: Sequence[Segment]
) -> list[tuple[Segment, Segment]]:
    """Return the pairs of segments that each share the most time with the other."""
    references, predictions = sorted(references), sorted(predictions)
    of_reference: dict[int, tuple[float, int]] = {}  # seconds shared, and the other's index
    of_prediction: dict[int, tuple[float, int]] = {}
    for i, j, shared in _overlaps(references, predictions):
        if shared > of_reference.get(i, (0.0, -1))[0]:
            of_reference[i] = (shared, j)
        if shared > of_prediction.get(j, (0.0, -1))[0]:
            of_prediction[j] = (shared, i)
    return [
        (references[i], predictions[j])
        for i, (_, j) in of_reference.items()
        if of_prediction[j][1] == i
    ]


def union(segments: Sequence[Segment]) -> list[tuple[float, float]]:
    """Return the spans of time that segments cover, in order and without overlaps."""
    spans: list[tuple[float, float]] = []
    for start, end, _ in sorted(segments):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def shared_s(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that lie in both of two lists of spans, as `union` returns them."""
    left = [Segment(start, end, "") for start, end in first]
    right = [Segment(start, end, "") for start, end in second]
    return math.fsum(shared for _, _, shared in _overlaps(left, right))


def _overlaps(first: Sequence[Segment], second: Sequence[Segment]) -> list[tuple[int, int, float]]:
    """Return (index, index, seconds) of the pairs that share time, of two sorted lists."""
    overlaps = []
    # A segment that starts more than the longest one's length before this one cannot reach it.
    longest = max((segment.duration for segment in second), default=0.0)
    lowest = 0
    for i, segment in enumerate(first):
        while lowest < len(second) and second[lowest].start + longest <= segment.start:
            lowest += 1
        for j in range(lowest, len(second)):
            other = second[j]
            if other.start >= segment.end:
                break
            shared = min(segment.end, other.end) - max(segment.start, other.start)
            if shared > 0:
                overlaps.append((i, j, shared))
    return overlaps
