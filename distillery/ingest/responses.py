"""What a server's answer means for the bytes of a file that are there already.

A file grows under `<name>.part`, beside `<name>.part.json`, which says from which URL and which
version of it the bytes came. A download goes on from them only where the server sends exactly what
follows.
"""

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

RETRYABLE_STATUS = {408, 429}


class DownloadError(Exception):
    """A file that cannot be fetched; asking again at once is of no use."""


class TransientError(Exception):
    """A fault that may be gone at the next attempt, after `retry_after_s` seconds or more."""

    def __init__(self, reason: str, retry_after_s: float = 0.0):
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Partial:
    """The bytes that an earlier request left, and the version of the URL that they belong to."""

    have: int = 0
    size: int | None = None
    validator: str | None = None  # a strong ETag, or Last-Modified

    @property
    def is_complete(self) -> bool:
        """Whether no byte is missing."""
        return self.size is not None and self.have == self.size


def part_path(path: Path) -> Path:
    """Return where a file grows until it is whole."""
    return path.with_name(path.name + ".part")


def state_path(path: Path) -> Path:
    """Return where the URL, size and version of those bytes are written down."""
    return path.with_name(path.name + ".part.json")


def load_partial(path: Path, url: str) -> Partial:
    """Return the bytes to continue from: none if they are of another URL or version."""
    try:
        have = part_path(path).stat().st_size
        state = json.loads(state_path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return Partial()
    size, validator = state["size"], state["validator"]
    if state["url"] != url or validator is None or size is None or have > size:
        return Partial()
    return Partial(have, size, validator)


def begin_body(response: requests.Response, path: Path, url: str, partial: Partial) -> Partial:
    """Go on with the partial file on a 206, start over on a 200 (changed, or Range ignored).

    Raises:
        TransientError: the server sends another range than was asked for.
        DownloadError: it does not say how long the file is.
    """
    if response.status_code != requests.codes.ok:
        _check_range(response, path, partial)
        return partial
    size, validator = _declared_size(response), _validator(response)
    # Emptied first and described second: a kill in between leaves nothing to go on from, never
    # old bytes under a new description.
    part_path(path).write_bytes(b"")
    state = {"url": url, "size": size, "validator": validator}
    state_path(path).write_text(json.dumps(state), encoding="utf-8")
    return Partial(0, size, validator)


def check_response(response: requests.Response, url: str) -> None:
    """Refuse an answer that is not the file that was asked for.

    Raises:
        TransientError: the server asks for patience.
        DownloadError: it refuses, leads out of TLS, or compresses what it sends.
    """
    status = response.status_code
    for hop in (*response.history, response):
        if url.startswith("https:") and not hop.url.startswith("https:"):
            raise DownloadError(f"refused: the server redirects to {hop.url}, which has no TLS")
    if is_transient(status):
        raise TransientError(f"HTTP {status}", retry_after_s(response.headers))
    if status not in (
        requests.codes.ok,
        requests.codes.partial_content,
        requests.codes.range_not_satisfiable,  # for `_check_range`
    ):
        raise DownloadError(f"HTTP {status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise DownloadError(f"refused: the server sends it as {encoding}, which was not asked for")


def is_transient(status: int) -> bool:
    """Tell whether a server that answers so may answer otherwise in a while."""
    return status in RETRYABLE_STATUS or status >= 500


def is_hang_up(error: BaseException | None) -> bool:
    """Tell a connection that was closed inside TLS, which is a reset, from a fault of TLS."""
    while error is not None and not isinstance(error, ssl.SSLEOFError):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_range(response: requests.Response, path: Path, partial: Partial) -> None:
    """Refuse a range that does not continue exactly the bytes that are there."""
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
    same_range = sent is not None and (int(sent[1]), int(sent[2])) == (
        partial.have,
        partial.size,
    )
    if not same_range or _validator(response) not in (None, partial.validator):
        state_path(path).unlink(missing_ok=True)
        raise TransientError("the server sent another range than asked for; starting over")


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


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds of Retry-After, which may be a date; 0 where it makes no sense."""
    try:
        return Retry().parse_retry_after(headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0
