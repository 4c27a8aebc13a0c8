"""SIGTERM as a request to stop at the next safe point."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether SIGTERM has asked this program to stop at the next safe point."""

    def __init__(self) -> None:
        self.is_set = False

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGTERM into a request while the block runs, instead of the program's end."""
    request = StopRequest()
    before = signal.signal(signal.SIGTERM, request._set)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
