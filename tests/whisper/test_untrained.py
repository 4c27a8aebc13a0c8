"""Models with random weights, in another checkpoint's shape."""

import json

import pytest
import torch
from tiny import tiny_model_folder, train_tokenizer

from distillery.whisper import checkpoint, untrained


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a checkpoint, and one of another shape and another vocabulary."""
    place = tmp_path_factory.mktemp("untrained")
    tokenizer = train_tokenizer(["another vocabulary of other words"], 280)
    shape = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "window_s": 2}
    tiny_model_folder(place / "shape", **shape, max_target_positions=40, tokenizer=tokenizer)
    return tiny_model_folder(place / "tokenizer"), place / "shape"


def test_shape_and_window_of_one_and_vocabulary_of_the_other(folders, tmp_path):
    tokenizer, shape = map(str, folders)
    new = untrained.new(shape, tokenizer, seed=3)
    new.save(tmp_path)
    found = checkpoint.load(str(tmp_path))
    config, theirs = found.model.config, checkpoint.load(tokenizer).model.config
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (1, 1, 16)
    assert (config.max_source_positions, found.max_label_length) == (100, 40)
    assert config.vocab_size == theirs.vocab_size
    assert config.decoder_start_token_id == theirs.decoder_start_token_id
    assert found.tokenizer.get_vocab() == checkpoint.load(tokenizer).tokenizer.get_vocab()
    settings = found.model.generation_config
    assert settings.lang_to_id and settings.max_length == 40
    assert getattr(settings, "alignment_heads", None) is None
    weights = new.model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in found.model.state_dict().items())


def test_weights_are_a_function_of_the_seed(folders):
    tokenizer, shape = map(str, folders)
    one, same, other = (untrained.new(shape, tokenizer, seed).model for seed in (3, 3, 4))
    name = "model.decoder.embed_tokens.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_what_is_no_shape_of_a_whisper_is_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        untrained.new(str(tmp_path / "nowhere"), str(folders[0]), seed=0)
    config = json.loads((folders[1] / "config.json").read_text())
    for change, message in (
        ({"max_source_positions": 75}, "max_source_positions must be a multiple of 50"),
        ({"model_type": "bert"}, "not a Whisper checkpoint"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            untrained.new(str(tmp_path), str(folders[0]), seed=0)
