"""The layout of ReazonSpeech v2: where its files are, whether they are whole, what they hold.

A target is one transcript file, `<target>.tsv`, with lines "<clip name>TAB<text>", and a number of
tar archives of FLAC clips, numbered in three hexadecimal digits. A clip is named
`000/000734dcb35d6.flac` in both. Source: https://huggingface.co/datasets/reazon-research/reazonspeech

Archives are never extracted: their members are read in place, and their names are only keys.
"""

import io
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from distillery.ingest.archives import Rejected, open_archive
from distillery.ingest.downloads import (
    Download,
    is_confirmed_by_source,
    read_checksum,
    write_checksum,
)
from distillery.ingest.file_trees import BYTE_ORDER_MARK
from distillery.ingest.pairing import Pairing
from distillery.storage.files import DamagedFileError, sha256
from distillery.storage.ledger import Ledger

NUM_ARCHIVES = {"tiny": 1, "small": 12, "medium": 116, "large": 579, "all": 4095}
"""Archives per target. The last of the corpus's 4,096 is the held-out test set, so not in `all`."""

BASE_URLS = ("https://corpus.reazon-research.org/reazonspeech-v2",)

HOME = "REAZONSPEECH_HOME"  # environment variable: the folder of all downloads

MAX_CLIP_BYTES = 64 << 20  # a minute of 16 kHz speech is about 1 MB of FLAC
ELSEWHERE = "of other archives"  # lines about clips that are not here


def default_folder(target: str, suffix: str | None = None) -> Path:
    """Return where a target is downloaded to; `suffix` is "A_B" for the archives A to B - 1."""
    name = f"{target}_{suffix}" if suffix else target
    home = os.environ.get(HOME) or Path.home() / ".cache" / "reazon_manual_download"
    return Path(home) / name


def transcripts_path(folder: Path, target: str) -> Path:
    """Return where a target's transcripts are kept."""
    return folder / f"{target}.{target}.tsv"


def archive_path(folder: Path, target: str, index: int) -> Path:
    """Return where one archive of a target is kept."""
    return folder / f"{target}.{index:03x}.tar"


def transcripts_download(folder: Path, target: str, base_urls: Sequence[str]) -> Download:
    """Pair a target's transcripts with their addresses."""
    urls = tuple(f"{base.rstrip('/')}/tsv/{target}.tsv" for base in base_urls)
    return Download(urls, transcripts_path(folder, target), check_transcripts)


def archive_downloads(
    folder: Path, target: str, indices: Iterable[int], base_urls: Sequence[str]
) -> list[Download]:
    """Pair a target's archives with their addresses."""
    return [
        Download(
            tuple(f"{base.rstrip('/')}/data/{index:03x}.tar" for base in base_urls),
            archive_path(folder, target, index),
            check_archive,
        )
        for index in indices
    ]


def missing_archives(folder: Path, target: str) -> list[Path]:
    """List the archives that a folder lacks, going by its name, `<target>` or `<target>_A_B`.

    A folder with a name of the user's own is taken to be as it should be.
    """
    named = re.fullmatch(rf"{target}(?:_(\d+)_(\d+))?", folder.name)
    if named is None:
        return []
    start, end = (int(named[1]), int(named[2])) if named[1] else (0, NUM_ARCHIVES[target])
    paths = (archive_path(folder, target, index) for index in range(start, end))
    return [path for path in paths if not path.exists()]


@dataclass(frozen=True)
class ArchiveScan:
    """What the headers of an archive say: names of usable clips, and refused members by reason."""

    names: tuple[str, ...]
    rejected: Mapping[str, list[str]]

    @property
    def directories(self) -> set[str]:
        """The folders that the clips are in."""
        return {directory_of(name) for name in self.names}


def directory_of(name: str) -> str:
    """Return the folder part of a clip's name."""
    return name.rpartition("/")[0]


def scan_archive(path: Path) -> ArchiveScan:
    """Read the headers of a tar archive, and prove that it goes to its own end.

    Raises:
        DamagedFileError: it is no tar archive, or cut, or a header is broken, or it has no clip.
    """
    rejected: Rejected = {}
    with open_archive(path, MAX_CLIP_BYTES) as archive:
        names = tuple(name for name, _ in archive.members(rejected))
        archive.check_end()
    if not names:  # as in a file of nothing but zeros, which is an archive of nothing
        raise DamagedFileError("not a whole tar archive: there is no clip in it")
    return ArchiveScan(names, rejected)


def check_archive(path: Path) -> None:
    """Raise DamagedFileError where `scan_archive` does; the check of a download."""
    scan_archive(path)


def read_clips(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every usable clip of an archive, as (name, content), in the archive's order.

    Raises:
        DamagedFileError: the archive is damaged.
    """
    with open_archive(path, MAX_CLIP_BYTES) as archive:
        for name, member in archive.members({}):
            yield name, archive.read(member)


def undecodable_clips(path: Path) -> dict[str, str]:
    """Decode every clip of an archive once; return the reasons of those that fail, by name.

    The frames of a FLAC file carry checksums, which the decoder compares, so this finds flipped
    bits in the samples. In the declared sampling rate only the archive's checksum finds one.
    """
    reasons = {name: _decoding_fault(content) for name, content in read_clips(path)}
    return {name: reason for name, reason in reasons.items() if reason}


def _decoding_fault(content: bytes) -> str | None:
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            # In blocks, so that a small file of hours of silence takes no memory.
            num_frames = sum(len(block) for block in file.blocks(1 << 16, dtype="int16"))
            declared = file.frames
    except soundfile.LibsndfileError as error:
        return str(error)
    if num_frames == 0 or num_frames != declared:
        return f"{num_frames} of {declared} samples decoded"
    return None


def read_transcripts(
    path: Path, directories: Collection[str] | None = None
) -> tuple[dict[str, str], Ledger]:
    """Read a transcript file, counting bad lines; of two for a clip, the first counts.

    Args:
        path: the file, with lines "<clip name>TAB<text>".
        directories: read only about clips in these folders; None for all.

    Returns:
        The texts by clip name, and the account of the lines, not yet paired with audio. Lines
        about other folders are not examined.
    """
    wanted = None if directories is None else {name.encode() for name in directories}
    transcripts: dict[str, str] = {}
    ledger = Ledger()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            ledger.num_in = number
            if wanted is not None and _is_elsewhere(line, wanted):
                ledger.dropped[ELSEWHERE] += 1
                continue
            try:
                name, text = _parse_line(line)
            except ValueError as error:
                ledger.quarantine(str(error), f"{path.name}:{number}")
                continue
            if name in transcripts:
                ledger.quarantine("duplicate", f"{path.name}:{number}")
            else:
                transcripts[name] = text
    ledger.num_out = len(transcripts)
    return transcripts, ledger


Span = tuple[int, int]  # first byte, byte after the last


def transcript_spans(path: Path, directories: Collection[str]) -> dict[str, list[Span]]:
    """Find where in a transcript file the lines about each folder of clips are.

    The corpus's own files are sorted, so that a folder is one span, and a reader of one archive
    need not go through the lines of 4,095.
    """
    spans: dict[str, list[Span]] = {directory: [] for directory in directories}
    with path.open("rb") as file:
        start = 0
        keyed = ((_directory_of_line(line), len(line)) for line in file)
        for directory, run in itertools.groupby(keyed, key=lambda pair: pair[0]):
            stop = start + sum(length for _, length in run)
            name = directory.decode("utf-8", errors="replace")
            if name in spans:
                spans[name].append((start, stop))
            start = stop
    return spans


def read_spans(path: Path, spans: Iterable[Span]) -> dict[str, str]:
    """Read the usable lines of some spans of a transcript file, as `read_transcripts` does."""
    transcripts: dict[str, str] = {}
    with path.open("rb") as file:
        for start, stop in spans:
            file.seek(start)
            for line in file.read(stop - start).split(b"\n"):
                try:
                    name, text = _parse_line(line)
                except ValueError:  # in the ledger of the whole file
                    continue
                transcripts.setdefault(name, text)
    return transcripts


def check_transcripts(path: Path) -> None:
    """Refuse what is no transcript file at all, such as an HTML page.

    Raises:
        DamagedFileError: none of the first 100 lines can be used, or it begins with a tag.
    """
    with path.open("rb") as file:
        if file.read(1024).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"<"):
            raise DamagedFileError("not a transcript file but a page of HTML or XML")
        file.seek(0)
        for line in itertools.islice(file, 100):
            try:
                _parse_line(line)
            except ValueError:
                continue
            return
    raise DamagedFileError("not a transcript file: no line is <clip name>TAB<text>")


def _parse_line(line: bytes) -> tuple[str, str]:
    """Split a line into clip name and text; raise ValueError with the reason why not."""
    line = line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    if not line.strip():
        raise ValueError("blank")
    columns = line.count(b"\t") + 1
    if columns != 2:
        raise ValueError(f"{columns} column{'s' * (columns > 1)}")
    try:
        name, _, text = line.decode("utf-8").partition("\t")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if not name.strip() or not text.strip():
        raise ValueError("empty column")
    return name.removeprefix("./"), text


def _directory_of_line(line: bytes) -> bytes:
    name = line.removeprefix(BYTE_ORDER_MARK).partition(b"\t")[0]
    return name.removeprefix(b"./").rpartition(b"/")[0]


def _is_elsewhere(line: bytes, directories: Collection[bytes]) -> bool:
    """Tell whether a line of the right form is about a clip in none of these folders."""
    return line.count(b"\t") == 1 and _directory_of_line(line) not in directories


def pair_folder(
    transcripts: Path, archives: Iterable[Path]
) -> tuple[Pairing, dict[Path, ArchiveScan]]:
    """Account for a transcript file and the archives beside it; return the archives' scans too.

    Raises:
        DamagedFileError: an archive is damaged; the message names it.
        ValueError: a clip is in two archives.
    """
    scans = {}
    for path in archives:
        try:
            scans[path] = scan_archive(path)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{path}: {error}; run reazonspeech_manual_downloader.py --health_check, then again"
            ) from error
    # An archive's number is its clips' folder too: texts are missed even where all clips are gone.
    directories = {path.stem.rpartition(".")[2] for path in scans}
    directories |= {name for scan in scans.values() for name in scan.directories}
    texts, lines = read_transcripts(transcripts, directories)
    return pair(texts, lines, scans), scans


def pair(
    transcripts: Mapping[str, str], lines: Ledger, scans: Mapping[Path, ArchiveScan]
) -> Pairing:
    """Count the clips that have a text and the texts that have a clip; only pairs are used.

    Args:
        transcripts: texts by clip name.
        lines: the account of the lines that they were read from, which is completed here.
        scans: of the archives, by path.

    Raises:
        ValueError: a clip is in two archives.
    """
    origin: dict[str, Path] = {}
    clips = Ledger()
    for path, scan in scans.items():
        for reason, names in scan.rejected.items():
            clips.quarantine(reason, *(f"{path.name}/{name}" for name in names))
        for name in scan.names:
            if name in origin:
                raise ValueError(
                    f"{name} is in two archives, {origin[name]} and {path}: remove one of them"
                )
            origin[name] = path
    clips.num_in = len(origin) + clips.quarantined.total()
    clips.quarantine("without text", *(name for name in origin if name not in transcripts))
    clips.num_out = clips.num_in - clips.quarantined.total()
    lines.quarantine("without audio", *(name for name in transcripts if name not in origin))
    lines.num_out = clips.num_out
    return Pairing(lines, clips)


def examine(path: Path, deep: bool = False) -> None:
    """Check a downloaded file's checksum and format; record the checksum where there is none.

    Args:
        path: an archive or a transcript file.
        deep: decode every clip as well. Clips that came broken from the source twice are not held
            against the archive: the stages quarantine them one by one.

    Raises:
        DamagedFileError: the file is not what it was, or never was whole.
    """
    recorded, actual = read_checksum(path), sha256(path)
    if recorded not in (None, actual):
        raise DamagedFileError("it differs from its SHA-256 checksum")
    if path.suffix == ".tsv":
        check_transcripts(path)
    else:
        check_archive(path)
        faults = undecodable_clips(path) if deep and not is_confirmed_by_source(path) else {}
        if faults:
            name, fault = next(iter(faults.items()))
            raise DamagedFileError(f"{len(faults)} clips do not decode, such as {name}: {fault}")
    if recorded is None:
        write_checksum(path, actual)
