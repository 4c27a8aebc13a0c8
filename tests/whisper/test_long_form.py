"""Long-form decoding, with a model that is an ear and a script rather than weights.

The ear hears words as stretches of a constant level, one level a word, and writes what Whisper was
trained to write: each word that is whole between its timestamps, and the start alone of one that
the window cuts off. A word whose beginning it misses it takes for another.
"""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stage_runs import talkative_model_folder
from tiny import SHARED, tiny_tokenizer
from transformers import WhisperTokenizer

from distillery.text.timestamps import Segment
from distillery.text.tokens import SpecialTokens
from distillery.whisper import checkpoint, long_form
from distillery.whisper.long_form import (
    chunk_bounds,
    text_of,
    transcribe_in_chunks,
    transcribe_sequentially,
)
from distillery.whisper.windows import Decoding, Transcript

RATE = 16_000
DECODING = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=24)
WORDS = ("ねこ", "みず", "さかな", "いぬ", "りんご", "たまご", "でんしゃ")
WRONG = "うみ"


class Windows:
    """Stands in for the log-mel features: keeps the windows and hands out their numbers."""

    sampling_rate = RATE

    def __init__(self, window_s):
        self.window_s = window_s
        self.window_samples = round(window_s * RATE)
        self.heard = []

    def __call__(self, waveforms, device):
        assert all(0 < len(wave) <= self.window_samples for wave in waveforms)
        numbers = range(len(self.heard), len(self.heard) + len(waveforms))
        self.heard += [wave.copy() for wave in waveforms]
        return torch.tensor(numbers)[:, None, None]


def stub(window_s=3.0, tokenizer=None, max_label_length=96):
    tokenizer = tokenizer or tiny_tokenizer()
    return SimpleNamespace(
        model=SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32),
        log_mel=Windows(window_s),
        tokenizer=tokenizer,
        tokens=SpecialTokens.from_tokenizer(tokenizer, True),
        max_label_length=max_label_length,
    )


def speaking(monkeypatch, write):
    """Let every window say what `write(whisper, waveform, prompt)` returns.

    That is a list of times in seconds and texts, or a `Transcript`. Returns for all windows that
    stood side by side how many these were, what they were shown, and how they were decoded.
    """
    calls = []

    def transcribe_stream(model, windows, decoding, batch_size):
        source, num_taken = iter(windows), len(model.log_mel.heard)
        while batch := list(islice(source, batch_size)):
            assert all(window.decoding == decoding for window in batch)
            num_taken += len(batch)
            assert len(model.log_mel.heard) == num_taken  # and no features of any other window
            calls.append((len(batch), [window.prompt for window in batch], decoding))
            for window in batch:
                wave = model.log_mel.heard[int(window.features)]
                yield window.key, transcript(model, write(model, wave, window.prompt))

    monkeypatch.setattr(long_form, "transcribe_stream", transcribe_stream)
    return calls


def transcript(model, parts, avg_logprob=-0.1, no_speech_prob=None):
    if isinstance(parts, Transcript):
        return parts
    ids = [model.tokens.start_of_transcript]
    for part in parts:
        is_time = isinstance(part, float)
        ids += [model.tokens.timestamp(part)] if is_time else encode(model, part)
    ids.append(model.tokens.end_of_text)
    return Transcript(ids, False, avg_logprob, no_speech_prob)


def encode(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False)


def spoken(words, pauses):
    """Return a recording: pause, word, pause, word, …, pause; lengths in seconds."""
    parts = [np.zeros(round(pauses[0] * RATE), np.float32)]
    for (index, seconds), pause in zip(words, pauses[1:], strict=True):
        parts.append(np.full(round(seconds * RATE), 0.1 * (index + 1), np.float32))
        parts.append(np.zeros(round(pause * RATE), np.float32))
    return np.concatenate(parts)


def hush(seconds):
    """Return what is quiet, but no digital silence."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE), dtype=np.float32)
    return noise * np.float32(0.001)


def ear(error_s=0.0, seed=0, makes_ends_up=False):
    """Return a writer whose timestamps are wrong by up to so many seconds.

    It may make up what a word is that the window cuts off, and that the word ends with the window.
    """
    rng = np.random.default_rng(seed)

    def write(model, wave, prompt):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], wave > 0.01, [0]])))
        found = []
        for first, last in edges.reshape(-1, 2):
            start, end = np.clip(
                np.array([first, last]) / RATE + rng.uniform(-error_s, error_s, 2),
                0.0,
                len(wave) / RATE,
            )
            found.append(float(start))
            if last == model.log_mel.window_samples:
                if makes_ends_up and len(found) > 1:
                    found += [WRONG, len(wave) / RATE]
                break
            word = round(float(wave[(first + last) // 2]) * 10) - 1
            found += [WORDS[word] if first > 0 else WRONG, float(end)]
        return found or [0.0]

    return write


def recordings(count, seed):
    """Return random recordings, and what is said in each; words last 0.4 to 1.8 s."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = [(int(rng.integers(7)), rng.uniform(0.4, 1.8)) for _ in range(rng.integers(1, 15))]
        wave = spoken(words, rng.uniform(0.6, 1.1, len(words) + 1))
        found.append((wave, "".join(WORDS[index] for index, _ in words)))
    return found


def real_tokenizer():
    folder = SHARED / "data" / "whisper_tokenizer"
    if not folder.is_dir():
        pytest.skip("../shared is absent")
    return WhisperTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("error_s", [0.0, 0.25])
def test_sequential_decoding_hears_every_word(monkeypatch, batch_size, error_s):
    """Also where timestamps are wrong by a quarter of a second."""
    speaking(monkeypatch, ear(error_s))
    waves, said = zip(*recordings(20, seed=1), strict=True)
    found = dict(transcribe_sequentially(stub(), waves, DECODING, batch_size))
    assert [text_of(found[i]) for i in range(20)] == list(said)
    for number, segments in found.items():
        times = [time for segment in segments for time in segment[:2]]
        assert error_s or times == sorted(times)
        assert times[0] >= 0 and times[-1] <= len(waves[number]) / RATE


def test_a_word_that_ends_with_its_window_is_read_again(monkeypatch):
    speaking(monkeypatch, ear(makes_ends_up=True))
    waves, said = zip(*recordings(20, seed=1), strict=True)
    found = dict(transcribe_sequentially(stub(), waves, DECODING, 4))
    assert [text_of(found[i]) for i in range(20)] == list(said)


def test_sequential_decoding_with_the_real_tokenizer_and_window(monkeypatch):
    speaking(monkeypatch, ear(0.1))
    waves, said = zip(*recordings(4, seed=2), strict=True)
    wave, text = np.concatenate([*waves] * 5), "".join([*said] * 5)  # over two minutes
    model = stub(30.0, real_tokenizer(), max_label_length=448)
    ((_, segments),) = transcribe_sequentially(model, [wave], DECODING, 1)
    assert text_of(segments) == text
    assert len(model.log_mel.heard) < len(wave) / RATE / 30 * 1.3


def test_segments_have_the_times_of_the_recording(monkeypatch):
    speaking(monkeypatch, ear())
    wave = spoken([(0, 1.0), (1, 1.5), (2, 0.5)], [0.5, 1.0, 1.0, 0.5])
    ((_, segments),) = transcribe_sequentially(stub(), [wave], DECODING, 1)
    assert [segment.text for segment in segments] == ["ねこ", "みず", "さかな"]
    expected = [(0.5, 1.5), (2.5, 4.0), (5.0, 5.5)]
    for segment, times in zip(segments, expected, strict=True):
        assert segment[:2] == pytest.approx(times, abs=0.021)


def test_recordings_come_as_they_are_finished_and_the_batch_is_refilled(monkeypatch):
    calls = speaking(monkeypatch, lambda *_: [0.0])
    waves = [hush(3.0 * n) for n in (4, 1, 2, 1)]
    order = [number for number, _ in transcribe_sequentially(stub(), waves, DECODING, 2)]
    assert order == [1, 0, 2, 3] or order == [1, 2, 0, 3]
    assert [size for size, *_ in calls] == [2, 2, 2, 2]
    assert all(decoding.timestamps for *_, decoding in calls)


@pytest.mark.parametrize(("seconds", "num_windows"), [(0.02, 1), (2.9, 1), (3.0, 1), (9.0, 3)])
@pytest.mark.parametrize("written", [[], [0.0], [1.0], [0.0, 2.0]])
def test_silence_is_read_window_by_window(monkeypatch, seconds, num_windows, written):
    speaking(monkeypatch, lambda *_: written)
    model = stub()
    wave = hush(seconds)
    assert list(transcribe_sequentially(model, [wave], DECODING, 1)) == [(0, [])]
    heard = sum(map(len, model.log_mel.heard))
    if written in ([], [0.0]):
        assert (len(model.log_mel.heard), heard) == (num_windows, len(wave))
    assert len(wave) <= heard <= 3.5 * len(wave) + 1


def test_a_long_recording_is_never_held_as_features(monkeypatch):
    wave = hush(600.0)
    calls = speaking(monkeypatch, lambda *_: [0.0])
    assert list(transcribe_sequentially(stub(30.0), [wave], DECODING, 8)) == [(0, [])]
    assert {size for size, *_ in calls} == {1}
    calls.clear()
    ((_, segments),) = transcribe_in_chunks(stub(30.0), [wave], DECODING, 8, chunk_length_s=30.0)
    assert text_of(segments) == ""
    assert max(size for size, *_ in calls) == 8


def test_digital_silence_is_not_shown_to_the_model(monkeypatch):
    """Not an hour of it, and not what follows the last word."""
    speaking(monkeypatch, ear())
    silence = np.zeros(3600 * RATE, np.float32)
    waves = [silence, spoken([(0, 1.0)], [0.5, 20.0]), silence[:1], spoken([(1, 1.0)], [9.0, 0.5])]
    said = ["", "ねこ", "", "みず"]
    model = stub()
    found = dict(transcribe_sequentially(model, waves, DECODING, 2))
    assert [text_of(found[i]) for i in range(4)] == said
    assert len(model.log_mel.heard) == 2
    decoding = Decoding("ja", "transcribe", True, 1, 24)
    model = stub()
    found = dict(transcribe_in_chunks(model, waves, decoding, 2, chunk_length_s=3.0))
    assert [text_of(found[i]) for i in range(4)] == said
    assert len(model.log_mel.heard) == 2


@pytest.mark.parametrize(
    "written",
    [
        ["ねこ"],
        [0.0, "ねこ"],
        [0.0, "ねこ", 0.02],
        [0.0, "ねこ", 0.02, 0.02],
        [0.0, "ねこ", 0.02, 0.04, "いぬ"],
        [2.98],
        [0.02],
    ],
)
def test_reading_goes_on_whatever_a_model_writes(monkeypatch, written):
    """Without timestamps, without an end, with ends that lead nowhere; over noise, too."""
    speaking(monkeypatch, lambda *_: written)
    model = stub()
    wave = 0.1 * np.random.default_rng(0).standard_normal(9 * RATE).astype(np.float32)
    ((_, segments),) = transcribe_sequentially(model, [wave], DECODING, 1)
    assert len(model.log_mel.heard) <= 31
    assert {segment.text for segment in segments} <= {"ねこ"}
    if written in (["ねこ"], [0.0, "ねこ"]):
        assert [segment[:2] for segment in segments] == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]


def test_text_behind_the_end_of_the_recording_is_left_out(monkeypatch):
    speaking(monkeypatch, lambda *_: [0.0, "ねこ", 0.4, 0.44, "いぬ", 0.9, 1.2, "うみ", 1.4])
    wave = np.full(RATE // 2, 0.1, np.float32)
    ((_, segments),) = transcribe_sequentially(stub(), [wave], DECODING, 1)
    assert segments == [Segment(0.0, 0.4, "ねこ"), Segment(0.44, 0.5, "いぬ")]


def test_times_end_with_the_window(monkeypatch):
    """A model whose window is short knows timestamps up to 30 s all the same."""
    speaking(monkeypatch, lambda *_: [0.5, "ねこ", 20.0])
    ((_, segments),) = transcribe_sequentially(stub(), [hush(5.0)], DECODING, 1)
    assert [segment[:2] for segment in segments] == [(0.5, 3.0), (3.5, 5.0)]


def test_a_window_sees_what_was_written_before_it(monkeypatch):
    calls = speaking(monkeypatch, lambda *_: [0.0, "ねこ", 3.0])
    model = stub(max_label_length=20)
    waves = [hush(9.0), hush(6.0)]
    list(transcribe_sequentially(model, waves, DECODING, 1, condition_on_prev_tokens=True))
    timestamp = model.tokens.timestamp
    said = [timestamp(0.0), *encode(model, "ねこ"), timestamp(3.0)]
    before = model.tokens.start_of_prev
    expected = [[], [before, *said], [before, *(said * 2)[-9:]], [], [before, *said]]
    assert [prompt for _, (prompt,), _ in calls] == expected


def test_prompts_of_different_lengths_are_decoded_together(monkeypatch):
    calls = speaking(monkeypatch, lambda *heard: ear()(*heard))
    waves, said = zip(*recordings(6, seed=3), strict=True)
    found = dict(transcribe_sequentially(stub(), waves, DECODING, 4, condition_on_prev_tokens=True))
    assert [text_of(found[i]) for i in range(6)] == list(said)
    assert max(len({len(prompt) for prompt in prompts}) for _, prompts, _ in calls) > 2
    assert all(size == 4 for size, *_ in calls[:3])  # as many recordings as there are, in one call


@pytest.mark.parametrize(("temperature", "is_shown"), [(0.4, True), (0.6, False)])
def test_what_was_drawn_freely_is_no_prompt(monkeypatch, temperature, is_shown):
    def write(model, *_):
        return replace(transcript(model, [0.0, "ねこ", 3.0]), temperature=temperature)

    calls = speaking(monkeypatch, write)
    wave = hush(6.0)
    list(transcribe_sequentially(stub(), [wave], DECODING, 1, condition_on_prev_tokens=True))
    assert [prompt != [] for _, (prompt,), _ in calls] == [False, is_shown]


def test_chunks_begin_before_sound_and_end_in_silence():
    wave = spoken([(0, 1.5), (1, 1.2), (2, 2.0), (3, 0.5)], [0.5, 0.7, 0.7, 0.7, 0.7])
    bounds = [(start / RATE, end / RATE) for start, end in chunk_bounds(wave, RATE, 3.0, 2.0)]
    expected = [(0.25, 2.6), (2.6, 4.5), (4.5, 7.2), (7.2, 8.5)]
    for found, times in zip(bounds, expected, strict=True):
        assert found == pytest.approx(times, abs=0.021)
    loud = np.flatnonzero(wave) / RATE
    assert all(any(start <= time < end for start, end in bounds) for time in loud[::100])


def test_chunks_that_cut_nothing_skip_the_silence_between_them():
    wave = spoken([(0, 1.0), (1, 1.0)], [0.0, 9.0, 20.0])
    bounds = [(start / RATE, end / RATE) for start, end in chunk_bounds(wave, RATE, 3.0, 1.0)]
    assert bounds == [(0.0, 3.0), pytest.approx((9.75, 12.75), abs=0.021)]


def test_chunks_of_noise_and_of_what_fits():
    noise = np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
    bounds = list(chunk_bounds(noise, RATE, 3.0, 1.0))
    assert all(2.0 * RATE <= end - start <= 3.0 * RATE for start, end in bounds[:-1])
    assert bounds[-1][1] == len(noise)
    for seconds in (0.001, 2.5, 3.0):
        wave = noise[: round(seconds * RATE)]
        assert list(chunk_bounds(wave, RATE, 3.0, 1.0)) == [(0, len(wave))]
    even = hush(9.0)
    assert [end for _, end in chunk_bounds(even, RATE, 3.0, 0.0)] == [3 * RATE, 6 * RATE, 9 * RATE]
    assert next(iter(chunk_bounds(noise, RATE, 3.0, 0.0))) == (0, 3 * RATE)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_chunked_decoding_hears_every_word(monkeypatch, batch_size, timestamps):
    listen = ear()

    def write(model, wave, prompt):
        parts = listen(model, wave, prompt)
        return parts if timestamps else ["".join(p for p in parts if isinstance(p, str))]

    calls = speaking(monkeypatch, write)
    waves, said = zip(*recordings(20, seed=4), strict=True)
    decoding = Decoding("ja", "transcribe", timestamps, 1, 24)
    found = list(
        transcribe_in_chunks(
            stub(), waves, decoding, batch_size, chunk_length_s=3.0, stride_length_s=1.0
        )
    )
    assert [number for number, _ in found] == list(range(20))
    assert [text_of(segments) for _, segments in found] == list(said)
    assert all(size == batch_size for size, *_ in calls[:-1])
    for number, segments in found:
        starts = [segment.start for segment in segments]
        assert starts == sorted(starts)
        assert segments[-1].end <= len(waves[number]) / RATE + 1e-6


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return a tiny model with random weights that says much; its window is 4 s."""
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"), seed=1)))


@pytest.mark.parametrize("seconds", [0.5, 4.0, 9.0])
@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_model_with_weights_decodes_sequentially(real, seconds, condition, fallback):
    decoding = replace(DECODING, temperature_fallback=fallback)
    waves = [np.sin(np.arange(round(seconds * RATE)) * n / 20).astype(np.float32) for n in (1, 2)]
    found = dict(
        transcribe_sequentially(real, waves, decoding, 2, condition_on_prev_tokens=condition)
    )
    for number in (0, 1):
        assert "<|" not in text_of(found[number])
        assert all(0 <= s.start <= s.end <= seconds for s in found[number])


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_model_with_weights_decodes_chunks(real, timestamps):
    waves = [np.sin(np.arange(9 * RATE) * n / 20).astype(np.float32) for n in (1, 2)]
    decoding = Decoding("ja", "transcribe", timestamps, 2, 24)
    found = dict(transcribe_in_chunks(real, waves, decoding, 4, chunk_length_s=4.0))
    alone = dict(transcribe_in_chunks(real, waves[1:], decoding, 1, chunk_length_s=4.0))
    assert text_of(found[1]) == text_of(alone[0]) != ""
    assert "<|" not in text_of(found[0])
