"""Whose a folder is: it has one writer at a time, and is no input of it."""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distillery.storage.shares import Share

LOCK = ".lock"  # of a process that was killed it stays behind, and means nothing
OPENING_S = 60.0  # another share may be about to open its run in the same folder


class FolderInUseError(ValueError):
    """Another process writes to the folder."""


def take_folder(folder: Path, flag: str = "--output_dir", wait_s: float = 0.0) -> FileLock:
    """Take a folder for this process, until the lock is let go or the process ends in any way.

    The same process may take it again.

    Args:
        folder: made if need be.
        flag: that names the folder, for the error.
        wait_s: how long another process may hold it yet.

    Raises:
        FolderInUseError: another process holds it, or a share of it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _take(folder.resolve() / LOCK, folder, flag, wait_s)


def take_share(folder: Path, share: Share, flag: str = "--output_dir") -> FileLock:
    """Take one share of a folder, which this process has taken as a whole for a moment."""
    name = f"{LOCK}.{share.index}-of-{share.count}"
    return _take(folder.resolve() / name, folder, flag)


def refuse_other_shares(folder: Path, share: Share, flag: str = "--output_dir") -> None:
    """Raise FolderInUseError if a process holds a share of a folder that was cut in another way."""
    for path in sorted(folder.glob(f"{LOCK}.*-of-*")):
        if not path.name.endswith(f"-of-{share.count}"):
            leave_folder(_take(path.resolve(), folder, flag))


def _take(path: Path, folder: Path, flag: str, wait_s: float = 0.0) -> FileLock:
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise FolderInUseError(
            f"{flag} {folder} is in use by {holder}: wait for it, or name another folder"
        ) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
    path.write_text(text, encoding="utf-8")
    return lock


def leave_folder(lock: FileLock) -> None:
    """Let go of a folder that `take_folder` took, and leave no lock file in it."""
    if lock.lock_counter == 1:
        # Before the lock is free: who opens the file now finds it taken, and later a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


@contextmanager
def taken_folder(folder: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Hold a folder meanwhile; arguments and errors as for `take_folder`."""
    lock = take_folder(folder, flag)
    try:
        yield
    finally:
        leave_folder(lock)


@contextmanager
def taken_name(folder: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Hold the name of a folder that is put there as a whole, and what has that name now.

    Until then there is no folder to hold: the lock lies beside it. Errors as for `take_folder`.
    """
    path = folder.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.callback(leave_folder, _take(path.with_name(f".{path.name}{LOCK}"), folder, flag))
        if folder.exists():
            held.enter_context(taken_folder(folder, flag))
        yield


def refuse_overlap(output: Path, inputs: Iterable[str], flag: str = "--output_dir") -> None:
    """Raise ValueError if an output folder is an input, lies in one, or holds one.

    Args:
        output: the folder to be written.
        inputs: names of what is read; those that are no local file or folder are passed over.
        flag: that names the output folder.
    """
    target = output.resolve()
    for name in inputs:
        if not Path(name).exists():
            continue
        source = Path(name).resolve()
        if target == source:
            relation = "is"
        elif source in target.parents:
            relation = "lies in"
        elif target in source.parents:
            relation = "holds"
        else:
            continue
        raise ValueError(f"{flag} {output} {relation} the input {name}: name another folder")
