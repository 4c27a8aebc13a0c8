"""Greedy decoding of a stream of windows, with continuous batching.

A window that ends leaves the batch, and a waiting one takes its place (as in Orca, Yu et al., OSDI
2022). Every row stands at a position of its own, so prompts of any lengths, languages, tasks and
timestamps go side by side, and what is written for a window does not depend on its neighbours. In
float32 it is id for id what transformers' `generate` writes without beams. Where temperature
fallback is asked for, a row whose transcript looks bad begins again at its place: the window is not
encoded again, and what is drawn depends on its seed alone.

On CUDA a step is captured as a graph, shapes come in few sizes, and the end is looked for every few
steps only. Tests do the same on a CPU; on a GPU it has not been run yet: none was at hand.
"""

import gc
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from distillery.text.tokens import language_code
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_batch import Batch, Shape, Start, likeliest_languages, on_cuda
from distillery.whisper.decoder_cache import compute_dtype
from distillery.whisper.decoding import Decoding, Transcript
from distillery.whisper.fallback import kept, next_temperature
from distillery.whisper.memory import is_out_of_memory

logger = logging.getLogger(__name__)

Key = TypeVar("Key")

# Windows are encoded and begun together, once so many parts of the batch's rows are free: one by
# one, each would cost a pass over the decoder's weights of its own.
FREE_PARTS = 4

CACHED_NUMBERS = 4_000_000  # that each thread of a CPU works on at once; one window of whisper-tiny

STEPS_BETWEEN_TESTS = 8  # on CUDA, where to look for the end is to wait for the device


@dataclass(frozen=True)
class Window(Generic[Key]):
    """A window to transcribe.

    Attributes:
        key: the caller's name for it.
        features: log-mel, float (mels, frames), on any device.
        decoding: how; its beams are not looked at.
        prompt: ids that the decoder sees before the prefix.
        seed: of what is drawn at a temperature, from 0 to 2**32 - 1.
        temperature: the first that is tried.
    """

    key: Key
    features: Tensor
    decoding: Decoding
    prompt: Sequence[int] = ()
    seed: int = 0
    temperature: float = 0.0


@dataclass
class _Row(Generic[Key]):
    """A window in the batch: what it began with, how many ids are there now, and are the most."""

    window: Window[Key]
    language: str | None
    start: Start
    num_ids: int
    most: int


class GreedyDecoder(Generic[Key]):
    """Decodes windows greedily, so many at a time."""

    def __init__(self, whisper: Whisper, batch_size: int, *, captures: bool = True) -> None:
        """Keep a model; the batch's memory is taken with the first window.

        Args:
            whisper: the model, on its device.
            batch_size: windows decoded side by side; halved whenever memory runs out.
            captures: on CUDA, capture steps as graphs: that pays over many batches, not for one.
        """
        self.whisper, self.batch_size, self.captures = whisper, batch_size, captures
        self.steps_between_tests = STEPS_BETWEEN_TESTS if on_cuda(whisper) else 1
        self._batch: Batch | None = None
        self._rows: list[_Row[Key]] = []
        self._waiting: deque[Window[Key]] = deque()

    @torch.inference_mode()
    def transcribe(self, windows: Iterable[Window[Key]]) -> Iterator[tuple[Key, Transcript]]:
        """Transcribe windows; each is taken when there is room for it.

        Yields:
            The key of a window and its transcript, as they end: not in order.

        Raises:
            ValueError: a prompt leaves no room, or the model does not know a window's language.
            RuntimeError, MemoryError: not even one window fits: see `is_out_of_memory`.
        """
        source = iter(windows)
        try:
            while self._take(source) or self._rows:
                try:
                    finished = self._advance()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error) or self.batch_size == 1:
                        raise
                    finished = None
                if finished is None:  # outside of `except`, whose traceback holds tensors
                    self._halve()
                    continue
                yield from finished
        finally:  # also where the caller has enough, or an error ends it
            self._rows.clear()
            self._waiting.clear()

    def _take(self, source: Iterator[Window[Key]]) -> bool:
        """Let as many windows wait as there is room for."""
        self._waiting.extend(islice(source, max(0, self._room() - len(self._waiting))))
        return bool(self._waiting)

    def _room(self) -> int:
        """Return how many windows can begin; none as long as too few rows are free."""
        num_free = self.batch_size - len(self._rows)
        return num_free if num_free * FREE_PARTS >= self.batch_size else 0

    def _advance(self) -> list[tuple[Key, Transcript]]:
        """Begin what waits, decode some ids of every row, and return what has ended."""
        if self._batch is None or self._batch.decoder.dtype != compute_dtype(self.whisper.model):
            self._batch = Batch(self.whisper, self.batch_size, self.captures)
        group = list(islice(self._waiting, self._room()))
        if group:
            self._rows += self._begin(self._batch, group)
            for _ in group:
                self._waiting.popleft()
        else:
            self._step(self._batch)
        return self._collect(self._batch)

    def _begin(self, batch: "Batch", group: Sequence[Window[Key]]) -> list[_Row[Key]]:
        """Encode windows into the rows behind those in use, and let each write its first id."""
        rows = slice(len(self._rows), len(self._rows) + len(group))
        batch.hear(encode(self.whisper, [window.features for window in group]), rows)
        tokens = self.whisper.tokens
        languages = [window.decoding.language for window in group]
        if tokens.is_multilingual and None in languages:
            detected = likeliest_languages(batch.first_logits(rows), tokens)
            languages = [given or found for given, found in zip(languages, detected, strict=True)]
        begun = [
            self._row(window, language and language_code(language), window.temperature)
            for window, language in zip(group, languages, strict=True)
        ]
        batch.begin([row.start for row in begun], rows)
        return begun

    def _row(self, window: Window[Key], language: str | None, temperature: float) -> _Row[Key]:
        """Return the row of a window that begins, and writes its first id at once."""
        how = window.decoding
        ids = [*window.prompt, *self.whisper.tokens.prefix(language, how.task, how.timestamps)]
        most = min(how.max_length + len(window.prompt), self.whisper.max_label_length)
        if most <= len(ids):
            raise ValueError(
                f"window {window.key}: {len(ids)} ids of prompt and prefix leave no room for a "
                f"transcript of at most {how.max_length} ids, the model has "
                f"{self.whisper.max_label_length} positions"
            )
        # Each temperature draws anew.
        seed = (window.seed + round(1000 * temperature)) % 2**32
        start = Start(ids, len(window.prompt), how.timestamps, temperature, seed)
        return _Row(window, language, start, len(ids) + 1, most)

    def _step(self, batch: "Batch") -> None:
        """Let every row write some ids, as many as none is too long for."""
        most = min(row.most - row.num_ids for row in self._rows)
        num_steps, length = min(self.steps_between_tests, most), max(r.num_ids for r in self._rows)
        any_timed = any(row.start.timed for row in self._rows)
        any_drawn = any(row.start.temperature > 0 for row in self._rows)
        for step in range(num_steps):
            batch.step(Shape(len(self._rows), length + step, any_timed, any_drawn))
        for row in self._rows:
            row.num_ids += num_steps

    def _collect(self, batch: "Batch") -> list[tuple[Key, Transcript]]:
        """Take the rows out that have ended and are not to begin again, and close the gaps."""
        is_open = batch.is_open[: len(self._rows)].tolist()
        ended = [
            index
            for index, (row, goes_on) in enumerate(zip(self._rows, is_open, strict=True))
            if not goes_on or row.num_ids == row.most
        ]
        finished = batch.read(ended) if ended else []
        found, leaving = [], []
        for index, values in zip(ended, finished, strict=True):
            row = self._rows[index]
            transcript = self._transcript(row, *values)
            judged = self.whisper, row.window.decoding, transcript
            warmer = next_temperature(*judged)
            if warmer is None:
                found.append((row.window.key, kept(*judged)))
                leaving.append(index)
            else:
                self._rows[index] = again = self._row(row.window, row.language, warmer)
                batch.begin([again.start], slice(index, index + 1))
        for index in reversed(leaving):
            last = self._rows.pop()
            if index < len(self._rows):
                batch.move(len(self._rows), index)
                self._rows[index] = last
        return found

    def _transcript(
        self, row: _Row[Key], ids: list[int], logprob: float, no_speech: float
    ) -> Transcript:
        tokens, num_given = self.whisper.tokens, len(row.start.ids)
        written = ids[num_given : row.num_ids]
        if tokens.end_of_text in written:
            written = written[: written.index(tokens.end_of_text) + 1]
        return Transcript(
            [*ids[row.start.begin : num_given], *written],
            written[-1] != tokens.end_of_text,
            logprob / len(written),
            None if tokens.no_speech is None else no_speech,
            row.language,
            row.start.temperature,
        )

    def _halve(self) -> None:
        """Give the memory back, and begin all unfinished windows anew in a smaller batch."""
        self._waiting.extendleft(row.window for row in reversed(self._rows))
        self._rows.clear()
        self._batch = None
        gc.collect()
        if on_cuda(self.whisper):
            torch.cuda.empty_cache()
        self.batch_size //= 2
        logger.warning("out of memory: decoding goes on with batches of %d", self.batch_size)


def encode(whisper: Whisper, features: Sequence[Tensor]) -> Tensor:
    """Return the encoder's states, (windows, positions, width), of log-mel features."""
    model, size = whisper.model, len(features)
    if model.device.type == "cpu":
        # What a layer makes of more windows does not fit the caches.
        widest = model.config.max_source_positions * model.config.encoder_ffn_dim
        size = torch.get_num_threads() * max(1, CACHED_NUMBERS // widest)
    states = []
    for start in range(0, len(features), size):
        batch = torch.stack(list(features[start : start + size]))
        batch = batch.to(model.device, model.dtype, non_blocking=True)
        states.append(model.model.encoder(batch).last_hidden_state)
    return torch.cat(states)
