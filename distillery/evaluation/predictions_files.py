"""Scoring of predictions that are in files already; no model is run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distillery.data.specs import DatasetSpec
from distillery.evaluation.evaluations import Evaluation, Scoring, Transcription
from distillery.evaluation.results import Result, read_foreign_predictions
from distillery.storage.files import sha256
from distillery.storage.runs import Run
from distillery.text.normalizers import normalizer_for, raw_text
from distillery.text.tokens import TRANSCRIBE
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True)
class PredictionsFile:
    """A file of predictions: see `results.read_foreign_predictions`.

    Attributes:
        path: of the file.
        model: name of the model that wrote them.
        spec: names what was transcribed; it is not read.
    """

    path: Path
    model: str
    spec: DatasetSpec


def name_files(
    paths: Sequence[Path], models: Sequence[str], specs: Sequence[DatasetSpec]
) -> list[PredictionsFile]:
    """Pair each file with its model and its test set.

    Args:
        paths: the files.
        models: as many names, or one for all; without any, the files' own names.
        specs: as many test sets, or one for all; without any, `predictions`.

    Raises:
        ValueError: `models` or `specs` are neither one nor as many as the files.
    """
    models = models or [path.stem for path in paths]
    specs = specs or [DatasetSpec("predictions")]
    models = _for_each_file(models, "--model_name_or_path", len(paths))
    specs = _for_each_file(specs, "--dataset_name", len(paths))
    return [PredictionsFile(*names) for names in zip(paths, models, specs, strict=True)]


def _for_each_file(values: Sequence[Value], flag: str, num_files: int) -> list[Value]:
    if len(values) not in (1, num_files):
        raise ValueError(
            f"{flag} names {len(values)}, but --predictions_file {num_files} files: join "
            f"{num_files} with '+', or give one"
        )
    return list(values) * num_files if len(values) == 1 else list(values)


def score_files(
    run: Run,
    files: Sequence[PredictionsFile],
    language: str,
    task: str,
    scoring: Scoring,
    punctuator: str | None = None,
) -> list[Result]:
    """Score files, unless that was done before, and return the result of each.

    Args:
        run: the flags, which are written beside the results where something was scored.
        files: what is scored.
        language: spoken, as a code or an English name.
        task: `transcribe` or `translate`.
        scoring: how to score.
        punctuator: adds punctuation to the predictions; see `load_punctuator`.

    Raises:
        ValueError: a file is malformed, or no reference has text.
    """
    postprocess = Postprocessor.load(punctuator, stable_ts=False)
    steps = {"postprocessing": ["punctuator"] if punctuator else [], "punctuator": punctuator}
    asked = Decoding(language, task, timestamps=False, num_beams=0, max_length=0)
    results = []
    for file in files:
        evaluation = plan_for_file(file, asked, scoring, steps)
        earlier = evaluation.earlier()
        if earlier is None:
            run.refuse_unshared_folder()
            transcriptions = _transcriptions(file.path, postprocess)
            run.write_config()
            results.append(evaluation.conclude(transcriptions, None, None))
        else:
            logger.info("%s was scored before: %s", file.path, evaluation.metrics_path)
            results.append(evaluation.complete(earlier))
    if run.outputs.is_pending:
        run.share()
    return results


def _transcriptions(path: Path, postprocess: Postprocessor) -> list[Transcription]:
    return [
        Transcription(
            row_id, raw_text(reference), postprocess.punctuated(raw_text(prediction)), None
        )
        for row_id, reference, prediction in read_foreign_predictions(path)
    ]


def plan_for_file(
    file: PredictionsFile, asked: Decoding, scoring: Scoring, steps: Mapping[str, Any]
) -> Evaluation:
    """Return the evaluation of a file, with all that identifies it.

    Args:
        file: what is scored.
        asked: the decoding, of which only language and task are known.
        scoring: how to score.
        steps: how the predictions are processed before they are scored.

    Raises:
        ValueError: Japanese words are to be scored and the texts are not Japanese.
    """
    scoring.check_words(asked.language, asked.task)
    # What a model translates into is English.
    spoken = asked.language if asked.task == TRANSCRIBE else "en"
    normalizer = normalizer_for(spoken, variant=scoring.normalizer)
    identity: dict[str, Any] = {
        "form": "short_form",
        "model": file.model,
        "dataset": file.spec.name,
        "config": file.spec.config,
        "split": file.spec.split,
        "predictions_sum": sha256(file.path),
        "decoding": {"language": asked.language, "task": asked.task},
        "normalizer": normalizer.id,
        **steps,
    }
    return Evaluation(file.spec, asked, normalizer, scoring, identity)
