"""Measure a Whisper model on clips that fit into one window.

Reads   any datasets with audio and references, joined with `+`.
Writes  one row per dataset in `metric.<language>.<task>.jsonl`, and its predictions as CSV.

    accelerate launch run_short_form_eval.py -m my-org/my-student \
        -d japanese-asr/ja_asr.reazonspeech_test --text_column_name transcription \
        --language ja --dtype bfloat16 -b 64 -o eval

On a laptop:

    accelerate launch run_short_form_eval.py -m my-student -d my_test.jsonl --language ja -o eval

Punctuated by rules, and with timestamps fitted to the sound, as kotoba-whisper v1.1 does it:

    accelerate launch run_short_form_eval.py -m my-student -d my_test.jsonl --language ja -o eval \
        -p rules -s

An evaluation that was made before, of the same model on the same rows, is shown and not repeated.

Two ways without a model: texts that were predicted elsewhere are scored, and tables or a page are
made of all results in a folder. `-m` and `-d` then only name what the files hold.

    python run_short_form_eval.py --predictions_file a.csv+b.csv -m org/model-a+org/model-b \
        -d org/test-set --language ja -o eval
    python run_short_form_eval.py --pretty-table --html report.html -o eval
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, release_memory
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from distillery.cli import forecast
from distillery.cli.arguments import DataArguments, DecodingArguments, ModelArguments, RunArguments
from distillery.cli.evaluation_arguments import (
    EvaluationArguments,
    PostprocessingArguments,
    draft_problems,
)
from distillery.cli.flags import flag, missing, parse, plus_list
from distillery.cli.runtime import make_accelerator, stage_run
from distillery.data import schema, sources
from distillery.data.collators import PROBLEM, WindowCollator, Windows
from distillery.data.specs import DatasetSpec
from distillery.evaluation import evaluations, results, tables
from distillery.evaluation.evaluations import Evaluation, Heard
from distillery.storage.runs import Run
from distillery.text.normalizers import raw_text
from distillery.whisper import checkpoint
from distillery.whisper.long_form import text_of, transcribe_in_chunks
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.windows import transcribe_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedModelArguments(ModelArguments):
    """The model to run, or the names of those that were run elsewhere."""

    model_name_or_path: str | None = flag(
        None,
        "Whisper checkpoint: Hub id or folder; with --predictions_file only a name. Needed unless "
        "results that are there are only shown.",
        "-m",
        "--model",
    )


@dataclass(frozen=True, kw_only=True)
class NamedDataArguments(DataArguments):
    """One or several datasets to read, or the names of those that were read elsewhere."""

    dataset_name: str | None = flag(
        None,
        "Datasets, joined with '+' (see run_pseudo_labelling.py); with --predictions_file only "
        "names. Needed unless results that are there are only shown.",
        "-d",
        "--dataset",
    )


@dataclass(frozen=True)
class ShortFormArguments:
    """What only short-form evaluation decides."""

    chunk_length_s: float | None = flag(
        None,
        "Decode clips that are longer than so many seconds in chunks of at most that length; "
        "default: a clip must fit into the model's window.",
        "-c",
        "--chunk_length",
    )
    baseline: str | None = flag(
        None,
        "Models to evaluate on the same rows first, joined with '+'; the result of the main model "
        "then has the ratio of errors and speed to each.",
    )
    predictions_file: str | None = flag(
        None,
        "Score the predictions in these CSV files, joined with '+', with no model: columns "
        "reference_raw and prediction_raw, or reference and prediction; and id, where there is "
        "one. Needs --language.",
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
    postprocessing_args: PostprocessingArguments,
    evaluation_args: EvaluationArguments,
    form_args: ShortFormArguments,
    run_args: RunArguments,
) -> list[str]:
    """Return what is wrong with flags of several groups."""
    problems = draft_problems(evaluation_args, decoding_args)
    if form_args.predictions_file is not None:
        given = {
            "--baseline": form_args.baseline,
            "--chunk_length_s": form_args.chunk_length_s,
            "--assistant_model": evaluation_args.assistant_model,
        }
        names = [name for name, value in given.items() if value is not None]
        problems += missing(decoding_args, "language")
        if names:
            problems.append(f"{', '.join(names)}: for models; leave out --predictions_file")
        if postprocessing_args.stable_ts:
            problems.append("--stable_ts needs the sound: leave it out with --predictions_file")
        return problems
    is_named = model_args.model_name_or_path or data_args.dataset_name
    if is_named or not (form_args.pretty_table or evaluation_args.html):
        problems += missing(model_args, "model_name_or_path") + missing(data_args, "dataset_name")
    return problems


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    args: EvaluationArguments,
    short_args: ShortFormArguments,
    run_args: RunArguments,
) -> None:
    """Evaluate the model on each dataset in turn, or score files, and print tables."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    groups = (model_args, data_args, decoding_args, post_args, args, short_args, run_args)
    run = stage_run("run_short_form_eval", groups, Path(args.output_dir), {})
    if post_args.stable_ts:  # it has nothing to move otherwise
        decoding_args = replace(decoding_args, return_timestamps=True)
    if short_args.predictions_file is not None:
        if run_args.dry_run:
            forecast.show(accelerator, run, _files_forecast(short_args))
        elif accelerator.is_main_process:
            rows = _score_files(
                run, short_args, model_args, data_args, decoding_args, post_args, args
            )
            evaluations.report(accelerator, run_args, rows)
        accelerator.end_training()
    elif model_args.model_name_or_path is not None:
        _evaluate_models(
            *(run, model_args, data_args, decoding_args, post_args),
            *(args, short_args, run_args, accelerator),
        )
    if run_args.dry_run:
        return
    if short_args.pretty_table and accelerator.is_main_process:
        sys.stdout.write(tables.error_tables(results.read_folder(args.output_dir)))
    if accelerator.is_main_process:
        evaluations.write_page(args)


def _files_forecast(short_args: ShortFormArguments) -> list[forecast.Line]:
    """Say what would be scored."""
    paths = [Path(name) for name in plus_list(short_args.predictions_file)]
    rows = [sum(1 for _ in results.read_foreign_predictions(path)) for path in paths]
    return [("data", f"{path}: {n:,} predictions") for path, n in zip(paths, rows, strict=True)]


def _score_files(
    run: Run,
    short_args: ShortFormArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    args: EvaluationArguments,
) -> list[results.Row]:
    """Score predictions that are there already; the flags of model and dataset only name them."""
    postprocess = Postprocessor.load(post_args.punctuator, post_args.stable_ts)
    paths = [Path(name) for name in plus_list(short_args.predictions_file)]
    models = plus_list(model_args.model_name_or_path) or [path.stem for path in paths]
    named = data_args.dataset_name is not None
    specs = data_args.specs() if named else [DatasetSpec("predictions")]
    models = _one_each(models, "--model_name_or_path", len(paths))
    specs = _one_each(specs, "--dataset_name", len(paths))
    rows = []
    for path, model, spec in zip(paths, models, specs, strict=True):
        one = evaluations.plan_for_file(
            path, model, spec, decoding_args, args, **post_args.identity()
        )
        row = one.earlier()
        if row is None:
            heard = [
                Heard(row_id, raw_text(said), postprocess.punctuated(raw_text(found)), None)
                for row_id, said, found in results.read_foreign_predictions(path)
            ]
            run.write_config()
            rows.append(one.conclude(heard, None, None, max_bad_fraction=0.0))
        else:
            logger.info("%s was scored before: %s", path, one.metrics_path)
            rows.append(one.complete(row))
    return rows


def _one_each(values: list[Any], name: str, num_files: int) -> list[Any]:
    """Return one value for each file from as many values, or from one for all."""
    if len(values) not in (1, num_files):
        raise ValueError(
            f"{name} names {len(values)}, but --predictions_file {num_files} files: join "
            f"{num_files} with '+', or give one"
        )
    return values * num_files if len(values) == 1 else values


def _evaluate_models(
    run: Run,
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    args: EvaluationArguments,
    short_args: ShortFormArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> None:
    """Evaluate the baselines and then the model, with one model in memory at a time."""
    postprocess = Postprocessor()
    if not run_args.dry_run:
        postprocess = Postprocessor.load(post_args.punctuator, post_args.stable_ts)
    how = (decoding_args, post_args, postprocess, args, short_args, run_args, accelerator)
    baselines: list[results.Row] = []
    for name in plus_list(short_args.baseline):
        own_args = replace(model_args, model_name_or_path=name, model_revision=None)
        model = evaluations.load(own_args, run_args, accelerator)
        steps = _steps(model, own_args, *how)
        baselines += evaluations.measure_each(accelerator, run, model, data_args, run_args, *steps)
        del model, steps
        release_memory()
    model = evaluations.load_with_assistant(model_args, args, run_args, accelerator)
    steps = _steps(model, model_args, *how)
    evaluations.evaluate_each(accelerator, run, model, data_args, run_args, *steps, baselines)


def _steps(
    model: checkpoint.Whisper,
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    postprocess: Postprocessor,
    args: EvaluationArguments,
    short_args: ShortFormArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> tuple[Callable[..., Evaluation], Callable[..., tuple[list[Heard], float]]]:
    """Return how an evaluation of a model is planned, and how the model transcribes a dataset."""
    chunk_length_s = short_args.chunk_length_s
    evaluations.check_chunk(chunk_length_s, model)
    return (
        lambda spec: [
            evaluations.plan(
                *("short_form", spec, model, model_args, decoding_args, args),
                chunk_length_s=chunk_length_s,
                **post_args.identity(),
            )
        ],
        lambda one, rows: _transcribe(
            one, rows, model, postprocess, args, short_args, run_args, accelerator
        ),
    )


def _transcribe(
    one: Evaluation,
    rows: sources.Rows,
    model: checkpoint.Whisper,
    postprocess: Postprocessor,
    args: EvaluationArguments,
    short_args: ShortFormArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> tuple[list[Heard], float]:
    """Transcribe a dataset on all processes; return all rows, and the seconds it took."""
    heard: list[Heard] = []
    collate = WindowCollator(model.log_mel, short_args.chunk_length_s, postprocess.stable_ts)
    bar = tqdm(desc="evaluating", unit=" clips", disable=not accelerator.is_local_main_process)
    started = time.perf_counter()
    for batch in _batches(rows, collate, args, run_args, accelerator):
        heard += _hear(batch, one, model, short_args.chunk_length_s, postprocess, accelerator)
        bar.update(len(batch.rows))
    bar.close()
    everything = gather_object(heard)
    return everything, time.perf_counter() - started


def _batches(
    rows: sources.Rows,
    collate: WindowCollator,
    args: EvaluationArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> Iterator[Windows]:
    """Yield this process's share of the dataset: every so-many-th batch."""
    size, count, mine = (
        args.per_device_eval_batch_size,
        accelerator.num_processes,
        accelerator.process_index,
    )
    if not isinstance(rows, sources.Dataset):
        chunks = sources.iterate_chunks(rows, size)
        return (collate(chunk) for index, chunk in chunks if index % count == mine)
    starts = range(0, len(rows), size)[mine::count]
    indices = [list(range(start, min(start + size, len(rows)))) for start in starts]
    return iter(
        DataLoader(
            rows,
            batch_sampler=indices,
            collate_fn=collate,
            num_workers=run_args.dataloader_num_workers,
        )
    )


def _hear(
    batch: Windows,
    one: Evaluation,
    model: checkpoint.Whisper,
    chunk_length_s: float | None,
    postprocess: Postprocessor,
    accelerator: Accelerator,
) -> list[Heard]:
    """Transcribe a batch; of clips that are longer than a chunk, the chunks."""
    in_chunks: dict[str, str] = {}
    if chunk_length_s is not None and batch.long:
        ids, size = list(batch.long), len(batch.rows)
        found = transcribe_in_chunks(
            model, batch.long.values(), one.decoding, size, chunk_length_s=chunk_length_s
        )
        in_chunks = {ids[number]: text_of(segments) for number, segments in found}
    written: Iterator[Any] = iter(())
    if batch.features is not None:
        features = batch.features.to(accelerator.device)
        written = zip_longest(transcribe_windows(model, features, one.decoding), batch.waveforms)
    heard = []
    for row in batch.rows:
        reference, row_id = evaluations.reference_of(row), row[schema.ID]
        if row[PROBLEM]:
            logger.warning("clip %s %s", row_id, row[PROBLEM])
            heard.append(Heard(row_id, reference, "", 0.0, row[PROBLEM]))
            continue
        if row_id in batch.long:
            # Of its chunks only the text is left; times would not change it.
            text = postprocess.punctuated(in_chunks[row_id])
        else:
            transcript, waveform = next(written)
            text = postprocess(model, transcript.ids, waveform)
        heard.append(Heard(row_id, reference, text, row[schema.DURATION]))
    return heard


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__, check=check))
