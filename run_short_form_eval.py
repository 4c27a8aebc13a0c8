r"""Measure a Whisper model on clips that fit into one window.

Reads   any datasets with audio and references, joined with `+`.
Writes  one row per dataset in `metric.<language>.<task>.jsonl`, and its predictions as CSV.

    python run_short_form_eval.py -m my-org/my-student \
        -d japanese-asr/ja_asr.reazonspeech_test --text_column_name transcription \
        --language ja --dtype bfloat16 -b 64 -o eval

On a laptop:

    python run_short_form_eval.py -m my-student -d my_test.jsonl --language ja -o eval

Punctuated by rules, and with timestamps fitted to the sound, as kotoba-whisper v1.1 does it:

    python run_short_form_eval.py -m my-student -d my_test.jsonl --language ja -o eval \
        -p rules -s

An evaluation that was made before, of the same model on the same rows, is shown and not repeated.

The published commands also score files and print tables with this script, without a model. The
script for that is `score_predictions.py`; `--predictions_file` and `--pretty-table` still work
here.
"""

from dataclasses import dataclass
from pathlib import Path

from distillery.cli.arguments import DecodingArguments, ModelArguments, RunArguments
from distillery.cli.evaluation_arguments import (
    EvaluationArguments,
    NamedDataArguments,
    NamedModelArguments,
    PostprocessingArguments,
    draft_problems,
)
from distillery.cli.flags import flag, missing, parse, plus_list


@dataclass(frozen=True)
class ShortFormArguments:
    """Chunks, baselines and tables."""

    chunk_length_s: float | None = flag(
        None,
        "Decode clips longer than this, in seconds, in chunks of at most this length; "
        "default: a clip must fit into the model's window.",
        "-c",
        "--chunk_length",
    )
    baseline: str | None = flag(
        None,
        "Models to evaluate on the same rows first, joined with '+'; the result of the main model "
        "then has the ratio of errors and speed to each.",
        is_input=True,
    )
    predictions_file: str | None = flag(
        None,
        "Score the predictions in these CSV files, joined with '+', with no model: the same as "
        "score_predictions.py. Needs --language.",
    )
    pretty_table: bool = flag(
        False,
        "Print CER, WER, raw CER and raw WER of all results in --output_dir, models by test sets, "
        "as Markdown; without a model it only prints.",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = []
        if self.chunk_length_s is not None and self.chunk_length_s <= 0:
            problems.append(f"--chunk_length_s must be > 0, got {self.chunk_length_s}")
        for path in plus_list(self.predictions_file):
            if not Path(path).is_file():
                problems.append(f"--predictions_file {path}: there is no such file")
        return problems


GROUPS = (
    NamedModelArguments,
    NamedDataArguments,
    DecodingArguments,
    PostprocessingArguments,
    EvaluationArguments,
    ShortFormArguments,
    RunArguments,
)


def check(
    model_args: NamedModelArguments,
    data_args: NamedDataArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    args: EvaluationArguments,
    short_args: ShortFormArguments,
) -> list[str]:
    """Return what is wrong with flags of several groups."""
    problems = draft_problems(args, decoding_args)
    if short_args.predictions_file is not None:
        for_models = {
            "--baseline": short_args.baseline,
            "--chunk_length_s": short_args.chunk_length_s,
            "--assistant_model": args.assistant_model,
        }
        given = [name for name, value in for_models.items() if value is not None]
        problems += missing(decoding_args, "language")
        if given:
            problems.append(f"{', '.join(given)}: for models; leave out --predictions_file")
        if post_args.stable_ts:
            problems.append("--stable_ts needs the sound: leave it out with --predictions_file")
        return problems
    is_named = model_args.model_name_or_path or data_args.dataset_name
    if is_named or not (short_args.pretty_table or args.html):
        problems += missing(model_args, "model_name_or_path") + missing(data_args, "dataset_name")
    return problems


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, release_memory
from datasets import IterableDataset
from torch.utils.data import DataLoader

from distillery.cli import evaluation as stages
from distillery.cli import forecast
from distillery.cli.runtime import (
    hold_folder,
    log_end,
    log_start,
    make_accelerator,
    stage_run,
    start_trackers,
)
from distillery.data.collators import WindowCollator, Windows
from distillery.data.specs import DatasetSpec
from distillery.evaluation import evaluations, results, tables
from distillery.evaluation.evaluations import Evaluation, Scoring, Transcription
from distillery.evaluation.predictions_files import name_files, score_files
from distillery.evaluation.results import Result
from distillery.evaluation.transcription import ClipTranscriber
from distillery.ingest import sources
from distillery.storage.progress import ProgressBar
from distillery.storage.runs import Run
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)


def main(
    model_args: NamedModelArguments,
    data_args: NamedDataArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    args: EvaluationArguments,
    short_args: ShortFormArguments,
    run_args: RunArguments,
) -> None:
    """Evaluate the model on each dataset in turn, or score files, and print tables."""
    groups = (model_args, data_args, decoding_args, post_args, args, short_args, run_args)
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    run = stage_run("run_short_form_eval", groups, Path(args.output_dir), {})
    is_writing = short_args.predictions_file or model_args.model_name_or_path
    if is_writing and accelerator.is_main_process and not run_args.dry_run:
        hold_folder(run)
    if not run_args.dry_run:
        start_trackers(accelerator, run, run_args.wandb_project)
    made: list[Result] = []
    if short_args.predictions_file is not None:
        made = _score_files(accelerator, run, groups)
    elif model_args.model_name_or_path is not None:
        made = _evaluate_models(accelerator, run, groups)
    if run_args.dry_run:
        return
    if accelerator.is_main_process:
        if short_args.pretty_table:
            shown = tables.error_tables(results.read_folder(args.output_dir))
            sys.stdout.write(f"\n{shown}" if made else shown)
        stages.write_page(args, run)
        if made:
            summary = f"metric.*.jsonl and predictions; results: {len(made)}"
            log_end(run, summary, f"python score_predictions.py -o {args.output_dir}")
    accelerator.end_training()


def _score_files(accelerator: Accelerator, run: Run, groups: tuple[Any, ...]) -> list[Result]:
    """Score predictions that are there already; the flags of model and dataset only name them."""
    model_args, data_args, decoding_args, post_args, args, short_args, run_args = groups
    paths = [Path(name) for name in plus_list(short_args.predictions_file)]
    specs = data_args.specs() if data_args.dataset_name is not None else []
    files = name_files(paths, plus_list(model_args.model_name_or_path), specs)
    if run_args.dry_run:
        forecast.show(accelerator, run, stages.files_forecast(files))
    elif accelerator.is_main_process:
        language = decoding_args.language
        scoring = stages.scoring_of(args, verify=run_args.verify)
        punctuator = post_args.punctuator
        scored = score_files(run, files, language, decoding_args.task, scoring, punctuator)
        stages.report(accelerator, scored)
        return scored
    return []


def _evaluate_models(accelerator: Accelerator, run: Run, groups: tuple[Any, ...]) -> list[Result]:
    """Evaluate the baselines and then the model, with one model in memory at a time."""
    model_args, data_args, decoding_args, post_args, args, short_args, run_args = groups
    postprocess = Postprocessor()
    if accelerator.is_main_process and not run_args.dry_run:
        run.refuse_damaged_inputs()
    if not run_args.dry_run:
        postprocess = Postprocessor.load(post_args.punctuator, post_args.stable_ts)
    if post_args.stable_ts:  # it has nothing to move otherwise
        decoding_args = replace(decoding_args, return_timestamps=True)
    evaluator = _Evaluator(
        accelerator,
        run,
        data_args.specs(),
        stages.decoding_of(decoding_args, args.generation_max_length),
        stages.scoring_of(args, data_args.max_bad_fraction, verify=run_args.verify),
        {"chunk_length_s": short_args.chunk_length_s, **post_args.identity()},
        _Transcriber(
            accelerator,
            postprocess,
            args.per_device_eval_batch_size,
            short_args.chunk_length_s,
            run_args.dataloader_num_workers,
            run_args.logging_steps,
        ),
    )
    sets = " + ".join(map(str, evaluator.specs))
    name = str(model_args.model_name_or_path)
    if not run_args.dry_run:
        log_start(run, accelerator, name, model_args.compute_dtype, f"clips of {sets}")
    baselines: list[Result] = []
    for baseline in plus_list(short_args.baseline):
        baseline_args = replace(model_args, model_name_or_path=baseline, model_revision=None)
        baselines += evaluator.evaluate(baseline_args, run_args.dry_run)
        release_memory()
    measured = evaluator.evaluate(model_args, run_args.dry_run, args.assistant_model, baselines)
    if accelerator.is_main_process and not run_args.dry_run:
        stages.report(accelerator, [*baselines, *measured])
    return [*baselines, *measured]


@dataclass(frozen=True)
class _Transcriber:
    """Transcribes datasets, on all processes.

    `reported` are the ids of unusable clips that the log has named: once for all models.
    """

    accelerator: Accelerator
    postprocess: Postprocessor
    batch_size: int
    chunk_length_s: float | None
    num_workers: int
    logging_steps: int
    reported: set[str] = field(default_factory=set)

    def transcribe(
        self, whisper: Whisper, decoding: Decoding, rows: sources.Rows
    ) -> tuple[list[Transcription], float]:
        """Return the transcriptions of all processes, and the seconds they took."""
        clips = ClipTranscriber(
            whisper, decoding, self.batch_size, self.chunk_length_s, self.postprocess
        )
        transcriptions: list[Transcription] = []
        is_quiet = not self.accelerator.is_local_main_process
        bar = ProgressBar(desc="evaluating", unit=" clips", disable=is_quiet)
        started = time.perf_counter()
        for transcription in clips.transcribe(self._batches(whisper, rows)):
            transcriptions.append(transcription)
            self._report(transcription)
            bar.update()
            if len(transcriptions) % (self.logging_steps * self.batch_size) == 0:
                logger.info("%d clips transcribed", len(transcriptions))
        bar.close()
        everything = gather_object(transcriptions)
        return everything, time.perf_counter() - started

    def _batches(self, whisper: Whisper, rows: sources.Rows) -> Iterator[Windows]:
        """Yield this process's share of the batches: `count` processes take them in turn."""
        collate = WindowCollator(whisper.log_mel, self.chunk_length_s)
        size, count = self.batch_size, self.accelerator.num_processes
        share = self.accelerator.process_index
        if isinstance(rows, IterableDataset):
            chunks = sources.iterate_chunks(rows, size)
            return (collate(chunk) for index, chunk in chunks if index % count == share)
        starts = range(0, len(rows), size)[share::count]
        indices = [list(range(start, min(start + size, len(rows)))) for start in starts]
        return iter(
            DataLoader(
                rows, batch_sampler=indices, collate_fn=collate, num_workers=self.num_workers
            )
        )

    def _report(self, transcription: Transcription) -> None:
        if transcription.problem is not None and transcription.id not in self.reported:
            self.reported.add(transcription.id)
            logger.warning("clip %s %s", transcription.id, transcription.problem)


@dataclass(frozen=True)
class _Evaluator:
    """What all models of a run share; `algorithm` holds the other settings of a result."""

    accelerator: Accelerator
    run: Run
    specs: list[DatasetSpec]
    asked: Decoding
    scoring: Scoring
    algorithm: Mapping[str, Any]
    transcriber: _Transcriber

    def evaluate(
        self,
        model_args: ModelArguments,
        dry_run: bool,
        assistant: str | None = None,
        baselines: list[Result] | None = None,
    ) -> list[Result]:
        """Load a model and evaluate it on each dataset; in a dry run, show the forecast."""
        candidate = stages.load_candidate(model_args, self.accelerator, assistant, outline=dry_run)
        whisper = candidate.whisper
        stages.check_chunk(self.algorithm["chunk_length_s"], whisper)

        def plan(spec: DatasetSpec) -> list[Evaluation]:
            form = "short_form"
            return [
                evaluations.plan(form, spec, candidate, self.asked, self.scoring, **self.algorithm)
            ]

        def transcribe(
            planned: Evaluation, rows: sources.Rows
        ) -> tuple[list[Transcription], float]:
            return self.transcriber.transcribe(whisper, planned.decoding, rows)

        if dry_run:
            stages.show_forecast(self.accelerator, self.run, candidate, self.specs, plan)
            return []
        splits = stages.load_splits(self.specs)
        return stages.evaluate(
            self.accelerator, self.run, whisper, splits, plan, transcribe, baselines or []
        )


if __name__ == "__main__":
    main(*ARGUMENTS)
