"""Text normalisation before scoring, chosen by language and named in every result.

An error rate means nothing without the normaliser that it was computed under, so each one carries
an `id`. The rules are Whisper's own (Radford et al. 2022, appendix C), with two additions: spaces
go where the script is written without them, and combining marks stay where they spell the word.
Transformers has the rules; it is imported where a normaliser is built, so that flags can name the
variants at once.
"""

import importlib.util
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from distillery.text.tokens import language_code

logger = logging.getLogger(__name__)

VARIANTS = ("auto", "basic", "marks")
# What kotoba-whisper's filter compares by; its published error rates are without spaces again.
KOTOBA_FILTER = "kotoba"
FILTER_VARIANTS = (*VARIANTS, KOTOBA_FILTER)

# Scripts written without spaces between words: where a space falls is the writer's whim.
UNSPACED_LANGUAGES = frozenset({"ja", "km", "lo", "my", "th", "yue", "zh"})

# Languages with words that NFKC cannot write without combining marks. Whisper's basic rules put a
# space in place of every mark, which cuts such words into pieces and makes the WER look low.
MARKED_LANGUAGES = frozenset(
    {"as", "bn", "gu", "hi", "kn", "ml", "mr", "ne", "pa", "sa", "si", "ta", "te"}  # Indic
    | {"bo", "km", "lo", "my", "th"}
    | {"ar", "fa", "he", "ps", "sd", "ur", "yi"}
    | {"ln", "yo"}  # Latin with tone marks, most of which have no composed character
)

WORD_PACKAGES = ("fugashi", "unidic_lite")  # modules
JAPANESE_WORDS_HINT = (
    "words of Japanese need two packages: pip install fugashi unidic-lite "
    "(the extra 'japanese' of this project)"
)

# Packages that carry Whisper's table of English spellings, each at the same place.
SPELLING_PACKAGES = ("whisper_normalizer", "whisper")  # modules
SPELLING_TABLE = Path("normalizers", "english.json")

_MARKUP = re.compile(r"<\|[^<>|]*\|>")
ZERO_WIDTH_SPACE = "\u200b"  # parts the words of Khmer and Burmese, unseen


@dataclass(frozen=True)
class Normalizer:
    """A chain of text rules, called as a function.

    Attributes:
        id: the name that results are recorded under.
        steps: the rules, applied in order; the text is stripped at the end.
        raw_steps: the few rules that hold for raw rates too.
    """

    id: str
    steps: tuple[Callable[[str], str], ...]
    raw_steps: tuple[Callable[[str], str], ...] = ()

    def __call__(self, text: str) -> str:
        """Return `text` as it is to be compared."""
        return _apply(self.steps, text)

    def raw(self, text: str) -> str:
        """Return `text` as it is to be compared without normalisation.

        Case and punctuation stay. As in kotoba-whisper's published raw rates, languages that are
        written without spaces are compared without them, and `。.`, which ends the references of
        Common Voice 8 in Japanese, is one full stop.
        """
        return _apply(self.raw_steps, text.replace("。.", "。"))


def _apply(steps: tuple[Callable[[str], str], ...], text: str) -> str:
    for step in steps:
        text = step(text)
    return text.strip()


def normalizer_for(
    language: str | None,
    *,
    english_spelling: Mapping[str, str] | None = None,
    variant: str = "auto",
) -> Normalizer:
    """Choose the normaliser for a language.

    Args:
        language: a Whisper language code ("ja") or English name ("Japanese"); None where it is
            unknown, which keeps marks, because that differs from the basic rules only in texts
            that those would cut.
        english_spelling: British to American spellings (the tokenizer's `normalizer.json`), for
            English only; None takes those of an installed package, and {} none: the id says so.
        variant: "auto" follows the language, "basic" forces Whisper's basic rules, "marks" forces
            them with combining marks kept, "kotoba" is what the filter of kotoba-whisper compares
            by: basic rules (English ones for English) that leave spaces in every script, so that
            the comma of `今日は、雨です`, which becomes a space, makes it two words.

    Raises:
        ValueError: for a language or a variant that does not exist.
    """
    if variant not in FILTER_VARIANTS:
        raise ValueError(
            f"normalizer variant must be one of {', '.join(FILTER_VARIANTS)}, got {variant!r}"
        )
    code = None if language is None else language_code(language)
    if variant in ("auto", KOTOBA_FILTER) and code == "en":
        return _english_normalizer(
            installed_spelling() if english_spelling is None else english_spelling
        )
    keeps_marks = variant == "auto" and (code is None or code in MARKED_LANGUAGES)
    if variant == "marks" or keeps_marks:
        plain = Normalizer("marks-kept", (_basic_rules(keep_marks=True),))
    else:
        plain = Normalizer("whisper-basic", (_basic_rules(),))
    if code in UNSPACED_LANGUAGES and variant != KOTOBA_FILTER:
        return Normalizer(
            f"{plain.id}+no-spaces", (*plain.steps, _remove_spaces), (_remove_spaces,)
        )
    return plain


def raw_text(text: str) -> str:
    """Return `text` without Whisper's `<|...|>` markup, stripped."""
    return _MARKUP.sub("", text).strip()


def japanese_words() -> Callable[[str], str]:
    """Return a function that puts spaces between the words of a Japanese text.

    MeCab cuts the text, by the dictionary UniDic (`fugashi`, `unidic-lite`).

    Raises:
        ModuleNotFoundError: the two packages are not installed.
    """
    try:
        import fugashi
        import unidic_lite
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; {JAPANESE_WORDS_HINT}") from error
    # The dictionary is named, because a larger one that is installed too would cut otherwise.
    tagger = fugashi.Tagger(f'-Owakati -d "{unidic_lite.DICDIR}"')
    return lambda text: str(tagger.parse(text)).strip()


@cache
def installed_spelling() -> Mapping[str, str]:
    """Return Whisper's table of British and American spellings; a warning and {} if none is there.

    Its package is not imported: that would bring others.
    """
    for name in SPELLING_PACKAGES:
        found = importlib.util.find_spec(name)
        for folder in (found and found.submodule_search_locations) or ():
            path = Path(folder) / SPELLING_TABLE
            if path.is_file():
                return dict(json.loads(path.read_text("utf-8")))
    logger.warning(
        "English is compared without Whisper's table of spellings (colour, color), so that error "
        "rates are higher than published ones: pip install whisper-normalizer (the extra 'english' "
        "of this project)"
    )
    return {}


def _basic_rules(keep_marks: bool = False) -> Callable[[str], str]:
    """Return Whisper's basic rules; on request those that leave the marks of letters in place."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    rules: Any = BasicTextNormalizer()  # type: ignore[no-untyped-call]
    rules.clean = _remove_symbols_keep_marks if keep_marks else _remove_symbols
    return cast(Callable[[str], str], rules)


def _english_normalizer(spelling: Mapping[str, str]) -> Normalizer:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    name = "whisper-english" if spelling else "whisper-english+no-spelling-map"
    rules = EnglishTextNormalizer(dict(spelling))  # type: ignore[no-untyped-call]
    return Normalizer(name, (rules,))


def _remove_spaces(text: str) -> str:
    return "".join(text.replace(ZERO_WIDTH_SPACE, "").split())


class _SymbolSpaces(dict[int, str]):
    """For `str.translate`: a space for each symbol, punctuation and mark, found once."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = " " if unicodedata.category(character)[0] in "MSP" else character
        return self[code]


_SYMBOL_SPACES = _SymbolSpaces()


def _remove_symbols(s: str) -> str:
    """Replace symbols, punctuation and marks with spaces, as Whisper's rule does, but sooner."""
    return unicodedata.normalize("NFKC", s).translate(_SYMBOL_SPACES)


def _remove_symbols_keep_marks(s: str) -> str:
    """Replace symbols, punctuation and stray marks with spaces; keep the marks on letters."""
    kept = []
    on_letter = False
    for character in unicodedata.normalize("NFKC", s):
        kind = unicodedata.category(character)
        if kind[0] == "M":
            # An emoji's variation selector is a mark too: it goes with the emoji.
            kept.append(character if on_letter else " ")
            continue
        # A joiner (Cf) may stand between a letter and its mark, in Bengali for one.
        on_letter = kind[0] == "L" or (on_letter and kind == "Cf")
        kept.append(" " if kind[0] in "SP" else character)
    return "".join(kept)
