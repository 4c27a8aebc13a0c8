"""Download large files over HTTP so that each is whole, checked and in place, or not there at all.

A file grows under `<name>.part`, beside `<name>.part.json`, which says from which URL and which
version of it the bytes came. A killed download goes on from the last byte written. Only a whole and
checked file gets its own name. The SHA-256 checksum of `a.tar` lies beside it in `a.tar.sha256`, in
the format of the program `sha256sum`.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import requests

from distillery.ingest.download_progress import DownloadProgress
from distillery.ingest.responses import (
    DownloadError,
    Partial,
    TransientError,
    begin_body,
    check_response,
    is_hang_up,
    load_partial,
    part_path,
    state_path,
)
from distillery.storage.files import DamagedFileError, sha256, sync, write_text

logger = logging.getLogger(__name__)

CHUNK = 1 << 18  # bytes; what a kill can lose
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "whisper-distillery"}


class _StoppedError(Exception):
    """The batch ended while this file was being fetched: no other mirror is asked."""


Check = Callable[[Path], None]  # raises DamagedFileError


@dataclass(frozen=True)
class Download:
    """One file to fetch: `urls` are mirrors of the same content, tried in order."""

    urls: tuple[str, ...]
    path: Path
    check: Check


@dataclass(frozen=True)
class Policy:
    """How patient a download is; times are in seconds."""

    max_attempts: int = 8  # requests per file and mirror
    timeout_s: float = 60.0  # silence on the connection
    deadline_s: float = 12 * 3600.0  # one file from one mirror, waits included
    backoff_s: float = 1.0  # first wait; it doubles
    max_wait_s: float = 120.0  # bounds Retry-After as well


def download_all(
    downloads: Sequence[Download],
    pool: int = 10,
    policy: Policy | None = None,
    show_progress: bool = True,
) -> dict[Path, str]:
    """Fetch every file that is not there yet, several at a time.

    A file that another program left, without a checksum, is checked and adopted. One that fails
    its check is set aside (see `set_aside`) and the next mirror is asked.

    Returns:
        The files that could not be fetched, with the reason per mirror.

    Raises:
        OSError: the disk cannot be written, or will not hold all files.
    """
    wanted = [download for download in downloads if not is_published(download.path)]
    for download in downloads:
        if is_published(download.path):
            state_path(download.path).unlink(missing_ok=True)  # of a kill after the renaming
    if not wanted:
        return {}
    stop = threading.Event()
    failures = {}
    # The pool's threads are daemons that nobody waits for, so that Ctrl-C ends at once even where
    # a server is silent; what they had written is kept.
    with (
        DownloadProgress([download.path for download in wanted], show_progress) as progress,
        ThreadPool(min(pool, len(wanted))) as workers,
    ):
        batch = _Batch(policy or Policy(), progress, stop)
        try:
            for path, reason in workers.imap_unordered(batch.fetch, wanted):
                if reason:
                    logger.warning("%s failed: %s", path.name, reason)
                    failures[path] = reason
        finally:
            stop.set()
    return failures


def ask_sizes(
    downloads: Sequence[Download], pool: int = 10, policy: Policy | None = None
) -> tuple[dict[Path, int | None], dict[Path, str]]:
    """Ask the mirrors how many bytes of each file are still to come; write nothing.

    Returns:
        The bytes by file, None where the server does not say; and the files that cannot be
        fetched, with the reason per mirror.
    """
    sizes: dict[Path, int | None] = {}
    failures: dict[Path, str] = {}
    timeout_s = (policy or Policy()).timeout_s
    with ThreadPool(min(pool, max(len(downloads), 1))) as workers:
        answers = workers.imap(lambda each: _ask_size(each, timeout_s), downloads)
        for download, answer in zip(downloads, answers, strict=True):
            if isinstance(answer, str):
                failures[download.path] = answer
            else:
                sizes[download.path] = answer
    return sizes, failures


def _ask_size(download: Download, timeout_s: float) -> int | str | None:
    """Return the bytes that a download would still fetch, or why it would not."""
    reasons = []
    for url in download.urls:
        try:
            with requests.head(
                url, headers=_HEADERS, allow_redirects=True, timeout=timeout_s
            ) as response:
                check_response(response, url)
                length = response.headers.get("Content-Length", "")
                have = load_partial(download.path, url).have
                return int(length) - have if length.isdecimal() else None
        except (requests.exceptions.RequestException, DownloadError, TransientError) as error:
            reasons.append(f"{url}: {error}")
    return "; ".join(reasons)


@dataclass(frozen=True)
class _Batch:
    """Fetches single files for `download_all`."""

    policy: Policy
    progress: DownloadProgress
    stop: threading.Event

    def fetch(self, download: Download) -> tuple[Path, str | None]:
        """Fetch one file; return its path, and the reason if it failed."""
        try:
            self._check_stop()
            reason = self._reason_against(download)
        except _StoppedError:
            return download.path, "stopped"
        except OSError as error:  # the disk: no other file will fare better
            self.stop.set()
            if error.errno is None or error.filename:
                raise
            # A failed write does not say to which file.
            reason = f"{error.strerror} (once that is mended, the same command goes on from here)"
            raise OSError(error.errno, reason, str(download.path)) from error
        if reason:
            self.progress.give_up(download.path)
        return download.path, reason

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise _StoppedError

    def _reason_against(self, download: Download) -> str | None:
        """Fetch one file from the first mirror that has it; return why not, None on success."""
        if self._adopt(download):
            return None
        reasons = []
        for url in download.urls:
            try:
                self._fetch_from(url, download.path)
                self._publish(download)
                return None
            except (DownloadError, DamagedFileError) as error:
                reasons.append(f"{url}: {error}")
        return "; ".join(reasons)

    def _adopt(self, download: Download) -> bool:
        """Check and seal a file of this name that another program left."""
        path = download.path
        if not path.exists():
            return False
        try:
            download.check(path)
        except DamagedFileError as error:
            logger.warning("%s is damaged (%s): fetching it again", path.name, error)
            set_aside(path)
            return False
        write_checksum(path, sha256(path))
        size = path.stat().st_size
        self.progress.begin(path, size, size)
        return True

    def _fetch_from(self, url: str, path: Path) -> None:
        """Bring the whole file from one mirror to its `.part`, in a bounded number of requests."""
        deadline = time.monotonic() + self.policy.deadline_s
        for attempt in range(1, self.policy.max_attempts + 1):
            try:
                self._request(url, path, deadline)
                return
            except TransientError as error:
                last = error
            if attempt < self.policy.max_attempts:
                logger.info("%s: %s; asking again", url, last)
                self._wait(attempt, last.retry_after_s, deadline)
        raise DownloadError(f"gave up after {attempt} attempts: {last}")

    def _wait(self, attempt: int, retry_after_s: float, deadline: float) -> None:
        backoff_s = self.policy.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        delay_s = min(max(backoff_s, retry_after_s), self.policy.max_wait_s)
        if time.monotonic() + delay_s > deadline:
            raise DownloadError(f"not done after {self.policy.deadline_s:.0f} s")
        self.stop.wait(delay_s)
        self._check_stop()

    def _request(self, url: str, path: Path, deadline: float) -> None:
        partial = load_partial(path, url)
        if partial.is_complete:  # killed between the last byte and the renaming
            self.progress.begin(path, partial.have, partial.size)
            return
        headers = dict(_HEADERS)
        if partial.have and partial.validator:
            headers |= {"Range": f"bytes={partial.have}-", "If-Range": partial.validator}
        try:
            with requests.get(
                url, headers=headers, stream=True, timeout=self.policy.timeout_s
            ) as response:
                check_response(response, url)
                self._check_stop()  # before the bytes that are there are given up
                partial = begin_body(response, path, url, partial)
                self._receive(response, path, partial, deadline)
        except requests.exceptions.SSLError as error:
            if is_hang_up(error):
                raise TransientError(str(error)) from error
            raise DownloadError(f"TLS error: {error}") from error
        except (
            requests.exceptions.Timeout,
            requests.exceptions.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise TransientError(str(error)) from error
        except requests.exceptions.RequestException as error:
            raise DownloadError(str(error)) from error

    def _receive(
        self, response: requests.Response, path: Path, partial: Partial, deadline: float
    ) -> None:
        self.progress.begin(path, partial.have, partial.size)
        have = partial.have
        with part_path(path).open("ab") as file:
            for chunk in response.iter_content(CHUNK):
                self._check_stop()  # before writing: the next run may be writing here already
                file.write(chunk)
                file.flush()
                have += len(chunk)
                self.progress.advance(path, len(chunk))
                if time.monotonic() > deadline:
                    raise DownloadError(f"not done after {self.policy.deadline_s:.0f} s")
        if partial.size is not None and have != partial.size:
            raise TransientError(f"{have} of {partial.size} bytes came")

    def _publish(self, download: Download) -> None:
        """Check a whole `.part`, record its checksum, and only then give it its name.

        Raises:
            DamagedFileError: the file is set aside.
        """
        path, part = download.path, part_path(download.path)
        try:
            download.check(part)
        except DamagedFileError:
            set_aside(path, part)
            state_path(path).unlink(missing_ok=True)
            raise
        write_checksum(path, sha256(part))
        sync(part)
        part.replace(path)
        sync(path.parent)
        state_path(path).unlink(missing_ok=True)


# --- checksums beside files -----------------------------------------------------------------------


def is_published(path: Path) -> bool:
    """Tell whether a file was fetched whole, or adopted, before."""
    return path.exists() and checksum_path(path).exists()


def checksum_path(path: Path) -> Path:
    """Return where a file's SHA-256 checksum is kept."""
    return path.with_name(path.name + ".sha256")


def read_checksum(path: Path) -> str | None:
    """Return the checksum that was recorded for a file, or None."""
    try:
        recorded = checksum_path(path).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return None
    return recorded[0] if recorded else None


def write_checksum(path: Path, digest: str) -> None:
    """Record a file's SHA-256 checksum, whole or not at all."""
    write_text(checksum_path(path), f"{digest}  {path.name}\n")


def damaged_path(path: Path) -> Path:
    """Return the name under which a damaged file is kept."""
    return path.with_name(path.name + ".damaged")


def set_aside(path: Path, content: Path | None = None) -> None:
    """Rename a damaged file to `<name>.damaged`, with its checksum, so that it is fetched again.

    Args:
        path: the name of the file.
        content: where the content lies, if not under that name yet.
    """
    damaged = damaged_path(path)
    (content or path).replace(damaged)
    write_checksum(damaged, sha256(damaged))
    checksum_path(path).unlink(missing_ok=True)


def is_confirmed_by_source(path: Path) -> bool:
    """Tell whether a file, set aside once, came from the source again with the same content."""
    digest = read_checksum(path)
    return digest is not None and digest == read_checksum(damaged_path(path))
