"""Signals as a request to stop at the next safe point, and ends that follow a parent's."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType

LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # in the environment of all that `accelerate launch` starts
LOOK_EVERY_S = 0.5  # for the launcher's end
# One Ctrl-C can arrive twice: from the terminal, which tells all its processes, and from torchrun,
# which hands it on.
SAME_CTRL_C_S = 1.0


class StopRequest:
    """Whether somebody has asked this program to stop at the next safe point.

    SIGTERM asks, and so does Ctrl-C. A second Ctrl-C ends the program at once.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._first_ctrl_c: float | None = None

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_ctrl_c is None:
            self._first_ctrl_c = now
        elif now - self._first_ctrl_c > SAME_CTRL_C_S:
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first Ctrl-C into a request while the block runs."""
    request = StopRequest()
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, request._terminate),
        signal.SIGINT: signal.signal(signal.SIGINT, request._interrupt),
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Have this process told to stop, as by SIGTERM, when its `accelerate launch` ends.

    The launcher of one process dies of SIGTERM and Ctrl-C and leaves the process that it started
    behind. Without a launcher nothing is watched: a program may outlive the shell it was started
    from.
    """
    if LAUNCHED in os.environ:
        threading.Thread(target=_stop_when_orphaned, args=(os.getppid(),), daemon=True).start()


def _stop_when_orphaned(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent() -> None:
    """Have this worker process end when the one that started it is gone, even by SIGKILL.

    A worker of `concurrent.futures` waits for more work for ever, with all its memory.
    """
    threading.Thread(target=_exit_when_alone, daemon=True).start()


def _exit_when_alone() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
