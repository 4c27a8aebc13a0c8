"""Whisper's decoder over keys and values that are allocated once.

Transformers' own cache grows by concatenation and holds rows of one length. Here each row of a
batch stands at a position of its own, so that a row can end, and another begin, at any step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperForConditionalGeneration


class CachedDecoder:
    """A Whisper decoder with room for the keys and values of some rows.

    It runs the layers' own modules on `scaled_dot_product_attention`, whatever attention the model
    was loaded with. A row is a place in the batch: its first dimension in every tensor.
    """

    def __init__(self, model: WhisperForConditionalGeneration, num_rows: int) -> None:
        """Allocate, in the dtype in which the model computes here, autocast included."""
        config, device = model.config, model.device
        self.decoder, self.proj_out = model.model.decoder, model.proj_out
        self.num_rows, self.num_positions = num_rows, int(config.max_target_positions)
        self.dtype = compute_dtype(model)
        self._rows = torch.arange(num_rows, device=device)[:, None]
        self._positions = torch.arange(self.num_positions, device=device)
        heads = config.decoder_attention_heads

        def allocate(length: int) -> list[Tensor]:
            shape = (num_rows, heads, length, config.d_model // heads)
            return [
                torch.empty(shape, dtype=self.dtype, device=device) for _ in self.decoder.layers
            ]

        # What the decoder wrote, and what it hears: (rows, heads, positions, width) a layer.
        self._keys, self._values = allocate(self.num_positions), allocate(self.num_positions)
        self._heard_keys = allocate(config.max_source_positions)
        self._heard_values = allocate(config.max_source_positions)

    def hear(self, states: Tensor, rows: slice) -> None:
        """Let rows hear windows from now on; they `forget` before they write of them.

        Args:
            states: of the encoder, (rows, positions, width).
            rows: which.
        """
        for index, layer in enumerate(self.decoder.layers):
            attention = layer.encoder_attn
            self._heard_keys[index][rows] = _split(attention, attention.k_proj(states))
            self._heard_values[index][rows] = _split(attention, attention.v_proj(states))

    def forget(self, rows: slice) -> None:
        """Let rows write from the beginning again, about the windows that they hear."""
        # What is not written yet is masked, but must be a number: a NaN would come through.
        for cached in (self._keys, self._values):
            for layer in cached:
                layer[rows] = 0

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for cached in (self._keys, self._values, self._heard_keys, self._heard_values):
            for layer in cached:
                layer[target] = layer[source]

    def states(self, ids: Tensor, positions: Tensor, rows: slice, length: int) -> Tensor:
        """Feed ids to rows, and return the decoder's states for them: (rows, ids, width).

        Args:
            ids: int64 (rows, ids).
            positions: int64 like `ids`, of each id in its row. Keys and values there are written
                over; those at earlier positions are seen.
            rows: which rows these are.
            length: more than any of the positions: so many keys are looked at.
        """
        # Whoever fills a row up with padding: it is seen by none before it, and written over.
        hidden = self.decoder.embed_tokens(ids) + self.decoder.embed_positions.weight[positions]
        seen = self._positions[:length] <= positions[:, None, :, None]
        mask = torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, -torch.inf)
        for index, layer in enumerate(self.decoder.layers):
            normed, attention = layer.self_attn_layer_norm(hidden), layer.self_attn
            keys, values = self._keys[index][rows], self._values[index][rows]
            batch = self._rows[: len(ids)]
            keys[batch, :, positions] = _by_head(attention, attention.k_proj(normed))
            values[batch, :, positions] = _by_head(attention, attention.v_proj(normed))
            hidden = hidden + _attend(
                attention, normed, keys[:, :, :length], values[:, :, :length], mask
            )
            normed = layer.encoder_attn_layer_norm(hidden)
            heard = self._heard_keys[index][rows], self._heard_values[index][rows]
            hidden = hidden + _attend(layer.encoder_attn, normed, *heard, None)
            normed = layer.final_layer_norm(hidden)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(normed)))
        return self.decoder.layer_norm(hidden)  # type: ignore[no-any-return]

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 logits for states."""
        return self.proj_out(states).float()  # type: ignore[no-any-return]


def compute_dtype(model: WhisperForConditionalGeneration) -> torch.dtype:
    """Return the dtype of what a model's layers compute: autocast's where that is on."""
    kind = model.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return model.dtype  # type: ignore[no-any-return]


def _by_head(attention: Any, projected: Tensor) -> Tensor:
    """Split the last dimension by head: (rows, positions, heads, width)."""
    return projected.view(*projected.shape[:-1], attention.num_heads, attention.head_dim)


def _split(attention: Any, projected: Tensor) -> Tensor:
    """Split the last dimension by head: (rows, heads, positions, width)."""
    return _by_head(attention, projected).transpose(1, 2)


def _attend(
    attention: Any, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    # Scaled before the product, as in transformers: the order of roundings stays the same.
    queries = _split(attention, attention.q_proj(hidden) * attention.scaling)
    heard = functional.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)
    return attention.out_proj(heard.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
