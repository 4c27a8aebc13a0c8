"""Optimiser and learning-rate schedule."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from distillery.training.settings import ADAMW_8BIT, Optimization


def make_optimizer(model: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; biases and layer norms do not decay.

    It goes over each weight once (fused), or on request it is that of bitsandbytes on a GPU, which
    keeps the means of the gradients in 8 bits each (https://arxiv.org/abs/2110.02861).

    Raises:
        ValueError: 8 bits are asked for without a GPU.
        ModuleNotFoundError: they are asked for without bitsandbytes.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # DeepSpeed takes no other
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.epsilon,
    }
    if settings.optimizer == ADAMW_8BIT:
        is_on_gpu = all(parameter.is_cuda for parameter in decayed + plain)
        return _adamw_8bit(groups, options, is_on_gpu)
    return torch.optim.AdamW(groups, **options, fused=True)


def _adamw_8bit(
    groups: list[dict[str, Any]], options: dict[str, Any], is_on_gpu: bool
) -> torch.optim.Optimizer:
    if not is_on_gpu:
        raise ValueError(
            "--optim adamw_8bit needs a GPU, and the model is not on one: use --optim adamw_torch"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; --optim adamw_8bit needs it: pip install bitsandbytes (the extra '8bit' of "
            "this project)"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **options)
    return optimizer


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: Optimization, num_updates: int
) -> LRScheduler:
    """Return a schedule that is stepped once per optimiser update, on every process alike.

    It is not handed to accelerate, whose prepared schedulers step once per process.
    """
    schedule: LRScheduler = get_scheduler(
        settings.schedule, optimizer, settings.num_warmup_updates(num_updates), num_updates
    )
    return schedule
