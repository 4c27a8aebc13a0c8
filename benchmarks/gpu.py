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
- windows a second of an update of distillation: 32 encoder layers that teacher and student share,
  2 decoder layers, 64 windows of 128 labels, all of which count; as the stage makes it, from the
  samples on, eager and compiled, and by the published formula (all logits of both; the encoder runs
  once), from features on. Whether their losses agree, and the largest batch that fits.

Shares are those of the floor computed for one H200 (790 TFLOP/s, 4.8 TB/s). What fails says why in
the table, and what does not fit the time is left out.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from decoding import TINY as SMALL
from gpu_training import training_half
from large_models import (
    LARGE,
    TOY,
    Budget,
    Speech,
    attempt,
    memory,
    random_whisper,
    seconds_of,
    windows,
)
from transformers.utils import logging as transformers_logging

from distillery.training import stacks
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.greedy import GreedyDecoder, Window

FLOORS = {"padded": 1350, "packed": 3240}  # RTFx on one H200; see `--help`


def main(argv: Sequence[str] | None = None) -> None:
    """Print all tables."""
    args = parse_arguments(argv)
    transformers_logging.set_verbosity_error()
    device = torch.device("cpu" if args.tiny else "cuda")
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: --tiny shows on a CPU that the program works")
    if args.tiny:
        stacks.BACKEND = "aot_eager"  # a CPU may have no compiler
    budget = Budget(60 * args.minutes)
    name = "a CPU" if args.tiny else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}, at most {args.minutes:g} minutes")
    attempt("ceilings", budget, lambda: ceilings(device, 256 if args.tiny else 8192))
    for captures in (False, True):
        attempt("ids", budget, partial(equality, device, captures, TOY if args.tiny else SMALL))
    training_half(device, budget, args.tiny)
    shape, dtype = (TOY, torch.float32) if args.tiny else (LARGE, torch.bfloat16)
    whisper = random_whisper(device, dtype, shape)
    print("\n| windows | program | batch | RTFx | of the floor | GiB |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for batch_size in (2,) if args.tiny else (64, 128, 256):
        for program in ("captured", "eager", "generate"):
            for kind in FLOORS:
                run = partial(labelling, whisper, kind, program, batch_size, args.runs)
                attempt(f"{kind} | {program} | {batch_size}", budget, run)
    print(f"\n{budget.taken_s:.0f} s in all")


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
