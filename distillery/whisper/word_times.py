"""Times of words, from where the decoder looks in the sound while it writes them.

The method is that of openai/whisper (`whisper/timing.py`): the text is given to the decoder, some
heads of its attention to the encoder are smoothed and averaged, and dynamic time warping finds the
cheapest way through them. Here the weights of those heads alone are computed, beside whatever
attention the model runs, and words are found by the text, so that it may be another one than the
model wrote: a punctuated one, say.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from distillery.audio.decoding import Waveform
from distillery.text.timestamps import Segment
from distillery.text.words import Word, split_words
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.greedy import encode
from distillery.whisper.windows import detect_languages

logger = logging.getLogger(__name__)

Head = tuple[int, int]  # decoder layer, and head in it

LEAST_DEVIATION = 1e-6  # of weights that are all alike


def alignment_heads(model: WhisperForConditionalGeneration) -> list[Head]:
    """Return the heads that follow the sound, by decoder layer and number.

    They are those of the generation config that the model has: a student whose config is a copy of
    its teacher's names layers that are not there, which crashes transformers and faster-whisper.
    Where none is left, or none is named, they are all heads of the upper half of the layers, as
    openai/whisper takes them.
    """
    config = model.config
    named = getattr(model.generation_config, "alignment_heads", None) or []
    there = [
        (layer, head)
        for layer, head in named
        if 0 <= layer < config.decoder_layers and 0 <= head < config.decoder_attention_heads
    ]
    if len(there) < len(named):
        logger.warning(
            "%d of %d alignment heads are in layers that the model does not have: left out",
            *(len(named) - len(there), len(named)),
        )
    upper = range(config.decoder_layers // 2, config.decoder_layers)
    return there or [(layer, h) for layer in upper for h in range(config.decoder_attention_heads)]


@dataclass
class _Window:
    """Neighbouring segments of a recording that share a window: `start` and `end` in samples.

    `words` have the number of their segment, and the place of their first token in `ids`.
    """

    recording: int
    waveform: Waveform
    start: int
    end: int
    members: list[Segment] = field(default_factory=list)
    words: list[tuple[int, Word]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def add(self, segment: Segment, end: int, ids: Sequence[int], words: Sequence[Word]) -> None:
        """Take in a segment that ends at a sample."""
        first, number = len(self.ids), len(self.members)
        self.end = max(self.end, end)
        self.members.append(segment)
        self.words += [(number, word._replace(first=first + word.first)) for word in words]
        self.ids += ids


class WordTimer:
    """Finds the times of words with one model."""

    def __init__(self, whisper: Whisper, decoding: Decoding, batch_size: int) -> None:
        """Take a model.

        Args:
            whisper: the model, on its device.
            decoding: of which language and task are read; without a language, it is detected.
            batch_size: windows side by side.
        """
        self._whisper, self._decoding, self._batch_size = whisper, decoding, batch_size
        self._heads = alignment_heads(whisper.model)

    @torch.inference_mode()
    def __call__(
        self, recordings: Sequence[tuple[Waveform, Sequence[Segment]]]
    ) -> list[list[list[Segment]]]:
        """Return the words of each segment of each recording, with times within the segment's.

        Args:
            recordings: float32 (samples,), and segments in order; of one that is longer than a
                window, the end is not looked at.
        """
        windows = (
            window
            for number, (waveform, segments) in enumerate(recordings)
            for window in self._windows(number, waveform, segments)
        )
        words: list[list[list[Segment]]] = [[] for _ in recordings]
        while batch := list(islice(windows, self._batch_size)):
            for window, times in zip(batch, self._token_times(batch), strict=True):
                timed = _timed_words(window, times, self._whisper.log_mel.sampling_rate)
                words[window.recording] += timed
        return words

    def _windows(
        self, recording: int, waveform: Waveform, segments: Sequence[Segment]
    ) -> Iterator[_Window]:
        """Put segments together as long as sound and text fit."""
        log_mel, most = self._whisper.log_mel, self._whisper.max_label_length - len(self._prefix())
        rate, longest = log_mel.sampling_rate, log_mel.window_samples
        window: _Window | None = None
        for segment in segments:
            start = min(round(segment.start * rate), len(waveform) - 1)
            end = min(max(round(segment.end * rate), start + 1), start + longest, len(waveform))
            written = self._whisper.tokenizer.backend_tokenizer.encode(
                segment.text, add_special_tokens=False
            )
            ids, words = written.ids[:most], split_words(segment.text, written.offsets)
            if window is not None:
                is_near = window.start <= start and end - window.start <= longest
                if not is_near or len(window.ids) + len(ids) > most:
                    yield window
                    window = None
            window = window or _Window(recording, waveform, start, end)
            window.add(segment, end, ids, words)
        if window is not None:
            yield window

    def _prefix(self, language: str | None = None) -> list[int]:
        tokens = self._whisper.tokens
        known = language or self._decoding.language or next(iter(tokens.languages), None)
        return tokens.prefix(known, self._decoding.task, timestamps=False)

    def _token_times(self, windows: Sequence[_Window]) -> list[NDArray[np.float64]]:
        """Return when each token of each window begins, in seconds from its start, and the end."""
        whisper, prefix = self._whisper, self._prefix()
        pieces = [window.waveform[window.start : window.end] for window in windows]
        encoded = encode(whisper, list(whisper.log_mel(pieces, whisper.model.device)))
        prefixes = [prefix] * len(windows)
        if self._decoding.language is None and whisper.tokens.is_multilingual:
            prefixes = [self._prefix(name) for name in detect_languages(whisper, encoded)]
        given = [[*each, *window.ids] for each, window in zip(prefixes, windows, strict=True)]
        scores = _attention(whisper.model, encoded, self._padded(given), self._heads)
        step_s = whisper.log_mel.window_s / encoded.shape[1]
        width = int(getattr(whisper.model.config, "median_filter_width", 7))
        times = []
        for row, ids, piece in zip(scores, given, pieces, strict=True):
            seconds = len(piece) / whisper.log_mel.sampling_rate
            num_steps = max(1, math.ceil(seconds / step_s))
            weights = _smoothed(row[:, : len(ids), :num_steps], width)[len(prefix) - 1 :]
            times.append(np.minimum(_first_steps(-weights) * step_s, seconds))
        return times

    def _padded(self, given: Sequence[list[int]]) -> Tensor:
        longest, end = max(map(len, given)), self._whisper.tokens.end_of_text
        padded = [[*ids, *[end] * (longest - len(ids))] for ids in given]
        return torch.tensor(padded, device=self._whisper.model.device)


def _timed_words(
    window: _Window, times: NDArray[np.float64], sampling_rate: int
) -> list[list[Segment]]:
    """Return the words of each of a window's segments."""
    last, offset = len(times) - 1, window.start / sampling_rate
    firsts = [min(word.first, last) for _, word in window.words]
    timed: list[list[Segment]] = [[] for _ in window.members]
    for (number, word), begin, end in zip(window.words, firsts, [*firsts[1:], last], strict=True):
        within = window.members[number]
        start_s, end_s = (
            min(max(offset + float(times[token]), within.start), within.end)
            for token in (begin, end)
        )
        timed[number].append(Segment(start_s, end_s, word.text))
    return timed


def _attention(
    model: WhisperForConditionalGeneration, encoded: Tensor, ids: Tensor, heads: Sequence[Head]
) -> Tensor:
    """Return what heads look at before the softmax: float32 (batch, heads, ids, positions).

    Args:
        model: of which the decoder runs once.
        encoded: encoder states, (batch, positions, width).
        ids: int64 (batch, ids), what the decoder is given.
        heads: which.
    """
    decoder, states = model.model.decoder, {}

    def keeper(layer: int) -> Any:
        def keep(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            states[layer] = given[0] if given else named["hidden_states"]

        return keep

    hooks = [
        decoder.layers[layer].encoder_attn.register_forward_pre_hook(
            keeper(layer), with_kwargs=True
        )
        for layer in {layer for layer, _ in heads}
    ]
    try:
        decoder(input_ids=ids, encoder_hidden_states=encoded, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    scores = []
    for layer, head in heads:
        attention = decoder.layers[layer].encoder_attn
        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        queries = attention.q_proj(states[layer])[..., part] * attention.scaling
        keys = attention.k_proj(encoded)[..., part]
        scores.append((queries @ keys.transpose(1, 2)).float())
    return torch.stack(scores, dim=1)


def _smoothed(scores: Tensor, width: int) -> NDArray[np.float64]:
    """Return how much each id looks at each position, (ids, positions), as a mean over heads.

    Args:
        scores: float32 (heads, ids, positions) of the real sound.
        width: of the median filter, in positions.
    """
    weights = scores.softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / deviation.clamp_min(LEAST_DEVIATION)
    beside = width // 2
    if beside and weights.shape[-1] > beside:
        weights = functional.pad(weights, (beside, beside), mode="reflect")
        weights = weights.unfold(-1, width, 1).median(-1).values
    return weights.mean(0).double().cpu().numpy()  # type: ignore[no-any-return]


def _first_steps(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the step at which the cheapest way from corner to corner reaches each row.

    Dynamic time warping; ways go on by a row, by a step, or by both. Of a row at a time: the best
    way to a step goes over that step from the row before, or along the row from an earlier one, so
    that it is the least of all sums up to here.

    Args:
        cost: (rows, steps).
    """
    num_rows, num_steps = cost.shape
    total = np.empty_like(cost)
    total[0] = cost[0].cumsum()
    for row in range(1, num_rows):
        above = total[row - 1]
        entered = np.minimum(above, np.concatenate([[np.inf], above[:-1]]))
        along = cost[row].cumsum()
        total[row] = along + np.minimum.accumulate(entered - along + cost[row])
    first = np.zeros(num_rows, dtype=np.int64)
    row, step = num_rows - 1, num_steps - 1
    while row > 0:
        ways = [(total[row - 1, step], 1, 0)]
        if step > 0:
            ways += [(total[row - 1, step - 1], 1, 1), (total[row, step - 1], 0, 1)]
        _, up, back = min(ways, key=lambda way: (way[0], -way[1] - way[2]))
        if up:
            first[row] = step
        row, step = row - up, step - back
    return first
