"""Tar archives of others, read in place: nothing is extracted, and names in them are only keys.

A header may be forged or broken: it may name a path outside the archive's folder, link to another
file, or claim a size that no disk holds. Such members are refused, with the reason, and counted.
"""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from distillery.storage.files import DamagedFileError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_PADDING_BYTES = 1 << 20  # archivers fill up to 10 KiB; more is a disk that lost the rest
MAX_NAME = 4096  # characters: no system takes a longer path
_BLOCK = 1 << 20
_MAX_READ = _BLOCK  # bytes that tarfile may ask for at once, for a name or a header
_GZIP_MAGIC = b"\x1f\x8b"
# Besides its own errors, tarfile lets these escape on headers that no archiver wrote; the last
# three are those of a damaged gzip file.
_READ_ERRORS = (
    *(tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError),
    *(gzip.BadGzipFile, EOFError, zlib.error),
)

Rejected = dict[str, list[str]]  # names of refused members, by reason


def is_archive(path: Path) -> bool:
    """Tell whether a path has the name of a tar archive, compressed by gzip or not."""
    return path.name.endswith(SUFFIXES)


def is_compressed(path: Path) -> bool:
    """Tell whether a file is compressed by gzip, going by its content."""
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


class _BoundedFile(io.BufferedReader):
    """A file that refuses the reads and seeks that only a forged header asks for."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        is_plain = not isinstance(self.raw, gzip.GzipFile)  # whose size is that of the content
        # The system's own refusal would pass for a fault of the disk.
        if is_plain and whence == os.SEEK_SET and offset > os.fstat(self.fileno()).st_size:
            raise tarfile.ReadError(f"a header points to byte {offset}, behind the end")
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return super().read(size)


class Archive:
    """An open tar archive, read once from its start to its end."""

    def __init__(self, tar: tarfile.TarFile, file: IO[bytes], max_bytes: int) -> None:
        self._tar = tar
        self._file = file
        self._max_bytes = max_bytes

    def members(self, rejected: Rejected) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """Yield the usable files by name; note the others in `rejected`, except folders."""
        seen = set()
        for member in self._tar:
            if member.size < 0:  # would send tarfile backwards, without end
                raise tarfile.ReadError(f"{member.name!r} has a negative size")
            if member.isdir():
                continue
            self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            name = member.name.removeprefix("./")
            reason = self._refusal(member) or ("duplicate member" if name in seen else None)
            if reason:
                rejected.setdefault(reason, []).append(member.name[:MAX_NAME])
            else:
                seen.add(name)
                yield name, member

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return a member's content, read in blocks: a header may claim more than is there."""
        file = self._tar.extractfile(member)
        assert file is not None  # a regular file has content
        return b"".join(iter(partial(file.read, _BLOCK), b""))

    def check_end(self) -> None:
        """Check that after the last member come two blocks of zeros, padding, and nothing else.

        tarfile takes a cut between two members, or a broken header, for the end of the archive.

        Raises:
            DamagedFileError: the archive is cut, or a header is broken.
        """
        offset = self._tar.offset
        self._file.seek(offset)
        num_zeros = 0
        while block := self._file.read(_BLOCK):
            if block.count(0) != len(block):
                raise DamagedFileError(f"not a whole tar archive: broken header at byte {offset}")
            num_zeros += len(block)
        if num_zeros < 2 * tarfile.BLOCKSIZE or num_zeros % tarfile.BLOCKSIZE:
            raise DamagedFileError(f"not a whole tar archive: cut after byte {offset}")
        if num_zeros > MAX_PADDING_BYTES:
            raise DamagedFileError(f"not a whole tar archive: only zeros after byte {offset}")

    def _refusal(self, member: tarfile.TarInfo) -> str | None:
        """Return why a member is not taken, or None."""
        path = PurePosixPath(member.name)
        if member.issym() or member.islnk():
            return "link"
        if member.issparse():
            return "sparse file"
        if not member.isreg():
            return "special file"
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            return "unsafe name"
        if len(member.name) > MAX_NAME:
            return "name too long"
        if member.size > self._max_bytes:
            return "too large"
        return None


@contextmanager
def open_archive(path: Path, max_bytes: int) -> Iterator[Archive]:
    """Open a tar archive, compressed by gzip or not.

    Args:
        path: the archive.
        max_bytes: larger members are refused.

    Raises:
        DamagedFileError: what is read is no tar archive, or is cut, or has a broken header.
    """
    with path.open("rb", buffering=0) as raw:
        content = gzip.GzipFile(fileobj=raw) if is_compressed(path) else raw
        try:
            file = _BoundedFile(content)  # type: ignore[arg-type]  # GzipFile has what it takes
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield Archive(tar, file, max_bytes)
        except _READ_ERRORS as error:
            raise DamagedFileError(f"not a whole tar archive: {error}") from error
