"""Rules for decoder labels, as pure functions on lists of token ids.

A label sequence holds everything that the decoder sees, in this order:

    [<|startofprev|> prompt] <|startoftranscript|> [language task] [<|notimestamps|>]
    text <|endoftext|>

What is fed to the decoder is the sequence without its last id; what is learnt is the sequence
without its first, where the prompt and `<|startoftranscript|>` itself do not count.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from distillery.text.cleaning import TextCleaning
from distillery.text.tokens import Prompt, SpecialTokens, Tokenizer

IGNORED = -100  # a target that does not count, as in torch.nn.functional.cross_entropy

_NUMBER = re.compile(r"\d+")
_ID_LIST = re.compile(r"\s*\[\s*\d+([\s,]+\d+)*\s*\]\s*")


def text_ids(sequence: Sequence[int], tokens: SpecialTokens) -> list[int]:
    """Return the ids of the text and its timestamps: no prompt, no task prefix, no end."""
    start = _start_of_transcript(sequence, tokens)
    body = sequence[start:] if start is not None else sequence
    control = tokens.control_ids
    return [i for i in body if i not in control]


def without_timestamps(ids: Sequence[int], tokens: SpecialTokens) -> list[int]:
    """Return the ids that are not timestamps."""
    first = tokens.timestamp_begin
    return [i for i in ids if i < first]


def has_timestamps(ids: Sequence[int], tokens: SpecialTokens) -> bool:
    """Tell whether any id is a timestamp."""
    return any(tokens.is_timestamp(i) for i in ids)


def plain_text(ids: Sequence[int], tokens: SpecialTokens, tokenizer: Tokenizer) -> str:
    """Return the text of a sequence, without prompt, prefix, timestamps and end."""
    return plain_texts([ids], tokens, tokenizer)[0]


def plain_texts(
    sequences: Iterable[Sequence[int]], tokens: SpecialTokens, tokenizer: Tokenizer
) -> list[str]:
    """Return the text of each sequence; many at once are decoded sooner than one by one."""
    words = [without_timestamps(text_ids(ids, tokens), tokens) for ids in sequences]
    # Transformers' own `batch_decode` takes five times as long for the same texts.
    texts = tokenizer.backend_tokenizer.decode_batch(words, skip_special_tokens=True)
    return [text.strip() for text in texts]


def listed_ids(text: str, tokens: SpecialTokens) -> list[int] | None:
    """Return the token ids of a text that lists them, such as `[50258, 50266, 9991, 50257]`.

    Such lists come from a CSV file, or from other tools. A text in brackets that names none of
    Whisper's control ids is speech (`[42]`), for which None is returned.
    """
    if not _ID_LIST.fullmatch(text):
        return None
    ids = [int(number) for number in _NUMBER.findall(text)]
    return ids if tokens.control_ids.intersection(ids) else None


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
        max_label_length: ids of a whole sequence, prompt included; a prompt is shortened to fit.
            None: as many as the positions take.
        clean: applied to every text that is learnt, prompts included.
        no_speech_probability: share of rows that are learnt as windows without speech.
        prompt_of: language and task of a row, where rows differ in them.
    """

    tokens: SpecialTokens
    tokenizer: Tokenizer
    language: str | None
    task: str
    max_positions: int
    timestamp_probability: float
    condition_on_prev_probability: float
    seed: int
    max_label_length: int | None = None
    clean: TextCleaning | None = None
    no_speech_probability: float = 0.0
    prompt_of: Callable[[Mapping[str, Any]], Prompt] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if windows without speech are asked for, and no token says so."""
        if self.no_speech_probability and self.tokens.no_speech is None:
            raise ValueError(
                "--no_speech_probability: the tokenizer has neither <|nospeech|> nor <|nocaptions|>"
            )

    def of(self, row: Mapping[str, Any]) -> "LabelRule":
        """Return the rule for a row, with its language and task.

        Raises:
            ValueError: the row names none that the model knows.
        """
        if self.prompt_of is None:
            return self
        return self.asking(self.prompt_of(row))

    def asking(self, prompt: Prompt) -> "LabelRule":
        """Return the rule for one language and task."""
        language, task = prompt
        clean = self.clean and self.clean.of_language(language)
        return replace(self, language=language, task=task, clean=clean, prompt_of=None)

    def without_speech(self, row_id: str, epoch: int) -> list[int] | None:
        """Return the labels of a row that is learnt as a window without speech; else None.

        One half is `<|nospeech|>`, as in Whisper's own training; the other is an empty text behind
        the usual prefix, which most programs force on a model, so that it never gets to say
        `<|nospeech|>`.
        """
        share, form = drawn(self.seed, epoch, f"{row_id} no speech")
        if share >= self.no_speech_probability:
            return None
        end, no_speech = self.tokens.end_of_text, self.tokens.no_speech
        if form < 0.5 and no_speech is not None:
            return [self.tokens.start_of_transcript, no_speech, end]
        return [*self.tokens.prefix(self.language, self.task, timestamps=False), end]

    def body(self, transcript: str | Sequence[int]) -> list[int]:
        """Return the ids of a transcript's text and timestamps.

        A transcript in words may hold timestamps as Whisper writes them, such as `<|0.00|>`; one
        that lists token ids is read as those.
        """
        if isinstance(transcript, str):
            transcript = listed_ids(transcript, self.tokens) or self._encode(transcript)
        ids = text_ids(transcript, self.tokens)
        if self.clean is None:
            return ids
        return self._encode(self.clean(self.tokenizer.decode(ids, decode_with_timestamps=True)))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

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
        for_timestamps, for_prompt = drawn(self.seed, epoch, row_id)
        keep_timestamps = for_timestamps < self.timestamp_probability
        conditioned = for_prompt < self.condition_on_prev_probability
        body = self.body(transcript)
        timestamps = keep_timestamps and has_timestamps(body, self.tokens)
        prompt = self.body(previous) if previous and conditioned else []
        if not timestamps:
            body = without_timestamps(body, self.tokens)
            prompt = without_timestamps(prompt, self.tokens)
        prefix = self.tokens.prefix(self.language, self.task, timestamps)
        text = [*prefix, *body] if truncated else [*prefix, *body, self.tokens.end_of_text]
        return [*self._fitting_prompt(prompt, len(text)), *text]

    @property
    def longest(self) -> int:
        """The most ids of a whole sequence."""
        fed_back = self.max_positions + 1  # the last label is not
        return fed_back if self.max_label_length is None else min(fed_back, self.max_label_length)

    @property
    def longest_prompt(self) -> int:
        """The most ids of a prompt: Whisper gives half of its positions to it."""
        return self.longest // 2 - 1

    def _fitting_prompt(self, prompt: list[int], num_text: int) -> list[int]:
        most = min(self.longest_prompt, self.longest - num_text - 1)
        kept = prompt[-most:] if most > 0 else []
        return [self.tokens.start_of_prev, *kept] if kept else []


def draw_seed(*parts: object) -> int:
    """Return a seed of 64 bits that follows from integers and texts."""
    key = " ".join(map(str, parts))
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def drawn(seed: int, epoch: int, row_id: str) -> tuple[float, float]:
    """Return two numbers of [0, 1) that look random, for a row's timestamps and its prompt.

    A generator of the module `random` takes five times as long to be seeded.
    """
    key = f"{seed} {epoch} {row_id}".encode()
    first, second = struct.unpack("<QQ", blake2b(key, digest_size=16).digest())
    return (first >> 11) / 2**53, (second >> 11) / 2**53  # as many bits as a float holds


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
    try:
        return sequence.index(tokens.start_of_transcript)
    except ValueError:
        return None
