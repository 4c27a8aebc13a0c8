"""Compiled layers; whole runs are in tests/stages/test_training_device.py."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import WhisperConfig, WhisperForConditionalGeneration

from distillery.training import stacks
from distillery.training.stacks import BUCKET, Stacks

MAX_IDS = 150


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """Count what is compiled, by a compiler that needs no C++."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(stacks, "BACKEND", counter)
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):  # and set back
        torch._dynamo.reset()
        yield counter
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=10,
        max_target_positions=MAX_IDS,
        **{name: 1 for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        decoder_start_token_id=2,
    )
    return WhisperForConditionalGeneration(config)


def compiled(plain, num_rows=4):
    stacks.allow_compiling(torch.device("cpu"))
    model = copy.deepcopy(plain).train()
    both = Stacks(model)
    both.compile(num_rows)
    return both


def states_of(both, num_rows, num_ids, seed=0):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, 8, 20, generator=random)
    ids = torch.randint(60, (num_rows, num_ids), generator=random)
    return both.decode(ids, both.encode(features))


SHAPES = [(4, 10), (3, 30), (4, BUCKET), (4, BUCKET + 1), (1, 100), (4, MAX_IDS - 1), (4, MAX_IDS)]


def test_batches_of_all_sizes_give_what_they_give_uncompiled(plain):
    ours, theirs = compiled(plain), Stacks(plain.train())
    for shape in SHAPES:
        found, wanted = states_of(ours, *shape), states_of(theirs, *shape)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        gradients = []
        for both, states in ((ours, found), (theirs, wanted)):
            both.model.zero_grad()
            states.square().sum().backward()
            gradients.append(
                [p.grad.clone() for p in both.model.parameters() if p.grad is not None]
            )
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_only_a_new_bucket_is_compiled_and_layers_of_one_kind_together(plain, compiler):
    both = compiled(plain)
    compiler.frame_count = 0
    counts = []
    for shape in SHAPES:
        states_of(both, *shape)
        counts.append(compiler.frame_count)
    # An encoder layer and a decoder layer, and then the decoder layer at 128 and at 150 ids.
    assert counts == [2, 2, 2, 3, 3, 4, 4]


def test_names_of_weights_stay_and_nothing_is_compiled_where_it_must_not(plain, compiler):
    both = compiled(plain)
    assert both.model.state_dict().keys() == plain.state_dict().keys()
    compiler.frame_count = 0
    with both.run_as_they_are():
        states_of(both, 2, 20)
    assert compiler.frame_count == 0
    states_of(both, 2, 20)
    assert compiler.frame_count == 2


def test_what_is_not_compiled_is_given_its_batches_as_they_are(plain):
    seen = []
    both = Stacks(copy.deepcopy(plain))
    both.model.model.decoder.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["input_ids"].shape), with_kwargs=True
    )
    states_of(both, 3, 30)
    assert seen == [(3, 30)]
    assert all(each._compiled_call_impl is None for each in both.model.modules())


def test_a_machine_that_cannot_compile_is_told_at_once(monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("No working C++ compiler found in\n config.cpp.cxx")

    monkeypatch.setattr(stacks, "BACKEND", no_compiler)
    with pytest.raises(
        ValueError, match=r"^--compile: .*g\+\+.*No working C\+\+ compiler"
    ) as error:
        stacks.allow_compiling(torch.device("cpu"))
    assert "\n" not in str(error.value)
