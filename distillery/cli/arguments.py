"""The groups of flags that stages of every kind share.

How groups are declared and parsed is in `distillery.cli.flags`; groups of training and of
evaluation alone are in `training_arguments` and `evaluation_arguments`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.cli.flags import (
    DRY_RUN,
    VERIFY,
    at_least,
    flag,
    one_of,
    plus_list,
    required,
    same_length,
    within,
)
from distillery.data import schema
from distillery.data.schema import REFERENCE_NAMES
from distillery.data.specs import CUES, MODES, DatasetSpec, broadcast_specs
from distillery.storage.ledger import FEW_ROWS, USUAL_BAD_FRACTION
from distillery.text.tokens import TASKS, language_code
from distillery.whisper.compute import ATTENTIONS, AUTO, DTYPES, resolved_dtype

TRACKERS = ("wandb", "tensorboard", "trackio", "none")


@dataclass(frozen=True)
class FolderArguments:
    """Output folder."""

    output_dir: str = required("Folder to write to.", "-o", resumable=True)
    overwrite_output_dir: bool = flag(
        False,
        "Start over: throw away what an earlier run of this stage left in --output_dir. Leave it "
        "out to go on where a killed run stopped.",
        resumable=True,
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        path = self.output_dir and Path(self.output_dir)
        if path and path.exists() and not path.is_dir():
            return [f"--output_dir {self.output_dir} is a file: name a folder"]
        return []


@dataclass(frozen=True)
class OutputArguments(FolderArguments):
    """Output folder and upload."""

    push_to_hub: bool = flag(
        False,
        "Upload the result to the Hub, as a private repository; login and name are checked at the "
        "start. On a complete run it only uploads.",
        resumable=True,
    )
    hub_model_id: str | None = flag(
        None,
        "Hub repository for the result, such as 'my-org/my-name': given, it is uploaded there, "
        "with or without --push_to_hub; default: the name of the output folder.",
        "--hub_id",
        "--hub_dataset_id",
        resumable=True,
    )
    hub_public: bool = flag(False, "Make the uploaded repository public.", resumable=True)
    hub_private_repo: bool | None = flag(
        None,
        "Keep the uploaded repository private: so it is unless --hub_public is given.",
        "--private_dataset",
        resumable=True,
    )

    license: str | None = flag(
        None,
        "Licence of the result, for its card, as the Hub names it: apache-2.0.",
        resumable=True,
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [*super().problems(), *license_problems(self.license)]
        if self.hub_private_repo is False:
            problems.append(
                "--hub_private_repo (--private_dataset) False: to publish, give --hub_public"
            )
        if self.hub_private_repo and self.hub_public:
            problems.append("--hub_private_repo and --hub_public: give one of them")
        return problems


def license_problems(license: str | None) -> list[str]:
    """Return a message if the Hub would refuse a card for its licence, which has hours to come."""
    if license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        return []
    return [
        f"--license must be as the Hub names it: apache-2.0, mit, cc-by-4.0, …; got {license!r}"
    ]


@dataclass(frozen=True, kw_only=True)
class ReadingArguments:
    """Reading of speech."""

    audio_column_name: str = flag(
        schema.AUDIO, "Column with the audio or its path.", "--column-audio"
    )
    id_column_name: str | None = flag(
        None, "Column that is unique for each row; default: 'id', else the row number."
    )
    dataset_dir_suffix: str | None = flag(
        None, "Suffix of the data folder of a .py builder, such as '0_50'."
    )
    dataset_cache_dir: str | None = flag(
        None, "Folder for the datasets library's cache.", resumable=True
    )
    streaming: bool = flag(
        False, "Read rows as they come and keep no copy on disk; training then needs --max_steps."
    )
    segment: str = flag(
        CUES,
        "Cut long recordings: cues (of subtitles, where there are any), vad (where nobody speaks, "
        "too), none (whole, with the cues as their text and its times).",
    )
    segment_max_s: float = flag(
        30.0, "Longest clip that is cut, in seconds: no more than the model's window."
    )
    max_bad_fraction: float | None = flag(
        None,
        "Fail where more than this share of the clips cannot be decoded, or of the rows of a "
        f"manifest cannot be used; default: {USUAL_BAD_FRACTION:g}, or up to {FEW_ROWS} that are "
        "no more than a fifth of all.",
        resumable=True,
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *one_of(self, "segment", MODES),
            *at_least(self, "segment_max_s", 1),
            *within(self, "max_bad_fraction", 0, 1),
        ]

    def reading(self) -> dict[str, Any]:
        """Return the fields of a `DatasetSpec` that say how rows are read."""
        return {
            "audio_column": self.audio_column_name,
            "id_column": self.id_column_name,
            "data_dir_suffix": self.dataset_dir_suffix,
            "cache_dir": self.dataset_cache_dir,
            "streaming": self.streaming,
            "segment": self.segment,
            "segment_max_s": self.segment_max_s,
            "max_bad_fraction": self.max_bad_fraction,
        }


@dataclass(frozen=True, kw_only=True)
class DataArguments(ReadingArguments):
    """Datasets to read."""

    dataset_name: str = required(
        "Dataset: Hub id; folder in the Hub's layout or of save_to_disk; .jsonl/.json/.csv/.tsv "
        "manifest; audio file; folder or .tar/.tar.gz of audio, also as LibriSpeech and Common "
        "Voice have it; .py file with one builder. Several are joined with '+'.",
        "-d",
        "--dataset",
        is_input=True,
    )
    dataset_config_name: str | None = flag(
        None,
        "Configuration of each dataset, joined with '+'; of Common Voice's layout the language.",
        "--dataset-config",
    )
    dataset_split_name: str | None = flag(
        None,
        "Split or splits, joined with '+'; default: the only one, of Common Voice's layout "
        "'validated'.",
        "--dataset-split",
        "--split",
    )
    text_column_name: str | None = flag(
        None,
        "Column with the reference, joined with '+'; default: the first there is of "
        f"{', '.join(REFERENCE_NAMES)}.",
        "--column-text",
    )
    speaker_id_column_name: str | None = flag(
        None, "Column with the speaker; default: 'speaker_id' where there is one."
    )
    recording_id_column_name: str | None = flag(
        None, "Column with the recording; default: 'recording_id' where there is one."
    )
    max_samples: int | None = flag(
        None, "Read at most so many rows of each split.", "--max_samples_per_split"
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        names = ("dataset_name", "dataset_config_name", "dataset_split_name", "text_column_name")
        return [
            *at_least(self, "max_samples", 1),
            *super().problems(),
            *same_length(self, *names),
        ]

    def specs(self) -> list[DatasetSpec]:
        """Return the datasets that the flags name."""
        return broadcast_specs(
            {
                "name": plus_list(self.dataset_name),
                "config": plus_list(self.dataset_config_name),
                "split": plus_list(self.dataset_split_name),
                "text_column": plus_list(self.text_column_name),
            },
            speaker_id_column=self.speaker_id_column_name,
            recording_id_column=self.recording_id_column_name,
            max_rows=self.max_samples,
            **self.reading(),
        )


@dataclass(frozen=True)
class ModelArguments:
    """Model."""

    model_name_or_path: str = required(
        "Whisper checkpoint: Hub id or folder.", "-m", "--model", is_input=True
    )
    model_revision: str | None = flag(None, "Branch, tag or commit of the model on the Hub.")
    cache_dir: str | None = flag(None, "Folder for files fetched from the Hub.", resumable=True)
    dtype: str = flag(
        AUTO,
        f"Dtype to compute in: {', '.join(DTYPES)}; `{AUTO}` is what `accelerate launch "
        "--mixed_precision` says, else bfloat16 where the GPU has it, else float32.",
    )
    attn_type: str = flag(
        "sdpa",
        f"Attention implementation: {', '.join(ATTENTIONS)}.",
        "-a",
        "--attn",
        "--attn_implementation",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *one_of(self, "dtype", (AUTO, *DTYPES)),
            *one_of(self, "attn_type", ATTENTIONS),
        ]

    @property
    def compute_dtype(self) -> str:
        """The dtype to compute in, here and now."""
        return resolved_dtype(self.dtype)


@dataclass(frozen=True)
class DecodingArguments:
    """Decoding."""

    language: str | None = flag(
        None, "Language spoken, as a code or an English name; none for an .en model.", "-l"
    )
    task: str = flag("transcribe", f"What to write: {' or '.join(TASKS)}.", "-t")
    return_timestamps: bool = flag(False, "Predict timestamps too.")
    generation_num_beams: int = flag(1, "Beams of the search; 1 is greedy.", "--num_beams")
    temperature_fallback: bool = flag(
        False,
        "Decode a window again where its transcript repeats itself or is improbable, by drawing at "
        "temperatures from 0.2 to 1, with Whisper's thresholds; of silence, no text is kept. What "
        "is drawn depends on the row alone.",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [*self.prompt_problems(), *at_least(self, "generation_num_beams", 1)]

    def prompt_problems(self) -> list[str]:
        """Return what is wrong with language and task."""
        return [
            *(one_value(self, "language") or known_language(self.language)),
            *(one_value(self, "task") or one_of(self, "task", TASKS)),
        ]


@dataclass(frozen=True)
class RunArguments:
    """Processes, logs and trackers."""

    seed: int = flag(42, "Seed of everything that is drawn.")
    logging_steps: int = flag(50, "Log after so many batches or updates.", resumable=True)
    dataloader_num_workers: int = flag(
        0, "Processes that decode audio for each launched process.", resumable=True
    )
    preprocessing_num_workers: int = flag(
        1,
        "Processes for work that needs no model; labelling decodes audio in them where "
        "--dataloader_num_workers is not given.",
        resumable=True,
    )
    report_to: str | None = flag(
        None, f"Trackers, joined with '+': {', '.join(TRACKERS)}; default: none.", resumable=True
    )
    wandb_project: str | None = flag(
        None,
        "Project name for the trackers; alone it does not switch wandb on.",
        "--project_name",
        resumable=True,
    )
    ddp_timeout: int = flag(
        7200, "Seconds after which a process gives up waiting for another.", resumable=True
    )
    verify: bool = flag(False, VERIFY, resumable=True)
    dry_run: bool = flag(False, DRY_RUN, resumable=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "seed", 0),
            *at_least(self, "logging_steps", 1),
            *at_least(self, "dataloader_num_workers", 0),
            *at_least(self, "preprocessing_num_workers", 1),
            *at_least(self, "ddp_timeout", 1),
            *_tracker_problems(self.report_to),
        ]


def _tracker_problems(report_to: str | None) -> list[str]:
    unknown = [name for name in plus_list(report_to) if name not in TRACKERS]
    return [f"--report_to must be of {', '.join(TRACKERS)}; got {name!r}" for name in unknown]


def one_value(group: Any, name: str) -> list[str]:
    """Return a message if a flag has several values, as in kotoba-whisper's bilingual scripts."""
    value = getattr(group, name)
    if "," not in (value or ""):
        return []
    return [f"--{name} takes one value, got {value!r}: run the stage once for each"]


def known_language(language: str | None, name: str = "language") -> list[str]:
    """Return a message if Whisper does not know the language that a flag names."""
    if language is None:
        return []
    try:
        language_code(language)
    except ValueError as error:
        return [f"--{name}: {error}"]
    return []
