import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model_folder

from distillery.whisper import checkpoint
from distillery.whisper.windows import (
    Decoding,
    prompt_arguments,
    sequence_scores,
    transcribe_windows,
)

RATE = 16_000
EOT = 300
PREFIX = [301, 309, 402]
PLAIN_PREFIX = [*PREFIX, 406]
START_OF_PREV = 404
GREEDY = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=24)
TEXT_IDS = range(40, 60)  # all that the model may say, so that the end comes by chance


def noise(seconds, seed=0):
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(seconds * RATE))).astype(np.float32)


def allow(loaded, ids):
    """Let a model write these ids and no others."""
    suppressed = sorted(set(range(len(loaded.tokenizer))) - set(ids))
    loaded.model.generation_config.suppress_tokens = suppressed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a random model whose words depend on what it hears, and which sometimes ends."""
    folder = tiny_model_folder(tmp_path_factory.mktemp("model"), d_model=16)
    loaded = checkpoint.load(str(folder))
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:
                parameter.mul_(40 if "encoder_attn" in name else 12)
        decoder = loaded.model.model.decoder
        decoder.embed_positions.weight.mul_(100)
        # The end is also the padding, whose embedding starts as zero: it would never come.
        decoder.embed_tokens.weight[EOT] = decoder.embed_tokens.weight[64]
    allow(loaded, [EOT, *TEXT_IDS])
    return loaded


@pytest.fixture(scope="module")
def timed(model):
    """Return the same model, which may write the timestamps of its window too."""
    timed = replace(model, model=copy.deepcopy(model.model))
    begin, end = model.tokens.timestamp(0.0), model.tokens.timestamp(4.0)
    allow(timed, [EOT, *TEXT_IDS, *range(begin, end + 1)])
    return timed


@pytest.fixture(scope="module")
def hearing(model):
    """Return the same model, of which the language depends on what it hears as well."""
    hearing = replace(model, model=copy.deepcopy(model.model))
    codes = list(model.tokens.languages.values())
    with torch.no_grad():
        embeddings = hearing.model.model.decoder.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        embeddings[codes] = 0.3 * torch.randn(len(codes), 16, generator=generator)
    return hearing


@pytest.fixture(scope="module")
def features(model):
    """Twelve windows of noise of different lengths and loudness."""
    waves = [noise(0.3 * (n + 1), seed=n) * np.float32(2.0**-n) for n in range(12)]
    return model.log_mel(waves)


def written(transcripts):
    return [(one.ids, one.truncated) for one in transcripts]


@torch.no_grad()
def step_by_step(model, window, max_length, given=PLAIN_PREFIX):
    """Decode one window without a cache, by the most probable id that may come."""
    config = model.model.generation_config
    ids = list(given)
    while len(ids) < max_length and ids[-1] != EOT:
        logits = model.model(window[None], decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[config.suppress_tokens] = -torch.inf
        if len(ids) == len(given):
            logits[config.begin_suppress_tokens] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids, ids[-1] != EOT


def test_greedy_search_is_step_by_step_argmax(model, features):
    found = written(transcribe_windows(model, features, GREEDY))
    assert found == [step_by_step(model, window, 24) for window in features]
    truncated = [cut for _, cut in found]
    assert any(truncated) and not all(truncated)  # both endings are tested
    assert len({tuple(ids) for ids, _ in found}) > 3


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("max_length", [5, 12, 40])
def test_form_of_what_is_written(model, timed, features, num_beams, timestamps, max_length):
    model = timed if timestamps else model
    decoding = Decoding("ja", "transcribe", timestamps, num_beams, max_length)
    prefix = PREFIX if timestamps else PLAIN_PREFIX
    found = transcribe_windows(model, features, decoding)
    assert len(found) == len(features)
    for one in found:
        assert one.ids[: len(prefix)] == prefix
        assert one.ids.count(301) == 1
        body = one.ids[len(prefix) :]
        assert body.count(EOT) == (0 if one.truncated else 1)
        assert one.truncated or one.ids[-1] == EOT
        assert len(one.ids) == max_length if one.truncated else len(one.ids) <= max_length
        assert model.tokens.is_timestamp(body[0]) is timestamps
        assert one.avg_logprob < 0


def test_beams_find_what_is_more_probable(model, features):
    """Over all windows, since a beam may lose the greedy path in one."""

    def total(decoding):
        return sum(
            one.avg_logprob * (len(one.ids) - 4)
            for one in transcribe_windows(model, features, decoding)
        )

    greedy = replace(GREEDY, max_length=12)
    assert total(replace(greedy, num_beams=4)) > total(greedy)


def test_prefix_follows_language_and_task(timed, features):
    decoding = Decoding("English", "translate", True, 1, 6)
    assert transcribe_windows(timed, features[:1], decoding)[0].ids[:3] == [301, 302, 401]


def test_a_decoding_is_fitted_to_its_model(model):
    assert GREEDY.fitted_to(model) == GREEDY
    assert replace(GREEDY, max_length=1000).fitted_to(model).max_length == model.max_label_length
    with pytest.raises(ValueError, match="needs a language"):
        replace(GREEDY, language=None).fitted_to(model)


def test_the_order_of_a_batch_does_not_matter(model, features):
    together = transcribe_windows(model, features, GREEDY)
    backwards = transcribe_windows(model, features.flip(0), GREEDY)[::-1]
    alone = [transcribe_windows(model, window[None], GREEDY)[0] for window in features]
    assert written(together) == written(backwards) == written(alone)
    for other in (backwards, alone):
        assert [one.avg_logprob for one in other] == pytest.approx(
            [one.avg_logprob for one in together], abs=1e-4
        )


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_encoder_runs_once_for_each_window(model, features, num_beams):
    sizes = []
    hook = model.model.model.encoder.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    transcribe_windows(model, features[:5], replace(GREEDY, num_beams=num_beams))
    hook.remove()
    assert sum(sizes) == 5


def test_generate_copies_no_cache_to_the_host(model, features, monkeypatch):
    """As it does where a dictionary is asked for, layer by layer and row by row."""

    def refuse(*_):
        raise AssertionError("the outputs are split by row")

    monkeypatch.setattr(type(model.model), "_stack_split_outputs", refuse)
    transcribe_windows(model, features[:2], replace(GREEDY, num_beams=2))
    transcribe_windows(model, features[:2], replace(GREEDY, temperature_fallback=True))


def test_transcribing_leaves_the_model_as_it_was(timed, features):
    before = timed.model.generation_config.to_dict()
    transcribe_windows(timed, features[:1], replace(GREEDY, num_beams=2, timestamps=True))
    prompts = [[START_OF_PREV, 50, 51]]
    warm = replace(GREEDY, timestamps=True, temperature_fallback=True)
    transcribe_windows(timed, features[:1], warm, prompts=prompts)
    assert timed.model.generation_config.to_dict() == before


def plain_logprob(model, window, ids, num_prefix):
    with torch.no_grad():
        logits = model.model(window[None], decoder_input_ids=torch.tensor([ids])).logits[0]
    scores = logits.double().log_softmax(-1)
    found = [float(scores[i - 1, ids[i]]) for i in range(num_prefix, len(ids))]
    return sum(found) / len(found)


def test_avg_logprob_is_the_mean_under_the_plain_softmax(model, features):
    for one, window in zip(transcribe_windows(model, features, GREEDY), features, strict=True):
        assert one.avg_logprob == pytest.approx(plain_logprob(model, window, one.ids, 4), abs=1e-4)


def test_mean_logprobs_of_rows_of_different_lengths(model, features):
    sequences = [
        [*PLAIN_PREFIX, 50, 41, EOT],
        [*PLAIN_PREFIX, EOT],
        [*PLAIN_PREFIX, 44, 44, 44, 45],
    ]
    with torch.no_grad():
        encoded = model.model.model.encoder(features[:3]).last_hidden_state
        found = [mean for mean, _ in sequence_scores(model, encoded, sequences, 0, 4)]
    expected = [
        plain_logprob(model, window, ids, 4)
        for window, ids in zip(features[:3], sequences, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-4)


def test_mean_logprob_of_nothing_is_zero(model, features):
    with torch.no_grad():
        encoded = model.model.model.encoder(features[:1]).last_hidden_state
        ((mean, _),) = sequence_scores(model, encoded, [PLAIN_PREFIX], 0, 4)
    assert mean == 0.0


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_language_that_is_not_given_is_detected(hearing, features, num_beams):
    """In each window, as `generate` does behind `<|startoftranscript|>` alone."""
    decoding = replace(GREEDY, language=None, num_beams=num_beams, max_length=9)
    prompts = [[START_OF_PREV, 50, 51], []] * 6
    with torch.no_grad():
        ids = hearing.model.detect_language(features).tolist()
    assert len(set(ids)) > 2
    names = {index: code for code, index in hearing.tokens.languages.items()}
    for shown in ((), prompts):
        found = transcribe_windows(hearing, features, decoding, prompts=shown)
        assert [one.ids[1] for one in found] == ids
        assert [one.language for one in found] == [names[index] for index in ids]
    named = [
        transcribe_windows(hearing, window[None], replace(decoding, language=one.language))[0]
        for window, one in zip(features, found, strict=True)
    ]
    assert written(named) == written(transcribe_windows(hearing, features, decoding))


def test_a_language_is_needed_unless_it_may_be_detected(model):
    decoding = replace(GREEDY, language=None, max_length=1000)
    fitted = decoding.fitted_to(model, detect_language=True)
    assert (fitted.language, fitted.max_length) == (None, model.max_label_length)
    with pytest.raises(ValueError, match="needs a language"):
        decoding.fitted_to(model)


def test_an_english_only_model(model, timed, features):
    english = replace(
        timed, tokens=replace(model.tokens, languages={}), model=copy.deepcopy(timed.model)
    )
    decoding = replace(GREEDY, language=None)
    assert prompt_arguments(english.tokens, decoding) == {}
    assert prompt_arguments(model.tokens, GREEDY) == {"language": "ja", "task": "transcribe"}
    with pytest.raises(ValueError, match="English-only"):
        transcribe_windows(english, features[:1], GREEDY)
    config = english.model.generation_config
    config.is_multilingual = False
    del config.lang_to_id, config.task_to_id
    for timestamps in (False, True):
        decoding = replace(decoding, timestamps=timestamps)
        ids = transcribe_windows(english, features[:1], decoding)[0].ids
        assert ids[0] == 301
        assert english.tokens.is_timestamp(ids[1]) if timestamps else ids[1] == 406


def test_prompts_are_shown_to_each_window_and_are_no_part_of_its_transcript(model, features):
    assert model.tokens.start_of_prev == START_OF_PREV
    prompts = [[START_OF_PREV, 41 + n % 3, 50] for n in range(len(features))]
    found = transcribe_windows(model, features, GREEDY, prompts=prompts)
    for window, prompt, one in zip(features, prompts, found, strict=True):
        given = [*prompt, *PLAIN_PREFIX]
        ids, truncated = step_by_step(model, window, len(prompt) + 24, given)
        assert (one.ids, one.truncated) == (ids[len(prompt) :], truncated)
        wanted = plain_logprob(model, window, ids, len(given))
        assert one.avg_logprob == pytest.approx(wanted, abs=1e-4)
    assert written(found) != written(transcribe_windows(model, features, GREEDY))


def test_a_prompt_leaves_less_room_for_the_transcript(model, features):
    prompts = [[START_OF_PREV, *[41] * 80]]  # of the decoder's 96 positions
    (one,) = transcribe_windows(
        model, features[:1], replace(GREEDY, max_length=90), prompts=prompts
    )
    assert len(one.ids) <= 96 - 81
