import io
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset, Features
from transformers import WhisperFeatureExtractor

from distillery.audio.decoding import encode_flac
from distillery.audio.log_mel import LogMel
from distillery.data import column_types, hub_layout, schema
from distillery.data.clip_states import clip_state
from distillery.data.collators import CLIP_STATE, PROBLEM, WindowCollator
from distillery.data.packed_windows import (
    SAME_RECORDING,
    ClipCollator,
    WindowPacking,
    fill_of_rows,
    has_neighbours,
    spans,
    with_audio,
)
from distillery.data.packing import alone, best_fit, in_order
from distillery.text.labels import previous_windows

RATE = 16_000
LOG_MEL = LogMel(WhisperFeatureExtractor(feature_size=80, chunk_length=4))
COLLATE = ClipCollator(RATE, LOG_MEL.window_s)


def clip(name: str, num_samples: int, recording: str | None = "r", **more) -> dict:
    """Return a row with seeded noise."""
    noise = 0.1 * np.random.default_rng(num_samples).standard_normal(num_samples)
    content = encode_flac(noise.astype(np.float32), RATE)
    return {
        schema.ID: name,
        schema.AUDIO: {"bytes": content, "path": f"{name}.flac"},
        schema.TEXT: f"text {name}",
        schema.RECORDING_ID: recording,
        schema.SPEAKER_ID: None,
        **more,
    }


def samples(audio: dict) -> np.ndarray:
    return soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")[0]


def packed(rows, pack=in_order, columns=SAME_RECORDING, size=2, decoded_at_once=3):
    """Return the batches of windows that rows are packed into."""
    batches = (
        COLLATE(rows[start : start + decoded_at_once])
        for start in range(0, len(rows), decoded_at_once)
    )
    return list(WindowPacking(pack, columns, LOG_MEL).batches(batches, size))


def window_rows(batches) -> list[dict]:
    return [row for batch in batches for row in batch.rows]


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(0)
    lengths = [rng.randint(RATE // 4, 2 * RATE) for _ in range(24)]
    return [clip(f"c{i}", n, f"r{i // 6}") for i, n in enumerate(lengths)]


@pytest.mark.parametrize(
    ("recordings", "speakers", "answer"),
    [
        ("aab", None, True),
        ("aab", "xyx", False),
        ("aba", "xxx", False),
        ("abb", "xyy", True),
        (["a", None, None, "b"], "xyyz", True),
        ([None, None, "a"], [None, None, None], False),
        ([None, "a"], [None, None], False),
        (None, "xyy", True),
        (None, None, False),
        ("a", "x", False),
    ],
)
def test_neighbours_are_of_one_recording_and_one_speaker(recordings, speakers, answer):
    columns = {schema.RECORDING_ID: recordings, schema.SPEAKER_ID: speakers}
    said = {name: list(values) for name, values in columns.items() if values is not None}
    rows = Dataset.from_dict({schema.ID: ["a", "b", "c", "d"][: len(recordings or "abc")], **said})
    assert has_neighbours(rows) == answer
    assert has_neighbours(rows.to_iterable_dataset()) == answer


def test_a_window_keeps_what_its_parts_were():
    rows = [clip("a", 16_001), clip("b", 24_000), clip("c", 30_000), clip("d", 1600, "s")]
    first, second, third = window_rows(packed(rows))
    assert first == {
        schema.ID: "a",
        schema.TEXT: "text a text b",
        # The second begins at the next multiple of 0.02 s behind a pause of 0.5 s.
        schema.DURATION: 3.02,
        schema.RECORDING_ID: "r",
        schema.SPEAKER_ID: None,
        schema.SEGMENT_IDS: ["a", "b"],
        schema.SEGMENT_OFFSETS: [0.0, 1.52],
        schema.SEGMENT_DURATIONS: [16_001 / RATE, 1.5],
        schema.SEGMENT_TEXTS: ["text a", "text b"],
        CLIP_STATE: [clip_state(row[schema.AUDIO]) for row in rows[:2]],
        PROBLEM: None,
    }
    assert spans(first)[1] == pytest.approx((1.52, 3.02))
    assert (second[schema.SEGMENT_IDS], second[schema.RECORDING_ID]) == (["c"], "r")
    assert (third[schema.SEGMENT_IDS], third[schema.RECORDING_ID]) == (["d"], "s")


def test_where_order_carries_no_meaning_a_window_has_no_recording():
    rows = [clip("a", 16_000, language="ja"), clip("b", 16_000, "s", language="ja")]
    rows.append(clip("c", 16_000, language="en"))
    windows = window_rows(packed(rows, best_fit, ("language",)))
    assert [(row[schema.SEGMENT_IDS], row["language"]) for row in windows] == [
        (["a", "b"], "ja"),
        (["c"], "en"),
    ]
    assert not any(schema.RECORDING_ID in row or schema.SPEAKER_ID in row for row in windows)


def test_only_an_ordered_window_is_a_prompt_and_only_in_its_recording(rows):
    def contexts(windows):
        described = (
            (row.get(schema.RECORDING_ID), row.get(schema.SPEAKER_ID), row[schema.SEGMENT_IDS])
            for row in windows
        )
        return list(previous_windows(described))

    ordered = window_rows(packed(rows))
    assert contexts(ordered) == [
        before[schema.SEGMENT_IDS]
        if before and before[schema.RECORDING_ID] == row[schema.RECORDING_ID]
        else None
        for before, row in zip([None, *ordered], ordered, strict=False)
    ]
    assert None not in contexts(ordered)[1:3]
    assert set(contexts(window_rows(packed(rows, best_fit, ())))) == {None}


def test_a_missing_text_leaves_the_window_without_reference():
    rows = [clip("a", 16_000), {**clip("b", 16_000), schema.TEXT: None}]
    (window,) = window_rows(packed(rows))
    assert window[schema.TEXT] is None
    assert window[schema.SEGMENT_TEXTS] == ["text a", None]
    (window,) = window_rows(packed([clip("a", 16_000), {**clip("b", 16_000), schema.TEXT: ""}]))
    assert window[schema.TEXT] == "text a"


@pytest.mark.parametrize("pack", [in_order, best_fit])
def test_parts_sound_in_the_window_as_they_did_alone(rows, pack):
    windows = window_rows(packed(rows, pack))
    assert len(windows) < len(rows)
    by_id = {row[schema.ID]: row for row in rows}
    written = list(with_audio(rows, windows, RATE))
    assert sorted(row[schema.ID] for row in written) == sorted(row[schema.ID] for row in windows)
    if pack is in_order:
        assert [row[schema.ID] for row in written] == [row[schema.ID] for row in windows]
    for window in written:
        heard = samples(window[schema.AUDIO])
        assert len(heard) == round(window[schema.DURATION] * RATE)
        silent = np.ones(len(heard), dtype=bool)
        for name, span in zip(window[schema.SEGMENT_IDS], spans(window), strict=True):
            part = slice(round(span.start * RATE), round(span.end * RATE))
            assert np.array_equal(heard[part], samples(by_id[name][schema.AUDIO]))
            silent[part] = False
        assert not heard[silent].any()


def test_what_is_stored_is_what_the_teacher_heard(rows):
    """A window's row, read by those who do not know about packing, gives the same features."""
    batches = packed(rows, best_fit)
    stored = {row[schema.ID]: row for row in with_audio(rows, window_rows(batches), RATE)}
    for batch in batches:
        again = WindowCollator(LOG_MEL)([stored[row[schema.ID]] for row in batch.rows])
        assert all(map(np.array_equal, again.waveforms, batch.waveforms))
        assert len(again.waveforms) == len(batch.waveforms)


def test_windows_outlive_their_file(rows, tmp_path):
    """Offsets are stored in 32 bits: no part may move by a sample."""
    windows = window_rows(packed(rows))
    features = Features({**column_types.source_features(), **column_types.SEGMENT_TYPES})
    dataset = tmp_path / "windows.parquet"
    hub_layout.write_parquet(dataset, windows, features)
    read = pq.read_table(dataset).to_pylist()
    assert [row[schema.SEGMENT_IDS] for row in read] == [row[schema.SEGMENT_IDS] for row in windows]
    direct = [samples(row[schema.AUDIO]) for row in with_audio(rows, windows, RATE)]
    stored = [samples(row[schema.AUDIO]) for row in with_audio(rows, read, RATE)]
    assert all(map(np.array_equal, direct, stored))


def test_a_clip_that_stands_alone_keeps_its_bytes(rows):
    windows = window_rows(packed(rows, alone))
    for row, window in zip(rows, with_audio(rows, windows, RATE), strict=True):
        assert window[schema.AUDIO] == row[schema.AUDIO]
        assert window[schema.ID] == row[schema.ID]
        assert spans(window) == [(0.0, window[schema.DURATION])]


def test_one_clip_in_each_window_is_heard_as_without_packing(rows):
    heard = [wave for batch in packed(rows, alone) for wave in batch.waveforms]
    expected = WindowCollator(LOG_MEL)(rows).waveforms
    assert len(heard) == len(expected) and all(map(np.array_equal, heard, expected))


@pytest.mark.parametrize("pack", [in_order, best_fit])
def test_windows_do_not_depend_on_how_clips_are_read(rows, pack):
    expected = packed(rows, pack, size=2, decoded_at_once=3)
    for size, decoded_at_once in ((1, 1), (5, 24), (24, 7)):
        again = packed(rows, pack, size=size, decoded_at_once=decoded_at_once)
        assert window_rows(again) == window_rows(expected)
        heard, wanted = (
            np.concatenate([wave for batch in batches for wave in batch.waveforms])
            for batches in (again, expected)
        )
        assert np.array_equal(heard, wanted)


@pytest.mark.parametrize("pack", [alone, in_order, best_fit])
def test_bad_clips_leave_no_trace_in_the_windows(rows, pack):
    broken = {**clip("broken", 1600, "r0"), schema.AUDIO: {"bytes": b"no audio", "path": None}}
    long = clip("long", 5 * RATE, "r0")
    batches = packed([rows[0], broken, *rows[1:], long], pack)
    everything = window_rows(batches)
    assert [row for row in everything if not row[PROBLEM]] == window_rows(packed(rows, pack))
    bad = {row[schema.ID]: row for row in everything if row[PROBLEM]}
    assert set(bad) == {"broken", "long"}
    assert bad["long"][PROBLEM] == "lasts 5.00 s, longer than the model's window of 4 s"
    assert sum(len(row[schema.SEGMENT_IDS]) for row in everything) == len(rows) + 2
    for batch in batches:
        usable = [row for row in batch.rows if not row[PROBLEM]]
        assert len(usable) == len(batch.waveforms)


def test_bad_clips_alone_make_a_batch_without_sound():
    (batch,) = packed([{**clip("a", 1600), schema.AUDIO: None}])
    assert batch.waveforms == []
    assert [row[PROBLEM] for row in batch.rows] == ["has no audio"]


def test_fill_is_counted_from_rows_without_the_bad_ones(rows):
    broken = {**clip("broken", 1600), schema.AUDIO: None}
    windows = window_rows(packed([*rows, broken]))
    fill = fill_of_rows(windows, LOG_MEL.window_s)
    assert (fill.num_utterances, fill.num_windows) == (24, len(windows) - 1)
    speech_s = sum(len(samples(row[schema.AUDIO])) for row in rows) / RATE
    assert fill.speech_s == pytest.approx(speech_s)
    assert fill.window_s == 4.0 * fill.num_windows


def test_a_source_that_lost_a_row_is_refused(rows):
    windows = window_rows(packed(rows))
    name = windows[0][schema.SEGMENT_IDS][-1]
    rest = [row for row in rows if row[schema.ID] != name]
    with pytest.raises(ValueError, match=f"no longer a row for id '{name}'"):
        list(with_audio(rest, windows, RATE))


def test_a_clip_that_broke_since_is_named(rows):
    windows = window_rows(packed(rows))
    name = next(row[schema.SEGMENT_IDS][1] for row in windows if len(row[schema.SEGMENT_IDS]) > 1)
    changed = [{**row, schema.AUDIO: None} if row[schema.ID] == name else row for row in rows]
    with pytest.raises(ValueError, match=f"the audio of clip '{name}' has changed"):
        list(with_audio(changed, windows, RATE))
    for row in windows:
        del row[CLIP_STATE]
    with pytest.raises(ValueError, match=f"clip {name}, which is a part of a window, has no audio"):
        list(with_audio(changed, windows, RATE))


def test_a_clip_that_grew_since_is_named(rows):
    windows = [row for row in window_rows(packed(rows)) if len(row[schema.SEGMENT_IDS]) > 1]
    before, name = windows[0][schema.SEGMENT_IDS][:2]
    longer = np.zeros(round(windows[0][schema.SEGMENT_OFFSETS][1] * RATE) + 1, dtype=np.float32)
    audio = {"bytes": encode_flac(longer, RATE), "path": None}
    changed = [{**row, schema.AUDIO: audio} if row[schema.ID] == before else row for row in rows]
    del windows[0][CLIP_STATE]
    with pytest.raises(ValueError, match=f"the clip before {name} is longer than when it was"):
        list(with_audio(changed, windows[:1], RATE))
