"""A batch of rows of which each writes a transcript, at a place of its own: the device's side.

What stays on the device lies in tensors of one shape, so that a step can be captured as a CUDA
graph and replayed. On a CPU the same step runs as it is; tests replay it there too, operation by
operation. CUDA's own graphs have not been run yet: no GPU was at hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distillery.text.tokens import SpecialTokens
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_cache import CachedDecoder
from distillery.whisper.sampling import drawn
from distillery.whisper.token_rules import Timing, TokenRules

ROWS_BUCKET, LENGTH_BUCKET = 8, 64  # on CUDA, sizes of a step are multiples of these


@dataclass(frozen=True)
class Start:
    """What a row begins with.

    Attributes:
        ids: prompt and prefix.
        begin: where in them `<|startoftranscript|>` stands.
        timed: whether timestamps are written.
        temperature: at which ids are drawn; 0 takes the most probable ones.
        seed: of what is drawn, from 0 to 2**32 - 1.
    """

    ids: Sequence[int]
    begin: int
    timed: bool
    temperature: float
    seed: int


class Shape(NamedTuple):
    """What decides which operations a step consists of.

    Attributes:
        num_rows: the first so many rows write.
        length: none of them has more ids yet.
        any_timed: whether any is written with timestamps.
        any_drawn: whether any is drawn at random.
    """

    num_rows: int
    length: int
    any_timed: bool
    any_drawn: bool


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
        self.temperature = torch.zeros(num_rows, **new)
        self.seed = torch.zeros(num_rows, dtype=torch.long, **new)
        self._captured = _CapturedSteps(CudaCapture()) if captures else None

    def hear(self, states: Tensor, rows: slice) -> None:
        """Let rows hear windows, of which these are the encoder's states."""
        self.decoder.hear(states, rows)

    def begin(self, starts: Sequence[Start], rows: slice) -> None:
        """Feed rows, which hear windows, what they are given, and let them write the first id.

        Args:
            starts: of the rows.
            rows: which rows these are.
        """
        device, tokens = self.ids.device, self.tokens
        longest = max(len(start.ids) for start in starts)
        ids = torch.tensor(
            [[*s.ids, *[tokens.end_of_text] * (longest - len(s.ids))] for s in starts],
            device=device,
        )
        self.decoder.forget(rows)
        positions = torch.arange(longest, device=device).expand_as(ids)
        states = self.decoder.states(ids, positions, rows, longest)
        last = torch.tensor([len(start.ids) - 1 for start in starts], device=device)
        row = torch.arange(len(starts), device=device)
        if tokens.no_speech is not None:
            begin = torch.tensor([start.begin for start in starts], device=device)
            logits = self.decoder.logits(states[row, begin])
            self.no_speech[rows] = logits.softmax(-1)[:, tokens.no_speech]
        self.ids[rows, :longest] = ids
        self.position[rows] = last[:, None]
        self.is_open[rows] = True
        self.logprob[rows] = 0
        self.temperature[rows] = torch.tensor([s.temperature for s in starts], device=device)
        self.seed[rows] = torch.tensor([start.seed for start in starts], device=device)
        timing = self.timing[rows]
        timing.begin(torch.tensor([start.timed for start in starts], device=device), tokens)
        logits = self.decoder.logits(states[row, last])
        any_drawn = any(start.temperature > 0 for start in starts)
        self._write(logits, self.rules.first(logits, timing), rows, any_drawn)

    def first_logits(self, rows: slice) -> Tensor:
        """Return logits of what stands behind `<|startoftranscript|>` alone."""
        position = self.position[rows].zero_()
        start = torch.full_like(position, self.tokens.start_of_transcript)
        return self.decoder.logits(self.decoder.states(start, position, rows, 1)[:, 0])

    def step(self, shape: Shape) -> None:
        """Let the first rows write an id each."""
        if self._captured is None:
            self._step(shape)
            return
        shape = shape._replace(
            num_rows=min(_rounded(shape.num_rows, ROWS_BUCKET), self.decoder.num_rows),
            length=min(_rounded(shape.length, LENGTH_BUCKET), self.decoder.num_positions),
        )
        self._captured.run(shape, lambda: self._step(shape))

    def _step(self, shape: Shape) -> None:
        rows = slice(0, shape.num_rows)
        ids, position = self.ids[rows], self.position[rows]
        states = self.decoder.states(ids.gather(1, position), position, rows, shape.length)
        logits = self.decoder.logits(states[:, 0])
        scores = self.rules.later(logits, self.timing[rows], shape.any_timed)
        self._write(logits, scores, rows, shape.any_drawn)

    def _write(self, logits: Tensor, scores: Tensor, rows: slice, any_drawn: bool) -> None:
        """Write the next id of each row, and count its log-probability where it has not ended."""
        is_open, position = self.is_open[rows], self.position[rows]
        # A row of a bucket that holds no window walks on: not over the end.
        position.add_(1).clamp_(max=self.ids.shape[1] - 1)
        if any_drawn:
            scores = drawn(scores, self.temperature[rows], self.seed[rows], position[:, 0])
        best = scores.argmax(-1, keepdim=True)
        logprob = (logits.gather(1, best) - logits.logsumexp(-1, keepdim=True))[:, 0]
        self.logprob[rows] += torch.where(is_open, logprob, 0.0)
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
        state = self.ids, self.position, self.is_open, self.logprob, self.no_speech
        for part in (*state, self.temperature, self.seed, *vars(self.timing).values()):
            part[target] = part[source]


class _CapturedSteps:
    """Steps that were captured, one for each shape, and are replayed without Python."""

    def __init__(self, capture: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """Begin with none; `capture` returns what replays the operations of a step."""
        self._capture = capture
        self._replays: dict[Shape, Callable[[], None] | None] = {}

    def run(self, shape: Shape, step: Callable[[], None]) -> None:
        """Run a step: the first of a shape as it is, which loads kernels; later as captured."""
        if shape not in self._replays:
            self._replays[shape] = None
            step()
            return
        replay = self._replays[shape]
        if replay is None:
            replay = self._replays[shape] = self._capture(step)
        replay()


class CudaCapture:
    """Captures steps as CUDA graphs, which share their memory. Not run yet: no GPU was at hand."""

    def __init__(self) -> None:
        """Take a pool of memory."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture a step, which runs nothing; return what replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool):
            step()
        return graph.replay  # type: ignore[no-any-return]


def likeliest_languages(logits: Tensor, tokens: SpecialTokens) -> list[str]:
    """Return codes of languages by the logits, (windows, ids), behind the very first id."""
    codes, ids = list(tokens.languages), list(tokens.languages.values())
    return [codes[best] for best in logits[:, ids].argmax(-1).tolist()]


def on_cuda(whisper: Whisper) -> bool:
    """Tell whether a model runs on a CUDA device."""
    return bool(whisper.model.device.type == "cuda")


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
