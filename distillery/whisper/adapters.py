"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) of a frozen Whisper, by `peft`.

A checkpoint to go on from holds the adapters alone, as peft writes them; every other one is a plain
Whisper, whose weights have the adapters added to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper

ADAPTER, PREFIX = "default", "base_model.model."  # peft's words
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters.

    Attributes:
        rank: of each of the two matrices whose product is added to a layer's weight.
        alpha: the product's factor is alpha / rank.
        dropout: share of an adapter's inputs that are dropped while it is trained.
        layers: names of linear layers, such as `q_proj`.
        seed: of the first weights.
    """

    rank: int
    alpha: int
    dropout: float
    layers: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class AdaptedWhisper(Whisper):
    """A Whisper with frozen weights and with adapters, which alone are trained."""

    def save(self, folder: str | Path) -> None:
        """Write a plain checkpoint folder, with the adapters added to the weights."""
        checkpoint.save(merged(self.model), self.tokenizer, self.feature_extractor, folder)

    def save_for_resuming(self, folder: str | Path) -> None:
        """Write the adapters alone, in the layout of `peft.PeftModel.from_pretrained`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            PREFIX + name.replace(f".{ADAPTER}.", "."): parameter.detach().contiguous()
            for name, parameter in adapter_parameters(self.model).items()
        }
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        self.model.peft_config[ADAPTER].save_pretrained(folder)

    def load_adapters(self, folder: Path) -> None:
        """Take the adapters that `save_for_resuming` wrote."""
        weights = load_file(folder / WEIGHTS)
        with torch.no_grad():
            for name, parameter in adapter_parameters(self.model).items():
                parameter.copy_(weights[PREFIX + name.replace(f".{ADAPTER}.", ".")])


def adapted(whisper: Whisper, settings: LoraSettings, name_or_path: str) -> AdaptedWhisper:
    """Freeze a Whisper, and add adapters that change nothing yet.

    Args:
        whisper: its model is changed.
        settings: of the adapters.
        name_or_path: of the Whisper, for the adapters' record.

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; --lora_rank needs it: pip install peft (the extra 'lora' of this project)"
        ) from error
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.layers),
        base_model_name_or_path=name_or_path,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, whisper.model, ADAPTER)
    return AdaptedWhisper(**vars(whisper))


def adapter_parameters(model: WhisperForConditionalGeneration) -> Mapping[str, Tensor]:
    """Return the weights of a model's adapters by name."""
    return {name: p for name, p in model.named_parameters() if f".{ADAPTER}." in name}


def merged(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Return a plain model that computes what an adapted one does; it shares all other weights."""
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if f".{ADAPTER}." not in name
    }
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weights[f"{name}.weight"] = _merged_weight(layer)
    return checkpoint.with_weights(model, weights)


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    weight: Tensor = layer.base_layer.weight
    added: Tensor = layer.get_delta_weight(ADAPTER)
    return weight + added.to(weight)
