"""A batch of rows of which each writes a transcript, at a place of its own: the device's side.

What stays on the device lies in tensors of one shape, so that a step can be captured as a CUDA
graph and replayed. On a CPU the same step runs as it is. The graphs have not been run yet: no GPU
was at hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillery.text.tokens import SpecialTokens
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_cache import CachedDecoder
from distillery.whisper.token_rules import Timing, TokenRules

ROWS_BUCKET, LENGTH_BUCKET = 8, 64  # on CUDA, sizes of a step are multiples of these


class Batch:
    """The device's side of a batch: keys and values, ids, and what each row needs to go on."""

    def __init__(self, whisper: Whisper, num_rows: int, captures: bool) -> None:
        """Allocate; `captures` is for CUDA alone."""
        model, self.tokens = whisper.model, whisper.tokens
        # A graph would keep the place of weights that autocast made, and lets go of at its end.
        autocast = torch.is_autocast_enabled(model.device.type)
        captures = captures and on_cuda(whisper) and not autocast
        if captures:  # rows that fill a bucket up decode what nobody reads
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
        self._graphs = _StepGraphs() if captures else None

    def hear(self, states: Tensor, rows: slice) -> None:
        """Let rows hear windows, of which these are the encoder's states."""
        self.decoder.hear(states, rows)

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


def likeliest_languages(logits: Tensor, tokens: SpecialTokens) -> list[str]:
    """Return codes of languages by the logits, (windows, ids), behind the very first id."""
    codes, ids = list(tokens.languages), list(tokens.languages.values())
    return [codes[best] for best in logits[:, ids].argmax(-1).tolist()]


def on_cuda(whisper: Whisper) -> bool:
    """Tell whether a model runs on a CUDA device."""
    return bool(whisper.model.device.type == "cuda")


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
