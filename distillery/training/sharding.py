"""Training whose weights and optimiser are spread over the processes (FSDP2), and whole again.

What leaves a training is always whole: a checkpoint does not tell how it was trained, and a run may
go on with any number of processes, spread or not.
"""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from distillery.training.settings import ADAMW_8BIT
from distillery.training.step import Learner, StudentStep
from distillery.whisper.checkpoint import Whisper, with_weights


def refuse_sharding(accelerator: Accelerator, optimizer: str, lora_rank: int | None) -> None:
    """Raise ValueError for a launch that spreads the model over processes as training cannot.

    Args:
        accelerator: of the launch.
        optimizer: one of `settings.OPTIMIZERS`.
        lora_rank: of adapters; None trains the weights themselves.
    """
    kind, fsdp2 = accelerator.distributed_type, "scripts/launch/fsdp2.yaml"
    if kind == DistributedType.DEEPSPEED:
        raise ValueError(f"DeepSpeed is not supported: use FSDP2, which shards the same: {fsdp2}")
    if kind != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise ValueError(f"the launch is set up for FSDP's first version: use the second, {fsdp2}")
    if optimizer == ADAMW_8BIT:
        raise ValueError("--optim adamw_8bit does not go with FSDP2: use --optim adamw_torch")
    if lora_rank is not None:
        raise ValueError(
            "--lora_rank does not go with FSDP2: adapters are small; launch with MULTI_GPU, as "
            "scripts/launch/8_gpus.yaml"
        )


def prepare(
    accelerator: Accelerator, step: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, Any]:
    """Wrap a learner's step and its optimiser for this launch's processes.

    FSDP2 changes the module itself, and spreads its weights; the optimiser's state, which a resumed
    run has loaded before, follows them.
    """
    if not accelerator.is_fsdp2:
        wrapped, wrapped_optimizer = accelerator.prepare(step, optimizer)
        return wrapped, wrapped_optimizer
    _sum_in_float32(accelerator)
    moments = optimizer.state_dict()["state"]
    optimizer.state.clear()
    step, wrapped_optimizer = accelerator.prepare(step, optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in moments.items():
        optimizer.state[weights[index]] = {
            name: _like(value, weights[index]) for name, value in values.items()
        }
    return step, wrapped_optimizer


def _sum_in_float32(accelerator: Accelerator) -> None:
    """Let processes add up gradients in float32, and the loss keep it, as without FSDP2."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32
        )


def _like(value: Tensor, weight: DTensor) -> Tensor:
    """Spread one whole tensor of the optimiser as its weight is; a count of steps stays whole."""
    if value.shape != weight.shape:
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements)


def whole(value: Any) -> Any:
    """Return a tensor with all processes' parts of it; all must ask. Others stay as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_student(student: Whisper) -> Whisper:
    """Return a student with all of its weights on each process; all must ask.

    It is a copy where they are spread, else the student itself.
    """
    if not any(isinstance(weight, DTensor) for weight in student.model.parameters()):
        return student
    weights = {name: whole(weight) for name, weight in student.model.state_dict().items()}
    return replace(student, model=with_weights(student.model, weights))


def whole_learner(learner: Learner) -> Learner:
    """Do the same for a learner, whose processes may then run their models as each likes."""
    student = whole_student(learner.student)
    if student is learner.student:
        return learner
    step = StudentStep(student.model, learner.step.weights, learner.step.masks_input)
    return replace(learner, student=student, step=step)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state as one process alone would have it; all must ask."""
    state = optimizer.state_dict()
    moments = {
        index: {name: _on_cpu(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def _on_cpu(value: Any) -> Any:
    return whole(value).cpu() if isinstance(value, DTensor) else value
