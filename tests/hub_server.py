"""A stand-in of the Hub's HTTP interface on the loopback, which fails on request.

Holds what `huggingface_hub` 2 asks for when it makes repositories, uploads to them and reads them
back: whoami, create, preupload, LFS, commit, info, tree, paths, resolve. Not the Xet storage: the
client is told to leave that out (`environment`).
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_of_the_stand_in"
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin")

# What a request is about, by its method and path. `repo` is `name` or `owner/name`.
REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
ROUTES = {
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "validate": r"POST /api/validate-yaml",
    "preupload": rf"POST /api/(?P<type>datasets|models)/{REPO}/preupload/(?P<rev>[^/]+)",
    "commit": rf"POST /api/(?P<type>datasets|models)/{REPO}/commit/(?P<rev>[^/]+)",
    "paths": rf"POST /api/(?P<type>datasets|models)/{REPO}/paths-info/(?P<rev>[^/]+)",
    "tree": rf"GET /api/(?P<type>datasets|models)/{REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?",
    "info": rf"GET /api/(?P<type>datasets|models)/{REPO}(?:/revision/(?P<rev>[^/]+))?",
    "batch": rf"POST /(?:(?P<type>datasets)/)?{REPO}\.git/info/lfs/objects/batch",
    "put": r"PUT /lfs/(?P<oid>[0-9a-f]{64})",
    "resolve": rf"(?:GET|HEAD) /(?:(?P<type>datasets)/)?{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
}


@dataclass
class Repository:
    """What a repository holds: the files of its only branch, and its commits."""

    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)  # the paths that each changed

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()


class HubServer:
    """Serve repositories by (type, id); `faults[kind]` holds one fault per request of a kind.

    A fault is a status code; reset, the end of the connection before anything is done; lost, the
    end after all was done; or stall, no answer until the server ends.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.faults: dict[str, list[int | str]] = {}
        self.retry_after: str | None = None
        self.token = TOKEN
        self.counts: Counter[str] = Counter()  # requests by kind
        self.received: list[bytes] = []  # all that clients sent: paths and bodies
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables by which a program's client asks this server alone."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **more,
        }

    def reach(self, monkeypatch: Any) -> None:
        """Let the client in this process ask this server alone."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def files(self, repo: str, kind: str = "models") -> dict[str, bytes]:
        return self.repositories[kind, repo].files

    def take(self, kind: str) -> int | str | None:
        with self.lock:
            self.counts[kind] += 1
            queue = self.faults.get(kind)
            return queue.pop(0) if queue else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.owner  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read_body()
        self.hub.received += [self.path.encode(), self.body]
        asked = f"{self.command} {unquote(url.path)}"
        matches = ((kind, re.fullmatch(route, asked)) for kind, route in ROUTES.items())
        kind, match = next(((kind, match) for kind, match in matches if match), ("unknown", None))
        fault = self.hub.take(kind)
        if match is None:
            self._error(404, f"the stand-in does not know {asked}")
        elif isinstance(fault, int):
            self._error(fault, "a fault that was asked for")
        elif fault == "stall":
            self.hub.stopped.wait()
        elif fault == "reset":
            self._hang_up()
        elif not self._is_allowed(kind, match):
            self._error(401, "Invalid credentials in Authorization header")
        else:
            self.is_lost = fault == "lost"
            with self.hub.lock:
                getattr(self, f"_{kind}")(match)

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _is_allowed(self, kind: str, match: re.Match[str]) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        if kind in ("put", "validate"):  # the address of an object is its own permission
            return True
        found = self._repository(match) if kind in ("resolve", "tree", "info", "paths") else None
        return found is not None and not found.is_private

    def _repository(self, match: re.Match[str]) -> Repository | None:
        return self.hub.repositories.get((match["type"] or "models", match["repo"]))

    # --- writing ----------------------------------------------------------------------------------

    def _whoami(self, match: re.Match[str]) -> None:
        token = {"displayName": "test", "role": "write"}
        orgs = [{"name": "my-org", "type": "org", "roleInOrg": "write"}]
        self._json({"name": "me", "type": "user", "auth": {"accessToken": token}, "orgs": orgs})

    def _create(self, match: re.Match[str]) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or "me"
        name = f"{owner}/{asked['name']}"
        kind = asked.get("type", "model") + "s"
        prefix = "datasets/" if kind == "datasets" else ""
        found = (kind, name) in self.hub.repositories
        if owner not in ("me", "my-org"):
            self._error(403, f"You don't have the rights to create a {kind[:-1]} under {owner}")
            return
        if not found:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[kind, name] = Repository(bool(private))
        self._json({"url": f"{self.hub.url}/{prefix}{name}"}, 409 if found else 200)

    def _validate(self, match: re.Match[str]) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        if repository is None:
            self._error(404, "Repository not found", "RepoNotFound")
            return
        self._json({"files": [self._mode(repository, f) for f in json.loads(self.body)["files"]]})

    def _mode(self, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        path = asked["path"]
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        oid = _oid(path, repository.files[path]) if path in repository.files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, match: re.Match[str]) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, match: re.Match[str]) -> None:
        if hashlib.sha256(self.body).hexdigest() != match["oid"]:
            self._error(400, "the object has another checksum")
            return
        self.hub.objects[match["oid"]] = self.body
        self._json({})

    def _commit(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        entries = [json.loads(line) for line in self.body.splitlines()]
        changed = []
        for entry in entries[1:]:
            value = entry["value"]
            changed.append(value["path"])
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                self.hub.received.append(content)
                repository.files[value["path"]] = content
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert entry["key"] == "deletedFile", entry
                del repository.files[value["path"]]
        repository.commits.append(sorted(changed))
        self._json(
            {"commitUrl": f"{self.hub.url}/{match['repo']}/commit/1", "commitOid": repository.sha}
        )

    # --- reading ----------------------------------------------------------------------------------

    def _info(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        if repository is None:
            self._error(404, "Repository not found", "RepoNotFound")
            return
        siblings = [{"rfilename": path} for path in repository.files]
        self._json(
            {
                "id": match["repo"],
                "sha": repository.sha,
                "private": repository.is_private,
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _tree(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        if repository is None:
            self._error(404, "Repository not found", "RepoNotFound")
            return
        folder = f"{match['path']}/" if match["path"] else ""
        inside = [path for path in sorted(repository.files) if path.startswith(folder)]
        if folder and not inside:
            self._error(404, "Entry not found", "EntryNotFound")
            return
        deep = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        entries, folders = [], set()
        for path in inside:
            parents = path.removeprefix(folder).split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                folders.add(folder + "/".join(parents[:depth]))
            if deep or not parents:
                entries.append(_entry(path, repository.files[path]))
        for name in sorted(folders):
            if deep or "/" not in name.removeprefix(folder):
                entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
        self._json(entries)

    def _paths(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        if repository is None:
            self._error(404, "Repository not found", "RepoNotFound")
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode())["paths"]
        files = repository.files
        entries = [_entry(path, files[path]) for path in asked if path in files]
        for path in asked:
            if any(name.startswith(f"{path}/") for name in files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self._json(entries)

    def _resolve(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        if repository is None or match["path"] not in repository.files:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            self._error(404, "not found", code)
            return
        content = repository.files[match["path"]]
        etag = _oid(match["path"], content)
        sent = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(sent[1]) if sent else 0
        end = min(int(sent[2]) + 1 if sent and sent[2] else len(content), len(content))
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha, "Accept-Ranges": "bytes"}
        if match["path"].endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if sent:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(content[start:end], 206 if sent else 200, headers)

    # --- answers ----------------------------------------------------------------------------------

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        if self.hub.retry_after is not None:
            headers["Retry-After"] = self.hub.retry_after
        self.is_lost = False
        self._send(json.dumps({"error": message}).encode(), status, headers)

    def _send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        if self.is_lost:
            self._hang_up()
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the client was killed, or we hung up ourselves
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *message: object) -> None:
        pass


def _oid(path: str, content: bytes) -> str:
    """Return what a file is known by: its SHA-256 in LFS, git's hash of a blob elsewhere."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 130}
    return entry
