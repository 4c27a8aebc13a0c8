"""Kill a stage at random moments, start it again, and compare what it leaves with a quiet run.

    PYTHONPATH=.:tests:tests/stages python benchmarks/kills.py --stage labelling --kills 200
    PYTHONPATH=.:tests:tests/stages python benchmarks/kills.py --stage training --processes 2

Stages: labelling, drawing (labelling by temperature fallback), filtering, training, evaluation,
inference. Each run is killed (SIGKILL, with all that it started) in a few starts, and then started
once more, which must end well and in time. A third of the kills come at a moment drawn over the
length of a quiet run, a third inside a save, a third where results get their final names. Of two
processes sometimes one alone is killed; the other must then end by itself. What a run leaves must
be what the quiet run left: the same files, with the same rows, weights, logs, results and reports
in them, bit for bit but for dates and seconds.

Starts are forks of this process, which has everything imported: the time is spent on work that can
be hurt. Prints one row of the table in `benchmarks/README.md`, and the files that differ.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
from accelerate.state import AcceleratorState
from accelerate.utils.other import get_free_port
from stage_runs import run, talkative_model_folder, wrap
from tiny import load_script, tone_manifest
from training_runs import manifest, model_folder, student_folder

# What a process is doing when it is killed; it begins with the last, and ends with it.
PHASES = WORKING, SAVING, PUBLISHING, ELSEWHERE = "working", "saving", "publishing", "elsewhere"
MOST_KILLS = 4  # of one run
ENDS_WITHIN_S = 120  # a start that nobody disturbs, or whose other process is gone
EVALUATION = "run_short_form_eval.py"


@dataclass(frozen=True)
class Command:
    """A stage's command line without `--output_dir`, and what it does in which function."""

    script: str
    flags: list[object]
    phases: Mapping[str, str]


def labelling(folder: Path, size: int) -> Command:
    """Label clips in shards of three."""
    teacher = talkative_model_folder(folder / "teacher")
    # Of one speaker: each shard begins with the window before it.
    clips = tone_manifest(folder / "clips" / "clips.jsonl", size, num_speakers=1)
    flags = ["-m", teacher, "-d", clips, "-l", "ja", "--return_timestamps"]
    flags += ["--max_label_length", 24, "--rows_per_shard", 3, "-b", 2]
    flags += ["--concatenate_audio", "False"]  # more windows, in which a kill can fall
    phases = {"_label": WORKING, "_finish": PUBLISHING}
    phases = {f"run_pseudo_labelling:{name}": phase for name, phase in phases.items()}
    phases["distillery.labelling.shards:ShardWriter.write"] = SAVING
    return Command("run_pseudo_labelling.py", flags, phases)


def drawing(folder: Path, size: int) -> Command:
    """Label clips, of which each begins again at temperatures, where ids are drawn."""
    step = labelling(folder, size)
    return replace(step, flags=[*step.flags, "--temperature_fallback"])


def filtering(folder: Path, size: int) -> Command:
    """Filter what labelling made, in shards of three."""
    step = labelling(folder, size)
    run(step.script, *step.flags, "-o", folder / "labelled")
    flags = ["-d", folder / "labelled", "--rows_per_shard", 3, "--cer_threshold", 1000]
    phases = {
        "run_data_filtering:_filter_split": WORKING,
        "distillery.filtering.filter_shards:write_sealed": SAVING,
        "run_data_filtering:_finish": PUBLISHING,
    }
    return Command("run_data_filtering.py", flags, phases)


def training(folder: Path, size: int) -> Command:
    """Distil, with a checkpoint after every fourth update and an evaluation after every eighth."""
    clips, teacher = manifest(folder / "clips.jsonl"), model_folder(folder / "teacher", 3)
    student = student_folder(folder / "student", teacher)
    flags = ["-m", student, "--teacher", teacher, "-d", clips, "--language", "ja"]
    flags += ["--max_steps", size, "--save_steps", 4, "--save_total_limit", 3]
    flags += ["--logging_steps", 2, "--per_device_train_batch_size", 2]
    flags += ["--do_eval", "--eval_dataset_name", clips, "--eval_steps", 8]
    flags += ["--predict_with_generate", "--generation_max_length", 24]
    phases = {
        "run_distillation:distil": WORKING,
        "distillery.training.resume:save_checkpoint": SAVING,
        "distillery.training.resume:finish": PUBLISHING,
    }
    return Command("run_distillation.py", flags, phases)


def evaluation(folder: Path, size: int) -> Command:
    """Score two sets of clips, and write a page about them."""
    model = talkative_model_folder(folder / "model")
    one = tone_manifest(folder / "clips" / "one.jsonl", size // 2)
    other = tone_manifest(folder / "clips" / "other.jsonl", size - size // 2)
    flags = ["-m", model, "-d", f"{one}+{other}", "-l", "ja", "-b", 2]
    flags += ["--generation_max_length", 24, "--html", folder / "out" / "page.html"]
    phases = {
        "distillery.evaluation.results:write_predictions": SAVING,
        "distillery.storage.json_lines:append_row": SAVING,
    }
    phases["run_short_form_eval:_Transcriber.transcribe"] = WORKING
    phases["distillery.evaluation.evaluations:Evaluation.conclude"] = PUBLISHING
    phases["distillery.cli.evaluation:write_page"] = PUBLISHING
    return Command(EVALUATION, flags, phases)


def inference(folder: Path, size: int) -> Command:
    """Transcribe recordings of one window or more, to all kinds of files."""
    model = talkative_model_folder(folder / "model")
    short = tone_manifest(folder / "clips" / "short.jsonl", size - size // 3)
    long = tone_manifest(folder / "clips" / "long.jsonl", size // 3, seconds=9.0)
    flags = ["-m", model, "-d", f"{short}+{long}", "-l", "ja", "-b", 2]
    flags += ["--generation_max_length", 24, "--output_formats", "txt,srt,vtt"]
    phases = {
        "run_inference:_transcribe": WORKING,
        "distillery.data.transcript_files:TranscriptFiles.add": SAVING,
        "run_inference:_complete": PUBLISHING,
    }
    return Command("run_inference.py", flags, phases)


STAGES = {f.__name__: f for f in (labelling, drawing, filtering, training, evaluation, inference)}


# --- what a run leaves ----------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """Return what each file of a folder says, by its name.

    Locks and hidden files say nothing: what was half written when a kill came, and shards of work.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    return {
        str(name): content(path)
        for path, name in names.items()
        if name.suffix != ".lock" and not any(part.startswith(".") for part in name.parts)
    }


class Nearly(float):
    """A number whose last digits may differ: those of a sum depend on who shared its batch."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, abs_tol=1e-5)


def content(path: Path) -> Any:
    """Return what must be the same in every run: all but dates, seconds and checksums."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        rows = [
            {name: Nearly(value) if name == "avg_logprob" else value for name, value in row.items()}
            for row in table.to_pylist()
        ]
        return table.schema, rows
    if path.name == "run.json":
        return {**json.loads(path.read_text("utf-8")), "seconds": None, "files": None}
    if path.name == "page.html":
        return re.sub("<time.*?</time>", "", path.read_text("utf-8"))
    return path.read_bytes()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name the files that only one of two runs left, or that say something else."""
    return [
        f"{name}: {'missing' if name not in found else 'changed' if name in wanted else 'left'}"
        for name in sorted({*found, *wanted})
        if name not in found or name not in wanted or found[name] != wanted[name]
    ]


# --- starts and kills -----------------------------------------------------------------------------


class Start:
    """A stage, started in forks of this process.

    Attributes:
        phase: number of the phase that each process is in.
        visits: how often a process began each phase.
        seconds: that each phase took, all visits together.
    """

    def __init__(self, command: Command, output: Path, num_processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self.phase = context.Array("i", [PHASES.index(ELSEWHERE)] * num_processes, lock=False)
        self.visits = context.Array("i", len(PHASES), lock=False)
        self.seconds = context.Array("d", len(PHASES), lock=False)
        common = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
        common["MASTER_PORT"] = str(get_free_port())
        self.children = []
        for rank in range(num_processes):
            place = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            args = (place if num_processes > 1 else {}, partial(self._mark, rank), command, output)
            self.children.append(context.Process(target=in_fork, args=args))
            self.children[-1].start()

    def _mark(self, rank: int, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function so that it tells which phase its process is in."""
        number = PHASES.index(phase)

        def marked(*args: Any, **named: Any) -> Any:
            before, began = self.phase[rank], time.monotonic()
            self.phase[rank] = number
            self.visits[number] += 1
            try:
                return function(*args, **named)
            finally:
                self.phase[rank] = before
                self.seconds[number] += time.monotonic() - began

        return marked

    def await_visit(self, phase: str, visit: int) -> None:
        """Wait until a process is in a phase, for the so manieth time, or all have ended."""
        while self.visits[PHASES.index(phase)] < visit:
            if not any(child.is_alive() for child in self.children):
                return
            time.sleep(0.0005)

    def codes_within(self, seconds: float) -> list[int | None] | None:
        """Return the exit codes if all processes end in time, else None; none is killed."""
        deadline = time.monotonic() + seconds
        for child in self.children:
            child.join(max(0.0, deadline - time.monotonic()))
        codes = [child.exitcode for child in self.children]
        return None if None in codes else codes

    def end_well(self, seconds: float) -> bool:
        """Tell whether all processes end in time.

        Raises:
            SystemExit: one of them fails, though nobody killed it.
        """
        codes = self.codes_within(seconds)
        if codes is not None and any(codes):
            raise SystemExit(f"a start that nobody killed ended with {codes}")
        return codes is not None

    def kill(self, chooser: random.Random) -> tuple[str, bool] | None:
        """Kill all processes; of several, in half of the cases one alone.

        The others are then killed within a second, as `torchrun`, and so `accelerate launch`, does.
        In half of the cases where they have met the one that is gone, they must end by themselves.

        Returns:
            The phase that it ended, and whether it was one process alone; None if nothing ran.

        Raises:
            SystemExit: a process waits for another that is gone.
        """
        alone = len(self.children) > 1 and chooser.random() < 0.5
        victim = chooser.choice(self.children) if alone else self.children[0]
        kill_group(victim.pid)
        victim.join()
        phase = PHASES[self.phase[self.children.index(victim)]]
        if not alone or phase == ELSEWHERE or chooser.random() < 0.5:
            time.sleep(alone * chooser.uniform(0, 1))
            self.kill_all()
        codes = self.codes_within(ENDS_WITHIN_S)
        self.kill_all()
        if codes is None:
            raise SystemExit(f"a process goes on though another was killed while {phase}")
        return (phase, alone) if victim.exitcode == -signal.SIGKILL else None

    def kill_all(self) -> None:
        """Kill all processes and what they started."""
        for child in self.children:
            kill_group(child.pid)


def kill_group(group: int) -> None:
    """Kill a process and all that it started, unless they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def in_fork(
    place: Mapping[str, str], mark: Callable[..., Any], command: Command, output: Path
) -> None:
    """Run a stage, in a process group of its own and without a word."""
    os.setpgrp()
    os.environ.update(place)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stdout.fileno())
    os.dup2(quiet, sys.stderr.fileno())
    AcceleratorState._reset_state(reset_partial_state=True)
    stage: Any = load_script(command.script)
    if command.script == EVALUATION:  # a clock by which every evaluation takes a second
        stage.time = SimpleNamespace(perf_counter=itertools.count().__next__)
    for target, phase in command.phases.items():
        wrap(target, partial(mark, phase))
    run(command.script, *command.flags, "-o", output)


# --- campaigns ------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a campaign found.

    Attributes:
        phases: number of kills by the phase that they ended.
        num_alone: kills of one process alone.
        num_runs: runs that were completed, most of them after kills.
        different: for each run that left something else, the files.
        quiet_s: how long a run takes that nobody disturbs.
    """

    phases: Counter[str] = field(default_factory=Counter)
    num_alone: int = 0
    num_runs: int = 0
    different: list[list[str]] = field(default_factory=list)
    quiet_s: float = 0.0


def campaign(
    stage: str, folder: Path, num_processes: int, num_kills: int, size: int, seed: int
) -> Report:
    """Kill runs of a stage until there were enough kills.

    Args:
        stage: one of `STAGES`.
        folder: for inputs and runs.
        num_processes: that share the work.
        num_kills: at least so many.
        size: clips, or updates.
        seed: of the moments.

    Raises:
        SystemExit: a start that nobody killed failed, or one did not end.
    """
    chooser, report = random.Random(seed), Report()
    output = folder / "out"
    new_start = partial(Start, STAGES[stage](folder, size), output, num_processes)
    began = time.monotonic()
    quiet = new_start()
    complete(quiet)
    report.quiet_s = time.monotonic() - began
    wanted = contents(output)
    while report.phases.total() < num_kills:
        shutil.rmtree(output)
        kill_some(new_start, chooser, report, quiet)
        complete(new_start())
        report.num_runs += 1
        if found := differences(contents(output), wanted):
            report.different.append(found)
        sys.stderr.write(f"{report.phases.total()} kills, {report.num_runs} runs\n")
    return report


def complete(start: Start) -> None:
    """Let a start end well."""
    if not start.end_well(ENDS_WITHIN_S):
        start.kill_all()
        raise SystemExit(f"a start that nobody disturbed takes more than {ENDS_WITHIN_S} s")


def kill_some(
    new_start: Callable[[], Start], chooser: random.Random, report: Report, quiet: Start
) -> None:
    """Kill a few starts of one run, at random moments of all of it, of a save, or of its end."""
    for _ in range(chooser.randint(1, MOST_KILLS)):
        start = new_start()
        phase = chooser.choice((WORKING, SAVING, PUBLISHING))
        within_s = report.quiet_s
        if phase != WORKING:
            number = PHASES.index(phase)
            # A start that goes on with another has fewer of them: not always the last.
            start.await_visit(phase, chooser.randint(1, 1 + quiet.visits[number] // 2))
            within_s = quiet.seconds[number] / quiet.visits[number]
        if start.end_well(chooser.uniform(0, within_s)):
            return
        if killed := start.kill(chooser):
            report.phases[killed[0]] += 1
            report.num_alone += killed[1]


def main(stage: str, num_processes: int, num_kills: int, size: int, seed: int) -> None:
    """Run the campaign and print its row."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        report = campaign(stage, Path(name), num_processes, num_kills, size, seed)
    for files in report.different:
        print("differs:", "; ".join(files))
    kills = [str(report.phases[phase]) for phase in PHASES]
    columns = ["stage", "processes", "kills", *PHASES, "one alone", "runs", "differ", "quiet run"]
    row = [stage, num_processes, report.phases.total(), *kills, report.num_alone, report.num_runs]
    row += [len(report.different), f"{report.quiet_s:.1f} s"]
    for cells in (columns, ["---", *["---:"] * (len(columns) - 1)], row):
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--processes", dest="num_processes", type=int, default=1)
    parser.add_argument("--kills", dest="num_kills", type=int, default=200)
    parser.add_argument("--size", type=int, default=48, help="clips, or updates of the training")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
