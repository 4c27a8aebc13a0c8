"""Whisper's special tokens, looked up by string and never by position.

Positions differ between releases (`<|yue|>` moves everything behind it by one in large-v3), and a
small model may carry a vocabulary of its own. The strings are the same everywhere. Transformers'
table of languages is imported where it is looked up, so that flags can name tasks at once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

TRANSCRIBE = "transcribe"
TRANSLATE = "translate"
TASKS = (TRANSCRIBE, TRANSLATE)

TIMESTAMP_STEP_S = 0.02  # every Whisper counts time in steps of two encoder input frames
_TIMESTAMP = re.compile(r"<\|(\d+\.\d+)\|>")


class Prompt(NamedTuple):
    """What the decoder's prefix asks for.

    Attributes:
        language: what is spoken, as a code or an English name; None for an English-only model.
        task: `transcribe` or `translate`.
    """

    language: str | None
    task: str

    def normalized(self) -> "Prompt":
        """Return it with the language's code."""
        return Prompt(self.language and language_code(self.language), self.task)


class Tokenizer(Protocol):
    """What this package needs of a Whisper tokenizer."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Return the id of one token string."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""

    def decode(
        self,
        ids: list[int],
        *,
        skip_special_tokens: bool = False,
        decode_with_timestamps: bool = False,
    ) -> str:
        """Return the text of token ids, with timestamps as `<|0.00|>` where they are asked for."""

    @property
    def backend_tokenizer(self) -> "BackendTokenizer":
        """The tokenizer without Python around it."""


class BackendTokenizer(Protocol):
    """What this package needs of a tokenizer of the package `tokenizers`."""

    decoder: object

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Return the id of each token."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """Return the tokens that were added, whose `special` tells special ones."""

    def decode_batch(
        self, sequences: list[list[int]], skip_special_tokens: bool = True
    ) -> list[str]:
        """Return the texts of several sequences of token ids."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens of one Whisper tokenizer.

    Timestamps are the ids from `timestamp_begin` (0.00 s) upwards, one every 0.02 s. `languages`
    maps a code such as `ja` to its id and is empty for an English-only model.
    """

    start_of_transcript: int
    end_of_text: int
    start_of_prev: int
    no_timestamps: int
    timestamp_begin: int
    transcribe: int
    translate: int
    languages: dict[str, int]
    no_speech: int | None = None  # its probability says how likely a window holds no speech

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, is_multilingual: bool) -> "SpecialTokens":
        """Look every special token up by its string.

        Args:
            tokenizer: any Whisper tokenizer.
            is_multilingual: False for the `.en` models, whose tokenizer names languages that the
                model was never trained on.

        Raises:
            ValueError: if the tokenizer lacks one of Whisper's tokens.
        """
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        unknown = tokenizer.convert_tokens_to_ids("<|this token does not exist|>")

        def find(token: str) -> int | None:
            index = tokenizer.convert_tokens_to_ids(token)
            # An unknown token maps to the unknown-token id, which in Whisper is <|endoftext|>.
            return (
                None if index is None or (index == unknown and token != "<|endoftext|>") else index
            )

        def require(token: str) -> int:
            index = find(token)
            if index is None:
                raise ValueError(f"the tokenizer has no {token}: it is not a Whisper tokenizer")
            return index

        languages = {code: find(f"<|{code}|>") for code in LANGUAGES} if is_multilingual else {}
        return cls(
            start_of_transcript=require("<|startoftranscript|>"),
            end_of_text=require("<|endoftext|>"),
            start_of_prev=require("<|startofprev|>"),
            no_timestamps=require("<|notimestamps|>"),
            timestamp_begin=require("<|0.00|>"),
            transcribe=require("<|transcribe|>"),
            translate=require("<|translate|>"),
            languages={code: index for code, index in languages.items() if index is not None},
            no_speech=find("<|nospeech|>") or find("<|nocaptions|>"),  # up to large-v2
        )

    @property
    def is_multilingual(self) -> bool:
        """Whether the decoder's prefix names a language and a task."""
        return bool(self.languages)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of prompt, prefix and end, which are neither text nor timestamps."""
        return frozenset(
            {
                self.start_of_transcript,
                self.start_of_prev,
                self.end_of_text,
                self.no_timestamps,
                self.transcribe,
                self.translate,
                *self.languages.values(),
            }
        )

    def is_timestamp(self, token_id: int) -> bool:
        """Tell whether an id is one of the timestamps."""
        return token_id >= self.timestamp_begin

    def timestamp(self, seconds: float) -> int:
        """Return the id of the timestamp nearest to a time in seconds."""
        return self.timestamp_begin + round(seconds / TIMESTAMP_STEP_S)

    def prefix(self, language: str | None, task: str, timestamps: bool) -> list[int]:
        """Return the decoder's first ids, from `<|startoftranscript|>` on.

        Args:
            language: code or English name; None for an English-only model.
            task: `transcribe` or `translate`.
            timestamps: whether timestamps follow; else `<|notimestamps|>` ends the prefix.

        Raises:
            ValueError: if the model does not know the language, or needs one and got none.
        """
        ids = [self.start_of_transcript]
        if self.is_multilingual:
            ids += [self._language_id(language), self._task_id(task)]
        elif language is not None:
            raise ValueError(f"language {language!r} was given, but the model is English-only")
        return ids if timestamps else [*ids, self.no_timestamps]

    def prefix_length(self, timestamps: bool) -> int:
        """Return the number of ids in the `prefix` of any language and task."""
        return 1 + 2 * self.is_multilingual + (not timestamps)

    def asked(self, ids: Sequence[int]) -> Prompt:
        """Return what the prefix of a sequence asks for; the language is a code.

        Raises:
            ValueError: it has no prefix that this model knows.
        """
        if not self.is_multilingual:
            return Prompt(None, TRANSCRIBE)
        if self.start_of_transcript in ids:
            start = ids.index(self.start_of_transcript)
            named = [self._prompt_tokens.get(token, "") for token in ids[start + 1 : start + 3]]
            if len(named) == 2 and named[0] in self.languages and named[1] in TASKS:
                return Prompt(*named)
        raise ValueError("its labels name no language and task that the model knows")

    @cached_property
    def _prompt_tokens(self) -> dict[int, str]:
        codes = {index: code for code, index in self.languages.items()}
        return {**codes, self.transcribe: TRANSCRIBE, self.translate: TRANSLATE}

    def _language_id(self, language: str | None) -> int:
        if language is None:
            raise ValueError("the model is multilingual and needs a language: see --language")
        code = language_code(language)
        if code not in self.languages:
            raise ValueError(f"the model's tokenizer has no language {language!r}")
        return self.languages[code]

    def _task_id(self, task: str) -> int:
        if task not in TASKS:
            raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
        return self.transcribe if task == TRANSCRIBE else self.translate


def split_at_timestamps(text: str) -> list[tuple[float, str]]:
    """Return each timestamp of a text, in seconds, with what stands behind it up to the next."""
    _, *parts = _TIMESTAMP.split(text)
    return [(float(time), spoken) for time, spoken in zip(parts[::2], parts[1::2], strict=True)]


@cache
def language_code(language: str) -> str:
    """Return the code of a language given as a code or an English name, in any case.

    Raises:
        ValueError: if Whisper has no such language.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    name = language.lower()
    if name in LANGUAGES:
        return name
    if name in TO_LANGUAGE_CODE:
        return str(TO_LANGUAGE_CODE[name])
    raise ValueError(f"Whisper has no language {language!r}: give a code such as 'ja' or its name")
