"""What the tests of the two training stages share: tiny inputs, runs, and ways to be killed."""

import faulthandler
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils.other import get_free_port
from safetensors.torch import load_file
from stage_runs import read_manifest, run, write_manifest
from tiny import load_script, tiny_model_folder, tone_manifest

from distillery.data.collators import SpeechCollator

FINETUNING, DISTILLATION = "run_finetuning.py", "run_distillation.py"
TEXTS = (  # of very different length: a mean of means would show
    "い",
    "ねこがみずをのむ。いぬとさかな。りんごとたまごをたべる。",
    "いぬとさかな",
    "う",
    "あしたはともだちとでんしゃでうみへいく。",
)
NUM_ROWS = 10


def manifest(path: Path, n: int = NUM_ROWS, **columns: Callable[[int], Any]) -> Path:
    """Write clips with texts of different length; `columns` gives more, by row number."""
    tone_manifest(path, n)
    rows = [
        {**row, "text": TEXTS[i % len(TEXTS)], **{name: make(i) for name, make in columns.items()}}
        for i, row in enumerate(read_manifest(path))
    ]
    return write_manifest(path, rows)


def model_folder(path: Path, decoder_layers: int = 2) -> Path:
    """Save a small model with a window of one second."""
    return tiny_model_folder(path, encoder_layers=1, decoder_layers=decoder_layers, window_s=1)


def student_folder(path: Path, teacher: Path) -> Path:
    """Save a student with one decoder layer of the teacher."""
    run("create_student_model.py", "-m", teacher, "-o", path, "--decoder_layers", 1)
    return path


def training_log(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Return the lines of a run's log of one kind; a kind may be given by its beginning."""
    lines = (folder / "train_log.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"].startswith(kind)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights."""
    return load_file(folder / "model.safetensors")


def assert_same_run(found: Path, wanted: Path) -> None:
    """Assert that two runs logged and ended bit for bit alike."""
    assert training_log(found, "") == training_log(wanted, "")
    one, other = weights(found), weights(wanted)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close_run(found: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    """Assert that two runs logged and ended alike but for the order of sums."""
    logs = training_log(found, ""), training_log(wanted, "")
    assert [(row["step"], row["kind"]) for row in logs[0]] == [
        (row["step"], row["kind"]) for row in logs[1]
    ]
    for one, other in zip(*logs, strict=True):
        assert one.keys() == other.keys()
        for name in set(one) - {"kind"}:
            assert abs(one[name] - other[name]) <= tolerance * (1 + abs(other[name])), (one, other)
    theirs = weights(wanted)
    for name, tensor in weights(found).items():
        assert torch.allclose(tensor, theirs[name], atol=tolerance, rtol=tolerance), name


def record_rows(monkeypatch: Any) -> list[list[dict[str, Any]]]:
    """Return a list that will hold the rows of every micro-batch that this process collates."""
    seen: list[list[dict[str, Any]]] = []
    collate = SpeechCollator.__call__

    def recording(self: SpeechCollator, rows: list[dict[str, Any]]) -> Any:
        seen.append([{"id": row["id"], "labels": row["labels"]} for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(SpeechCollator, "__call__", recording)
    return seen


def poison(monkeypatch: Any, *ids: str) -> None:
    """Let the features of some rows be NaN."""
    whole = SpeechCollator._frames

    def poisoned(self: SpeechCollator, row: dict[str, Any]) -> tuple[torch.Tensor, float]:
        frames, seconds = whole(self, row)
        return torch.full_like(frames, float("nan")) if row["id"] in ids else frames, seconds

    monkeypatch.setattr(SpeechCollator, "_frames", poisoned)


def run_with_fault(
    script: str, target: str, call: int, signal_number: int, rank: int, *args: object
) -> None:
    """Run a stage that sends itself a signal when it is about to call a function again.

    Args:
        script: path in the repository.
        target: the function, as `module:name`.
        call: number of the call, from 1.
        signal_number: what is sent.
        rank: only this process of a launch sends it.
        args: the stage's command line.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    load_script(script)
    module, name = target.split(":")
    owner = importlib.import_module(module)
    original, count = getattr(owner, name), itertools.count(1)

    def faulty(*values: Any, **named: Any) -> Any:
        if next(count) == call and int(os.environ.get("RANK", "0")) == rank:
            # To its workers too and from outside, as a scheduler does.
            kill = ["kill", f"-{signal_number}", "--", f"-{os.getpgrp()}"]
            subprocess.run(kill, check=True, start_new_session=True)
        return original(*values, **named)

    setattr(owner, name, faulty)
    run(script, *args)


def run_in_child(
    script: str, target: str, call: int, signal_number: int, *args: object
) -> int | None:
    """Do the same in a fork of this process, which costs no start; return its exit code."""
    return _exit_code(_fork({}, script, target, call, signal_number, 0, *args))


def run_in_two(
    script: str, target: str, call: int, signal_number: int, *args: object
) -> list[int | None]:
    """Do the same in two forks that train together, where the second gets the signal."""
    return list(map(_exit_code, start_two(script, target, call, signal_number, *args)))


def start_two(script: str, target: str, call: int, signal_number: int, *args: object) -> list[Any]:
    """Start them, and return the two processes."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    return [
        _fork(
            {**common, "RANK": rank, "LOCAL_RANK": rank},
            script,
            target,
            call,
            signal_number,
            1,
            *args,
        )
        for rank in ("0", "1")
    ]


def _fork(env: dict[str, str], *args: object) -> Any:
    child = multiprocessing.get_context("fork").Process(target=_in_fork, args=(env, *args))
    child.start()
    return child


def _in_fork(env: dict[str, str], *args: Any) -> None:
    os.environ.update(env)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)  # threads of this process's parent are not here
    faulthandler.dump_traceback_later(50)  # says where it hangs, if it does
    run_with_fault(*args)


def _exit_code(child: Any) -> int | None:
    child.join(60)
    code = child.exitcode
    if code is None:
        child.kill()
    return code


KILL, TERMINATE = int(signal.SIGKILL), int(signal.SIGTERM)
NEVER = 10**9  # a call that is not reached

if __name__ == "__main__":
    stage, function, when, what, who, *rest = sys.argv[1:]
    run_with_fault(stage, function, int(when), int(what), int(who), *rest)
