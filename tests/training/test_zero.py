"""What training makes of a launch's configuration of DeepSpeed, which is not needed here."""

from types import SimpleNamespace

import pytest
import torch

from distillery.training import zero


def launch(precision="bf16", zero_optimization=None, **more):
    config = {"zero_optimization": {"stage": 2, **(zero_optimization or {})}, **more}
    return SimpleNamespace(
        deepspeed_plugin=SimpleNamespace(deepspeed_config=config),
        mixed_precision=precision,
        device=torch.device("cpu"),
    )


def of_file_without_stage():
    accelerator = launch()
    del accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"]
    return accelerator


@pytest.mark.parametrize("stage", [1, 2])
def test_two_stages_are_known(stage):
    zero.refuse_configuration(launch(zero_optimization={"stage": stage}))


@pytest.mark.parametrize(
    ("accelerator", "refusal"),
    [
        (launch(zero_optimization={"stage": 0}), "stage 0 .*/deepspeed_zero2.yaml"),
        (of_file_without_stage(), "stage 0 .*/deepspeed_zero2.yaml"),
        (launch(zero_optimization={"stage": 3}), "stage 3 .* or FSDP2.*/fsdp2.yaml"),
        (
            launch(zero_optimization={"offload_optimizer": {"device": "cpu"}}),
            "offload_optimizer_device cpu .* set it to none",
        ),
        (launch(optimizer={}), "has `optimizer`.* delete it"),
        (launch(scheduler={}), "has `scheduler`.* delete it"),
        (launch("fp16"), "--dtype float16 .* --dtype bfloat16"),
    ],
)
def test_what_would_train_in_another_way_is_refused(accelerator, refusal):
    with pytest.raises(ValueError, match=refusal):
        zero.refuse_configuration(accelerator)


def test_accelerate_leaves_out_what_is_not_offloaded():
    offload = {"offload_optimizer": {"device": "none", "nvme_path": None}}
    zero.refuse_configuration(launch(zero_optimization=offload))


@pytest.mark.parametrize(
    ("sections", "is_on"),
    [
        ({}, False),
        ({"bf16": {"enabled": False}}, False),
        ({"bf16": {"enabled": True}}, True),  # as accelerate has it before an engine is made
        ({"bf16": {"enabled": False}, "torch_autocast": {"enabled": True}}, True),
    ],
)
def test_what_no_engine_wraps_computes_in_the_same_dtype(sections, is_on):
    with zero.autocast(launch(**sections)):
        found = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert found == (torch.bfloat16 if is_on else torch.float32)
