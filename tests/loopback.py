"""A web server on the loopback interface that fails on purpose, and small ReazonSpeech files."""

import hashlib
import io
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import soundfile
from reazonspeech_server import archive_path, clip_name, tar, transcripts, transcripts_path

# Made for these tests alone; nothing trusts it, which is the point.
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglIQJShfUtElsxDgi
aWe0pPajDTCD8pz7entAzAXACaahRANCAAQ1sVlPYCmlsQfsT0eg3c/YwlR1SEdO
Zm4/PbGxHOLE514eRtGC4TzxUcYQoIhWUWi6cLL2dEYM9tugq/WtNNgE
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIULmLVuDjZlN5rziZjxZE7o0In0VUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMDEwMjAwNFoYDzIxMjYxMDI3
MTAyMDA0WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQ1sVlPYCmlsQfsT0eg3c/YwlR1SEdOZm4/PbGxHOLE514eRtGC4Tzx
UcYQoIhWUWi6cLL2dEYM9tugq/WtNNgEo2QwYjAdBgNVHQ4EFgQU7jyGqhS7Ux/4
xHxLXLnwIlT+oTYwHwYDVR0jBBgwFoAU7jyGqhS7Ux/4xHxLXLnwIlT+oTYwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
ID1rdUvG7Fuo5wuEKOnF/4qerEs8s/TbD2G+oioA+KWXAiEAjqU5cAyelnVkXmpS
dv/8pArV9R13s/2bWjj74EFUY34=
-----END CERTIFICATE-----
"""

HTML = b"<html><body>Please log in to this network.</body></html>"


class FaultServer:
    """Serve `files` by path; `faults[path]` holds one fault per request, then all goes well.

    A fault is a status code, or one of: stall, reset, short (half the body, then silence, a reset,
    the end), change (the end, and `changed[path]` from then on), no_range (the whole body whatever
    was asked), html (a page in its place), other_range (a range that was not asked for).
    """

    def __init__(self, files: Mapping[str, bytes], certificate: Path | None = None):
        self.files = dict(files)
        self.faults: dict[str, list[int | str]] = {}
        self.changed: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.sent: Counter[str] = Counter()  # bytes of bodies, by path
        self.retry_after = "0"
        self.delay_s = 0.0  # per 16 KiB
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.heads: list[str] = []  # paths that were only asked about
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")

    def __enter__(self) -> "FaultServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def counts(self) -> Counter[str]:
        return Counter(path for path, _ in self.requests)

    def take(self, path: str, asked: str | None) -> int | str | None:
        with self.lock:
            self.requests.append((path, asked))
            queue = self.faults.get(path)
            return queue.pop(0) if queue else None


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.server.owner.heads.append(self.path)
        content = self.server.owner.files.get(self.path)
        if content is None:
            self._status(404)
        else:
            self._headers(content, 0, 0)

    def do_GET(self) -> None:
        fault = self.server.owner.take(self.path, self.headers["Range"])
        content = HTML if fault == "html" else self.server.owner.files.get(self.path)
        if self.path in self.server.owner.redirects:
            self._status(302, Location=self.server.owner.redirects[self.path])
            return
        if isinstance(fault, int) or content is None:
            self._status(fault or 404, **{"Retry-After": self.server.owner.retry_after})
            return
        start = self._start(content) if fault != "no_range" else 0
        self._headers(content, start, start + 1 if fault == "other_range" else start)
        body = content[start:]
        cut = fault in ("stall", "reset", "short", "change")
        self._body(body[: len(body) // 2] if cut else body)
        if fault == "stall":
            self.server.owner.stopped.wait(5)
        elif fault == "change":
            self.server.owner.files[self.path] = self.server.owner.changed[self.path]
        elif fault == "reset":
            time.sleep(0.2)  # a reset throws away what the client did not read yet
            # Closing with a linger time of zero sends RST in place of FIN.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _status(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _start(self, content: bytes) -> int:
        given = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        same = self.headers["If-Range"] == _etag(content)
        return int(given[1]) if given and same else 0

    def _headers(self, content: bytes, start: int, told: int) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", _etag(content))
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()

    def _body(self, body: bytes) -> None:
        for start in range(0, len(body), 1 << 14):
            piece = body[start : start + (1 << 14)]
            self.wfile.write(piece)
            with self.server.owner.lock:
                self.server.owner.sent[self.path] += len(piece)
            if self.server.owner.delay_s:
                time.sleep(self.server.owner.delay_s)

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the client was killed, or we hung up ourselves
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *message: object) -> None:
        pass


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def flac(seed: int, num_samples: int = 1600) -> bytes:
    """Make a clip of 16 kHz noise."""
    samples = np.random.default_rng(seed).standard_normal(num_samples) * 0.1
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="FLAC")
    return file.getvalue()


def corpus(target: str, num_archives: int, num_clips: int, num_samples: int = 1600):
    """Make a small corpus as the files of a web server, and its texts by clip name."""
    texts, files = {}, {}
    for index in range(num_archives):
        names = [clip_name(index, number) for number in range(num_clips)]
        clips = {name: flac(index * num_clips + i, num_samples) for i, name in enumerate(names)}
        files[archive_path(index)] = tar(clips)
        texts |= {name: f"これは{name}です。" for name in names}
    files[transcripts_path(target)] = transcripts(texts)
    return files, texts
