"""What a training run keeps and goes on from; killed runs are in tests/stages/test_resume.py."""

import json
import random
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from distillery.storage.files import write_json
from distillery.training import monitor, resume
from distillery.training.loop import Progress

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
    path = log_of(tmp_path / monitor.LOSS_LOG, *LINES, '{"step": 4, "ki')
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    assert resume.resume(trainer, tmp_path, None) == Progress()
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
    assert Progress() == Progress(0, [0.0] * 4, None, [], 0)


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
    saver = resume.CheckpointSaver(None, progress, window, tmp_path, every, 7)
    while progress.step < last:
        progress.step += 1
        saver.save_if_due(progress)
    saver.save(progress)
    assert saved == [(step, [1.0, 2.0, 3.0, 4.0], tmp_path, 7) for step in wanted]
