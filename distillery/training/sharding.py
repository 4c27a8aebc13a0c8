"""Training whose weights or optimiser are spread over the processes, and whole again.

FSDP2 spreads both; DeepSpeed's ZeRO, of which `zero` knows, the optimiser. What leaves a training
is always whole: a checkpoint does not tell how it was trained, and a run may go on with any number
of processes, spread or not.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from distillery.training import zero
from distillery.training.settings import ADAMW_8BIT
from distillery.training.step import Learner, StudentStep
from distillery.whisper.checkpoint import Whisper, with_weights

FSDP2, DEEPSPEED = "FSDP2", "DeepSpeed"


def refuse_sharding(accelerator: Accelerator, optimizer: str, lora_rank: int | None) -> None:
    """Raise ValueError for a launch that spreads the model over processes as training cannot.

    Args:
        accelerator: of the launch.
        optimizer: one of `settings.OPTIMIZERS`.
        lora_rank: of adapters; None trains the weights themselves.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        zero.refuse_configuration(accelerator)
    elif kind != DistributedType.FSDP:
        return
    elif not accelerator.is_fsdp2:
        raise ValueError(
            "the launch is set up for FSDP's first version: use the second, as "
            "scripts/launch/fsdp2.yaml"
        )
    name = spread_by(accelerator)
    if optimizer == ADAMW_8BIT:
        raise ValueError(f"--optim adamw_8bit does not go with {name}: use --optim adamw_torch")
    if lora_rank is not None:
        raise ValueError(
            f"--lora_rank does not go with {name}: adapters are small; launch with MULTI_GPU, as "
            "scripts/launch/8_gpus.yaml"
        )


def spread_by(accelerator: Accelerator) -> str | None:
    """Return what spreads a training over the launch's processes; None for copies on each."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return DEEPSPEED
    return FSDP2 if accelerator.is_fsdp2 else None


def autocast(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Return a context that computes in the launch's dtype."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return zero.autocast(accelerator)
    context: AbstractContextManager[Any] = accelerator.autocast()
    return context


def prepare(
    accelerator: Accelerator,
    step: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
) -> tuple[nn.Module, Any]:
    """Wrap a learner's step and its optimiser for this launch's processes.

    FSDP2 changes the module itself, and spreads its weights; the optimiser's state, which a resumed
    run has loaded before, follows them. DeepSpeed alone must know here how large a gradient may be.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return zero.prepare(accelerator, step, optimizer, max_grad_norm)
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


@contextmanager
def micro_batch(accelerator: Accelerator, step: nn.Module, is_last: bool) -> Iterator[None]:
    """Let the backward pass inside share gradients, if it is an update's last, or else add them up.

    FSDP2 and ZeRO's second stage share them each time: they would have to keep all of them whole in
    between. DeepSpeed makes the update in the last one too.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.sync_gradients = is_last
        yield
    elif is_last or accelerator.is_fsdp2:
        yield
    else:
        with accelerator.no_sync(step):
            yield


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
    if any(zero.WEIGHTS in group for group in optimizer.param_groups):
        return zero.whole_state(optimizer)
    state = optimizer.state_dict()
    moments = {
        index: {name: _on_cpu(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def _on_cpu(value: Any) -> Any:
    return whole(value).cpu() if isinstance(value, DTensor) else value
