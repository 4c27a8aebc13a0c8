"""What is asked of the decoder for a window, and what it answers."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from distillery.text.tokens import language_code
from distillery.whisper.checkpoint import Processor, Whisper

OPTIONS = ("temperature_fallback",)


@dataclass(frozen=True)
class Decoding:
    """How to decode.

    language, task and timestamps choose the decoder's prefix: without a language, a multilingual
    model detects it in each window. `num_beams` 1 is greedy search; `max_length` bounds a window's
    ids, prefix and end included. `temperature_fallback` decodes a window again where its transcript
    looks bad (see `distillery.whisper.fallback`).
    """

    language: str | None
    task: str
    timestamps: bool
    num_beams: int
    max_length: int
    temperature_fallback: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what a result says of it: of options, which came later, only those that are on."""
        settings = asdict(self)
        return {name: settings[name] for name in settings if name not in OPTIONS or settings[name]}

    def fitted_to(self, whisper: Processor, *, detect_language: bool = False) -> "Decoding":
        """Return the same, with the length bounded by the model's decoder positions.

        Args:
            whisper: the model.
            detect_language: whether a multilingual model may do without a language.

        Raises:
            ValueError: the model does not know the language, or needs one and got none.
        """
        if self.language is not None or not detect_language:
            whisper.tokens.prefix(self.language, self.task, self.timestamps)
        return replace(self, max_length=min(self.max_length, whisper.max_label_length))

    def in_language_of(self, whisper: Whisper) -> "Decoding":
        """Return the same with the model's default language, where none is named."""
        named = self.language
        if whisper.tokens.is_multilingual:
            default = getattr(whisper.model.generation_config, "language", None)
            return replace(self, language=named or default)
        # An English-only model has no token for what it speaks anyway.
        is_english = named is None or language_code(named) == "en"
        return replace(self, language=None if is_english else named)


@dataclass(frozen=True)
class Transcript:
    """What the model wrote for one window.

    Attributes:
        ids: begin with `<|startoftranscript|>` and end with `<|endoftext|>`, unless it is cut.
        truncated: the maximum length cut the ids off. No end is added then, so that no student
            learns to stop in mid-sentence.
        avg_logprob: mean log-probability of the ids behind the prefix under the plain softmax.
        no_speech_prob: probability of `<|nospeech|>` behind `<|startoftranscript|>`; None where
            the tokenizer has no such token.
        language: code of what was given or detected; None for an English-only model.
        temperature: at which the ids were drawn; 0 where they are the most probable ones.
    """

    ids: list[int]
    truncated: bool
    avg_logprob: float
    no_speech_prob: float | None = None
    language: str | None = None
    temperature: float = 0.0
