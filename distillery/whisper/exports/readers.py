"""What a format is to this project: what it can hold, its writer, and the programs that read it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from distillery.audio.decoding import Waveform
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding

# Turns a clip, float32 (samples,) of at most one window, into its text.
Transcribe = Callable[[Waveform], str]


class Reader(NamedTuple):
    """A program, by its name, with an export loaded."""

    program: str
    transcribe: Transcribe


class Format(Protocol):
    """What the module of a format offers."""

    LIBRARY: str  # that the card names
    PROGRAMS: str  # that read it, in words
    USAGE: str  # how, in Markdown, with `{folder}` and `{language}` to fill in

    def refuse(self, whisper: Whisper, quantization: str) -> None:
        """Raise ValueError if the format cannot hold a model."""

    def limits(self, whisper: Whisper) -> list[str]:
        """Return, in sentences, what the format's programs cannot do with a model."""

    def write(self, whisper: Whisper, folder: Path, quantization: str) -> None:
        """Write all files that the format's programs need into a folder that is there."""

    def readers(self, whisper: Whisper, folder: Path, decoding: Decoding) -> Iterator[Reader]:
        """Load an export into each program in turn.

        Args:
            whisper: the original, for its tokenizer and its settings.
            folder: what `write` wrote.
            decoding: greedy, without timestamps, in a language where the model knows several.
        """
