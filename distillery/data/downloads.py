"""Download large files over HTTP so that each is whole, checked and in place, or not there at all.

A file grows under `<name>.part`, beside `<name>.part.json`, which says from which URL and which
version of it the bytes came. A killed download goes on from the last byte written. Only a whole and
checked file gets its own name; its SHA-256 sum lies beside it as `<name>.sha256`, in the format of
the `sha256sum` program.
"""

import json
import logging
import random
import re
import shutil
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import TracebackType

import filelock
import requests
from tqdm import tqdm

from distillery.storage.files import DamagedFileError, sha256, sync

logger = logging.getLogger(__name__)

CHUNK = 1 << 18  # bytes; what a kill can lose
_RETRYABLE_STATUS = {408, 429}
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "whisper-distillery"}


class DownloadError(Exception):
    """A file that cannot be had; asking again at once is of no use."""


class _TransientError(Exception):
    """A fault that may be gone at the next attempt."""

    def __init__(self, reason: str, retry_after_s: float = 0.0):
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _StoppedError(Exception):
    """The batch ended while this file was under way: no other mirror is to be asked either."""


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

    A file that lies there without a sum (another program's) is checked and adopted. One that fails
    its check is set aside (see `set_aside`) and the next mirror is asked.

    Returns:
        The files that could not be had, with the reason per mirror; empty where all is well.

    Raises:
        OSError: the disk is full, or would be before the last file, or cannot be written.
    """
    wanted = []
    for download in downloads:
        if is_published(download.path):
            _state_path(download.path).unlink(missing_ok=True)  # of a kill after the renaming
        else:
            wanted.append(download)
    if not wanted:
        return {}
    stop = threading.Event()
    failures = {}
    # The pool's threads are daemons that nobody waits for, so that Ctrl-C ends at once even where
    # a server is silent; what they had written is kept.
    with (
        Progress([download.path for download in wanted], show_progress) as progress,
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
        The bytes by file, None where the server does not say; and the files that cannot be had,
        with the reason per mirror.
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
                _check_response(response, url)
                length = response.headers.get("Content-Length", "")
                have = _load_partial(download.path, url).have
                return int(length) - have if length.isdecimal() else None
        except (requests.exceptions.RequestException, DownloadError, _TransientError) as error:
            reasons.append(f"{url}: {error}")
    return "; ".join(reasons)


def is_published(path: Path) -> bool:
    """Tell whether a file was fetched whole, or adopted, before."""
    return path.exists() and sum_path(path).exists()


def sum_path(path: Path) -> Path:
    """Return where a file's SHA-256 sum is kept."""
    return path.with_name(path.name + ".sha256")


def read_sum(path: Path) -> str | None:
    """Return the sum that was recorded for a file, or None."""
    try:
        recorded = sum_path(path).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return None
    return recorded[0] if recorded else None


def write_sum(path: Path, digest: str) -> None:
    """Record a file's SHA-256 sum, whole or not at all, so that `sha256sum -c` understands it."""
    temporary = part_path(sum_path(path))
    temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(sum_path(path))


def damaged_path(path: Path) -> Path:
    """Return the name under which a damaged file is kept."""
    return path.with_name(path.name + ".damaged")


def set_aside(path: Path, content: Path | None = None) -> None:
    """Rename a damaged file to `<name>.damaged`, with its own sum, so that it is fetched again.

    Args:
        path: the name of the file.
        content: where the content lies, if not under that name yet.
    """
    damaged = damaged_path(path)
    (content or path).replace(damaged)
    write_sum(damaged, sha256(damaged))
    sum_path(path).unlink(missing_ok=True)


def is_confirmed_by_source(path: Path) -> bool:
    """Tell whether a file, set aside once, came from the source again with the same content."""
    digest = read_sum(path)
    return digest is not None and digest == read_sum(damaged_path(path))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock is gone with the process, however it ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"{folder} is in use by another download: wait for it, or choose another --output_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


class Progress:
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
        self._bar = tqdm(
            total=0, unit="B", unit_scale=True, disable=not show, desc=f"{len(paths)} files"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def begin(self, path: Path, have: int, size: int | None) -> None:
        """Say how large a file is, if known, and how much is there; again where it starts over.

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
        """Leave a file out that cannot be had."""
        with self._lock:
            self._counts[path.suffix] -= 1
            self._sizes.pop(path, None)
            self._set(path, 0)

    def _set(self, path: Path, have: int) -> None:
        """Move the bar by bytes that did not come just now, which its rate must not count."""
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


@dataclass(frozen=True)
class _Partial:
    """The bytes that an earlier request left, and the version of the URL that they belong to."""

    have: int = 0
    size: int | None = None
    validator: str | None = None  # a strong ETag, or Last-Modified

    @property
    def is_complete(self) -> bool:
        return self.size is not None and self.have == self.size


@dataclass(frozen=True)
class _Batch:
    """Fetches single files for `download_all`."""

    policy: Policy
    progress: Progress
    stop: threading.Event

    def fetch(self, download: Download) -> tuple[Path, str | None]:
        """Fetch one file; return it with the reason why not, if so."""
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
        """Fetch one file from the first mirror that has it; return None where that went well."""
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
        write_sum(path, sha256(path))
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
            except _TransientError as error:
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
        partial = _load_partial(path, url)
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
                _check_response(response, url)
                self._check_stop()  # before the bytes that are there are given up
                partial = _begin_body(response, path, url, partial)
                self._receive(response, path, partial, deadline)
        except requests.exceptions.SSLError as error:
            if _is_hang_up(error):
                raise _TransientError(str(error)) from error
            raise DownloadError(f"TLS error: {error}") from error
        except (
            requests.exceptions.Timeout,
            requests.exceptions.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _TransientError(str(error)) from error
        except requests.exceptions.RequestException as error:
            raise DownloadError(str(error)) from error

    def _receive(
        self, response: requests.Response, path: Path, partial: _Partial, deadline: float
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
            raise _TransientError(f"{have} of {partial.size} bytes came")

    def _publish(self, download: Download) -> None:
        """Check a whole `.part` and give it its name; the sum goes first, so that no file lacks it.

        Raises:
            DamagedFileError: the file is set aside.
        """
        path, part = download.path, part_path(download.path)
        try:
            download.check(part)
        except DamagedFileError:
            set_aside(path, part)
            _state_path(path).unlink(missing_ok=True)
            raise
        write_sum(path, sha256(part))
        sync(part)
        part.replace(path)
        sync(path.parent)
        _state_path(path).unlink(missing_ok=True)


def part_path(path: Path) -> Path:
    """Return where a file grows until it is whole."""
    return path.with_name(path.name + ".part")


def _state_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


def _load_partial(path: Path, url: str) -> _Partial:
    """Return what can be gone on from: nothing, where the bytes are another URL's or unsure."""
    try:
        have = part_path(path).stat().st_size
        state = json.loads(_state_path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return _Partial()
    size, validator = state["size"], state["validator"]
    if state["url"] != url or validator is None or size is None or have > size:
        return _Partial()
    return _Partial(have, size, validator)


def _begin_body(response: requests.Response, path: Path, url: str, partial: _Partial) -> _Partial:
    """Go on with the partial file on a 206, start over on a 200 (changed, or Range ignored)."""
    if response.status_code != requests.codes.ok:
        _check_range(response, path, partial)
        return partial
    size, validator = _declared_size(response), _validator(response)
    # Emptied first and described second: a kill in between leaves nothing to go on from, never
    # old bytes under a new description.
    part_path(path).write_bytes(b"")
    state = {"url": url, "size": size, "validator": validator}
    _state_path(path).write_text(json.dumps(state), encoding="utf-8")
    return _Partial(0, size, validator)


def _check_response(response: requests.Response, url: str) -> None:
    status = response.status_code
    for hop in (*response.history, response):
        if url.startswith("https:") and not hop.url.startswith("https:"):
            raise DownloadError(f"refused: the server redirects to {hop.url}, which has no TLS")
    if status in _RETRYABLE_STATUS or status >= 500:
        raise _TransientError(f"HTTP {status}", _retry_after_s(response.headers.get("Retry-After")))
    if status not in (
        requests.codes.ok,
        requests.codes.partial_content,
        requests.codes.range_not_satisfiable,  # for `_check_range`
    ):
        raise DownloadError(f"HTTP {status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise DownloadError(f"refused: the server sends it as {encoding}, which was not asked for")


def _is_hang_up(error: BaseException | None) -> bool:
    """Tell a connection that was closed inside TLS, which is a reset, from a fault of TLS."""
    while error is not None and not isinstance(error, ssl.SSLEOFError):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_range(response: requests.Response, path: Path, partial: _Partial) -> None:
    """Refuse a range that does not continue exactly the bytes that are there."""
    given = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip()
    )
    same_range = given is not None and (int(given[1]), int(given[2])) == (
        partial.have,
        partial.size,
    )
    if not same_range or _validator(response) not in (None, partial.validator):
        _state_path(path).unlink(missing_ok=True)
        raise _TransientError("the server sent another range than asked for; starting over")


def _declared_size(response: requests.Response) -> int | None:
    """Return the body's length, or None where its end is marked in the body (chunked)."""
    if "chunked" in response.headers.get("Transfer-Encoding", "").lower():
        return None
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise DownloadError("the server does not say how long the file is: it cannot be checked")
    return int(length)


def _validator(response: requests.Response) -> str | None:
    """Return what may stand in If-Range: a weak ETag may not (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _retry_after_s(value: str | None) -> float:
    """Read a Retry-After header: seconds, or a date; 0 where there is none that makes sense."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
