"""What a training run keeps and goes on from; killed runs are in tests/stages/test_resume.py."""

import errno
import json
import random
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from distillery.storage import checkpoints
from distillery.storage.files import write_json
from distillery.training import disk, loss_curve, resume
from distillery.training.loop import Progress
from distillery.training.optim import make_optimizer, make_schedule
from distillery.training.settings import Optimization

# --- the log -------------------------------------------------------------------------------------


def log_of(path, *lines):
    path.write_text("".join(lines))
    return path


LINES = [json.dumps({"step": step, "kind": "train", "loss": 0.1}) + "\n" for step in (1, 2, 2, 3)]


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_the_log_is_cut_behind_a_step(tmp_path, step, kept):
    path = log_of(tmp_path / "log", *LINES)
    resume.cut_log(path, Progress(step))
    assert path.read_text() == "".join(LINES[:kept])
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_a_line_that_a_kill_cut_short_is_forgotten(tmp_path):
    path = log_of(tmp_path / "log", *LINES[:2], LINES[2][:-5])
    resume.cut_log(path, Progress(2))
    assert path.read_text() == "".join(LINES[:2])
    resume.cut_log(tmp_path / "none", Progress(2))
    assert not (tmp_path / "none").exists()


def test_without_a_checkpoint_the_log_of_a_killed_run_is_forgotten(tmp_path):
    path = log_of(tmp_path / loss_curve.LOSS_LOG, *LINES, '{"step": 4, "ki')
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    assert resume.resume(trainer, tmp_path, None, 4) == Progress()
    assert path.read_text() == ""


# --- progress ------------------------------------------------------------------------------------


def test_progress_comes_back_exactly(tmp_path):
    rng = random.Random(0)
    for _ in range(50):
        window = [rng.uniform(-1, 1) * 10 ** rng.randint(-12, 12) for _ in range(4)]
        bad_clips = [f"clip {i} is broken" for i in range(rng.randrange(3))]
        step = rng.randrange(10**9)
        progress = Progress(step, window, rng.random() / 3, bad_clips, rng.randrange(step + 1))
        write_json(tmp_path / "progress.json", asdict(progress))
        assert resume.read_progress(tmp_path / "progress.json") == progress


@pytest.mark.parametrize(
    ("taken", "added"), [("bad_clips", {}), ("step", {}), (None, {"num_bad": 0})]
)
def test_progress_of_another_version_is_refused(tmp_path, taken, added):
    values = {**asdict(Progress(3)), **added}
    values.pop(taken, None)
    path = tmp_path / "progress.json"
    write_json(path, values)
    with pytest.raises(ValueError, match=f"^{path} was written by another version.*--overwrite_o"):
        resume.read_progress(path)


def test_two_runs_share_neither_window_nor_bad_clips():
    Progress().window[0] = 1.0
    Progress().bad_clips.append("clip a is broken")
    assert Progress() == Progress(0, [0.0] * 10, None, [], 0)


# --- when a checkpoint is saved ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "every", "last", "wanted"),
    [(0, 2, 5, [2, 4, 5]), (0, 2, 4, [2, 4]), (0, 9, 4, [4]), (3, 2, 4, [4]), (4, 2, 4, [])],
)
def test_when_a_checkpoint_is_saved(monkeypatch, tmp_path, first, every, last, wanted):
    saved = []
    monkeypatch.setattr(
        resume,
        "save_checkpoint",
        lambda _, progress, *rest: saved.append((progress.step, progress.window, *rest)),
    )
    progress = Progress(first)
    window = SimpleNamespace(to_list=lambda: [1.0, 2.0, 3.0, 4.0])
    data = SimpleNamespace(rows=None)
    saver = resume.CheckpointSaver(None, progress, window, tmp_path, every, 7, data)
    while progress.step < last:
        progress.step += 1
        saver.save_if_due(progress)
    saver.save(progress)
    assert saved == [(step, [1.0, 2.0, 3.0, 4.0], tmp_path, 7) for step in wanted]


# --- the checkpoint that a run goes on from ------------------------------------------------------


def sealed(folder, step, content=b"moments"):
    with checkpoints.sealed_folder(checkpoints.checkpoint_path(folder, step)) as temporary:
        (temporary / checkpoints.OPTIMIZER).write_bytes(content)
    return checkpoints.checkpoint_path(folder, step)


def process(monkeypatch, is_main, told=None):
    """Return a process of several; one that is not the main one is told what that found."""

    def broadcast(found):
        if not is_main:
            found[:] = told
        return found

    monkeypatch.setattr(resume, "broadcast_object_list", broadcast)
    return SimpleNamespace(is_main_process=is_main)


def test_the_main_process_finds_the_checkpoint(tmp_path, monkeypatch):
    main = process(monkeypatch, True)
    assert resume.newest_checkpoint(main, tmp_path) is None
    newest = [sealed(tmp_path, step) for step in (3, 7)][-1]
    assert resume.newest_checkpoint(main, tmp_path) == newest


def test_the_others_take_it_and_verify_nothing(tmp_path, monkeypatch):
    path = sealed(tmp_path, 3)
    sealed(tmp_path, 7)
    monkeypatch.setattr(checkpoints, "sha256", lambda _: pytest.fail("hashed again"))
    other = process(monkeypatch, False, [path, None])
    assert resume.newest_checkpoint(other, tmp_path) == path


def test_without_a_whole_checkpoint_all_processes_fail(tmp_path, monkeypatch):
    (sealed(tmp_path, 3) / checkpoints.OPTIMIZER).unlink()
    with pytest.raises(ValueError, match="none of its 1 checkpoints is whole") as error:
        resume.newest_checkpoint(process(monkeypatch, True), tmp_path)
    with pytest.raises(ValueError, match="none of its 1 checkpoints is whole"):
        resume.newest_checkpoint(process(monkeypatch, False, [None, str(error.value)]), tmp_path)


def test_a_process_that_does_not_see_the_checkpoint_says_so(tmp_path, monkeypatch):
    other = process(monkeypatch, False, [tmp_path / "checkpoint-3", None])
    with pytest.raises(ValueError, match="checkpoint-3 is not seen by all processes"):
        resume.newest_checkpoint(other, tmp_path)


class Code:
    """What a pickle runs when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "checkpoint-3" / checkpoints.OPTIMIZER, tmp_path / "was-run"
    path.parent.mkdir()
    torch.save({"optimizer": Code(mark)}, path)
    with pytest.raises(ValueError, match=f"^{path} holds what no training run writes"):
        resume.read_state(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would have been run


@pytest.mark.parametrize("fused", [True, None])
def test_a_state_goes_on_as_this_optimiser_works(tmp_path, fused):
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,))]
    optimizer = make_optimizer(torch.nn.ParameterList(weights), Optimization(*SETTINGS))
    state = {"optimizer": optimizer.state_dict(), "schedule": {}, "scaler": None}
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = fused
    path = sealed(tmp_path, 3)
    torch.save(state, path / checkpoints.OPTIMIZER)
    write_json(path / checkpoints.PROGRESS, asdict(Progress(3)))
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, scaler=None),
        optimizer=optimizer,
        schedule=SimpleNamespace(load_state_dict=lambda _: None),
    )
    assert resume.resume(trainer, tmp_path, path, 4) == Progress(3)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]


def test_a_run_in_float16_begins_with_a_checkpoint_of_another_dtype(tmp_path):
    """Which has no state of a scaler; the run's own is new."""
    settings = Optimization(*SETTINGS)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), settings)
    schedule = make_schedule(optimizer, settings, 4)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    path = sealed(tmp_path / "other", 3)
    torch.save({**state, "scaler": None}, path / checkpoints.OPTIMIZER)
    write_json(path / checkpoints.PROGRESS, asdict(Progress(3)))
    scaler = torch.amp.GradScaler("cpu", init_scale=8)
    accelerator = SimpleNamespace(is_main_process=True, scaler=scaler)
    trainer = SimpleNamespace(accelerator=accelerator, optimizer=optimizer, schedule=schedule)
    assert resume.resume(trainer, tmp_path / "run", path, 4) == Progress(3)
    assert scaler.get_scale() == 8


SETTINGS = (0.1, "linear", 0, 0.0, (0.9, 0.999), 1.0)


# --- evaluations in the log ----------------------------------------------------------------------


def test_an_evaluation_that_the_checkpoint_does_not_know_of_is_forgotten(tmp_path):
    kinds = [(2, "train"), (2, "eval a"), (4, "train"), (4, "eval a"), (5, "train")]
    lines = [json.dumps({"step": step, "kind": kind}) + "\n" for step, kind in kinds]
    path = log_of(tmp_path / "log", *lines)
    resume.cut_log(path, Progress(4, evaluated=4))
    assert path.read_text() == "".join(lines[:4])
    resume.cut_log(path, Progress(4, evaluated=2))
    assert path.read_text() == "".join(lines[:3])


# --- a disk that is full -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path, monkeypatch, error):
    """The three ways in which Python, safetensors and torch fail on a full tmpfs."""
    before = sealed(tmp_path, 3)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 2_340_000)

    def save(folder):
        (folder / "half").write_bytes(b"x")
        raise error

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, scaler=None),
        learner=SimpleNamespace(
            student=SimpleNamespace(model=torch.nn.Linear(1, 1), save_for_resuming=save)
        ),
        optimizer=torch.optim.SGD([torch.zeros(1)]),
    )
    with pytest.raises(ValueError) as raised:
        resume.save_checkpoint(trainer, Progress(6), tmp_path, 1)
    said = str(raised.value)
    assert said.startswith(f"--output_dir {tmp_path} cannot be written: ")
    assert "; 2.3 MB are free on its disk; make room" in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert checkpoints.newest_checkpoint(tmp_path) == before
