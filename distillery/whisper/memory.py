"""Memory of a GPU or of a CPU's process: how much was used at most, and running out of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CUDA_PEAK = "torch.cuda.max_memory_allocated"
RESIDENT_PEAK = "peak resident set of the process"

_STATUS = Path("/proc/self/status")  # Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory has run out, on a GPU or a CPU."""
    of_kind = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return of_kind or "can't allocate memory" in str(error)


@contextmanager
def enough_memory(work: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory in the block into a ValueError that says what to do.

    Args:
        work: what needed it, such as `an update with 16 rows at once`.
        remedy: what to do, with the flags' names.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{work} needs more memory than there is: {remedy} ({reason})") from error


def memory_kind(device: torch.device) -> str | None:
    """Say what `peak_memory` measures on a device; None where it measures nothing."""
    if device.type == "cuda":
        return CUDA_PEAK
    return RESIDENT_PEAK if device.type == "cpu" and _STATUS.exists() else None


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak to the memory in use now."""
    if (kind := memory_kind(device)) == CUDA_PEAK:
        torch.cuda.reset_peak_memory_stats(device)
    elif kind == RESIDENT_PEAK:
        _STATUS.with_name("clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def peak_memory(device: torch.device) -> int | None:
    """Return the peak of memory in use since the last reset, in bytes."""
    if (kind := memory_kind(device)) == CUDA_PEAK:
        return int(torch.cuda.max_memory_allocated(device))
    if kind is None:
        return None
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
