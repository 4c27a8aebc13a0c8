"""Whisper models with random weights, to be trained from the start."""

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from distillery.audio.log_mel import LogMel
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.compute import ATTENTIONS

POSITIONS_PER_S = 50  # of every Whisper's encoder
# What belongs to the tokenizer, and not to the shape of a model.
OF_TOKENIZER = (
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("suppress_tokens", "begin_suppress_tokens"),
)


def new(
    config_name: str,
    tokenizer_name: str,
    seed: int,
    attention: str = "sdpa",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Whisper:
    """Return a model of a configuration's shape, with the tokenizer of a checkpoint.

    Args:
        config_name: folder or Hub id of a Whisper `config.json`: layers, width, window, mel bins.
        tokenizer_name: folder or Hub id of a checkpoint, whose weights are not read.
        seed: of the weights.
        attention: a key of `compute.ATTENTIONS`.
        revision: branch, tag or commit of the checkpoint on the Hub.
        cache_dir: where the Hub's files are kept.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: the configuration is none of Whisper's, or has a window of broken seconds.
    """
    processor = checkpoint.load_processor(tokenizer_name, revision, cache_dir)
    source = {"revision": revision or "main", "cache_dir": cache_dir}
    config = _config(config_name, WhisperConfig.from_pretrained(tokenizer_name, **source))
    extractor = WhisperFeatureExtractor(
        feature_size=config.num_mel_bins,
        chunk_length=config.max_source_positions // POSITIONS_PER_S,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration._from_config(
            config, attn_implementation=ATTENTIONS[attention]
        )
    model.generation_config = checkpoint.generation_config(tokenizer_name, source)
    model.generation_config.max_length = config.max_target_positions
    # Of another model's layers: no word timestamps before heads are known.
    model.generation_config.alignment_heads = None
    return Whisper(
        processor.tokenizer,
        extractor,
        processor.tokens,
        LogMel(extractor),
        config.max_target_positions,
        model,
    )


def _config(name: str, of_tokenizer: WhisperConfig) -> WhisperConfig:
    """Return a configuration with the token ids of another one."""
    checkpoint.check_model_type(name, {})
    config = WhisperConfig.from_pretrained(name)
    if config.max_source_positions % POSITIONS_PER_S:
        raise ValueError(
            f"--config_name {name}: max_source_positions must be a multiple of {POSITIONS_PER_S}, "
            f"which is one second, got {config.max_source_positions}"
        )
    for each in OF_TOKENIZER:
        setattr(config, each, getattr(of_tokenizer, each))
    return config
