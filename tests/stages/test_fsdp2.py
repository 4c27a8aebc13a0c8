"""Training whose weights and optimiser are spread over two processes: by FSDP2, on CPUs here."""

import shutil

import pytest
from accelerate import Accelerator, DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from spread_runs import ALONE, UPDATE, Runs, assert_close_weights
from stage_runs import run
from tiny import REPOSITORY
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    TERMINATE,
    assert_close_run,
    assert_same_run,
    run_in_child,
    run_in_two,
    training_log,
)

from distillery.storage.checkpoints import find_damage
from distillery.training import loop, sharding

CONFIG = REPOSITORY / "scripts" / "launch" / "fsdp2.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("fsdp2"))


@pytest.fixture(scope="module")
def whole(runs):
    """Return the folder of each stage's run without any interruption, spread over two processes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        launch_spread(monkeypatch)
        return {script: runs.by_two(script, runs.folder / script) for script in runs.flags}


@pytest.fixture
def spread(monkeypatch):
    launch_spread(monkeypatch)


def launch_spread(monkeypatch):
    """Let two processes be launched as the file says, on CPUs, where accelerate knows DDP alone."""
    words = ["--config_file", str(CONFIG), "script.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    begin, prepare = Accelerator.__init__, sharding.prepare

    def on_cpus(self, *args, **named):
        begin(self, *args, **named)
        if self.num_processes > 1:
            plugin = FullyShardedDataParallelPlugin()
            if self.mixed_precision != "no":
                plugin.set_mixed_precision(self.mixed_precision)
            self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin

    def checked(accelerator, step, *optimizer):
        wrapped = prepare(accelerator, step, *optimizer)
        if accelerator.num_processes > 1:
            layers = [*step.student.model.encoder.layers, *step.student.model.decoder.layers]
            assert all(isinstance(module, FSDPModule) for module in [step, *layers])
            assert all(isinstance(weight, DTensor) for weight in step.parameters())
            assert len(step.student.model.decoder.embed_tokens.weight.to_local()) < 50_000 / 2
        return wrapped

    monkeypatch.setattr(Accelerator, "__init__", on_cpus)
    monkeypatch.setattr(sharding, "prepare", checked)


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_losses_scores_and_weights_are_those_of_ddp(runs, whole, tmp_path, script):
    ddp = runs.by_two(script, tmp_path)
    assert len(training_log(ddp, "eval")) == 2
    assert_close_run(whole[script], ddp)
    assert_close_weights(whole[script] / "best", ddp / "best")


@pytest.mark.usefixtures("spread")
def test_a_killed_run_goes_on_spread_or_in_one_process_alone(runs, whole, tmp_path):
    args = runs.to(FINETUNING, tmp_path / "run")
    assert run_in_two(FINETUNING, UPDATE, 5, KILL, *args)[1] == -KILL
    assert find_damage(tmp_path / "run" / "checkpoint-4") is None
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    runs.by_two(FINETUNING, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole[FINETUNING])
    run(FINETUNING, *runs.to(FINETUNING, tmp_path / "alone", *ALONE))
    assert_close_run(tmp_path / "alone", whole[FINETUNING])


@pytest.mark.usefixtures("spread")
def test_what_one_process_began_goes_on_spread_and_is_stopped_on_both(runs, whole, tmp_path):
    args = runs.to(DISTILLATION, tmp_path)
    assert run_in_child(DISTILLATION, UPDATE, 3, KILL, *args, *ALONE) == -KILL
    assert run_in_two(DISTILLATION, UPDATE, 2, TERMINATE, *args) == [loop.STOPPED] * 2
    assert find_damage(tmp_path / "checkpoint-4") is None
    runs.by_two(DISTILLATION, tmp_path)
    assert_close_run(tmp_path, whole[DISTILLATION])


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_bfloat16(runs, monkeypatch, tmp_path, script):
    """Other operations are rounded than under autocast, but the loss stays in float32."""
    half = ["--dtype", "bfloat16", "--max_steps", 2]
    ddp = runs.by_two(script, tmp_path / "ddp", *half)
    launch_spread(monkeypatch)
    found = runs.by_two(script, tmp_path / "spread", *half)
    for one, other in zip(training_log(found), training_log(ddp), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.05)
