"""Tar archives from outside: what is not a plain file in them, and what is not whole."""

import gzip
import random
import tarfile

import pytest
from corpora import member_header, sparse_header

from distillery.ingest.archives import is_archive, is_compressed, open_archive
from distillery.storage.files import DamagedFileError

GOOD = member_header("000/a.flac", size=3) + b"abc".ljust(512, b"\0")
END = bytes(1024)
COMPRESSIONS = pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["tar", "gzip"])


def read(path, max_bytes=1000):
    """Return the members with their contents, and what was refused."""
    rejected = {}
    with open_archive(path, max_bytes) as archive:
        members = [(name, archive.read(member)) for name, member in archive.members(rejected)]
        archive.check_end()
    return members, rejected


@COMPRESSIONS
def test_members_that_are_no_plain_files_are_refused_and_named(tmp_path, compress):
    path = tmp_path / "x.tar"
    path.write_bytes(
        compress(
            member_header("000/", tarfile.DIRTYPE)
            + member_header("../../etc/passwd")
            + member_header("/etc/passwd")
            + member_header("000\\..\\a.flac")
            + GOOD
            + GOOD
            + member_header("000/link", tarfile.SYMTYPE, linkname="/etc/passwd")
            + member_header("000/hard", tarfile.LNKTYPE, linkname="000/a.flac")
            + member_header("000/fifo", tarfile.FIFOTYPE)
            + member_header("000/disk", tarfile.BLKTYPE)
            + sparse_header("000/sparse.flac")
            + member_header("000/long.flac", size=1001)
            + bytes(1024)
            + member_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=5000)
            + (b"a" * 4999).ljust(5120, b"\0")
            + member_header("short.flac")
            + END
        )
    )
    members, rejected = read(path)
    assert members == [("000/a.flac", b"abc")]
    assert rejected == {
        "unsafe name": ["../../etc/passwd", "/etc/passwd", "000\\..\\a.flac"],
        "duplicate member": ["000/a.flac"],
        "link": ["000/link", "000/hard"],
        "special file": ["000/fifo", "000/disk"],
        "sparse file": ["000/sparse.flac"],
        "too large": ["000/long.flac"],
        "name too long": ["a" * 4096],
    }
    assert list(tmp_path.iterdir()) == [path]


@COMPRESSIONS
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [-512, 2**40, 2**63 + 1])
def test_forged_sizes_are_refused_and_nothing_is_allocated(tmp_path, kind, size, compress):
    header = bytearray(member_header("000/b.flac", kind))
    header[124:136] = (
        b"\x80\0\0\0" + size.to_bytes(8, "big")
        if size > 0
        else b"\xff" * 4 + (size.to_bytes(8, "big", signed=True))
    )
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(compress(GOOD + bytes(header) + bytes(2048)))
    with pytest.raises(DamagedFileError):
        read(tmp_path / "x.tar")


@COMPRESSIONS
def test_a_size_that_is_allowed_but_not_there_is_found_without_taking_the_memory(
    tmp_path, compress, monkeypatch
):
    asked = []
    original = tarfile.ExFileObject.read
    monkeypatch.setattr(
        tarfile.ExFileObject, "read", lambda file, n=-1: asked.append(n) or original(file, n)
    )
    (tmp_path / "x.tar").write_bytes(compress(member_header("a.wav", size=2**30) + b"abc" + END))
    with pytest.raises(DamagedFileError):
        read(tmp_path / "x.tar", max_bytes=2**40)
    assert asked
    assert max(asked) <= 2**20


@COMPRESSIONS
@pytest.mark.parametrize("kept", [512, 700, 1024, 1025, 1024 + 512, 1024 + 1023])
def test_a_cut_is_found(tmp_path, kept, compress):
    (tmp_path / "x.tar").write_bytes(compress((GOOD + END)[:kept]))
    with pytest.raises(DamagedFileError, match="not a whole tar archive"):
        read(tmp_path / "x.tar")


def test_damage_of_the_compression_is_found_or_harmless(tmp_path):
    noise = random.Random(0).randbytes(3000)
    content = member_header("a", size=3000) + noise.ljust(3072, b"\0") + END
    whole = gzip.compress(content, mtime=0)
    path = tmp_path / "x.tar.gz"
    num_found = 0
    for place in range(10, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        try:
            assert read(path, 5000) == ([("a", noise)], {})
        except DamagedFileError:
            num_found += 1
    assert num_found >= len(whole) - 12  # a few bits at the end of the stream mean nothing


def test_names_and_contents_tell_archives(tmp_path):
    names = ["a.tar", "a.b.tar.gz", "a.tgz", "a.gz", "tar"]
    assert [is_archive(tmp_path / name) for name in names] == [True, True, True, False, False]
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x"))
    (tmp_path / "b.tgz").write_bytes(b"x")
    assert is_compressed(tmp_path / "a.tar")
    assert not is_compressed(tmp_path / "b.tgz")
