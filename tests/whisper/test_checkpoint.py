import json
import logging
import shutil

import pytest
import torch
from tiny import tiny_model_folder
from transformers import GenerationConfig, WhisperConfig

from distillery.whisper import checkpoint
from distillery.whisper.compute import ATTENTIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the checkpoint to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_load(folder):
    loaded = checkpoint.load(str(folder))
    assert loaded.log_mel.window_s == 4
    assert (loaded.log_mel.num_mels, loaded.log_mel.num_frames) == (80, 400)
    assert loaded.max_label_length == 96
    assert loaded.tokens.start_of_transcript == loaded.model.config.decoder_start_token_id == 301
    assert loaded.tokens.is_multilingual
    assert not loaded.model.training
    assert loaded.num_parameters == sum(p.numel() for p in loaded.model.parameters())


def test_load_processor_is_all_but_the_model(copied, folder):
    (copied / "model.safetensors").unlink()
    processor = checkpoint.load_processor(str(copied))
    assert processor.tokens == checkpoint.load(str(folder)).tokens
    assert not hasattr(processor, "model")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"max_source_positions": 100}, "makes 400 frames.*takes exactly 200.*h 2"),
        ("config.json", {"num_mel_bins": 128}, "makes 80 mel bins, but the model takes 128"),
        ("config.json", {"vocab_size": 1907}, "has 1908 tokens, the model only 1907"),
    ],
)
def test_parts_that_do_not_fit_are_named(copied, file, values, message):
    change(copied / file, **values)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(str(copied))
    assert str(copied) in str(error.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attn"])
def test_attention(folder, attention, caplog):
    caplog.set_level(logging.INFO)
    loaded = checkpoint.load(str(folder), attention=attention)
    ran = {"eager": "eager"}.get(attention, "sdpa")
    assert loaded.attention == loaded.model.config._attn_implementation == ran
    said = f"{folder}: attention {attention} runs as {ran}"
    assert (said in caplog.messages) == (attention != ran)


def test_same_weights(folder):
    model, other = (checkpoint.load(str(folder)).model for _ in range(2))
    outline = checkpoint.load_outline(str(folder)).model
    assert checkpoint.have_same_weights(model, other)
    assert checkpoint.have_same_weights(outline, outline)  # shapes, where there are no numbers
    assert not checkpoint.have_same_weights(model.model.encoder, model.model.decoder)
    # Compared in the dtype of the first: bfloat16 has fewer digits than float32.
    half = checkpoint.load(str(folder), "bfloat16").model
    assert checkpoint.have_same_weights(half, model)
    assert not checkpoint.have_same_weights(model, half)
    with torch.no_grad():
        next(other.model.encoder.parameters()).flatten()[0] += 1
    assert not checkpoint.have_same_weights(model, other)


def test_names_of_flash_attention():
    assert ATTENTIONS["flash_attn"] == "sdpa"
    assert ATTENTIONS["flash_attn_2"] == "flash_attention_2"


@pytest.mark.parametrize("saved", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_weights_have_the_dtype_that_was_asked_for(folder, tmp_path, saved, asked):
    loaded = checkpoint.load(str(folder), saved)
    checkpoint.save(loaded.model, loaded.tokenizer, loaded.feature_extractor, tmp_path)
    model = checkpoint.load(str(tmp_path), asked).model
    assert {p.dtype for p in model.parameters()} == {getattr(torch, asked)}


def test_saving_and_loading_keeps_every_weight(folder, tmp_path):
    loaded = checkpoint.load(str(folder))
    checkpoint.save(
        loaded.model, loaded.tokenizer, loaded.feature_extractor, tmp_path / "new" / "one"
    )
    again = checkpoint.load(str(tmp_path / "new" / "one")).model.state_dict()
    state = loaded.model.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_saving_keeps_generation_settings(folder, tmp_path):
    """Transformers derives a config with this mark anew from the model config, and loses them."""
    loaded = checkpoint.load(str(folder))
    loaded.model.generation_config._from_model_config = True
    checkpoint.save(loaded.model, loaded.tokenizer, loaded.feature_extractor, tmp_path)
    config = checkpoint.load(str(tmp_path)).model.generation_config
    assert config.no_timestamps_token_id == 406
    assert config.lang_to_id["<|ja|>"] == 309


def test_only_safetensors_are_loaded(copied):
    loaded = checkpoint.load(str(copied))
    (copied / "model.safetensors").unlink()
    torch.save(loaded.model.state_dict(), copied / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        checkpoint.load(str(copied))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="nothing"):
        checkpoint.load(str(tmp_path / "nothing"))


def test_a_model_that_cannot_be_fetched_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="model somebody/something cannot be read: "):
        checkpoint.load_outline("somebody/something", cache_dir=str(tmp_path))


def test_another_architecture_is_refused(copied):
    change(copied / "config.json", model_type="bert", architectures=["BertModel"])
    with pytest.raises(ValueError, match=r"not a Whisper checkpoint; its model_type is bert"):
        checkpoint.load(str(copied))


def test_missing_weights_are_not_made_up(copied):
    change(copied / "config.json", decoder_layers=5)
    with pytest.raises(ValueError, match=r"weights are missing: model\.decoder\.layers\.4\."):
        checkpoint.load(str(copied))


def test_the_generation_config_is_optional(copied):
    (copied / "generation_config.json").unlink()
    assert checkpoint.load(str(copied)).tokens.is_multilingual


def test_a_generation_config_that_was_cut_is_not_taken_for_none(copied):
    path = copied / "generation_config.json"
    path.write_text(path.read_text("utf-8")[:100], "utf-8")
    with pytest.raises(ValueError, match=r"generation_config\.json is damaged"):
        checkpoint.load(str(copied))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "vocab.json", "preprocessor_config.json", "normalizer.json"]
)
def test_the_fingerprint_covers_all_that_decides_what_is_written(copied, name):
    before = checkpoint.fingerprint(str(copied))
    assert before == checkpoint.fingerprint(str(copied))
    with (copied / name).open("ab") as file:
        file.write(b" ")
    assert checkpoint.fingerprint(str(copied)) != before


@pytest.mark.parametrize(
    ("stated", "vocab_size", "expected"),
    [
        (True, 51864, True),
        (False, 51865, False),
        (None, 51864, False),
        (None, 51865, True),
        (None, 51866, True),
        (None, 1908, True),
    ],
)
def test_is_multilingual(stated, vocab_size, expected):
    generation = GenerationConfig(**({} if stated is None else {"is_multilingual": stated}))
    config = WhisperConfig(vocab_size=vocab_size)
    assert checkpoint.is_multilingual(generation, config) is expected


def test_an_english_only_checkpoint(copied):
    change(copied / "generation_config.json", is_multilingual=False)
    assert not checkpoint.load(str(copied)).tokens.is_multilingual


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_check_finite_names_the_weight(folder, value, dtype):
    model = checkpoint.load(str(folder), dtype).model
    checkpoint.check_finite(model, "mine")
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"mine: weight model\.decoder\.layers\.1\.fc1\.weight"):
        checkpoint.check_finite(model, "mine")


def test_card(tmp_path):
    checkpoint.write_card(tmp_path, "A model of [mine](x).")
    text = (tmp_path / "README.md").read_text("utf-8")
    header, body = text.split("---\n")[1:]
    assert "pipeline_tag: automatic-speech-recognition" in header
    assert body == f"\n# {tmp_path.name}\n\nA model of [mine](x).\n"
