"""Decoding again at a higher temperature: when, what is drawn, and that nothing else changes it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stage_runs import talkative_model_folder

from distillery.whisper import checkpoint, fallback, greedy
from distillery.whisper.decoding import Decoding, Transcript
from distillery.whisper.fallback import TEMPERATURES, kept, next_temperature
from distillery.whisper.greedy import GreedyDecoder, Window
from distillery.whisper.sampling import drawn
from distillery.whisper.windows import transcribe_stream, transcribe_windows

GREEDY = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=24)
WARM = replace(GREEDY, temperature_fallback=True)
NUM_WINDOWS = 8


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """Return a random model that writes something else for each window; some are cut."""
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def features(whisper):
    random = np.random.default_rng(0)
    waves = [random.standard_normal((n + 1) * 4000) * 0.5**n for n in range(NUM_WINDOWS)]
    return whisper.log_mel([wave.astype(np.float32) for wave in waves])


def windows_of(features, decoding=WARM):
    return [
        Window(index, window, decoding, seed=7 * index) for index, window in enumerate(features)
    ]


def stream(whisper, windows, batch_size=3, decoding=WARM):
    found = list(transcribe_stream(whisper, windows, decoding, batch_size))
    assert len(found) == len(windows)
    return dict(found)


def said(whisper, text, avg_logprob=-0.1, no_speech_prob=0.0, temperature=0.0):
    words = whisper.tokenizer.encode(text, add_special_tokens=False)
    ids = [*whisper.tokens.prefix("ja", "transcribe", False), *words, whisper.tokens.end_of_text]
    return Transcript(ids, False, avg_logprob, no_speech_prob, "ja", temperature)


@pytest.mark.parametrize(
    ("text", "avg_logprob", "no_speech", "is_bad"),
    [
        ("ねこがみずをのむ。", -0.1, 0.0, False),
        ("ねこがみずをのむ。", -1.1, 0.0, True),
        ("ねこがみずをのむ。", -1.1, 0.6, True),
        ("ねこがみずをのむ。", -1.1, 0.7, False),  # silence
        ("ねこがみずをのむ。", -1.1, None, True),
        ("いえ" * 60, -0.1, 0.0, True),
        ("いえ" * 60, -0.1, 0.9, True),
    ],
)
def test_when_a_window_is_decoded_again(whisper, text, avg_logprob, no_speech, is_bad):
    transcript = said(whisper, text, avg_logprob, no_speech)
    assert next_temperature(whisper, WARM, transcript) == (0.2 if is_bad else None)
    assert next_temperature(whisper, GREEDY, transcript) is None


def test_temperatures_rise_and_end(whisper):
    tried, transcript = [], said(whisper, "いえ" * 60)
    while transcript.temperature is not None:
        tried.append(transcript.temperature)
        warmer = next_temperature(whisper, WARM, transcript)
        transcript = replace(transcript, temperature=warmer)
    assert tuple(tried) == TEMPERATURES


@pytest.mark.parametrize("text", ["", "ねこ"])
def test_of_silence_no_text_is_kept(whisper, text):
    silence = replace(said(whisper, text, -1.1, 0.9), truncated=True)
    prefix = whisper.tokens.prefix("ja", "transcribe", False)
    emptied = kept(whisper, WARM, silence)
    assert emptied.ids == [*prefix, whisper.tokens.end_of_text]
    assert not emptied.truncated
    assert kept(whisper, GREEDY, silence) is silence
    speech = said(whisper, text, -1.1, 0.5)
    assert kept(whisper, WARM, speech) is speech


def median_logprob(found):
    return float(np.median([one.avg_logprob for one in found.values()]))


@pytest.fixture
def half_are_bad(whisper, features, monkeypatch):
    """Let half of the windows be decoded again; return the transcripts of the first try."""
    first = stream(whisper, windows_of(features, GREEDY))
    monkeypatch.setattr(fallback, "MIN_AVG_LOGPROB", median_logprob(first))
    monkeypatch.setattr(fallback, "NO_SPEECH_PROBABILITY", 1.0)
    monkeypatch.setattr(fallback, "MAX_COMPRESSION_RATIO", np.inf)
    return first


def test_bad_windows_alone_are_decoded_again(whisper, features, half_are_bad):
    found = stream(whisper, windows_of(features))
    for key, first in half_are_bad.items():
        if first.avg_logprob >= fallback.MIN_AVG_LOGPROB:
            assert (found[key].ids, found[key].temperature) == (first.ids, 0.0)
        else:
            assert found[key].temperature > 0
            is_good = found[key].avg_logprob >= fallback.MIN_AVG_LOGPROB
            assert is_good or found[key].temperature == 1.0
    assert len({one.temperature for one in found.values()}) > 2


def test_windows_are_encoded_once_however_often_they_are_decoded(
    whisper, features, half_are_bad, monkeypatch
):
    sizes = []
    encode = greedy.encode
    monkeypatch.setattr(
        greedy, "encode", lambda w, group: sizes.append(len(group)) or encode(w, group)
    )
    stream(whisper, windows_of(features))
    assert sum(sizes) == NUM_WINDOWS


def test_what_is_drawn_depends_on_the_seed_alone(whisper, features, half_are_bad):
    windows = windows_of(features)
    wanted = stream(whisper, windows, 1)
    random = np.random.default_rng(0)
    for batch_size in (2, 3, NUM_WINDOWS):
        order = random.permutation(NUM_WINDOWS)
        found = stream(whisper, [windows[index] for index in order], batch_size)
        for key, one in found.items():
            assert (one.ids, one.temperature) == (wanted[key].ids, wanted[key].temperature)
    others = stream(whisper, [replace(window, seed=window.seed + 1) for window in windows])
    changed = {key for key in wanted if others[key].ids != wanted[key].ids}
    assert changed
    assert all(wanted[key].temperature > 0 for key in changed)


def test_windows_in_one_batch_have_seeds_too(whisper, features, half_are_bad):
    wanted = stream(whisper, windows_of(features))
    seeds = [window.seed for window in windows_of(features)]
    found = transcribe_windows(whisper, features, WARM, seeds=seeds)
    assert [one.ids for one in found] == [wanted[index].ids for index in range(NUM_WINDOWS)]
    unseeded = transcribe_windows(whisper, features, WARM)
    assert [one.ids for one in unseeded] != [one.ids for one in found]


def test_out_of_memory_changes_nothing_that_is_drawn(whisper, features, half_are_bad, monkeypatch):
    wanted = stream(whisper, windows_of(features))
    step = greedy.Batch.step

    def fail_where_many_are_drawn(batch, shape):
        if shape.num_rows > 2 and shape.any_drawn:
            raise torch.OutOfMemoryError("injected")
        step(batch, shape)

    monkeypatch.setattr(greedy.Batch, "step", fail_where_many_are_drawn)
    decoder = GreedyDecoder(whisper, 4)
    found = dict(decoder.transcribe(windows_of(features)))
    assert {key: one.ids for key, one in found.items()} == {
        key: one.ids for key, one in wanted.items()
    }
    assert decoder.batch_size == 2


def test_beams_come_first(whisper, features, half_are_bad):
    beams = replace(WARM, num_beams=2)
    first = stream(
        whisper, windows_of(features, replace(beams, temperature_fallback=False)), 3, beams
    )
    found = stream(whisper, windows_of(features, beams), 3, beams)
    greedy_alone = stream(whisper, windows_of(features))
    warm = {key for key, one in found.items() if one.temperature > 0}
    assert warm == {k for k, one in first.items() if one.avg_logprob < fallback.MIN_AVG_LOGPROB}
    assert warm
    for key, one in found.items():
        if key not in warm:
            assert one.ids == first[key].ids
        elif greedy_alone[key].temperature > 0:  # the same seed draws the same
            assert one.ids == greedy_alone[key].ids


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_ids_come_as_often_as_the_softmax_says(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.9, -torch.inf, 1.7])
    count, wanted = 20_000, (logits / temperature).softmax(-1)
    rows = logits.expand(count, -1)
    warm, numbers = torch.full((count,), temperature), torch.arange(count)
    by_seed = drawn(rows, warm, numbers, torch.full((count,), 9)).argmax(-1)
    by_position = drawn(rows, warm, torch.full((count,), 2**32 - 1), numbers).argmax(-1)
    for found in (by_seed, by_position):
        share = torch.bincount(found, minlength=6) / count
        torch.testing.assert_close(share, wanted, atol=0.012, rtol=0)
        # What comes next does not depend on what came.
        again = torch.bincount(found[1:][found[:-1] == 2], minlength=6).double()
        torch.testing.assert_close((again / again.sum()).float(), wanted, atol=0.02, rtol=0)
    assert not torch.equal(by_seed, by_position)


def test_rows_at_temperature_zero_stay_as_they_are():
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(3, dtype=torch.long)
    found = drawn(scores, torch.tensor([0.0, 1.0, 0.0]), zeros, zeros)
    assert torch.equal(found[::2].float(), scores[::2])
    assert not torch.equal(found[1].float(), scores[1])
