"""How fast models write text, in which of their parts the time goes, and how much memory it takes.

Two models are only ever compared in one process, in strict alternation: whatever else the machine
does then slows both alike.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import numpy as np
import torch
from scipy import stats

from distillery.audio.decoding import Waveform
from distillery.evaluation.evaluations import Candidate
from distillery.evaluation.speed_results import SpeedResult
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.long_form import chunk_bounds, text_of, transcribe_in_chunks
from distillery.whisper.memory import is_out_of_memory, memory_kind, peak_memory, reset_peak_memory
from distillery.whisper.windows import Decoding, decoder_passes

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
Result = TypeVar("Result")

# Why a search for the batch that saturates ended.
THROUGHPUT, MEMORY, LARGEST = "throughput", "memory", "largest batch"


class Timing(NamedTuple):
    """One run: seconds in all, in the encoder and in the decoder, and bytes at the peak.

    The decoder's seconds are those of its forward passes; cutting, log-mel, the search around the
    passes and the tokenizer are the rest. `peak_bytes` is None where it cannot be measured.
    """

    wall_s: float
    encoder_s: float
    decoder_s: float
    peak_bytes: int | None


def device_clock(device: torch.device) -> Clock:
    """Return a clock in seconds that waits until the device has finished its work."""
    if device.type == "cpu":
        return time.perf_counter

    def read() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return read


def num_windows(whisper: Whisper, recordings: Sequence[Waveform]) -> int:
    """Return how many windows `transcribe` decodes."""
    log_mel = whisper.log_mel
    lengths = log_mel.sampling_rate, log_mel.window_s, 2 * _stride_s(whisper)
    return sum(1 for recording in recordings for _ in chunk_bounds(recording, *lengths))


def transcribe(
    whisper: Whisper, recordings: Sequence[Waveform], decoding: Decoding, batch_size: int
) -> list[str]:
    """Return the text of each recording, by chunked decoding with chunks of one window.

    Args:
        whisper: the model.
        recordings: float32 (samples,) each, of any length.
        decoding: see `Decoding`.
        batch_size: windows that are decoded at once, of one or several recordings.
    """
    numbered = transcribe_in_chunks(
        whisper,
        recordings,
        decoding,
        batch_size,
        chunk_length_s=whisper.log_mel.window_s,
        stride_length_s=_stride_s(whisper),
    )
    return [text_of(segments) for _, segments in sorted(numbered, key=itemgetter(0))]


def _stride_s(whisper: Whisper) -> float:
    return whisper.log_mel.window_s / 6  # as in the evaluation of long recordings


def time_transcription(
    whisper: Whisper,
    recordings: Sequence[Waveform],
    decoding: Decoding,
    batch_size: int,
    clock: Clock,
) -> Timing:
    """Transcribe once and return how long it took; arguments as for `transcribe`."""
    device = whisper.model.device
    encoder = [(whisper.model.model.encoder, "forward")]
    parts = {"encoder": encoder, "decoder": decoder_passes(whisper, decoding)}
    reset_peak_memory(device)
    with seconds_in(parts, clock) as spent:
        started = clock()
        transcribe(whisper, recordings, decoding, batch_size)
        wall_s = clock() - started
    return Timing(wall_s, spent["encoder"], spent["decoder"], peak_memory(device))


@contextmanager
def seconds_in(
    parts: Mapping[str, Sequence[tuple[Any, str]]], clock: Clock
) -> Iterator[Mapping[str, float]]:
    """Yield the seconds that the methods of each part take, as they add up.

    Args:
        parts: (object or class, method's name) by the name of the part; none may call another.
        clock: read before and after each call.
    """
    spent = dict.fromkeys(parts, 0.0)

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            spent[part] -= clock()
            result = method(*args, **named)
            spent[part] += clock()
            return result

        return call

    with ExitStack() as stack:
        for part, methods in parts.items():
            for owner, name in methods:
                call = timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, call))
        yield spent


@dataclass(frozen=True)
class Search:
    """The outcome of a search for the batch that saturates.

    `tried` holds each batch size and its throughput; `ended_by` says why no larger one was tried.
    """

    batch_size: int
    tried: list[tuple[int, float]]
    ended_by: str


def find_saturating_batch(
    throughput: Callable[[int], float], largest: int, min_growth: float
) -> Search:
    """Double the batch until it pays no more, and return the one with the highest throughput.

    Args:
        throughput: measures a batch size, in any unit that is higher for faster.
        largest: batch size that is not exceeded.
        min_growth: share by which a doubled batch must be faster for the search to go on.

    Raises:
        MemoryError: one window alone needs more memory than there is.
    """
    tried: list[tuple[int, float]] = []
    size, ended_by = 1, LARGEST
    while size <= largest:
        reached = _unless_out_of_memory(partial(throughput, size))
        if reached is None:
            ended_by = MEMORY
            break
        tried.append((size, reached))
        if size > 1 and reached < tried[-2][1] * (1 + min_growth):
            ended_by = THROUGHPUT
            break
        size *= 2
    if not tried:
        raise MemoryError("one window at a time needs more memory than there is")
    best, _ = max(tried, key=lambda pair: pair[1])
    return Search(best, tried, ended_by)


def _unless_out_of_memory(run: Callable[[], Result]) -> Result | None:
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not inside the handler: the error's traceback still holds what filled the memory.
    torch.cuda.empty_cache()
    return None


def alternate(
    runs: Sequence[Callable[[], Result]], num_rounds: int, logging_steps: int
) -> list[list[Result]]:
    """Run each once to warm up, then all in turn for several rounds; return each one's results."""
    for run in runs:
        run()
    rounds = []
    for number in range(1, num_rounds + 1):
        rounds.append([run() for run in runs])
        if number % logging_steps == 0:
            logger.info("%d of %d rounds measured", number, num_rounds)
    return [list(results) for results in zip(*rounds, strict=True)]


def ratio_with_interval(
    ours: Sequence[float], theirs: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Return the geometric mean of the ratios of pairs, and its 95 % t-interval.

    Logarithms are averaged: half as fast is as far from equal as twice as fast.

    Args:
        ours, theirs: at least two figures above 0 each; those at the same place were measured one
            after the other.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    middle, freedom = statistics.fmean(logs), len(logs) - 1
    quantile = float(stats.t.ppf(0.975, freedom))  # two-sided 95 %
    margin = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), (math.exp(middle - margin), math.exp(middle + margin))


def synthetic_sound(duration_s: float, sampling_rate: int) -> Waveform:
    """Make sound with the rhythm and the loudness of speech; the same in every call.

    Harmonics of a wandering pitch and some noise rise and fall four times a second. What a model
    writes for it means nothing.

    Returns:
        float32 (samples,).
    """
    random = np.random.default_rng(0)
    times = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    pitch_hz = 140 + 40 * np.sin(2 * np.pi * 0.31 * times)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / sampling_rate
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8))
    syllables = np.clip(np.sin(2 * np.pi * 4 * times), 0, None)
    sound = syllables * (0.1 * voice + 0.02 * random.standard_normal(len(times)))
    return np.asarray(sound, dtype=np.float32)


def cut(sound: Waveform, num_recordings: int, num_samples: int) -> list[Waveform]:
    """Cut recordings of one length from a sound, one after another; the sound repeats."""
    starts = [number * num_samples % len(sound) for number in range(num_recordings)]
    places = np.arange(num_samples)
    return [sound.take(start + places, mode="wrap") for start in starts]


# --- models against each other --------------------------------------------------------------------


@dataclass(frozen=True)
class Sound:
    """What is transcribed: float32 (samples,) at `rate` in Hz."""

    samples: Waveform
    rate: int
    num_bad: int


@dataclass(frozen=True, kw_only=True)
class SpeedCandidate(Candidate):
    """A model whose speed is measured, and how it decodes."""

    decoding: Decoding


def throughput(candidate: SpeedCandidate, sound: Sound, length_s: float, batch_size: int) -> float:
    """Return the real-time factor of the best of three runs; the first one also warms up."""
    recordings = _recordings(candidate, sound, length_s, batch_size)
    wall_s = min(_run(candidate, recordings, batch_size).wall_s for _ in range(3))
    return sum(map(len, recordings)) / sound.rate / wall_s


def compare(
    candidates: Sequence[SpeedCandidate],
    batch_sizes: Sequence[int],
    sound: Sound,
    length_s: float,
    num_runs: int,
    logging_steps: int,
) -> list[SpeedResult]:
    """Measure all models, each at its batch size, in strict alternation.

    Args:
        candidates: the models; the others are compared with the first.
        batch_sizes: windows at once, for each.
        sound: what recordings are cut from.
        length_s: of each recording.
        num_runs: after one to warm up.
        logging_steps: log once in this many rounds.
    """
    recordings = [
        _recordings(candidate, sound, length_s, size)
        for candidate, size in zip(candidates, batch_sizes, strict=True)
    ]
    work = list(zip(candidates, recordings, batch_sizes, strict=True))
    timings = alternate([partial(_run, *each) for each in work], num_runs, logging_steps)
    results = [
        _figures(*each, times, length_s, sound) for each, times in zip(work, timings, strict=True)
    ]
    return [results[0], *(_against(result, results[0]) for result in results[1:])]


def _against(result: SpeedResult, first: SpeedResult) -> SpeedResult:
    ratio, (low, high) = ratio_with_interval(result.rtfx_runs, first.rtfx_runs)
    return replace(result, speed_ratio=ratio, speed_ratio_low=low, speed_ratio_high=high)


def _recordings(
    candidate: SpeedCandidate, sound: Sound, length_s: float, batch_size: int
) -> list[Waveform]:
    """Return the fewest recordings whose windows fill a batch."""
    num_samples = round(length_s * sound.rate)
    windows_each = math.ceil(num_samples / candidate.whisper.log_mel.window_samples)
    return cut(sound.samples, math.ceil(batch_size / windows_each), num_samples)


def _run(candidate: SpeedCandidate, recordings: list[Waveform], batch_size: int) -> Timing:
    whisper = candidate.whisper
    clock = device_clock(whisper.model.device)
    return time_transcription(whisper, recordings, candidate.decoding, batch_size, clock)


def _figures(
    candidate: SpeedCandidate,
    recordings: list[Waveform],
    batch_size: int,
    timings: Sequence[Timing],
    length_s: float,
    sound: Sound,
) -> SpeedResult:
    """Return a model's figures over its runs."""
    whisper = candidate.whisper
    sound_s = sum(map(len, recordings)) / sound.rate
    wall_s = statistics.median(timing.wall_s for timing in timings)
    peaks = [timing.peak_bytes for timing in timings if timing.peak_bytes is not None]
    return SpeedResult(
        model=candidate.name,
        length_s=length_s,
        batch_size=batch_size,
        num_recordings=len(recordings),
        num_windows=num_windows(whisper, recordings),
        num_bad=sound.num_bad,
        num_parameters=whisper.num_parameters,
        sound_s=sound_s,
        wall_s=wall_s,
        rtfx=sound_s / wall_s,
        rtfx_runs=[sound_s / timing.wall_s for timing in timings],
        encoder_share=statistics.median(t.encoder_s / t.wall_s for t in timings),
        decoder_share=statistics.median(t.decoder_s / t.wall_s for t in timings),
        peak_memory_mb=max(peaks) / 1e6 if peaks else None,
        memory_kind=memory_kind(whisper.model.device),
        weights_mb=whisper.num_bytes / 1e6,
    )
