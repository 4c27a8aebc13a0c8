"""Cleaning of the texts that a model is to write, before it learns from them.

This decides what a trained model writes. What two texts are compared by is another matter, and no
flag of training changes it: see `normalizers`.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from itertools import groupby

from distillery.text.normalizers import UNSPACED_LANGUAGES
from distillery.text.tokens import language_code

_MARKUP = re.compile(r"(<\|[^<>|]*\|>)")
_APOSTROPHES = frozenset("'’ʼ＇")
_HYPHENS = frozenset("-‐‑")
_SPOKEN = frozenset("%&@#٪％＆＠＃")  # Unicode's punctuation, too, but read aloud


@dataclass(frozen=True)
class TextCleaning:
    """Rules for the texts of training, called as a function.

    No rule touches Whisper's `<|...|>` markup, or the combining marks that spell many scripts.

    Attributes:
        lower_case: write small letters only.
        remove_punctuation: leave punctuation out. What belongs to a word or a number stays (`it's`,
            `3.14`, `50 %`), and a hyphen joins its two words, as the rules of Whisper's fine-tuning
            event have it.
        ignored: characters to be left out besides.
        has_spaces: whether the language is written with spaces between words; words with nothing
            but marks between them are then kept apart.
    """

    lower_case: bool = False
    remove_punctuation: bool = False
    ignored: str = ""
    has_spaces: bool = True

    @property
    def changes_texts(self) -> bool:
        """Whether there is any rule to apply."""
        return self.lower_case or self.remove_punctuation or bool(self.ignored)

    def of_language(self, language: str | None) -> "TextCleaning":
        """Return the rules for texts in a language, a code or a name; None where it is unknown."""
        is_spaced = language is None or language_code(language) not in UNSPACED_LANGUAGES
        return replace(self, has_spaces=is_spaced)

    def __call__(self, text: str) -> str:
        """Return `text` as it is to be learnt."""
        parts = _MARKUP.split(text)
        return "".join(part if _MARKUP.fullmatch(part) else self._clean(part) for part in parts)

    def _clean(self, text: str) -> str:
        if not text:
            return text
        starts_with_space = text[0].isspace()  # as passages behind timestamps do
        if self.ignored:
            text = "".join(character for character in text if character not in self.ignored)
        if self.remove_punctuation:
            text = _without_punctuation(text, " " if self.has_spaces else "")
        if self.lower_case:
            text = text.lower()
        words = " ".join(text.split())
        return f" {words}" if starts_with_space and words else words


NO_CLEANING = TextCleaning()


def _without_punctuation(text: str, gap: str) -> str:
    pieces = [" ", *("".join(run) for _, run in groupby(text, _is_mark)), " "]
    return "".join(
        _replacement(before[-1], piece, after[0], gap) if _is_mark(piece[0]) else piece
        for before, piece, after in zip(pieces, pieces[1:], pieces[2:], strict=False)
    )


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _SPOKEN


def _replacement(before: str, marks: str, after: str, gap: str) -> str:
    """Return what stands for marks between two characters: themselves, nothing, or a gap."""
    if not (_is_in_word(before) and _is_in_word(after)):
        return ""
    if len(marks) == 1 and before.isdigit() and after.isdigit():
        return marks
    if marks in _APOSTROPHES:
        return marks
    return "" if marks in _HYPHENS else gap


def _is_in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
