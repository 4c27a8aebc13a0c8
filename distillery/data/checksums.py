"""SHA-256 checksums beside files, and what is done with a file that does not match its own.

The checksum of `a.tar` lies in `a.tar.sha256`, in the format of the program `sha256sum`.
"""

from pathlib import Path

from distillery.storage.files import sha256, write_text


def is_published(path: Path) -> bool:
    """Tell whether a file was fetched whole, or adopted, before."""
    return path.exists() and checksum_path(path).exists()


def checksum_path(path: Path) -> Path:
    """Return where a file's SHA-256 checksum is kept."""
    return path.with_name(path.name + ".sha256")


def read_checksum(path: Path) -> str | None:
    """Return the checksum that was recorded for a file, or None."""
    try:
        recorded = checksum_path(path).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return None
    return recorded[0] if recorded else None


def write_checksum(path: Path, digest: str) -> None:
    """Record a file's SHA-256 checksum, whole or not at all."""
    write_text(checksum_path(path), f"{digest}  {path.name}\n")


def damaged_path(path: Path) -> Path:
    """Return the name under which a damaged file is kept."""
    return path.with_name(path.name + ".damaged")


def set_aside(path: Path, content: Path | None = None) -> None:
    """Rename a damaged file to `<name>.damaged`, with its checksum, so that it is fetched again.

    Args:
        path: the name of the file.
        content: where the content lies, if not under that name yet.
    """
    damaged = damaged_path(path)
    (content or path).replace(damaged)
    write_checksum(damaged, sha256(damaged))
    checksum_path(path).unlink(missing_ok=True)


def is_confirmed_by_source(path: Path) -> bool:
    """Tell whether a file, set aside once, came from the source again with the same content."""
    digest = read_checksum(path)
    return digest is not None and digest == read_checksum(damaged_path(path))
