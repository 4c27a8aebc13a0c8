"""Progress through speech: a bar, lines in the log, and figures for the trackers."""

import logging
import time
from datetime import timedelta

from accelerate import Accelerator

from distillery.storage.progress import ProgressBar

logger = logging.getLogger(__name__)


class SpeechProgress:
    """How far one process is with its share of the clips, and how fast.

    The main process shows a bar, and says after every few batches how many clips are done, how
    many hours they last, how many times faster than real time that was (RTFx), and how long the
    rest will take. The trackers get the same figures, by the number of clips.
    """

    def __init__(
        self, accelerator: Accelerator, verb: str, num_clips: int | None, advances_per_line: int
    ) -> None:
        """Begin to count.

        Args:
            accelerator: of this launch; its trackers have been started.
            verb: what is done to the clips, such as `labelling`.
            num_clips: of this process's share; None for a stream, which does not say.
            advances_per_line: calls of `advance` after which there is a line.
        """
        self._accelerator = accelerator
        self._verb = verb
        self._advances_per_line = advances_per_line
        self._num_batches = self._num_skipped = 0
        self._audio_s = 0.0
        self._started = time.monotonic()
        self._bar = ProgressBar(
            desc=verb,
            unit=" clips",
            total=num_clips,
            disable=not accelerator.is_local_main_process,
        )
        self._num_done, self._num_clips = 0, num_clips

    def skip(self, num_clips: int) -> None:
        """Count clips that an earlier run has done."""
        self._num_skipped += num_clips
        self._count(num_clips)

    def advance(self, num_clips: int, audio_s: float) -> None:
        """Count a batch: its clips, and the seconds that they last."""
        self._count(num_clips)
        self._num_batches += 1
        self._audio_s += audio_s
        if self._num_batches % self._advances_per_line == 0:
            self._report()

    def close(self) -> None:
        """Take the bar away, after a last line about all of it."""
        if self._num_batches % self._advances_per_line:
            self._report()
        self._bar.close()

    def _count(self, num_clips: int) -> None:
        self._num_done += num_clips
        self._bar.update(num_clips)

    def _report(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        hours, rtfx = self._audio_s / 3600, self._audio_s / seconds
        of_all, left = "", ""
        if self._num_clips is not None:
            num_left = self._num_clips - self._num_done
            left_s = num_left * seconds / max(1, self._num_done - self._num_skipped)
            of_all, left = f" of {self._num_clips:,}", f", {timedelta(seconds=round(left_s))} left"
        logger.info(
            "%s: %s%s clips, %.2f h of audio, RTFx %.1f%s",
            *(self._verb, f"{self._num_done:,}", of_all, hours, rtfx, left),
        )
        figures = {"clips": self._num_done, "audio_hours": hours, "rtfx": rtfx}
        self._accelerator.log(
            {f"{self._verb}/{name}": value for name, value in figures.items()}, self._num_done
        )
