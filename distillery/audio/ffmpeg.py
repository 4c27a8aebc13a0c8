"""FFmpeg's libraries (the package `av`) in a process of their own.

A damaged file may crash them or keep them busy for ever. That must cost one clip, not the whole
stage. So each thread that decodes starts a helper process, which is this file run as a program, and
keeps it for its next clips. The file imports nothing of the package, and `av` in the helper alone.
"""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMEOUT_S = 600  # for one clip
BLOCK_FRAMES = 2**18
MISSING_S = 0.1  # a header rounds the length

# Containers of audio. A playlist would make FFmpeg open other files.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,m4a,matroska,mov,mp3,mp4,mpeg,mpegts,"
    "ogg,tta,w64,wav,webm,wv"
)
OPTIONS = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "none",  # the content is handed over; nothing else is to be opened
    "err_detect": "crccheck+explode",  # a damaged file is no clip
}


class FFmpegError(Exception):
    """A clip that FFmpeg cannot decode; the message says why."""


def decode(source: bytes | Path) -> tuple[int, Iterator[NDArray[np.float32]]]:
    """Decode the first audio stream of a file's content, or of a file.

    Returns:
        The sampling rate in Hz, and the samples as they come: float32 (frames, channels).

    Raises:
        FFmpegError: it is no audio, or damaged, cut short, or of changing form; or FFmpeg crashed
            or was not done in time. Where this shows later, the iterator raises it.
    """
    messages = _messages(source)
    return next(messages), messages


# --- the process that decodes for others ---------------------------------------------------------


class _Helper:
    """This file, run as a program, and the connection to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.connection, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, __file__, str(number), str(TIMEOUT_S)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[number])

    @property
    def is_usable(self) -> bool:
        """Whether it runs, and is not that of the process that this one was forked from."""
        return self.owner == os.getpid() and self.process.poll() is None

    def stop(self) -> int:
        """End it; return its exit status, negative where a signal ended it before."""
        self.connection.close()
        try:
            status = self.process.wait(timeout=1)  # it has crashed already, or sees the end
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        return status


_thread = threading.local()


def _helper() -> _Helper:
    helper: _Helper | None = getattr(_thread, "helper", None)
    if helper is None or not helper.is_usable:
        helper = _thread.helper = _Helper()
    return helper


def _messages(source: bytes | Path) -> Iterator[Any]:
    """Yield what the helper sends about a clip: the rate, then blocks of samples."""
    helper = _helper()
    is_done = False
    try:
        helper.connection.send(source if isinstance(source, bytes) else source.absolute())
        while (message := helper.connection.recv()) is not None:
            if isinstance(message, str):
                is_done = True
                raise FFmpegError(message)
            yield message
        is_done = True
    except (EOFError, ConnectionError) as error:
        raise FFmpegError(_reason(helper.stop())) from error
    finally:
        if not is_done:  # the rest is not wanted: the helper would go on sending it
            helper.stop()


def _reason(status: int) -> str:
    if status == -signal.SIGALRM:
        return f"not done after {TIMEOUT_S} s"
    return f"stopped by signal {-status}" if status < 0 else f"exit status {status}"


# --- in the helper -------------------------------------------------------------------------------


def serve(connection: Connection, timeout_s: int) -> None:
    """Decode clip after clip, until the other side is gone."""
    try:
        import av
    except ImportError as error:
        connection.recv()
        connection.send(f"the package av does not load ({error}): pip install av")
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides when to stop
    while True:
        source = connection.recv()
        signal.alarm(timeout_s)  # ends the process, whatever FFmpeg is doing
        try:
            for message in _decoded(source):
                connection.send(message)
            answer = None
        except FFmpegError as error:
            answer = str(error)
        except av.FFmpegError as error:  # its full text names the function of the library
            answer = str(error.strerror)
        connection.send(answer)
        signal.alarm(0)


def _decoded(source: bytes | Path) -> Iterator[int | NDArray[np.float32]]:
    """Yield the sampling rate, then float32 (frames, channels) in blocks."""
    import av

    content = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with content, av.open(content, options=OPTIONS, metadata_errors="ignore") as container:
        if not container.streams.audio or not container.streams.audio[0].rate:
            raise FFmpegError("there is no audio in it")
        yield container.streams.audio[0].rate
        block: list[NDArray[np.float32]] = []
        for samples in _samples(container):
            block.append(samples)
            if len(block) * len(samples) >= BLOCK_FRAMES:
                yield np.concatenate(block)
                block = []
        if block:
            yield np.concatenate(block)


def _samples(container: Any) -> Iterator[NDArray[np.float32]]:
    """Yield float32 (frames, channels) of each frame of the first audio stream."""
    import av

    stream = container.streams.audio[0]
    to_float = av.AudioResampler(format="fltp", rate=stream.rate)
    has_padding = "mp4" in container.format.name  # the codec's, at the end of the last frame
    end_s = 0.0
    for frame in _frames(container, stream):
        frame_s = float(frame.duration * frame.time_base) if has_padding else 0.0
        length = round(frame_s * stream.rate) or None
        end_s = (frame.time or end_s) + frame.samples / frame.sample_rate
        try:
            yield from (part.to_ndarray().T[:length] for part in to_float.resample(frame))
        except ValueError as error:
            raise FFmpegError("its rate or its channels change on the way") from error
    yield from (part.to_ndarray().T for part in to_float.resample(None))
    # FFmpeg takes the end of a Matroska or WebM file for the end of the audio, wherever it is.
    stated_s = (container.duration or 0) / av.time_base
    is_matroska = "matroska" in container.format.name and len(container.streams) == 1
    if is_matroska and end_s < stated_s - MISSING_S:
        raise FFmpegError(f"cut short: {end_s:.2f} s of {stated_s:.2f} s are there")


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise FFmpegError("a part is damaged or missing")
        yield from packet.decode()


if __name__ == "__main__":
    try:
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
    except (EOFError, ConnectionError):  # the other side is gone
        sys.exit(0)
