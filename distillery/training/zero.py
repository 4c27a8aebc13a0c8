"""Training whose optimiser is spread over the processes by DeepSpeed: ZeRO, stages 1 and 2.

Each process updates a part of the weights, and keeps AdamW's two means of that part alone; with
stage 2 it also keeps the gradients of that part alone (https://arxiv.org/abs/1910.02054). The model
is whole on each of them, in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

STAGES = (1, 2)
# Of a group of the optimiser: its weights, while its parameter is this process's part of them.
WEIGHTS = "weights"


def refuse_configuration(accelerator: Accelerator) -> None:
    """Raise ValueError for a configuration of DeepSpeed that training does not know."""
    config = accelerator.deepspeed_plugin.deepspeed_config
    zero = config["zero_optimization"]
    offload = (zero.get("offload_optimizer") or {}).get("device", "none")
    stage = zero.get("stage", 0)  # as DeepSpeed has it
    if stage not in STAGES:
        raise ValueError(
            f"DeepSpeed's ZeRO stage {stage} is not supported: use stage 2, as "
            "scripts/launch/deepspeed_zero2.yaml, or FSDP2, which spreads the weights too, as "
            "scripts/launch/fsdp2.yaml"
        )
    if offload != "none":
        raise ValueError(
            f"DeepSpeed's offload_optimizer_device {offload} is not supported: set it to none"
        )
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ValueError(
                f"DeepSpeed's configuration has `{section}`: flags say that; delete it"
            )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("--dtype float16 does not go with DeepSpeed: use --dtype bfloat16")


def autocast(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Return a context that computes in the launch's dtype, as accelerate's does elsewhere."""
    config = accelerator.deepspeed_plugin.deepspeed_config
    is_on = any(config.get(name, {}).get("enabled") for name in ("bf16", "torch_autocast"))
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=is_on)


def prepare(
    accelerator: Accelerator,
    step: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
) -> tuple[nn.Module, Any]:
    """Wrap a learner's step and its optimiser in DeepSpeed's engine.

    The optimiser itself then has, for each group of weights, this process's part of them: they are
    laid one behind another, and cut into equal parts. Its state, which a resumed run has loaded
    before, is cut as they are.

    The engine makes an update in the last backward pass, with gradients scaled down to
    `max_grad_norm`; where their norm is not finite, it makes none.
    """
    _configure(accelerator, max_grad_norm)
    moments = optimizer.state_dict()["state"]
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group[WEIGHTS] = group["params"]
    engine, wrapped_optimizer = accelerator.prepare(step, optimizer)
    indices = count()
    for group in optimizer.param_groups:
        _load(optimizer, group, [moments.get(next(indices), {}) for _ in group[WEIGHTS]])
    return engine, wrapped_optimizer


def _configure(accelerator: Accelerator, max_grad_norm: float) -> None:
    """Let the engine do as flags say, whatever its configuration does.

    Losses are divided by the tokens of the global batch before the engine has them, and the loop
    says which micro-batch is an update's last: to the engine, one is an update's only one. Weights
    stay float32 in bfloat16 too, as without DeepSpeed, and gradients are added up in float32. They
    lie in their order, without gaps.
    """
    config = accelerator.deepspeed_plugin.deepspeed_config
    autocast = {"dtype": "bfloat16", "lower_precision_safe_modules": []}
    config["zero_optimization"].update(round_robin_gradients=False, parameter_alignment=False)
    config.update(
        train_micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=1,
        train_batch_size=accelerator.num_processes,
        gradient_clipping=max_grad_norm,
        torch_autocast={"enabled": accelerator.mixed_precision == "bf16", **autocast},
        bf16={"enabled": False},
    )


def _load(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], states: Sequence[dict[str, Tensor]]
) -> None:
    """Give a group's part the state that its weights had, each the whole of it; none is new."""
    (part,) = group["params"]
    for name in states[0]:
        optimizer.state[part][name] = _cut([state[name] for state in states], part)


def _cut(values: Sequence[Tensor], part: Tensor) -> Tensor:
    """Return this process's part of values, as `part` is of their weights."""
    if values[0].dim() == 0:  # a count of steps
        return values[0]
    start = distributed.get_rank() * part.numel()
    mine = torch.cat([value.flatten() for value in values])[start : start + part.numel()]
    return nn.functional.pad(mine, (0, part.numel() - mine.numel()))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's state as one process alone would have it; all must ask."""
    moments: list[dict[str, Tensor]] = []
    groups = []
    for group in optimizer.param_groups:
        first = len(moments)
        moments += [{} for _ in group[WEIGHTS]]
        (part,) = group["params"]
        for name, value in optimizer.state[part].items():
            for state, piece in zip(moments[first:], _pieces(value, group[WEIGHTS]), strict=True):
                state[name] = piece
        others = {name: value for name, value in group.items() if name != WEIGHTS}
        groups.append({**others, "params": list(range(first, len(moments)))})
    return {"state": {i: state for i, state in enumerate(moments) if state}, "param_groups": groups}


def _pieces(value: Tensor, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield, for each weight, what all processes' parts together hold of it."""
    if value.dim() == 0:
        yield from (value.clone() for _ in weights)
        return
    parts = value.new_empty(distributed.get_world_size() * value.numel())
    distributed.all_gather_into_tensor(parts, value)
    place = 0
    for weight in weights:
        yield parts[place : place + weight.numel()].view_as(weight).cpu()
        place += weight.numel()
