"""Training whose weights and optimiser are spread over two processes: by FSDP2, on CPUs here."""

import pytest
from accelerate import Accelerator, DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from spread_runs import Interruption, Runs, assert_close_weights
from tiny import REPOSITORY
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from training_runs import (
    DISTILLATION,
    FINETUNING,
    assert_close_run,
    training_log,
)

from distillery.training import sharding

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


class TestInterruption(Interruption):
    """See there."""


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
