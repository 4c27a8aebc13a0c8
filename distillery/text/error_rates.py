"""Word and character error rates, over a corpus or a single pair, always in percent.

Both are Levenshtein distances divided by the length of the reference. jiwer defines the field's
figures, but builds an alignment object per run of edits; the same counts straight from rapidfuzz,
which jiwer calls too, come 14 times sooner over a test set (`benchmarks/scoring.py`: 119,000
against 8,300 pairs a second, each under four rates) and in little memory. The tests hold the two
equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import jiwer
import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from distillery.text.normalizers import Normalizer

Unit = Literal["word", "char"]
Counts = NDArray[np.int64]

# Seconds: an utterance belongs to the first bin whose end it does not exceed.
DURATION_BINS = (0, 5, 10, 15, 20, 25, 30, 60, 300)


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn references into predictions, in words or in characters."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def reference_length(self) -> int:
        """Words or characters in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def error_rate(self) -> float:
        """Errors per 100 units of reference.

        An empty reference counts as one unit long, as in jiwer: 0 where nothing was predicted,
        else 100 for each insertion.
        """
        return _percent(
            self.substitutions + self.deletions + self.insertions, self.reference_length
        )

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class Scores:
    """Error rates of one model on one test set, in percent.

    Attributes:
        cer_norm, wer_norm: under the normaliser.
        cer_raw, wer_raw: with case and punctuation; see `Normalizer.raw`.
        num_rows: all rows, those left out included.
        num_empty_references: rows left out of all four rates, because nothing of their reference
            is left after normalisation.
    """

    cer_norm: float
    wer_norm: float
    cer_raw: float
    wer_raw: float
    num_rows: int
    num_empty_references: int

    def summary(self, unit: str = "clips") -> str:
        """Return the normalised rates as a line for the log."""
        num_scored = self.num_rows - self.num_empty_references
        left_out = self.num_empty_references
        note = f" ({left_out} more have an empty reference)" if left_out else ""
        rates = f"WER {self.wer_norm:.1f} %, CER {self.cer_norm:.1f} %"
        return f"{rates} over {num_scored:,} {unit}{note}"


class AlignedRun(NamedTuple):
    """A run of characters or words, in the reference and in the prediction.

    `kind` is `equal`, `replace`, `delete` or `insert`: what turns the one into the other.
    """

    kind: str
    reference: str
    prediction: str


RATES = tuple(f.name for f in fields(Scores) if not f.name.startswith("num_"))


@dataclass(frozen=True)
class Totals:
    """Edits of a test set or a part of it, for each of the four rates; parts can be added.

    Attributes:
        edits: by the names in `RATES`.
        num_rows: all rows, those that are not scored included.
        num_empty_references: rows that are not scored.
    """

    edits: Mapping[str, ErrorCounts]
    num_rows: int
    num_empty_references: int

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            {name: self.edits[name] + other.edits[name] for name in RATES},
            self.num_rows + other.num_rows,
            self.num_empty_references + other.num_empty_references,
        )

    def scores(self) -> Scores:
        """Return the error rates."""
        rates = {name: edits.error_rate for name, edits in self.edits.items()}
        return Scores(
            **rates, num_rows=self.num_rows, num_empty_references=self.num_empty_references
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Totals":
        """Read what `dataclasses.asdict` made of it."""
        edits = {name: ErrorCounts(**counts) for name, counts in value["edits"].items()}
        return cls(edits, value["num_rows"], value["num_empty_references"])


@dataclass(frozen=True)
class Tally:
    """Edits of every utterance of a test set, for each of the four rates.

    Attributes:
        scored: int64 (utterances,): the places of the rows that are scored, which are those with a
            reference.
        counts: for each of `RATES` int64 (utterances, 4), in the order of `ErrorCounts`.
        num_rows: all rows, those that are not scored included.
    """

    scored: Counts
    counts: Mapping[str, Counts]
    num_rows: int

    def totals(self) -> Totals:
        """Return the edits of the whole test set."""
        edits = {name: _total(counts) for name, counts in self.counts.items()}
        return Totals(edits, self.num_rows, self.num_rows - len(self.scored))

    def scores(self) -> Scores:
        """Return the error rates of the whole test set."""
        return self.totals().scores()

    def by_duration(self, durations_s: Sequence[float]) -> list[dict[str, Any]]:
        """Return the normalised rates of the utterances of each bin of `DURATION_BINS`.

        Args:
            durations_s: seconds of each row, those that are not scored included.

        Returns:
            One entry per bin that is not empty: from_s (exclusive), to_s (inclusive; None for the
            last), num_rows, audio_s, cer_norm, wer_norm.
        """
        seconds = np.asarray(durations_s, dtype=float)[self.scored]
        bins = np.searchsorted(DURATION_BINS[1:], seconds, side="left")
        entries: list[dict[str, Any]] = []
        for index in np.unique(bins):
            inside = bins == index
            is_last = index + 1 == len(DURATION_BINS)
            entry = {
                "from_s": DURATION_BINS[index],
                "to_s": None if is_last else DURATION_BINS[index + 1],
                "num_rows": int(inside.sum()),
                "audio_s": round(float(seconds[inside].sum()), 3),
            }
            for name in ("cer_norm", "wer_norm"):
                entry[name] = _total(self.counts[name][inside]).error_rate
            entries.append(entry)
        return entries


def character_errors(references: Sequence[str], predictions: Sequence[str]) -> ErrorCounts:
    """Count character errors over a corpus; spaces count, except around a text.

    Raises:
        ValueError: if the two are not of equal length.
    """
    return _corpus_errors(references, predictions, "char")


def word_errors(references: Sequence[str], predictions: Sequence[str]) -> ErrorCounts:
    """Count word errors over a corpus; a word is what stands between white space.

    Raises:
        ValueError: if the two are not of equal length.
    """
    return _corpus_errors(references, predictions, "word")


def pair_error_rate(reference: str, prediction: str, unit: Unit) -> float:
    """Return the error rate of one pair in percent; `ErrorCounts` says how an empty one counts."""
    expected, predicted = _units(reference, prediction, unit)
    return _percent(Levenshtein.distance(expected, predicted), len(expected))


def count_errors(normalized: Sequence[tuple[str, str]], raw: Sequence[tuple[str, str]]) -> Tally:
    """Count the edits of each utterance of a test set.

    Args:
        normalized: reference and prediction of each row, as `Normalizer` returns them. Where
            nothing is left of a reference, the row is not scored.
        raw: the same rows, as `Normalizer.raw` returns them.

    Raises:
        ValueError: if the two are not of equal length, or if every reference is empty.
    """
    _check_lengths(normalized, raw)
    scored = [place for place, (reference, _) in enumerate(normalized) if reference]
    if not scored:
        raise ValueError(
            f"none of {len(normalized)} references has text left after normalisation: "
            "check the text column"
        )
    num_rows = len(normalized)
    normalized, raw = [normalized[i] for i in scored], [raw[i] for i in scored]
    counts = {
        "cer_norm": _utterance_errors(normalized, "char"),
        "wer_norm": _utterance_errors(normalized, "word"),
        "cer_raw": _utterance_errors(raw, "char"),
        "wer_raw": _utterance_errors(raw, "word"),
    }
    return Tally(np.array(scored), counts, num_rows)


def score(
    references: Sequence[str | None], predictions: Sequence[str], normalizer: Normalizer
) -> Scores:
    """Score a test set with and without normalisation.

    Args:
        references: one text a row; None counts as empty.
        predictions: what the model wrote, in the same order and without Whisper's markup.
        normalizer: applied to both sides for the `_norm` rates.

    Raises:
        ValueError: if the two are not of equal length, or if every reference is empty.
    """
    _check_lengths(references, predictions)
    pairs = [
        (reference or "", text) for reference, text in zip(references, predictions, strict=True)
    ]
    return count_pairs(pairs, normalizer).scores()


def count_pairs(pairs: Sequence[tuple[str, str]], normalizer: Normalizer) -> Tally:
    """Count the edits of pairs of reference and prediction, with and without normalisation.

    Raises:
        ValueError: if every reference is empty.
    """
    normalized = [(normalizer(reference), normalizer(text)) for reference, text in pairs]
    raw = [(normalizer.raw(reference), normalizer.raw(text)) for reference, text in pairs]
    return count_errors(normalized, raw)


def alignment(reference: str, prediction: str, unit: Unit) -> str:
    """Return a pair one above the other, its substitutions, deletions and insertions marked."""
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    drawn = jiwer.visualize_alignment(
        process(reference, prediction), show_measures=False, skip_correct=False
    )
    return str(drawn).split("\n\n", 1)[1].strip("\n")  # without jiwer's own heading


def aligned_runs(reference: str, prediction: str, unit: Unit) -> list[AlignedRun]:
    """Return the runs of equal and of differing text, in order; they spell out both texts."""
    if unit == "char":
        expected, predicted = list(reference.strip()), list(prediction.strip())
    else:
        expected, predicted = reference.split(), prediction.split()
    space = "" if unit == "char" else " "
    return [
        AlignedRun(run.tag, space.join(expected[i:j]), space.join(predicted[k:n]))
        for run in Levenshtein.opcodes(*_units(reference, prediction, unit))
        for i, j, k, n in [(run.src_start, run.src_end, run.dest_start, run.dest_end)]
    ]


def _corpus_errors(
    references: Sequence[str], predictions: Sequence[str], unit: Unit
) -> ErrorCounts:
    """Add up the edits of all pairs, so that long texts weigh more than short ones."""
    _check_lengths(references, predictions)
    return _total(_utterance_errors(list(zip(references, predictions, strict=True)), unit))


def _total(counts: Counts) -> ErrorCounts:
    return ErrorCounts(*(int(count) for count in counts.sum(axis=0)))


def _utterance_errors(pairs: Sequence[tuple[str, str]], unit: Unit) -> Counts:
    """Return hits, substitutions, deletions and insertions of each pair, int64 (pairs, 4)."""
    counts = []
    for reference, prediction in pairs:
        expected, predicted = _units(reference, prediction, unit)
        tags = [edit.tag for edit in Levenshtein.editops(expected, predicted)]
        substituted, deleted = tags.count("replace"), tags.count("delete")
        hits = len(expected) - substituted - deleted
        counts.append((hits, substituted, deleted, len(tags) - substituted - deleted))
    return np.array(counts, dtype=np.int64).reshape(-1, 4)


def _units(
    reference: str, prediction: str, unit: Unit
) -> tuple[str, str] | tuple[list[int], list[int]]:
    """Split a pair into what rapidfuzz compares: characters, or one integer for each word."""
    if unit == "char":
        return reference.strip(), prediction.strip()
    expected, predicted = reference.split(), prediction.split()
    if len(expected) <= 1 and len(predicted) <= 1:  # a script without spaces, most of the time
        return [0] * len(expected), [int(expected != predicted)] * len(predicted)
    # Equal words get equal integers: rapidfuzz would compare strings by their hash alone.
    number: dict[str, int] = {}
    return (
        [number.setdefault(word, len(number)) for word in expected],
        [number.setdefault(word, len(number)) for word in predicted],
    )


def _percent(errors: int, length: int) -> float:
    return 100.0 * errors / max(length, 1)


def _check_lengths(references: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(references) != len(predictions):
        raise ValueError(
            f"{len(references)} references do not fit {len(predictions)} predictions: "
            "give one of each per row, joined by id"
        )
