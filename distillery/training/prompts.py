"""Which language and task the labels of a row name: those of its dataset, or its own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from distillery.data import schema
from distillery.data.collators import DATASET
from distillery.data.column_types import MapStyleRows, read_columns
from distillery.data.prompts import PromptColumns
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.ingest.label_folders import LabelledRows
from distillery.text.labels import LabelRule
from distillery.text.tokens import TRANSCRIBE, Prompt

PROMPT = "prompt"  # of a window of several rows: that of all of them


@dataclass(frozen=True)
class DatasetPrompts:
    """The prompts of the rows of one dataset, by row.

    Attributes:
        spec: which dataset it is.
        columns: what labels ask for that are built here; those that are stored say it themselves.
    """

    spec: DatasetSpec
    columns: PromptColumns

    @property
    def shared(self) -> Prompt | None:
        """The prompt of all rows; None where each has its own."""
        prompt, tokens = self.columns.prompt, self.columns.tokens
        is_known = prompt.language is not None or not tokens.is_multilingual
        return prompt if is_known and not self.columns.names else None

    def __call__(self, row: Mapping[str, Any]) -> Prompt:
        """Return the prompt of a row.

        Raises:
            ValueError: it names none that the model knows.
        """
        if PROMPT in row:
            return Prompt(*row[PROMPT])
        stored = row.get(schema.LABELS)
        try:
            return self.columns.of(row) if stored is None else self.columns.tokens.asked(stored)
        except ValueError as error:
            raise ValueError(f"dataset {self.spec}, row {row[schema.ID]}: {error}") from error

    def __str__(self) -> str:
        if self.shared is not None:
            return f"{self.shared.language or 'en'}, {self.shared.task}"
        names = " and ".join(f"`{name}`" for name in self.columns.names)
        return f"language and task of each row, as {names or 'its stored labels'} has it"

    def given_to(self, rule: LabelRule) -> LabelRule:
        """Return a rule for the labels of this dataset."""
        prompt = self.shared
        return replace(rule, prompt_of=self) if prompt is None else rule.asking(prompt)

    def check(self, rows: MapStyleRows | LabelledRows) -> None:
        """Raise ValueError if a row names a language or task that the model does not know.

        Only the columns that say so are read.
        """
        if not self.columns.names or schema.LABELS in rows.column_names:
            return
        names = list(dict.fromkeys([schema.ID, *self.columns.names]))
        table = read_columns(rows.select_columns(names), *names)
        for name in self.columns.names:
            values = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
            _, first = np.unique(values.indices.to_numpy(), return_index=True)
            for row in table.take(pa.array(first)).to_pylist():
                self(row)


def prompts_of(spec: DatasetSpec, rule: LabelRule, column_names: Collection[str]) -> DatasetPrompts:
    """Return the prompts of a dataset.

    Where no language is named, the columns that labelling writes for each row are read.

    Args:
        spec: the dataset, with what the flags say of it.
        rule: has the language and task of a dataset of which they say nothing.
        column_names: that the dataset has.

    Raises:
        ValueError: it lacks a column that is asked for, or nothing says what is spoken.
    """
    tokens = rule.tokens
    columns = {"language": spec.language_column, "task": spec.task_column}
    for name, column in columns.items():
        if column is not None and column not in column_names:
            raise sources.missing_column(spec, f"--{name}_column_name", column, list(column_names))
    prompt = Prompt(spec.language or rule.language, spec.task or rule.task)
    is_open = tokens.is_multilingual and prompt.language is None and columns["language"] is None
    if is_open and schema.LANGUAGE in column_names:
        columns["language"] = schema.LANGUAGE
        if spec.task is None and schema.TASK in column_names:
            columns["task"] = columns["task"] or schema.TASK
    elif is_open and schema.LABELS not in column_names:
        raise ValueError(
            f"dataset {spec}: the model is multilingual and needs a language: see --language and "
            "--language_column_name"
        )
    return DatasetPrompts(spec, PromptColumns(prompt.normalized(), tokens, **columns))


def asked_prompts(specs: Sequence[DatasetSpec]) -> list[Prompt]:
    """Return what flags ask for of some datasets; a language is None where rows name their own."""
    return [
        Prompt(None if spec.language_column else spec.language, spec.task or TRANSCRIBE)
        for spec in specs
    ]


def rule_of_all(rules: Sequence[LabelRule]) -> LabelRule:
    """Return one rule for the rows of several datasets, which know by `DATASET` whose they are."""
    if len(rules) == 1 or all(rule == rules[0] for rule in rules):
        return rules[0]
    return replace(rules[0], prompt_of=_MixedPrompts(tuple(rules)))


@dataclass(frozen=True)
class _MixedPrompts:
    rules: tuple[LabelRule, ...]

    def __call__(self, row: Mapping[str, Any]) -> Prompt:
        rule = self.rules[row[DATASET]].of(row)
        return Prompt(rule.language, rule.task)
