"""Greedy decoding of a stream of windows, with continuous batching.

A window that ends leaves the batch, and a waiting one takes its place (as in Orca, Yu et al., OSDI
2022). Every row stands at a position of its own, so prompts of any lengths, languages, tasks and
timestamps go side by side, and what is written for a window does not depend on its neighbours. In
float32 it is id for id what transformers' `generate` writes without beams.

On CUDA a step is captured as a graph, shapes come in few sizes, and the end is looked for every few
steps only. That part has not been run yet: no GPU was at hand.
"""

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from distillery.text.tokens import SpecialTokens, language_code
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_cache import CachedDecoder, compute_dtype
from distillery.whisper.decoding import Decoding, Transcript
from distillery.whisper.token_rules import Timing, TokenRules

logger = logging.getLogger(__name__)

Key = TypeVar("Key")

# Windows are encoded and begun together, once so many parts of the batch's rows are free: one by
# one, each would cost a pass over the decoder's weights of its own.
FREE_PARTS = 4

STEPS_BETWEEN_TESTS = 8  # on CUDA, where to look for the end is to wait for the device
ROWS_BUCKET, LENGTH_BUCKET = 8, 64  # on CUDA, sizes of a step are multiples of these


@dataclass(frozen=True)
class Window(Generic[Key]):
    """A window to transcribe.

    Attributes:
        key: the caller's name for it.
        features: log-mel, float (mels, frames), on any device.
        decoding: how; its beams are not looked at.
        prompt: ids that the decoder sees before the prefix.
    """

    key: Key
    features: Tensor
    decoding: Decoding
    prompt: Sequence[int] = ()


@dataclass
class _Row(Generic[Key]):
    """A window in the batch: so many ids were given, are there now, and are the most."""

    window: Window[Key]
    language: str | None
    num_given: int
    num_ids: int
    most: int


class GreedyDecoder(Generic[Key]):
    """Decodes windows greedily, so many at a time."""

    def __init__(self, whisper: Whisper, batch_size: int) -> None:
        """Keep a model; the batch's memory is taken with the first window.

        Args:
            whisper: the model, on its device.
            batch_size: windows decoded side by side; halved whenever memory runs out.
        """
        self.whisper, self.batch_size = whisper, batch_size
        self.steps_between_tests = STEPS_BETWEEN_TESTS if _on_cuda(whisper) else 1
        self._batch: _Batch | None = None
        self._rows: list[_Row[Key]] = []
        self._waiting: deque[Window[Key]] = deque()

    @torch.inference_mode()
    def transcribe(self, windows: Iterable[Window[Key]]) -> Iterator[tuple[Key, Transcript]]:
        """Transcribe windows; each is taken when there is room for it.

        Yields:
            The key of a window and its transcript, as they end: not in order.

        Raises:
            ValueError: a prompt leaves no room, or the model does not know a window's language.
            torch.OutOfMemoryError: not even one window fits.
        """
        source = iter(windows)
        try:
            while self._take(source) or self._rows:
                try:
                    finished = self._advance()
                except torch.OutOfMemoryError:
                    if self.batch_size == 1:
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
            self._batch = _Batch(self.whisper, self.batch_size)
        group = list(islice(self._waiting, self._room()))
        if group:
            self._rows += self._begin(self._batch, group)
            for _ in group:
                self._waiting.popleft()
        else:
            self._step(self._batch)
        return self._collect(self._batch)

    def _begin(self, batch: "_Batch", group: Sequence[Window[Key]]) -> list[_Row[Key]]:
        """Encode windows into the rows behind those in use, and let each write its first id."""
        rows = slice(len(self._rows), len(self._rows) + len(group))
        batch.decoder.hear(encode(self.whisper, [window.features for window in group]), rows)
        tokens = self.whisper.tokens
        languages = [window.decoding.language for window in group]
        if tokens.is_multilingual and None in languages:
            detected = likeliest_languages(batch.first_logits(rows), tokens)
            languages = [given or found for given, found in zip(languages, detected, strict=True)]
        begun, given = [], []
        for window, language in zip(group, languages, strict=True):
            how, code = window.decoding, language and language_code(language)
            prefix = tokens.prefix(code, how.task, how.timestamps)
            ids = [*window.prompt, *prefix]
            most = min(how.max_length + len(window.prompt), self.whisper.max_label_length)
            if most <= len(ids):
                raise ValueError(
                    f"window {window.key}: {len(ids)} ids of prompt and prefix leave no room for a "
                    f"transcript of at most {how.max_length} ids, the model has "
                    f"{self.whisper.max_label_length} positions"
                )
            given.append(ids)
            begun.append(_Row(window, code, len(ids), len(ids) + 1, most))
        starts = [len(window.prompt) for window in group]
        batch.begin(given, starts, [window.decoding.timestamps for window in group], rows)
        return begun

    def _step(self, batch: "_Batch") -> None:
        """Let every row write some ids, as many as none is too long for."""
        most = min(row.most - row.num_ids for row in self._rows)
        num_steps, length = min(self.steps_between_tests, most), max(r.num_ids for r in self._rows)
        any_timed = any(row.window.decoding.timestamps for row in self._rows)
        for step in range(num_steps):
            batch.step(len(self._rows), length + step, any_timed)
        for row in self._rows:
            row.num_ids += num_steps

    def _collect(self, batch: "_Batch") -> list[tuple[Key, Transcript]]:
        """Take the rows out that have ended, and close the gaps."""
        is_open = batch.is_open[: len(self._rows)].tolist()
        ended = [
            index
            for index, (row, goes_on) in enumerate(zip(self._rows, is_open, strict=True))
            if not goes_on or row.num_ids == row.most
        ]
        finished = batch.read(ended) if ended else []
        found = [
            (row.window.key, self._transcript(row, *values))
            for row, values in zip([self._rows[index] for index in ended], finished, strict=True)
        ]
        for index in reversed(ended):
            last = self._rows.pop()
            if index < len(self._rows):
                batch.move(len(self._rows), index)
                self._rows[index] = last
        return found

    def _transcript(
        self, row: _Row[Key], ids: list[int], logprob: float, no_speech: float
    ) -> Transcript:
        tokens = self.whisper.tokens
        written = ids[row.num_given : row.num_ids]
        if tokens.end_of_text in written:
            written = written[: written.index(tokens.end_of_text) + 1]
        prefix = ids[len(row.window.prompt) : row.num_given]
        return Transcript(
            [*prefix, *written],
            written[-1] != tokens.end_of_text,
            logprob / len(written),
            None if tokens.no_speech is None else no_speech,
            row.language,
        )

    def _halve(self) -> None:
        """Give the memory back, and begin all unfinished windows anew in a smaller batch."""
        self._waiting.extendleft(row.window for row in reversed(self._rows))
        self._rows.clear()
        self._batch = None
        gc.collect()
        if _on_cuda(self.whisper):
            torch.cuda.empty_cache()
        self.batch_size //= 2
        logger.warning("out of memory: decoding goes on with batches of %d", self.batch_size)


class _Batch:
    """The device's side of a batch: keys and values, ids, and what each row needs to go on."""

    def __init__(self, whisper: Whisper, num_rows: int) -> None:
        model, self.tokens = whisper.model, whisper.tokens
        on_cuda = _on_cuda(whisper)
        if on_cuda:  # rows that fill a bucket up decode what nobody reads
            num_rows = _rounded(num_rows, ROWS_BUCKET)
        self.decoder = CachedDecoder(model, num_rows)
        self.rules = TokenRules(model, self.tokens)
        self.timing = Timing.of(num_rows, self.tokens, model.device)
        new = {"device": model.device}
        self.ids = torch.zeros((num_rows, self.decoder.num_positions), dtype=torch.long, **new)
        self.position = torch.zeros((num_rows, 1), dtype=torch.long, **new)  # of each last id
        self.is_open = torch.zeros(num_rows, dtype=torch.bool, **new)
        self.logprob = torch.zeros(num_rows, **new)
        self.no_speech = torch.zeros(num_rows, **new)
        self._graphs = _StepGraphs() if on_cuda else None

    def begin(
        self,
        given: Sequence[Sequence[int]],
        starts: Sequence[int],
        timed: Sequence[bool],
        rows: slice,
    ) -> None:
        """Feed each row the ids that it is given, and let it write the first one behind them.

        Args:
            given: ids by row, prompt and prefix.
            starts: where in them `<|startoftranscript|>` stands.
            timed: whether timestamps are written.
            rows: which rows these are.
        """
        device, tokens = self.ids.device, self.tokens
        longest = max(len(ids) for ids in given)
        padded = [[*ids, *[tokens.end_of_text] * (longest - len(ids))] for ids in given]
        ids = torch.tensor(padded, device=device)
        positions = torch.arange(longest, device=device).expand_as(ids)
        states = self.decoder.states(ids, positions, rows, longest)
        last = torch.tensor([len(ids) - 1 for ids in given], device=device)
        row = torch.arange(len(given), device=device)
        if tokens.no_speech is not None:
            logits = self.decoder.logits(states[row, torch.tensor(starts, device=device)])
            self.no_speech[rows] = logits.softmax(-1)[:, tokens.no_speech]
        self.ids[rows, :longest] = ids
        self.position[rows] = last[:, None]
        self.is_open[rows] = True
        self.logprob[rows] = 0
        timing = self.timing[rows]
        timing.begin(torch.tensor(timed, device=device), tokens)
        logits = self.decoder.logits(states[row, last])
        self._write(logits, self.rules.first(logits, timing), rows)

    def first_logits(self, rows: slice) -> Tensor:
        """Return logits of what stands behind `<|startoftranscript|>` alone."""
        position = self.position[rows].zero_()
        start = torch.full_like(position, self.tokens.start_of_transcript)
        return self.decoder.logits(self.decoder.states(start, position, rows, 1)[:, 0])

    def step(self, num_rows: int, length: int, any_timed: bool) -> None:
        """Let the first rows write an id each; no row has more than `length` of them yet."""
        if self._graphs is None:
            self._step(num_rows, length, any_timed)
            return
        num_rows = min(_rounded(num_rows, ROWS_BUCKET), self.decoder.num_rows)
        length = min(_rounded(length, LENGTH_BUCKET), self.decoder.num_positions)
        shape = (num_rows, length, any_timed)
        self._graphs.run(shape, lambda: self._step(*shape))

    def _step(self, num_rows: int, length: int, any_timed: bool) -> None:
        rows = slice(0, num_rows)
        position = self.position[rows]
        states = self.decoder.states(self.ids[rows].gather(1, position), position, rows, length)
        logits = self.decoder.logits(states[:, 0])
        self._write(logits, self.rules.later(logits, self.timing[rows], any_timed), rows)

    def _write(self, logits: Tensor, scores: Tensor, rows: slice) -> None:
        """Write the best id of each row, and count its log-probability where it has not ended."""
        best = scores.argmax(-1, keepdim=True)
        logprob = (logits.gather(1, best) - logits.logsumexp(-1, keepdim=True))[:, 0]
        is_open, position = self.is_open[rows], self.position[rows]
        self.logprob[rows] += torch.where(is_open, logprob, 0.0)
        # A row of a bucket that holds no window walks on: not over the end.
        position.add_(1).clamp_(max=self.ids.shape[1] - 1)
        self.ids[rows].scatter_(1, position, best)
        is_open &= best[:, 0] != self.tokens.end_of_text
        self.timing[rows].advance(best[:, 0], self.tokens)

    def read(self, rows: Sequence[int]) -> list[tuple[list[int], float, float]]:
        """Return ids, sum of log-probabilities and probability of no speech of rows."""
        chosen = torch.tensor(rows, device=self.ids.device)
        parts = (part[chosen].tolist() for part in (self.ids, self.logprob, self.no_speech))
        return list(zip(*parts, strict=True))

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        self.decoder.move(source, target)
        timing = vars(self.timing).values()
        for part in (self.ids, self.position, self.is_open, self.logprob, self.no_speech, *timing):
            part[target] = part[source]


@dataclass
class _StepGraphs:
    """CUDA graphs of a step, one for each shape. Not run yet: no GPU was at hand."""

    graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph | None] = field(default_factory=dict)
    pool: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle())

    def run(self, shape: tuple[int, int, bool], step: Callable[[], None]) -> None:
        """Run a step: the first of a shape as it is, which loads kernels; then as a graph."""
        if shape not in self.graphs:
            self.graphs[shape] = None
            step()
            return
        graph = self.graphs[shape]
        if graph is None:
            graph = self.graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self.pool):  # captures, and runs nothing
                step()
        graph.replay()


def encode(whisper: Whisper, features: Sequence[Tensor]) -> Tensor:
    """Return the encoder's states, (windows, positions, width), of log-mel features."""
    model = whisper.model
    stacked = torch.stack(list(features)).to(model.device, model.dtype, non_blocking=True)
    return model.model.encoder(stacked).last_hidden_state  # type: ignore[no-any-return]


def likeliest_languages(logits: Tensor, tokens: SpecialTokens) -> list[str]:
    """Return codes of languages by the logits, (windows, ids), behind the very first id."""
    codes, ids = list(tokens.languages), list(tokens.languages.values())
    return [codes[best] for best in logits[:, ids].argmax(-1).tolist()]


def _on_cuda(whisper: Whisper) -> bool:
    return bool(whisper.model.device.type == "cuda")


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
