import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distillery.training.optim import make_optimizer, make_schedule
from distillery.training.settings import ADAMW_8BIT, Optimization


def settings(learning_rate=0.1, schedule="linear", weight_decay=0.0, betas=(0.9, 0.999)):
    return Optimization(learning_rate, schedule, 2, weight_decay, betas, max_grad_norm=1.0)


def model():
    layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    layers[0].requires_grad_(False)
    return layers


def test_only_trainable_matrices_decay():
    layers = model()
    optimizer = make_optimizer(layers, settings(1e-3, weight_decay=0.1, betas=(0.9, 0.98)))
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(layers[2].weight)]
    assert [id(p) for p in plain["params"]] == [
        id(p) for p in (layers[1].weight, layers[1].bias, layers[2].bias)
    ]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [(g["lr"], g["betas"]) for g in optimizer.param_groups] == [(1e-3, (0.9, 0.98))] * 2


def test_one_pass_over_the_weights_does_what_adamw_does():
    weights = [nn.Parameter(torch.randn(4, 3)) for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    ours = make_optimizer(nn.ParameterList(weights[:1]), settings(weight_decay=0.1))
    assert ours.param_groups[0]["fused"]
    plain = torch.optim.AdamW(weights[1:], lr=0.1, weight_decay=0.1, fused=False)
    for update in range(5):
        for optimizer, weight in zip((ours, plain), weights, strict=True):
            weight.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(update))
            optimizer.step()
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-7)


def test_adamws_epsilon_is_the_settings():
    optimizer = make_optimizer(model(), replace(settings(), epsilon=1e-3))
    assert [group["eps"] for group in optimizer.param_groups] == [1e-3, 1e-3]


def test_8_bits_are_those_of_bitsandbytes(monkeypatch):
    asked = []
    stand_in = SimpleNamespace(AdamW8bit=lambda groups, **options: asked.append((groups, options)))
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=stand_in))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", stand_in)
    weight = SimpleNamespace(requires_grad=True, dim=lambda: 2, is_cuda=True)
    wanted = replace(settings(weight_decay=0.1), optimizer=ADAMW_8BIT)
    make_optimizer(SimpleNamespace(parameters=lambda: [weight]), wanted)
    ((groups, options),) = asked
    assert groups == [{"params": [weight], "weight_decay": 0.1}]  # there is nothing else
    assert options == {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}


def test_8_bits_without_a_gpu_or_without_the_package_are_refused(monkeypatch):
    wanted = replace(settings(), optimizer=ADAMW_8BIT)
    with pytest.raises(ValueError, match="--optim adamw_8bit needs a GPU"):
        make_optimizer(model(), wanted)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    weight = SimpleNamespace(requires_grad=True, dim=lambda: 2, is_cuda=True)
    with pytest.raises(ModuleNotFoundError, match="pip install bitsandbytes"):
        make_optimizer(SimpleNamespace(parameters=lambda: [weight]), wanted)


@pytest.mark.parametrize(("steps", "ratio", "wanted"), [(0, 0.1, 3), (5, 0.0, 5), (0, 0.0, 0)])
def test_a_share_of_all_updates_may_be_warm_up(steps, ratio, wanted):
    asked = replace(settings(), warmup_steps=steps, warmup_ratio=ratio)
    assert asked.num_warmup_updates(25) == wanted


def test_tied_weights_are_updated_once():
    layers = model()
    layers.add_module("tied", nn.Linear(4, 2))
    layers.tied.weight = layers[2].weight
    optimizer = make_optimizer(layers, settings(1e-3, weight_decay=0.1, betas=(0.9, 0.98)))
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert parameters.count(id(layers.tied.weight)) == 1


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1, 1]),
        ("constant", [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_learning_rate_at_each_update(name, factors):
    optimizer = make_optimizer(model(), settings())
    schedule = make_schedule(optimizer, settings(schedule=name), num_updates=6)
    found = []
    for _ in factors:
        found.append(schedule.get_last_lr()[0] / 0.1)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(factors)


def test_schedule_resumes_from_its_state():
    def new():
        optimizer = make_optimizer(model(), settings())
        return optimizer, make_schedule(optimizer, settings(), 6)

    optimizer, schedule = new()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    resumed_optimizer, resumed = new()
    resumed.load_state_dict(schedule.state_dict())
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed_optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == pytest.approx([0.05, 0.05])
    assert torch.is_tensor(resumed_optimizer.param_groups[0]["params"][0])
