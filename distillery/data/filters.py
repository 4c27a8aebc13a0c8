"""Predicates over a pseudo-labelled row that return the reason for dropping it, or None.

They read metadata and text only, never audio, so that a whole corpus is filtered in minutes. A row
with several faults is counted under the first that is looked for, and the cheapest come first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from distillery.data import schema
from distillery.text.compression import compression_ratio
from distillery.text.error_rates import pair_error_rate
from distillery.text.normalizers import Normalizer, raw_text


class FilterReason:
    """Names of the reasons, as they are counted in the ledger."""

    TRUNCATED = "truncated"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_LONG_LABELS = "too_long_labels"
    LOW_LOGPROB = "low_logprob"
    HIGH_COMPRESSION = "high_compression"
    EMPTY_REFERENCE = "empty_reference"
    EMPTY_TRANSCRIPT = "empty_transcript"
    ERROR_RATE = "error_rate"


@dataclass(frozen=True)
class TranscriptFilter:
    """Limits that a row must keep to; None switches a limit off, and a limit itself still passes.

    Attributes:
        normalizer: applied to reference and transcript before they are compared.
        wer_threshold, cer_threshold: percent; a row above either is dropped. For scripts without
            spaces a WER threshold keeps little but exact matches: use the CER there.
        min_duration_s, max_duration_s: seconds of audio; a row of unknown duration passes.
        max_label_length: tokens.
        drop_truncated: drop rows where the teacher ran into its maximum length.
        min_avg_logprob: mean log-probability of the teacher's tokens; a row without one passes.
        max_compression_ratio: see `compression_ratio`; high where the teacher repeats itself.
    """

    normalizer: Normalizer
    wer_threshold: float | None = None
    cer_threshold: float | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    max_label_length: int | None = None
    drop_truncated: bool = True
    min_avg_logprob: float | None = None
    max_compression_ratio: float | None = None

    @property
    def reads_text(self) -> bool:
        """Whether any limit needs to know what was transcribed, beside its length."""
        limits = (self.wer_threshold, self.cer_threshold, self.max_compression_ratio)
        return any(limit is not None for limit in limits)

    def reason(self, row: Mapping[str, Any], transcript: str, num_label_tokens: int) -> str | None:
        """Return the first `FilterReason` that the row is dropped for, or None to keep it.

        Args:
            row: with the columns of the contract, as far as the source has them. Its reference is
                looked at only where an error-rate threshold is set, its compression ratio is
                computed only where it is not stored.
            transcript: what the teacher wrote, with or without Whisper's markup.
            num_label_tokens: length of the final labels.
        """
        if self.drop_truncated and row.get(schema.TRUNCATED):
            return FilterReason.TRUNCATED
        if _below(row.get(schema.DURATION), self.min_duration_s):
            return FilterReason.TOO_SHORT
        if _above(row.get(schema.DURATION), self.max_duration_s):
            return FilterReason.TOO_LONG
        if _above(num_label_tokens, self.max_label_length):
            return FilterReason.TOO_LONG_LABELS
        if _below(row.get(schema.AVG_LOGPROB), self.min_avg_logprob):
            return FilterReason.LOW_LOGPROB
        if self._is_repetitive(row.get(schema.COMPRESSION_RATIO), transcript):
            return FilterReason.HIGH_COMPRESSION
        return self._error_reason(row.get(schema.TEXT), transcript)

    def _is_repetitive(self, stored_ratio: float | None, transcript: str) -> bool:
        if self.max_compression_ratio is None:
            return False
        ratio = compression_ratio(raw_text(transcript)) if stored_ratio is None else stored_ratio
        return ratio > self.max_compression_ratio

    def _error_reason(self, reference: str | None, transcript: str) -> str | None:
        if self.wer_threshold is None and self.cer_threshold is None:
            return None
        if reference is None:
            return FilterReason.EMPTY_REFERENCE
        expected = _normalized(self.normalizer, reference)
        actual = _normalized(self.normalizer, transcript)
        if expected == actual:  # two empty texts agree as well: silence, labelled as silence
            return None
        if not expected:
            return FilterReason.EMPTY_REFERENCE
        wrong_words = self.wer_threshold is not None and (
            pair_error_rate(expected, actual, "word") > self.wer_threshold
        )
        wrong_characters = self.cer_threshold is not None and (
            pair_error_rate(expected, actual, "char") > self.cer_threshold
        )
        if wrong_words or wrong_characters:
            return FilterReason.ERROR_RATE if actual else FilterReason.EMPTY_TRANSCRIPT
        return None


# The normaliser costs up to 100 times as much as the distance. A transcript that equals its
# reference, or that many rows share, is normalised once.
@lru_cache(maxsize=2**16)
def _normalized(normalizer: Normalizer, text: str) -> str:
    return normalizer(text)


def _below(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value < limit


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
