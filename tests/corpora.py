"""Files written as folders and as tar archives."""

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def pack(path: Path, files: Mapping[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> Path:
    """Write an archive, compressed where its name says so; `extra` are members of any sort."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    content = buffer.getvalue()
    path.write_bytes(gzip.compress(content) if path.name.endswith("gz") else content)
    return path


def spread(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def member_header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: object) -> bytes:
    """Make the header of a member of any kind."""
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, size
    for key, value in more.items():
        setattr(header, key, value)
    return header.tobuf(tarfile.GNU_FORMAT)


def sparse_header(name: str) -> bytes:
    """Make the header of a file of 8 EB with one byte in it, as GNU tar writes sparse files."""
    block = bytearray(member_header(name, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"00000000000\0" + b"00000000000\0"  # one piece: offset, number of bytes
    block[483:495] = b"\x80\0\0\0" + (2**63 - 1).to_bytes(8, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
