"""Running out of memory, on a GPU or a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
