"""The files of a folder, of a tar archive, or one file alone: the same to those who read them.

Names of files are relative, with forward slashes, and are only keys: no path is made from a name
that an archive holds.
"""

import codecs
import difflib
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from distillery.ingest.archives import Rejected, is_archive, is_compressed, open_archive
from distillery.storage.files import DamagedFileError
from distillery.text import subtitles

AUDIO_SUFFIXES = {
    *(".aac", ".aif", ".aiff", ".flac", ".m4a", ".mka", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".sph", ".wav", ".webm", ".wma"),
}
TEXT_SUFFIX, TABLE_SUFFIX = ".txt", ".tsv"
TEXT_SUFFIXES = (TEXT_SUFFIX, TABLE_SUFFIX, *subtitles.SUFFIXES)
BYTE_ORDER_MARK = codecs.BOM_UTF8  # which some editors write before a text
MAX_MEMBER_BYTES = 1 << 30  # three hours of uncompressed audio
MAX_TEXT_BYTES = 64 << 20  # of one text
MAX_TEXTS_BYTES = 512 << 20  # of all texts of an archive: they are held in memory
TEXT_TOO_LARGE = f"text of more than {MAX_TEXT_BYTES >> 20} MiB"
_GZIP_TRAILER = 8  # bytes: checksum and length of the content


@dataclass(frozen=True)
class FileTree:
    """Files by their names below `root`, with their sizes in bytes.

    Of archives, the contents of the texts too, and, unless they are compressed, where in them each
    file begins.
    """

    root: Path
    sizes: dict[str, int]
    rejected: Rejected  # names of what was refused, by reason
    texts: dict[str, bytes] | None = None
    offsets: dict[str, int] | None = None

    @property
    def audio(self) -> list[str]:
        """Names of the audio files."""
        return [name for name in self.sizes if is_audio(name)]

    def read_text(self, name: str) -> bytes:
        """Return the content of a text file.

        Raises:
            OSError: it cannot be read.
        """
        return (self.root / name).read_bytes() if self.texts is None else self.texts[name]


def is_audio(name: str) -> bool:
    """Tell whether a file's name is that of an audio file."""
    return posixpath.splitext(name)[1].lower() in AUDIO_SUFFIXES


def is_text(name: str) -> bool:
    """Tell whether a file's name is that of a transcript, of a table of them, or of subtitles."""
    return posixpath.splitext(name)[1] in TEXT_SUFFIXES


def is_file(path: Path) -> bool:
    """Tell whether there is a file; a name that no system takes is none."""
    try:
        return path.is_file()
    except OSError:  # no permission, or a name that is too long
        return False


def stem(name: str) -> str:
    """Return a file's name, folders included, without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def not_there(name: str | Path) -> str:
    """Return a message that a dataset is not there, with names beside it that are similar."""
    path = Path(name)
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    related = [name for name in names if name.startswith(path.name) or path.name.startswith(name)]
    close = dict.fromkeys([*difflib.get_close_matches(path.name, names), *sorted(related)])
    hint = f" (beside it: {', '.join(close)})" if close else ""
    return f"dataset {name}: there is no such file or folder{hint}"


def file_tree(path: Path) -> FileTree:
    """List the files of a folder or an archive; of one audio file, itself and its texts.

    Raises:
        FileNotFoundError: there is nothing of that name.
        PermissionError: a folder in it cannot be read.
        ValueError: the archive is damaged.
    """
    if path.is_dir():
        return _folder_tree(path)
    if not path.is_file():
        raise FileNotFoundError(not_there(path))
    if is_archive(path):
        return _archive_tree(path)
    files = [path, *(path.with_suffix(suffix) for suffix in TEXT_SUFFIXES)]
    sizes = {file.name: file.stat().st_size for file in files if file.is_file()}
    large = [name for name, size in sizes.items() if _is_large_text(name, size)]
    kept = {name: size for name, size in sizes.items() if name not in large}
    return FileTree(path.parent, kept, {TEXT_TOO_LARGE: large} if large else {})


def _is_large_text(name: str, size: int) -> bool:
    """Tell whether a file is too large for a transcript; a table has no limit of its own."""
    return is_text(name) and not name.endswith(TABLE_SUFFIX) and size > MAX_TEXT_BYTES


def file_names(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, in order; hidden ones are passed over."""
    return (name for name, is_file in _walk(folder) if is_file)


def fingerprint(path: Path) -> bytes:
    """Return a checksum of the names and sizes of all files, and of the contents of text files.

    Of a compressed archive it covers size and trailer only: listing it would decompress it.
    """
    if path.is_file() and is_compressed(path):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(size, _GZIP_TRAILER), os.SEEK_END)
            return hashlib.sha256(f"{size}".encode() + file.read()).digest()
    tree = file_tree(path)
    digest = hashlib.sha256()
    for name in sorted(tree.sizes):
        digest.update(f"{name}\0{tree.sizes[name]}\0".encode())
        if is_text(name):
            digest.update(tree.read_text(name))
    return digest.digest()


def _folder_tree(folder: Path) -> FileTree:
    sizes: dict[str, int] = {}
    rejected: Rejected = {}
    for name, is_file in _walk(folder):
        try:
            state = (folder / name).stat()
        except FileNotFoundError:
            rejected.setdefault("link to nothing", []).append(name)
            continue
        if not is_file:
            rejected.setdefault("link to a folder", []).append(name)
        elif _is_large_text(name, state.st_size):
            rejected.setdefault(TEXT_TOO_LARGE, []).append(name)
        elif stat.S_ISREG(state.st_mode):
            sizes[name] = state.st_size
        else:
            rejected.setdefault("special file", []).append(name)
    return FileTree(folder, sizes, rejected)


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield (name, whether it is a file) of all files, and of links to folders, not followed."""
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(place)
        for name in folders:
            if (here / name).is_symlink():
                yield (here / name).relative_to(folder).as_posix(), False
        for name in sorted(files):
            if not name.startswith("."):
                yield (here / name).relative_to(folder).as_posix(), True


def _refuse(error: OSError) -> None:
    raise error  # os.walk would pass over the folder without a word


def _archive_tree(path: Path) -> FileTree:
    sizes: dict[str, int] = {}
    offsets: dict[str, int] = {}
    texts: dict[str, bytes] = {}
    texts_bytes = 0
    rejected: Rejected = {}
    try:
        with open_archive(path, MAX_MEMBER_BYTES) as archive:
            for name, member in archive.members(rejected):
                if any(part.startswith(".") for part in PurePosixPath(name).parts):
                    continue  # such as ._clip.wav, which macOS adds
                if _is_large_text(name, member.size):
                    rejected.setdefault(TEXT_TOO_LARGE, []).append(name)
                    continue
                sizes[name], offsets[name] = member.size, member.offset_data
                if is_text(name):
                    texts_bytes += member.size
                    _check_size_of_texts(path, name, texts_bytes)
                    texts[name] = archive.read(member)
            archive.check_end()
    except DamagedFileError as error:
        raise ValueError(f"dataset {path}: {error}: fetch it again") from error
    return FileTree(path, sizes, rejected, texts, None if is_compressed(path) else offsets)


def _check_size_of_texts(archive: Path, name: str, num_bytes: int) -> None:
    if num_bytes > MAX_TEXTS_BYTES:
        raise ValueError(
            f"dataset {archive}: its texts up to {name!r} have more than {MAX_TEXTS_BYTES >> 20} "
            "MiB, too many to be held in memory: extract it and name the folder, if you trust it"
        )
