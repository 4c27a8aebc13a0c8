"""Names that come with data, made fit to be read, and to name a file."""

import re
import unicodedata
from hashlib import blake2b

MOST_NAME_BYTES = 180  # file systems take 255, of which suffixes and temporary names need some

_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, marks that reorder text, ends of lines


def printable(name: object, *, keep: str = "") -> str:
    """Return a name with what a terminal would obey written as an escape, such as `\\x1b`.

    A file's name or a row's id may hold any character: one that moves the cursor, ends a line of
    the log, or hides what stands before it.

    Args:
        name: the name, or a text with names in it.
        keep: characters that are left as they are.
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _CONTROLS
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def file_name(name: str) -> str:
    """Return a name for a file, without its suffix, that is safe in any folder.

    A name that is safe as it is stays. Any other one keeps its letters, digits, points and dashes,
    as many as fit, and gets a checksum behind it, so that no two names become one.
    """
    kept = re.sub(r"[^\w.-]+", "_", name).encode()[:MOST_NAME_BYTES].decode(errors="ignore")
    if kept == name and name[:1] not in ("", "."):
        return name
    return f"{kept.lstrip('.')}-{blake2b(name.encode(errors='replace'), digest_size=4).hexdigest()}"
