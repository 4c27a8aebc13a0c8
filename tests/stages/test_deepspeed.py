"""Training whose optimiser is spread over two processes by DeepSpeed, on CPUs here."""

import os
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from spread_runs import Interruption, Runs, assert_close_weights
from tiny import REPOSITORY
from training_runs import (
    DISTILLATION,
    FINETUNING,
    assert_close_run,
    poison,
    training_log,
)

from distillery.training import sharding

# Where the tests run for all it must be there.
pytestmark = pytest.mark.skipif(
    "CI" not in os.environ and find_spec("deepspeed") is None, reason="needs deepspeed"
)
CONFIG = REPOSITORY / "scripts" / "launch" / "deepspeed_zero2.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def ddp(runs):
    """Return the folder of each stage's run by two processes with a copy of everything each."""
    return {script: runs.by_two(script, runs.folder / f"ddp-{script}") for script in runs.flags}


@pytest.fixture(scope="module")
def whole(runs, ddp):
    """Return the same of spread runs without any interruption."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        launch_spread(monkeypatch)
        return {script: runs.by_two(script, runs.folder / script) for script in runs.flags}


@pytest.fixture
def spread(monkeypatch):
    launch_spread(monkeypatch)


def launch_spread(monkeypatch, stage=2):
    """Let two processes be launched as the file says, on CPUs, where accelerate knows DDP alone."""
    words = ["--config_file", str(CONFIG), "--zero_stage", str(stage), "script.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    for name, value in environment.items():
        if "DEEPSPEED" in name or "GRADIENT" in name:
            monkeypatch.setenv(name, value)
    # Else it would compile an operation of its own for processes of one machine.
    monkeypatch.setitem(vars(import_module("deepspeed.ops")), "__compatible_ops__", {})
    begin, prepare = Accelerator.__init__, sharding.prepare

    def on_cpus(self, *args, **named):
        begin(self, *args, **named)
        if self.num_processes > 1:
            plugin, precision = DeepSpeedPlugin(), self.mixed_precision
            plugin.set_mixed_precision(precision)
            plugin.select(_from_accelerator_state=True)
            self.native_amp, self.state.deepspeed_plugins = False, plugin
            for state in (self.state, PartialState()):
                state.distributed_type = DistributedType.DEEPSPEED
            assert self.mixed_precision == precision

    def checked(accelerator, step, optimizer, *others):
        wrapped = prepare(accelerator, step, optimizer, *others)
        if accelerator.num_processes > 1:
            assert wrapped[0].zero_optimization_stage() == stage
            trained = [weight for weight in step.parameters() if weight.requires_grad]
            assert {weight.dtype for weight in trained} == {torch.float32}
            parts = [part for group in optimizer.param_groups for part in group["params"]]
            counts = [sum(each.numel() for each in group) for group in (parts, trained)]
            assert counts[0] < 0.51 * counts[1]
        return wrapped

    monkeypatch.setattr(Accelerator, "__init__", on_cpus)
    monkeypatch.setattr(sharding, "prepare", checked)


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_losses_scores_and_weights_are_those_of_ddp(ddp, whole, script):
    assert len(training_log(ddp[script], "eval")) == 2
    assert_close_run(whole[script], ddp[script])
    assert_close_weights(whole[script] / "best", ddp[script] / "best")


def test_the_first_stage_too(runs, ddp, monkeypatch, tmp_path):
    launch_spread(monkeypatch, stage=1)
    assert_close_run(runs.by_two(DISTILLATION, tmp_path), ddp[DISTILLATION])


class TestInterruption(Interruption):
    """See there."""


def test_an_update_that_is_not_finite_changes_nothing(runs, monkeypatch, tmp_path):
    poison(monkeypatch, "rows-0004")
    # Of embeddings alone, which are one of the optimiser's two groups: the other has no weights.
    brief = ["--max_steps", 3, "--freeze_decoder"]
    ddp = runs.by_two(DISTILLATION, tmp_path / "ddp", *brief)
    launch_spread(monkeypatch)
    found = runs.by_two(DISTILLATION, tmp_path / "spread", *brief)
    finite = [[row["step"] for row in training_log(folder)] for folder in (found, ddp)]
    assert finite[0] == finite[1] and 0 < len(finite[0]) < 3
    assert_close_weights(found, ddp)


def test_bfloat16_rounds_as_it_does_without_deepspeed(runs, whole, monkeypatch, tmp_path):
    half = ["--dtype", "bfloat16", "--max_steps", 3]
    ddp = runs.by_two(DISTILLATION, tmp_path / "ddp", *half)
    launch_spread(monkeypatch)
    found = runs.by_two(DISTILLATION, tmp_path / "spread", *half)
    losses = [training_log(folder)[0]["loss"] for folder in (found, ddp, whole[DISTILLATION])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)
    assert losses[0] != pytest.approx(losses[2], rel=1e-6)  # of float32
    assert_close_run(found, ddp, tolerance=1e-3)
