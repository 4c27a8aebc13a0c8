import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
from datasets import Dataset
from transformers import WhisperFeatureExtractor

from distillery.audio.decoding import encode_flac
from distillery.audio.log_mel import LogMel
from distillery.data import parquet_rows, regions, schema
from distillery.data.collators import BAD_PARTS, SpeechCollator
from distillery.data.packing import Layout
from distillery.data.parquet_rows import ParquetFiles, ParquetRows
from distillery.data.prompts import PromptColumns
from distillery.data.specs import DatasetSpec
from distillery.text.labels import LabelRule, text_ids, without_timestamps
from distillery.text.tokens import Prompt, SpecialTokens
from distillery.training.examples import TrainingRows, example_of, labels_of
from distillery.training.packed_examples import NO_ROOM, PackedRows, Packing, regions_of
from distillery.training.prompts import DatasetPrompts

RATE, WINDOW_S, PAUSE_S = 16_000, 4.0, 0.5
LAYOUT = Layout(RATE, round(WINDOW_S * RATE), PAUSE_S)


@pytest.fixture(scope="module")
def rule():
    tokenizer = tiny.tiny_tokenizer()
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    return LabelRule(tokens, tokenizer, "ja", "transcribe", 100, 1.0, 1.0, 0)


@pytest.fixture(scope="module")
def packing(rule):
    return Packing(LAYOUT, rule, 100)


def utterance(name, seconds, recording=None, **more):
    rng = np.random.default_rng(sum(map(ord, name)))
    noise = (0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)
    return {
        "id": name,
        "audio": {"bytes": encode_flac(noise, RATE), "path": None},
        "text": f"ねこ{name}",
        "duration": seconds,
        "recording_id": recording,
        "speaker_id": None,
        "truncated": False,
        **more,
    }


def ids_of(window):
    return window.get("segment_ids") or [window["id"]]


def packed(rows, packing):
    windows = PackedRows.of(Dataset.from_list(rows), packing)
    return [windows[index] for index in range(len(windows))], windows


def samples(row):
    return soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0]


# --- which utterances share a window -------------------------------------------------------------


def test_a_recording_stays_in_order_and_others_go_where_they_fit(packing):
    talk = [utterance(f"t{i}", 1.0, "talk") for i in range(5)]
    lone = [utterance(f"u{i}", seconds) for i, seconds in enumerate((2.9, 0.5, 1.6, 1.8))]
    windows, rows = packed([lone[0], *talk[:3], lone[1], *talk[3:], *lone[2:]], packing)
    shares = {frozenset(ids_of(window)) for window in windows}
    # Three of 1.0 s with pauses of 0.5 s fill a window of 4 s.
    assert [ids_of(w) for w in windows if "t0" in ids_of(w) or "t3" in ids_of(w)] == [
        ["t0", "t1", "t2"],
        ["t3", "t4"],
    ]
    assert {frozenset({"u0", "u1"}), frozenset({"u2", "u3"})} <= shares
    assert len(windows) == len(rows) == 4
    assert (rows.fill.num_utterances, rows.fill.num_windows) == (9, 4)
    assert rows.fill.share == pytest.approx((5 + 2.9 + 0.5 + 1.6 + 1.8) / 16)


def test_an_utterance_that_is_alone_in_its_recording_goes_where_it_fits(packing):
    rows = [utterance(f"r{i}", 1.0, f"r{i}", speaker_id=f"s{i % 2}") for i in range(6)]
    windows, _ = packed(rows, packing)
    assert [len(ids_of(window)) for window in windows] == [3, 3]


def test_windows_and_features_are_not_packed_again(packing):
    rows = [utterance(f"r{i}", 1.0) for i in range(4)]
    rows[0]["segment_ids"], rows[1]["input_features"] = ["r0", "x"], [[0.0]]
    windows = packing.windows(rows, 0)
    assert sorted(sorted(part.row for part in w.parts) for w in windows) == [[0], [1], [2, 3]]


def test_every_utterance_is_in_one_window_that_follows_from_the_seed(packing):
    rng = np.random.default_rng(0)
    rows = [utterance(f"r{i}", round(rng.uniform(0.3, 3.9), 2)) for i in range(60)]
    windows, _ = packed(rows, packing)
    assert sorted(name for w in windows for name in ids_of(w)) == sorted(r["id"] for r in rows)
    assert all(len(samples(window)) <= WINDOW_S * RATE for window in windows)
    again, _ = packed(rows, packing)
    assert [ids_of(w) for w in again] == [ids_of(w) for w in windows]
    other, _ = packed(rows, replace(packing, rule=replace(packing.rule, seed=1)))
    assert [ids_of(w) for w in other] != [ids_of(w) for w in windows]


def test_what_is_cut_or_of_unknown_length_stands_alone(packing):
    rows = [
        utterance("a", 0.5, "talk"),
        utterance("cut", 0.5, "talk", truncated=True),
        utterance("b", 0.5, "talk"),
        utterance("unknown", 0.5, duration=None),
        utterance("c", 0.5),
        utterance("d", 0.5),
    ]
    windows, _ = packed(rows, packing)
    assert sorted(map(ids_of, windows)) == [["a"], ["b"], ["c", "d"], ["cut"], ["unknown"]] or (
        sorted(map(ids_of, windows)) == [["a"], ["b"], ["cut"], ["d", "c"], ["unknown"]]
    )
    (alone,) = [window for window in windows if window["id"] == "cut"]
    assert {name: alone[name] for name in rows[1]} == rows[1]


def test_labels_that_are_too_long_for_one_window_get_several(rule):
    rows = [utterance(f"r{i}", 0.2, "talk", text="ねこ" * 4) for i in range(5)]
    num_ids = len(rule.body("ねこ" * 4))
    prefix = len(rule.tokens.prefix("ja", "transcribe", True))
    exactly_two = replace(Packing(LAYOUT, rule, prefix + 2 * (num_ids + 2) + 1))
    windows, _ = packed(rows, exactly_two)
    assert [ids_of(window) for window in windows] == [["r0", "r1"], ["r2", "r3"], ["r4"]]
    one_less, _ = packed(rows, replace(exactly_two, max_ids=exactly_two.max_ids - 1))
    assert len(one_less) == 5
    assert all(len(labels_of(w, rule, 0)) <= exactly_two.max_ids for w in windows)


# --- what is learnt from a window ----------------------------------------------------------------


def test_labels_follow_each_other_with_their_times_moved(packing, rule):
    tokens = rule.tokens
    rows = [
        utterance(
            "a", 1.0, "talk", whisper_transcript="<|0.00|>ねこ<|0.90|>", condition_on_prev=[5]
        ),
        utterance(
            "b", 1.0, "talk", whisper_transcript="<|0.10|>いぬ<|1.00|>", condition_on_prev=[6]
        ),
    ]
    (window,), _ = packed(rows, packing)
    assert window["segment_offsets"] == [0.0, 1.5]
    words = [rule.tokenizer.encode(text, add_special_tokens=False) for text in ("ねこ", "いぬ")]
    times = [tokens.timestamp(time_s) for time_s in (0.0, 0.9, 1.6, 2.5)]
    body = [times[0], *words[0], times[1], times[2], *words[1], times[3]]
    assert text_ids(window["whisper_transcript"], tokens) == body
    # The prompt of the first is that of the window; that of the second is in the window.
    labels = labels_of(window, rule, 0)
    assert labels[:2] == [tokens.start_of_prev, 5]
    assert labels[2:] == [*tokens.prefix("ja", "transcribe", True), *body, tokens.end_of_text]


def test_stored_labels_are_taken_before_transcripts(packing, rule):
    rows = [
        utterance(name, 1.0, "talk", whisper_transcript="さかな", labels=rule(name, text))
        for name, text in (("a", "ねこ"), ("b", "いぬ"))
    ]
    (window,), _ = packed(rows, packing)
    heard = without_timestamps(text_ids(window["whisper_transcript"], rule.tokens), rule.tokens)
    assert rule.tokenizer.decode(heard) == "ねこいぬ"
    assert window["text"] == "ねこa ねこb"


def test_parts_sound_in_the_window_as_they_did_alone(packing):
    rows = [utterance("a", 1.001, "talk"), utterance("b", 0.7, "talk")]
    (window,), _ = packed(rows, packing)
    wave = samples(window)
    start = round(window["segment_offsets"][1] * RATE)
    assert start == round((1.02 + PAUSE_S) * RATE)  # parts begin where a timestamp can
    first, second = map(samples, rows)
    np.testing.assert_array_equal(wave[: len(first)], first)
    np.testing.assert_array_equal(wave[start:], second)
    assert not wave[len(first) : start].any()


def heard(window, packing):
    """Return what one window of the training rows is as a batch."""
    log_mel = LogMel(WhisperFeatureExtractor(80, RATE, 160, int(WINDOW_S)))
    rule = packing.rule
    return SpeechCollator(log_mel, rule.tokens)([example_of(window, rule, 0)])


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_part_that_cannot_be_read_leaves_the_others(packing, rule, broken):
    rows = [
        utterance(name, 1.0, "talk", whisper_transcript=f"<|0.00|>{word}<|1.00|>")
        for name, word in (("a", "ねこ"), ("b", "いぬ"), ("c", "とり"))
    ]
    rows[broken]["audio"] = {"bytes": b"no sound", "path": None}
    (window,), _ = packed(rows, packing)
    whole = [row for number, row in enumerate(rows) if number != broken]
    ((without,), _) = packed(whole, packing)
    assert window.pop(BAD_PARTS)[0][0] == rows[broken]["id"]
    assert without.pop(BAD_PARTS) == []
    np.testing.assert_array_equal(samples(window), samples(without))
    assert window == without


def test_one_part_that_is_left_keeps_its_times(packing, rule):
    rows = [
        utterance(name, 1.0, "talk", whisper_transcript="<|0.10|>ねこ<|0.90|>") for name in "ab"
    ]
    rows[0]["audio"] = {"bytes": b"no sound", "path": None}
    (window,), _ = packed(rows, packing)
    assert text_ids(window["whisper_transcript"], rule.tokens) == rule.body("<|0.10|>ねこ<|0.90|>")
    np.testing.assert_array_equal(samples(window), samples(rows[1]))


def test_what_is_longer_than_its_duration_moves_the_others_or_drives_them_out(packing):
    rows = [utterance("a", 1.6, "talk", duration=1.0), utterance("b", 1.0, "talk")]
    (window,), _ = packed(rows, packing)
    assert (ids_of(window), window["segment_offsets"]) == (["a", "b"], [0.0, 1.6 + PAUSE_S])
    assert window[BAD_PARTS] == []
    rows = [utterance("a", 3.0, "talk", duration=1.0), utterance("b", 1.0, "talk")]
    (window,), _ = packed(rows, packing)
    assert ids_of(window) == ["a"]
    assert window[BAD_PARTS] == [("b", NO_ROOM)]


def test_each_clip_that_cannot_be_used_is_counted_once(packing):
    rows = [utterance(name, 1.0, "talk") for name in "abc"]
    rows[1]["audio"] = {"bytes": b"no sound", "path": None}
    (window,), _ = packed(rows, packing)
    batch = heard(window, packing)
    assert (batch.ids, [name for name, _ in batch.bad]) == (["a"], ["b"])
    for row in rows:
        row["audio"] = {"bytes": b"no sound", "path": None}
    (window,), _ = packed(rows, packing)
    batch = heard(window, packing)
    assert (batch.ids, sorted(name for name, _ in batch.bad)) == ([], ["a", "b", "c"])
    assert all("decode" in problem for _, problem in batch.bad)


def test_a_window_without_a_clip_that_can_be_read_still_knows_its_prompt(rule):
    columns = PromptColumns(Prompt(None, "transcribe"), rule.tokens, language="language")
    rule = DatasetPrompts(DatasetSpec("talks"), columns).given_to(rule)
    rows = [utterance(name, 1.0, "talk", language="en") for name in "ab"]
    for row in rows:
        row["audio"] = {"bytes": b"no sound", "path": None}
    windows = PackedRows.of(Dataset.from_list(rows), Packing(LAYOUT, rule, 100), ["language"])
    window = TrainingRows([windows], rule)[0, 0]
    assert rule.of(window).language == "en"
    assert [window["id"], *(name for name, _ in window[BAD_PARTS])] == ["a", "b"]


def test_windows_and_rows_of_other_datasets_mix(rule, packing):
    rows = Dataset.from_list([utterance(f"r{i}", 1.0, "talk") for i in range(4)])
    mixed = TrainingRows([PackedRows.of(rows, packing), rows], rule)
    assert mixed.sizes == (2, 4)
    assert [ids_of(mixed[i, 0]) for i in range(3)] == [["r0", "r1", "r2"], ["r3"], ["r0"]]
    assert mixed[0, 0][schema.LABELS] == labels_of(mixed[0, 0], rule, 0)


# --- large row groups ----------------------------------------------------------------------------


def test_lone_utterances_share_windows_with_those_of_their_region(packing, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "LARGE_GROUP_BYTES", 1)
    monkeypatch.setattr(regions, "REGION_BYTES", 1)
    rows = [utterance(f"u{i}", 1.0) for i in range(12)]
    path = tmp_path / "rows.parquet"
    pq.write_table(Dataset.from_list(rows).data.table, path, row_group_size=4)
    windows = PackedRows.of(ParquetRows.of(ParquetFiles.of([str(path)])), packing)
    assert len(windows) < len(rows)
    found = windows.regions()
    for index in range(len(windows)):
        of_parts = {int(name[1:]) // 4 for name in ids_of(windows[index])}
        assert of_parts == {int(found.of_rows[index])}
    assert regions_of(PackedRows.of(Dataset.from_list(rows), packing)) is None
    kept = windows.keeping(1 << 20)
    assert kept[0] == windows[0]
    assert kept.rows.files._kept
    numbers = PackedRows.of(Dataset.from_list(rows), packing).numbers
    assert sorted(windows.numbers) == sorted(numbers)


def test_the_values_of_parts_add_up_for_their_window(packing):
    rows = [utterance(f"t{i}", 1.0, "talk") for i in range(3)] + [utterance("u", 2.9)]
    windows, packed_rows = packed(rows, packing)
    values = np.array([1, 10, 100, 1000], np.int16)
    sums = packed_rows.sums(values)
    of_ids = {f"t{i}": 10**i for i in range(3)} | {"u": 1000}
    assert sums.tolist() == [sum(of_ids[name] for name in ids_of(window)) for window in windows]
    assert packed_rows.sums(np.full(4, 30_000, np.int16)).max() == 32767
