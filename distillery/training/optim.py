"""Optimiser and learning-rate schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; biases and layer norms do not decay."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)


def make_schedule(
    optimizer: torch.optim.Optimizer, name: str, num_warmup_steps: int, num_steps: int
) -> LRScheduler:
    """Return a schedule that is stepped once per optimiser update, on every process alike.

    It is not handed to accelerate, whose prepared schedulers step once per process.
    """
    schedule: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps, num_steps)
    return schedule
