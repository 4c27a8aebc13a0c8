"""What short-form and long-form evaluation share: flags, scores, and the files they leave."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillery.cli import forecast
from distillery.cli.arguments import DataArguments, DecodingArguments, ModelArguments, RunArguments
from distillery.cli.evaluation_arguments import EvaluationArguments
from distillery.cli.runtime import load_model, load_outline
from distillery.data import schema, sources
from distillery.data.specs import DatasetSpec
from distillery.evaluation import comparison, results
from distillery.evaluation.report import gather, unit_of, worst, write_report
from distillery.evaluation.results import Prediction
from distillery.storage.files import replacing, sha256, write_json
from distillery.storage.provenance import code_commit, versions
from distillery.storage.runs import Run
from distillery.text.bootstrap import rate_intervals
from distillery.text.error_rates import alignment, word_errors
from distillery.text.normalizers import (
    WORD_PACKAGES,
    Normalizer,
    japanese_words,
    normalizer_for,
    raw_text,
)
from distillery.text.tokens import TRANSCRIBE, language_code
from distillery.whisper import checkpoint
from distillery.whisper.speculation import DraftedWhisper, with_draft
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """One row after decoding: what was said, what was written, and how long it lasts.

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

    `with_words` asks for the word error rate of Japanese, `baselines` are the results of other
    models on the same rows. Neither changes what is decoded, so an earlier result that lacks them
    is completed.
    """

    form: str
    spec: DatasetSpec
    decoding: Decoding
    normalizer: Normalizer
    folder: Path
    identity: dict[str, Any]
    with_words: bool = False
    baselines: tuple[results.Row, ...] = ()

    @property
    def metrics_path(self) -> Path:
        """Return the file that the result is appended to, one row per evaluation."""
        language = language_code(self.decoding.language) if self.decoding.language else "en"
        return self.folder / f"metric.{language}.{self.decoding.task}.jsonl"

    @property
    def predictions_path(self) -> Path:
        """Return the file of this evaluation's predictions; its name ends in a sum of the identity.

        Two models of the same base name therefore never share a file.
        """
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        spec = self.spec
        names = [Path(self.identity["model"]).name, Path(spec.name).stem, spec.split or ""]
        names = [name for name in names if name]
        return self.folder / "predictions" / f"{'.'.join(names)}.{digest[:8]}.csv"

    def earlier(self) -> results.Row | None:
        """Return the result of an earlier, identical evaluation, if its predictions are there."""
        if not self.metrics_path.exists() or not self.predictions_path.exists():
            return None
        return results.find_row(results.read_rows(self.metrics_path), self.identity)

    def complete(self, row: results.Row) -> results.Row:
        """Add to an earlier result what it lacks, append it if that changed it, and return it."""
        predictions = results.read_predictions(self.predictions_path)
        fuller = {**row, **self._extras(predictions, row["rtfx"])}
        if fuller != row:
            results.append_row(self.metrics_path, fuller)
        return fuller

    def conclude(
        self,
        heard: list[Heard],
        wall_s: float | None,
        num_parameters: int | None,
        max_bad_fraction: float,
    ) -> results.Row:
        """Score what was heard, write predictions and metrics, and return the row of metrics.

        Raises:
            ValueError: too many clips could not be used, or an id occurs twice.
        """
        # In the order of their ids, whichever process heard them.
        good = sorted((row for row in heard if row.problem is None), key=lambda row: row.id)
        _check_complete(heard, good, max_bad_fraction, str(self.spec))
        predictions = [self._prediction(row) for row in good]
        results.write_predictions(self.predictions_path, predictions)
        figures = self._figures(predictions, [row.duration_s for row in good])
        rtfx = comparison.ratio(figures["audio_s"], wall_s)
        row = {
            **self.identity,
            **figures,
            **self.more_figures(good),
            "wer_words": None,
            "word_segmenter": None,
            "baselines": [],
            **self._extras(predictions, rtfx),
            "num_bad": len(heard) - len(good),
            "num_parameters": num_parameters,
            "wall_s": None if wall_s is None else round(wall_s, 3),
            "rtfx": rtfx,
            "predictions": str(self.predictions_path.relative_to(self.folder)),
            "columns": {
                schema.AUDIO: self.spec.audio_column,
                schema.TEXT: self.spec.text_column,
                schema.ID: self.spec.id_column,
            },
            "versions": versions(),
            "commit": code_commit(),
        }
        write_json(self.predictions_path.with_suffix(".json"), row)
        self._write_worst(predictions)
        results.append_row(self.metrics_path, row)
        return row

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
            "edits": {name: asdict(edits) for name, edits in tally.edits().items()},
            "by_duration": tally.by_duration(known_s) if has_audio else [],
            "audio_s": round(sum(known_s), 3) if has_audio else None,
        }

    def _extras(self, predictions: list[Prediction], rtfx: float | None) -> dict[str, Any]:
        """Return the figures that are only there where they were asked for."""
        found: dict[str, Any] = {}
        if self.with_words:
            words = japanese_words()
            scored = [row for row in predictions if row.reference_norm]
            said, written = zip(
                *((words(r.reference_norm), words(r.prediction_norm)) for r in scored), strict=True
            )
            found["wer_words"] = word_errors(said, written).error_rate
            names = (name.replace("_", "-") for name in WORD_PACKAGES)
            found["word_segmenter"] = " ".join(f"{name} {version(name)}" for name in names)
        if self.baselines:
            found["baselines"] = [self._against(row, predictions, rtfx) for row in self.baselines]
        return found

    def _against(
        self, baseline: results.Row, predictions: list[Prediction], rtfx: float | None
    ) -> dict[str, Any]:
        theirs = results.read_predictions(self.folder / baseline["predictions"])
        return {
            "model": baseline["model"],
            "predictions": baseline["predictions"],
            **comparison.compare(predictions, theirs, self.normalizer),
            "speed_ratio": comparison.ratio(rtfx, baseline["rtfx"]),
        }

    def more_figures(self, good: Sequence[Heard]) -> dict[str, Any]:
        """Return figures beside the error rates; a form that has some overrides this."""
        return {}

    def _write_worst(self, predictions: list[Prediction]) -> None:
        """Write the worst utterances, aligned with their references, for a person to read."""
        unit = unit_of(self.normalizer.id)
        lines = [
            f"{p.id}: {rate:.1f} % of the {unit}s wrong\n"
            f"{alignment(p.reference_norm, p.prediction_norm, unit)}"
            for rate, p in worst(predictions, unit)
        ]
        with replacing(self.predictions_path.with_suffix(".worst.txt")) as temporary:
            temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    def _prediction(self, heard: Heard) -> Prediction:
        return Prediction(
            heard.id,
            self.normalizer(heard.reference),
            self.normalizer(heard.prediction),
            heard.reference,
            heard.prediction,
        )


def _check_complete(
    heard: list[Heard], good: list[Heard], max_bad_fraction: float, name: str
) -> None:
    if not good:
        reasons = list(dict.fromkeys(str(row.problem) for row in heard))
        shown = [*reasons[:3], *([f"{len(reasons) - 3} more"] if len(reasons) > 3 else [])]
        raise ValueError(f"{name}: no clip could be used: {', '.join(shown) or 'empty'}")
    if len({row.id for row in heard}) != len(heard):
        raise ValueError(f"{name}: ids are not unique; name another column with --id_column_name")
    bad = len(heard) - len(good)
    if bad > max_bad_fraction * len(heard):
        raise ValueError(
            f"{name}: {bad} of {len(heard)} clips cannot be used; that is more than "
            f"--max_bad_fraction {max_bad_fraction:g} allows"
        )


def plan(
    form: str,
    spec: DatasetSpec,
    model: checkpoint.Whisper,
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    **algorithm: Any,
) -> Evaluation:
    """Put together what identifies one evaluation.

    Args:
        form: `short_form` or `long_form`.
        spec: what is read.
        model: the model, loaded.
        model_args, decoding_args, args: the flags.
        algorithm: more settings that change the result.
    """
    decoding = Decoding(
        language_of(decoding_args.language, model),
        decoding_args.task,
        decoding_args.return_timestamps,
        decoding_args.generation_num_beams,
        args.generation_max_length,
    ).fitted_to(model)
    _check_words(args, decoding)
    normalizer = model.normalizer(decoding.language, decoding.task, args.normalizer)
    name = model_args.model_name_or_path
    assistant = args.assistant_model if isinstance(model, DraftedWhisper) else None
    identity = {
        "form": form,
        "model": checkpoint.full_name(name),
        "model_revision": model_args.model_revision,
        "model_fingerprint": checkpoint.fingerprint(name),
        "dataset": spec.name,
        "config": spec.config,
        "split": spec.split,
        "max_rows": spec.max_rows,
        "dataset_fingerprint": sources.fingerprint(spec),
        "dtype": model_args.dtype,
        "attention": model_args.attn_type,
        "decoding": asdict(decoding),
        "normalizer": normalizer.id,
        "postprocessing": [],
        "assistant_model": assistant and checkpoint.full_name(assistant),
        "assistant_fingerprint": assistant and checkpoint.fingerprint(assistant),
        **algorithm,
    }
    folder = Path(args.output_dir)
    return Evaluation(form, spec, decoding, normalizer, folder, identity, args.japanese_words)


def plan_for_file(
    path: Path,
    model: str,
    spec: DatasetSpec,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    **algorithm: Any,
) -> Evaluation:
    """Put together what identifies the scoring of a predictions file.

    Args:
        path: the file.
        model: name of the model that wrote it.
        spec: names what was transcribed; it is not read.
        decoding_args, args: the flags; of the decoding only language and task are known.
        algorithm: more settings that change the result.
    """
    # What a model translates into is English.
    spoken = decoding_args.language if decoding_args.task == TRANSCRIBE else "en"
    normalizer = normalizer_for(spoken, variant=args.normalizer)
    decoding = Decoding(decoding_args.language, decoding_args.task, False, 0, 0)
    _check_words(args, decoding)
    identity: dict[str, Any] = {
        "form": "short_form",
        "model": model,
        "dataset": spec.name,
        "config": spec.config,
        "split": spec.split,
        "predictions_sum": sha256(path),
        "decoding": {"language": decoding.language, "task": decoding.task},
        "normalizer": normalizer.id,
        "postprocessing": [],
        **algorithm,
    }
    folder = Path(args.output_dir)
    return Evaluation(
        "short_form", spec, decoding, normalizer, folder, identity, args.japanese_words
    )


def language_of(asked: str | None, model: checkpoint.Whisper) -> str | None:
    """Return the language for the decoder's prefix: the model's own where none is asked for."""
    if model.tokens.is_multilingual:
        return asked or getattr(model.model.generation_config, "language", None)
    # An English-only model has no token for what it speaks anyway.
    return None if asked is None or language_code(asked) == "en" else asked


def _check_words(args: EvaluationArguments, decoding: Decoding) -> None:
    spoken = decoding.language and language_code(decoding.language)
    if args.japanese_words and (spoken, decoding.task) != ("ja", TRANSCRIBE):
        raise ValueError("--japanese_words needs --language ja and --task transcribe")


def load(
    model_args: ModelArguments, run_args: RunArguments, accelerator: Accelerator
) -> checkpoint.Whisper:
    """Load a model; of one that will not be run, only the outline."""
    return load_outline(model_args) if run_args.dry_run else load_model(model_args, accelerator)


def load_with_assistant(
    model_args: ModelArguments,
    args: EvaluationArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> checkpoint.Whisper:
    """Load the model, and the assistant that drafts for it where one is named.

    Raises:
        ValueError: the assistant does not fit.
    """
    model, name = load(model_args, run_args, accelerator), args.assistant_model
    if name is None:
        return model
    own_args = replace(model_args, model_name_or_path=name, model_revision=None)
    try:
        return with_draft(model, load(own_args, run_args, accelerator))
    except ValueError as error:
        raise ValueError(f"--assistant_model {name}: {error}") from error


def check_chunk(chunk_length_s: float | None, model: checkpoint.Whisper) -> None:
    """Raise ValueError if a chunk does not fit into the model's window."""
    if chunk_length_s is not None and chunk_length_s > model.log_mel.window_s:
        raise ValueError(
            f"--chunk_length_s {chunk_length_s:g} is more than the model's window of "
            f"{model.log_mel.window_s:g} s"
        )


def reference_of(row: dict[str, Any]) -> str:
    """Return a row's reference without markup; "" where it has none."""
    return raw_text(row.get(schema.TEXT) or "")


def report(accelerator: Accelerator, run_args: RunArguments, rows: list[results.Row]) -> None:
    """Print tables of results and comparisons, and hand the results to the trackers."""
    rates = ["cer_norm", "wer_norm", "cer_raw", "wer_raw"]
    columns = ["model", "dataset", "algorithm", *rates, "rtfx", "num_rows"]
    columns = [column for column in columns if any(column in row for row in rows)]
    tables = [results.markdown_table(rows, columns)]
    compared = [line for row in rows for line in comparison.table_rows(row)]
    if compared:
        tables.append(results.markdown_table(compared, list(compared[0]), decimals=2))
    for line in "\n".join(tables).splitlines():
        logger.info("%s", line)
    if accelerator.log_with:
        accelerator.init_trackers(run_args.wandb_project or "whisper-distillery-eval")
        for index, row in enumerate(rows):
            figures = {k: v for k, v in row.items() if isinstance(v, int | float)}
            accelerator.log({f"{row['form']}/{k}": v for k, v in figures.items()}, step=index)


def write_page(args: EvaluationArguments) -> None:
    """Write the page of --html, if it was asked for."""
    if args.html is not None:
        write_report(args.html, gather(Path(args.output_dir)))
        logger.info("report: %s", args.html)


def evaluate_each(
    accelerator: Accelerator,
    run: Run,
    model: checkpoint.Whisper,
    data_args: DataArguments,
    run_args: RunArguments,
    plan_each: Callable[[DatasetSpec], Sequence[Evaluation]],
    transcribe: Callable[[Evaluation, sources.Rows], tuple[list[Heard], float]],
    baselines: Sequence[results.Row] = (),
) -> None:
    """Evaluate on each dataset in turn, unless the same was done before, and report.

    Args:
        accelerator: of this launch.
        run: the flags, which are written beside the results where something was evaluated.
        model: the model; for a dry run its outline.
        data_args, run_args: the flags.
        plan_each: puts together what identifies each evaluation on a dataset.
        transcribe: returns all rows, heard by all processes, and the seconds it took.
        baselines: results of the models to compare with, from `measure_each`.
    """
    found = measure_each(
        accelerator, run, model, data_args, run_args, plan_each, transcribe, baselines
    )
    if accelerator.is_main_process and not run_args.dry_run:
        report(accelerator, run_args, [*baselines, *found])
    accelerator.end_training()


def measure_each(
    accelerator: Accelerator,
    run: Run,
    model: checkpoint.Whisper,
    data_args: DataArguments,
    run_args: RunArguments,
    plan_each: Callable[[DatasetSpec], Sequence[Evaluation]],
    transcribe: Callable[[Evaluation, sources.Rows], tuple[list[Heard], float]],
    baselines: Sequence[results.Row] = (),
) -> list[results.Row]:
    """Evaluate on each dataset in turn, unless the same was done before, without a report.

    Args:
        accelerator, run, model, data_args, run_args, plan_each, transcribe, baselines: as in
            `evaluate_each`.

    Returns:
        On the main process one row for each dataset; on the others, and in a dry run, none.
    """
    if run_args.dry_run:
        forecast.show(accelerator, run, _forecast(run, model, data_args, plan_each))
        return []
    found = []
    for spec, rows in specs_with_references(data_args):
        place = (spec.name, spec.config, spec.split)
        rivals = [b for b in baselines if (b["dataset"], b["config"], b["split"]) == place]
        for planned in plan_each(spec):
            one = replace(planned, baselines=tuple(rivals))
            row = one.earlier()
            accelerator.wait_for_everyone()  # all have looked before one of them writes
            if row is None:
                heard, wall_s = transcribe(one, rows)
                if accelerator.is_main_process:
                    run.write_config()
                    bad = data_args.max_bad_fraction
                    found.append(one.conclude(heard, wall_s, model.num_parameters, bad))
            elif accelerator.is_main_process:
                logger.info("%s was evaluated before: %s", spec, one.metrics_path)
                found.append(one.complete(row))
    return found


def _forecast(
    run: Run,
    model: checkpoint.Whisper,
    data_args: DataArguments,
    plan_each: Callable[[DatasetSpec], Sequence[Evaluation]],
) -> list[forecast.Line]:
    """Say what an evaluation would do and take."""
    flag = "--text_column_name"
    speech = [forecast.survey(spec, schema.TEXT, flag) for spec in data_args.specs()]
    planned = [each for one in speech for each in plan_each(one.spec)]
    num_done = sum(one.earlier() is not None for one in planned)
    decoding, batch_size = planned[0].decoding, run.arguments["per_device_eval_batch_size"]
    return [
        *forecast.data_lines(speech),
        forecast.model_line(planned[0].identity["model"], model),
        forecast.windows_line(speech, model.log_mel.window_s),
        forecast.decoding_memory(model, batch_size, decoding.num_beams, decoding.max_length),
        forecast.disk_line(run.folder, None, "predictions, which are small,"),
        ("resume", f"{num_done} of {len(planned)} evaluations were made before"),
    ]


def specs_with_references(data_args: DataArguments) -> list[tuple[DatasetSpec, sources.Rows]]:
    """Load every split that the flags name; each must have references.

    Raises:
        ValueError: a dataset has no column of references.
    """
    found = []
    for spec in data_args.specs():
        rows = sources.load(spec)
        sources.require_column(rows, spec, schema.TEXT, "--text_column_name")
        found.append((sources.with_split(spec, rows), rows))
    return found
