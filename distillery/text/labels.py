"""Rules for decoder labels, as pure functions on lists of token ids.

A label sequence holds everything that the decoder sees, in this order:

    [<|startofprev|> prompt] <|startoftranscript|> [language task] [<|notimestamps|>]
    text <|endoftext|>

What is fed to the decoder is the sequence without its last id; what is learnt is the sequence
without its first, where the prompt and `<|startoftranscript|>` itself do not count.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distillery.text.tokens import SpecialTokens, Tokenizer

IGNORED = -100  # a target that does not count, as in torch.nn.functional.cross_entropy


def text_ids(sequence: Sequence[int], tokens: SpecialTokens) -> list[int]:
    """Return the ids of the text and its timestamps: no prompt, no task prefix, no end."""
    start = _start_of_transcript(sequence, tokens)
    body = sequence[start:] if start is not None else sequence
    control = {
        tokens.start_of_transcript,
        tokens.start_of_prev,
        tokens.end_of_text,
        tokens.no_timestamps,
        tokens.transcribe,
        tokens.translate,
        *tokens.languages.values(),
    }
    return [i for i in body if i not in control]


def without_timestamps(ids: Sequence[int], tokens: SpecialTokens) -> list[int]:
    """Return the ids that are not timestamps."""
    return [i for i in ids if not tokens.is_timestamp(i)]


def has_timestamps(ids: Sequence[int], tokens: SpecialTokens) -> bool:
    """Tell whether any id is a timestamp."""
    return any(tokens.is_timestamp(i) for i in ids)


def plain_text(ids: Sequence[int], tokens: SpecialTokens, tokenizer: Tokenizer) -> str:
    """Return the text of a sequence, without prompt, prefix, timestamps and end."""
    words = without_timestamps(text_ids(ids, tokens), tokens)
    return tokenizer.decode(words, skip_special_tokens=True).strip()


@dataclass(frozen=True)
class LabelRule:
    """How a transcript becomes labels: prefix, timestamps, prompt, length.

    Whether a row keeps its timestamps and whether it gets its prompt is drawn from (seed, epoch,
    id) alone, so neither order nor number of processes changes it.

    Attributes:
        tokens, tokenizer: of the student.
        language, task: as in `SpecialTokens.prefix`.
        max_positions: decoder positions of the model; a prompt is shortened to fit, never the text.
        timestamp_probability: share of rows with timestamps that keep them.
        condition_on_prev_probability: share of rows with a previous window that get it as a prompt.
        seed: of the draws.
    """

    tokens: SpecialTokens
    tokenizer: Tokenizer
    language: str | None
    task: str
    max_positions: int
    timestamp_probability: float
    condition_on_prev_probability: float
    seed: int

    def body(self, transcript: str | Sequence[int]) -> list[int]:
        """Return the ids of a transcript's text and timestamps.

        A transcript in words may hold timestamps as Whisper writes them, such as `<|0.00|>`.
        """
        if isinstance(transcript, str):
            transcript = self.tokenizer.encode(transcript, add_special_tokens=False)
        return text_ids(transcript, self.tokens)

    def __call__(
        self,
        row_id: str,
        transcript: str | Sequence[int],
        previous: Sequence[int] | None = None,
        *,
        truncated: bool = False,
        epoch: int = 0,
    ) -> list[int]:
        """Return the labels of one row.

        Args:
            row_id: the row's id.
            transcript: ids or text.
            previous: ids of the window before, where it may be a prompt.
            truncated: the transcript was cut at a maximum length, so that no end is learnt from it.
            epoch: of training; each one draws anew.
        """
        draw = random.Random(f"{self.seed} {epoch} {row_id}")
        keep_timestamps = draw.random() < self.timestamp_probability
        conditioned = draw.random() < self.condition_on_prev_probability
        body = self.body(transcript)
        timestamps = keep_timestamps and has_timestamps(body, self.tokens)
        prompt = text_ids(previous, self.tokens) if previous and conditioned else []
        if not timestamps:
            body = without_timestamps(body, self.tokens)
            prompt = without_timestamps(prompt, self.tokens)
        prefix = self.tokens.prefix(self.language, self.task, timestamps)
        text = [*prefix, *body] if truncated else [*prefix, *body, self.tokens.end_of_text]
        return [*self._fitting_prompt(prompt, len(text)), *text]

    def _fitting_prompt(self, prompt: list[int], num_text: int) -> list[int]:
        # Whisper gives half of its positions to the prompt; the last label is not fed back.
        most = min(self.max_positions // 2 - 1, self.max_positions + 1 - num_text - 1)
        kept = prompt[-most:] if most > 0 else []
        return [self.tokens.start_of_prev, *kept] if kept else []


def num_text_labels(labels: Sequence[int], tokens: SpecialTokens) -> int:
    """Return the length of labels without their prompt, which `--max_label_length` bounds."""
    return len(labels) - (_start_of_transcript(labels, tokens) or 0)


def decoder_inputs_and_targets(
    labels: Sequence[int], tokens: SpecialTokens
) -> tuple[list[int], list[int]]:
    """Split a label sequence into the decoder's inputs and the targets that follow them.

    Targets of the prompt and of `<|startoftranscript|>` are `IGNORED`; both lists have one id less
    than the labels.

    Raises:
        ValueError: if the labels have no `<|startoftranscript|>`. It is not `bos_token_id`, which
            in Whisper is `<|endoftext|>`.
    """
    start = _start_of_transcript(labels, tokens)
    if start is None:
        raise ValueError("labels without <|startoftranscript|>: they were not built for Whisper")
    targets = [IGNORED if i < start else label for i, label in enumerate(labels[1:])]
    return list(labels[:-1]), targets


def previous_windows(
    rows: Iterator[tuple[str | None, str | None, list[int] | None]],
) -> Iterator[list[int] | None]:
    """Yield, for each row, the ids of the window just before it, where it may be a prompt.

    A window is a prompt for the next one only inside one recording and one speaker: the two agree
    in both, and at least one of the two is known.

    Args:
        rows: (recording id, speaker id, ids of the window's text or None where it has none).
    """
    before: tuple[str | None, str | None, list[int] | None] = (None, None, None)
    for row in rows:
        recording, speaker, _ = row
        known = recording is not None or speaker is not None
        yield before[2] if known and before[:2] == (recording, speaker) else None
        before = row


def _start_of_transcript(sequence: Sequence[int], tokens: SpecialTokens) -> int | None:
    return next((i for i, t in enumerate(sequence) if t == tokens.start_of_transcript), None)
