"""How far a batch of downloads is, and whether the disk will hold it."""

import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from distillery.storage.progress import ProgressBar


class DownloadProgress:
    """The bytes of a batch of files: one bar, and a guard that the disk will hold them all.

    A file that was not asked for yet is taken to be as large as the mean of its kind (its suffix),
    so the total is a forecast that becomes exact, and nothing needs to be asked twice.
    """

    def __init__(self, paths: Sequence[Path], show: bool = True):
        self._folder = paths[0].parent
        self._counts = Counter(path.suffix for path in paths)
        self._have: dict[Path, int] = {}
        self._sizes: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._bar = ProgressBar(
            total=0, unit="B", unit_scale=True, disable=not show, desc=f"{len(paths)} files"
        )

    def __enter__(self) -> "DownloadProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def begin(self, path: Path, have: int, size: int | None) -> None:
        """Note a file's size, if known, and the bytes that are there; again where it starts over.

        Raises:
            OSError: the disk cannot hold what is still to come.
        """
        with self._lock:
            if size is not None:
                self._sizes[path] = size
            self._set(path, have)
            missing = self._forecast() - sum(self._have.values())
            free = shutil.disk_usage(self._folder).free
        if missing > free:
            raise OSError(
                f"{self._folder} has {free / 1e9:.3g} GB free but about {missing / 1e9:.3g} GB are "
                "still to come: free some space, choose another --output_dir, or fetch less"
            )

    def advance(self, path: Path, num_bytes: int) -> None:
        """Count bytes that were written."""
        with self._lock:
            self._have[path] += num_bytes
            self._bar.update(num_bytes)

    def give_up(self, path: Path) -> None:
        """Leave out a file that cannot be fetched."""
        with self._lock:
            self._counts[path.suffix] -= 1
            self._sizes.pop(path, None)
            self._set(path, 0)

    def _set(self, path: Path, have: int) -> None:
        """Move the bar by bytes of an earlier run, which its rate must not count."""
        change = have - self._have.get(path, 0)
        self._have[path] = have
        self._bar.total = self._forecast()
        if not self._bar.disable:
            self._bar.n += change
            self._bar.initial += change
            self._bar.last_print_n += change
            self._bar.refresh()

    def _forecast(self) -> int:
        known: dict[str, list[int]] = {}
        for path, size in self._sizes.items():
            known.setdefault(path.suffix, []).append(size)
        return sum(
            sum(sizes) * self._counts[suffix] // len(sizes) for suffix, sizes in known.items()
        )
