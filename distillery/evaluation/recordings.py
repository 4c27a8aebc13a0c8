"""Evaluation of long recordings: beside the texts, their times and what is made up."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

from distillery.data import schema
from distillery.data.transcript_files import segment_rows
from distillery.evaluation.evaluations import Evaluation, Transcription
from distillery.evaluation.hallucinations import Hallucinations
from distillery.text.timestamps import Segment, score_timestamps, segments_of_markup


@dataclass(frozen=True)
class RecordingTranscription(Transcription):
    """A recording after decoding.

    `segments` are the model's, `references` the reference's, where their times are known.
    """

    segments: Sequence[Segment] = ()
    references: Sequence[Segment] | None = None
    hallucinations: Hallucinations | None = None


@dataclass(frozen=True)
class LongFormEvaluation(Evaluation):
    """One model on one split with one algorithm."""

    def more_figures(self, good: Sequence[Transcription]) -> dict[str, Any]:
        """Score timestamps, add up hallucinations, and write both out for each recording."""
        recordings = [each for each in good if isinstance(each, RecordingTranscription)]
        path = self.predictions_path.with_suffix(".segments.jsonl")
        with self.outputs.replacing(path) as temporary:
            lines = (json.dumps(_details(each), ensure_ascii=False) + "\n" for each in recordings)
            temporary.write_text("".join(lines), encoding="utf-8")
        counts = [each.hallucinations for each in recordings if each.hallucinations is not None]
        scores = timestamp_figures(recordings) if self.decoding.timestamps else {}
        return {**scores, **asdict(reduce(add, counts))}


def timestamp_figures(
    recordings: Sequence[RecordingTranscription],
) -> dict[str, int | float | None]:
    """Return the scores of the timestamps, where references have some."""
    timed = [each for each in recordings if any(s.duration > 0 for s in each.references or ())]
    if not timed:
        return {}
    scores = score_timestamps(
        [each.references or () for each in timed], [each.segments for each in timed]
    )
    return {"num_rows_with_times": len(timed), **asdict(scores)}


def _details(recording: RecordingTranscription) -> dict[str, Any]:
    """Return what the file beside the predictions has for a recording."""
    segments = [segment._replace(text=segment.text.strip()) for segment in recording.segments]
    counts = asdict(recording.hallucinations) if recording.hallucinations else {}
    return {schema.ID: recording.id, **counts, schema.SEGMENTS: segment_rows(segments)}


def reference_segments(row: Mapping[str, Any]) -> list[Segment] | None:
    """Return the segments of a reference with their times; None where it has no times."""
    if row.get(schema.SEGMENTS) is None:
        return segments_of_markup(row.get(schema.TEXT) or "") or None
    return [
        Segment(
            float(segment[schema.SEGMENT_START]),
            float(segment[schema.SEGMENT_END]),
            str(segment.get(schema.TEXT) or ""),
        )
        for segment in row[schema.SEGMENTS]
    ]
