"""What training does for the sake of its device; tests say what stands in for a GPU."""

import pytest
import torch
from accelerate.state import AcceleratorState
from stage_runs import record, run
from tiny import load_script
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    NEVER,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    run_in_child,
    run_in_two,
    student_folder,
    weights,
)

from distillery.cli import training
from distillery.data.collators import SpeechCollator
from distillery.storage.checkpoints import find_damage
from distillery.training import stacks
from distillery.training.step import Learner

UPDATE = "distillery.training.loop:_update"


class Runs:
    """Inputs of both stages."""

    def __init__(self, folder):
        self.rows = manifest(folder / "rows.jsonl", 9)
        self.teacher = model_folder(folder / "teacher", 3)
        student = student_folder(folder / "student", self.teacher)
        common = ["-m", student, "-d", self.rows, "--language", "ja", "--max_steps", 4]
        common += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
        common += ["--save_steps", 2, "--learning_rate", "3e-3", "--logging_steps", 1]
        evaluation = ["--do_eval", "--eval_dataset_name", self.rows, "--predict_with_generate"]
        evaluation += ["--generation_max_length", 12, "--per_device_eval_batch_size", 4]
        self.flags = {
            FINETUNING: [*common, *evaluation, "--gradient_checkpointing"],
            DISTILLATION: [*common, *evaluation, "--teacher", self.teacher, "--freeze_encoder"],
        }

    def to(self, script, folder, *more):
        return [*self.flags[script], "-o", folder, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory):
    """Return the folder of each stage's run without anything of this module."""
    folders = {script: tmp_path_factory.mktemp("plain") / "run" for script in runs.flags}
    for script, folder in folders.items():
        run(script, *runs.to(script, folder))
    return folders


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_features_made_where_the_model_is_train_and_evaluate_alike(
    runs, plain, monkeypatch, tmp_path, script
):
    """As on a GPU: the clips of a batch are only decoded beside the training."""
    batches = []

    class Decoder(SpeechCollator):
        def __call__(self, rows):
            batches.append(super().__call__(rows))
            return batches[-1]

    monkeypatch.setattr(
        training, "SpeechCollator", lambda *args, **_: Decoder(*args, makes_features=False)
    )
    run(script, *runs.to(script, tmp_path / "run"))
    assert_close_run(tmp_path / "run", plain[script])
    assert all(batch.input_features is None for batch in batches)
    assert len(batches) == 4 * 2 + 3


# --- the shared encoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shared_encoder_is_saved_as_it_was_and_resumed_bit_for_bit(
    runs, monkeypatch, tmp_path, dtype
):
    AcceleratorState._reset_state(reset_partial_state=True)
    stage = load_script(DISTILLATION)
    shared, share = [], stage.share_encoder

    def sharing(student, teacher):
        shared.extend(weight.dtype for weight in teacher.model.parameters())
        return share(student, teacher)

    monkeypatch.setattr(stage, "share_encoder", sharing)
    flags = ["--dtype", dtype]
    run(DISTILLATION, *runs.to(DISTILLATION, tmp_path / "whole", *flags))
    args = runs.to(DISTILLATION, tmp_path / "run", *flags)
    assert run_in_child(DISTILLATION, UPDATE, 4, KILL, *args) == -KILL
    assert find_damage(tmp_path / "run" / "checkpoint-2") is None
    run(DISTILLATION, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert set(shared) == {getattr(torch, dtype)}
    begun = weights(runs.flags[DISTILLATION][1])
    for folder in ("whole", "run/checkpoint-2", "run/best"):
        found = weights(tmp_path / folder)
        assert {weight.dtype for weight in found.values()} == {torch.float32}
        assert all(torch.equal(found[name], begun[name]) for name in begun if ".encoder." in name)
    AcceleratorState._reset_state(reset_partial_state=True)


# --- compiled layers ------------------------------------------------------------------------------


@pytest.fixture
def compiles(monkeypatch):
    """Compile without a C++ compiler."""
    monkeypatch.setattr(stacks, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_a_compiled_run_is_the_plain_run_and_goes_on_as_it_likes(runs, plain, tmp_path, script):
    args = runs.to(script, tmp_path / "run", "--compile")
    assert run_in_child(script, UPDATE, 4, KILL, *args) == -KILL
    assert find_damage(tmp_path / "run" / "checkpoint-2") is None
    run(script, *runs.to(script, tmp_path / "run"))  # without
    assert_close_run(tmp_path / "run", plain[script])
    run(script, *runs.to(script, tmp_path / "compiled", "--compile"))
    assert_close_run(tmp_path / "compiled", plain[script])
    assert weights(tmp_path / "compiled").keys() == weights(plain[script]).keys()


@pytest.mark.usefixtures("compiles")
def test_two_processes_compile_too(runs, plain, tmp_path):
    flags = ["--compile", "--gradient_checkpointing", "--gradient_accumulation_steps", 1]
    args = runs.to(DISTILLATION, tmp_path / "run", *flags)
    assert run_in_two(DISTILLATION, UPDATE, NEVER, KILL, *args) == [0, 0]
    assert_close_run(tmp_path / "run", plain[DISTILLATION])


# --- the micro-batch that fits --------------------------------------------------------------------


def test_a_run_whose_micro_batch_is_found_is_the_plain_run(runs, plain, monkeypatch, tmp_path):
    """As on a GPU into whose memory three rows do not go."""
    tried, losses = [], Learner.losses

    def losses_of_few(self, batch, step):
        tried.append(len(batch.ids))
        if len(batch.ids) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses(self, batch, step)

    monkeypatch.setattr(Learner, "losses", losses_of_few)
    monkeypatch.setattr(training, "refuse_device_flags", lambda *_: None)
    flags = ["--auto_batch_size", "--per_device_train_batch_size", 1]
    flags += ["--gradient_accumulation_steps", 4]
    run(DISTILLATION, *runs.to(DISTILLATION, tmp_path / "run", *flags))
    assert tried[:2] == [4, 2] and set(tried[2:10]) == {2}
    assert_same_run(tmp_path / "run", plain[DISTILLATION])
    found = record(tmp_path / "run")["batch_plan"]
    assert found == {"per_device": 2, "accumulation": 2, "num_processes": 1}


def test_without_a_gpu_no_micro_batch_is_looked_for(runs, tmp_path):
    with pytest.raises(ValueError, match=r"^--auto_batch_size needs a GPU"):
        run(DISTILLATION, *runs.to(DISTILLATION, tmp_path / "run", "--auto_batch_size"))
    assert not (tmp_path / "run").exists()
