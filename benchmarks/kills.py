"""Kill a stage at random moments, start it again, and compare what it leaves with a quiet run.

    PYTHONPATH=.:tests:tests/stages python benchmarks/kills.py --stage labelling --kills 200
    PYTHONPATH=.:tests:tests/stages python benchmarks/kills.py --stage training --processes 2

Stages: labelling, filtering, training, evaluation. A run is killed (SIGKILL, with all that it
started; of two processes sometimes one alone) at moments drawn over the length of a quiet run, and
started again until it ends well; then the next run begins, until there were enough kills. What it
leaves must be what the quiet run left: rows and columns of every file, weights and loss log bit for
bit, figures of an evaluation. A training evaluates and saves all the time; how many kills fell into
either is printed too.

Starts are forks of this process, which has everything imported: the time is spent on work that can
be hurt. Prints one row of the table in `benchmarks/README.md`.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from accelerate.state import AcceleratorState
from accelerate.utils.other import get_free_port
from stage_runs import run, talkative_model_folder
from tiny import tone_manifest
from training_runs import manifest, model_folder, student_folder

NUM_CLIPS = 48
EVERY = 4  # updates between two checkpoints, and two evaluations, of a training
MOST_STARTS = 400  # of one run: it would not get on


@dataclass(frozen=True)
class Campaign:
    """A stage's command, what it leaves, and what it was doing when it was killed."""

    script: str
    flags: list[object]
    left: Callable[[Path], Any]
    was_doing: Callable[[Path, float], str] = lambda _folder, _since: "something"


def labelling(folder: Path) -> Campaign:
    """Label clips in shards of three."""
    teacher = talkative_model_folder(folder / "teacher")
    clips = tone_manifest(folder / "clips" / "clips.jsonl", NUM_CLIPS)
    flags = ["-m", teacher, "-d", clips, "-l", "ja", "--return_timestamps"]
    flags += ["--max_label_length", 24, "--rows_per_shard", 3, "-b", 2]
    return Campaign("run_pseudo_labelling.py", flags, rows_of_all_files)


def filtering(folder: Path) -> Campaign:
    """Filter what labelling made, in shards of three."""
    step = labelling(folder)
    run(step.script, *step.flags, "-o", folder / "labelled")
    flags = ["-d", folder / "labelled", "--rows_per_shard", 3, "--cer_threshold", 1000]
    return Campaign("run_data_filtering.py", flags, rows_of_all_files)


def training(folder: Path) -> Campaign:
    """Distil for sixty updates, a checkpoint and an evaluation after every fourth."""
    clips, teacher = manifest(folder / "clips.jsonl"), model_folder(folder / "teacher", 3)
    student = student_folder(folder / "student", teacher)
    flags = ["-m", student, "--teacher", teacher, "-d", clips, "--language", "ja"]
    flags += [
        "--max_steps",
        60,
        "--save_steps",
        EVERY,
        "--logging_steps",
        2,
        "--save_total_limit",
        3,
    ]
    flags += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1]
    flags += ["--do_eval", "--eval_dataset_name", clips, "--eval_steps", EVERY]
    flags += ["--predict_with_generate", "--generation_max_length", 24]
    return Campaign("run_distillation.py", flags, weights_and_log, phase_of_training)


def evaluation(folder: Path) -> Campaign:
    """Score clips."""
    model = talkative_model_folder(folder / "model")
    clips = tone_manifest(folder / "clips" / "clips.jsonl", NUM_CLIPS)
    flags = ["-m", model, "-d", clips, "-l", "ja", "-b", 2, "--generation_max_length", 24]
    return Campaign("run_short_form_eval.py", flags, predictions_and_figures)


STAGES = {f.__name__: f for f in (labelling, filtering, training, evaluation)}


def rows_of_all_files(folder: Path) -> Any:
    """Return the rows of a dataset's files, by the files' names."""
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pylist()
        for path in sorted(folder.glob("*/*.parquet"))
    }


def weights_and_log(folder: Path) -> Any:
    """Return the bytes of the trained weights, and the lines of the loss log."""
    log = (folder / "train_log.jsonl").read_text("utf-8").splitlines()
    return (folder / "model.safetensors").read_bytes(), log


def phase_of_training(folder: Path, since: float) -> str:
    """Return what a training was doing when it was killed: saving, evaluating, or something else.

    A save leaves a temporary folder that was written since the start. Before an evaluation, the
    losses of its update are logged and its checkpoint has got its name.
    """
    if any(path.stat().st_mtime >= since for path in folder.glob("*.tmp")):
        return "saving"
    log = folder / "train_log.jsonl"
    lines = log.read_text("utf-8").splitlines(True) if log.exists() else []
    if not lines or not lines[-1].endswith("\n"):
        return "something"
    last = json.loads(lines[-1])
    is_due = last["kind"] == "train" and last["step"] % EVERY == 0
    is_saved = (folder / f"checkpoint-{last['step']}").is_dir()
    return "evaluating" if is_due and is_saved else "something"


def predictions_and_figures(folder: Path) -> Any:
    """Return the predictions files, and the error rates of each row of results."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("metric.*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    rates = [[row[name] for name in ("cer_norm", "wer_norm", "cer_raw", "wer_raw")] for row in rows]
    return rates, [path.read_bytes() for path in sorted(folder.glob("predictions/*.csv"))]


class Start:
    """A stage, started in forks of this process."""

    def __init__(self, campaign: Campaign, output: Path, num_processes: int) -> None:
        common = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
        common["MASTER_PORT"] = str(get_free_port())
        ranks = [{**common, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(num_processes)]
        arguments = (campaign.script, *campaign.flags, "-o", output)
        fork = multiprocessing.get_context("fork").Process
        self.children = [
            fork(target=in_fork, args=(rank if num_processes > 1 else {}, arguments))
            for rank in ranks
        ]
        for child in self.children:
            child.start()

    def kill(self, chooser: random.Random) -> None:
        """Kill all processes; of several, sometimes one first, and the others a moment later.

        That is what `torchrun`, and so `accelerate launch`, does when one of its processes dies.
        """
        if len(self.children) > 1 and chooser.random() < 0.5:
            kill_group(chooser.choice(self.children).pid)
            time.sleep(chooser.uniform(0, 1))
        for child in self.children:
            kill_group(child.pid)
        self.codes_within(60)

    def codes_within(self, seconds: float) -> list[int | None] | None:
        """Return the exit codes if all processes end in time, else None; none is killed."""
        deadline = time.monotonic() + seconds
        for child in self.children:
            child.join(max(0.0, deadline - time.monotonic()))
        codes = [child.exitcode for child in self.children]
        return None if None in codes else codes


def kill_group(group: int) -> None:
    """Kill a process and all that it started, unless they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def in_fork(environment: dict[str, str], arguments: tuple[object, ...]) -> None:
    """Run a stage, in a process group of its own and without a word."""
    os.setpgrp()
    os.environ.update(environment)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stdout.fileno())
    os.dup2(quiet, sys.stderr.fileno())
    AcceleratorState._reset_state(reset_partial_state=True)
    run(*arguments)


def main(stage: str, num_processes: int, num_kills: int, seed: int) -> None:
    """Run the campaign and print its row."""
    chooser = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        campaign = STAGES[stage](folder)
        began = time.monotonic()
        codes = Start(campaign, folder / "quiet", num_processes).codes_within(600)
        quiet_s = time.monotonic() - began
        if codes is None or any(codes):
            raise SystemExit(f"the quiet run ended with {codes}")
        wanted = campaign.left(folder / "quiet")
        kills = runs = different = 0
        phases: Counter[str] = Counter()
        while kills < num_kills:
            output = folder / "killed"
            shutil.rmtree(output, ignore_errors=True)
            found = run_and_kill(campaign, output, num_processes, quiet_s, chooser)
            phases.update(found)
            kills += len(found)
            runs += 1
            different += campaign.left(output) != wanted
    print("| stage | processes | kills | runs | runs that differ | quiet run |")
    print(f"| {stage} | {num_processes} | {kills} | {runs} | {different} | {quiet_s:.1f} s |")
    print("killed while", ", ".join(f"{phase}: {n}" for phase, n in phases.most_common()))


def run_and_kill(
    campaign: Campaign, output: Path, num_processes: int, quiet_s: float, chooser: random.Random
) -> list[str]:
    """Start a run again and again until it ends well; return what it did at each kill."""
    phases: list[str] = []
    for _ in range(MOST_STARTS):
        since, start = time.time(), Start(campaign, output, num_processes)
        codes = start.codes_within(chooser.uniform(0, 1.2 * quiet_s))
        if codes is None:
            start.kill(chooser)
            phases.append(campaign.was_doing(output, since))
        elif not any(codes):
            return phases
        else:
            raise SystemExit(f"a start that nobody killed ended with {codes}")
    raise SystemExit(f"not done after {MOST_STARTS} starts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.stage, arguments.processes, arguments.kills, arguments.seed)
