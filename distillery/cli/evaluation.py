"""What the stages that evaluate models share beside their flags: loading, order, and the report."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from distillery.cli import forecast
from distillery.cli.arguments import DecodingArguments, ModelArguments
from distillery.cli.evaluation_arguments import ScoringArguments
from distillery.cli.runtime import load_model, load_outline
from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.evaluation import comparison, tables
from distillery.evaluation.evaluations import Candidate, Evaluation, Scoring, Transcription
from distillery.evaluation.predictions_files import PredictionsFile
from distillery.evaluation.report import gather, write_report
from distillery.evaluation.results import Result, read_foreign_predictions
from distillery.ingest import sources
from distillery.storage.outputs import Written
from distillery.storage.runs import Run
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.compute import ATTENTIONS
from distillery.whisper.speculation import with_draft
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)

Planner = Callable[[DatasetSpec], Sequence[Evaluation]]
Transcribe = Callable[[Evaluation, sources.Rows], tuple[list[Transcription], float]]


def load_candidate(
    model_args: ModelArguments,
    accelerator: Accelerator,
    assistant: str | None = None,
    *,
    outline: bool = False,
) -> Candidate:
    """Load a model, and the assistant that drafts for it where one is named.

    Args:
        model_args: the flags.
        accelerator: of this launch.
        assistant: Hub id or folder.
        outline: load no weights, for a dry run.

    Raises:
        ValueError: the assistant does not fit.
    """
    name = model_args.model_name_or_path
    whisper = _load(model_args, accelerator, outline)
    if assistant is not None:
        draft_args = replace(model_args, model_name_or_path=assistant, model_revision=None)
        try:
            whisper = with_draft(whisper, _load(draft_args, accelerator, outline))
        except ValueError as error:
            raise ValueError(f"--assistant_model {assistant}: {error}") from error
    return Candidate(
        whisper,
        checkpoint.full_name(name),
        checkpoint.fingerprint(name),
        model_args.model_revision,
        model_args.compute_dtype,
        ATTENTIONS[model_args.attn_type],  # what runs, by transformers' name
        assistant and checkpoint.full_name(assistant),
        assistant and checkpoint.fingerprint(assistant),
    )


def _load(model_args: ModelArguments, accelerator: Accelerator, outline: bool) -> Whisper:
    return load_outline(model_args) if outline else load_model(model_args, accelerator)


def scoring_of(
    args: ScoringArguments, max_bad_fraction: float | None = 0.0, *, verify: bool = False
) -> Scoring:
    """Return how the flags want transcripts to be scored."""
    folder = Path(args.output_dir)
    return Scoring(folder, args.normalizer, args.japanese_words, max_bad_fraction, verify)


def decoding_of(args: DecodingArguments, max_length: int) -> Decoding:
    """Return how the flags want windows to be decoded, by whatever model."""
    return Decoding(
        args.language,
        args.task,
        args.return_timestamps,
        args.generation_num_beams,
        max_length,
        args.temperature_fallback,
    )


def check_chunk(chunk_length_s: float | None, whisper: Whisper) -> None:
    """Raise ValueError if a chunk does not fit into the model's window."""
    if chunk_length_s is not None and chunk_length_s > whisper.log_mel.window_s:
        raise ValueError(
            f"--chunk_length_s {chunk_length_s:g} is more than the model's window of "
            f"{whisper.log_mel.window_s:g} s"
        )


def load_splits(specs: Iterable[DatasetSpec]) -> list[tuple[DatasetSpec, sources.Rows]]:
    """Load datasets; each must have references.

    Raises:
        ValueError: a dataset has no column of references.
    """
    splits = []
    for spec in specs:
        rows = sources.load(spec)
        sources.require_column(rows, spec, schema.TEXT, "--text_column_name")
        splits.append((sources.with_split(spec, rows), rows))
    return splits


def evaluate(
    accelerator: Accelerator,
    run: Run,
    whisper: Whisper,
    splits: Iterable[tuple[DatasetSpec, sources.Rows]],
    plan: Planner,
    transcribe: Transcribe,
    baselines: Sequence[Result] = (),
) -> list[Result]:
    """Evaluate a model on each split in turn, unless the same was done before.

    Returns on the main process a result for each evaluation, on the others none.

    Args:
        accelerator: of this launch.
        run: the flags, which are written beside the results where something was evaluated.
        whisper: the model.
        splits: what `load_splits` returned.
        plan: puts together what identifies each evaluation on a split.
        transcribe: returns the transcriptions of all processes, and the seconds that they took.
        baselines: results of the models to compare with.
    """
    results = []
    for spec, rows in splits:
        place = (spec.name, spec.config, spec.split)
        rivals = tuple(b for b in baselines if (b.dataset, b.config, b.split) == place)
        for planned in plan(spec):
            evaluation = replace(planned, baselines=rivals)
            earlier = evaluation.earlier()
            accelerator.wait_for_everyone()  # all have looked before one of them writes
            if earlier is None:
                if accelerator.is_main_process:
                    run.refuse_unshared_folder()
                transcriptions, wall_s = transcribe(evaluation, rows)
                if accelerator.is_main_process:
                    run.write_config()
                    count = whisper.num_parameters
                    results.append(evaluation.conclude(transcriptions, wall_s, count))
            elif accelerator.is_main_process:
                name = Path(evaluation.identity["model"]).name
                earlier_path = evaluation.metrics_path
                logger.info("%s on %s was evaluated before: %s", name, spec, earlier_path)
                results.append(evaluation.complete(earlier))
    if accelerator.is_main_process and run.outputs.is_pending:
        run.share()
    return results


def show_forecast(
    accelerator: Accelerator,
    run: Run,
    candidate: Candidate,
    specs: Iterable[DatasetSpec],
    plan: Planner,
) -> None:
    """Print what an evaluation would do and take."""
    whisper = candidate.whisper
    speech = [forecast.survey(spec, schema.TEXT, "--text_column_name") for spec in specs]
    planned = [evaluation for each in speech for evaluation in plan(each.spec)]
    num_done = sum(evaluation.earlier() is not None for evaluation in planned)
    decoding, batch_size = planned[0].decoding, run.arguments["per_device_eval_batch_size"]
    lines = [
        *forecast.data_lines(speech),
        forecast.model_line(str(run.arguments["model_name_or_path"]), whisper),
        forecast.windows_line(speech, whisper.log_mel.window_s),
        forecast.decoding_memory(whisper, batch_size, decoding.num_beams, decoding.max_length),
        forecast.disk_line(run.folder, None, "predictions, which are small,"),
        ("resume", f"{num_done} of {len(planned)} evaluations were made before"),
    ]
    forecast.show(accelerator, run, lines)


def files_forecast(files: Iterable[PredictionsFile]) -> list[forecast.Line]:
    """Say what would be scored."""
    counts = {file.path: len(read_foreign_predictions(file.path)) for file in files}
    return [("data", f"{path}: {count:,} predictions") for path, count in counts.items()]


def report(accelerator: Accelerator, results: Sequence[Result]) -> None:
    """Print tables of results and comparisons, and hand the results to the trackers."""
    shown = tables.folder_names(result.model for result in results)
    sys.stdout.write(tables.result_table(results, shown))
    compared = [line for result in results for line in comparison.table_rows(result, shown)]
    if compared:
        sys.stdout.write("\n" + tables.markdown_table(compared, list(compared[0]), decimals=2))
    for step, result in enumerate(results):
        figures = {k: v for k, v in result.to_row().items() if isinstance(v, int | float)}
        accelerator.log({f"{result.form}/{name}": v for name, v in figures.items()}, step=step)


def write_page(args: ScoringArguments, run: Run) -> None:
    """Write the page of --html, if it was asked for."""
    if args.html is not None:
        folder, path = Path(args.output_dir), Path(args.html)
        write_report(path, gather(folder))
        if path.is_relative_to(folder):
            run.outputs.add({path: Written.of(path)})
            run.share()
        logger.info("report: %s", args.html)
