"""One writer for each folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
HOLDER = ".lock.holder"  # who holds the lock, in words; of no meaning where nobody does


@contextmanager
def hold_folder(folder: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Hold a folder for this process; the lock is gone with the process, however it ends.

    Args:
        folder: made if need be.
        flag: that names the folder, for the error.

    Raises:
        BlockingIOError: another process holds it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise BlockingIOError(
            f"{flag} {folder} is in use by {who}: wait for it, or name another folder"
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        holder.write_text(text, encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
