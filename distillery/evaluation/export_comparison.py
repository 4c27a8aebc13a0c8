"""An export beside the model it was made from: texts, error rates, time and size."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distillery.audio.decoding import Waveform
from distillery.evaluation.comparison import ratio
from distillery.evaluation.tables import markdown_table
from distillery.text.error_rates import character_errors
from distillery.text.normalizers import Normalizer
from distillery.whisper.exports.readers import Transcribe

ORIGINAL = "original"


@dataclass(frozen=True)
class Transcribed:
    """What a program wrote for some clips, in their order, and the seconds that it took."""

    texts: list[str]
    seconds: float


def transcribe_all(transcribe: Transcribe, clips: Sequence[Waveform]) -> Transcribed:
    """Transcribe clips one by one, each twice: the faster time counts, whatever else is running."""
    texts, seconds = [], 0.0
    for clip in clips:
        started = time.perf_counter()
        texts.append(transcribe(clip))
        between = time.perf_counter()
        transcribe(clip)
        seconds += min(between - started, time.perf_counter() - between)
    return Transcribed(texts, round(seconds, 3))


@dataclass(frozen=True)
class Comparison:
    """One program with one export, beside the original on the same clips.

    Attributes:
        program: that decoded.
        weights: how they are stored.
        megabytes: of all files of the export; of the original, of its weights in float32.
        identical: clips with the very same text as the original's.
        num_clips: all of them.
        cer_to_original: character errors, in percent, where the original's texts are the
            references, as they stand.
        cer: character error rate in percent against the references, after normalisation; None
            where no clip has one.
        seconds: for all clips, one by one, of two times each the faster.
        speed: times as fast as the original.
    """

    program: str
    weights: str
    megabytes: float
    identical: int
    num_clips: int
    cer_to_original: float
    cer: float | None
    seconds: float
    speed: float | None


def compare(
    transcribed: Transcribed,
    original: Transcribed,
    references: Sequence[str],
    normalizer: Normalizer,
    named: Mapping[str, Any],
) -> Comparison:
    """Compare what a program wrote with what the original did.

    Args:
        transcribed: by the program.
        original: by our own decoder with the original.
        references: of the clips; "" where one has none.
        normalizer: of the error rate against them.
        named: the first three fields of the comparison.
    """
    texts = transcribed.texts
    scored = [(r, text) for r, text in zip(references, texts, strict=True) if normalizer(r)]
    expected, written = [normalizer(r) for r, _ in scored], [normalizer(t) for _, t in scored]
    return Comparison(
        **named,
        identical=sum(a == b for a, b in zip(texts, original.texts, strict=True)),
        num_clips=len(texts),
        cer_to_original=character_errors(original.texts, texts).error_rate,
        cer=character_errors(expected, written).error_rate if scored else None,
        seconds=transcribed.seconds,
        speed=ratio(original.seconds, transcribed.seconds),
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as a Markdown table."""
    columns = {
        "program": "program",
        "weights": "weights",
        "megabytes": "MB",
        "identical": "identical texts",
        "cer_to_original": "CER to original",
        "cer": "CER",
        "seconds": "seconds",
        "speed": "speed",
    }
    rows = []
    for each in comparisons:
        row = {**asdict(each), "identical": f"{each.identical} of {each.num_clips}"}
        rows.append({title: row[name] for name, title in columns.items()})
    return markdown_table(rows, list(columns.values()), decimals=2)
