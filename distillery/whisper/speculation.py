"""Speculative decoding: a small model drafts some ids, the main model checks them in one pass.

What is written stays what greedy search with the main model writes (Leviathan et al.,
https://arxiv.org/abs/2211.17192; with a distilled Whisper as the draft: Distil-Whisper,
https://arxiv.org/abs/2311.00430, section 6).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForCausalLM
from transformers.modeling_outputs import BaseModelOutput

from distillery.whisper.checkpoint import Whisper, have_same_weights


class Draft:
    """An assistant's decoder as transformers wants it, and its encoder where it differs.

    To an assistant without an encoder, transformers hands the main model's encoder states. A whole
    model would encode the window itself, but then Whisper's `generate` shifts the position at which
    the main model's rules for first ids and timestamps apply, and other ids come out.
    """

    def __init__(self, assistant: Whisper, main: Whisper) -> None:
        """Keep an assistant's decoder, and its encoder unless it equals the main model's."""
        whole = assistant.model
        config = copy.deepcopy(whole.config)
        # Transformers compares these, and uses them for nothing: there is no encoder here.
        for name in ("encoder_attention_heads", "encoder_ffn_dim", "encoder_layers"):
            setattr(config, name, getattr(main.model.config, name))
        with torch.device("meta"):  # its own weights are replaced at once
            self.decoder = WhisperForCausalLM(config)
        self.decoder.model.decoder = whole.model.decoder
        self.decoder.proj_out = whole.proj_out
        self.decoder.generation_config = whole.generation_config
        self.decoder.eval()
        shared = have_same_weights(main.model.model.encoder, whole.model.encoder)
        self.encoder: nn.Module | None = None if shared else whole.model.encoder
        self._states: BaseModelOutput | None = None
        self.decoder.register_forward_pre_hook(self._give_own_states, with_kwargs=True)

    def encode(self, window: Tensor) -> None:
        """Encode the next window to draft for: log-mel, float (1, mels, frames)."""
        if self.encoder is not None:
            states = self.encoder(window.to(self.decoder.dtype)).last_hidden_state
            self._states = BaseModelOutput(last_hidden_state=states)

    def _give_own_states(
        self, _decoder: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, named if self._states is None else {**named, "encoder_outputs": self._states}


@dataclass(frozen=True)
class DraftedWhisper(Whisper):
    """A model with an assistant that drafts for it."""

    draft: Draft


def with_draft(main: Whisper, assistant: Whisper) -> DraftedWhisper:
    """Return the main model with an assistant that drafts for it.

    Where both have the same encoder, as with a student whose encoder was frozen, it runs once for
    both.

    Raises:
        ValueError: the assistant's vocabulary or features are not the main model's.
    """
    differences = list(_differences(main, assistant))
    if differences:
        raise ValueError(f"it does not fit the main model: {'; '.join(differences)}")
    return DraftedWhisper(**vars(main), draft=Draft(assistant, main))


def _differences(main: Whisper, assistant: Whisper) -> Iterator[str]:
    sizes = main.model.config.vocab_size, assistant.model.config.vocab_size
    if sizes[0] != sizes[1]:
        yield f"its vocabulary has {sizes[1]} tokens, not {sizes[0]}"
    elif main.tokenizer.get_vocab() != assistant.tokenizer.get_vocab():
        yield "its tokenizer gives the tokens other ids"
    for what, name in (("mel bins", "num_mels"), ("frames in a window", "num_frames")):
        wanted, got = getattr(main.log_mel, name), getattr(assistant.log_mel, name)
        if wanted != got:
            yield f"it takes {got} {what}, not {wanted}"
    if assistant.max_label_length < main.max_label_length:
        yield (
            f"its decoder has {assistant.max_label_length} positions, fewer than "
            f"{main.max_label_length}"
        )
