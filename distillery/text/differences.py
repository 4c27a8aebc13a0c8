"""Where two texts differ, for people to read."""

from enum import Enum
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from distillery.text.words import split_words


class Side(Enum):
    """Which of two texts a piece is in."""

    FIRST = "first"
    SECOND = "second"
    BOTH = "both"


class Piece(NamedTuple):
    """A stretch of one text, or of both."""

    text: str
    side: Side


def differences(first: str, second: str) -> list[Piece]:
    """Return what two texts share, and what only one of them has, in order.

    They are compared word by word, in scripts without spaces character by character. Spaces do not
    count: where only they differ, the first text's are shown.
    """
    ours, theirs = _words(first), _words(second)
    edits = Levenshtein.opcodes([w.strip() for w in ours], [w.strip() for w in theirs])
    pieces: list[Piece] = []
    for edit in edits:
        here = "".join(ours[edit.src_start : edit.src_end])
        there = "".join(theirs[edit.dest_start : edit.dest_end])
        if edit.tag == "equal":
            pieces.append(Piece(here, Side.BOTH))
        else:
            pieces += [Piece(here, Side.FIRST)] if here else []
            pieces += [Piece(there, Side.SECOND)] if there else []
    return pieces


def _words(text: str) -> list[str]:
    return [word.text for word in split_words(text, [(i, i + 1) for i in range(len(text))])]
