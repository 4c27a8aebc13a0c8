"""One evaluation: what identifies it, how it is scored, and the files that it leaves."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.evaluation import comparison, results
from distillery.evaluation.report import worst
from distillery.evaluation.results import Prediction, Result
from distillery.ingest import sources
from distillery.storage import json_lines
from distillery.storage.files import write_json
from distillery.storage.ledger import allowance, most_bad
from distillery.storage.outputs import Outputs, Written
from distillery.storage.provenance import code_commit, versions
from distillery.text.bootstrap import rate_intervals
from distillery.text.error_rates import alignment, word_errors
from distillery.text.normalizers import WORD_PACKAGES, Normalizer, japanese_words, raw_text
from distillery.text.tokens import TRANSCRIBE, language_code
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)

WORST = ".worst.txt"  # ends the name of the file with the worst utterances


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated, with what tells its results from those of others.

    Attributes:
        whisper: the model; in a dry run its outline.
        name: the whole path of a folder, or a Hub id.
        fingerprint: see `checkpoint.fingerprint`.
        revision: branch, tag or commit on the Hub.
        dtype: of its weights.
        attention: the implementation that runs, by transformers' name.
        assistant, assistant_fingerprint: of the model that drafts for it, if any.
    """

    whisper: Whisper
    name: str
    fingerprint: str | None
    revision: str | None
    dtype: str
    attention: str
    assistant: str | None = None
    assistant_fingerprint: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return the items of a result that say which model it is about."""
        return {
            "model": self.name,
            "model_revision": self.revision,
            "model_fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "attention": self.attention,
            "assistant_model": self.assistant,
            "assistant_fingerprint": self.assistant_fingerprint,
        }


@dataclass(frozen=True)
class Scoring:
    """How transcripts are scored, and where the results go.

    Attributes:
        folder: of metrics and predictions.
        normalizer: a variant, as in `normalizer_for`.
        with_words: also score Japanese texts by the words that MeCab finds.
        max_bad_fraction: share of the clips that may be unusable; see `ledger.most_bad`.
        verify: compare the checksums of earlier predictions, and not only their sizes.
    """

    folder: Path
    normalizer: str = "auto"
    with_words: bool = False
    max_bad_fraction: float | None = 0.0
    verify: bool = False

    def check_words(self, language: str | None, task: str) -> None:
        """Raise ValueError if Japanese words are to be scored and the texts are not Japanese."""
        spoken = language and language_code(language)
        if self.with_words and (spoken, task) != ("ja", TRANSCRIBE):
            raise ValueError("--japanese_words needs --language ja and --task transcribe")


@dataclass(frozen=True)
class Transcription:
    """A clip after decoding: its reference, what the model wrote, and how long the clip lasts.

    `problem` names why a clip could not be transcribed, and is None for the others. The duration is
    None where only texts are known.
    """

    id: str
    reference: str
    prediction: str
    duration_s: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """One model on one split: where the files go, and everything that identifies the result.

    `scoring.with_words` and `baselines`, the results of other models on the same rows, do not
    change what is decoded, so an earlier result that lacks them is completed.
    """

    spec: DatasetSpec
    decoding: Decoding
    normalizer: Normalizer
    scoring: Scoring
    identity: dict[str, Any]
    baselines: tuple[Result, ...] = ()

    @property
    def folder(self) -> Path:
        """Return where the files go."""
        return self.scoring.folder

    @property
    def outputs(self) -> Outputs:
        """The list of the files in the folder."""
        return Outputs(self.folder)

    @property
    def metrics_path(self) -> Path:
        """Return the file that the result is appended to, one row per evaluation."""
        language = language_code(self.decoding.language) if self.decoding.language else "en"
        return self.folder / f"metric.{language}.{self.decoding.task}.jsonl"

    @property
    def predictions_path(self) -> Path:
        """Return the file of the predictions; its name ends in a checksum of the identity.

        Two models of the same base name therefore never share a file.
        """
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        spec = self.spec
        names = [Path(self.identity["model"]).name, Path(spec.name).stem, spec.split or ""]
        names = [name for name in names if name]
        return self.folder / "predictions" / f"{'.'.join(names)}.{digest[:8]}.csv"

    def earlier(self) -> Result | None:
        """Return the result of an earlier, identical evaluation, if its files are there, whole."""
        files = [self.predictions_path.with_suffix(kind) for kind in (".csv", ".json", WORST)]
        faults = self.outputs.damage(verify=self.scoring.verify, only=files)
        for name, fault in faults.items():
            logger.warning("%s is damaged: %s; it is made again", self.folder / name, fault)
        if faults or not self.metrics_path.exists() or not self.predictions_path.exists():
            return None
        row = results.find_row(json_lines.read_rows(self.metrics_path), self.identity)
        return None if row is None else Result.from_row(row)

    def complete(self, result: Result) -> Result:
        """Add the figures that an earlier result lacks, and append the row if any were added."""
        predictions = results.read_predictions(self.predictions_path)
        fuller = replace(result, **self._extras(predictions, result.rtfx))
        if fuller != result:
            self._append_row(fuller)
        return fuller

    def conclude(
        self,
        transcriptions: list[Transcription],
        wall_s: float | None,
        num_parameters: int | None,
    ) -> Result:
        """Score transcriptions, write predictions and metrics, and return the result.

        Raises:
            ValueError: too many clips could not be used, or an id occurs twice.
        """
        # In the order of their ids, whichever process decoded them.
        good = sorted((t for t in transcriptions if t.problem is None), key=lambda t: t.id)
        _check_complete(transcriptions, good, self.scoring.max_bad_fraction, str(self.spec))
        predictions = [self._prediction(transcription) for transcription in good]
        with self.outputs.replacing(self.predictions_path) as temporary:
            results.write_predictions(temporary, predictions)
        figures = self._figures(predictions, [t.duration_s for t in good])
        rtfx = comparison.ratio(figures["audio_s"], wall_s)
        result = Result.from_row(
            {
                **self.identity,
                **figures,
                **self.more_figures(good),
                "baselines": [],
                **self._extras(predictions, rtfx),
                "num_bad": len(transcriptions) - len(good),
                "num_parameters": num_parameters,
                "wall_s": None if wall_s is None else round(wall_s, 3),
                "rtfx": rtfx,
                **self._provenance(),
            }
        )
        with self.outputs.replacing(self.predictions_path.with_suffix(".json")) as temporary:
            write_json(temporary, result.to_row())
        self._write_worst(predictions)
        self._append_row(result)
        return result

    def _append_row(self, result: Result) -> None:
        # Rows are only added, whoever wrote those that are there.
        self.outputs.add({self.metrics_path: Written()})
        json_lines.append_row(self.metrics_path, result.to_row())

    def _provenance(self) -> dict[str, Any]:
        """Return the path of the predictions, the columns read, and the versions of the code."""
        return {
            "predictions": str(self.predictions_path.relative_to(self.folder)),
            "columns": {
                schema.AUDIO: self.spec.audio_column,
                schema.TEXT: self.spec.text_column,
                schema.ID: self.spec.id_column,
            },
            "versions": versions(),
            "commit": code_commit(),
        }

    def _figures(
        self, predictions: list[Prediction], durations_s: list[float | None]
    ) -> dict[str, Any]:
        """Return error rates, their intervals and edits, and rates by duration."""
        tally = comparison.tally(predictions, self.normalizer)
        known_s = [seconds for seconds in durations_s if seconds is not None]
        has_audio = len(known_s) == len(predictions)
        return {
            **asdict(tally.scores()),
            "ci": rate_intervals(tally.counts),
            "edits": {name: asdict(edits) for name, edits in tally.totals().edits.items()},
            "by_duration": tally.by_duration(known_s) if has_audio else [],
            "audio_s": round(sum(known_s), 3) if has_audio else None,
        }

    def _extras(self, predictions: list[Prediction], rtfx: float | None) -> dict[str, Any]:
        """Return the figures that are computed on request: Japanese words, baselines."""
        extras: dict[str, Any] = {}
        if self.scoring.with_words:
            extras |= _japanese_word_figures(predictions)
        if self.baselines:
            extras["baselines"] = [self._against(b, predictions, rtfx) for b in self.baselines]
        return extras

    def _against(
        self, baseline: Result, predictions: list[Prediction], rtfx: float | None
    ) -> dict[str, Any]:
        theirs = results.read_predictions(self.folder / baseline.predictions)
        return {
            "model": baseline.model,
            "predictions": baseline.predictions,
            **comparison.compare(predictions, theirs, self.normalizer),
            "speed_ratio": comparison.ratio(rtfx, baseline.rtfx),
        }

    def more_figures(self, good: Sequence[Transcription]) -> dict[str, Any]:
        """Return further figures; the evaluation of long recordings overrides this."""
        return {}

    def _write_worst(self, predictions: list[Prediction]) -> None:
        """Write the worst utterances as text, aligned with their references."""
        unit = results.unit_of(self.normalizer.id)
        lines = [
            f"{p.id}: {rate:.1f} % of the {unit}s wrong\n"
            f"{alignment(p.reference_norm, p.prediction_norm, unit)}"
            for rate, p in worst(predictions, unit)
        ]
        with self.outputs.replacing(self.predictions_path.with_suffix(WORST)) as temporary:
            temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    def _prediction(self, transcription: Transcription) -> Prediction:
        reference, prediction = transcription.reference, transcription.prediction
        normalized = self.normalizer(reference), self.normalizer(prediction)
        return Prediction(transcription.id, *normalized, reference, prediction)


def _japanese_word_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the error rate over the words that MeCab finds, and the name of the segmenter."""
    words = japanese_words()
    scored = [p for p in predictions if p.reference_norm]
    references = [words(p.reference_norm) for p in scored]
    hypotheses = [words(p.prediction_norm) for p in scored]
    names = (name.replace("_", "-") for name in WORD_PACKAGES)
    return {
        "wer_words": word_errors(references, hypotheses).error_rate,
        "word_segmenter": " ".join(f"{name} {version(name)}" for name in names),
    }


def _check_complete(
    transcriptions: list[Transcription],
    good: list[Transcription],
    max_bad_fraction: float | None,
    name: str,
) -> None:
    if not good:
        reasons = list(dict.fromkeys(str(row.problem) for row in transcriptions))
        shown = [*reasons[:3], *([f"{len(reasons) - 3} more"] if len(reasons) > 3 else [])]
        raise ValueError(f"{name}: no clip could be used: {', '.join(shown) or 'empty'}")
    if len({row.id for row in transcriptions}) != len(transcriptions):
        raise ValueError(f"{name}: ids are not unique; name another column with --id_column_name")
    bad = len(transcriptions) - len(good)
    if bad > most_bad(len(transcriptions), max_bad_fraction):
        raise ValueError(
            f"{name}: {bad} of {len(transcriptions)} clips cannot be used; that is more than "
            f"{allowance(max_bad_fraction)}"
        )


def plan(
    form: str,
    spec: DatasetSpec,
    candidate: Candidate,
    asked: Decoding,
    scoring: Scoring,
    **algorithm: Any,
) -> Evaluation:
    """Return the evaluation of a model on a split, with all that identifies it.

    Args:
        form: `short_form` or `long_form`.
        spec: what is read.
        candidate: the model.
        asked: how to decode; fitted to what the model can do.
        scoring: how to score.
        algorithm: more settings that change the result.

    Raises:
        ValueError: the model lacks the language, or Japanese words are to be scored and the
            texts are not Japanese.
    """
    decoding = asked.in_language_of(candidate.whisper).fitted_to(candidate.whisper)
    scoring.check_words(decoding.language, decoding.task)
    normalizer = candidate.whisper.normalizer(decoding.language, decoding.task, scoring.normalizer)
    identity = {
        "form": form,
        **candidate.identity(),
        "dataset": spec.name,
        "config": spec.config,
        "split": spec.split,
        "max_rows": spec.max_rows,
        "dataset_fingerprint": sources.fingerprint(spec),
        "decoding": decoding.settings(),
        "normalizer": normalizer.id,
        "postprocessing": [],
        **algorithm,
    }
    return Evaluation(spec, decoding, normalizer, scoring, identity)


def reference_of(row: dict[str, Any]) -> str:
    """Return a row's reference without markup; "" where it has none."""
    return raw_text(row.get(schema.TEXT) or "")
