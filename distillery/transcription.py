"""Decoding of single windows and of long recordings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    WhisperForConditionalGeneration,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutput

from distillery.features import Waveform
from distillery.speculation import DraftedWhisper
from distillery.tokens import SpecialTokens
from distillery.whisper import Whisper


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


@dataclass(frozen=True)
class Transcript:
    """What the model wrote for one window.

    `ids` begin with `<|startoftranscript|>` and end with `<|endoftext|>`, unless the maximum
    length cut them off: then `truncated` is true and no end is made up, lest a student learn to
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
    whisper: Whisper, input_features: Tensor, decoding: Decoding
) -> list[Transcript]:
    """Transcribe windows, each in one pass of the decoder.

    Args:
        whisper: the model, on the device of the features.
        input_features: float (batch, mels, frames of the window).
        decoding: see `Decoding`.
    """
    if isinstance(whisper, DraftedWhisper) and len(input_features) > 1:
        # Transformers has a window drafted at a time.
        each = (transcribe_windows(whisper, window[None], decoding) for window in input_features)
        return [transcript for found in each for transcript in found]
    model, tokens = whisper.model, whisper.tokens
    prefix = tokens.prefix(decoding.language, decoding.task, decoding.timestamps)
    # The encoder runs once, for the search and for the log-probabilities.
    encoded = model.model.encoder(input_features.to(model.dtype)).last_hidden_state
    output = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        return_timestamps=decoding.timestamps,
        num_beams=decoding.num_beams,
        do_sample=False,
        max_new_tokens=decoding.max_length - len(prefix),
        return_dict_in_generate=True,
        # One pass: without it, a window with timestamps is decoded again from its last one on.
        force_unique_generate_call=True,
        **_draft_arguments(whisper, input_features, len(prefix)),
        **prompt_arguments(tokens, decoding),
    )
    sequences = [_until_end(row, tokens) for row in output.sequences.tolist()]
    logprobs = mean_logprobs(model, encoded, sequences, len(prefix), tokens.end_of_text)
    return [
        Transcript(ids, ids[-1] != tokens.end_of_text, logprob)
        for ids, logprob in zip(sequences, logprobs, strict=True)
    ]


def _draft_arguments(whisper: Whisper, window: Tensor, num_prefix: int) -> dict[str, Any]:
    """Return `generate`'s arguments for speculative decoding; none where nobody drafts."""
    if not isinstance(whisper, DraftedWhisper):
        return {}
    whisper.draft.hear(window)
    found: dict[str, Any] = {"assistant_model": whisper.draft.decoder}
    suppressed = whisper.model.generation_config.begin_suppress_tokens
    if suppressed:
        # With a draft transformers lets a transcript begin with any id, as no other search does.
        rule = SuppressTokensAtBeginLogitsProcessor(suppressed, num_prefix, device=window.device)
        found["logits_processor"] = LogitsProcessorList([rule])
    return found


def _until_end(row: list[int], tokens: SpecialTokens) -> list[int]:
    """Cut a generated row behind its first `<|endoftext|>`, which also pads it."""
    end = tokens.end_of_text
    return row[: row.index(end) + 1] if end in row else row


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


@torch.inference_mode()
def transcribe_sequentially(
    whisper: Whisper,
    waveform: Waveform,
    decoding: Decoding,
    condition_on_prev_tokens: bool,
    temperatures: tuple[float, ...],
) -> list[int]:
    """Transcribe a recording of any length window by window, each from the last timestamp on.

    This is OpenAI's long-form algorithm (https://arxiv.org/abs/2212.04356, section 4.5) as
    `transformers` runs it; the temperatures are tried in order where a window looks bad.

    Returns:
        The ids of the text with its timestamps, without prefix.
    """
    model, extractor = whisper.model, whisper.feature_extractor
    rate, window = extractor.sampling_rate, whisper.log_mel.window_samples
    inputs = extractor(
        # The last window reaches beyond the recording. Transformers fills it up with zeros, which
        # are loud in log-mel: a model that was never shown that writes something. Silence it knows.
        np.pad(waveform, (0, window)),
        sampling_rate=rate,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    fallback = (
        {
            "temperature": temperatures,
            "compression_ratio_threshold": 1.35,
            "logprob_threshold": -1.0,
            "no_speech_threshold": 0.6,
        }
        if len(temperatures) > 1
        else {}
    )
    found = model.generate(
        inputs.input_features.to(model.device, model.dtype),
        attention_mask=inputs.attention_mask.to(model.device),
        return_timestamps=True,
        num_beams=decoding.num_beams,
        condition_on_prev_tokens=condition_on_prev_tokens,
        max_new_tokens=decoding.max_length - _num_prefix(whisper, decoding),
        return_segments=True,
        **fallback,
        **prompt_arguments(whisper.tokens, decoding),
    )
    inside = [s for s in found["segments"][0] if float(s["start"]) < len(waveform) / rate]
    return [int(i) for segment in inside for i in segment["tokens"].tolist()]


def transcribe_in_chunks(
    whisper: Whisper,
    decoding: Decoding,
    chunk_length_s: float,
    stride_length_s: float | None,
    batch_size: int,
) -> Callable[[Waveform], str]:
    """Return a function that transcribes a recording in overlapping chunks.

    This is Distil-Whisper's long-form algorithm (https://arxiv.org/abs/2311.00430, section 5.3) as
    the pipeline of `transformers` runs it: chunks are decoded in batches and joined where their
    overlaps agree.

    Args:
        whisper: the model.
        decoding: see `Decoding`.
        chunk_length_s: length of a chunk, at most the model's window.
        stride_length_s: overlap on each side; None for a sixth of a chunk.
        batch_size: chunks that are decoded at once.
    """
    recogniser = pipeline(
        "automatic-speech-recognition",
        model=whisper.model,
        tokenizer=whisper.tokenizer,
        feature_extractor=whisper.feature_extractor,
        chunk_length_s=chunk_length_s,
        stride_length_s=stride_length_s,
        batch_size=batch_size,
        device=whisper.model.device,
    )
    options = {
        "num_beams": decoding.num_beams,  # the pipeline's own default is 5
        "max_new_tokens": decoding.max_length - _num_prefix(whisper, decoding),
        **prompt_arguments(whisper.tokens, decoding),
    }

    def transcribe(waveform: Waveform) -> str:
        found = recogniser(
            # The pipeline pops entries from what it is given.
            {"raw": waveform, "sampling_rate": whisper.log_mel.sampling_rate},
            return_timestamps=decoding.timestamps,
            generate_kwargs=dict(options),
        )
        return str(found["text"]).strip()

    return transcribe


def _num_prefix(whisper: Whisper, decoding: Decoding) -> int:
    return len(whisper.tokens.prefix(decoding.language, decoding.task, decoding.timestamps))
