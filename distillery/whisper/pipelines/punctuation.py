"""Punctuation put back into transcripts that lack it.

A punctuator only ever adds marks: no other character of a transcript changes, so that the times of
its chunks stay true.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import accumulate
from pathlib import Path
from typing import Any

# From the texts of a recording's chunks, in order, to the same texts with marks.
Punctuator = Callable[[Sequence[str]], list[str]]

DEFAULT_MODEL = "1-800-BAD-CODE/xlm-roberta_punctuation_fullstop_truecase"
RULES = "rules"
MODEL_FILES = ("sp.model", "config.yaml", "model.onnx")  # the small ones first

POINTS = ".,"  # they also stand inside numbers and abbreviations
MARKS = POINTS + "?!;。、，．？！؟،؛।።፣፧"
# A mark that another one of the same kind follows, as some models write, counts once.
DOUBLED = ("。.", "。。", "、,", "、、")

# What ends a polite sentence, or one with a copula. Plain verbs and adjectives look the same before
# a noun, so they end a sentence only with a particle behind them, or with the recording.
_ENDING = (
    r"(?:です|でした|でしょう|(?<!ます)ます|ました|ません|ましょう|ください|なさい"
    r"|だろう|だった|である|であった|(?<!ま)(?<!た)(?<!から)(?<!あい)だ)"
)
_PLAIN = "[るうくすつぬむぶぐいた]"
_SENTENCE = re.compile(
    rf"(?:{_ENDING}(?:よね|かな|かね|か|ね|よ|わ|な)?|(?:{_PLAIN}|[だの])(?:よね|かな|よ|ね)|のか)(?=\s|$)"
)
_LAST_SENTENCE = re.compile(rf"{_PLAIN}$")
_CLAUSE = re.compile(
    r"(?:けれども|けれど|けども|けど|ので|のに|ながら|(?:です|ます|でした|ました|ません)が)(?=\s|$)"
)


def load_punctuator(name: bool | str) -> Punctuator:
    """Return a punctuator.

    Args:
        name: a Hub id or a folder with a model of the package `punctuators`; True for
            `DEFAULT_MODEL`; `rules` for sentence ends of Japanese, which needs no model.

    Raises:
        ImportError: the package is missing.
        OSError: a file of the model is neither here nor can be fetched.
    """
    if name == RULES:
        return punctuate_by_rules
    try:
        from punctuators.models.punc_cap_seg_model import (
            PunctCapSegConfigONNX,
            PunctCapSegModelONNX,
        )
    except ImportError as error:
        raise ImportError(
            f"a punctuator needs the package punctuators ({error}): pip install punctuators, or "
            f"take {RULES!r}, which needs none"
        ) from error
    folder = _model_folder(DEFAULT_MODEL if name is True else str(name))
    return ModelPunctuator(PunctCapSegModelONNX(PunctCapSegConfigONNX(directory=str(folder))))


def _model_folder(name: str) -> Path:
    """Return the folder of a model's files, fetched if need be."""
    from transformers.utils import cached_file  # here, so that flags can name the models at once

    for file in MODEL_FILES:
        try:
            path = cached_file(name, file)
        except OSError as error:
            raise OSError(
                f"the punctuator {name!r} has no {file} here: {error}\nFetch it where there is a "
                f"network (hf download {name}), name a folder that holds {', '.join(MODEL_FILES)}, "
                f"or take {RULES!r}, which needs no model"
            ) from error
    return Path(path).parent


class ModelPunctuator:
    """Adds the marks that a model of the package `punctuators` predicts.

    The chunks are punctuated as one text, since a sentence may go on in the next chunk. The model
    gets it without marks, as it was trained, and may write other letters than it got (unknown
    ones, capitals): only its marks are taken, and only where the letters before them agree.
    """

    def __init__(self, model: Any) -> None:
        """Take a model with `infer(list[str]) -> list[list[str]]`: the sentences of each text."""
        self.model = model

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of consecutive chunks with marks."""
        whole = "".join(texts)
        bare = "".join(c for i, c in enumerate(whole) if not _is_mark(whole, i)).strip()
        if not bare:
            return list(texts)
        (sentences,) = self.model.infer([bare])
        return _with_marks(texts, _marks_of(" ".join(sentences), whole))


def punctuate_by_rules(texts: Sequence[str]) -> list[str]:
    """Return the texts of consecutive chunks with 「。」 and 「、」 where a pause follows.

    A pause is the end of a chunk, or a space, which Whisper writes where it leaves out a mark.
    「。」 follows polite and copular endings, and plain ones (行く, 高い, 食べた) that have a
    particle or end the recording; 「、」 follows conjunctions, but does not end the recording.
    Questions get no other mark, and nothing is known about other plain endings, sentences that end
    in a noun, and sentences that end without a pause.
    """
    starts = [0, *accumulate(map(len, texts))]
    marks = {}
    for start, text in zip(starts, texts, strict=False):
        marks.update({start + match.end() - 1: "、" for match in _CLAUSE.finditer(text)})
        marks.update({start + match.end() - 1: "。" for match in _SENTENCE.finditer(text)})
    whole = "".join(texts).rstrip()
    last = len(whole) - 1
    if marks.get(last) == "、":
        del marks[last]
    if _LAST_SENTENCE.search(whole):
        marks[last] = "。"
    return _with_marks(texts, marks)


def _with_marks(texts: Sequence[str], marks: Mapping[int, str]) -> list[str]:
    """Write marks behind characters, unless a mark follows there already.

    Args:
        texts: consecutive texts.
        marks: mark for a character's place in all texts together.
    """
    whole = "".join(texts)
    marked = [
        ""
        if whole[max(i - 1, 0) : i + 1] in DOUBLED
        else char + ("" if _mark_follows(whole, i) else marks.get(i, ""))
        for i, char in enumerate(whole)
    ]
    ends = list(accumulate(map(len, texts)))
    return ["".join(marked[end - len(t) : end]) for end, t in zip(ends, texts, strict=True)]


def _mark_follows(text: str, index: int) -> bool:
    return text[index + 1 :].lstrip()[:1] in tuple(MARKS)


def _is_mark(text: str, index: int) -> bool:
    """Tell whether a character ends a sentence or a part of one; the point in 3.5 does not."""
    after = unicodedata.normalize("NFKC", text[index + 1 : index + 2])
    inside = text[index] in POINTS and after.isalnum() and after.isascii()
    return text[index] in MARKS and not inside


def _marks_of(punctuated: str, text: str) -> dict[int, str]:
    """Return the marks of a text that was punctuated, by place in the text that was not.

    The two may differ in spaces, capitals, width and unknown letters.
    """
    marks: dict[int, str] = {}
    theirs, ours = [*_letters(punctuated)], [*_letters(text)]
    matcher = SequenceMatcher(
        None, [letter for letter, _ in theirs], [letter for letter, _ in ours], autojunk=False
    )
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            after = theirs[block.a + offset][1] + 1
            if after < len(punctuated) and _is_mark(punctuated, after):
                marks[ours[block.b + offset][1]] = punctuated[after]
    return marks


def _letters(text: str) -> Iterator[tuple[str, int]]:
    """Yield what counts in comparing texts, with its place: no marks, spaces, case and width."""
    for index, char in enumerate(text):
        if not char.isspace() and not _is_mark(text, index):
            for letter in unicodedata.normalize("NFKC", char).casefold():
                yield letter, index
