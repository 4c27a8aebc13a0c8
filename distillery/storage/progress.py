"""Progress of long work: a bar in a terminal, a line now and then in a log."""

import io
import logging
import sys
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

LINE_EVERY_S = 30.0  # where the output is no terminal
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}{unit} in {elapsed}, {rate_noinv_fmt}"


class ProgressBar(tqdm):  # type: ignore[misc,type-arg]  # tqdm ships no types
    """tqdm's bar; where standard error is no terminal, a line every `LINE_EVERY_S` seconds.

    A bar that is drawn again and again would leave one line per update in a log file.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._is_drawn = sys.stderr.isatty()
        if not self._is_drawn:
            # Lines go to the log; what tqdm itself would write are ends of lines.
            options.update(
                mininterval=LINE_EVERY_S,
                maxinterval=LINE_EVERY_S,
                file=io.StringIO(),
            )
        self._logged_n = options.get("initial", 0)
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log it as a line."""
        if self._is_drawn:
            super().display(msg, pos)
        elif self.n > self._logged_n:  # a line about nothing says nothing
            self._logged_n = self.n
            self.bar_format = LINE if self.total else LINE_WITHOUT_TOTAL
            logger.info("%s", " ".join(str(self).split()))  # tqdm pads the rate
