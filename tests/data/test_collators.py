import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_tokenizer
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import WhisperFeatureExtractor

from distillery.audio.background import background
from distillery.audio.log_mel import LogMel
from distillery.data.collators import (
    IS_DROPPED,
    NO_SPEECH,
    PROBLEM,
    REASON,
    SOUND_SEED,
    TOO_SHORT,
    DurationLimits,
    SpeechCollator,
    WindowCollator,
)
from distillery.text.labels import IGNORED
from distillery.text.tokens import SpecialTokens

RATE = 16_000
WINDOW_S = 2
SHORT = [301, 309, 402, 406, 10, 300]
LONG = [404, 7, 8, 301, 309, 402, 407, 10, 11, 457, 300]
_ = IGNORED


@pytest.fixture(scope="module")
def log_mel():
    return LogMel(WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S))


@pytest.fixture(scope="module")
def collate(log_mel):
    tokens = SpecialTokens.from_tokenizer(tiny_tokenizer(), is_multilingual=True)
    return SpeechCollator(log_mel, tokens)


def wave_of(name, seconds=1.0):
    random = np.random.default_rng(sum(name.encode()))
    return (0.1 * random.standard_normal(round(seconds * RATE))).astype(np.float32)


def audio_of(wave):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="WAV", subtype="FLOAT")
    return {"bytes": buffer.getvalue(), "path": None}


def row(name, labels=SHORT, seconds=1.0, **columns):
    return {"id": name, "audio": audio_of(wave_of(name, seconds)), "labels": labels, **columns}


BAD = {"id": "bad", "audio": {"bytes": b"no audio", "path": None}, "labels": LONG}
TOO_LONG = row("endless", seconds=WINDOW_S + 0.01)


@pytest.mark.parametrize("makes_features", [True, False])
@pytest.mark.parametrize("rows", [[row("a"), row("b"), BAD], [BAD]])
def test_pinning_pins_every_tensor_of_a_batch(collate, monkeypatch, rows, makes_features):
    """With a stand-in for the tensors' own method, which needs a GPU."""
    batch, pinned = replace(collate, makes_features=makes_features)(rows), []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone()
    )
    found = pin_memory(batch)
    tensors = [each for each in vars(batch).values() if isinstance(each, torch.Tensor)]
    assert {id(each) for each in pinned} == {id(each) for each in tensors}
    assert len(tensors) == (3 if len(rows) > 1 else 0)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(found, name) is not value
            assert torch.equal(getattr(found, name), value)
        else:
            assert getattr(found, name) == value


def test_a_batch_is_padded_to_its_longest_labels(collate, log_mel):
    batch = collate([row("a", SHORT), row("b", LONG, text="ねこ"), row("c", SHORT, text=None)])
    assert batch.ids == ["a", "b", "c"]
    assert batch.references == ["", "ねこ", ""]
    assert batch.bad == []
    assert batch.input_features.shape == (3, 80, 100 * WINDOW_S)
    assert batch.input_features.dtype == torch.float32
    assert batch.decoder_input_ids.dtype == batch.targets.dtype == torch.int64
    assert batch.decoder_input_ids.tolist() == [
        [301, 309, 402, 406, 10, 300, 300, 300, 300, 300],
        [404, 7, 8, 301, 309, 402, 407, 10, 11, 457],
        [301, 309, 402, 406, 10, 300, 300, 300, 300, 300],
    ]
    assert batch.targets.tolist() == [
        [309, 402, 406, 10, 300, _, _, _, _, _],
        [_, _, _, 309, 402, 407, 10, 11, 457, 300],
        [309, 402, 406, 10, 300, _, _, _, _, _],
    ]
    assert batch.num_tokens == 5 + 7 + 5
    assert torch.equal(batch.input_features, log_mel([wave_of(name) for name in "abc"]))


def test_nothing_is_padded_to_a_maximum(collate):
    batch = collate([row("a"), row("b")])
    assert batch.decoder_input_ids.shape == batch.targets.shape == (2, 5)


def test_a_batch_knows_what_it_holds(collate, log_mel):
    packed = row("p", seconds=1.9, segment_ids=["p", "q"], segment_durations=[0.5, 0.9])
    silent = row("s", no_speech=True, sound_seed=1)
    features = log_mel.real_frames(wave_of("f"))[:, :100]  # a second
    stored = {"id": "f", "labels": SHORT, "input_features": features.tolist()}
    spoilt = row("r", bad_parts=[("x", "has no audio"), ("y", "has no audio")])
    batch = collate([row("a", LONG, 0.5), packed, silent, stored, spoilt, BAD])
    assert batch.speech_s == pytest.approx(0.5 + 1.4 + 0.0 + 1.0 + 1.0)
    assert batch.num_clips == 1 + 2 + 1 + 1 + 3 + 1
    assert [name for name, _ in batch.bad] == ["x", "y", "bad"]
    num_ids = [len(LONG), *[len(SHORT)] * 4]
    assert batch.num_inputs == sum(num_ids) - 5  # the last id is a target alone
    assert batch.decoder_input_ids.numel() == 5 * (len(LONG) - 1)
    assert collate([BAD]).num_clips == 1


def test_datasets_follow_their_teacher_as_they_are_told(collate):
    rows = [
        {**row(name), "dataset_number": number}
        for name, number in zip("abc", (1, 0, 1), strict=True)
    ]
    assert collate(rows).kl_weights is None
    told = replace(collate, kl_weights=(1.0, 0.25))
    assert told(rows).kl_weights.tolist() == [0.25, 1.0, 0.25]
    assert told([BAD, rows[1]]).kl_weights.tolist() == [1.0]


def same(one, other):
    assert one.ids == other.ids
    assert one.references == other.references
    assert torch.equal(one.input_features, other.input_features)
    assert torch.equal(one.decoder_input_ids, other.decoder_input_ids)
    assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (BAD, "cannot be decoded"),
        (TOO_LONG, "longer than the model's window of 2 s"),
        ({**BAD, "audio": None}, "has no audio"),
        ({**BAD, "audio": {"bytes": None, "path": "/no/such.wav"}}, "file not found"),
    ],
)
def test_a_bad_clip_is_reported_and_changes_nothing_else(collate, bad, reason, place):
    rows = [row("a", SHORT), row("b", SHORT, seconds=2.0, text="ねこ")]
    batch = collate([*rows[:place], bad, *rows[place:]])
    assert [(name, reason in problem) for name, problem in batch.bad] == [(bad["id"], True)]
    same(batch, collate(rows))


@pytest.mark.parametrize("rows", [[], [BAD], [BAD, TOO_LONG]])
def test_a_batch_with_nothing_in_it(collate, rows):
    batch = collate(rows)
    assert (batch.ids, batch.references, batch.num_tokens) == ([], [], 0)
    assert [name for name, _ in batch.bad] == [one["id"] for one in rows]
    assert batch.input_features is batch.decoder_input_ids is batch.targets is None


def stored(name, log_mel, kind):
    frames = log_mel.real_frames(wave_of(name)).numpy()
    return {"id": name, "input_features": kind(frames), "labels": SHORT}


def test_stored_features_give_the_batch_of_the_audio(collate, log_mel):
    direct = collate([row("a"), row("b")])
    same(collate([stored("a", log_mel, np.asarray), stored("b", log_mel, np.asarray)]), direct)
    same(collate([stored("a", log_mel, np.ndarray.tolist), row("b", input_features=None)]), direct)
    halves = [stored(name, log_mel, lambda frames: frames.astype(np.float16)) for name in "ab"]
    found = collate(halves).input_features
    torch.testing.assert_close(found, direct.input_features, rtol=0, atol=5e-4)
    in_bytes = [{**one, "input_features": as_bytes(one["input_features"])} for one in halves]
    assert torch.equal(collate(in_bytes).input_features, found)


def as_bytes(features):
    """Features as filtering stores them."""
    return [mel_bin.tobytes() for mel_bin in features]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, shape) for kind in (np.asarray, as_bytes) for shape in [(128, 50), (80, 201), (80, 0)]]
    + [(np.asarray, (80,)), (np.asarray, (0,))],
)
def test_stored_features_of_another_model_are_reported(collate, kind, shape):
    other = {"id": "other", "input_features": kind(np.zeros(shape, np.float16)), "labels": LONG}
    batch = collate([other, row("a")])
    assert batch.ids == ["a"]
    assert f"shape {shape}, made for another model" in batch.bad[0][1]


def test_labels_of_another_model_are_an_error(collate):
    with pytest.raises(ValueError, match="startoftranscript"):
        collate([row("a", [10, 11, 300])])


def test_padding_is_the_tokenizers_end(collate):
    tokens = replace(collate.tokens, end_of_text=299)
    batch = replace(collate, tokens=tokens)([row("a", SHORT), row("b", LONG)])
    assert batch.decoder_input_ids[0, 5:].tolist() == [299] * 5


def test_windows_keep_every_row_and_its_columns(log_mel):
    rows = [row("a", speaker_id="s", duration=None), BAD, row("b", seconds=0.5, duration=99.0)]
    windows = WindowCollator(log_mel)(rows)
    assert [one["id"] for one in windows.rows] == ["a", "bad", "b"]
    assert all("audio" not in one for one in windows.rows)
    assert (windows.rows[0]["speaker_id"], windows.rows[0]["labels"]) == ("s", SHORT)
    assert [one[PROBLEM] is None for one in windows.rows] == [True, False, True]
    assert "cannot be decoded" in windows.rows[1][PROBLEM]
    assert [windows.rows[i]["duration"] for i in (0, 2)] == [1.0, 0.5]
    for found, wave in zip(windows.waveforms, [wave_of("a"), wave_of("b", 0.5)], strict=True):
        np.testing.assert_array_equal(found, wave)


@pytest.mark.parametrize("seconds", [WINDOW_S + 1, WINDOW_S + 100])
def test_windows_of_durations_that_are_wanted(log_mel, seconds):
    rows = [row("a", seconds=0.5), row("b", seconds=0.49), row("c", seconds=1.5)]
    rows += [row("d", seconds=1.51), row("e", seconds=seconds), BAD]
    windows = WindowCollator(log_mel, limits=DurationLimits(0.5, 1.5))(rows)
    found = {one["id"]: (one.get(REASON), one.get(IS_DROPPED, False)) for one in windows.rows}
    assert found == {
        **{"a": (None, False), "b": (TOO_SHORT, True), "c": (None, False)},
        **{"d": ("too_long", True), "e": ("too_long", True), "bad": ("audio", False)},
    }
    assert len(windows.waveforms) == 2


def test_windows_do_not_change_with_a_bad_neighbour(log_mel):
    collate = WindowCollator(log_mel)
    good = [row("a"), row("b")]
    beside, alone = collate([good[0], TOO_LONG, good[1]]), collate(good)
    for found, wave in zip(beside.waveforms, alone.waveforms, strict=True):
        np.testing.assert_array_equal(found, wave)


def test_windows_without_a_usable_clip(log_mel):
    windows = WindowCollator(log_mel)([BAD, TOO_LONG])
    assert windows.waveforms == []
    assert len(windows.rows) == 2


def test_clips_longer_than_a_chunk_are_left_whole(log_mel):
    collate = WindowCollator(log_mel, chunk_length_s=1.0)
    windows = collate([row("a"), TOO_LONG, row("b", seconds=1.5), BAD])
    assert [one[PROBLEM] is None for one in windows.rows] == [True, True, True, False]
    assert set(windows.long) == {TOO_LONG["id"], "b"}
    assert len(windows.long["b"]) / log_mel.sampling_rate == 1.5
    (found,) = windows.waveforms
    np.testing.assert_array_equal(found, wave_of("a"))
    assert WindowCollator(log_mel)([row("b", seconds=1.5)]).long == {}


# --- waveforms, for a GPU to transform ------------------------------------------------------------


def test_clips_that_are_only_decoded_give_the_batch_of_their_features(collate, log_mel):
    rows = [row("a"), BAD, row("b", LONG, seconds=0.5, text="ねこ"), row("c", seconds=WINDOW_S)]
    silent = {**BAD, "id": "silent", "labels": SHORT, NO_SPEECH: True, SOUND_SEED: 3}
    found, wanted = (
        replace(collate, makes_features=makes)([*rows, silent]) for makes in (False, True)
    )
    assert found.input_features is None and wanted.waveforms is None
    assert found.waveforms.shape == (4, WINDOW_S * RATE)
    assert float(found.waveforms[1, RATE // 2 :].abs().max()) == 0
    made = log_mel.of_batch(found.waveforms)
    same(replace(found, input_features=wanted.input_features), wanted)
    torch.testing.assert_close(made, wanted.input_features, rtol=0, atol=5e-7)
    for name in ("bad", "num_without_speech", "num_clips", "speech_s", "num_inputs"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert replace(collate, makes_features=False)([BAD]).waveforms is None


def test_clips_that_are_only_decoded_are_as_long_as_the_longest_and_augmented(collate):
    quieter = replace(collate, makes_features=False, augment=lambda wave, *_: wave * 0.5)
    found = quieter([{**row("a", seconds=0.5), SOUND_SEED: 1}, {**row("b"), SOUND_SEED: 1}])
    assert found.waveforms.shape == (2, RATE)
    np.testing.assert_allclose(found.waveforms[1], wave_of("b") * 0.5)


def test_beside_stored_features_all_features_are_made(collate, log_mel):
    rows = [stored("a", log_mel, np.asarray), row("b")]
    found = replace(collate, makes_features=False)(rows)
    assert found.waveforms is None
    same(found, collate(rows))
    silent = {**rows[0], NO_SPEECH: True, SOUND_SEED: 3}  # its features are not asked for
    assert replace(collate, makes_features=False)([silent, row("b")]).input_features is None


# --- durations ------------------------------------------------------------------------------------


def test_clips_outside_the_limits_are_dropped_and_not_bad(collate):
    limited = replace(collate, limits=DurationLimits(0.5, 2.0))
    batch = limited([row("a"), row("short", seconds=0.4), row("long", seconds=2.1), TOO_LONG, BAD])
    assert batch.ids == ["a"]
    assert [row_id for row_id, _ in batch.dropped] == ["short", "long", "endless"]
    assert dict(batch.dropped)["short"] == "lasts 0.40 s, shorter than 0.5 s"
    assert [row_id for row_id, _ in batch.bad] == ["bad"]
    assert batch.input_features.shape[0] == batch.targets.shape[0] == 1
    packed = row("window", seconds=2.0, segment_ids=["a", "b"])
    assert replace(collate, limits=DurationLimits(0.1, 1.0))([packed]).ids == ["window"]
    none = limited([row("short", seconds=0.4)])
    assert (none.input_features, [row_id for row_id, _ in none.dropped]) == (None, ["short"])


def test_without_a_longest_duration_what_exceeds_the_window_is_bad(collate):
    batch = replace(collate, limits=DurationLimits(min_s=0.5))([row("a"), TOO_LONG])
    assert [row_id for row_id, _ in batch.bad] == ["endless"] and batch.dropped == []


# --- sound that is made up ------------------------------------------------------------------------


def test_a_window_without_speech_needs_no_clip(collate, log_mel):
    silent = {**BAD, NO_SPEECH: True, SOUND_SEED: 3}
    stored = {**row("b"), "input_features": [[0.0]], NO_SPEECH: True, SOUND_SEED: 4}
    batch = collate([row("a"), silent, stored])
    assert (batch.ids, batch.bad, batch.num_without_speech) == (["a", "bad", "b"], [], 2)
    for index, seed in ((1, 3), (2, 4)):
        wave = background(seed, RATE, WINDOW_S)
        assert torch.equal(batch.input_features[index], log_mel.pad(log_mel.real_frames(wave)))


def test_augmentation_hears_seed_and_rate_and_stays_in_the_window(collate):
    asked = []

    def augment(wave, sampling_rate, seed):
        asked.append((sampling_rate, seed))
        return {1: wave * 0.5, 2: np.tile(wave, 3), 3: wave[:0]}[seed]

    rows = [{**row("a"), SOUND_SEED: seed} for seed in (1, 2, 3)]
    changed = replace(collate, augment=augment)(rows).input_features
    assert asked == [(RATE, 1), (RATE, 2), (RATE, 3)]
    (plain,) = collate([row("a")]).input_features
    assert not torch.equal(changed[0], plain)
    assert torch.equal(changed[1], plain) and torch.equal(changed[2], plain)
    asked.clear()
    replace(collate, augment=augment)([{**row("a"), NO_SPEECH: True, SOUND_SEED: 1}])
    assert asked == []


def test_stored_features_cannot_be_augmented(collate):
    with pytest.raises(ValueError, match=r"row a holds features, .* --audio_augmentation"):
        replace(collate, augment=print)([{**row("a"), "input_features": [[0.0]], SOUND_SEED: 1}])
