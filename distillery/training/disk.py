"""A disk that has no room for what a training run saves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from distillery.storage.files import free_bytes


@contextmanager
def enough_disk(folder: Path) -> Iterator[None]:
    """Turn a failure to write files of a run into a ValueError that says how full the disk is.

    Neither torch nor safetensors raises OSError for a full disk, and torch's error does not even
    name it.

    Args:
        folder: of the run.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--output_dir {folder} cannot be written: {reason}; {free_bytes(folder) / 1e6:,.1f} "
            "MB are free on its disk; make room, and start again to go on from the newest "
            "checkpoint"
        ) from error
