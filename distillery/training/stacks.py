"""Encoder and decoder of a model, as a training step runs them, compiled on request."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

BACKEND = "inductor"  # torch.compile's
BUCKET = 64  # ids: what is compiled takes a multiple of so many
MAX_SHAPES = 64  # of the layers of teacher and student together


class Stacks:
    """Encoder and decoder of a model.

    Compiled ones are given few shapes: each is compiled for itself, which takes longer than many
    updates.
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        """Keep the model, and run it as it is."""
        self.model = model
        self._num_rows: int | None = None

    def compile(self, num_rows: int) -> None:
        """Compile each layer when it is first run, and at each new shape.

        Layers of one kind are compiled once, and weights keep their names. What lies between them
        is a small part of the work.

        Args:
            num_rows: of a batch; smaller ones are filled up.
        """
        self._num_rows = num_rows
        for layer in (*self.model.model.encoder.layers, *self.model.model.decoder.layers):
            layer.compile(backend=BACKEND, dynamic=False)

    def run_as_they_are(self) -> AbstractContextManager[Any]:
        """Let nothing that is compiled run in a block, where shapes are many or graphs captured."""
        return nullcontext() if self._num_rows is None else torch.compiler.set_stance("force_eager")

    def encode(self, input_features: Tensor) -> Tensor:
        """Return the encoder's states, (batch, positions, width).

        input_features: float (batch, mels, frames).
        """
        num_rows = len(input_features)
        states: Tensor = self.model.model.encoder(self._filled_up(input_features)).last_hidden_state
        return states[:num_rows]

    def decode(self, decoder_input_ids: Tensor, encoder_states: Tensor) -> Tensor:
        """Return the decoder's last states, (batch, tokens, width).

        Args:
            decoder_input_ids: int64 (batch, tokens).
            encoder_states: float (batch, positions, width).
        """
        num_rows, num_ids = decoder_input_ids.shape
        ids = self._filled_up(decoder_input_ids)
        if self._num_rows is not None:  # no position sees those behind it
            most = int(self.model.config.max_target_positions)
            ids = functional.pad(ids, (0, min(-num_ids % BUCKET, most - num_ids)))
        hidden: Tensor = self.model.model.decoder(
            input_ids=ids,
            encoder_hidden_states=self._filled_up(encoder_states),
            use_cache=False,
        ).last_hidden_state
        return hidden[:num_rows, :num_ids]

    def _filled_up(self, batch: Tensor) -> Tensor:
        """Return a batch with as many rows as is compiled for; those that are added are 0."""
        missing = 0 if self._num_rows is None else self._num_rows - len(batch)
        if missing <= 0:
            return batch
        return torch.cat([batch, batch.new_zeros((missing, *batch.shape[1:]))])


def allow_compiling(device: torch.device) -> None:
    """Set `torch.compile` up for stacks.

    Raises:
        ValueError: there is no compiler on this machine.
    """
    # All layers share one list of shapes; beyond its end they would run uncompiled, without a word.
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    # Each layer's gradients are shared when they are there, as without compiling.
    torch._dynamo.config.optimize_ddp = False
    try:
        torch.compile(torch.exp, backend=BACKEND)(torch.zeros(64, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            "--compile: nothing can be compiled on this machine: install a C++ compiler (g++), or "
            f"leave the flag out ({reason})"
        ) from error
