"""Long-form decoding against transformers' own, on the same recordings in the same run.

    PYTHONPATH=. python benchmarks/long_form.py --model runs/quickstart/student \
        --manifest runs/quickstart/corpus/long.jsonl --language ja --stride_length_s 1

The references are `generate` with timestamps (sequential, all recordings in one batch) and the
speech recognition pipeline (chunked), both as their documentation has them. All four are run in
turn, `NUM_RUNS` times; the character error rate is of the normalised texts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from distillery.audio.decoding import Waveform, decode_audio
from distillery.data import schema
from distillery.text.error_rates import character_errors
from distillery.text.labels import plain_text
from distillery.text.normalizers import Normalizer, raw_text
from distillery.whisper import checkpoint
from distillery.whisper.long_form import (
    NumberedSegments,
    text_of,
    transcribe_in_chunks,
    transcribe_sequentially,
)
from distillery.whisper.windows import Decoding, prompt_arguments

NUM_RUNS = 3


def main() -> None:
    """Run all four, and print error rate and speed of each."""
    args = parse_arguments()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    model = checkpoint.load(args.model)
    rows = [json.loads(line) for line in args.manifest.read_text("utf-8").splitlines()]
    waves = [
        decode_audio(
            {"path": args.manifest.parent / row[schema.AUDIO]}, model.log_mel.sampling_rate
        )
        for row in rows
    ]
    references = [raw_text(row[schema.TEXT]) for row in rows]
    normalizer = model.normalizer(args.language, "transcribe")
    decoding = Decoding(args.language, "transcribe", False, 1, args.max_length)
    functions = {
        "sequential, transformers": lambda: generate(model, waves, decoding),
        "sequential, ours": lambda: texts_of(
            transcribe_sequentially(model, waves, decoding, args.batch_size)
        ),
        "chunked, transformers": lambda: pipe(model, waves, decoding, args),
        "chunked, ours": lambda: texts_of(
            transcribe_in_chunks(
                model,
                waves,
                decoding,
                args.batch_size,
                chunk_length_s=args.chunk_length_s or model.log_mel.window_s,
                stride_length_s=args.stride_length_s,
            )
        ),
    }
    audio_s = sum(map(len, waves)) / model.log_mel.sampling_rate
    print(f"{len(waves)} recordings, {audio_s:.0f} s")
    measure(functions, references, normalizer, audio_s)


def measure(
    functions: dict[str, Callable[[], list[str]]],
    references: list[str],
    normalizer: Normalizer,
    audio_s: float,
) -> None:
    """Run the functions in strict alternation and print what they reach."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    rates = {}
    for _ in range(NUM_RUNS):
        for name, function in functions.items():
            started = time.perf_counter()
            texts = function()
            seconds[name].append(time.perf_counter() - started)
            rates[name] = character_errors(
                [normalizer(text) for text in references], [normalizer(text) for text in texts]
            ).error_rate
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>26}: CER {rates[name]:5.1f}, {audio_s / median:6.1f} times real time")
    for kind in ("sequential", "chunked"):
        ratio = medians[f"{kind}, transformers"] / medians[f"{kind}, ours"]
        print(f"{kind}: {ratio:.1f} times faster (median of {NUM_RUNS} runs)")


def texts_of(segments: NumberedSegments) -> list[str]:
    """Return the texts in the order of the recordings."""
    return [text_of(each) for _, each in sorted(segments)]


def generate(model: checkpoint.Whisper, waves: list[Waveform], decoding: Decoding) -> list[str]:
    """Decode all recordings side by side by transformers."""
    inputs = model.feature_extractor(
        waves,
        sampling_rate=model.log_mel.sampling_rate,
        truncation=False,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    sequences = model.model.generate(
        **inputs,
        return_timestamps=True,
        num_beams=1,
        max_new_tokens=decoding.max_length - 3,
        **prompt_arguments(model.tokens, decoding),
    )
    return [plain_text(ids, model.tokens, model.tokenizer) for ids in sequences.tolist()]


def pipe(
    model: checkpoint.Whisper, waves: list[Waveform], decoding: Decoding, args: argparse.Namespace
) -> list[str]:
    """Decode in chunks by transformers' pipeline."""
    recogniser = pipeline(
        "automatic-speech-recognition",
        model=model.model,
        tokenizer=model.tokenizer,
        feature_extractor=model.feature_extractor,
        chunk_length_s=args.chunk_length_s or model.log_mel.window_s,
        stride_length_s=args.stride_length_s,
        batch_size=args.batch_size,
    )
    options = {
        "num_beams": 1,
        "max_new_tokens": decoding.max_length - 4,
        **prompt_arguments(model.tokens, decoding),
    }
    rate = model.log_mel.sampling_rate
    return [
        recogniser({"raw": wave, "sampling_rate": rate}, generate_kwargs=dict(options))["text"]
        for wave in waves
    ]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a checkpoint")
    add("--manifest", type=Path, required=True, help="JSON lines with audio and text")
    add("--language", required=True, help="code of what is spoken")
    add("--chunk_length_s", type=float, help="length of chunks (the model's window)")
    add("--stride_length_s", type=float, help="half of their overlap (a sixth of a chunk)")
    add("--batch_size", type=int, default=16, help="windows or chunks at once (16)")
    add("--max_length", type=int, default=64, help="most ids of a window (64)")
    add("--threads", type=int, default=1, help="CPU threads (1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
