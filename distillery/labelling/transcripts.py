"""What a labelled dataset holds of the teacher's ids: the columns, and how they compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillery.data import schema
from distillery.text import labels
from distillery.text.compression import compression_ratio
from distillery.text.error_rates import Totals, count_pairs
from distillery.text.normalizers import Normalizer, raw_text
from distillery.text.tokens import TRANSCRIBE, SpecialTokens, Tokenizer


@dataclass(frozen=True)
class Transcripts:
    """Turns the teacher's ids into columns.

    Attributes:
        tokens, tokenizer: of the teacher.
        decode_token_ids: store text, with Whisper's timestamps, instead of token ids.
        normalizer_of: for a language and a task, to compare with references.
    """

    tokens: SpecialTokens
    tokenizer: Tokenizer
    decode_token_ids: bool
    normalizer_of: Callable[[str | None, str], Normalizer]

    def text_ids(self, row: Mapping[str, Any]) -> list[int]:
        """Return the ids of a row's text and timestamps."""
        return labels.text_ids(row[schema.WHISPER_TRANSCRIPT], self.tokens)

    def is_empty(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row's transcript has no text."""
        return not labels.without_timestamps(self.text_ids(row), self.tokens)

    def columns(self, row: Mapping[str, Any], context: list[int] | None) -> dict[str, Any]:
        """Return a row with the columns of the contract.

        Args:
            row: with the teacher's ids.
            context: ids of the window before, where it is of the same recording.
        """
        text = self.tokenizer.decode(self.text_ids(row), decode_with_timestamps=True)
        ids = row[schema.WHISPER_TRANSCRIPT]
        return {
            **row,
            schema.WHISPER_TRANSCRIPT: text if self.decode_token_ids else ids,
            schema.CONDITION_ON_PREV: context,
            schema.COMPRESSION_RATIO: compression_ratio(raw_text(text)),
        }

    def edits(self, rows: Sequence[Mapping[str, Any]]) -> Totals | None:
        """Count the edits between references and transcripts in the language that was spoken.

        Returns None where nothing can be compared: there are no references, or translations alone.
        """
        pairs: dict[str | None, list[tuple[str, str]]] = {}
        for row in rows:
            if row.get(schema.TEXT) and row[schema.TASK] == TRANSCRIBE:
                ids = row[schema.WHISPER_TRANSCRIPT]
                transcript = labels.plain_text(ids, self.tokens, self.tokenizer)
                texts = pairs.setdefault(row[schema.LANGUAGE], [])
                texts.append((raw_text(row[schema.TEXT]), transcript))
        edits = None
        for language, texts in pairs.items():
            normalizer = self.normalizer_of(language, TRANSCRIBE)
            if any(normalizer(reference) for reference, _ in texts):
                totals = count_pairs(texts, normalizer).totals()
                edits = totals if edits is None else edits + totals
        return edits
