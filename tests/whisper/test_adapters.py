"""Adapters: what they compute, what is written of them, and what is trained."""

import copy
import json
import sys

import pytest
import torch
from tiny import load_script, tiny_model_folder

from distillery.training.optim import make_optimizer
from distillery.training.settings import Optimization
from distillery.whisper import checkpoint
from distillery.whisper.adapters import LoraSettings, adapted, merged

LAYERS = load_script("run_finetuning.py").LAYERS
FEATURES = torch.randn(2, 80, 200, generator=torch.Generator().manual_seed(0))
INPUTS = torch.tensor([[301, 309, 402, 406, 10, 11], [301, 309, 402, 406, 12, 13]])
SETTINGS = LoraSettings(rank=3, alpha=6, dropout=0.5, layers=("q_proj", "fc1"), seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return tiny_model_folder(folder, encoder_layers=1, decoder_layers=2, window_s=2)


def new(folder, settings=SETTINGS, trained=True):
    """Return a model whose adapters say something, as after some training."""
    model = adapted(checkpoint.load(str(folder)), settings, str(folder))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.model.named_parameters():
        if trained and "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_features=FEATURES, decoder_input_ids=INPUTS).logits


def test_new_adapters_change_nothing_and_are_a_function_of_the_seed(folder):
    one, same = new(folder, trained=False), new(folder, trained=False)
    assert torch.equal(logits_of(one.model), logits_of(checkpoint.load(str(folder)).model))
    first, second = (
        {name: p for name, p in each.model.named_parameters() if "lora_A" in name}
        for each in (one, same)
    )
    assert first and all(torch.equal(p, second[name]) for name, p in first.items())
    assert all(p.any() for p in first.values())


@pytest.mark.parametrize("layers", [("q_proj", "fc1"), LAYERS])
def test_a_merged_checkpoint_is_plain_and_computes_the_same(folder, tmp_path, layers):
    model = new(folder, LoraSettings(3, 6, 0.5, layers, 1))
    wanted = logits_of(model.model)
    assert not torch.allclose(wanted, logits_of(checkpoint.load(str(folder)).model), atol=1e-3)
    model.save(tmp_path)
    found = checkpoint.load(str(tmp_path))
    torch.testing.assert_close(logits_of(found.model), wanted, atol=1e-5, rtol=1e-4)
    base = checkpoint.load(str(folder)).model
    assert found.model.state_dict().keys() == base.state_dict().keys()
    assert found.model.proj_out.weight is found.model.model.decoder.embed_tokens.weight
    assert found.model.generation_config.to_dict() == model.model.generation_config.to_dict()
    assert torch.equal(logits_of(model.model), wanted)  # which goes on as it was


def test_merging_copies_no_weight_without_an_adapter(folder):
    model = new(folder).model
    plain = merged(model)
    embedding = model.model.decoder.embed_tokens.weight
    assert plain.model.decoder.embed_tokens.weight.data_ptr() == embedding.data_ptr()
    assert {p.requires_grad for p in plain.parameters()} <= {True, False}


def test_what_is_kept_for_resuming_is_the_adapters_as_peft_has_them(folder, tmp_path):
    from peft import PeftModel

    model = new(folder)
    model.save_for_resuming(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3
    other = new(folder, trained=False)
    other.load_adapters(tmp_path)
    assert torch.equal(logits_of(other.model), logits_of(model.model))
    theirs = PeftModel.from_pretrained(checkpoint.load(str(folder)).model, tmp_path).base_model
    torch.testing.assert_close(logits_of(theirs.model), logits_of(model.model))


def test_adapters_alone_are_trained_and_in_the_optimiser(folder):
    model = new(folder)
    trained = {name for name, p in model.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    optimizer = make_optimizer(
        model.model, Optimization(0.1, "constant", 0, 0.0, (0.9, 0.999), max_grad_norm=1.0)
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(trained)
    base = copy.deepcopy({n: p for n, p in model.model.named_parameters() if n not in trained})
    model.model(input_features=FEATURES, labels=INPUTS).loss.backward()
    optimizer.step()
    assert all(torch.equal(model.model.get_parameter(name), p) for name, p in base.items())


def test_without_peft_the_remedy_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match="--lora_rank needs it: pip install peft"):
        adapted(checkpoint.load(str(folder)), SETTINGS, str(folder))
