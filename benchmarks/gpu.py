"""Labelling and training on one GPU in at most 8 minutes, with random weights in large-v3's shape.

    PYTHONPATH=. python benchmarks/gpu.py
    PYTHONPATH=. python benchmarks/gpu.py --tiny    # seconds, on a CPU, to see that it works

Needs no file: neither weights, nor a tokenizer, nor audio. It prints, as they come:

- what the device reaches in products of matrices and in copies;
- whether our search writes what transformers' `generate` writes, on a small model in float32, as
  plain steps and as captured ones (CUDA graphs);
- RTFx (seconds of audio per second) of `generate` and of our search in bfloat16, eager and
  captured, for clips of about 6 s that are padded to 30 s, and for packed windows, with batches of
  64 to 256. Random weights never end, so every window has 3 ids for a second of its speech in all
  programs. Samples lie in the computer's memory; log-mel features are made on the device;
- windows a second of the distillation step: 32 encoder layers that teacher and student share, 2
  decoder layers, 128 labels each, all of which count.

Shares are those of the floor computed for one H200 (790 TFLOP/s, 4.8 TB/s). What fails says why in
the table, and what does not fit the time is left out.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from decoding import TINY as SMALL
from decoding import new_model
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import logging as transformers_logging

from distillery.audio.decoding import Waveform
from distillery.audio.log_mel import LogMel
from distillery.text.tokens import SpecialTokens
from distillery.training.losses import LossWeights
from distillery.training.step import StudentStep, Teacher
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.greedy import GreedyDecoder, Window
from distillery.whisper.student import make_student

IDS_PER_S = 3
FLOORS = {"padded": 1350, "packed": 3240}  # RTFx on one H200; see `--help`
TRAINING_FLOOR = 265  # windows a second
NUM_TRAINING_IDS = 128
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


def main(argv: Sequence[str] | None = None) -> None:
    """Print all tables."""
    args = parse_arguments(argv)
    transformers_logging.set_verbosity_error()
    device = torch.device("cpu" if args.tiny else "cuda")
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: --tiny shows on a CPU that the program works")
    budget = Budget(60 * args.minutes)
    name = "a CPU" if args.tiny else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}, at most {args.minutes:g} minutes")
    attempt("ceilings", budget, lambda: ceilings(device, 256 if args.tiny else 8192))
    for captures in (False, True):
        attempt("ids", budget, partial(equality, device, captures, TOY if args.tiny else SMALL))
    shape, dtype = (TOY, torch.float32) if args.tiny else (LARGE, torch.bfloat16)
    whisper = random_whisper(device, dtype, shape)
    print("\n| training | batch | windows/s | of the floor | GiB |\n|---|---:|---:|---:|---:|")
    attempt("distillation", budget, lambda: training(whisper, 2 if args.tiny else 64))
    print("\n| windows | program | batch | RTFx | of the floor | GiB |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for batch_size in (2,) if args.tiny else (64, 128, 256):
        for program in ("captured", "eager", "generate"):
            for kind in FLOORS:
                run = partial(labelling, whisper, kind, program, batch_size, args.runs)
                attempt(f"{kind} | {program} | {batch_size}", budget, run)
    print(f"\n{budget.taken_s:.0f} s in all")


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


def ceilings(device: torch.device, size: int) -> str:
    """Return what the device reaches in products of bfloat16 matrices and in copies."""
    first, second = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product_s = seconds_of(lambda: first @ second, device)
    source, target = (
        torch.zeros(16 * size * size, dtype=torch.uint8, device=device) for _ in range(2)
    )
    copy_s = seconds_of(lambda: target.copy_(source), device)
    return (
        f"products of matrices: {2 * size**3 / product_s / 1e12:.3g} TFLOP/s; "
        f"copies: {2 * source.numel() / copy_s / 1e12:.3g} TB/s read and written"
    )


def equality(device: torch.device, captures: bool, shape: dict[str, int]) -> str:
    """Return in how many windows our search writes the ids of `generate`, in float32."""
    whisper = random_whisper(device, torch.float32, shape)
    speech = windows(whisper, "padded", 24)
    program = "captured" if captures else "eager"
    found = []
    for timestamps in (False, True):
        wanted = generate(whisper, speech, 8, timestamps)
        ours = search(whisper, speech, GreedyDecoder(whisper, 8, captures=captures), timestamps)
        same = sum(one == other for one, other in zip(ours, wanted, strict=True))
        found.append(f"{same} of {len(wanted)} {'with' if timestamps else 'without'} timestamps")
    return f"windows with the ids of generate, {program}: {', '.join(found)}"


def labelling(whisper: Whisper, kind: str, program: str, batch_size: int, runs: int) -> str:
    """Return the line of one program; its first pass, which captures the graphs, is not counted."""
    is_tiny = whisper.model.device.type == "cpu"
    speech = windows(whisper, kind, 3 * batch_size if is_tiny else max(512, 2 * batch_size))
    if program == "generate":
        work = partial(generate, whisper, speech, batch_size, False)
        first = Speech(speech.waveforms[:batch_size], speech.seconds[:batch_size])
        generate(whisper, first, batch_size, False)
    else:
        decoder = GreedyDecoder[int](whisper, batch_size, captures=program == "captured")
        work = partial(search, whisper, speech, decoder, False)
        work()
        batch_size = decoder.batch_size  # smaller, where memory ran out
    taken_s = seconds_of(work, whisper.model.device, runs, warm=False)
    # The floors are those of windows of 30 s.
    rtfx = sum(speech.seconds) / taken_s
    cells = (kind, program, batch_size, f"{rtfx:,.0f}", f"{rtfx / FLOORS[kind]:.0%}", memory())
    return f"| {' | '.join(map(str, cells))} |"


def training(whisper: Whisper, batch_size: int) -> str:
    """Return the line of the distillation step: 2 decoder layers learn from all the teacher's."""
    model, device = whisper.model, whisper.model.device
    student = make_student(
        model, range(model.config.encoder_layers), (0, model.config.decoder_layers - 1)
    ).float()
    student.model.encoder.to(model.dtype).requires_grad_(False)
    student.to(device).train()
    teacher = Teacher(model, student)
    step = StudentStep(student, LossWeights())
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")
    waveforms = windows(whisper, "packed", batch_size).waveforms
    features = whisper.log_mel(waveforms, device).to(model.dtype)
    num_ids = min(NUM_TRAINING_IDS, whisper.max_label_length)
    ids = torch.randint(END, (batch_size, num_ids), device=device)

    def update() -> None:
        heard = teacher(features, ids)
        with torch.autocast(device.type, torch.bfloat16):
            losses = step(features, ids, ids.roll(-1, 1), heard)
        (losses.total / losses.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    taken_s = seconds_of(update, device, runs=10 if device.type == "cuda" else 2)
    assert teacher.shares_encoder
    speed = batch_size / taken_s
    cells = ("distillation", batch_size, f"{speed:.1f}", f"{speed / TRAINING_FLOOR:.0%}", memory())
    return f"| {' | '.join(map(str, cells))} |"


@torch.inference_mode()
def generate(
    whisper: Whisper, speech: Speech, batch_size: int, timestamps: bool
) -> list[list[int]]:
    """Return ids by a loop over batches of transformers' `generate`."""
    written = []
    for start in range(0, len(speech.waveforms), batch_size):
        lengths = speech.num_ids[start : start + batch_size]
        waveforms = speech.waveforms[start : start + batch_size]
        rows = whisper.model.generate(
            whisper.log_mel(waveforms, whisper.model.device).to(whisper.model.dtype),
            language="en",
            task="transcribe",
            return_timestamps=timestamps,
            max_new_tokens=max(lengths),
            force_unique_generate_call=True,
        ).tolist()
        prefix = len(whisper.tokens.prefix("en", "transcribe", timestamps))
        written += [row[: prefix + n] for row, n in zip(rows, lengths, strict=True)]
    return written


def search(
    whisper: Whisper, speech: Speech, decoder: GreedyDecoder[int], timestamps: bool
) -> list[list[int]]:
    """Return ids by our own loop."""
    prefix = len(whisper.tokens.prefix("en", "transcribe", timestamps))

    def waiting() -> Iterator[Window[int]]:
        both = zip(speech.waveforms, speech.num_ids, strict=True)
        for index, (waveform, num_ids) in enumerate(both):
            (features,) = whisper.log_mel([waveform], whisper.model.device)
            decoding = Decoding("en", "transcribe", timestamps, 1, prefix + num_ids)
            yield Window(index, features, decoding)

    found = dict(decoder.transcribe(waiting()))
    return [found[index].ids for index in range(len(speech.waveforms))]


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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tiny", action="store_true", help="a toy on the CPU, to see that the program works")
    add("--minutes", type=float, default=8, help="nothing is begun that would take longer (8)")
    add("--runs", type=int, default=2, help="passes that count, of each program (2)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
