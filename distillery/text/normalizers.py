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
from collections.abc import Callable, Mapping, Sequence
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
NUL = "\0"  # no rule touches it, and none sees beyond it but those for brackets
_NOT_JOINED = re.compile(r"[<\[(\0]")
MOST_JOINED = 1000  # texts: more take no less time, and more memory
ZERO_WIDTH_SPACE = "\u200b"  # parts the words of Khmer and Burmese, unseen


@dataclass(frozen=True)
class Normalizer:
    """A chain of text rules, called as a function.

    Attributes:
        id: the name that results are recorded under.
        steps: the rules, applied in order; the text is stripped at the end.
        raw_steps: the few rules that hold for raw rates too.
        joins: whether `steps` do to texts that a NUL parts what they do to each of them.
    """

    id: str
    steps: tuple[Callable[[str], str], ...]
    raw_steps: tuple[Callable[[str], str], ...] = ()
    joins: bool = False

    def __call__(self, text: str) -> str:
        """Return `text` as it is to be compared."""
        return _apply(self.steps, text)

    def many(self, texts: Sequence[str]) -> list[str]:
        """Return what a call returns for each text, in a third of the time where `joins` is set."""
        if not self.joins:
            return [self(text) for text in texts]
        normalized: list[str] = []
        for start in range(0, len(texts), MOST_JOINED):
            some = texts[start : start + MOST_JOINED]
            # What is in brackets goes: one that is not closed would take the next texts with it.
            alone = {i: self(text) for i, text in enumerate(some) if _NOT_JOINED.search(text)}
            joined = NUL.join("" if i in alone else text for i, text in enumerate(some))
            parts = [text.strip() for text in _apply(self.steps, joined).split(NUL)]
            normalized += [alone.get(i, text) for i, text in enumerate(parts)]
        return normalized

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
        plain = Normalizer("marks-kept", (_basic_rules(keep_marks=True),), joins=True)
    else:
        plain = Normalizer("whisper-basic", (_basic_rules(),), joins=True)
    if code in UNSPACED_LANGUAGES and variant != KOTOBA_FILTER:
        return Normalizer(
            f"{plain.id}+no-spaces",
            (*plain.steps, _remove_spaces),
            (_remove_spaces,),
            joins=True,
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


_ABOVE_FFFF = re.compile("[\U00010000-\U0010ffff]")


@cache
def _symbols() -> re.Pattern[str]:
    """Return a pattern of symbols, punctuation and marks, and of all characters above U+FFFF.

    Of these only some are meant: a pattern that names them would look through a list each time.
    """
    codes = (code for code in range(0x10000) if unicodedata.category(chr(code))[0] in "MSP")
    return re.compile(f"[{''.join(re.escape(chr(code)) for code in codes)}\U00010000-\U0010ffff]")


def _space_for(match: re.Match[str]) -> str:
    return " " if unicodedata.category(match[0])[0] in "MSP" else match[0]


def _remove_symbols(s: str) -> str:
    """Replace symbols, punctuation and marks with spaces, as Whisper's rule does, but sooner."""
    text = unicodedata.normalize("NFKC", s)
    return _symbols().sub(_space_for if _ABOVE_FFFF.search(text) else " ", text)


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
