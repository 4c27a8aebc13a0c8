"""Decoding of single windows; `distillery.whisper.long_form` makes recordings of them.

Greedy search is our own (`distillery.whisper.greedy`); beams, temperatures and drafts are
transformers' `generate`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
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
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_batch import Batch, likeliest_languages
from distillery.whisper.decoding import Decoding as Decoding
from distillery.whisper.decoding import Transcript as Transcript
from distillery.whisper.greedy import GreedyDecoder, Window, encode
from distillery.whisper.speculation import Draft, DraftedWhisper


def prompt_arguments(tokens: SpecialTokens, decoding: Decoding) -> dict[str, str]:
    """Return `generate`'s language and task, which an English-only model refuses."""
    if not tokens.is_multilingual:
        return {}
    return {"language": str(decoding.language), "task": decoding.task}


def searches_itself(whisper: Whisper, decoding: Decoding) -> bool:
    """Tell whether `transcribe_windows` needs no `generate`, at temperature 0."""
    return decoding.num_beams == 1 and not isinstance(whisper, DraftedWhisper)


def decoder_passes(whisper: Whisper, decoding: Decoding) -> list[tuple[Any, str]]:
    """Return the methods in which the decoder runs, as (owner, name), for those who time it."""
    if searches_itself(whisper, decoding):
        return [(Batch, "hear"), (Batch, "begin"), (Batch, "step")]
    return [(whisper.model.model.decoder, "forward"), (whisper.model.proj_out, "forward")]


@torch.inference_mode()
def transcribe_windows(
    whisper: Whisper,
    input_features: Tensor,
    decoding: Decoding,
    *,
    prompts: Sequence[Sequence[int]] = (),
    temperature: float = 0.0,
) -> list[Transcript]:
    """Transcribe windows side by side.

    Args:
        whisper: the model, on the device of the features. Its assistant, where it has one, is
            used only without prompts and at temperature 0.
        input_features: float (batch, mels, frames of the window).
        decoding: see `Decoding`.
        prompts: ids that each window's decoder sees before its prefix; one of no ids is none.
        temperature: above 0, ids are drawn from the softmax at this temperature, without beams.
    """
    shown = list(prompts) or [()] * len(input_features)
    if temperature > 0 or decoding.num_beams > 1:
        return _search(whisper, input_features, decoding, shown, temperature)
    if isinstance(whisper, DraftedWhisper) and not any(shown):
        # Transformers drafts for one window at a time.
        return [
            transcript
            for window in input_features
            for transcript in _search(whisper, window[None], decoding, [()], draft=whisper.draft)
        ]
    windows = [
        Window(index, features, decoding, prompt)
        for index, (features, prompt) in enumerate(zip(input_features, shown, strict=True))
    ]
    decoder = GreedyDecoder[int](whisper, len(windows), captures=False)
    transcripts = dict(decoder.transcribe(windows))
    return [transcripts[index] for index in range(len(windows))]


def _search(
    whisper: Whisper,
    input_features: Tensor,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    temperature: float = 0.0,
    draft: Draft | None = None,
) -> list[Transcript]:
    """Transcribe by `generate`, windows of one language and one length of prompt together."""
    encoded = encode(whisper, list(input_features))
    languages: list[str | None] = [decoding.language] * len(prompts)
    if decoding.language is None and whisper.tokens.is_multilingual:
        languages = [*detect_languages(whisper, encoded)]
    if draft is not None:
        draft.encode(input_features)

    def kind(index: int) -> tuple[int, str]:
        return len(prompts[index]), languages[index] or ""

    transcripts: dict[int, Transcript] = {}
    for _, indices in groupby(sorted(range(len(prompts)), key=kind), key=kind):
        group = list(indices)
        alike = replace(decoding, language=languages[group[0]])
        shown = [prompts[index] for index in group]
        found = _generate(whisper, encoded[group], alike, shown, temperature, draft)
        transcripts.update(zip(group, found, strict=True))
    return [transcripts[index] for index in range(len(prompts))]


def detect_languages(whisper: Whisper, encoded: Tensor) -> list[str]:
    """Return the code of each window's most probable language.

    Args:
        whisper: a multilingual model.
        encoded: encoder states, (windows, positions, width).
    """
    model, tokens = whisper.model, whisper.tokens
    start = torch.full((len(encoded), 1), tokens.start_of_transcript, device=encoded.device)
    states = model.model.decoder(input_ids=start, encoder_hidden_states=encoded, use_cache=False)
    return likeliest_languages(model.proj_out(states.last_hidden_state[:, 0]), tokens)


def _generate(
    whisper: Whisper,
    encoded: Tensor,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    draft: Draft | None,
) -> list[Transcript]:
    model, tokens = whisper.model, whisper.tokens
    prefix = tokens.prefix(decoding.language, decoding.task, decoding.timestamps)
    given = [[*prompt, *prefix] for prompt in prompts]
    num_prompt, num_given = len(prompts[0]), len(given[0])
    # A plain tensor: in a dictionary, transformers copies every row's cache to the host as well.
    rows = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        return_timestamps=decoding.timestamps,
        num_beams=decoding.num_beams,
        temperature=temperature,
        max_new_tokens=min(decoding.max_length - len(prefix), whisper.max_label_length - num_given),
        # One pass: without it, a window with timestamps is decoded again from its last one on.
        force_unique_generate_call=True,
        **({"decoder_input_ids": torch.tensor(given).to(encoded.device)} if num_prompt else {}),
        **_draft_arguments(model, draft, len(prefix)),
        **prompt_arguments(tokens, decoding),
    )
    sequences = [_until_end(row, num_given, tokens) for row in rows.tolist()]
    scores = sequence_scores(whisper, encoded, sequences, num_prompt, num_given)
    language = decoding.language and language_code(decoding.language)
    return [
        Transcript(ids[num_prompt:], ids[-1] != tokens.end_of_text, logprob, no_speech, language)
        for ids, (logprob, no_speech) in zip(sequences, scores, strict=True)
    ]


def _draft_arguments(
    model: WhisperForConditionalGeneration, draft: Draft | None, num_prefix: int
) -> dict[str, Any]:
    """Return `generate`'s arguments for speculative decoding; none without an assistant."""
    if draft is None:
        return {}
    arguments: dict[str, Any] = {"assistant_model": draft.decoder}
    suppressed = model.generation_config.begin_suppress_tokens
    if suppressed:
        # With an assistant, transformers forgets which ids may not begin a transcript.
        rule = SuppressTokensAtBeginLogitsProcessor(suppressed, num_prefix, device=model.device)
        arguments["logits_processor"] = LogitsProcessorList([rule])
    return arguments


def _until_end(row: list[int], num_given: int, tokens: SpecialTokens) -> list[int]:
    """Cut a row behind the first `<|endoftext|>` that was generated; the same id pads it."""
    end = tokens.end_of_text
    return row[: row.index(end, num_given) + 1] if end in row[num_given:] else row


def sequence_scores(
    whisper: Whisper,
    encoded: Tensor,
    sequences: Sequence[list[int]],
    num_prompt: int,
    num_given: int,
) -> list[tuple[float, float | None]]:
    """Return each sequence's mean log-probability and its window's probability of no speech.

    Args:
        whisper: the model that scores.
        encoded: encoder states, (batch, positions, width).
        sequences: token ids per row, prompt and prefix included.
        num_prompt: how many ids stand before `<|startoftranscript|>`.
        num_given: how many ids at the start are given and not scored, the prompt among them.
    """
    model, tokens = whisper.model, whisper.tokens
    longest = max(len(ids) for ids in sequences)
    # What fills a row up is behind all that is scored.
    padded = [ids + [tokens.end_of_text] * (longest - len(ids)) for ids in sequences]
    given = torch.tensor(padded, device=encoded.device)
    hidden = model.model.decoder(
        input_ids=given[:, :-1], encoder_hidden_states=encoded, use_cache=False
    ).last_hidden_state
    scores = []
    for row, ids in enumerate(sequences):
        # One row's logits at a time: a whole batch's would be the largest tensor of the stage.
        states = hidden[row, num_given - 1 : len(ids) - 1]
        wanted = given[row, num_given : len(ids)]
        cross_entropy = functional.cross_entropy(model.proj_out(states).float(), wanted)
        logprob = -float(cross_entropy) if len(wanted) else 0.0
        start = model.proj_out(hidden[row, num_prompt]).float().softmax(-1)
        no_speech = None if tokens.no_speech is None else float(start[tokens.no_speech])
        scores.append((logprob, no_speech))
    return scores
