"""Give a model Whisper's vocabulary and inner width, so that whisper.cpp takes it.

    python scripts/demo/whisper_sized.py --model runs/quickstart/student --output_dir runs/sized

What the model writes stays the same: its tokens move to ids of Whisper's vocabulary, the other ids
get the embedding of a language that nobody spoke in training, and the feed-forward layers are
filled up with zeros.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch
import vocabulary
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperTokenizer

from distillery.storage.checkpoints import sealed_folder
from distillery.whisper import checkpoint

NUM_TEXT_IDS = 50257  # of a multilingual model, before the special ones
UNSPOKEN = "<|zh|>"
INNER_RATIO = 4  # inner width of Whisper's feed-forward layers, in widths of the model


def sized_tokenizer(tokenizer: WhisperTokenizer) -> WhisperTokenizer:
    """Return a tokenizer with as many ids as Whisper's that cuts texts into the same tokens."""
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    end = tokenizer.convert_tokens_to_ids(vocabulary.END_OF_TEXT)
    vocab = {token: index for token, index in tokenizer.get_vocab().items() if index < end}
    letters = sorted(token for token in vocab if len(token) == 1)
    # Nothing is merged into these.
    fillers = ("".join(parts) for parts in product(letters, repeat=3))
    while len(vocab) < NUM_TEXT_IDS:
        vocab.setdefault(next(fillers), len(vocab))
    return vocabulary.build_tokenizer(vocab, [(left, right) for left, right in bpe["merges"]])


def sized_model(
    whisper: checkpoint.Whisper, tokenizer: WhisperTokenizer
) -> WhisperForConditionalGeneration:
    """Return a model of Whisper's size that computes the same for the tokens of the given one."""
    config, settings = whisper.model.config, vocabulary.generation_settings(tokenizer)
    inner = INNER_RATIO * config.d_model
    changed = {"vocab_size": len(tokenizer), "encoder_ffn_dim": inner, "decoder_ffn_dim": inner}
    ids = {name: settings[name] for name in settings if name.endswith("token_id")}
    model = WhisperForConditionalGeneration(
        type(config).from_dict({**config.to_dict(), **changed, **ids})
    )
    state = {name: _widened(name, weight, inner) for name, weight in _weights(whisper).items()}
    embeddings = "model.decoder.embed_tokens.weight"
    state[embeddings] = _moved(state[embeddings], whisper.tokenizer, tokenizer)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    given = whisper.model.generation_config
    length, language = given.max_length, getattr(given, "language", None)
    model.generation_config = GenerationConfig(
        **{**settings, "max_length": length, "num_beams": 1, "language": language}
    )
    return model


def _weights(whisper: checkpoint.Whisper) -> dict[str, Tensor]:
    state = dict(whisper.model.state_dict())
    state.pop("proj_out.weight", None)  # the embeddings
    return state


def _widened(name: str, weight: Tensor, inner: int) -> Tensor:
    """Fill the inner dimension of a feed-forward layer up with zeros."""
    missing = inner - weight.shape[-1 if ".fc2." in name else 0]
    if name.endswith("fc2.weight"):
        return pad(weight, (0, missing))
    if ".fc1." in name:
        return pad(weight, (0, 0, 0, missing) if weight.ndim == 2 else (0, missing))
    return weight


def _moved(embeddings: Tensor, old: WhisperTokenizer, new: WhisperTokenizer) -> Tensor:
    """Return the embeddings in the order of the new ids."""
    ids = old.get_vocab()
    spare = ids[UNSPOKEN]
    rows = [spare] * len(new)
    for token, index in new.get_vocab().items():
        rows[index] = ids.get(token, spare)
    return embeddings[torch.tensor(rows)]


def main(arguments: list[str] | None = None) -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the new one")
    parsed = parser.parse_args(arguments)
    whisper = checkpoint.load(parsed.model)
    tokenizer = sized_tokenizer(whisper.tokenizer)
    model = sized_model(whisper, tokenizer)
    with sealed_folder(parsed.output_dir) as temporary:
        checkpoint.save(model, tokenizer, whisper.feature_extractor, temporary)
    print(f"{parsed.output_dir}: {model.num_parameters() / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
