"""States behind single layers of student and teacher, and the mean squared error between them.

A model that hands out all of its hidden states keeps them all: of a teacher with 32 layers, two are
wanted.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from distillery.text.labels import IGNORED
from distillery.whisper.student import CopiedLayers, copied_layers

Layers = Mapping[int, nn.Module]  # by the number of the student's layer


@dataclass(frozen=True)
class LayerStates:
    """What layers put out for one batch, by the number of the student's layer.

    encoder: float (batch, positions, width) each; decoder: float (batch, tokens, width) each.
    """

    encoder: dict[int, Tensor] = field(default_factory=dict)
    decoder: dict[int, Tensor] = field(default_factory=dict)


def compared_layers(
    student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration
) -> CopiedLayers:
    """Return the layers whose states are compared: the copied ones, as far as they are trained.

    Raises:
        ValueError: as `copied_layers`.
    """
    copied = copied_layers(student, teacher)
    is_trained = any(p.requires_grad for p in student.model.encoder.parameters())
    return copied if is_trained else replace(copied, encoder=())


def copied_from(
    teacher: WhisperForConditionalGeneration, copied: CopiedLayers
) -> tuple[Layers, Layers]:
    """Return the layers of a teacher's encoder and decoder that a student's were copied from."""
    encoder, decoder = teacher.model.encoder.layers, teacher.model.decoder.layers
    return (
        {own: encoder[theirs] for own, theirs in enumerate(copied.encoder)},
        {own: decoder[theirs] for own, theirs in enumerate(copied.decoder)},
    )


def compared_with(
    student: WhisperForConditionalGeneration, theirs: LayerStates | None
) -> tuple[Layers, Layers]:
    """Return the layers of a student's encoder and decoder that have a teacher's states."""
    theirs = theirs or LayerStates()
    encoder, decoder = student.model.encoder.layers, student.model.decoder.layers
    return (
        {number: encoder[number] for number in theirs.encoder},
        {number: decoder[number] for number in theirs.decoder},
    )


@contextmanager
def recorded(encoder: Layers, decoder: Layers) -> Iterator[LayerStates]:
    """Keep what these layers put out while the block runs; a dropped layer puts out nothing."""
    states = LayerStates()
    handles = [
        layer.register_forward_hook(_keeping(kept, number))
        for layers, kept in ((encoder, states.encoder), (decoder, states.decoder))
        for number, layer in layers.items()
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _keeping(kept: dict[int, Tensor], number: int) -> Any:
    def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        kept[number] = output[0] if isinstance(output, tuple) else output

    return keep


def mean_squared_errors(ours: LayerStates, theirs: LayerStates, targets: Tensor) -> Tensor:
    """Return the MSE between the layers of a student and those they were copied from, summed.

    For each target that counts, and each layer, it is the mean over the width of the squared
    difference: at the target's own position in the decoder, and of the encoder, whose positions
    the decoder attends to all, the mean over them. So it is divided by the tokens of the global
    batch, as the other losses are. This is the loss between hidden states of DistilBART
    (https://arxiv.org/abs/2010.13002, section 3) and of distil-whisper's Flax script, which has
    it at all positions, padding included, and between the embeddings too.

    Args:
        ours: with its gradient.
        theirs: of the teacher, of the same shapes.
        targets: int64 (batch, tokens); `IGNORED` rows do not count.

    Returns:
        A float32 scalar.
    """
    counts = (targets != IGNORED).float()
    tokens = counts.sum(1, keepdim=True)
    errors = [
        *(_error(states, theirs.decoder[n]) * counts for n, states in ours.decoder.items()),
        *(
            _error(states, theirs.encoder[n]).mean(1, keepdim=True) * tokens
            for n, states in ours.encoder.items()
        ),
    ]
    return torch.stack([error.sum() for error in errors]).sum() if errors else tokens.sum() * 0


def _error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference at each position, float32 (batch, positions)."""
    return (ours.float() - theirs.float()).square().mean(-1)
