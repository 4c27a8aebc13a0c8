"""Names that come with data, made fit to be read."""

import unicodedata

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
