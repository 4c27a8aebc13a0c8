"""Measure how fast Whisper models turn audio into text, against each other in one run.

Reads   any datasets with audio, laid end to end and cut to the lengths; without any, made sound.
Writes  one row per model, length and batch in `speed.jsonl`; the same in `speed.csv`, `speed.png`.

    accelerate launch run_speed_eval.py -m openai/whisper-large-v3+my-org/my-student \
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

import csv
import importlib.util
import logging
import math
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from distillery.audio.decoding import AudioError, Waveform, decode_audio
from distillery.cli import forecast
from distillery.cli.arguments import DataArguments, DecodingArguments, ModelArguments, RunArguments
from distillery.cli.flags import at_least, flag, parse, plus_list
from distillery.cli.runtime import make_accelerator, stage_run
from distillery.data import schema, sources
from distillery.evaluation import evaluations, results, speed
from distillery.evaluation.speed import Timing
from distillery.storage.files import replacing
from distillery.storage.provenance import code_commit, versions
from distillery.storage.runs import Run
from distillery.whisper import checkpoint
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)

MOST_SOUND_S = 1800.0  # of a dataset; more recordings than that holds repeat it

ONE, SATURATING = "batch 1", "saturating batch"

COLUMNS = (
    *("model", "length_s", "setting", "batch_size", "num_windows", "sound_s", "wall_s", "rtfx"),
    *("encoder_share", "decoder_share", "peak_memory_mb", "weights_mb"),
    *("speed_ratio", "speed_ratio_low", "speed_ratio_high"),
)


@dataclass(frozen=True, kw_only=True)
class SpeedDataArguments(DataArguments):
    """One or several datasets to read, joined with `+`; without any, sound is made."""

    dataset_name: str | None = flag(
        None,
        "Datasets whose recordings are laid end to end, joined with '+' (see "
        "run_pseudo_labelling.py); default: made sound.",
        "-d",
        "--dataset",
    )


@dataclass(frozen=True)
class SpeedArguments:
    """What only the measurement of speed decides."""

    output_dir: str = flag("speed", "Folder for the figures.", "-o", resumable=True)
    lengths_s: str = flag("10+30+60+300", "Lengths of the recordings in seconds, joined with '+'.")
    num_tokens: int | None = flag(
        None,
        "Have every model write exactly so many ids for each window; default: until it ends by "
        "itself.",
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


def check(model_args: ModelArguments, *others: Any) -> list[str]:
    """Return what is wrong with flags of several groups."""
    if model_args.model_revision is None or len(plus_list(model_args.model_name_or_path)) < 2:
        return []
    return ["--model_revision: for one model"]


@dataclass(frozen=True)
class Contestant:
    """A model that is measured; `name` and `fingerprint` tell it from others."""

    name: str
    fingerprint: str | None
    model: checkpoint.Whisper
    decoding: Decoding


@dataclass(frozen=True)
class Sound:
    """What is transcribed: float32 (samples,) at `rate` in Hz."""

    samples: Waveform
    rate: int
    num_bad: int


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    args: SpeedArguments,
    run_args: RunArguments,
) -> None:
    """Measure all models at all lengths and leave rows, table and picture."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    if accelerator.num_processes > 1:
        raise ValueError("speed is measured by one process: launch with --num_processes 1")
    groups = (model_args, data_args, decoding_args, args, run_args)
    run = stage_run("run_speed_eval", groups, Path(args.output_dir), {})
    contestants = _load_contestants(model_args, decoding_args, args, run_args, accelerator)
    identity = _identity(
        model_args, data_args, decoding_args, args, contestants, accelerator.device
    )
    path = Path(args.output_dir) / "speed.jsonl"
    lengths_s = [float(length) for length in args.lengths_s.split("+")]
    found = {one: _earlier(path, identity, contestants, one) for one in lengths_s}
    if run_args.dry_run:
        lines = _forecast(run, contestants, data_args, args, sum(map(bool, found.values())))
        forecast.show(accelerator, run, lines)
        return
    missing = [length_s for length_s in lengths_s if not found[length_s]]
    if missing:
        run.write_config()
        sound = _sound(data_args, contestants[0].model.log_mel.sampling_rate, max(missing))
    for length_s in missing:
        rows = _measure_length(contestants, sound, length_s, args)
        found[length_s] = [{**identity, **row, "commit": code_commit()} for row in rows]
        for row in found[length_s]:
            results.append_row(path, row)
    rows = [row for length_s in lengths_s for row in found[length_s]]
    _leave(path, rows, bool(missing))
    accelerator.end_training()


def _load_contestants(
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    args: SpeedArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> list[Contestant]:
    """Load all models; they must take windows of one length, lest their work differ."""
    found = []
    for name in plus_list(model_args.model_name_or_path):
        own_args = replace(model_args, model_name_or_path=name)
        model = evaluations.load(own_args, run_args, accelerator)
        decoding = _decoding(model, decoding_args, args)
        found.append(
            Contestant(checkpoint.full_name(name), checkpoint.fingerprint(name), model, decoding)
        )
    windows_s = [one.model.log_mel.window_s for one in found]
    if len(set(windows_s)) > 1:
        raise ValueError(
            f"--model_name_or_path: models with windows of {windows_s} s do not do the same work"
        )
    return found


def _decoding(
    model: checkpoint.Whisper, decoding_args: DecodingArguments, args: SpeedArguments
) -> Decoding:
    """Return how a model decodes; a number of ids is set in the model itself."""
    language = evaluations.language_of(decoding_args.language, model)
    asked = (language, decoding_args.task, decoding_args.return_timestamps)
    num_prefix = len(model.tokens.prefix(*asked))
    longest = min(args.generation_max_length, model.max_label_length)
    if args.num_tokens is not None:
        longest = num_prefix + args.num_tokens
        if longest > model.max_label_length:
            most = model.max_label_length - num_prefix
            raise ValueError(f"--num_tokens {args.num_tokens}: a window has room for {most}")
        model.model.generation_config.min_new_tokens = args.num_tokens
    return Decoding(*asked, decoding_args.generation_num_beams, longest)


def _sound(data_args: DataArguments, rate: int, longest_s: float) -> Sound:
    """Return the clips of the datasets end to end, or made sound."""
    if data_args.dataset_name is None:
        logger.warning("no --dataset_name: the sound is made, and what is written for it is void")
        return Sound(speed.made_sound(max(60.0, longest_s), rate), rate, 0)
    clips, num_bad, num_samples = [], 0, 0
    for clip in _clips(data_args, rate):
        num_bad += clip is None
        if clip is not None:
            clips.append(clip)
            num_samples += len(clip)
        if num_samples >= max(MOST_SOUND_S, longest_s) * rate:
            break
    if not clips or num_bad > data_args.max_bad_fraction * (len(clips) + num_bad):
        raise ValueError(
            f"--dataset_name {data_args.dataset_name}: {num_bad} of {len(clips) + num_bad} clips "
            f"cannot be used; --max_bad_fraction {data_args.max_bad_fraction:g} allows no more"
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
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    args: SpeedArguments,
    contestants: list[Contestant],
    device: torch.device,
) -> results.Row:
    """Return all that decides the figures, but length and batch."""
    specs = [] if data_args.dataset_name is None else data_args.specs()
    return {
        "models": [[one.name, one.fingerprint] for one in contestants],
        "model_revision": model_args.model_revision,
        "sound": [[str(spec), sources.fingerprint(spec)] for spec in specs] or "made",
        "max_rows": data_args.max_samples,
        "dtype": model_args.dtype,
        "attention": model_args.attn_type,
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


def _earlier(
    path: Path, identity: results.Row, contestants: list[Contestant], length_s: float
) -> list[results.Row]:
    """Return the rows of a length from an earlier, identical run; none unless all are there."""
    rows = results.read_rows(path)
    wanted = [
        {**identity, "length_s": length_s, "setting": setting, "model": one.name}
        for setting in (ONE, SATURATING)
        for one in contestants
    ]
    found = [results.find_row(rows, one) for one in wanted]
    return [row for row in found if row is not None] if all(found) else []


def _forecast(
    run: Run,
    contestants: list[Contestant],
    data_args: DataArguments,
    args: SpeedArguments,
    num_done: int,
) -> list[forecast.Line]:
    """Say what would be measured."""
    specs = [] if data_args.dataset_name is None else data_args.specs()
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    lengths = args.lengths_s.split("+")
    settings = f"batch 1 and the best batch up to {args.max_batch_size}"
    return [
        *(forecast.data_lines(speech) or [("data", "made sound")]),
        *[forecast.model_line(one.name, one.model) for one in contestants],
        *[
            forecast.decoding_memory(
                one.model, args.max_batch_size, one.decoding.num_beams, one.decoding.max_length
            )
            for one in contestants
        ],
        ("steps", f"{' + '.join(lengths)} s at {settings}, {args.num_runs} runs each"),
        forecast.disk_line(run.folder, None, "figures, which are small,"),
        ("resume", f"{num_done} of {len(lengths)} lengths were measured before"),
    ]


def _measure_length(
    contestants: list[Contestant], sound: Sound, length_s: float, args: SpeedArguments
) -> list[results.Row]:
    """Measure all models on recordings of one length, at batch 1 and where they saturate."""
    logger.info("%g s: batch 1", length_s)
    rows = _compare(contestants, [1] * len(contestants), sound, length_s, args)
    rows = [{**row, "setting": ONE} for row in rows]
    searches = []
    for one in contestants:
        logger.info("%g s: looking for the batch that saturates %s", length_s, one.name)
        throughput = partial(_throughput, one, sound, length_s)
        searches.append(
            speed.find_saturating_batch(throughput, args.max_batch_size, args.min_growth)
        )
        logger.info("batches and RTFx: %s; ended by %s", searches[-1].tried, searches[-1].ended_by)
    sizes = [search.batch_size for search in searches]
    saturated = _compare(contestants, sizes, sound, length_s, args)
    return rows + [
        {**row, "setting": SATURATING, "search": search.tried, "search_ended_by": search.ended_by}
        for row, search in zip(saturated, searches, strict=True)
    ]


def _throughput(one: Contestant, sound: Sound, length_s: float, batch_size: int) -> float:
    """Return the real-time factor of the best of three runs; the first one also warms up."""
    recordings = _recordings(one, sound, length_s, batch_size)
    wall_s = min(_run(one, recordings, batch_size).wall_s for _ in range(3))
    return sum(map(len, recordings)) / sound.rate / wall_s


def _recordings(one: Contestant, sound: Sound, length_s: float, batch_size: int) -> list[Waveform]:
    """Return the fewest recordings whose windows fill a batch."""
    num_samples = round(length_s * sound.rate)
    windows_each = math.ceil(num_samples / one.model.log_mel.window_samples)
    return speed.cut(sound.samples, math.ceil(batch_size / windows_each), num_samples)


def _run(one: Contestant, recordings: list[Waveform], batch_size: int) -> Timing:
    clock = speed.device_clock(one.model.model.device)
    return speed.time_transcription(one.model, recordings, one.decoding, batch_size, clock)


def _compare(
    contestants: list[Contestant],
    batch_sizes: list[int],
    sound: Sound,
    length_s: float,
    args: SpeedArguments,
) -> list[results.Row]:
    """Measure all models, each at its batch size, in strict alternation."""
    recordings = [
        _recordings(one, sound, length_s, size)
        for one, size in zip(contestants, batch_sizes, strict=True)
    ]
    runs = [partial(_run, *work) for work in zip(contestants, recordings, batch_sizes, strict=True)]
    timings = speed.alternate(runs, args.num_runs)
    rows = []
    for one, theirs, size, times in zip(contestants, recordings, batch_sizes, timings, strict=True):
        row = {"model": one.name, "length_s": length_s, "batch_size": size}
        rows.append({**row, **_figures(one, theirs, times, sound)})
    for row in rows[1:]:
        ratio, interval = speed.ratio_with_interval(row["rtfx_runs"], rows[0]["rtfx_runs"])
        row.update(speed_ratio=ratio, speed_ratio_low=interval[0], speed_ratio_high=interval[1])
    return rows


def _figures(
    one: Contestant, recordings: list[Waveform], timings: list[Timing], sound: Sound
) -> results.Row:
    """Return a model's figures over its runs."""
    sound_s = sum(map(len, recordings)) / sound.rate
    wall_s = statistics.median(timing.wall_s for timing in timings)
    device = one.model.model.device
    peaks = [timing.peak_bytes for timing in timings if timing.peak_bytes is not None]
    weights = sum(p.numel() * p.element_size() for p in one.model.model.parameters())
    return {
        "num_recordings": len(recordings),
        "num_windows": speed.num_windows(one.model, recordings),
        "num_bad": sound.num_bad,
        "num_parameters": one.model.num_parameters,
        "sound_s": sound_s,
        "wall_s": wall_s,
        "rtfx": sound_s / wall_s,
        "rtfx_runs": [sound_s / timing.wall_s for timing in timings],
        "encoder_share": statistics.median(t.encoder_s / t.wall_s for t in timings),
        "decoder_share": statistics.median(t.decoder_s / t.wall_s for t in timings),
        "peak_memory_mb": max(peaks) / 1e6 if peaks else None,
        "memory_kind": speed.memory_kind(device),
        "weights_mb": weights / 1e6,
    }


def _leave(path: Path, rows: list[results.Row], is_new: bool) -> None:
    """Show the figures of this run; if some are new, write table and picture beside the rows."""
    if is_new:
        _write_csv(path.with_suffix(".csv"), rows)
        _draw(path.with_suffix(".png"), rows)
    else:
        logger.info("all lengths were measured before: %s", path)
    for line in _table(rows).splitlines():
        logger.info("%s", line)


def _table(rows: list[results.Row]) -> str:
    """Return the figures to read: ratio and interval in one cell, models by their last names."""
    lines = [{**row, "model": Path(row["model"]).name} for row in rows]
    for line in lines:
        if "speed_ratio" in line:
            figures = (line["speed_ratio"], line["speed_ratio_low"], line["speed_ratio_high"])
            line["speed ratio"] = "{:.2f} [{:.2f}, {:.2f}]".format(*figures)
    shown = [name for name in COLUMNS if not name.startswith(("speed_ratio", "weights", "sound"))]
    return results.markdown_table(lines, [*shown, "speed ratio"], decimals=2)


def _write_csv(path: Path, rows: list[results.Row]) -> None:
    """Write the figures of one run as a table, in the place of an earlier run's."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _draw(path: Path, rows: list[results.Row]) -> None:
    """Draw real-time factor over length, a line for each model and batch."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("%s was not drawn: pip install matplotlib", path)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for index, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        for setting, style in ((ONE, "--"), (SATURATING, "-")):
            own = [row for row in rows if (row["model"], row["setting"]) == (model, setting)]
            points = [row["length_s"] for row in own], [row["rtfx"] for row in own]
            label = f"{Path(model).name}, {setting}"
            axes.plot(*points, style, marker="o", color=f"C{index}", label=label)
    axes.set(xlabel="seconds of audio in a recording", ylabel="seconds of audio per second")
    axes.set(xscale="log", yscale="log")
    lengths_s = sorted({row["length_s"] for row in rows})
    axes.set_xticks(lengths_s, [f"{length_s:g}" for length_s in lengths_s])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__, check=check))
