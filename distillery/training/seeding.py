"""Random numbers as a function of integers."""

import random

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and torch from integers; the same integers give the same numbers.

    Seeding each training step from (seed, step, rank) makes its dropout and masking a pure
    function of them, so that a resumed run needs no generator states.
    """
    words = np.random.SeedSequence(parts).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
