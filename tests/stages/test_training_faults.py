"""What goes wrong while a run trains costs nothing that was trained."""

import errno
import json
import shutil
import signal

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from stage_runs import record, run, snapshot
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    assert_same_run,
    manifest,
    model_folder,
    run_in_child,
    start_two,
    student_folder,
    training_log,
)

from distillery.cli import training
from distillery.ingest import sources
from distillery.storage import checkpoints
from distillery.storage.checkpoints import find_damage

UPDATE = "distillery.training.loop:_update"
NUM_UPDATES = 5


class Runs:
    """Flags of a small run, and the run itself without any fault."""

    def __init__(self, folder):
        self.folder = folder
        self.model, self.rows = model_folder(folder / "model"), manifest(folder / "rows.jsonl")
        self.flags = ["-m", self.model, "-d", self.rows, "--language", "ja", "--save_steps", 2]
        self.flags += ["--max_steps", NUM_UPDATES, "--per_device_train_batch_size", 2]
        self.flags += ["--logging_steps", 1, "--learning_rate", "3e-3"]
        self.whole = folder / "whole"
        run(FINETUNING, *self.to(self.whole))

    def to(self, folder, *more):
        return [*self.flags, "-o", folder, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("faults"))


def steps_of(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


# --- the disk and the trackers -------------------------------------------------------------------


def test_a_run_whose_disk_was_full_goes_on_from_the_checkpoint_before(runs, tmp_path, monkeypatch):
    save = torch.save

    def full(state, path):
        if path.parent.name.startswith(".checkpoint-4."):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"cannot be written: .* MB are free on its disk"):
        run(FINETUNING, *runs.to(tmp_path))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert find_damage(tmp_path / "checkpoint-2") is None
    monkeypatch.setattr(torch, "save", save)
    run(FINETUNING, *runs.to(tmp_path))
    assert_same_run(tmp_path, runs.whole)


def test_a_tracker_that_goes_down_costs_a_warning(runs, tmp_path, monkeypatch, capsys):
    def down(*_args, **_more):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, "log", down)
    run(FINETUNING, *runs.to(tmp_path, "--report_to", "tensorboard"))
    assert "a tracker did not take update 1: no route to host" in capsys.readouterr().err
    assert_same_run(tmp_path, runs.whole)


def test_a_tracker_that_does_not_start_ends_the_run_before_its_work(runs, tmp_path, monkeypatch):
    def down(*_args, **_more):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, "start", down)
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("rows were read"))
    with pytest.raises(ValueError, match=r"^--report_to tensorboard: .*\(no route to host\)"):
        run(FINETUNING, *runs.to(tmp_path, "--report_to", "tensorboard"))


# --- checkpoints ---------------------------------------------------------------------------------


def test_weights_and_progress_are_of_one_checkpoint_that_is_verified_once(
    runs, tmp_path, monkeypatch
):
    """Even if a newer one appears between the two; that was a run that began twice."""
    args = runs.to(tmp_path)
    assert run_in_child(FINETUNING, UPDATE, 4, KILL, *args) == -KILL
    assert steps_of(tmp_path) == [2]
    load, verified = training.load_student, []

    def load_and_save_another(*parts):
        student = load(*parts)
        shutil.copytree(runs.whole / "checkpoint-4", tmp_path / "checkpoint-4")
        return student

    monkeypatch.setattr(training, "load_student", load_and_save_another)
    monkeypatch.setattr(
        checkpoints, "find_damage", lambda path: verified.append(path.name) or find_damage(path)
    )
    run(FINETUNING, *args)
    assert verified == ["checkpoint-2"]
    assert_same_run(tmp_path, runs.whole)


def test_a_pickle_with_code_in_a_whole_checkpoint_is_not_run(runs, tmp_path):
    args = runs.to(tmp_path / "run")
    assert run_in_child(FINETUNING, UPDATE, 4, KILL, *args) == -KILL
    folder = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    with checkpoints.sealed_folder(folder) as temporary:
        for path in (tmp_path / "copy").iterdir():
            shutil.copy(path, temporary)
        torch.save({"optimizer": Mark(tmp_path / "was-run")}, temporary / "optimizer.pt")
    assert find_damage(folder) is None
    with pytest.raises(ValueError, match=r"optimizer\.pt holds what no training run writes"):
        run(FINETUNING, *args)
    assert not (tmp_path / "was-run").exists()


class Mark:
    """Leaves a file behind where it is unpickled as code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


# --- clips that cannot be used -------------------------------------------------------------------


def test_a_run_with_too_many_bad_clips_ends_early_and_goes_on_where_more_are_allowed(
    runs, tmp_path, capsys
):
    folder = tmp_path / "data"
    shutil.copytree(runs.folder, folder, ignore=shutil.ignore_patterns("whole", "model"))
    for clip in (3, 7):
        (folder / f"rows-{clip:04d}.flac").write_bytes(b"no sound")
    flags = ["-d", folder / "rows.jsonl", "--max_steps", 8, "--save_steps", 100]
    allowed = [*flags, "--max_bad_fraction", 0.3]
    run(FINETUNING, *runs.to(tmp_path / "whole", *allowed))
    args = runs.to(tmp_path / "run", *flags, "--max_bad_fraction", 0.1)
    message = r"^2 of 10 clips could not be decoded; .*which is saved"
    with pytest.raises(ValueError, match=message):
        run(FINETUNING, *args)
    (step,) = steps_of(tmp_path / "run")
    assert step < 8 and len(training_log(tmp_path / "run")) == step
    before = snapshot(tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=message):  # at once
        run(FINETUNING, *args)
    assert snapshot(tmp_path / "run" / f"checkpoint-{step}") == before
    capsys.readouterr()
    run(FINETUNING, *runs.to(tmp_path / "run", *allowed))
    assert f"starting at update {step}" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert record(tmp_path / "run")["num_bad"] == 2


# --- SpecAugment ---------------------------------------------------------------------------------


def with_masks(folder, source):
    shutil.copytree(source, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    masks = {"apply_spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 5}
    path.write_text(json.dumps({**config, **masks}), "utf-8")
    return folder


def test_spec_augment_of_the_config_is_at_work_and_resumed(runs, tmp_path):
    model = with_masks(tmp_path / "model", runs.model)
    args = runs.to(tmp_path / "whole", "-m", model)
    run(FINETUNING, *args)
    losses = [
        [row["loss"] for row in training_log(folder)] for folder in (runs.whole, tmp_path / "whole")
    ]
    assert all(one != other for one, other in zip(*losses, strict=True))
    args = runs.to(tmp_path / "run", "-m", model)
    assert run_in_child(FINETUNING, UPDATE, 4, KILL, *args) == -KILL
    run(FINETUNING, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    run(FINETUNING, *runs.to(tmp_path / "off", "-m", model, "--apply_spec_augment", "False"))
    assert_same_run(tmp_path / "off", runs.whole)


def test_a_shared_encoder_hears_masks_only_where_that_is_asked_for(runs, tmp_path, capsys):
    teacher = model_folder(tmp_path / "teacher", 3)
    student = with_masks(tmp_path / "masked", student_folder(tmp_path / "student", teacher))
    common = ["--teacher", teacher, "--freeze_encoder"]

    def losses(name, *flags):
        run(DISTILLATION, *runs.to(tmp_path / name, *common, *flags))
        return [row["loss"] for row in training_log(tmp_path / name)], capsys.readouterr().err

    plain, _ = losses("plain", "-m", tmp_path / "student")
    frozen, said = losses("frozen", "-m", student)
    assert frozen == plain and "--apply_spec_augment applies it" in said
    asked, said = losses("asked", "-m", student, "--apply_spec_augment")
    assert asked[0] != plain[0] and "runs twice in each update" in said
    assert json.loads((tmp_path / "asked" / "config.json").read_text())["apply_spec_augment"]


# --- a process that hangs ------------------------------------------------------------------------


def test_a_process_that_hangs_ends_the_other_within_the_timeout(runs, tmp_path):
    args = runs.to(tmp_path, "--per_device_train_batch_size", 1, "--ddp_timeout", 15)
    stop = int(signal.SIGSTOP)
    first, hanging = start_two(FINETUNING, UPDATE, 4, stop, *args)
    try:
        first.join(120)
        assert first.exitcode not in (None, 0)
    finally:
        hanging.kill()
        first.kill()
    assert steps_of(tmp_path) == [2]
    run(FINETUNING, *runs.to(tmp_path))
    assert training_log(tmp_path)[-1]["step"] == NUM_UPDATES
