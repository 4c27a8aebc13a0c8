"""What the decoder is asked for, row by row: which language is spoken, and what to write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distillery.text.tokens import TRANSCRIBE, Prompt, SpecialTokens, language_code


@dataclass(frozen=True)
class PromptColumns:
    """The prompts of rows: one for all, or as columns say.

    Attributes:
        prompt: of what no column says.
        tokens: of the model.
        language, task: columns of the rows; None where there is none.
    """

    prompt: Prompt
    tokens: SpecialTokens
    language: str | None = None
    task: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [name for name in (self.language, self.task) if name is not None]

    def of(self, row: Mapping[str, Any]) -> Prompt:
        """Return what is asked for of a row.

        Raises:
            ValueError: a column names no language that the model knows, or no task.
        """
        language, task = self.prompt
        if self.language is not None:
            language = str(row.get(self.language))
            self._check(self.language, Prompt(language, TRANSCRIBE))
            language = language_code(language)
        if self.task is not None:
            task = str(row.get(self.task))
            self._check(self.task, Prompt(next(iter(self.tokens.languages), None), task))
        return Prompt(language, task)

    def _check(self, column: str, prompt: Prompt) -> None:
        try:
            self.tokens.prefix(*prompt, timestamps=True)
        except ValueError as error:
            raise ValueError(f"column {column!r}: {error}") from error
