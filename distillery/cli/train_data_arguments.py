"""The flags that name the datasets to train and evaluate on, and what they must agree in."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from distillery.cli.arguments import ReadingArguments
from distillery.cli.flags import at_least, flag, plus_list, required, same_length, uneven
from distillery.cli.prompt_arguments import PromptArguments
from distillery.data.specs import (
    PSEUDO_LABELS_FIRST,
    REFERENCES,
    DatasetSpec,
    broadcast_specs,
)

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


def num_train_sets(data_args: TrainDataArguments, args: PromptArguments) -> int:
    """Return the number of datasets to train on; one may come again with another task."""
    return max(data_args.num_train_sets, *args.counts("language", "task").values())


def prompt_problems(data_args: TrainDataArguments, args: PromptArguments) -> list[str]:
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


def surplus_weights(data_args: TrainDataArguments, args: PromptArguments) -> list[str]:
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
