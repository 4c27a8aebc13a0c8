"""Decoding of single windows; `distillery.whisper.long_form` makes recordings of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    WhisperForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from distillery.text.tokens import SpecialTokens, language_code
from distillery.whisper.checkpoint import Processor, Whisper
from distillery.whisper.speculation import Draft, DraftedWhisper


@dataclass(frozen=True)
class Decoding:
    """How to decode.

    language, task and timestamps choose the decoder's prefix; `num_beams` 1 is greedy search;
    `max_length` bounds a window's ids, prefix and end included.
    """

    language: str | None
    task: str
    timestamps: bool
    num_beams: int
    max_length: int

    def fitted_to(self, whisper: Processor) -> "Decoding":
        """Return the same, with the length bounded by the model's decoder positions.

        Raises:
            ValueError: the model does not know the language, or needs one and got none.
        """
        whisper.tokens.prefix(self.language, self.task, self.timestamps)
        return replace(self, max_length=min(self.max_length, whisper.max_label_length))

    def in_language_of(self, whisper: Whisper) -> "Decoding":
        """Return the same with the model's default language, where none is named."""
        named = self.language
        if whisper.tokens.is_multilingual:
            default = getattr(whisper.model.generation_config, "language", None)
            return replace(self, language=named or default)
        # An English-only model has no token for what it speaks anyway.
        is_english = named is None or language_code(named) == "en"
        return replace(self, language=None if is_english else named)


@dataclass(frozen=True)
class Transcript:
    """What the model wrote for one window.

    `ids` begin with `<|startoftranscript|>` and end with `<|endoftext|>`, unless the maximum
    length cut them off: then `truncated` is true and no end is added, so that no student learns to
    stop in mid-sentence. `avg_logprob` is the mean log-probability of the ids behind the prefix
    under the plain softmax.
    """

    ids: list[int]
    truncated: bool
    avg_logprob: float


def prompt_arguments(tokens: SpecialTokens, decoding: Decoding) -> dict[str, str]:
    """Return `generate`'s language and task, which an English-only model refuses."""
    if not tokens.is_multilingual:
        return {}
    return {"language": str(decoding.language), "task": decoding.task}


@torch.inference_mode()
def transcribe_windows(
    whisper: Whisper,
    input_features: Tensor,
    decoding: Decoding,
    *,
    prompts: Sequence[Sequence[int]] = (),
    temperature: float = 0.0,
) -> list[Transcript]:
    """Transcribe windows, each in one pass of the decoder.

    Args:
        whisper: the model, on the device of the features. Its assistant, where it has one, is
            used only without prompts and at temperature 0.
        input_features: float (batch, mels, frames of the window).
        decoding: see `Decoding`.
        prompts: ids that each window's decoder sees before its prefix, all of one length.
        temperature: above 0, ids are drawn from the softmax at this temperature, without beams.
    """
    is_plain = not prompts and temperature == 0
    if not (isinstance(whisper, DraftedWhisper) and is_plain):
        return _transcribe(whisper, input_features, decoding, prompts, temperature)
    # Transformers drafts for one window at a time.
    return [
        transcript
        for window in input_features
        for transcript in _transcribe(whisper, window[None], decoding, draft=whisper.draft)
    ]


def _transcribe(
    whisper: Whisper,
    input_features: Tensor,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]] = (),
    temperature: float = 0.0,
    draft: Draft | None = None,
) -> list[Transcript]:
    model, tokens = whisper.model, whisper.tokens
    prefix = tokens.prefix(decoding.language, decoding.task, decoding.timestamps)
    given = [[*prompt, *prefix] for prompt in prompts] or [prefix]
    num_given = len(given[0])
    # The encoder runs once, for the search and for the log-probabilities.
    encoded = model.model.encoder(input_features.to(model.dtype)).last_hidden_state
    output = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        return_timestamps=decoding.timestamps,
        num_beams=decoding.num_beams,
        temperature=temperature,
        max_new_tokens=min(decoding.max_length - len(prefix), whisper.max_label_length - num_given),
        return_dict_in_generate=True,
        # One pass: without it, a window with timestamps is decoded again from its last one on.
        force_unique_generate_call=True,
        **({"decoder_input_ids": torch.tensor(given).to(encoded.device)} if prompts else {}),
        **_draft_arguments(model, draft, input_features, len(prefix)),
        **prompt_arguments(tokens, decoding),
    )
    sequences = [_until_end(row, num_given, tokens) for row in output.sequences.tolist()]
    logprobs = mean_logprobs(model, encoded, sequences, num_given, tokens.end_of_text)
    return [
        Transcript(ids[num_given - len(prefix) :], ids[-1] != tokens.end_of_text, logprob)
        for ids, logprob in zip(sequences, logprobs, strict=True)
    ]


def _draft_arguments(
    model: WhisperForConditionalGeneration, draft: Draft | None, window: Tensor, num_prefix: int
) -> dict[str, Any]:
    """Return `generate`'s arguments for speculative decoding; none without an assistant."""
    if draft is None:
        return {}
    draft.encode(window)
    arguments: dict[str, Any] = {"assistant_model": draft.decoder}
    suppressed = model.generation_config.begin_suppress_tokens
    if suppressed:
        # With an assistant, transformers forgets which ids may not begin a transcript.
        rule = SuppressTokensAtBeginLogitsProcessor(suppressed, num_prefix, device=window.device)
        arguments["logits_processor"] = LogitsProcessorList([rule])
    return arguments


def _until_end(row: list[int], num_given: int, tokens: SpecialTokens) -> list[int]:
    """Cut a row behind the first `<|endoftext|>` that was generated; the same id pads it."""
    end = tokens.end_of_text
    return row[: row.index(end, num_given) + 1] if end in row[num_given:] else row


def mean_logprobs(
    model: WhisperForConditionalGeneration,
    encoded: Tensor,
    sequences: Sequence[list[int]],
    num_prefix: int,
    padding: int,
) -> list[float]:
    """Return each sequence's mean log-probability behind its prefix.

    Args:
        model: the model that scores.
        encoded: encoder states, (batch, positions, width).
        sequences: token ids per row, prefix included.
        num_prefix: how many ids at the start are given and not scored.
        padding: any id; fills the rows up and is not scored.
    """
    longest = max(len(ids) for ids in sequences)
    padded = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in sequences])
    padded = padded.to(encoded.device)
    hidden = model.model.decoder(
        input_ids=padded[:, :-1], encoder_hidden_states=encoded, use_cache=False
    ).last_hidden_state
    means = []
    for row, ids in enumerate(sequences):
        # One row's logits at a time: a whole batch's would be the largest tensor of the stage.
        states = hidden[row, num_prefix - 1 : len(ids) - 1]
        logits = model.proj_out(states).float()
        wanted = padded[row, num_prefix : len(ids)]
        means.append(-float(functional.cross_entropy(logits, wanted)) if len(wanted) else 0.0)
    return means
