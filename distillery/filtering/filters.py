"""Predicates over a pseudo-labelled row that return the reason for dropping it, or None.

They read metadata and text only, never audio, so that a whole corpus is filtered in minutes. A row
with several faults is counted under the first that is looked for, and the cheapest come first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from distillery.data import schema
from distillery.text.compression import compression_ratio
from distillery.text.error_rates import pair_error_rate
from distillery.text.normalizers import Normalizer, raw_text


class FilterReason:
    """Names of the reasons, as they are counted in the ledger."""

    NO_TRANSCRIPT = "no_transcript"
    UNLABELLED = "unlabelled"  # a row of the source that has no labels in their folder
    TRUNCATED = "truncated"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_LONG_LABELS = "too_long_labels"
    LOW_LOGPROB = "low_logprob"
    HIGH_COMPRESSION = "high_compression"
    ALL_CAPITALS = "all_capitals"
    EMPTY_REFERENCE = "empty_reference"
    EMPTY_TRANSCRIPT = "empty_transcript"
    ERROR_RATE = "error_rate"


class Verdict(NamedTuple):
    """Why a row is dropped, or None, and its error rates in percent where it was compared."""

    reason: str | None
    wer: float | None = None
    cer: float | None = None


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
        drop_all_capitals: drop transcripts whose letters are all capitals.
        strict: read error rates and durations as distil-whisper and kotoba-whisper do: what is just
            at a limit is dropped, and so is a reference without text, whatever was transcribed.
        scores_all: compare texts where no threshold asks for it, too, for their rates.
        normalizer_of: for a language and a task, where rows differ in them.
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
    drop_all_capitals: bool = False
    strict: bool = False
    scores_all: bool = False
    normalizer_of: Callable[[str | None, str], Normalizer] | None = None

    def of(self, language: str | None, task: str) -> "TranscriptFilter":
        """Return the limits of rows in a language that were transcribed, or translated."""
        if self.normalizer_of is None or not self.compares:
            return self
        return replace(self, normalizer=self.normalizer_of(language, task), normalizer_of=None)

    @property
    def has_threshold(self) -> bool:
        """Whether an error rate decides about rows."""
        return self.wer_threshold is not None or self.cer_threshold is not None

    @property
    def compares(self) -> bool:
        """Whether texts are compared with their references."""
        return self.has_threshold or self.scores_all

    @property
    def ranked_by(self) -> str:
        """The error rate that decides about rows, `wer` or `cer`."""
        return "cer" if self.wer_threshold is None else "wer"

    @property
    def reads_text(self) -> bool:
        """Whether any limit needs to know what was transcribed, beside its length."""
        return self.compares or self.max_compression_ratio is not None or self.drop_all_capitals

    def reason(self, row: Mapping[str, Any], transcript: str, num_label_tokens: int) -> str | None:
        """Return the first `FilterReason` that the row is dropped for, or None to keep it.

        Args:
            row: with the columns of the contract, as far as the source has them. Its reference is
                looked at only where an error-rate threshold is set, its compression ratio is
                computed only where it is not stored.
            transcript: what the teacher wrote, with or without Whisper's markup.
            num_label_tokens: length of the final labels, without their prompt.
        """
        return self.verdict(row, transcript, num_label_tokens).reason

    def verdict(
        self,
        row: Mapping[str, Any],
        transcript: str,
        num_label_tokens: int,
        normalized: Callable[[str], str] | None = None,
    ) -> Verdict:
        """Return what `reason` does, with the error rates of a row that was compared.

        `normalized` does what the normaliser does, where texts were normalised before.
        """
        reason = self._reason_beside_reference(row, transcript, num_label_tokens)
        if reason is not None or not self.compares:
            return Verdict(reason)
        normalized = normalized or partial(_normalized, self.normalizer)
        verdict = self._compared(row.get(schema.TEXT), transcript, normalized)
        return verdict if self.has_threshold else verdict._replace(reason=None)

    def _reason_beside_reference(
        self, row: Mapping[str, Any], transcript: str, num_label_tokens: int
    ) -> str | None:
        duration_s = row.get(schema.DURATION)
        if self.drop_truncated and row.get(schema.TRUNCATED):
            return FilterReason.TRUNCATED
        if _below(duration_s, self.min_duration_s, or_at=self.strict):
            return FilterReason.TOO_SHORT
        if _above(duration_s, self.max_duration_s, or_at=self.strict):
            return FilterReason.TOO_LONG
        if _above(num_label_tokens, self.max_label_length):
            return FilterReason.TOO_LONG_LABELS
        if _below(row.get(schema.AVG_LOGPROB), self.min_avg_logprob):
            return FilterReason.LOW_LOGPROB
        if self._is_repetitive(row.get(schema.COMPRESSION_RATIO), transcript):
            return FilterReason.HIGH_COMPRESSION
        if self.drop_all_capitals and is_all_capitals(raw_text(transcript)):
            return FilterReason.ALL_CAPITALS
        return None

    def _is_repetitive(self, stored_ratio: float | None, transcript: str) -> bool:
        if self.max_compression_ratio is None:
            return False
        ratio = compression_ratio(raw_text(transcript)) if stored_ratio is None else stored_ratio
        return ratio > self.max_compression_ratio

    def _compared(
        self, reference: str | None, transcript: str, normalized: Callable[[str], str]
    ) -> Verdict:
        if reference is None:
            return Verdict(FilterReason.EMPTY_REFERENCE)
        expected, actual = normalized(reference), normalized(transcript)
        if not expected:
            # Two empty texts agree: silence, labelled as silence.
            agrees = not actual and not self.strict
            return Verdict(None if agrees else FilterReason.EMPTY_REFERENCE)
        is_equal = expected == actual
        wer = 0.0 if is_equal else pair_error_rate(expected, actual, "word")
        cer = 0.0 if is_equal else pair_error_rate(expected, actual, "char")
        if _above(wer, self.wer_threshold, or_at=self.strict) or _above(
            cer, self.cer_threshold, or_at=self.strict
        ):
            reason = FilterReason.ERROR_RATE if actual else FilterReason.EMPTY_TRANSCRIPT
            return Verdict(reason, wer, cer)
        return Verdict(None, wer, cer)


def is_all_capitals(text: str) -> bool:
    """Tell whether a text has letters, and all of them are capitals.

    whisper-large-v3 writes some clips so. A script without case has no capitals: there, and where
    it is mixed with Latin letters (`NHKです`), this is False.
    """
    return text.isupper() and all(c.isupper() for c in text if c.isalpha())


# The normaliser costs up to 100 times as much as the distance. A transcript that equals its
# reference, or that many rows share, is normalised once.
@lru_cache(maxsize=2**16)
def _normalized(normalizer: Normalizer, text: str) -> str:
    return normalizer(text)


def _below(value: float | None, limit: float | None, *, or_at: bool = False) -> bool:
    if limit is None or value is None:
        return False
    return value < limit or (or_at and value == limit)


def _above(value: float | None, limit: float | None, *, or_at: bool = False) -> bool:
    if value is None or limit is None:
        return False
    return value > limit or (or_at and value == limit)
