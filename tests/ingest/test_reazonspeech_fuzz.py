"""Transcript files and archives of `distillery.ingest.reazonspeech`, odd and damaged in known ways.

Each kind of damage names the check that is meant to find it, and all of 200 cases must be found.
"""

import io
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import HTML, clip_name, corpus, flac, tar

from distillery.ingest import archives, reazonspeech
from distillery.ingest.downloads import write_checksum
from distillery.ingest.reazonspeech import (
    ArchiveScan,
    check_archive,
    check_transcripts,
    examine,
    pair,
    pair_folder,
    read_clips,
    read_spans,
    read_transcripts,
    transcript_spans,
    undecodable_clips,
)
from distillery.storage.files import DamagedFileError

NUM_TSV = 500
NUM_ARCHIVES = 200

# --- transcript files ----------------------------------------------------------------------------

FOLDERS = ("000", "001", "7ff")
HERE = {"000", "001"}  # whose archives are there; lines about others are elsewhere
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A line and what must become of it: a text for a clip, or a reason against it."""

    content: bytes
    name: str | None = None
    text: str | None = None
    reason: str | None = None


clip_names = st.builds(
    lambda folder, number: f"{folder}/{number}.flac",
    st.sampled_from(FOLDERS),
    st.integers(0, 15),
)
# Without tabs and ends of lines, but with what other readers take for them; never blank.
words = st.text(st.sampled_from("aはい。 \u3000\u2028\x0b\x0c\x85\x00\r\"',"), max_size=8).map(
    lambda text: f"x{text}y"
)
blanks = st.text(st.sampled_from(" \u3000\x0b"), max_size=3)
prefixes = st.sampled_from([b"", b"", b"", BOM])
ends = st.sampled_from([b"\n", b"\n", b"\r\n"])


@st.composite
def good_lines(draw):
    name, text = draw(clip_names), draw(words)
    before = draw(prefixes) + draw(st.sampled_from([b"", b"./"]))
    return Line(before + f"{name}\t{text}".encode() + draw(ends), name, text)


@st.composite
def broken_lines(draw):
    name, text, blank = draw(clip_names), draw(words), draw(blanks)
    extra = draw(st.lists(words, min_size=1, max_size=3))
    content, reason = draw(
        st.sampled_from(
            [
                (draw(st.sampled_from([b"", b" ", b"\t", b" \t\t "])), "blank"),
                (text.encode(), "1 column"),
                ("\t".join([name, text, *extra]).encode(), f"{2 + len(extra)} columns"),
                (f"{name}\tx".encode() + b"\x93\xfa\x96{", "not UTF-8"),
                (b"\xff\tx", "not UTF-8"),
                (f"{name}\t{blank}".encode(), "empty column"),
                (f"{blank}\t{text}".encode(), "empty column"),
            ]
        )
    )
    return Line(draw(prefixes) + content + draw(ends), reason=reason)


transcript_files = st.lists(good_lines() | good_lines() | broken_lines(), max_size=30)


@dataclass
class Oracle:
    """The account by how the lines were made, with no look at their bytes but for their folder."""

    texts: dict[str, str]
    rejected: dict[str, list[int]]
    elsewhere: int = 0

    @classmethod
    def of(cls, lines: list[Line], folders: set[str] | None):
        found = cls({}, {})
        for number, line in enumerate(lines, start=1):
            if folders is not None and folder_in_two_columns(line) not in (None, *folders):
                found.elsewhere += 1
            elif line.reason or line.name in found.texts:
                found.rejected.setdefault(line.reason or "duplicate", []).append(number)
            else:
                found.texts[line.name] = line.text
        return found


def line_numbers(ledger):
    """Return the numbers of the lines that cannot be used, by reason."""
    return {
        reason: [int(place.rpartition(":")[2]) for place in places]
        for reason, places in ledger.places.items()
    }


def folder_in_two_columns(line):
    """Return the folder of a line of two columns, which counts as elsewhere unread, else None."""
    cells = line.content.strip(b"\r\n").split(b"\t")
    if len(cells) != 2:
        return None
    return next((folder for folder in FOLDERS if f"{folder}/".encode() in cells[0]), "")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=NUM_TSV, derandomize=True, deadline=None, database=None)
@given(transcript_files, st.sets(clip_names, max_size=30))
def test_the_ledger_of_any_transcript_file_is_exact(place, lines, clips):
    path = place / "x.tsv"
    path.write_bytes(b"".join(line.content for line in lines))
    for folders in (None, HERE):
        texts, ledger = read_transcripts(path, folders)
        expected = Oracle.of(lines, folders)
        assert texts == expected.texts
        assert line_numbers(ledger) == expected.rejected
        assert (ledger.num_in, ledger.dropped.total()) == (len(lines), expected.elsewhere)
        assert ledger.num_out == len(texts)
        assert ledger.num_in == ledger.num_out + ledger.dropped.total() + sum(
            map(len, ledger.places.values())
        )

    names = sorted(clip for clip in clips if clip[:3] in HERE)
    scans = {Path("a.tar"): ArchiveScan(tuple(names), {"link": ["l"]})}
    pairing = pair(texts, ledger, scans)
    alone = {"without text": [name for name in names if name not in expected.texts]}
    assert pairing.clips.places == {"link": ["a.tar/l"], **{k: v for k, v in alone.items() if v}}
    assert pairing.texts.places.get("without audio", []) == [
        name for name in expected.texts if name not in names
    ]
    num_matched = len(set(names) & set(expected.texts))
    assert pairing.texts.num_out == pairing.clips.num_out == num_matched
    assert pairing.texts.balances and pairing.clips.balances
    assert (pairing.texts.num_in, pairing.clips.num_in) == (len(lines), len(names) + 1)

    spans = transcript_spans(path, set(FOLDERS))
    by_folder = {
        name: text for part in spans.values() for name, text in read_spans(path, part).items()
    }
    assert by_folder == Oracle.of(lines, None).texts


@settings(max_examples=NUM_TSV, derandomize=True, deadline=None, database=None)
@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from([b"\t", b"\n", b"\r", BOM, b"a/b", b"\xff"])).map(b"".join)
)
def test_any_bytes_at_all_are_accounted_for(place, content):
    path = place / "y.tsv"
    path.write_bytes(content)
    _, ledger = read_transcripts(path)
    numbers = [number for numbers in line_numbers(ledger).values() for number in numbers]
    assert ledger.num_in == content.count(b"\n") + (
        not content.endswith((b"\n",)) and content != b""
    )
    assert ledger.num_out + len(numbers) == ledger.num_in
    assert len(set(numbers)) == len(numbers)


# --- archives ------------------------------------------------------------------------------------


@cache
def clips_of(seed: int) -> dict[str, bytes]:
    """Make the clips of a small archive: 2 to 6 of them, of 6 to 100 ms."""
    chooser = random.Random(seed)
    numbers = chooser.sample(range(1000), chooser.randint(2, 6))
    return {clip_name(1, n): flac(n, chooser.randint(100, 1600)) for n in numbers}


def members_of(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as whole:
        return whole.getmembers()


def needed(archive: bytes) -> int:
    """Return how many bytes of an archive there must be: all but the padding."""
    last = members_of(archive)[-1]
    return last.offset_data + -(-last.size // 512) * 512 + 1024


def cut_anywhere(archive, chooser):
    return archive[: chooser.randrange(needed(archive))]


def cut_between_members(archive, chooser):
    return archive[: chooser.choice(members_of(archive)).offset]


def cut_in_the_end_marker(archive, chooser):
    return archive[: needed(archive) - 1024 + chooser.randrange(1024)]


def page_in_its_place(archive, chooser):
    return HTML * chooser.randint(1, 400)


def noise_in_its_place(archive, chooser):
    return chooser.randbytes(len(archive))


def zeros_in_its_place(archive, chooser):
    return bytes(chooser.choice([len(archive), 512 * chooser.randrange(len(archive) // 512)]))


def bytes_after_the_end(archive, chooser):
    return archive + bytes(chooser.randrange(2000)) + chooser.randbytes(600)


def lost_bytes(archive, chooser):
    """Leave out some bytes in the middle, so that all that follow are in another place."""
    start = chooser.randrange(needed(archive) - 1024)
    length = chooser.choice([n for n in range(1, 2000) if n % 512])
    return archive[:start] + archive[start + length :]


def flip(content, place, chooser):
    flipped = bytearray(content)
    flipped[place] ^= 1 << chooser.randrange(8)
    return bytes(flipped)


def flip_in_a_header(archive, chooser):
    # The sum of the header is at 148 to 155, and its last bytes mean nothing.
    place = chooser.choice([*range(148), *range(156, 512)])
    return flip(archive, chooser.choice(members_of(archive)).offset + place, chooser)


def frames_of(archive, chooser):
    """Return where the frames of one of the clips begin and end: what holds its samples."""
    member = chooser.choice(members_of(archive))
    place = member.offset_data + 4  # after "fLaC" come blocks of metadata
    is_last = False
    while not is_last:
        is_last = bool(archive[place] & 0x80)
        place += 4 + int.from_bytes(archive[place + 1 : place + 4], "big")
    return place, member.offset_data + member.size


def flip_in_the_samples(archive, chooser):
    return flip(archive, chooser.randrange(*frames_of(archive, chooser)), chooser)


def hole_in_the_samples(archive, chooser):
    start, end = frames_of(archive, chooser)
    place = chooser.randrange(start, end - 16)
    length = min(chooser.randint(16, 600), end - place)
    return archive[:place] + bytes(length) + archive[place + length :]


def clip_cut_short(archive, chooser):
    clips = dict(read_bytes(archive))
    name = chooser.choice(list(clips))
    clips[name] = clips[name][: chooser.randrange(len(clips[name]))]
    return tar(clips)


def read_bytes(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as whole:
        return [(m.name.removeprefix("./"), whole.extractfile(m).read()) for m in whole]


def clip_left_out(archive, chooser):
    clips = read_bytes(archive)
    del clips[chooser.randrange(len(clips))]
    return tar(dict(clips))


def clip_renamed(archive, chooser):
    clips = read_bytes(archive)
    index = chooser.randrange(len(clips))
    clips[index] = (clip_name(1, 2000 + index), clips[index][1])
    return tar(dict(clips))


def clip_twice(archive, chooser):
    """Add a member again before the end marker, as appending to an archive does."""
    end = needed(archive) - 1024
    member = chooser.choice(members_of(archive))
    length = 512 + -(-member.size // 512) * 512
    return archive[:end] + archive[member.offset : member.offset + length] + archive[end:]


def in_the_next_archive(name):
    return name.replace("001", "002")


def another_archive(archive, chooser):
    return tar({in_the_next_archive(name): content for name, content in read_bytes(archive)})


def tail_of_zeros(archive, chooser):
    """Keep the length, as a disk does that lost what was written last."""
    start = chooser.randrange(512, needed(archive) - 1024 - 512)
    return archive[:start] + bytes(len(archive) - start)


def contents_exchanged(archive, chooser):
    clips = read_bytes(archive)
    first, second = chooser.sample(range(len(clips)), 2)
    one, other = clips[first], clips[second]
    clips[first], clips[second] = (one[0], other[1]), (other[0], one[1])
    return tar(dict(clips))


def flip_anywhere(archive, chooser):
    return flip(archive, chooser.randrange(len(archive)), chooser)


def is_refused(check, path):
    try:
        check(path)
    except DamagedFileError:
        return True
    return False


def by_form(archive, transcripts):
    """Do what every download and health check does."""
    return is_refused(check_archive, archive)


def by_decoding(archive, transcripts):
    """Do what `--health_check --deep` adds."""
    return bool(undecodable_clips(archive))


def by_transcripts(archive, transcripts):
    """Do what the account adds that every download and health check ends with."""
    pairing, _ = pair_folder(transcripts, [archive])
    return not pairing.is_clean


def by_one_of_these(archive, transcripts):
    return any(check(archive, transcripts) for check in (by_form, by_decoding, by_transcripts))


def by_sum(archive, transcripts):
    """Do what a health check does where a download left a sum."""
    return is_refused(examine, archive)


FOUND_BY: dict[Callable, list[Callable]] = {
    by_form: [
        cut_anywhere,
        cut_between_members,
        cut_in_the_end_marker,
        page_in_its_place,
        noise_in_its_place,
        zeros_in_its_place,
        bytes_after_the_end,
        lost_bytes,
        flip_in_a_header,
    ],
    by_decoding: [flip_in_the_samples, hole_in_the_samples, clip_cut_short],
    by_transcripts: [clip_left_out, clip_renamed, clip_twice, another_archive],
    by_one_of_these: [tail_of_zeros],
    by_sum: [contents_exchanged, flip_anywhere],
}


def write(folder: Path, clips: dict[str, bytes]) -> tuple[Path, Path, bytes]:
    """Write an archive and its transcripts; return their paths, and the archive's bytes."""
    content = tar(clips)
    archive, transcripts = folder / "small.001.tar", folder / "small.small.tsv"
    archive.write_bytes(content)
    names = [*clips, *map(in_the_next_archive, clips)]
    transcripts.write_text("".join(f"{name}\tはい\n" for name in names), encoding="utf-8")
    return archive, transcripts, content


@pytest.mark.parametrize(
    ("check", "damage"),
    [(check, damage) for check, kinds in FOUND_BY.items() for damage in kinds],
    ids=lambda function: function.__name__,
)
def test_every_damaged_archive_is_found(tmp_path, check, damage):
    chooser = random.Random(damage.__name__)
    for seed in range(NUM_ARCHIVES):
        archive, transcripts, content = write(tmp_path, clips_of(seed % 25))
        if check is by_sum:
            write_checksum(archive, reazonspeech.sha256(archive))
        damaged = damage(content, chooser)
        assert damaged != content
        archive.write_bytes(damaged)
        assert check(archive, transcripts), f"case {seed} was not found"


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def healthy(clips: dict[str, bytes], chooser: random.Random) -> bytes:
    """Write clips as one of the usual archivers does."""
    file = io.BytesIO()
    kind = chooser.choice(FORMATS)
    prefix = chooser.choice(["", "./"])
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        if chooser.random() < 0.5:
            folder = tarfile.TarInfo(f"{prefix}001/")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name, content in clips.items():
            header = tarfile.TarInfo(prefix + name)
            header.size, header.mtime = len(content), chooser.random() * 1e9
            header.uname = chooser.choice(["", "利用者"])
            archive.addfile(header, io.BytesIO(content))
    content = file.getvalue()  # padded to 10 KiB
    return chooser.choice([content, content[: needed(content)], content + bytes(10240)])


def test_no_healthy_archive_is_accused(tmp_path):
    chooser = random.Random("healthy")
    for seed in range(NUM_ARCHIVES):
        clips = clips_of(1000 + seed)
        archive, transcripts, _ = write(tmp_path, clips)
        archive.write_bytes(healthy(clips, chooser))
        write_checksum(archive, reazonspeech.sha256(archive))
        assert [check.__name__ for check in FOUND_BY if check(archive, transcripts)] == []
        assert dict(read_clips(archive)) == clips


@pytest.mark.parametrize("size_bits", range(30, 88, 3))
def test_a_header_that_points_anywhere_is_damage_and_no_fault_of_the_disk(tmp_path, size_bits):
    content = bytearray(tar(clips_of(0)))
    header = content[:512]
    header[124:136] = b"\x80" + (2**size_bits - 512).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[:512] = header
    (tmp_path / "small.001.tar").write_bytes(content)
    with pytest.raises(DamagedFileError):
        check_archive(tmp_path / "small.001.tar")


def test_a_long_tail_of_zeros_is_found_by_the_form(tmp_path):
    path, _, content = write(tmp_path, clips_of(0))
    members = content[: needed(content) - 1024]
    path.write_bytes(members + bytes(archives.MAX_PADDING_BYTES))
    check_archive(path)
    path.write_bytes(members + bytes(archives.MAX_PADDING_BYTES + 512))
    with pytest.raises(DamagedFileError, match="only zeros after byte"):
        check_archive(path)


PAGES = (
    HTML,
    b"\n\n  <!DOCTYPE html>\n<html>\t<body>\n",
    BOM + b"<?xml version='1.0'?>\n<Error>\tx</Error>\n",
)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_tabs_is_no_transcript_file(tmp_path, page):
    (tmp_path / "x.tsv").write_bytes(page + b"<li>name\ttext\n" * 100)
    with pytest.raises(DamagedFileError, match="page of HTML or XML"):
        check_transcripts(tmp_path / "x.tsv")


def test_no_healthy_transcript_file_is_accused(tmp_path):
    files, _ = corpus("small", num_archives=1, num_clips=2, num_samples=100)
    for content in (files["/tsv/small.tsv"], BOM + files["/tsv/small.tsv"], b"a/b.flac\t<music>\n"):
        (tmp_path / "x.tsv").write_bytes(content)
        check_transcripts(tmp_path / "x.tsv")
