"""Decoding of single windows; `distillery.whisper.long_form` makes recordings of them.

Greedy search and what is drawn at a temperature is our own (`distillery.whisper.greedy`); beams and
drafts are transformers' `generate`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
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
from distillery.whisper.fallback import kept, next_temperature
from distillery.whisper.greedy import GreedyDecoder, Key, Window, encode
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


def transcribe_windows(
    whisper: Whisper,
    input_features: Tensor,
    decoding: Decoding | Sequence[Decoding],
    *,
    prompts: Sequence[Sequence[int]] = (),
    seeds: Sequence[int] = (),
) -> list[Transcript]:
    """Transcribe windows side by side.

    Args:
        whisper: the model, on the device of the features. Its assistant, where it has one, is
            used only without prompts and at temperature 0.
        input_features: float (batch, mels, frames of the window).
        decoding: see `Decoding`; of each window where they differ, though not in their beams.
        prompts: ids that each window's decoder sees before its prefix; one of no ids is none.
        seeds: of what is drawn for each window; 0 for all where there are none.
    """
    numbers = range(len(input_features))
    shown, drawn_by = prompts or [()] * len(numbers), seeds or [0] * len(numbers)
    hows = [decoding] * len(numbers) if isinstance(decoding, Decoding) else decoding
    windows = [
        Window(*window)
        for window in zip(numbers, input_features, hows, shown, drawn_by, strict=True)
    ]
    found = dict(_in_batch(whisper, windows))
    return [found[index] for index in range(len(windows))]


def transcribe_stream(
    whisper: Whisper, windows: Iterable[Window[Key]], decoding: Decoding, batch_size: int
) -> Iterator[tuple[Key, Transcript]]:
    """Transcribe windows as they come, each as soon as there is room for it.

    Args:
        whisper: the model. Its assistant, where it has one, is used as in `transcribe_windows`.
        windows: their languages, tasks and timestamps may differ.
        decoding: the beams and the fallback of all of them.
        batch_size: windows side by side; the greedy search halves it where memory runs out.

    Yields:
        The key of a window and its transcript, not in order.
    """
    if searches_itself(whisper, decoding):
        yield from GreedyDecoder[Key](whisper, batch_size).transcribe(windows)
        return
    source = iter(windows)
    while batch := list(islice(source, batch_size)):
        yield from _in_batch(whisper, batch)


@torch.inference_mode()
def _in_batch(whisper: Whisper, windows: Sequence[Window[Key]]) -> list[tuple[Key, Transcript]]:
    """Transcribe some windows of the same number of beams, and nothing else beside them."""
    if not windows:
        return []
    if windows[0].decoding.num_beams > 1:
        found = _search(whisper, windows)
    elif isinstance(whisper, DraftedWhisper) and not any(window.prompt for window in windows):
        # Transformers drafts for one window at a time.
        found = [_search(whisper, [window], whisper.draft)[0] for window in windows]
    else:
        return _greedily(whisper, windows)
    return _with_fallback(whisper, windows, found)


def _greedily(whisper: Whisper, windows: Sequence[Window[Key]]) -> list[tuple[Key, Transcript]]:
    return list(GreedyDecoder[Key](whisper, len(windows), captures=False).transcribe(windows))


def _with_fallback(
    whisper: Whisper, windows: Sequence[Window[Key]], found: Sequence[Transcript]
) -> list[tuple[Key, Transcript]]:
    """Name the transcripts of windows; where that is asked for, decode bad ones again."""
    named, bad = [], []
    for window, transcript in zip(windows, found, strict=True):
        warmer = next_temperature(whisper, window.decoding, transcript)
        if warmer is None:
            named.append((window.key, kept(whisper, window.decoding, transcript)))
        else:
            bad.append(replace(window, temperature=warmer))
    return [*named, *(_greedily(whisper, bad) if bad else [])]


def _search(
    whisper: Whisper, windows: Sequence[Window[Key]], draft: Draft | None = None
) -> list[Transcript]:
    """Transcribe by `generate`, windows of one prefix and one length of prompt together."""
    features = [window.features for window in windows]
    encoded = encode(whisper, features)
    languages = [window.decoding.language for window in windows]
    if whisper.tokens.is_multilingual and None in languages:
        detected = detect_languages(whisper, encoded)
        languages = [given or found for given, found in zip(languages, detected, strict=True)]
    if draft is not None:
        draft.encode(torch.stack(features))
    hows = [replace(w.decoding, language=code) for w, code in zip(windows, languages, strict=True)]

    def kind(index: int) -> tuple[int, str]:
        return len(windows[index].prompt), repr(hows[index])

    transcripts: dict[int, Transcript] = {}
    for _, indices in groupby(sorted(range(len(windows)), key=kind), key=kind):
        group = list(indices)
        shown = [windows[index].prompt for index in group]
        found = _generate(whisper, encoded[group], hows[group[0]], shown, draft)
        transcripts.update(zip(group, found, strict=True))
    return [transcripts[index] for index in range(len(windows))]


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
        temperature=0.0,
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
