"""Words of a text and the tokens that they are made of."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from distillery.text.spacing import is_unspaced

_SOUTHEAST_ASIAN = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai to Khmer


class Word(NamedTuple):
    """A piece of a text; the pieces joined are the text, so spaces stand before words.

    `first` is the number of the token that it begins with.
    """

    text: str
    first: int


def split_words(text: str, offsets: Sequence[tuple[int, int]]) -> list[Word]:
    """Split a text where a word begins with a token of its own.

    Words are what stands between spaces; in scripts without spaces (Chinese, Japanese, Thai, Lao,
    Burmese, Khmer) what one token writes. Punctuation belongs to the word that it stands at.

    Args:
        text: what was said.
        offsets: where in the text each token begins and ends, as the package `tokenizers` has it.
    """
    firsts: dict[int, int] = {}
    for number, (place, _) in enumerate(offsets):
        firsts.setdefault(place, number)
    places = [0, *(place for place in sorted(firsts) if _begins_word(text, place))]
    ends = [*places[1:], len(text)]
    return [
        Word(text[start:end], firsts.get(start, 0))
        for start, end in zip(places, ends, strict=True)
        if end > start
    ]


def _begins_word(text: str, place: int) -> bool:
    before, after = text[place - 1 : place] if place else "", text[place : place + 1]
    if not before or not text[:place].strip() or not after:
        return False  # spaces at the beginning belong to the first word
    if after.isspace() or before.isspace():
        return after.isspace() and not before.isspace() and bool(text[place:].strip())
    if _clings(after) or unicodedata.category(before) in ("Ps", "Pi"):
        return False
    return _is_unspaced(before) or _is_unspaced(after)


def _clings(character: str) -> bool:
    """Tell whether a character never begins a word: a mark of the one before, or punctuation."""
    kind = unicodedata.category(character)
    return kind[0] == "M" or (kind[0] == "P" and kind not in ("Ps", "Pi"))


def _is_unspaced(character: str) -> bool:
    return is_unspaced(character) or bool(_SOUTHEAST_ASIAN.match(character))
