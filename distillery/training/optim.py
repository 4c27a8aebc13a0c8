"""Optimiser and learning-rate schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from distillery.training.settings import Optimization


def make_optimizer(model: nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; biases and layer norms do not decay.

    On a GPU it is one kernel for all weights (fused).
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
    is_fused = all(parameter.is_cuda for parameter in decayed + plain) or None
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, fused=is_fused
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: Optimization, num_updates: int
) -> LRScheduler:
    """Return a schedule that is stepped once per optimiser update, on every process alike.

    It is not handed to accelerate, whose prepared schedulers step once per process.
    """
    schedule: LRScheduler = get_scheduler(
        settings.schedule, optimizer, settings.warmup_steps, num_updates
    )
    return schedule
