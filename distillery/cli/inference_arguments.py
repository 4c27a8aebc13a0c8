"""The groups of flags of inference."""

from dataclasses import dataclass

from distillery.cli.arguments import FolderArguments
from distillery.cli.flags import at_least, flag
from distillery.cli.long_form_arguments import LongFormArguments

# Names in `distillery.data.transcript_files`.
FORMATS = ("jsonl", "txt", "srt", "vtt")
TIMED_FORMATS = ("srt", "vtt")


@dataclass(frozen=True)
class InferenceArguments(FolderArguments):
    """Transcripts."""

    output_formats: str = flag(
        "jsonl",
        f"What is written, joined with ',': {', '.join(FORMATS)}. JSON lines of all recordings are "
        "written in any case; srt and vtt predict timestamps too.",
        "--output_format",
        resumable=True,
    )
    word_timestamps: bool = flag(False, "Find out when each word is said.")
    per_device_eval_batch_size: int = flag(
        16, "Windows that are decoded at once.", "-b", "--batch", resumable=True
    )
    generation_max_length: int = flag(
        225, "Most ids of the transcript of one window.", "--max_label_length"
    )
    retry_quarantined: bool = flag(
        False,
        "Go on though the data have changed: files that could not be used before, and have been "
        "mended or added since, are transcribed; all others stay.",
        resumable=True,
    )

    @property
    def formats(self) -> list[str]:
        """The names of the formats."""
        return self.output_formats.replace("+", ",").split(",")

    @property
    def needs_timestamps(self) -> bool:
        """Whether a format is of no use without timestamps."""
        return any(kind in TIMED_FORMATS for kind in self.formats)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        unknown = [kind for kind in self.formats if kind not in FORMATS]
        return [
            *super().problems(),
            *[
                f"--output_formats must be of {', '.join(FORMATS)}; got {kind!r}"
                for kind in unknown
            ],
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "generation_max_length", 8),
        ]


def check(long_args: LongFormArguments) -> list[str]:
    """Return a message if several algorithms are named: there is one transcript."""
    if len(long_args.algorithms()) == 1:
        return []
    return [f"--algorithm {long_args.algorithm}: choose one, a recording has one transcript"]
