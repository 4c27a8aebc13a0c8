"""The groups of flags of the two stages that train."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from distillery.cli.arguments import (
    ModelArguments,
    OutputArguments,
    ReadingArguments,
    RunArguments,
)
from distillery.cli.device_arguments import DeviceArguments
from distillery.cli.example_arguments import ExampleArguments
from distillery.cli.flags import (
    at_least,
    flag,
    one_of,
    plus_list,
    required,
    same_length,
    uneven,
    within,
)
from distillery.cli.prompt_arguments import PromptArguments
from distillery.cli.trainer_arguments import TrainerArguments, dtype_problems, with_dtype
from distillery.data.specs import (
    PSEUDO_LABELS_FIRST,
    REFERENCES,
    DatasetSpec,
    broadcast_specs,
)
from distillery.training.settings import OPTIMIZERS

NOTHING: Mapping[str, list[Any]] = MappingProxyType({})
# Flags with a value for each dataset to train on, and for each to evaluate on.
TRAIN_LISTS = (
    *("train_dataset_name", "train_dataset_config_name", "train_split_name", "labels_dir"),
    "text_column_name",
)
EVAL_LISTS = (
    *("eval_dataset_name", "eval_dataset_config_name", "eval_split_name"),
    "eval_text_column_name",
)
METRICS = ("loss", "wer", "cer")


@dataclass(frozen=True, kw_only=True)
class TrainDataArguments(ReadingArguments):
    """Datasets to train and evaluate on."""

    train_dataset_name: str = required(
        "Datasets to train on, joined with '+'.", "-d", "--dataset_name", is_input=True
    )
    labels_dir: str | None = flag(
        None,
        "Folder of labels without audio (of --output_format labels) for each, joined with '+'; its "
        "rows are joined with theirs by id. Needed only where --train_dataset_name names the "
        "source and not the labels, whose record says where it is.",
        is_input=True,
    )
    train_dataset_config_name: str | None = flag(
        None, "Configuration of each, joined with '+'.", "--dataset_config_name"
    )
    train_split_name: str | None = flag(None, "Split of each, joined with '+'.")
    text_column_name: str | None = flag(None, "Column with the reference of each, joined with '+'.")
    use_pseudo_labels: bool = flag(
        True,
        "Learn pseudo-labels where the dataset has them; else its references, and --wer_threshold "
        "compares nothing.",
    )
    train_dataset_samples: str | None = flag(
        None, "Weight of each in the mix, joined with '+', such as hours; default: its size."
    )
    eval_dataset_name: str | None = flag(
        None,
        "Datasets to evaluate on, joined with '+'; default: with --eval_split_name, that split of "
        "those to train on.",
        is_input=True,
    )
    eval_dataset_config_name: str | None = flag(None, "Configuration of each, joined with '+'.")
    eval_split_name: str | None = flag(None, "Split of each, joined with '+'.")
    eval_text_column_name: str | None = flag(
        None, "Column with the reference of each, joined with '+'."
    )
    eval_dataset_samples: str | None = flag(
        None,
        "Weight of each in the mean of --metric_for_best_model, joined with '+'; default: all the "
        "same.",
    )
    max_train_samples: int | None = flag(None, "Train on at most so many rows of each dataset.")
    max_eval_samples: int | None = flag(None, "Evaluate on at most so many rows of each dataset.")
    min_duration_in_seconds: float | None = flag(None, "Train on no shorter clips.")
    max_duration_in_seconds: float | None = flag(
        None,
        "Train on no longer clips; without it, those longer than the model's window are reported "
        "as unusable: see --max_bad_fraction.",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *same_length(self, *TRAIN_LISTS, "train_dataset_samples"),
            *same_length(self, *EVAL_LISTS, "eval_dataset_samples"),
            *_weights_problems(self, "train_dataset_samples"),
            *_weights_problems(self, "eval_dataset_samples"),
            *_streaming_problems(self),
            *at_least(self, "max_train_samples", 1),
            *at_least(self, "max_eval_samples", 1),
            *at_least(self, "min_duration_in_seconds", 0),
            *at_least(self, "max_duration_in_seconds", self.min_duration_in_seconds or 0),
            *super().problems(),
        ]

    @property
    def num_train_sets(self) -> int:
        """Number of datasets to train on."""
        return max(len(plus_list(getattr(self, name))) for name in TRAIN_LISTS)

    @property
    def num_eval_sets(self) -> int:
        """Number of datasets that are named to evaluate on."""
        return max(len(plus_list(getattr(self, name))) for name in EVAL_LISTS)

    def train_specs(self, more: Mapping[str, list[Any]] = NOTHING) -> list[DatasetSpec]:
        """Return the datasets to train on; `more` has other fields, as `broadcast_specs` does."""
        return broadcast_specs(
            {
                "name": plus_list(self.train_dataset_name),
                "config": plus_list(self.train_dataset_config_name),
                "split": plus_list(self.train_split_name),
                "labels_dir": plus_list(self.labels_dir),
                "text_column": plus_list(self.text_column_name),
                "samples": [float(x) for x in plus_list(self.train_dataset_samples)],
                **more,
            },
            max_rows=self.max_train_samples,
            targets=PSEUDO_LABELS_FIRST if self.use_pseudo_labels else REFERENCES,
            **self.reading(),
        )

    @property
    def evaluates_on_training_data(self) -> bool:
        """Whether the evaluation is on another split of what is trained on."""
        return self.eval_dataset_name is None and self.eval_split_name is not None

    def eval_specs(self, more: Mapping[str, list[Any]] = NOTHING) -> list[DatasetSpec]:
        """Return the datasets to evaluate on; none if neither one nor a split is named."""
        name = self.eval_dataset_name
        config, text_column = self.eval_dataset_config_name, self.eval_text_column_name
        if name is None and self.eval_split_name is None:
            return []
        if name is None:
            name = self.train_dataset_name
            config = config or self.train_dataset_config_name
            text_column = text_column or self.text_column_name
        return broadcast_specs(
            {
                "name": plus_list(name),
                "config": plus_list(config),
                "split": plus_list(self.eval_split_name),
                "text_column": plus_list(text_column),
                "samples": [float(x) for x in plus_list(self.eval_dataset_samples)],
                **more,
            },
            max_rows=self.max_eval_samples,
            **self.reading(),
        )


def _streaming_problems(args: TrainDataArguments) -> list[str]:
    if args.labels_dir is None or not args.streaming:
        return []
    return ["--labels_dir does not go with --streaming: rows are joined by id"]


def _weights_problems(args: TrainDataArguments, name: str) -> list[str]:
    samples = getattr(args, name)
    try:
        wrong = [x for x in plus_list(samples) if not float(x) > 0]
    except ValueError:
        wrong = [str(samples)]
    return [f"--{name} must be numbers above 0, got {x}" for x in wrong]


@dataclass(frozen=True)
class TrainingArguments:
    """Training: updates, checkpoints and evaluation."""

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
    warmup_ratio: float = flag(0.0, "The same as a share of all updates.")
    lr_scheduler_type: str = flag(
        "linear", "Schedule, as transformers names it: linear, constant_with_warmup, cosine, …"
    )
    optim: str = flag(
        "adamw_torch",
        f"Optimiser: {', '.join(OPTIMIZERS)}; 8 bits need a GPU and bitsandbytes.",
    )
    weight_decay: float = flag(0.0, "AdamW's weight decay of matrices.")
    adam_beta1: float = flag(0.9, "AdamW's first decay rate.")
    adam_beta2: float = flag(0.999, "AdamW's second decay rate.")
    adam_epsilon: float = flag(1e-8, "AdamW's term that keeps divisors above 0.")
    max_grad_norm: float = flag(
        1.0, "Gradients are scaled down to this norm; 0 leaves them as they are."
    )
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
    load_best_model_at_end: bool = flag(
        False, "Leave the model of best/ as the result, not that of the last update."
    )
    early_stopping_patience: int | None = flag(
        None, "End after so many evaluations in a row without a better model."
    )
    gradient_checkpointing: bool = flag(False, "Compute activations twice to save memory.")
    freeze_encoder: bool = flag(False, "Do not train the encoder.")
    freeze_feature_encoder: bool = flag(
        False, "Do not train the two convolutions that the encoder begins with."
    )
    freeze_decoder: bool = flag(
        False, "Train nothing of the decoder but the token embeddings, which the output shares."
    )
    freeze_embed_positions: bool = flag(False, "Do not train the decoder's positions.")
    apply_spec_augment: bool | None = flag(
        None,
        "Mask parts of what the student hears, as config.json says; its teacher hears all. An "
        "encoder that both share then runs twice. Default: as config.json says where the encoder "
        "is trained, else False.",
    )
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
            found += one_of(self, "metric_for_best_model", METRICS)
        if self.warmup_steps and self.warmup_ratio:
            found.append("--warmup_steps and --warmup_ratio: give one of them")
        return [
            *found,
            *self._evaluation_problems(),
            *one_of(self, "optim", OPTIMIZERS),
            *at_least(self, "adam_epsilon", 0),
            *at_least(self, "max_grad_norm", 0),
            *within(self, "warmup_ratio", 0, 1),
            *at_least(self, "learning_rate", 0),
            *at_least(self, "warmup_steps", 0),
            *at_least(self, "max_label_length", 8),
            *at_least(self, "generation_max_length", 8),
            *at_least(self, "wer_threshold", 0),
            *within(self, "timestamp_probability", 0, 1),
            *within(self, "condition_on_prev_probability", 0, 1),
        ]

    def _evaluation_problems(self) -> list[str]:
        found = at_least(self, "early_stopping_patience", 1)
        if self.early_stopping_patience is not None and not (self.do_eval and self.eval_steps):
            found.append("--early_stopping_patience needs --do_eval and --eval_steps")
        if self.load_best_model_at_end and not self.do_eval:
            found.append("--load_best_model_at_end needs --do_eval")
        return found


class TrainingFlags(NamedTuple):
    """The groups of flags that both training stages have, as parsed."""

    model: ModelArguments
    data: TrainDataArguments
    decoding: PromptArguments
    training: TrainingArguments
    output: OutputArguments
    run: RunArguments
    trainer: TrainerArguments = TrainerArguments()
    examples: ExampleArguments = ExampleArguments()
    device: DeviceArguments = DeviceArguments()
    kl_weights: tuple[float, ...] = ()  # of the datasets to train on; none in plain fine-tuning

    @classmethod
    def of(cls, *groups: Any) -> "TrainingFlags":
        """Return the groups with the dtype in its place, whichever flag names it."""
        flags = cls(*groups)
        return flags._replace(model=with_dtype(flags.model, flags.trainer))

    def train_specs(self) -> list[DatasetSpec]:
        """Return the datasets to train on, with what their labels ask for."""
        asked = self.decoding.of_training()
        return self.data.train_specs({**asked, "kl_weight": list(self.kl_weights)})

    def eval_specs(self) -> list[DatasetSpec]:
        """Return the datasets to evaluate on, with what their labels ask for.

        Those that are not trained on follow a teacher as much as any that is.
        """
        weights, num_sets = list(self.kl_weights), len(self.data.eval_specs())
        if self.data.evaluates_on_training_data:
            asked = self.decoding.of_training()
        else:
            asked = self.decoding.of_evaluation()
            weights = weights if len(weights) in (0, 1, num_sets) else [max(weights)]
        return self.data.eval_specs({**asked, "kl_weight": weights})


TRAINING_GROUPS = tuple(
    group for group in TrainingFlags.__annotations__.values() if is_dataclass(group)
)


def check(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    args: TrainingArguments,
    trainer_args: TrainerArguments,
    prompt_args: PromptArguments,
) -> list[str]:
    """Return what is wrong with flags of several groups."""
    problems = dtype_problems(model_args, trainer_args)
    problems += _prompt_problems(data_args, prompt_args)
    problems += _surplus_weights(data_args, prompt_args)
    if args.do_eval and not data_args.eval_specs():
        problems.append(
            "--do_eval needs --eval_dataset_name, or an --eval_split_name of the training data"
        )
    is_one = data_args.evaluates_on_training_data and data_args.train_split_name is None
    if args.do_train and args.do_eval and is_one:
        problems.append(
            "--eval_split_name without --eval_dataset_name needs --train_split_name: what is "
            "evaluated on would be trained on"
        )
    if args.do_train and data_args.streaming and args.max_steps == -1:
        problems.append("--streaming needs --max_steps: a stream does not say how long it is")
    return problems


def num_train_sets(data_args: TrainDataArguments, args: PromptArguments) -> int:
    """Return the number of datasets to train on; one may come again with another task."""
    return max(data_args.num_train_sets, *args.counts("language", "task").values())


def _prompt_problems(data_args: TrainDataArguments, args: PromptArguments) -> list[str]:
    """Return a message for each flag that does not fit the number of datasets."""

    of_training = args.counts("language", "task")
    of_evaluation = args.counts("eval_language", "eval_task")
    counts = {"train_dataset_name": data_args.num_train_sets, **of_training}
    found = uneven(counts, num_train_sets(data_args, args))
    num_sets = data_args.num_eval_sets
    if data_args.eval_dataset_name is None:
        return found + [f"--{n} needs --eval_dataset_name" for n, c in of_evaluation.items() if c]
    counts = {"eval_dataset_name": num_sets, **of_evaluation}
    found += uneven(counts, max(counts.values()))
    return found + [
        f"--{name} names {number}, but there are {num_sets} datasets to evaluate on: say what "
        f"these are with --eval_{name}"
        for name, number in of_training.items()
        if number not in (0, 1, num_sets) and not of_evaluation[f"eval_{name}"]
    ]


def _surplus_weights(data_args: TrainDataArguments, args: PromptArguments) -> list[str]:
    """Return a message where weights are more than datasets, which would come again for them."""
    num_train = num_train_sets(data_args, args)
    num_eval = max(data_args.num_eval_sets, *args.counts("eval_language", "eval_task").values())
    if data_args.eval_dataset_name is None:
        num_eval = max(num_eval, num_train)
    limits = {"train_dataset_samples": num_train, "eval_dataset_samples": num_eval}
    return [
        f"--{name} has {number} weights, but there are {most} datasets: give one for each"
        for name, most in limits.items()
        if (number := len(plus_list(getattr(data_args, name)))) > most
    ]
