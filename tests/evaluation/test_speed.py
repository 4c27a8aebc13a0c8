import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from stage_runs import talkative_model_folder
from torch import nn

from distillery.evaluation import speed
from distillery.text.labels import plain_text
from distillery.whisper import checkpoint
from distillery.whisper.windows import Decoding, transcribe_windows

CPU = torch.device("cpu")
GREEDY = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"))))


def ticking():
    """A clock that goes on by a second each time somebody looks."""
    return map(float, itertools.count()).__next__


def out_of_memory_at(size, error):
    def throughput(batch_size):
        if batch_size >= size:
            raise error
        return float(batch_size)

    return throughput


def test_recordings_of_any_length_are_transcribed_in_whole_windows(model):
    sound = speed.synthetic_sound(13.0, 16_000)
    recordings = [sound, sound[:16_000]]
    num_rows = []
    hook = model.model.model.encoder.register_forward_pre_hook(
        lambda _encoder, args: num_rows.append(len(args[0]))
    )
    texts = speed.transcribe(model, recordings, GREEDY, 3)
    hook.remove()
    assert len(texts) == 2
    assert all(texts)
    assert sum(num_rows) == speed.num_windows(model, recordings) == 4 + 1
    assert num_rows == [3, 2]
    alone = transcribe_windows(model, model.log_mel([sound[:16_000]]), GREEDY)
    assert texts[1] == plain_text(alone[0].ids, model.tokens, model.tokenizer)


def test_seconds_of_parts_add_up():
    first, second, other = nn.Identity(), nn.Identity(), nn.Identity()
    clock = ticking()
    parts = {"a": [(first, "forward"), (second, "forward")], "b": [(other, "forward")]}
    with speed.seconds_in(parts, clock) as spent:
        first(1)
        assert spent == {"a": 1, "b": 0}
        clock()
        other(1)
        second(1)
        first(1)
        assert spent == {"a": 3, "b": 1}
    first(1)
    assert spent == {"a": 3, "b": 1}


@pytest.mark.parametrize("num_beams", [1, 2])
def test_encoder_and_decoder_are_timed_apart(model, num_beams):
    sound = [speed.synthetic_sound(4.0, 16_000)] * 3  # three windows: two batches
    parts = model.model.model.encoder, model.model.model.decoder.layer_norm, model.model.proj_out
    passes = dict.fromkeys(parts, 0)

    def count(module, *call):
        passes[module] += 1

    hooks = [module.register_forward_hook(count) for module in parts]
    decoding = replace(GREEDY, num_beams=num_beams)
    found = speed.time_transcription(model, sound, decoding, 2, ticking())
    for hook in hooks:
        hook.remove()
    encoder, decoder, head = passes.values()
    assert found.encoder_s == encoder
    # Two looks at the clock for each pass: of decoder and head, or of our own search, which
    # besides hears two batches of windows.
    assert found.decoder_s == (decoder + 2 if num_beams == 1 else decoder + head) > 10
    assert found.wall_s == 2 * (found.encoder_s + found.decoder_s) + 1


def test_search_goes_on_as_long_as_a_doubled_batch_pays():
    table = {1: 10.0, 2: 19.0, 4: 30.0, 8: 31.0, 16: 99.0}
    found = speed.find_saturating_batch(table.__getitem__, 256, min_growth=0.05)
    assert found == speed.Search(8, [(1, 10.0), (2, 19.0), (4, 30.0), (8, 31.0)], "throughput")
    found = speed.find_saturating_batch(table.__getitem__, 256, min_growth=0.6)
    assert found == speed.Search(4, [(1, 10.0), (2, 19.0), (4, 30.0)], "throughput")


def test_search_returns_the_best_and_not_the_last():
    table = {1: 10.0, 2: 19.0, 4: 12.0}
    assert speed.find_saturating_batch(table.__getitem__, 256, 0.05).batch_size == 2


def test_search_ends_at_the_largest_batch():
    found = speed.find_saturating_batch(float, 6, min_growth=0.05)
    assert found == speed.Search(4, [(1, 1.0), (2, 2.0), (4, 4.0)], "largest batch")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_search_ends_where_memory_does(error):
    found = speed.find_saturating_batch(out_of_memory_at(4, error), 256, min_growth=0.05)
    assert found == speed.Search(2, [(1, 1.0), (2, 2.0)], "memory")
    with pytest.raises(MemoryError, match="one window at a time needs more memory than there is"):
        speed.find_saturating_batch(out_of_memory_at(1, error), 256, min_growth=0.05)


def test_another_error_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        speed.find_saturating_batch(out_of_memory_at(4, RuntimeError("shapes")), 256, 0.05)


def test_runs_alternate_after_one_of_each(caplog):
    caplog.set_level("INFO")
    done = []

    def run(name):
        done.append(name)
        return len(done)

    results = speed.alternate([lambda: run("a"), lambda: run("b")], 3, logging_steps=2)
    assert "".join(done) == "ab" + "ababab"
    assert results == [[3, 5, 7], [4, 6, 8]]
    assert caplog.messages == ["2 of 3 rounds measured"]


def test_ratio_and_interval_are_of_pairs():
    ratio, interval = speed.ratio_with_interval([2.0, 8.0], [1.0, 2.0])
    # Twice and four times as fast: the logarithms to base 2 are 1 and 2, and t is 12.7062047.
    assert ratio == pytest.approx(2**1.5)
    assert interval == pytest.approx((2 ** (1.5 - 6.35310235), 2 ** (1.5 + 6.35310235)))
    ratio, interval = speed.ratio_with_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio, *interval) == pytest.approx((2, 2, 2))


def test_the_other_way_round_is_the_inverse():
    ours, theirs = [3.0, 3.5, 2.9, 3.3], [1.0, 1.2, 0.9, 1.0]
    ratio, (low, high) = speed.ratio_with_interval(ours, theirs)
    inverse, (inverse_low, inverse_high) = speed.ratio_with_interval(theirs, ours)
    assert (ratio, low, high) == pytest.approx((1 / inverse, 1 / inverse_high, 1 / inverse_low))
    assert low < ratio < high


def test_synthetic_sound_is_always_the_same_and_has_pauses():
    sound = speed.synthetic_sound(3.0, 16_000)
    assert sound.dtype == np.float32
    assert sound.shape == (48_000,)
    assert np.array_equal(sound, speed.synthetic_sound(3.0, 16_000))
    assert 0.1 < np.abs(sound).max() < 1
    assert (sound[2_200:3_800] == 0).all()  # between the first two syllables
    assert np.abs(sound[500:1_500]).max() > 0.1


def test_recordings_go_on_where_the_last_one_ended():
    found = [recording.tolist() for recording in speed.cut(np.arange(5), 3, 3)]
    assert found == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert speed.cut(np.arange(2), 1, 5)[0].tolist() == [0, 1, 0, 1, 0]
