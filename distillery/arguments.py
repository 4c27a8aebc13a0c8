"""Command lines: the groups of flags that stages share, and how they are parsed.

A stage's flags are small frozen dataclasses. A group may have a method `problems()` that returns
one message per wrong value; all messages of all groups are shown together, before anything loads.
"""

import difflib
import json
import sys
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from distillery import schema
from distillery.data import DatasetSpec, broadcast_specs
from distillery.schema import REFERENCE_NAMES
from distillery.segmentation import CUES, MODES
from distillery.tokens import TASKS, language_code
from distillery.whisper import ATTENTIONS, DTYPES

TRACKERS = ("wandb", "tensorboard", "trackio", "none")


def flag(default: Any, help: str, *aliases: str) -> Any:
    """Return a dataclass field for a flag with a default, a help text and other spellings."""
    return field(default=default, metadata={"help": help, "aliases": list(aliases)})


def required(help: str, *aliases: str) -> Any:
    """Return a dataclass field for a flag that must be given."""
    return field(metadata={"help": help, "aliases": list(aliases)})


@dataclass(frozen=True)
class OutputArguments:
    """Where a stage writes, and what it does with what is there."""

    output_dir: str = required("Folder to write to.", "-o")
    overwrite_output_dir: bool = flag(
        False,
        "Start over: throw away what an earlier run of this stage left in --output_dir. Leave it "
        "out to go on where a killed run stopped.",
    )
    push_to_hub: bool = flag(False, "Upload the result to the Hub, as a private repository.")
    hub_model_id: str | None = flag(
        None,
        "Hub repository for the result, such as 'my-org/my-name'; default: the name of the output "
        "folder.",
        "--hub_id",
        "--hub_dataset_id",
    )
    hub_public: bool = flag(False, "Make the uploaded repository public.")

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
    dataset_cache_dir: str | None = flag(None, "Folder for the datasets library's cache.")
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
        0.001, "Fail where more than this share of the clips cannot be decoded."
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
    cache_dir: str | None = flag(None, "Folder for files fetched from the Hub.")
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
    dataset_cache_dir: str | None = flag(None, "Folder for the datasets library's cache.")
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
        0.001, "Fail where more than this share of the clips cannot be decoded."
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
    per_device_train_batch_size: int = flag(16, "Rows of a micro-batch of one process.")
    per_device_eval_batch_size: int = flag(16, "Rows evaluated at once by one process.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches added up for one update.")
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
    save_steps: int = flag(500, "Save a checkpoint after so many updates.")
    save_total_limit: int | None = flag(None, "Keep so many checkpoints; default: all.")
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
    logging_steps: int = flag(50, "Log after so many batches or updates.")
    dataloader_num_workers: int = flag(0, "Processes that decode audio for each launched process.")
    preprocessing_num_workers: int = flag(1, "Processes for work that needs no model.")
    report_to: str | None = flag(
        None, f"Trackers, joined with '+': {', '.join(TRACKERS)}; default: none."
    )
    wandb_project: str | None = flag(
        None, "Project name for the trackers; alone it does not switch wandb on.", "--project_name"
    )
    ddp_timeout: int = flag(7200, "Seconds after which a process gives up waiting for another.")

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


def at_least(group: Any, name: str, least: float) -> list[str]:
    """Return a message if a number is smaller than it may be; None passes."""
    value = getattr(group, name)
    if value is None or value >= least:
        return []
    return [f"--{name} must be >= {least:g}, got {value}"]


def within(group: Any, name: str, least: float, most: float) -> list[str]:
    """Return a message if a number is outside its bounds; None passes."""
    value = getattr(group, name)
    if value is None or least <= value <= most:
        return []
    return [f"--{name} must be between {least:g} and {most:g}, got {value}"]


def one_of(group: Any, name: str, choices: Sequence[str] | dict[str, Any]) -> list[str]:
    """Return a message if a value is none of the choices."""
    value = getattr(group, name)
    if value in choices:
        return []
    return [f"--{name} must be one of {', '.join(choices)}; got {value!r}"]


def same_length(group: Any, *names: str) -> list[str]:
    """Return a message unless all values joined with `+` are as many as the longest, or one."""
    counts = {name: len(plus_list(getattr(group, name))) for name in names}
    most = max(counts.values())
    return [
        f"--{name} names {count}, but there are {most} datasets: join {most} with '+', or give one"
        for name, count in counts.items()
        if count not in (0, 1, most)
    ]


def known_language(language: str | None) -> list[str]:
    """Return a message if Whisper does not know the language."""
    if language is None:
        return []
    try:
        language_code(language)
    except ValueError as error:
        return [f"--language: {error}"]
    return []


def plus_list(value: str | None) -> list[str]:
    """Split a value that joins several with `+`; a path that exists as it stands is one value."""
    if not value:
        return []
    return [value] if Path(value).exists() else value.split("+")


def parse(
    groups: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Parse a command line into one instance of each group, or say all that is wrong and exit.

    `stage.py config.yaml --flag value …` reads the file first (JSON or YAML; keys are the flags'
    names) and lets flags override it.

    Args:
        groups: dataclasses; their fields are the flags.
        argv: the arguments; default: those of this program.
        description: shown by `--help`; a stage passes its docstring.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _StageParser(groups, description=description)
    if words and Path(words[0]).suffix in (".json", ".yaml", ".yml"):
        parser.read_file(Path(words.pop(0)))
    namespace, unknown = parser.parse_known_args(words)
    values = vars(namespace)
    parser.note_unknown([word for word in unknown if word.startswith("-")] or unknown)
    parser.note_missing(values)
    for group in groups:
        # The checks only read attributes, so they run before there is an instance of the group,
        # and a wrong value is reported together with an unknown flag.
        parser.faults += group.problems(namespace) if hasattr(group, "problems") else []
    parser.exit_on_problems()
    return tuple(g(**{f.name: values[f.name] for f in fields(g)}) for g in groups)


def flags_of(*groups: Any) -> dict[str, Any]:
    """Return the flags of parsed groups and their values, for a run's record."""
    return {name: value for group in groups for name, value in asdict(group).items()}


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the commands in a stage's docstring in one piece."""


class _StageParser(HfArgumentParser):
    """A parser that collects everything that is wrong instead of stopping at the first thing."""

    def __init__(self, groups: Sequence[type], description: str | None) -> None:
        super().__init__(
            groups,
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.faults: list[str] = []
        # argparse stops at a missing flag before it has seen the others; we look ourselves.
        self._required = [action for action in self._actions if action.required]
        for action in self._required:
            action.required = False

    def read_file(self, path: Path) -> None:
        """Take defaults from a configuration file."""
        try:
            text = path.read_text(encoding="utf-8")
            config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.faults.append(f"{path}: cannot be read as a configuration: {error}")
            return
        if not isinstance(config, dict):
            self.faults.append(f"{path}: must hold one mapping from flag names to values")
            return
        # `--no_x` has the name of `--x`; the first of the two gives the default.
        by_name = {action.dest: action for action in reversed(self._actions)}
        for key, value in config.items():
            if isinstance(value, list | dict):
                self.faults.append(f"{path}: {key} must be one value, got {value!r}")
            elif key in by_name:
                if value is not None:
                    by_name[key].default = self._get_value(by_name[key], str(value))
            else:
                self.faults.append(f"{path}: unknown key {key!r}{_nearest(key, list(by_name))}")

    def note_unknown(self, words: Sequence[str]) -> None:
        """Report flags that no group has."""
        spellings = [s for action in self._actions for s in action.option_strings]
        for word in words:
            name = word.split("=")[0]
            self.faults.append(f"unknown flag {name}{_nearest(name, spellings)}")

    def note_missing(self, values: dict[str, Any]) -> None:
        """Report required flags that neither the command line nor the file gave."""
        for action in self._required:
            if values[action.dest] is None:
                self.faults.append(f"--{action.dest} is required")

    def exit_on_problems(self) -> None:
        """End the program, showing everything that was found wrong."""
        if self.faults:
            lines = "\n".join(f"  {fault}" for fault in self.faults)
            self.exit(2, f"{self.prog}: wrong arguments (--help explains them all):\n{lines}\n")

    def error(self, message: str) -> NoReturn:
        """Add argparse's own complaint to the others and end the program."""
        self.faults.append(message)
        self.exit_on_problems()
        raise SystemExit(2)

    def _get_value(self, action: Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)  # type: ignore[misc]
        except ArgumentError as error:
            self.faults.append(str(error).removeprefix("argument "))
            return action.default


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
