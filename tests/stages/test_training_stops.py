"""A training run that is stopped or killed in an evaluation, or at its end, goes on from there."""

import signal

import pytest
from launching import launch
from stage_runs import record, run
from training_runs import (
    FINETUNING,
    KILL,
    TERMINATE,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    run_in_child,
    run_in_two,
    training_log,
)

from distillery.storage.checkpoints import find_damage
from distillery.training import loop, validation

CTRL_C = int(signal.SIGINT)
BATCH = "distillery.training.validation:_evaluate_batch"
# Updates 2, 4 and 5 are evaluated, each on two sets of five batches.
SETS, BATCHES = 2, 5
PER_EVALUATION = SETS * BATCHES


class Runs:
    """Flags of a run that evaluates on two sets, and the run without any interruption."""

    def __init__(self, folder):
        model = model_folder(folder / "model")
        rows, others = manifest(folder / "rows.jsonl"), manifest(folder / "others.jsonl")
        self.flags = ["-m", model, "-d", rows, "--language", "ja", "--max_steps", 5]
        self.flags += ["--learning_rate", "3e-3", "--logging_steps", 1, "--save_steps", 4]
        self.flags += ["--per_device_train_batch_size", 2, "--per_device_eval_batch_size", 2]
        self.flags += ["--do_eval", "--eval_dataset_name", f"{rows}+{others}", "--eval_steps", 2]
        self.flags += ["--predict_with_generate", "--generation_max_length", 8]
        self.whole = folder / "whole"
        run(FINETUNING, *self.to(self.whole))
        steps = [row["step"] for row in training_log(self.whole, "eval")]
        assert steps == [2, 2, 4, 4, 5, 5]

    def to(self, folder, *more):
        return [*self.flags, "-o", folder, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("stops"))


@pytest.mark.parametrize(
    ("call", "update", "number"),
    [
        (1, 2, TERMINATE),
        (PER_EVALUATION, 2, CTRL_C),  # the last batch of all
        (PER_EVALUATION + BATCHES + 2, 4, TERMINATE),  # when one set was logged
        (2 * PER_EVALUATION + 2, 5, TERMINATE),  # after all updates
    ],
)
def test_a_stop_in_an_evaluation_saves_and_the_next_start_evaluates(
    runs, tmp_path, monkeypatch, call, update, number
):
    args = runs.to(tmp_path)
    assert run_in_child(FINETUNING, BATCH, call, number, *args) == loop.STOPPED
    assert find_damage(tmp_path / f"checkpoint-{update}") is None
    assert record(tmp_path)["status"] == "started"
    done = []
    update_once = loop._update
    monkeypatch.setattr(loop, "_update", lambda *a: (done.append(1), update_once(*a))[1])
    run(FINETUNING, *args)
    assert len(done) == 5 - update
    assert_same_run(tmp_path, runs.whole)
    assert record(tmp_path)["best"] == record(runs.whole)["best"]


def test_the_checkpoint_of_an_update_is_there_before_its_evaluation(runs, tmp_path):
    args = runs.to(tmp_path)
    assert run_in_child(FINETUNING, BATCH, PER_EVALUATION + 1, KILL, *args) == -KILL
    assert find_damage(tmp_path / "checkpoint-4") is None
    run(FINETUNING, *args)
    assert_same_run(tmp_path, runs.whole)


def test_an_evaluation_that_was_made_is_not_made_again(runs, tmp_path, monkeypatch):
    """The checkpoint at the end knows of it: a kill in the last save repeats nothing."""
    args = runs.to(tmp_path, "--save_steps", 9)
    target = "distillery.training.resume:finish"
    assert run_in_child(FINETUNING, target, 1, KILL, *args) == -KILL
    monkeypatch.setattr(validation, "evaluate", lambda *_: pytest.fail("evaluated again"))
    run(FINETUNING, *args)
    assert_same_run(tmp_path, runs.whole)


def test_a_stop_in_the_last_save_lets_it_end(runs, tmp_path):
    target = "distillery.whisper.checkpoint:write_card"
    assert run_in_child(FINETUNING, target, 1, TERMINATE, *runs.to(tmp_path)) == 0
    assert record(tmp_path)["status"] == "complete"
    assert_same_run(tmp_path, runs.whole)


@pytest.mark.parametrize(
    "target", ["distillery.training.resume:newest_checkpoint", "distillery.training.rows:eval_sets"]
)
def test_a_stop_while_a_run_starts_loses_nothing(runs, tmp_path, target):
    args = runs.to(tmp_path)
    assert run_in_child(FINETUNING, BATCH, PER_EVALUATION + 1, KILL, *args) == -KILL
    kept = sorted(path.name for path in tmp_path.iterdir())
    if target.endswith("eval_sets"):
        target = "distillery.cli.training:eval_sets"
    assert run_in_child(FINETUNING, target, 1, TERMINATE, *args) == -TERMINATE
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    run(FINETUNING, *args)
    assert_same_run(tmp_path, runs.whole)


def test_a_stop_of_an_evaluation_without_training(runs, tmp_path):
    args = runs.to(tmp_path, "--do_train", "False")
    assert run_in_child(FINETUNING, BATCH, BATCHES + 2, TERMINATE, *args) == loop.STOPPED
    assert record(tmp_path)["status"] == "started"


@pytest.mark.parametrize("call", [1, BATCHES])
def test_one_process_is_stopped_in_an_evaluation_and_both_leave_it(runs, tmp_path, call):
    """Ten rows in batches of four: the second process has one batch, the first two."""
    sizes = ["--per_device_train_batch_size", 1, "--per_device_eval_batch_size", 4]
    args = runs.to(tmp_path, *sizes)
    codes = run_in_two(FINETUNING, BATCH, call, TERMINATE, *args)
    assert codes == [loop.STOPPED] * 2
    update = 2 if call == 1 else 4
    assert find_damage(tmp_path / f"checkpoint-{update}") is None
    assert [row["step"] for row in training_log(tmp_path)] == list(range(1, update + 1))
    run(FINETUNING, *runs.to(tmp_path))
    assert_close_run(tmp_path, runs.whole)


def test_one_process_is_stopped_and_two_go_on(runs, tmp_path):
    target = "distillery.training.loop:_update"
    assert run_in_child(FINETUNING, target, 3, TERMINATE, *runs.to(tmp_path)) == loop.STOPPED
    args = runs.to(tmp_path, "--per_device_train_batch_size", 1)
    launch(FINETUNING, *args, processes=2)
    assert_close_run(tmp_path, runs.whole)
