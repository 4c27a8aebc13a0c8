"""Flags of training that say what is spoken in each dataset, and what its labels make of that."""

from dataclasses import dataclass
from typing import Any

from distillery.cli.arguments import DecodingArguments, known_language
from distillery.cli.flags import flag, plus_list
from distillery.text.tokens import TASKS


@dataclass(frozen=True)
class PromptArguments(DecodingArguments):
    """Languages and tasks, and decoding in evaluations."""

    language: str | None = flag(
        None,
        "Language spoken in each dataset to train on, joined with '+', as a code or an English "
        "name; none for an .en model. Without it, the columns `language` and `task` are read, as "
        "labelling writes them; labels that are stored name theirs.",
        "-l",
    )
    task: str | None = flag(  # type: ignore[assignment]  # columns may say it
        None,
        f"What the labels of each dataset are, joined with '+': {' or '.join(TASKS)}; default: "
        f"{TASKS[0]}.",
        "-t",
    )
    language_column_name: str | None = flag(
        None, "Column with the language of each row, in place of --language."
    )
    task_column_name: str | None = flag(
        None, "Column with the task of each row, transcribe or translate, in place of --task."
    )
    eval_language: str | None = flag(
        None,
        "Language of each dataset of --eval_dataset_name, joined with '+'; default: as --language "
        "says, of one for all or of one for each.",
    )
    eval_task: str | None = flag(
        None, "Task of each of them, joined with '+'; default: as --task says."
    )

    def prompt_problems(self) -> list[str]:
        """Return what is wrong with languages and tasks."""
        found = []
        for name in ("language", "task", "eval_language", "eval_task"):
            value = getattr(self, name)
            if "," in (value or ""):
                found.append(f"--{name} joins several with '+', got {value!r}")
                continue
            for each in plus_list(value):
                if name.endswith("language"):
                    found += known_language(each, name)
                elif each not in TASKS:
                    found.append(f"--{name} must be of {', '.join(TASKS)}; got {each!r}")
        return found

    def counts(self, *names: str) -> dict[str, int]:
        """Return how many values some flags have."""
        return {name: len(plus_list(getattr(self, name))) for name in names}

    def of_training(self) -> dict[str, list[Any]]:
        """Return what specs of datasets to train on hold: by field, a value for each or for all."""
        return {
            "language": plus_list(self.language),
            "task": plus_list(self.task),
            **self._columns(),
        }

    def of_evaluation(self) -> dict[str, list[Any]]:
        """Return the same of other datasets, to evaluate on."""
        return {
            "language": plus_list(self.eval_language or self.language),
            "task": plus_list(self.eval_task or self.task),
            **self._columns(),
        }

    def _columns(self) -> dict[str, list[Any]]:
        names = {"language_column": self.language_column_name, "task_column": self.task_column_name}
        return {field: [name] for field, name in names.items() if name is not None}
