"""Serve a demonstration corpus as ReazonSpeech is served, while a command runs.

    python scripts/demo/reazonspeech_server.py --corpus runs/corpus --target large --archives 4 \\
        -- python reazonspeech_manual_downloader.py --target large --start_que 0 --end_que 4

The clips of `train.jsonl` are served on the loopback interface, as `/data/000.tar` and so on, and
their texts as `/tsv/large.tsv`. The command gets `--base_url` with the server's address; its exit
code is this program's. The same corpus gives the same bytes.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from distillery.data.schema import AUDIO, TEXT


def clip_name(archive: int, number: int) -> str:
    """Return a clip's name as the corpus has it."""
    return f"{archive:03x}/{archive:03x}{number:010x}.flac"


def archive_path(archive: int) -> str:
    """Return where the server has an archive."""
    return f"/data/{archive:03x}.tar"


def transcripts_path(target: str) -> str:
    """Return where the server has the transcripts of a target."""
    return f"/tsv/{target}.tsv"


def tar(members: Mapping[str, bytes]) -> bytes:
    """Make a tar archive, with names as in the real ones ("./000/...")."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(f"./{name}")
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def transcripts(texts: Mapping[str, str]) -> bytes:
    """Make a transcript file of the texts by clip name."""
    return "".join(f"{name}\t{text}\n" for name, text in texts.items()).encode()


def lay_out(corpus: Path, target: str, num_archives: int) -> dict[str, bytes]:
    """Return the files of a server by path: the training clips, in archives of equal numbers."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text("utf-8").splitlines()]
    archives: list[dict[str, bytes]] = [{} for _ in range(num_archives)]
    texts = {}
    for number, row in enumerate(rows):
        archive = number * num_archives // len(rows)
        name = clip_name(archive, number)
        archives[archive][name] = (corpus / row[AUDIO]).read_bytes()
        texts[name] = row[TEXT]
    files = {archive_path(index): tar(clips) for index, clips in enumerate(archives)}
    return {**files, transcripts_path(target): transcripts(texts)}


class Server(ThreadingHTTPServer):
    """A server of files by path, on a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files

    @property
    def url(self) -> str:
        """The address that the paths are below of."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def log_message(self, *message: object) -> None:
        pass


def main() -> int:
    """Serve until the command ends; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of make_corpus.py")
    parser.add_argument("--target", default="tiny", help="size that it is served as (tiny)")
    parser.add_argument("--archives", type=int, default=1, help="number of archives (1)")
    parser.add_argument("command", nargs="+", help="command to run")
    args = parser.parse_args()
    server = Server(lay_out(args.corpus, args.target, args.archives))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return subprocess.run([*args.command, "--base_url", server.url]).returncode


if __name__ == "__main__":
    sys.exit(main())
