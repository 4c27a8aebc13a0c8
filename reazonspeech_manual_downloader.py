"""Download ReazonSpeech, or a range of its archives, so that a bad network cannot spoil it.

Reads: https://corpus.reazon-research.org/reazonspeech-v2 (accept the corpus's terms first:
https://huggingface.co/datasets/reazon-research/reazonspeech).
Writes: `<target>.<target>.tsv`, `<target>.<number>.tar`, their SHA-256 sums and
`<target>.ledger.json` into `~/.cache/reazon_manual_download/<target>[_A_B]`, for
`reazonspeech_manual_dataloader.py`. The same command again goes on where the last one stopped.

    python reazonspeech_manual_downloader.py --target all --pool 10 --start_que 0 --end_que 50

A first try, of 0.6 GB:

    python reazonspeech_manual_downloader.py --target tiny

Look for damage in what is there; damaged files are renamed, and fetched again by the next download:

    python reazonspeech_manual_downloader.py --target tiny --health_check --deep
"""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from distillery import reazonspeech
from distillery.downloads import (
    DamagedFileError,
    Policy,
    damaged_path,
    download_all,
    lock_folder,
    set_aside,
)
from distillery.shards import write_json

logger = logging.getLogger("reazonspeech_manual_downloader")


@dataclass(frozen=True)
class DownloaderArguments:
    """The checked command line."""

    target: str
    indices: range  # of the archives
    folder: Path
    pool: int
    base_urls: tuple[str, ...]
    policy: Policy
    health_check: bool
    deep: bool

    @property
    def transcripts(self) -> Path:
        """Where the transcripts are kept."""
        return reazonspeech.transcripts_path(self.folder, self.target)

    @property
    def archives(self) -> list[Path]:
        """Where the archives are kept."""
        return [
            reazonspeech.archive_path(self.folder, self.target, index) for index in self.indices
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where every file is there and whole, else 1 (130: stopped)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(argv)
    step = check_health if arguments.health_check else download
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        with _sigterm_as_interrupt(), lock_folder(arguments.folder):
            return step(arguments)
    except KeyboardInterrupt:
        logger.error("stopped: the same command goes on from here")
        return 130
    except (OSError, DamagedFileError, ValueError) as error:
        logger.error("%s", error)
        return 1


def download(arguments: DownloaderArguments) -> int:
    """Fetch the transcripts and the archives that are not there yet, and account for them."""
    folder, target, base_urls = arguments.folder, arguments.target, arguments.base_urls
    texts = reazonspeech.transcripts_download(folder, target, base_urls)
    clips = reazonspeech.archive_downloads(folder, target, arguments.indices, base_urls)
    logger.info("%d archives and the transcripts of %s, into %s", len(clips), target, folder)
    failures = download_all([texts, *clips], arguments.pool, arguments.policy)
    for path, reason in failures.items():
        logger.error("not downloaded: %s: %s", path.name, reason)
    if failures:
        logger.error(
            "%d of %d files are missing: run the same command again", len(failures), len(clips) + 1
        )
        return 1
    return _account(arguments)


def _account(arguments: DownloaderArguments) -> int:
    """Match clips and texts, print the account and save it; 1 where nothing matches."""
    ledger, _ = reazonspeech.pair_folder(arguments.transcripts, arguments.archives)
    write_json(arguments.folder / f"{arguments.target}.ledger.json", ledger.to_dict())
    logger.log(logging.WARNING if ledger.num_lost else logging.INFO, "%s", ledger)
    if ledger.matched == 0:
        logger.error("no clip has a text: are these files of ReazonSpeech %s?", arguments.target)
    return 0 if ledger.matched else 1


def check_health(arguments: DownloaderArguments) -> int:
    """Check every file that should be there; set damaged ones aside."""
    paths = [arguments.transcripts, *arguments.archives]
    missing = [path for path in paths if not path.exists()]
    present = [path for path in paths if path.exists()]
    damage = {}
    with ThreadPool(arguments.pool) as workers:
        found = workers.imap(lambda path: _damage(path, arguments.deep), present)
        for path, reason in zip(present, tqdm(found, total=len(present), unit="file"), strict=True):
            if reason:
                damage[path] = reason
    for path in missing:
        logger.error("missing: %s", path.name)
    for path, reason in damage.items():
        set_aside(path)
        logger.error("damaged: %s, now %s: %s", path.name, damaged_path(path).name, reason)
    num_whole = len(present) - len(damage)
    logger.info("%d whole, %d damaged, %d missing", num_whole, len(damage), len(missing))
    if missing or damage:
        logger.error("run the same command without --health_check to fetch what is not whole")
        return 1
    return _account(arguments)


def _damage(path: Path, deep: bool) -> str | None:
    try:
        reazonspeech.examine(path, deep)
    except DamagedFileError as error:
        return str(error)
    return None


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM stop the download as Ctrl-C does: at once, with every written byte kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_arguments(argv: Sequence[str] | None = None) -> DownloaderArguments:
    """Read the command line; exit with one message that names everything wrong with it."""
    parser = _parser()
    given, unknown = parser.parse_known_args(argv)
    problems = [f"{flag} is no flag of this script" for flag in unknown]
    if given.target not in reazonspeech.NUM_ARCHIVES:
        choices = ", ".join(reazonspeech.NUM_ARCHIVES)
        problems.append(f"--target must be one of {choices}, got {given.target!r}")
    pool = _number("--pool", given.pool, int, problems)
    max_attempts = _number("--max_attempts", given.max_attempts, int, problems)
    timeout_s = _number("--timeout", given.timeout, float, problems)
    indices = _indices(given, problems)
    if given.deep and not given.health_check:
        problems.append("--deep needs --health_check")
    base_urls = tuple(given.base_url or reazonspeech.BASE_URLS)
    problems += [
        f"--base_url must begin with https:// or http://, got {url!r}"
        for url in base_urls
        if not url.startswith(("https://", "http://"))
    ]
    if problems:
        parser.error("; ".join(problems))
    suffix = f"{indices.start}_{indices.stop}" if given.start_que is not None else None
    folder = Path(given.output_dir or reazonspeech.default_folder(given.target, suffix))
    policy = Policy(max_attempts=max_attempts, timeout_s=timeout_s)
    return DownloaderArguments(
        given.target, indices, folder, pool, base_urls, policy, given.health_check, given.deep
    )


def _number(
    flag: str, text: str, kind: Callable[[str], Any], problems: list[str], minimum: int = 1
) -> Any:
    """Read a number, or note what is wrong with it."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not minimum <= value < float("inf"):
        noun = "a whole number" if kind is int else "a number"
        problems.append(f"{flag} must be {noun} of at least {minimum}, got {text!r}")
    return value


def _indices(given: argparse.Namespace, problems: list[str]) -> range:
    """Read the range of archives, the end left out, as the seeds' commands have it."""
    num_archives = reazonspeech.NUM_ARCHIVES.get(given.target, reazonspeech.NUM_ARCHIVES["all"])
    if given.start_que is None and given.end_que is None:
        return range(num_archives)
    if given.start_que is None or given.end_que is None:
        problems.append("--start_que and --end_que go together: one is missing")
        return range(0)
    start = _number("--start_que", given.start_que, int, problems, minimum=0)
    end = _number("--end_que", given.end_que, int, problems)
    if start is None or end is None:
        return range(0)
    if start >= end:
        problems.append(f"--start_que must be below --end_que, got {start} and {end}")
    if end > num_archives:
        problems.append(
            f"--end_que must be at most {num_archives}, the number of archives of {given.target}, "
            f"got {end}"
        )
    return range(start, end)


def _parser() -> argparse.ArgumentParser:
    """Describe the flags. Values stay text here, so that all mistakes can be told at once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, default = parser.add_argument, Policy()
    add("-t", "--target", default="tiny", help="tiny, small, medium, large or all (default: tiny)")
    add("-p", "--pool", default="10", help="files at a time (default: 10)")
    add("-s", "--start_que", "--start", help="first archive, from 0 (default: all archives)")
    add("-e", "--end_que", "--end", help="archive after the last one, at most 4095")
    add("--health_check", action="store_true", help="check what is there, download nothing")
    add("--deep", action="store_true", help="with --health_check: decode every clip once")
    add(
        "--output_dir",
        help="folder (default: ~/.cache/reazon_manual_download/TARGET, or TARGET_START_END)",
    )
    add(
        "--base_url",
        action="append",
        help="where tsv/ and data/ are; repeat it for mirrors, tried in the order given "
        f"(default: {' '.join(reazonspeech.BASE_URLS)})",
    )
    add(
        "--max_attempts",
        default=str(default.max_attempts),
        help="requests per file and mirror (default: %(default)s)",
    )
    add(
        "--timeout",
        default=str(default.timeout_s),
        help="seconds of silence after which a connection is given up (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
