"""Download ReazonSpeech, or a range of its archives, so that a bad network cannot spoil it.

Reads: https://corpus.reazon-research.org/reazonspeech-v2 (accept the corpus's terms first:
https://huggingface.co/datasets/reazon-research/reazonspeech).
Writes: `<target>.<target>.tsv`, `<target>.<number>.tar`, their SHA-256 checksums and
`<target>.ledger.json` into `~/.cache/reazon_manual_download/<target>[_A_B]`, for
`reazonspeech_manual_dataloader.py`. The same command again goes on where the last one stopped.

    python reazonspeech_manual_downloader.py --target all --pool 10 --start_que 0 --end_que 50

A first try, of 0.6 GB:

    python reazonspeech_manual_downloader.py --target tiny

Look for damage in what is there; damaged files are renamed, and fetched again by the next download:

    python reazonspeech_manual_downloader.py --target tiny --health_check --deep
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from distillery.cli.flags import at_least, flag, one_of, parse, repeated, within
from distillery.ingest import reazonspeech
from distillery.ingest.downloads import Policy


@dataclass(frozen=True)
class DownloaderArguments:
    """Download."""

    target: str = flag("tiny", f"Size of the corpus: {', '.join(reazonspeech.NUM_ARCHIVES)}.", "-t")
    pool: int = flag(10, "Files at a time.", "-p")
    start_que: int | None = flag(
        None, "First archive, from 0; default: all archives.", "-s", "--start"
    )
    end_que: int | None = flag(None, "Archive after the last one, at most 4095.", "-e", "--end")
    health_check: bool = flag(False, "Check what is there, download nothing.")
    deep: bool = flag(False, "With --health_check: decode every clip once.")
    output_dir: str | None = flag(
        None,
        "Folder; default: TARGET, or TARGET_START_END, in ~/.cache/reazon_manual_download or where "
        f"the environment variable {reazonspeech.HOME} says.",
        resumable=True,
    )
    base_url: list[str] = repeated(  # noqa: RUF009 (a field with a factory)
        "Where tsv/ and data/ are; several are mirrors, tried in the order given; default: "
        f"{' '.join(reazonspeech.BASE_URLS)}."
    )
    max_attempts: int = flag(Policy.max_attempts, "Requests per file and mirror.")
    timeout: float = flag(
        Policy.timeout_s, "Seconds of silence after which a connection is given up."
    )
    dry_run: bool = flag(
        False, "Ask how large the missing files are, fetch nothing and stop.", resumable=True
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [
            *one_of(self, "target", reazonspeech.NUM_ARCHIVES),
            *at_least(self, "pool", 1),
            *at_least(self, "max_attempts", 1),
            *within(self, "timeout", 1, 86_400),
            *_range_problems(self.start_que, self.end_que, self.target),
            *[problem for url in self.base_url for problem in _url_problems(url)],
        ]
        if self.deep and not self.health_check:
            problems.append("--deep needs --health_check")
        if self.dry_run and self.health_check:
            problems.append("--dry_run is about a download: leave out --health_check")
        return problems

    @property
    def indices(self) -> range:
        """Numbers of the archives; the end is left out, as the seeds' commands have it."""
        if self.start_que is None or self.end_que is None:
            return range(reazonspeech.NUM_ARCHIVES[self.target])
        return range(self.start_que, self.end_que)

    @property
    def folder(self) -> Path:
        """Where the files are kept."""
        suffix = None if self.start_que is None else f"{self.start_que}_{self.end_que}"
        return Path(self.output_dir or reazonspeech.default_folder(self.target, suffix))

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

    @property
    def policy(self) -> Policy:
        """How patient the download is."""
        return Policy(max_attempts=self.max_attempts, timeout_s=self.timeout)


def _range_problems(start: int | None, end: int | None, target: str) -> list[str]:
    most = reazonspeech.NUM_ARCHIVES.get(target, reazonspeech.NUM_ARCHIVES["all"])
    if start is None and end is None:
        return []
    if start is None or end is None:
        return ["--start_que and --end_que go together: one is missing"]
    problems = []
    if start < 0:
        problems.append(f"--start_que must be >= 0, got {start}")
    if start >= end:
        problems.append(f"--start_que must be below --end_que, got {start} and {end}")
    if end > most:
        problems.append(
            f"--end_que must be at most {most}, the number of archives of {target}, got {end}"
        )
    return problems


def _url_problems(url: str) -> list[str]:
    if not url.startswith(("https://", "http://")):
        return [f"--base_url must begin with https:// or http://, got {url!r}"]
    if urlsplit(url).password is not None:
        return ["--base_url must not hold a password, which would be logged: put it into ~/.netrc"]
    return []


GROUPS = (DownloaderArguments,)

if __name__ == "__main__":
    # Before the rest is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import FrameType

from distillery.cli.config_files import config_text
from distillery.ingest.downloads import (
    Download,
    ask_sizes,
    damaged_path,
    download_all,
    is_published,
    set_aside,
)
from distillery.storage.files import (
    DamagedFileError,
    free_bytes,
    remove_leftovers,
    write_json,
    write_text,
)
from distillery.storage.ownership import taken_folder
from distillery.storage.progress import ProgressBar
from distillery.storage.runs import CONFIG

logger = logging.getLogger("reazonspeech_manual_downloader")


def main(arguments: DownloaderArguments) -> int:
    """Run the command; return 0 where every file is there and whole, else 1 (130: stopped)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with _sigterm_as_interrupt():
            return forecast(arguments) if arguments.dry_run else _locked(arguments)
    except KeyboardInterrupt:
        logger.error("stopped: the same command goes on from here")
        return 130
    except (OSError, DamagedFileError, ValueError) as error:
        logger.error("%s", error)
        return 1


def _locked(arguments: DownloaderArguments) -> int:
    """Check or fetch the files while no other process does."""
    with taken_folder(arguments.folder):
        remove_leftovers(arguments.folder)
        return check_health(arguments) if arguments.health_check else download(arguments)


def forecast(arguments: DownloaderArguments) -> int:
    """Say what a download would fetch; return 1 where a file is not to be had."""
    everything = _downloads(arguments)
    wanted = [each for each in everything if not each.path.exists()]
    unchecked = [each for each in everything if each.path.exists() and not is_published(each.path)]
    sizes, failures = ask_sizes(wanted, arguments.pool, arguments.policy)
    for path, reason in failures.items():
        logger.error("not to be had: %s: %s", path.name, reason)
    unknown = sum(size is None for size in sizes.values()) + len(failures)
    missing = sum(size or 0 for size in sizes.values())
    free = free_bytes(arguments.folder)
    sys.stdout.write(
        "reazonspeech_manual_downloader, dry run: nothing is written\n"
        f"  files   {len(wanted)} to fetch, {len(everything) - len(wanted)} are there"
        + (f", {len(unchecked)} of them unchecked" if unchecked else "")
        + "\n"
        f"  bytes   {missing / 1e9:.3f} GB to come"
        + (f", and {unknown} files whose size is not known" if unknown else "")
        + f"\n  disk    {free / 1e9:.3f} GB are free for {arguments.folder}"
        + ("; THAT IS NOT ENOUGH" if missing > free else "")
        + "\n"
    )
    return 1 if failures else 0


def _downloads(arguments: DownloaderArguments) -> list[Download]:
    """Return all files, the transcripts first."""
    folder, target = arguments.folder, arguments.target
    base_urls = arguments.base_url or reazonspeech.BASE_URLS
    return [
        reazonspeech.transcripts_download(folder, target, base_urls),
        *reazonspeech.archive_downloads(folder, target, arguments.indices, base_urls),
    ]


def download(arguments: DownloaderArguments) -> int:
    """Fetch the transcripts and the archives that are not there yet, and account for them."""
    texts, *clips = _downloads(arguments)
    logger.info(
        "%d archives and the transcripts of %s, into %s",
        len(clips),
        arguments.target,
        arguments.folder,
    )
    write_text(arguments.folder / CONFIG, config_text(Path(__file__).name, (arguments,)))
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
    pairing, _ = reazonspeech.pair_folder(arguments.transcripts, arguments.archives)
    write_json(arguments.folder / f"{arguments.target}.ledger.json", pairing.to_dict())
    logger.log(logging.INFO if pairing.is_clean else logging.WARNING, "%s", pairing)
    if pairing.clips.num_out == 0:
        logger.error("no clip has a text: are these files of ReazonSpeech %s?", arguments.target)
    return 0 if pairing.clips.num_out else 1


def check_health(arguments: DownloaderArguments) -> int:
    """Check every file that should be there; set damaged ones aside."""
    paths = [arguments.transcripts, *arguments.archives]
    missing = [path for path in paths if not path.exists()]
    present = [path for path in paths if path.exists()]
    damage = {}
    with ThreadPool(arguments.pool) as workers:
        checked = workers.imap(lambda path: _damage(path, arguments.deep), present)
        reasons = ProgressBar(checked, total=len(present), desc="checking", unit=" files")
        for path, reason in zip(present, reasons, strict=True):
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


if __name__ == "__main__":
    sys.exit(main(*ARGUMENTS))
