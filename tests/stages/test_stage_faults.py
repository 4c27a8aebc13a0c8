"""A full disk, full memory or a dead process ends a stage; the next start completes it."""

import errno
import itertools
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stage_runs import record, run, split_rows
from tiny import load_script
from training_runs import KILL, NEVER, run_in_two
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from distillery.filtering.filters import TranscriptFilter
from distillery.storage import files, json_lines

kills = load_script("benchmarks/kills.py")
FULL = "No space left on device"
MOST_STARTS = 30


class Quiet:
    """A stage's command, and what it left where nothing disturbed it."""

    def __init__(self, stage, folder, size=7):
        self.stage = stage
        command = kills.STAGES[stage](folder, size)
        self.args = [command.script, *command.flags, "-o", folder / "out"]
        self.output = folder / "out"
        run(*self.args)
        self.contents = kills.contents(self.output)
        shutil.copytree(self.output, folder / "kept")
        self.kept = folder / "kept"

    def begin_anew(self):
        shutil.rmtree(self.output)


@pytest.fixture(scope="module", autouse=True)
def clock():
    """Let every evaluation take a second, so that its figures are always the same."""
    stage = load_script(kills.EVALUATION)
    with pytest.MonkeyPatch.context() as patch:
        second = SimpleNamespace(perf_counter=itertools.count().__next__)
        patch.setattr(stage, "time", second)
        yield


@pytest.fixture(scope="module")
def quiet(request, tmp_path_factory):
    return Quiet(request.param, tmp_path_factory.mktemp(request.param))


def of(*stages):
    return pytest.mark.parametrize("quiet", stages, indirect=True)


def no_space(path):
    """Lose the second half of a file that is about to be whole."""
    os.truncate(path, Path(path).stat().st_size // 2)
    raise OSError(errno.ENOSPC, FULL, str(path))


# --- a full disk ----------------------------------------------------------------------------------


@of("labelling", "filtering", "evaluation")
def test_a_full_disk_ends_a_stage_and_nothing_half_written_is_taken(quiet, monkeypatch):
    """At the first start no file fits, at the second one, and so on."""
    quiet.begin_anew()
    sync, left = files.sync, [0]

    def short_of_space(path):
        if Path(path).is_file():
            left[0] -= 1
            if left[0] < 0:
                no_space(path)
        sync(path)

    monkeypatch.setattr(files, "sync", short_of_space)
    for num_failed in range(MOST_STARTS):
        left[0] = num_failed
        try:
            run(*quiet.args)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        else:
            break
    assert 3 < num_failed < MOST_STARTS - 1
    assert kills.differences(kills.contents(quiet.output), quiet.contents) == []


@of("evaluation")
def test_a_row_of_results_that_the_disk_did_not_take_is_no_result(quiet, monkeypatch):
    quiet.begin_anew()
    with monkeypatch.context() as patch:
        fsync = lambda handle: no_space(f"/proc/self/fd/{handle}")  # noqa: E731
        place = SimpleNamespace(**{**vars(os), "fsync": fsync})
        patch.setattr(json_lines, "os", place)
        with pytest.raises(OSError, match=FULL):
            run(*quiet.args)
    (path,) = quiet.output.glob("metric.*.jsonl")
    assert path.stat().st_size > 0
    assert json_lines.read_rows(path) == []
    run(*quiet.args)
    found = kills.contents(quiet.output)
    assert kills.differences(found, quiet.contents) == [f"{path.name}.torn: left"]


# --- full memory ----------------------------------------------------------------------------------


@of("labelling", "evaluation")
def test_a_batch_that_memory_does_not_hold_ends_a_stage_and_smaller_ones_complete_it(
    quiet, monkeypatch
):
    quiet.begin_anew()
    batches = itertools.count(1)
    encode = WhisperEncoder.forward

    def short_of_memory(self, *args, **named):
        if next(batches) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(WhisperEncoder, "forward", short_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            run(*quiet.args)
    if quiet.stage == "labelling":
        assert list(quiet.output.rglob("*.seal.json"))
    run(*quiet.args, "-b", 1)
    assert texts(quiet.output) == texts(quiet.kept)


def texts(folder):
    """Return what a labelling or an evaluation wrote for each clip."""
    if (folder / "default").is_dir():
        return [(row["id"], row["whisper_transcript"]) for row in split_rows(folder)]
    return [path.read_bytes() for path in sorted(folder.glob("predictions/*.csv"))]


# --- a dead process -------------------------------------------------------------------------------


@of("labelling")
def test_a_process_dies_while_labelling_and_the_other_does_not_wait_for_it(quiet, monkeypatch):
    """With no launcher that would end it; the three shards are shared unequally."""
    quiet.begin_anew()
    script, *args = quiet.args
    batches = itertools.count(1)
    encode = WhisperEncoder.forward

    def deadly(self, *values, **named):
        if os.environ["RANK"] == "1" and next(batches) == 2:
            os.kill(os.getpid(), KILL)
        return encode(self, *values, **named)

    def codes():
        return run_in_two(script, "distillery.storage.files:sync", NEVER, KILL, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WhisperEncoder, "forward", deadly)
        first, second = codes()
    assert second == -KILL
    assert first is not None  # else it had to be killed
    assert record(quiet.output)["status"] == "started"
    assert codes() == [0, 0]
    assert texts(quiet.output) == texts(quiet.kept)


# --- an error in one row --------------------------------------------------------------------------


@of("filtering")
def test_an_error_in_one_row_is_no_silent_drop(quiet, monkeypatch):
    quiet.begin_anew()
    verdict, number = TranscriptFilter.verdict, itertools.count(1)

    def failing(self, row, *values):
        if next(number) == 2:
            raise ZeroDivisionError("a fault of ours")
        return verdict(self, row, *values)

    with monkeypatch.context() as patch:
        patch.setattr(TranscriptFilter, "verdict", failing)
        with pytest.raises(ZeroDivisionError):
            run(*quiet.args)
    assert not list(quiet.output.glob("default/*"))
    run(*quiet.args)
    assert kills.differences(kills.contents(quiet.output), quiet.contents) == []
