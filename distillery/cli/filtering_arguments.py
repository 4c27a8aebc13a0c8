"""The groups of flags of filtering."""

from dataclasses import dataclass

from distillery.cli.arguments import OutputArguments, known_language
from distillery.cli.flags import at_least, flag, one_of, within
from distillery.text.normalizers import FILTER_VARIANTS
from distillery.text.tokens import TASKS


@dataclass(frozen=True)
class FilterOutputArguments(OutputArguments):
    """Output folder and upload."""

    output_dir: str | None = flag(  # type: ignore[assignment]  # here it has a default
        None,
        "Folder to write to; default: the dataset's name, then '.wer_<threshold>', "
        "'.cer_<threshold>' and '.vectorized' as they apply.",
        "-o",
        resumable=True,
    )


@dataclass(frozen=True)
class FilterArguments:
    """Filter limits and labels."""

    wer_threshold: float | None = flag(
        None, "Drop rows whose word error rate against the reference is higher, in percent."
    )
    cer_threshold: float | None = flag(
        None, "Drop rows whose character error rate against the reference is higher, in percent."
    )
    normalizer: str = flag(
        "auto",
        f"How texts are normalised before they are compared: {', '.join(FILTER_VARIANTS)}; "
        "kotoba, for kotoba-whisper's filter, leaves spaces in scripts that are written without.",
    )
    min_duration_in_seconds: float | None = flag(None, "Drop shorter clips.")
    max_duration_in_seconds: float | None = flag(None, "Drop longer clips.")
    strict_limits: bool = flag(
        False,
        "Read error rates and durations as distil-whisper and kotoba-whisper do: what is just at a "
        "limit is dropped, too, and so is silence that is labelled as silence.",
    )
    max_label_length: int = flag(
        448,
        "Drop rows with more label ids than this, prefix and end included; a prompt is shortened "
        "to fit.",
    )
    min_avg_logprob: float | None = flag(
        None, "Drop rows that the teacher was less sure of; for data without references."
    )
    max_compression_ratio: float | None = flag(
        None, "Drop rows whose transcript repeats itself more; Whisper takes 2.4 for a loop."
    )
    keep_truncated: bool = flag(False, "Keep transcripts that ran into their maximum length.")
    drop_all_capitals: bool = flag(
        False, "Drop transcripts whose letters are all capitals: a fault of whisper-large-v3."
    )
    keep_rejected: bool = flag(
        False, "Write the rows that are dropped, too, with the reason, as a dataset 'rejected'."
    )
    timestamp_probability: float = flag(
        0.2, "Share of the rows whose labels keep the timestamps that the teacher wrote."
    )
    condition_on_prev_probability: float = flag(
        0.2, "Share of the rows with a window before them whose labels begin with its transcript."
    )
    vectorize: bool = flag(
        False,
        "Store log-mel features (float16, of the real audio) instead of audio: 16 kB for a second "
        "with 80 mel bins, 26 kB with 128, about what FLAC takes; read 14 times sooner in training "
        "(0.3 against 3.8 ms for a clip of 6 s).",
    )
    model_name_or_path: str | None = flag(
        None,
        "Checkpoint whose tokenizer and features are used; default: the one that labelled the "
        "dataset, by its run.json, else openai/whisper-large-v3.",
        "-m",
        "--model",
        is_input=True,
    )
    language: str | None = flag(None, "Language; default: as the dataset was labelled.", "-l")
    task: str | None = flag(
        None, f"Task, {' or '.join(TASKS)}; default: as the dataset was labelled.", "-t"
    )
    rows_per_shard: int = flag(1000, "Rows of the input that make one file of the output.")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "wer_threshold", 0),
            *at_least(self, "cer_threshold", 0),
            *one_of(self, "normalizer", FILTER_VARIANTS),
            *at_least(self, "min_duration_in_seconds", 0),
            *at_least(self, "max_duration_in_seconds", self.min_duration_in_seconds or 0),
            *at_least(self, "max_label_length", 8),
            *within(self, "timestamp_probability", 0, 1),
            *within(self, "condition_on_prev_probability", 0, 1),
            *known_language(self.language),
            *([] if self.task is None else one_of(self, "task", TASKS)),
            *at_least(self, "rows_per_shard", 1),
        ]
