r"""Measure how fast Whisper models turn audio into text, against each other in one run.

Reads   any datasets with audio, laid end to end and cut to the lengths; default: synthetic sound.
Writes  one row per model, length and batch in `speed.jsonl`; the same in `speed.csv`, `speed.png`.

    python run_speed_eval.py -m openai/whisper-large-v3+my-org/my-student \
        -d my_test.jsonl --language ja --dtype bfloat16 --attn_type sdpa -o speed

On a laptop, with two small models:

    python run_speed_eval.py -m teacher+student -l ja --lengths_s 10+30 --max_batch_size 8 -o speed

For each length, every model is measured at batch 1, and at the batch that saturates: the batch is
doubled until a doubling is less than --min_growth faster, or memory ends. Runs of the models
alternate strictly, after a run of each to warm up; times are medians, and the ratio to the first
model has a 95 % t-interval over the pairs of runs. What is longer than a model's window is
decoded in chunks. Lengths that were measured before, on the same device with the same versions, are
shown and not repeated.

A model with random weights, or on sound that is no speech, hardly stops by itself: give
`--num_tokens 40` and each window gets exactly 40 ids from every model.
"""

import math
from dataclasses import dataclass
from typing import Any

from distillery.cli.arguments import DataArguments, DecodingArguments, ModelArguments, RunArguments
from distillery.cli.flags import at_least, flag, parse, plus_list


@dataclass(frozen=True, kw_only=True)
class SpeedDataArguments(DataArguments):
    """Datasets to read; without any, sound is made."""

    dataset_name: str | None = flag(
        None,
        "Datasets whose recordings are laid end to end, joined with '+' (see "
        "run_pseudo_labelling.py); default: synthetic sound.",
        "-d",
        "--dataset",
    )


@dataclass(frozen=True)
class SpeedArguments:
    """Measurement of speed."""

    output_dir: str = flag("speed", "Folder for the figures.", "-o", resumable=True)
    lengths_s: str = flag("10+30+60+300", "Lengths of the recordings in seconds, joined with '+'.")
    num_tokens: int | None = flag(
        None,
        "Ids that every model writes for each window, neither more nor fewer; default: until it "
        "ends by itself.",
    )
    generation_max_length: int = flag(
        225, "Most ids of the transcript of one window.", "--max_label_length"
    )
    num_runs: int = flag(5, "Runs of which the median is taken, at least 3.")
    max_batch_size: int = flag(256, "Largest batch to try, in windows.")
    min_growth: float = flag(
        0.05, "Share by which a doubled batch must be faster for a larger one to be tried."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *_length_problems(self.lengths_s),
            *at_least(self, "num_tokens", 1),
            *at_least(self, "generation_max_length", 8),
            *at_least(self, "num_runs", 3),
            *at_least(self, "max_batch_size", 1),
            *at_least(self, "min_growth", 0),
        ]


def _length_problems(lengths_s: str) -> list[str]:
    try:
        if all(0 < float(length) < math.inf for length in lengths_s.split("+")):
            return []
    except ValueError:
        pass
    return [f"--lengths_s must be numbers above 0, joined with '+'; got {lengths_s}"]


GROUPS = (ModelArguments, SpeedDataArguments, DecodingArguments, SpeedArguments, RunArguments)


def check(model_args: ModelArguments) -> list[str]:
    """Return what is wrong with flags of several groups."""
    if model_args.model_revision is None or len(plus_list(model_args.model_name_or_path)) < 2:
        return []
    return ["--model_revision: for one model"]


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

import logging
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from distillery.audio.decoding import AudioError, Waveform, decode_audio
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
from distillery.data import schema
from distillery.evaluation import speed
from distillery.evaluation.speed import Sound, SpeedCandidate
from distillery.evaluation.speed_results import (
    ONE,
    SATURATING,
    SpeedResult,
    draw,
    earlier_results,
    speed_table,
    write_csv,
)
from distillery.ingest import sources
from distillery.storage.json_lines import JsonRow, append_row
from distillery.storage.ledger import allowance, most_bad
from distillery.storage.outputs import Written
from distillery.storage.provenance import code_commit, versions
from distillery.storage.runs import Run
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.compute import ATTENTIONS
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)

MOST_SOUND_S = 1800.0  # of a dataset; longer recordings repeat it


def main(
    model_args: ModelArguments,
    data_args: SpeedDataArguments,
    decoding_args: DecodingArguments,
    args: SpeedArguments,
    run_args: RunArguments,
) -> None:
    """Measure all models at all lengths; write rows, table and plot."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    if accelerator.num_processes > 1:
        raise ValueError("speed is measured by one process: launch with --num_processes 1")
    groups = (model_args, data_args, decoding_args, args, run_args)
    run = stage_run("run_speed_eval", groups, Path(args.output_dir), {})
    if not run_args.dry_run:
        run.refuse_damaged_inputs()
    if accelerator.is_main_process and not run_args.dry_run:
        hold_folder(run)
    candidates = _load_candidates(model_args, decoding_args, args, run_args.dry_run, accelerator)
    identity = _identity(groups, candidates, accelerator.device)
    path = Path(args.output_dir) / "speed.jsonl"
    names = [candidate.name for candidate in candidates]
    lengths_s = [float(length) for length in args.lengths_s.split("+")]
    results = {each: earlier_results(path, identity, names, each) for each in lengths_s}
    missing_s = [length_s for length_s in lengths_s if not results[length_s]]
    if run_args.dry_run:
        num_done = len(lengths_s) - len(missing_s)
        lines = _forecast(run, candidates, data_args, args, num_done)
        forecast.show(accelerator, run, lines)
        return
    start_trackers(accelerator, run, run_args.wandb_project)
    rows = f"recordings of {' + '.join(args.lengths_s.split('+'))} s"
    log_start(run, accelerator, str(model_args.model_name_or_path), model_args.compute_dtype, rows)
    if missing_s:
        run.refuse_unshared_folder()
        run.write_config()
        run.outputs.add({path: Written()})
        sound = _sound(data_args, candidates[0].whisper.log_mel.sampling_rate, max(missing_s))
    for length_s in missing_s:
        more = {**identity, "commit": code_commit()}
        measured = _measure_length(candidates, sound, length_s, args, run_args.logging_steps)
        results[length_s] = [replace(result, more=more) for result in measured]
        for result in results[length_s]:
            append_row(path, result.to_row())
    all_results = [result for length_s in lengths_s for result in results[length_s]]
    _leave(run, accelerator, path, all_results, is_new=run.outputs.is_pending)
    log_end(run, "speed.jsonl, speed.csv and speed.png")
    accelerator.end_training()


def _load_candidates(
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    args: SpeedArguments,
    dry_run: bool,
    accelerator: Accelerator,
) -> list[SpeedCandidate]:
    """Load all models, which must have windows of one length, so that all do the same work."""
    asked = stages.decoding_of(decoding_args, args.generation_max_length)
    candidates = []
    for name in plus_list(model_args.model_name_or_path):
        named = replace(model_args, model_name_or_path=name)
        candidate = stages.load_candidate(named, accelerator, outline=dry_run)
        decoding = asked.in_language_of(candidate.whisper).fitted_to(candidate.whisper)
        if args.num_tokens is not None:
            decoding = _of_exact_length(candidate.whisper, decoding, args.num_tokens)
        candidates.append(SpeedCandidate(**vars(candidate), decoding=decoding))
    windows_s = [candidate.whisper.log_mel.window_s for candidate in candidates]
    if len(set(windows_s)) > 1:
        raise ValueError(
            f"--model_name_or_path: models with windows of {windows_s} s do not do the same work"
        )
    return candidates


def _of_exact_length(whisper: Whisper, decoding: Decoding, num_tokens: int) -> Decoding:
    """Return the decoding, and set the model, for exactly `num_tokens` ids per window."""
    prefix = whisper.tokens.prefix(decoding.language, decoding.task, decoding.timestamps)
    longest = len(prefix) + num_tokens
    if longest > whisper.max_label_length:
        most = whisper.max_label_length - len(prefix)
        raise ValueError(f"--num_tokens {num_tokens}: a window has room for {most}")
    whisper.model.generation_config.min_new_tokens = num_tokens
    return replace(decoding, max_length=longest)


def _sound(data_args: DataArguments, rate: int, longest_s: float) -> Sound:
    """Return the clips of the datasets end to end, or synthetic sound."""
    if data_args.dataset_name is None:
        logger.warning("no --dataset_name: synthetic sound, whose transcripts mean nothing")
        return Sound(speed.synthetic_sound(max(60.0, longest_s), rate), rate, 0)
    clips, num_bad, num_samples = [], 0, 0
    for clip in _clips(data_args, rate):
        num_bad += clip is None
        if clip is not None:
            clips.append(clip)
            num_samples += len(clip)
        if num_samples >= max(MOST_SOUND_S, longest_s) * rate:
            break
    num_clips, allowed = len(clips) + num_bad, data_args.max_bad_fraction
    if not clips or num_bad > most_bad(num_clips, allowed):
        raise ValueError(
            f"--dataset_name {data_args.dataset_name}: {num_bad} of {num_clips} clips cannot be "
            f"used; that is more than {allowance(allowed)}"
        )
    if num_samples < longest_s * rate:
        logger.warning("the datasets hold %.0f s: longer recordings repeat", num_samples / rate)
    return Sound(np.concatenate(clips), rate, num_bad)


def _clips(data_args: DataArguments, rate: int) -> Iterator[Waveform | None]:
    """Yield the samples of each clip, None for one that cannot be decoded."""
    for spec in data_args.specs():
        rows = sources.load(spec)
        sources.require_column(rows, spec, schema.AUDIO, "--audio_column_name")
        for row in rows:
            try:
                yield decode_audio(row[schema.AUDIO], rate)
            except AudioError as error:
                logger.warning("clip %s %s", row[schema.ID], error)
                yield None


def _identity(
    groups: tuple[Any, ...], candidates: Sequence[SpeedCandidate], device: torch.device
) -> JsonRow:
    """Return everything that determines the figures except length and batch."""
    model_args, data_args, decoding_args, args, _ = groups
    specs = [] if data_args.dataset_name is None else data_args.specs()
    return {
        "models": [[candidate.name, candidate.fingerprint] for candidate in candidates],
        "model_revision": model_args.model_revision,
        "sound": [[str(spec), sources.fingerprint(spec)] for spec in specs] or "made",
        "max_rows": data_args.max_samples,
        "dtype": model_args.compute_dtype,
        "attention": ATTENTIONS[model_args.attn_type],
        "language": decoding_args.language,
        "task": decoding_args.task,
        "timestamps": decoding_args.return_timestamps,
        "num_beams": decoding_args.generation_num_beams,
        "num_tokens": args.num_tokens,
        "max_length": args.generation_max_length,
        "num_runs": args.num_runs,
        "max_batch_size": args.max_batch_size,
        "min_growth": args.min_growth,
        "device": _device_name(device),
        "versions": versions(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text("utf-8").splitlines() if cpu.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{device.type}: {name}, {torch.get_num_threads()} threads"


def _forecast(
    run: Run,
    candidates: Sequence[SpeedCandidate],
    data_args: DataArguments,
    args: SpeedArguments,
    num_done: int,
) -> list[forecast.Line]:
    """Return the lines of a dry run."""
    specs = [] if data_args.dataset_name is None else data_args.specs()
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    lengths = args.lengths_s.split("+")
    settings = f"batch 1 and the best batch up to {args.max_batch_size}"
    return [
        *(forecast.data_lines(speech) or [("data", "synthetic sound")]),
        *[forecast.model_line(each.name, each.whisper) for each in candidates],
        *[
            forecast.decoding_memory(
                each.whisper,
                args.max_batch_size,
                each.decoding.num_beams,
                each.decoding.max_length,
            )
            for each in candidates
        ],
        ("steps", f"{' + '.join(lengths)} s at {settings}, {args.num_runs} runs each"),
        forecast.disk_line(run.folder, None, "figures, which are small,"),
        ("resume", f"{num_done} of {len(lengths)} lengths were measured before"),
    ]


def _measure_length(
    candidates: Sequence[SpeedCandidate],
    sound: Sound,
    length_s: float,
    args: SpeedArguments,
    logging_steps: int,
) -> list[SpeedResult]:
    """Measure all models on recordings of one length, at batch 1 and where they saturate."""
    logger.info("%g s: batch 1", length_s)
    measure = partial(
        speed.compare,
        candidates,
        sound=sound,
        length_s=length_s,
        num_runs=args.num_runs,
        logging_steps=logging_steps,
    )
    at_one = measure([1] * len(candidates))
    searches = []
    for candidate in candidates:
        name = Path(candidate.name).name
        logger.info("%g s: looking for the batch that saturates %s", length_s, name)
        throughput = partial(speed.throughput, candidate, sound, length_s)
        searches.append(
            speed.find_saturating_batch(throughput, args.max_batch_size, args.min_growth)
        )
        tried = ", ".join(f"{batch}: {rtfx:.1f}" for batch, rtfx in searches[-1].tried)
        logger.info("RTFx of %s by batch: %s; ended by %s", name, tried, searches[-1].ended_by)
    sizes = [search.batch_size for search in searches]
    saturated = measure(sizes)
    return [replace(result, setting=ONE) for result in at_one] + [
        replace(result, setting=SATURATING, search=search.tried, search_ended_by=search.ended_by)
        for result, search in zip(saturated, searches, strict=True)
    ]


def _leave(
    run: Run,
    accelerator: Accelerator,
    path: Path,
    results: Sequence[SpeedResult],
    is_new: bool,
) -> None:
    """Print the figures of this run; if some are new, write table and plot beside the rows."""
    if is_new:
        for kind, write in ((".csv", write_csv), (".png", draw)):
            file = path.with_suffix(kind)
            run.outputs.refuse_foreign(file)
            write(file, results)
            if file.exists():  # there is no plot without matplotlib
                run.outputs.add({file: Written.of(file)})
        run.share()
    else:
        logger.info("all lengths were measured before: %s", path)
    sys.stdout.write(speed_table(results))
    for step, result in enumerate(results):
        figures = {k: v for k, v in result.to_row().items() if isinstance(v, int | float)}
        accelerator.log({f"speed/{name}": value for name, value in figures.items()}, step=step)


if __name__ == "__main__":
    main(*ARGUMENTS)
