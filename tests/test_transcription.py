import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model_folder

from distillery import whisper
from distillery.transcription import (
    Decoding,
    mean_logprobs,
    prompt_arguments,
    transcribe_in_chunks,
    transcribe_sequentially,
    transcribe_windows,
)

RATE = 16_000
EOT = 300
PREFIX = [301, 309, 402]
PLAIN_PREFIX = [*PREFIX, 406]
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
    loaded = whisper.load(str(folder))
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
def features(model):
    """Twelve windows of noise of different lengths and loudness."""
    waves = [noise(0.3 * (n + 1), seed=n) * np.float32(2.0**-n) for n in range(12)]
    return model.log_mel(waves)


def written(transcripts):
    return [(one.ids, one.truncated) for one in transcripts]


@torch.no_grad()
def step_by_step(model, window, max_length):
    """Decode one window without a cache, by the most probable id that may come."""
    config = model.model.generation_config
    ids = list(PLAIN_PREFIX)
    while len(ids) < max_length and ids[-1] != EOT:
        logits = model.model(window[None], decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[config.suppress_tokens] = -torch.inf
        if len(ids) == len(PLAIN_PREFIX):
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


def test_the_order_of_a_batch_does_not_matter(model, features):
    together = transcribe_windows(model, features, GREEDY)
    backwards = transcribe_windows(model, features.flip(0), GREEDY)[::-1]
    alone = [transcribe_windows(model, window[None], GREEDY)[0] for window in features]
    assert written(together) == written(backwards) == written(alone)
    for other in (backwards, alone):
        assert [one.avg_logprob for one in other] == pytest.approx(
            [one.avg_logprob for one in together], abs=1e-4
        )


def test_the_encoder_runs_once(model, features):
    calls = []
    hook = model.model.model.encoder.register_forward_hook(lambda *args: calls.append(1))
    transcribe_windows(model, features[:2], GREEDY)
    hook.remove()
    assert len(calls) == 1


def test_transcribing_leaves_the_model_as_it_was(timed, features):
    before = timed.model.generation_config.to_dict()
    transcribe_windows(timed, features[:1], replace(GREEDY, num_beams=2, timestamps=True))
    transcribe_in_chunks(timed, GREEDY, 4.0, None, 2)(noise(5))
    transcribe_sequentially(timed, noise(5), replace(GREEDY, timestamps=True), True, (0.0,))
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
        found = mean_logprobs(model.model, encoded, sequences, 4, EOT)
        other = mean_logprobs(model.model, encoded, sequences, 4, padding=7)
    expected = [
        plain_logprob(model, window, ids, 4)
        for window, ids in zip(features[:3], sequences, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-4)
    assert other == pytest.approx(found, abs=1e-6)


def test_mean_logprob_of_nothing_is_zero(model, features):
    with torch.no_grad():
        encoded = model.model.model.encoder(features[:1]).last_hidden_state
        assert mean_logprobs(model.model, encoded, [PLAIN_PREFIX], 4, EOT) == [0.0]


def test_a_language_is_needed(model, features):
    with pytest.raises(ValueError, match="needs a language"):
        transcribe_windows(model, features[:1], replace(GREEDY, language=None))


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


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("seconds", [0.5, 4.0, 9.0])
def test_sequential_decoding(timed, seconds, num_beams):
    decoding = Decoding("ja", "transcribe", True, num_beams, 10)
    ids = transcribe_sequentially(timed, noise(seconds), decoding, False, (0.0,))
    assert ids and all(isinstance(i, int) for i in ids)
    assert timed.tokens.is_timestamp(ids[0])
    assert not set(ids) & {*PLAIN_PREFIX, EOT}


def test_sequential_decoding_reads_the_whole_recording(timed):
    """Every window of a model that writes no closing timestamp is read to its end."""
    decoding = Decoding("ja", "transcribe", True, 1, 10)
    calls = []
    hook = timed.model.model.encoder.register_forward_hook(lambda *args: calls.append(1))
    transcribe_sequentially(timed, noise(11), decoding, False, (0.0,))
    hook.remove()
    assert len(calls) >= 3


@pytest.mark.parametrize("condition_on_prev_tokens", [False, True])
@pytest.mark.parametrize("seconds", [0.5, 9.0])
def test_sequential_decoding_with_fallback(timed, seconds, condition_on_prev_tokens):
    torch.manual_seed(0)  # higher temperatures draw
    decoding = Decoding("ja", "transcribe", True, 1, 10)
    ids = transcribe_sequentially(
        timed, noise(seconds), decoding, condition_on_prev_tokens, (0.0, 0.4)
    )
    assert all(isinstance(i, int) for i in ids)
    assert not set(ids) & set(PLAIN_PREFIX)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("seconds", [0.5, 4.0, 9.0])
def test_chunked_decoding(model, timed, seconds, num_beams, timestamps):
    decoding = Decoding("ja", "transcribe", timestamps, num_beams, 10)
    transcribe = transcribe_in_chunks(timed if timestamps else model, decoding, 4.0, None, 2)
    text = transcribe(noise(seconds))
    assert isinstance(text, str)
    assert "<|" not in text


@pytest.mark.parametrize("num_beams", [1, 2])
def test_chunks_are_decoded_as_asked(model, monkeypatch, num_beams):
    """The pipeline's own defaults are five beams and a length of its own."""
    asked = []
    generate = model.model.generate

    def spy(*args, **options):
        asked.append(options)
        return generate(*args, **options)

    monkeypatch.setattr(model.model, "generate", spy)
    transcribe_in_chunks(model, replace(GREEDY, num_beams=num_beams), 4.0, 0.5, 1)(noise(7))
    assert len(asked) == 2  # a chunk of 4 s every 3 s
    for options in asked:
        assert (options["num_beams"], options["max_new_tokens"]) == (num_beams, 20)
        assert (options["language"], options["task"]) == ("ja", "transcribe")
        assert not options.get("return_timestamps")


def test_a_chunk_that_holds_the_recording_is_a_window(model):
    wave = noise(3.0, seed=5)
    words = transcribe_windows(model, model.log_mel([wave]), GREEDY)[0].ids[4:]
    expected = model.tokenizer.decode(words, skip_special_tokens=True).strip()
    transcribe = transcribe_in_chunks(model, GREEDY, 4.0, None, 2)
    assert transcribe(wave) == expected != ""
    assert transcribe(wave) == expected  # and again, with the same function


def test_sequential_decoding_hears_silence_behind_the_end(model, monkeypatch):
    heard = {}

    def generate(input_features, **options):
        heard.update(options, features=input_features)
        starts = (0.0, 0.49, 0.5, 1.2)  # seconds; the recording lasts 0.5
        segments = [
            {"start": torch.tensor(start), "tokens": torch.tensor([n, 70 + n])}
            for n, start in enumerate(starts)
        ]
        return {"segments": [segments]}

    monkeypatch.setattr(model.model, "generate", generate)
    ids = transcribe_sequentially(model, noise(0.5), GREEDY, False, (0.0,))
    assert ids == [0, 70, 1, 71]
    window = model.log_mel.num_frames
    silence = heard["features"][0, :, -window + 2 :]  # two frames reach back into the sound
    assert heard["features"].shape[-1] == heard["attention_mask"].sum() == 50 + window
    assert (silence == silence.min()).all()
    assert heard["features"][0, :, :50].max() > silence.max()
