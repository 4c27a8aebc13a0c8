"""The groups of flags of the stages that decode long recordings."""

from dataclasses import dataclass
from typing import Any

from distillery.cli.arguments import DataArguments
from distillery.cli.flags import at_least, flag
from distillery.data.specs import NONE

SEQUENTIAL, CHUNKED = "sequential", "chunked"


@dataclass(frozen=True, kw_only=True)
class RecordingArguments(DataArguments):
    """Datasets to read."""

    segment: str = flag(
        NONE,
        "none: whole recordings, of which subtitles are the text and its times; cues, vad: clips "
        "that are cut out of them, as other stages do.",
    )


@dataclass(frozen=True)
class LongFormArguments:
    """Decoding of long recordings."""

    algorithm: str | None = flag(
        None,
        f"How to decode: {SEQUENTIAL}, {CHUNKED}, or both joined with '+'; default: {CHUNKED} with "
        f"--chunk_length_s, else {SEQUENTIAL}.",
    )
    chunk_length_s: float | None = flag(
        None, "Chunked: most seconds of a chunk; default: the model's window."
    )
    stride_length_s: float | None = flag(
        None,
        "Chunked: seconds; a chunk is cut at the quietest place in its last two strides; "
        "default: a sixth of a chunk.",
    )
    condition_on_prev_tokens: bool = flag(
        False, "Sequential: show the decoder what it wrote before in the recording."
    )

    def algorithms(self) -> list[str]:
        """Return the names of the algorithms to run."""
        if self.algorithm is None:
            return [SEQUENTIAL if self.chunk_length_s is None else CHUNKED]
        return self.algorithm.split("+")

    def settings(self, algorithm: str) -> dict[str, Any]:
        """Return the settings of an algorithm."""
        names = {
            SEQUENTIAL: ("condition_on_prev_tokens",),
            CHUNKED: ("chunk_length_s", "stride_length_s"),
        }
        return {name: getattr(self, name) for name in names[algorithm]}

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        asked = self.algorithms()
        unknown = [name for name in asked if name not in (SEQUENTIAL, CHUNKED)]
        problems = [
            f"--algorithm must be of {SEQUENTIAL}, {CHUNKED}; got {name!r}" for name in unknown
        ]
        if len(set(asked)) < len(asked):
            problems.append(f"--algorithm names one twice: {self.algorithm}")
        if self.chunk_length_s is not None and self.chunk_length_s <= 0:
            problems.append(f"--chunk_length_s must be > 0, got {self.chunk_length_s}")
        if CHUNKED not in asked:
            problems += [
                f"--{name} needs chunked decoding: give --chunk_length_s or --algorithm {CHUNKED}"
                for name in ("chunk_length_s", "stride_length_s")
                if getattr(self, name) is not None
            ]
        if SEQUENTIAL not in asked and self.condition_on_prev_tokens:
            problems.append(
                "--condition_on_prev_tokens belongs to sequential decoding: add --algorithm "
                f"{SEQUENTIAL}+{CHUNKED}, or leave it out"
            )
        return [*problems, *at_least(self, "stride_length_s", 0)]
