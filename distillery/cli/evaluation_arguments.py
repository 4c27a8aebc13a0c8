"""The groups of flags of the stages that evaluate."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.cli.arguments import DataArguments, DecodingArguments, ModelArguments
from distillery.cli.flags import at_least, flag, one_of
from distillery.text.normalizers import JAPANESE_WORDS_HINT, VARIANTS, WORD_PACKAGES
from distillery.whisper.pipelines.punctuation import DEFAULT_MODEL, RULES


@dataclass(frozen=True)
class NamedModelArguments(ModelArguments):
    """Model, or the names of those that were run elsewhere."""

    model_name_or_path: str | None = flag(  # type: ignore[assignment]  # required elsewhere
        None,
        "Whisper checkpoint: Hub id or folder; with --predictions_file only a name. Needed unless "
        "results that are there are only shown.",
        "-m",
        "--model",
        is_input=True,
    )


@dataclass(frozen=True, kw_only=True)
class NamedDataArguments(DataArguments):
    """Datasets to read, or the names of those that were read elsewhere."""

    dataset_name: str | None = flag(  # type: ignore[assignment]  # required elsewhere
        None,
        "Datasets, joined with '+' (see run_pseudo_labelling.py); with --predictions_file only "
        "names. Needed unless results that are there are only shown.",
        "-d",
        "--dataset",
        is_input=True,
    )


@dataclass(frozen=True)
class ScoringArguments:
    """Scoring and results."""

    output_dir: str = flag("eval", "Folder for metrics and predictions.", "-o", resumable=True)
    normalizer: str = flag(
        "auto", f"How texts are normalised before they are scored: {', '.join(VARIANTS)}."
    )
    html: str | None = flag(
        None,
        "File for a page about all results in --output_dir, such as 'report.html': tables, bars, "
        "the worst utterances aligned and, where the audio is in local files, heard.",
    )
    japanese_words: bool = flag(
        False, "Also give the error rate over words as MeCab cuts Japanese text (needs fugashi)."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        missing = self.japanese_words and not all(map(importlib.util.find_spec, WORD_PACKAGES))
        is_folder = self.html is not None and Path(self.html).is_dir()
        return [
            *([f"--html {self.html} is a folder: name a file"] if is_folder else []),
            *([f"--japanese_words: {JAPANESE_WORDS_HINT}"] if missing else []),
            *one_of(self, "normalizer", VARIANTS),
        ]


@dataclass(frozen=True)
class EvaluationArguments(ScoringArguments):
    """Batches, scoring and results."""

    per_device_eval_batch_size: int = flag(
        16, "Windows that are decoded at once.", "-b", "--batch", resumable=True
    )
    generation_max_length: int = flag(
        225, "Most ids of the transcript of one window.", "--max_label_length"
    )
    assistant_model: str | None = flag(
        None,
        "Model that drafts for the main model (speculative decoding): Hub id or folder with the "
        "same vocabulary and features, such as a student of the main model. Transcripts are those "
        "of greedy search without it; windows are decoded one by one, whatever --batch says. "
        "Baselines decode without it, and so do windows with a prompt or a temperature.",
        is_input=True,
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *super().problems(),
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "generation_max_length", 8),
        ]


def draft_problems(
    evaluation_args: EvaluationArguments, decoding_args: DecodingArguments
) -> list[str]:
    """Return a message if a model is to draft for a search with beams."""
    if evaluation_args.assistant_model is None or decoding_args.generation_num_beams <= 1:
        return []
    return ["--assistant_model: for greedy search; leave out --num_beams"]


@dataclass(frozen=True)
class PostprocessingArguments:
    """Postprocessing of transcripts, as kotoba-whisper v1.1 and v2.1 have it."""

    punctuator: str | None = field(
        default=None,
        metadata={
            "help": f"Add punctuation: {RULES!r} for Japanese sentence ends by rule, or Hub id or "
            f"folder of a model of the package punctuators; without a value {DEFAULT_MODEL}.",
            "aliases": ["-p"],
            "nargs": "?",
            "const": DEFAULT_MODEL,
        },
    )
    stable_ts: bool = flag(
        False, "Move timestamps out of silence by stable-ts; predicts timestamps too.", "-s"
    )

    def identity(self) -> dict[str, Any]:
        """Return what the row of an evaluation says of it, in the words of the seeds' tables."""
        steps = {"punctuator": self.punctuator, "stable-ts": self.stable_ts}
        return {
            "postprocessing": [step for step, asked in steps.items() if asked],
            "punctuator": self.punctuator,
        }
