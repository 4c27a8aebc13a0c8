"""The groups of flags that stages share.

How groups are declared, parsed and saved is in `distillery.cli.flags`; a stage imports both from
here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.cli.flags import (
    DRY_RUN,
    at_least,
    flag,
    flags_of,
    one_of,
    parse,
    plus_list,
    required,
    same_length,
    within,
)
from distillery.data import schema
from distillery.data.schema import REFERENCE_NAMES
from distillery.data.specs import CUES, MODES, DatasetSpec, broadcast_specs
from distillery.text.tokens import TASKS, language_code
from distillery.whisper.compute import ATTENTIONS, DTYPES
from distillery.whisper.pipelines.punctuation import DEFAULT_MODEL, RULES

__all__ = [
    "DRY_RUN",
    "DataArguments",
    "DecodingArguments",
    "ModelArguments",
    "OutputArguments",
    "PostprocessingArguments",
    "RunArguments",
    "TrainDataArguments",
    "TrainingArguments",
    "at_least",
    "flag",
    "flags_of",
    "known_language",
    "one_of",
    "parse",
    "plus_list",
    "required",
    "same_length",
    "within",
]

TRACKERS = ("wandb", "tensorboard", "trackio", "none")


@dataclass(frozen=True)
class OutputArguments:
    """Where a stage writes, and what it does with what is there."""

    output_dir: str = required("Folder to write to.", "-o", resumable=True)
    overwrite_output_dir: bool = flag(
        False,
        "Start over: throw away what an earlier run of this stage left in --output_dir. Leave it "
        "out to go on where a killed run stopped.",
        resumable=True,
    )
    push_to_hub: bool = flag(
        False, "Upload the result to the Hub, as a private repository.", resumable=True
    )
    hub_model_id: str | None = flag(
        None,
        "Hub repository for the result, such as 'my-org/my-name'; default: the name of the output "
        "folder.",
        "--hub_id",
        "--hub_dataset_id",
        resumable=True,
    )
    hub_public: bool = flag(False, "Make the uploaded repository public.", resumable=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        path = self.output_dir and Path(self.output_dir)
        if path and path.exists() and not path.is_dir():
            return [f"--output_dir {self.output_dir} is a file: name a folder"]
        return []


@dataclass(frozen=True)
class DataArguments:
    """One or several datasets to read, joined with `+`."""

    dataset_name: str = required(
        "Dataset: Hub id; folder in the Hub's layout or of save_to_disk; .jsonl/.json/.csv/.tsv "
        "manifest; audio file; folder or .tar/.tar.gz of audio, also as LibriSpeech and Common "
        "Voice have it; .py file with one builder. Several are joined with '+'.",
        "-d",
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
    )
    audio_column_name: str = flag(
        schema.AUDIO, "Column with the audio or its path.", "--column-audio"
    )
    text_column_name: str | None = flag(
        None,
        "Column with the reference, joined with '+'; default: the first there is of "
        f"{', '.join(REFERENCE_NAMES)}.",
        "--column-text",
    )
    id_column_name: str | None = flag(
        None, "Column that is unique for each row; default: 'id', else the row number."
    )
    speaker_id_column_name: str | None = flag(
        None, "Column with the speaker; default: 'speaker_id' where there is one."
    )
    recording_id_column_name: str | None = flag(
        None, "Column with the recording; default: 'recording_id' where there is one."
    )
    dataset_dir_suffix: str | None = flag(
        None, "Suffix of the data folder of a .py builder, such as '0_50'."
    )
    dataset_cache_dir: str | None = flag(
        None, "Folder for the datasets library's cache.", resumable=True
    )
    streaming: bool = flag(False, "Read rows as they come and keep no copy on disk.")
    max_samples: int | None = flag(
        None, "Read at most so many rows of each split.", "--max_samples_per_split"
    )
    segment: str = flag(
        CUES,
        "Cut long recordings: cues (of subtitles, where there are any), vad (where nobody speaks, "
        "too), none.",
    )
    segment_max_s: float = flag(
        30.0, "Longest clip that is cut, in seconds: no more than the model's window."
    )
    max_bad_fraction: float = flag(
        0.001, "Fail where more than this share of the clips cannot be decoded.", resumable=True
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "max_samples", 1),
            *within(self, "max_bad_fraction", 0, 1),
            *one_of(self, "segment", MODES),
            *at_least(self, "segment_max_s", 1),
            *same_length(
                self,
                "dataset_name",
                "dataset_config_name",
                "dataset_split_name",
                "text_column_name",
            ),
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
            audio_column=self.audio_column_name,
            id_column=self.id_column_name,
            speaker_id_column=self.speaker_id_column_name,
            recording_id_column=self.recording_id_column_name,
            data_dir_suffix=self.dataset_dir_suffix,
            streaming=self.streaming,
            cache_dir=self.dataset_cache_dir,
            max_rows=self.max_samples,
            segment=self.segment,
            segment_max_s=self.segment_max_s,
        )


@dataclass(frozen=True)
class ModelArguments:
    """The model to run."""

    model_name_or_path: str = required("Whisper checkpoint: Hub id or folder.", "-m")
    model_revision: str | None = flag(None, "Branch, tag or commit of the model on the Hub.")
    cache_dir: str | None = flag(None, "Folder for files fetched from the Hub.", resumable=True)
    dtype: str = flag("float32", f"Number type to compute in: {', '.join(DTYPES)}.")
    attn_type: str = flag(
        "sdpa",
        f"Attention implementation: {', '.join(ATTENTIONS)}.",
        "-a",
        "--attn",
        "--attn_implementation",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [*one_of(self, "dtype", DTYPES), *one_of(self, "attn_type", ATTENTIONS)]


@dataclass(frozen=True)
class DecodingArguments:
    """How transcripts are decoded."""

    language: str | None = flag(
        None, "Language spoken, as a code or an English name; none for an .en model.", "-l"
    )
    task: str = flag("transcribe", f"What to write: {' or '.join(TASKS)}.", "-t")
    return_timestamps: bool = flag(False, "Predict timestamps too.")
    generation_num_beams: int = flag(1, "Beams of the search; 1 is greedy.", "--num_beams")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *known_language(self.language),
            *one_of(self, "task", TASKS),
            *at_least(self, "generation_num_beams", 1),
        ]


@dataclass(frozen=True)
class PostprocessingArguments:
    """What is done to transcripts after decoding, as kotoba-whisper v1.1 and v2.1 do."""

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

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        # The checks see the flags of all groups.
        if self.stable_ts and getattr(self, "predictions_file", None) is not None:
            return ["--stable_ts needs the sound: leave it out with --predictions_file"]
        return []

    def identity(self) -> dict[str, Any]:
        """Return what the row of an evaluation says of it, in the words of the seeds' tables."""
        steps = {"punctuator": self.punctuator, "stable-ts": self.stable_ts}
        return {
            "postprocessing": [step for step, asked in steps.items() if asked],
            "punctuator": self.punctuator,
        }


@dataclass(frozen=True)
class TrainDataArguments:
    """What is trained and evaluated on."""

    train_dataset_name: str = required("Datasets to train on, joined with '+'.", "-d")
    train_dataset_config_name: str | None = flag(None, "Configuration of each, joined with '+'.")
    train_split_name: str | None = flag(None, "Split of each, joined with '+'.")
    text_column_name: str | None = flag(None, "Column with the reference of each, joined with '+'.")
    train_dataset_samples: str | None = flag(
        None, "Weight of each in the mix, joined with '+', such as hours; default: its size."
    )
    eval_dataset_name: str | None = flag(None, "Datasets to evaluate on, joined with '+'.")
    eval_dataset_config_name: str | None = flag(None, "Configuration of each, joined with '+'.")
    eval_split_name: str | None = flag(None, "Split of each, joined with '+'.")
    eval_text_column_name: str | None = flag(
        None, "Column with the reference of each, joined with '+'."
    )
    audio_column_name: str = flag(schema.AUDIO, "Column with the audio or its path.")
    id_column_name: str | None = flag(None, "Column that is unique for each row.")
    dataset_dir_suffix: str | None = flag(None, "Suffix of the data folder of a .py builder.")
    dataset_cache_dir: str | None = flag(
        None, "Folder for the datasets library's cache.", resumable=True
    )
    streaming: bool = flag(False, "Read rows as they come; needs --max_steps.")
    max_train_samples: int | None = flag(None, "Train on at most so many rows of each dataset.")
    max_eval_samples: int | None = flag(None, "Evaluate on at most so many rows of each dataset.")
    segment: str = flag(
        CUES,
        "Cut long recordings: cues (of subtitles, where there are any), vad (where nobody speaks, "
        "too), none.",
    )
    segment_max_s: float = flag(
        30.0, "Longest clip that is cut, in seconds: no more than the model's window."
    )
    max_bad_fraction: float = flag(
        0.001, "Fail where more than this share of the clips cannot be decoded.", resumable=True
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        names = ["train_dataset_name", "train_dataset_config_name", "train_split_name"]
        evals = ["eval_dataset_name", "eval_dataset_config_name", "eval_split_name"]
        return [
            *same_length(self, *names, "text_column_name", "train_dataset_samples"),
            *same_length(self, *evals, "eval_text_column_name"),
            *_weights_problems(self.train_dataset_samples),
            *at_least(self, "max_train_samples", 1),
            *at_least(self, "max_eval_samples", 1),
            *within(self, "max_bad_fraction", 0, 1),
            *one_of(self, "segment", MODES),
            *at_least(self, "segment_max_s", 1),
        ]

    def train_specs(self) -> list[DatasetSpec]:
        """Return the datasets to train on."""
        return broadcast_specs(
            {
                "name": plus_list(self.train_dataset_name),
                "config": plus_list(self.train_dataset_config_name),
                "split": plus_list(self.train_split_name),
                "text_column": plus_list(self.text_column_name),
                "samples": [float(x) for x in plus_list(self.train_dataset_samples)],
            },
            max_rows=self.max_train_samples,
            **self._shared(),
        )

    def eval_specs(self) -> list[DatasetSpec]:
        """Return the datasets to evaluate on; none if none is named."""
        if self.eval_dataset_name is None:
            return []
        return broadcast_specs(
            {
                "name": plus_list(self.eval_dataset_name),
                "config": plus_list(self.eval_dataset_config_name),
                "split": plus_list(self.eval_split_name),
                "text_column": plus_list(self.eval_text_column_name),
            },
            max_rows=self.max_eval_samples,
            **self._shared(),
        )

    def _shared(self) -> dict[str, Any]:
        return {
            "audio_column": self.audio_column_name,
            "id_column": self.id_column_name,
            "data_dir_suffix": self.dataset_dir_suffix,
            "streaming": self.streaming,
            "cache_dir": self.dataset_cache_dir,
            "segment": self.segment,
            "segment_max_s": self.segment_max_s,
        }


def _weights_problems(samples: str | None) -> list[str]:
    try:
        wrong = [x for x in plus_list(samples) if not float(x) > 0]
    except ValueError:
        wrong = [str(samples)]
    return [f"--train_dataset_samples must be numbers above 0, got {x}" for x in wrong]


@dataclass(frozen=True)
class TrainingArguments:
    """How weights are updated, and when the run logs, saves and evaluates."""

    do_train: bool = flag(True, "Train; else only evaluate.")
    do_eval: bool = flag(False, "Evaluate at the end, and every --eval_steps.")
    per_device_train_batch_size: int = flag(
        16, "Rows of a micro-batch of one process.", resumable=True
    )
    per_device_eval_batch_size: int = flag(
        16, "Rows evaluated at once by one process.", resumable=True
    )
    gradient_accumulation_steps: int = flag(
        1, "Micro-batches added up for one update.", resumable=True
    )
    max_steps: int = flag(-1, "Updates to make; -1: as --num_train_epochs says.")
    num_train_epochs: float = flag(3.0, "Times that every row is seen.")
    learning_rate: float = flag(1e-4, "Highest learning rate.")
    warmup_steps: int = flag(0, "Updates over which the learning rate rises from 0.")
    lr_scheduler_type: str = flag(
        "linear", "Schedule, as transformers names it: linear, constant_with_warmup, cosine, …"
    )
    weight_decay: float = flag(0.0, "AdamW's weight decay of matrices.")
    adam_beta1: float = flag(0.9, "AdamW's first decay rate.")
    adam_beta2: float = flag(0.999, "AdamW's second decay rate.")
    max_grad_norm: float = flag(1.0, "Gradients are scaled down to this norm.")
    save_steps: int = flag(500, "Save a checkpoint after so many updates.", resumable=True)
    save_total_limit: int | None = flag(
        None, "Keep so many checkpoints; default: all.", resumable=True
    )
    eval_steps: int | None = flag(None, "Evaluate after so many updates; default: at the end.")
    predict_with_generate: bool = flag(False, "Transcribe the evaluation rows too, and score them.")
    metric_for_best_model: str | None = flag(
        None,
        "Lowest value of what is kept in best/: loss, wer or cer; default: cer with "
        "--predict_with_generate, else loss.",
    )
    gradient_checkpointing: bool = flag(False, "Compute activations twice to save memory.")
    freeze_encoder: bool = flag(False, "Do not train the encoder.")
    max_label_length: int = flag(448, "Leave out rows with more label ids than this.")
    generation_max_length: int = flag(225, "Most ids of a transcript while evaluating.")
    timestamp_probability: float = flag(
        0.2, "Share of rows with timestamps that keep them, where labels are built here."
    )
    condition_on_prev_probability: float = flag(
        0.2, "Share of rows that see the window before them, where labels are built here."
    )
    wer_threshold: float | None = flag(
        None, "Leave out pseudo-labelled rows with a higher word error rate, in percent."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        positive = [
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_steps",
            "save_total_limit",
            "eval_steps",
        ]
        found = [problem for name in positive for problem in at_least(self, name, 1)]
        if self.max_steps == 0 or self.max_steps < -1:
            found.append(f"--max_steps must be >= 1, or -1 for epochs; got {self.max_steps}")
        metric = self.metric_for_best_model
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            found.append(f"--num_train_epochs must be > 0, got {self.num_train_epochs}")
        if metric in ("wer", "cer") and not self.predict_with_generate:
            found.append(f"--metric_for_best_model {metric} needs --predict_with_generate")
        if self.metric_for_best_model is not None:
            found += one_of(self, "metric_for_best_model", ("loss", "wer", "cer"))
        return [
            *found,
            *at_least(self, "learning_rate", 0),
            *at_least(self, "warmup_steps", 0),
            *at_least(self, "max_label_length", 8),
            *at_least(self, "generation_max_length", 8),
            *at_least(self, "wer_threshold", 0),
            *within(self, "timestamp_probability", 0, 1),
            *within(self, "condition_on_prev_probability", 0, 1),
        ]


@dataclass(frozen=True)
class RunArguments:
    """How a stage runs and reports."""

    seed: int = flag(42, "Seed of everything that is drawn.")
    logging_steps: int = flag(50, "Log after so many batches or updates.", resumable=True)
    dataloader_num_workers: int = flag(
        0, "Processes that decode audio for each launched process.", resumable=True
    )
    preprocessing_num_workers: int = flag(
        1, "Processes for work that needs no model.", resumable=True
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


def known_language(language: str | None) -> list[str]:
    """Return a message if Whisper does not know the language."""
    if language is None:
        return []
    try:
        language_code(language)
    except ValueError as error:
        return [f"--language: {error}"]
    return []
