"""Downloads of 200 archives, with and without faults, against a plain loop in the same run.

    PYTHONPATH=.:tests:scripts/demo python benchmarks/reazonspeech_download.py
    PYTHONPATH=.:tests:scripts/demo python benchmarks/reazonspeech_download.py --kills 200

A server of this process answers on the loopback interface, with archives of the corpus's layout and
the faults of `tests/loopback.py`; each download runs in a process of its own. The plain loop calls
`urllib.request.urlretrieve` for one file after the other, once per file or until it raises nothing.
It does not check, sync or hash what it wrote; the downloader does all three. Without faults and
without a limit on the connection, the difference in speed is what that costs.
"""

import argparse
import io
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlretrieve

from loopback import FaultServer, clip_name, flac, tar

from distillery.ingest.downloads import is_published
from distillery.ingest.responses import part_path

DOWNLOADER = Path(__file__).resolve().parent.parent / "reazonspeech_manual_downloader.py"
TARGET = "large"
TRANSCRIPTS = f"/tsv/{TARGET}.tsv"
TIMEOUT_S = 2
MAX_ATTEMPTS = 8
NUM_RUNS = 3  # of what is timed without faults
SLOW_S = 0.002  # per 16 KiB of a connection, where connections are limited
NUM_EACH = 8  # archives per passing fault
PASSING: tuple[tuple[int | str, ...], ...] = (
    (500,),
    (503,),
    (429,),
    (408,),
    ("stall",),
    ("reset",),
    ("short",),
    ("short", "no_range"),
    ("short", "other_range"),
    ("change",),
    (503, "short", "reset"),
)
NUM_PAGES = 6  # archives in whose place a page comes, once
NUM_ABSENT = 6  # archives that the server does not have

Files = Mapping[str, bytes]  # by the server's paths
Kinds = Mapping[str, tuple[int | str, ...]]


def make_corpus(num_archives: int, num_clips: int, clip_s: float) -> dict[str, bytes]:
    """Return the files of a server. Clips repeat, under names and in an order of each archive."""
    clips = [flac(seed, round(clip_s * 16_000)) for seed in range(2 * num_clips)]
    chooser = random.Random(0)
    files, lines = {}, []
    for index in range(num_archives):
        names = [clip_name(index, number) for number in range(num_clips)]
        files[archive(index)] = tar(dict(zip(names, chooser.sample(clips, num_clips), strict=True)))
        lines += [f"{name}\tこれは{name}です。\n" for name in names]
    files[TRANSCRIPTS] = "".join(lines).encode()
    return files


def archive(index: int) -> str:
    """Return the server's path of an archive."""
    return f"/data/{index:03x}.tar"


def place(folder: Path, path: str) -> Path:
    """Return where the downloader keeps the file of a server's path."""
    return folder / f"{TARGET}.{Path(path).name}"


def choose_faults(files: Files) -> tuple[Kinds, set[str]]:
    """Return the passing faults of some archives, and the archives that are absent for good."""
    paths = sorted(files.keys() - {TRANSCRIPTS})
    random.Random(1).shuffle(paths)
    absent = {paths.pop() for _ in range(NUM_ABSENT)}
    kinds: dict[str, tuple[int | str, ...]] = {paths.pop(): ("html",) for _ in range(NUM_PAGES)}
    for kind in PASSING:
        kinds |= {paths.pop(): kind for _ in range(NUM_EACH)}
    return kinds, absent


def set_faults(server: FaultServer, files: Files, kinds: Kinds, absent: Collection[str]) -> None:
    """Let a server begin anew with these files and faults."""
    server.files = {path: content for path, content in files.items() if path not in absent}
    server.faults = {path: list(kind) for path, kind in kinds.items()}
    server.changed = {path: reordered(files[path]) for path in kinds if "change" in kinds[path]}


def reordered(content: bytes) -> bytes:
    """Return another version of an archive, of the same length."""
    with tarfile.open(fileobj=io.BytesIO(content)) as whole:
        members = [(m.name.removeprefix("./"), whole.extractfile(m).read()) for m in whole]
    return tar(dict(reversed(members)))


def flags_of(url: str, folder: Path, num_archives: int, pool: int) -> list[str]:
    """Return the downloader's command line."""
    flags = ["-t", TARGET, "-s", "0", "-e", str(num_archives), "-p", str(pool)]
    flags += ["--timeout", str(TIMEOUT_S), "--max_attempts", str(MAX_ATTEMPTS)]
    return [*flags, "--output_dir", str(folder), "--base_url", url]


def ours(url: str, folder: Path, num_archives: int, pool: int) -> None:
    """Run the downloader in this process, with its users' flags."""
    sys.argv = [str(DOWNLOADER), *flags_of(url, folder, num_archives, pool)]
    with suppress(SystemExit):
        runpy.run_path(str(DOWNLOADER), run_name="__main__")


def plain(url: str, folder: Path, num_archives: int, max_attempts: int) -> None:
    """Fetch one file after the other."""
    socket.setdefaulttimeout(TIMEOUT_S)
    for path in (TRANSCRIPTS, *(archive(index) for index in range(num_archives))):
        for _ in range(max_attempts):
            try:
                urlretrieve(url + path, place(folder, path))
                break
            except (OSError, HTTPException):
                continue


def timed(queue: Any, run: Callable[..., None], *arguments: object) -> None:
    """Send the seconds that a download takes, without the start of its process."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # log and progress bar
        started = time.perf_counter()
        run(*arguments)
        queue.put(time.perf_counter() - started)


@dataclass(frozen=True)
class Outcome:
    """What a download left, and what it took."""

    right: int  # archives whose file is the content of their address
    wrong: int  # archives whose file is something else
    missing: int
    requests: int
    num_twice: int  # bytes sent beyond one copy of each file
    seconds: float
    num_once: int  # the other bytes

    def __str__(self) -> str:
        return (
            f"{self.right:4} right {self.wrong:3} wrong {self.missing:3} missing, "
            f"{self.requests:4} requests, {self.num_twice / 1e6:6.1f} MB twice, "
            f"{self.seconds:6.1f} s, {self.num_once / 1e6 / self.seconds:6.1f} MB/s"
        )


def measure(
    server: FaultServer, folder: Path, num_archives: int, run: Callable[..., None], option: int
) -> Outcome:
    """Run a download into a folder, in a process of its own, and look at what it left."""
    server.requests.clear()
    server.sent.clear()
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (queue, run, server.url, folder, num_archives, option)
    process = context.Process(target=timed, args=arguments)
    process.start()
    seconds = queue.get()
    process.join()
    there = {path for path in map(archive, range(num_archives)) if place(folder, path).exists()}
    right = {path for path in there if place(folder, path).read_bytes() == server.files.get(path)}
    num_twice = num_bytes_twice(server)
    return Outcome(
        right=len(right),
        wrong=len(there - right),
        missing=num_archives - len(there),
        requests=len(server.requests),
        num_twice=num_twice,
        seconds=seconds,
        num_once=server.sent.total() - num_twice,
    )


def num_bytes_twice(server: FaultServer) -> int:
    """Return how many bytes a server sent beyond one copy of each file that it was asked for."""
    return sum(max(0, sent - len(server.files[path])) for path, sent in server.sent.items())


CONTENDERS = {"plain loop": (plain, 1), "pool 1": (ours, 1), "pool 16": (ours, 16)}


def compare_speed(server: FaultServer, files: Files, folder: Path, num_runs: int) -> None:
    """Time all contenders without faults, in turns, and print ratios to the plain loop."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(num_runs):
        for name, (run, option) in CONTENDERS.items():
            set_faults(server, files, {}, set())
            outcome = measure(server, folder, len(files) - 1, run, option)
            assert outcome.right == len(files) - 1, f"{name}: {outcome}"
            seconds[name].append(outcome.seconds)
            shutil.rmtree(folder)
    size = sum(map(len, files.values()))
    reference = statistics.median(seconds["plain loop"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"  {name:24} {size / 1e6 / median:6.1f} MB/s, {reference / median:5.2f} of the loop's"
        )


def compare_faults(server: FaultServer, files: Files, folder: Path) -> None:
    """Print what each contender downloads under the same faults."""
    kinds, absent = choose_faults(files)
    runs = {**CONTENDERS, f"plain loop, {MAX_ATTEMPTS} tries": (plain, MAX_ATTEMPTS)}
    for name, (run, option) in runs.items():
        set_faults(server, files, kinds, absent)
        print(f"  {name:24} {measure(server, folder, len(files) - 1, run, option)}")
        if run is ours:
            asked = {server.counts()[path] for path in absent}
            again = measure(server, folder, len(files) - 1, run, option)
            print(f"  {'  the same command again':24} {again}; absent files asked: {asked} times")
        shutil.rmtree(folder)


@dataclass
class Kills:
    """What was seen while the downloader was killed again and again."""

    killed: int = 0
    under_way: int = 0  # files that had begun when a kill came
    downloads: int = 0  # from an empty folder to the last file
    wrong: int = 0  # files or parts with bytes that are not their address's, after any kill
    missing: int = 0
    partial: int = 0  # left after a download's end
    num_twice: int = 0
    num_bytes: int = 0


def kill_often(server: FaultServer, files: Files, folder: Path, num_kills: int) -> None:
    """Kill the downloader at random moments, and download anew whenever all is there."""
    kinds, _ = choose_faults(files)
    chooser, kills = random.Random(2), Kills()
    while kills.killed < num_kills:
        set_faults(server, files, kinds, set())
        server.sent.clear()
        while run_and_kill(server, folder, len(files) - 1, chooser, kills.killed < num_kills):
            kills.killed += 1
            kills.under_way += len(list(folder.glob("*.part")))
            kills.wrong += num_wrong(server, files, folder)
        kills.downloads += 1
        kills.wrong += num_wrong(server, files, folder)
        kills.missing += sum(not is_published(place(folder, path)) for path in files)
        kills.partial += len(list(folder.glob("*.part*")))
        kills.num_twice += num_bytes_twice(server)
        kills.num_bytes += sum(map(len, server.files.values()))
        print(f"  {kills}", flush=True)  # so far
        shutil.rmtree(folder)


def run_and_kill(
    server: FaultServer, folder: Path, num_archives: int, chooser: random.Random, kill: bool
) -> bool:
    """Start the script; return whether it was killed, or False once all files are there."""
    command = [
        sys.executable,
        str(DOWNLOADER),
        *flags_of(server.url, folder, num_archives, 16),
    ]
    for _ in range(5):  # a page in place of an archive ends a run, and the next one asks again
        num_requests = len(server.requests)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while kill and len(server.requests) == num_requests and process.poll() is None:
            time.sleep(0.01)
        if kill:
            time.sleep(chooser.uniform(0, 1))
            process.kill()
        code = process.wait()
        if code == -signal.SIGKILL:
            return True
        if code == 0:
            return False
    raise RuntimeError(f"the download fails without being killed: {command}")


def num_wrong(server: FaultServer, files: Files, folder: Path) -> int:
    """Count files and parts in a folder that are not, or do not begin, what their address has."""
    count = 0
    for path, content in server.files.items():
        file = place(folder, path)
        part = part_path(file)
        count += file.exists() and file.read_bytes() != content
        if part.exists():
            versions = (content, files[path])  # one that changed had another
            count += not any(version.startswith(part.read_bytes()) for version in versions)
    return count


def main() -> None:
    """Compare speed, then behaviour under faults; or kill the downloader."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archives", type=int, default=200, help="archives, at least 100")
    parser.add_argument("--clips", type=int, default=12, help="clips per archive")
    parser.add_argument("--clip_s", type=float, default=4, help="seconds per clip of noise")
    parser.add_argument(
        "--kills", type=int, help="do this alone: number of SIGKILLs at random moments"
    )
    args = parser.parse_args()
    files = make_corpus(args.archives, args.clips, args.clip_s)
    size = sum(map(len, files.values()))
    print(f"{args.archives} archives, {size / 1e6:.0f} MB, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as temporary, FaultServer(files) as server:
        folder = Path(temporary) / "downloads"
        if args.kills:
            server.delay_s = SLOW_S
            kill_often(server, files, folder, args.kills)
            return
        print(f"no faults, no limit (median of {NUM_RUNS}):")
        compare_speed(server, files, folder, NUM_RUNS)
        print(f"no faults, each connection limited to {(1 << 14) / SLOW_S / 1e6:.1f} MB/s:")
        server.delay_s = SLOW_S
        compare_speed(server, files, folder, 1)
        server.delay_s = 0
        print(
            f"faults ({NUM_ABSENT} absent, {NUM_PAGES} pages, "
            f"{len(PASSING)} passing kinds of {NUM_EACH}):"
        )
        compare_faults(server, files, folder)


if __name__ == "__main__":
    main()
