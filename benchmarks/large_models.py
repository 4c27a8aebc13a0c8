"""What the two halves of `gpu.py` share: random models of large-v3's shape, and timing."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from decoding import new_model
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from distillery.audio.decoding import Waveform
from distillery.audio.log_mel import LogMel
from distillery.text.tokens import SpecialTokens
from distillery.whisper.checkpoint import Whisper

IDS_PER_S = 3
SPEECH_S = 29.5  # in the fullest window

# Ids of large-v3's tokenizer.
END, START, NUM_IDS = 50257, 50258, 51866
CODES = {code: START + 1 + index for index, code in enumerate(LANGUAGES)}
BEHIND = START + 1 + len(CODES)  # translate, transcribe, …, startofprev, nospeech, notimestamps
TOKENS = SpecialTokens(
    START, END, BEHIND + 3, BEHIND + 5, BEHIND + 6, BEHIND + 1, BEHIND, CODES, BEHIND + 4
)

LARGE = {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "num_mel_bins": 128}
LARGE |= {"encoder_attention_heads": 20, "decoder_attention_heads": 20}
LARGE |= {"encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120}
TOY = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "num_mel_bins": 16}
TOY |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 100}
TOY |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_target_positions": 112}


@dataclass(frozen=True)
class Speech:
    """Windows to label: their samples, and the seconds of speech in each."""

    waveforms: Sequence[Waveform]
    seconds: Sequence[float]

    @property
    def num_ids(self) -> list[int]:
        """Ids to write for each."""
        return [round(IDS_PER_S * seconds) for seconds in self.seconds]


@dataclass
class Budget:
    """The seconds that all may take, and the longest piece of work so far."""

    seconds: float
    longest_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def taken_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def windows(whisper: Whisper, kind: str, count: int) -> Speech:
    """Return windows of noise: clips of about 6 s, padded to 30 s, or such as are packed."""
    rng = np.random.default_rng(0)
    padded = np.clip(rng.lognormal(np.log(5.8), 0.35, count), 2, 12)
    seconds = padded if kind == "padded" else rng.uniform(27, SPEECH_S, count)
    rate = whisper.log_mel.sampling_rate
    noise = 0.1 * rng.standard_normal(round(2 * SPEECH_S * rate)).astype(np.float32)
    starts = rng.integers(0, round(SPEECH_S * rate), count)
    waveforms = [
        noise[start : start + round(length * rate)]
        for start, length in zip(starts, seconds, strict=True)
    ]
    return Speech(waveforms, seconds.tolist())


def random_whisper(device: torch.device, dtype: torch.dtype, shape: dict[str, int]) -> Whisper:
    """Return a model with random weights and large-v3's ids; it has no tokenizer."""
    with device:
        model = new_model(TOKENS, NUM_IDS, **shape).to(dtype)
    config = model.config
    window_s = config.max_source_positions // 50
    extractor = WhisperFeatureExtractor(config.num_mel_bins, chunk_length=window_s)
    log_mel, most = LogMel(extractor), config.max_target_positions
    return Whisper(None, extractor, TOKENS, log_mel, most, model)  # type: ignore[arg-type]


def seconds_of(
    work: Callable[[], object], device: torch.device, runs: int = 3, warm: bool = True
) -> float:
    """Return the median of the seconds that some work takes."""
    if warm:
        work()
    taken = []
    for _ in range(runs):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory() -> str:
    """Return the most GiB that tensors took on the GPU since the last line."""
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if torch.cuda.is_available() else "-"


def attempt(name: str, budget: Budget, work: Callable[[], str]) -> None:
    """Print the result of some work, or what went wrong with it; none is begun without time."""
    started = budget.taken_s
    try:
        if started + budget.longest_s > budget.seconds:
            print(f"| {name} | no time left |", flush=True)
            return
        print(work(), flush=True)
    except Exception as error:  # noqa: BLE001 - the other lines are wanted all the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"| {name} | FAILED: {reason[:300]} |", flush=True)
    budget.longest_s = max(budget.longest_s, budget.taken_s - started)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
