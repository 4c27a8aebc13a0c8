"""Greedy decoding of windows against a plain loop of `generate`, in the same run.

    PYTHONPATH=. python benchmarks/decoding.py --tokenizer openai/whisper-tiny --windows 64 --ids 18

The model has whisper-tiny's shape and random weights: `--tokenizer` names any folder or Hub id with
Whisper's multilingual tokenizer. Random weights never end by themselves, so every window is given
`--ids` ids behind its prefix in both programs. Ids are checked to be equal first; then all programs
run in turn, and each time is set against the reference's of the same turn. Where other work runs
beside it, the seconds that the processor worked for this process say more than the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.utils import logging as transformers_logging

from distillery.audio.log_mel import LogMel
from distillery.text.tokens import SpecialTokens
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.greedy import GreedyDecoder, Window, encode

REFERENCE = "generate"
TINY = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4}
TINY |= {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
TINY |= {"encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}


def main() -> None:
    """Check that ids agree, then print each program's speed."""
    args = parse_arguments()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    whisper = tiny_whisper(args.tokenizer)
    prefix = whisper.tokens.prefix("en", "transcribe", args.timestamps)
    decoding = Decoding("en", "transcribe", args.timestamps, 1, len(prefix) + args.ids)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(args.windows, 80, 3000, generator=generator)
    programs: dict[str, Callable[[], object]] = {
        REFERENCE: lambda: generate(whisper, features, decoding, args.batch_size, args.ids),
        "ours": lambda: ours(whisper, features, decoding, args.batch_size),
        "ours, 4 times the batch": lambda: ours(whisper, features, decoding, 4 * args.batch_size),
        "encoder alone": lambda: encoder(whisper, features, args.batch_size),
    }
    outputs = [program() for name, program in programs.items() if name != "encoder alone"]
    assert all(output == outputs[0] for output in outputs), "ids differ"
    clocks = {"by the clock": time.perf_counter, "by the processor": time.process_time}
    times = {name: {clock: [] for clock in clocks} for name in programs}
    for _ in range(args.runs):
        for name, program in programs.items():
            started = {clock: read() for clock, read in clocks.items()}
            program()
            for clock, read in clocks.items():
                times[name][clock].append(read() - started[clock])
    print(f"{args.windows} windows of 30 s, {args.ids} ids each, batch {args.batch_size}")
    for clock in clocks:
        print(f"{clock:26}{'windows/s':>10}{'times ' + REFERENCE:>16}")
        for name, taken in times.items():
            pairs = zip(times[REFERENCE][clock], taken[clock], strict=True)
            ratio = statistics.median(base / own for base, own in pairs)
            speed = args.windows / statistics.median(taken[clock])
            print(f"  {name:24}{speed:10.2f}{ratio:16.2f}")


@torch.inference_mode()
def generate(
    whisper: Whisper, features: Tensor, decoding: Decoding, batch_size: int, num_ids: int
) -> list[list[int]]:
    """Return ids by a loop over batches of transformers' `generate`."""
    return [
        ids
        for batch in features.split(batch_size)
        for ids in whisper.model.generate(
            batch,
            language=decoding.language,
            task=decoding.task,
            return_timestamps=decoding.timestamps,
            max_new_tokens=num_ids,
            force_unique_generate_call=True,
        ).tolist()
    ]


def ours(
    whisper: Whisper, features: Tensor, decoding: Decoding, batch_size: int
) -> list[list[int]]:
    """Return ids by our own loop."""
    windows = (Window(index, each, decoding) for index, each in enumerate(features))
    found = dict(GreedyDecoder[int](whisper, batch_size).transcribe(windows))
    return [found[index].ids for index in range(len(features))]


@torch.inference_mode()
def encoder(whisper: Whisper, features: Tensor, batch_size: int) -> None:
    """Run the encoder alone, which both programs have to."""
    for batch in features.split(batch_size):
        encode(whisper, list(batch))


def tiny_whisper(name: str, shape: Mapping[str, int] = TINY) -> Whisper:
    """Return a model in whisper-tiny's shape, or another, with random weights; it never ends."""
    tokenizer = WhisperTokenizer.from_pretrained(name)
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    model = new_model(tokens, len(tokenizer), **shape)
    extractor = WhisperFeatureExtractor(chunk_length=model.config.max_source_positions // 50)
    most = model.config.max_target_positions
    return Whisper(tokenizer, extractor, tokens, LogMel(extractor), most, model)


def new_model(tokens: SpecialTokens, num_ids: int, **shape: int) -> WhisperForConditionalGeneration:
    """Return a model with random weights that never ends.

    Args:
        tokens: of its tokenizer.
        num_ids: size of the vocabulary.
        shape: settings of its configuration, such as `d_model`.
    """
    ids = {"decoder_start_token_id": tokens.start_of_transcript, "eos_token_id": tokens.end_of_text}
    ids |= {"bos_token_id": tokens.end_of_text, "pad_token_id": tokens.end_of_text}
    torch.manual_seed(0)
    config = WhisperConfig(vocab_size=num_ids, init_std=0.1, **shape, **ids)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": index for code, index in tokens.languages.items()},
        task_to_id={"transcribe": tokens.transcribe, "translate": tokens.translate},
        no_timestamps_token_id=tokens.no_timestamps,
        max_initial_timestamp_index=50,
        suppress_tokens=[tokens.end_of_text],
        max_length=config.max_target_positions,
        **ids,
    )
    return model


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or Hub id of Whisper's tokenizer")
    add("--windows", type=int, default=64, help="windows to decode (64)")
    add("--ids", type=int, default=18, help="ids written for each (18)")
    add("--batch_size", type=int, default=8, help="windows side by side (8)")
    add("--timestamps", action="store_true", help="write timestamps")
    add("--runs", type=int, default=3, help="turns (3)")
    add("--threads", type=int, default=2, help="cores used (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
