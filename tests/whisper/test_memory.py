"""Memory that was used at most."""

import numpy as np
import torch

from distillery.whisper import memory

CPU = torch.device("cpu")


def test_peak_memory_is_that_since_the_last_reset():
    if memory.memory_kind(CPU) is None:  # not Linux
        assert memory.peak_memory(CPU) is None
        return
    assert memory.memory_kind(CPU) == memory.RESIDENT_PEAK
    memory.reset_peak_memory(CPU)
    before = memory.peak_memory(CPU)
    block = np.ones(40_000_000)  # 320 MB: every page is touched
    assert memory.peak_memory(CPU) - before > 300e6
    del block
    assert memory.peak_memory(CPU) - before > 300e6
    memory.reset_peak_memory(CPU)
    assert memory.peak_memory(CPU) - before < 300e6
