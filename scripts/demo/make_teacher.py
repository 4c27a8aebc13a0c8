"""Make an untrained Whisper model and a tokenizer for the demonstration corpus.

    python scripts/demo/make_teacher.py --corpus runs/corpus --output_dir runs/teacher_init

Reads `train.jsonl` of the corpus, trains the tokenizer on its texts, and writes a checkpoint with
random weights that `run_finetuning.py` can train. The same arguments give the same weights.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import vocabulary
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from distillery.data.schema import TEXT
from distillery.storage.checkpoints import find_damage, sealed_folder
from distillery.whisper import checkpoint

ENCODER_POSITIONS_PER_S = 50  # Whisper's: 100 mel frames a second, halved by the second convolution
NUM_HEADS = 4
FEED_FORWARD_RATIO = 2  # Whisper has 4; every million parameters costs the demonstration time
INIT_STD = 0.05  # with Whisper's 0.02 so small a model takes longer to find what to attend to


@dataclass(frozen=True)
class Size:
    """Layers, width, seconds of a window, mel bins, decoder positions and inner width of a model.

    The inner width is that of the feed-forward layers, in widths of the model.
    """

    encoder_layers: int
    decoder_layers: int
    d_model: int
    window_s: int
    num_mels: int = 80
    max_target_positions: int = 96
    feed_forward_ratio: int = FEED_FORWARD_RATIO


def new_model(
    tokenizer: WhisperTokenizer, size: Size, init_std: float = INIT_STD, seed: int = 0
) -> WhisperForConditionalGeneration:
    """Return a Whisper model with random weights that fits a tokenizer, ready to generate."""
    settings = vocabulary.generation_settings(tokenizer)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=size.num_mels,
        encoder_layers=size.encoder_layers,
        decoder_layers=size.decoder_layers,
        encoder_attention_heads=NUM_HEADS,
        decoder_attention_heads=NUM_HEADS,
        d_model=size.d_model,
        encoder_ffn_dim=size.feed_forward_ratio * size.d_model,
        decoder_ffn_dim=size.feed_forward_ratio * size.d_model,
        max_source_positions=size.window_s * ENCODER_POSITIONS_PER_S,
        max_target_positions=size.max_target_positions,
        init_std=init_std,
        suppress_tokens=settings["suppress_tokens"],
        begin_suppress_tokens=settings["begin_suppress_tokens"],
        **{name: settings[name] for name in ids},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=size.max_target_positions, num_beams=1, **settings
    )
    return model


def read_texts(manifest: Path) -> list[str]:
    """Return the texts of a manifest.

    Raises:
        ValueError: if it has none.
    """
    if not manifest.is_file():
        raise ValueError(f"--corpus: there is no {manifest}; run scripts/demo/make_corpus.py first")
    texts = [json.loads(line)[TEXT] for line in manifest.read_text("utf-8").splitlines()]
    if not texts:
        raise ValueError(f"--corpus: {manifest} has no rows")
    return texts


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder of make_corpus.py")
    add("--output_dir", type=Path, required=True, help="folder of the checkpoint")
    add("--encoder_layers", type=int, default=2, help="(2)")
    add("--decoder_layers", type=int, default=3, help="(3)")
    add("--d_model", type=int, default=128, help="width, a multiple of the 4 heads (128)")
    add("--window_s", type=int, default=3, help="seconds of audio that the encoder takes (3)")
    add("--max_target_positions", type=int, default=96, help="most decoder tokens (96)")
    add("--vocab_size", type=int, default=330, help="tokens but the special ones (330)")
    add("--seed", type=int, default=0, help="of the weights (0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train the tokenizer and save the checkpoint."""
    parsed = parse_arguments(arguments)
    if parsed.output_dir.exists() and find_damage(parsed.output_dir) is None:
        print(f"{parsed.output_dir}: the checkpoint is there already")
        return
    try:
        texts = read_texts(parsed.corpus / "train.jsonl")
        tokenizer = vocabulary.train_tokenizer(texts, parsed.vocab_size)
        size = Size(
            parsed.encoder_layers,
            parsed.decoder_layers,
            parsed.d_model,
            parsed.window_s,
            max_target_positions=parsed.max_target_positions,
        )
        model = new_model(tokenizer, size, seed=parsed.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    extractor = WhisperFeatureExtractor(
        feature_size=model.config.num_mel_bins, chunk_length=parsed.window_s
    )
    with sealed_folder(parsed.output_dir) as temporary:
        checkpoint.save(model, tokenizer, extractor, temporary)
    millions = model.num_parameters() / 1e6
    print(f"{parsed.output_dir}: {millions:.2f} M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
