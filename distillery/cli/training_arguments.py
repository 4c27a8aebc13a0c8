"""The groups of flags of the two stages that train."""

from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

from distillery.cli.arguments import (
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.device_arguments import DeviceArguments
from distillery.cli.example_arguments import ExampleArguments
from distillery.cli.flags import (
    at_least,
    flag,
    one_of,
    within,
)
from distillery.cli.prompt_arguments import PromptArguments
from distillery.cli.train_data_arguments import (
    TrainDataArguments,
    prompt_problems,
    surplus_weights,
)
from distillery.cli.trainer_arguments import TrainerArguments, dtype_problems, with_dtype
from distillery.data.specs import (
    DatasetSpec,
)
from distillery.training.settings import OPTIMIZERS

METRICS = ("loss", "wer", "cer")


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
    problems += prompt_problems(data_args, prompt_args)
    problems += surplus_weights(data_args, prompt_args)
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
