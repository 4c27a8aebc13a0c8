"""Labelling with clips that share windows."""

import pytest
import soundfile
from stage_runs import (
    assert_same_labels,
    read_manifest,
    record,
    run,
    split_rows,
    talkative_model_folder,
    write_manifest,
)
from tiny import tone_manifest

from distillery.data.packing import PAUSE_S
from distillery.text import labels
from distillery.whisper import checkpoint

SCRIPT = "run_pseudo_labelling.py"
NUM_CLIPS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


@pytest.fixture(scope="module")
def teacher(root):
    return talkative_model_folder(root / "teacher")


@pytest.fixture(scope="module")
def talks(root):
    """Clips of at most half a second: seven of one recording, then five of another."""
    clips = tone_manifest(root / "clips" / "clips.jsonl", NUM_CLIPS, 0.5)
    entries = [
        {**entry, "recording_id": "first" if index < 7 else "second", "speaker_id": None}
        for index, entry in enumerate(read_manifest(clips))
    ]
    return write_manifest(clips, entries)


@pytest.fixture(scope="module")
def flags(teacher, talks):
    return [
        *("-m", teacher, "-d", talks, "-l", "ja", "--return_timestamps"),
        *("--decode_token_ids", "False", "--max_label_length", 24, "-b", 2),
    ]


@pytest.fixture(scope="module")
def packed(root, flags):
    run(SCRIPT, *flags, "-o", root / "packed")
    return root / "packed"


def segment_ids(folder):
    return [row["segment_ids"] for row in split_rows(folder)]


def test_neighbours_of_one_recording_share_windows(packed, talks, teacher):
    entries, window_s = (
        read_manifest(talks),
        checkpoint.load_processor(str(teacher)).log_mel.window_s,
    )
    rows = split_rows(packed)
    assert [name for row in rows for name in row["segment_ids"]] == [e["id"] for e in entries]
    by_id = {entry["id"]: entry for entry in entries}
    for row in rows:
        parts = [by_id[name] for name in row["segment_ids"]]
        assert {part["recording_id"] for part in parts} == {row["recording_id"]}
        assert row["segment_texts"] == [part["text"] for part in parts]
        assert row["segment_durations"] == pytest.approx([part["duration"] for part in parts])
        ends = [
            a + b for a, b in zip(row["segment_offsets"], row["segment_durations"], strict=True)
        ]
        pauses = [b - a for a, b in zip(ends, row["segment_offsets"][1:], strict=False)]
        assert all(PAUSE_S - 1e-6 <= pause < PAUSE_S + 0.02 for pause in pauses)
        assert row["duration"] == pytest.approx(ends[-1], abs=1e-4) and ends[-1] <= window_s
    assert len(rows) < NUM_CLIPS / 1.5

    found = record(packed)
    assert found["ledger"] == {"in": NUM_CLIPS, "out": NUM_CLIPS, "dropped": {}, "quarantined": {}}
    (windows,) = found["windows"].values()
    assert windows["num_utterances"] == NUM_CLIPS and windows["num_windows"] == len(rows)
    assert windows["windows_saved"] == NUM_CLIPS - len(rows)


def test_the_window_before_is_a_prompt_in_its_recording_alone(packed, teacher):
    tokens = checkpoint.load_processor(str(teacher)).tokens
    rows = split_rows(packed)
    before = None
    for row in rows:
        follows = before is not None and before["recording_id"] == row["recording_id"]
        wanted = labels.text_ids(before["whisper_transcript"], tokens) if follows else None
        assert row["condition_on_prev"] == wanted
        before = row
    assert any(row["condition_on_prev"] for row in rows)


def test_a_packed_window_is_labelled_as_the_same_audio_alone(packed, flags, tmp_path):
    row = next(row for row in split_rows(packed) if len(row["segment_ids"]) > 1)
    (tmp_path / "window.flac").write_bytes(row["audio"]["bytes"])
    entry = {"id": "window", "audio": "window.flac"}
    run(
        SCRIPT,
        *flags,
        "-d",
        write_manifest(tmp_path / "one.jsonl", [entry]),
        "-o",
        tmp_path / "out",
    )
    (alone,) = split_rows(tmp_path / "out")
    assert alone["whisper_transcript"] == row["whisper_transcript"]


def test_best_fit_takes_clips_of_any_recording(flags, tmp_path):
    run(SCRIPT, *flags, "--packing", "best_fit", "-o", tmp_path)
    rows = split_rows(tmp_path)
    assert sorted(name for row in rows for name in row["segment_ids"]) == [
        f"clips-{index:04d}" for index in range(NUM_CLIPS)
    ]
    assert {row["condition_on_prev"] for row in rows} == {None}
    assert {row["recording_id"] for row in rows} == {None}


def test_a_stream_other_workers_and_shares_make_the_same_windows(packed, flags, tmp_path):
    sharded = [*flags, "--rows_per_shard", 5]
    run(SCRIPT, *sharded, "-o", tmp_path / "whole")
    run(SCRIPT, *sharded, "--streaming", "--dataloader_num_workers", 1, "-o", tmp_path / "stream")
    assert_same_labels(tmp_path / "stream", tmp_path / "whole")
    for index in range(2):
        shares = ["--num_shards", 2, "--shard_index", index]
        run(SCRIPT, *sharded, *shares, "-o", tmp_path / "shares")
    assert_same_labels(tmp_path / "shares", tmp_path / "whole")
    assert segment_ids(tmp_path / "whole") != segment_ids(packed)  # a window is in one shard


def test_clips_of_nobody_and_those_that_must_not_be_packed_stand_alone(flags, talks, tmp_path):
    entries = [
        {**entry, "recording_id": "talk" if index < 2 else None}
        for index, entry in enumerate(read_manifest(talks))
    ]
    lonely = write_manifest(talks.parent / "lonely.jsonl", entries)
    run(SCRIPT, *flags, "-d", lonely, "-o", tmp_path / "lonely")
    names = [entry["id"] for entry in entries]
    assert segment_ids(tmp_path / "lonely") == [names[:2], *([name] for name in names[2:])]
    run(SCRIPT, *flags, "--concatenate_audio", "False", "-o", tmp_path / "alone")
    assert "segment_ids" not in split_rows(tmp_path / "alone")[0]
    lonely_transcripts, alone_transcripts = (
        [row["whisper_transcript"] for row in split_rows(tmp_path / name)]
        for name in ("lonely", "alone")
    )
    assert lonely_transcripts[1:] == alone_transcripts[2:]


def test_a_dataset_without_neighbours_keeps_its_rows(flags, talks, tmp_path, capsys):
    entries = read_manifest(talks)
    for index, entry in enumerate(entries):
        entry |= {"recording_id": f"call-{index}", "speaker_id": "anna", "place": "here"}
    calls = write_manifest(talks.parent / "calls.jsonl", entries)
    run(SCRIPT, *flags, "-d", calls, "-o", tmp_path / "calls")
    rows = split_rows(tmp_path / "calls")
    assert [(row["id"], row["place"]) for row in rows] == [(e["id"], "here") for e in entries]
    assert "segment_ids" not in rows[0]
    for entry in entries:
        entry["recording_id"] = "call"
    calls = write_manifest(talks.parent / "one_call.jsonl", entries)
    capsys.readouterr()
    run(SCRIPT, *flags, "-d", calls, "-o", tmp_path / "one_call")
    assert len(split_rows(tmp_path / "one_call")) < NUM_CLIPS
    said = capsys.readouterr().err
    assert "share windows, which are the rows that are written, without the columns place;" in said


def test_clips_of_unwanted_durations_are_in_no_window(packed, flags, talks, tmp_path):
    limits = ["--min_duration_in_seconds", 0.4, "--max_duration_in_seconds", 0.45]
    run(SCRIPT, *flags, *limits, "-o", tmp_path)
    durations = {entry["id"]: entry["duration"] for entry in read_manifest(talks)}
    wanted = [name for name, duration in durations.items() if 0.4 <= duration <= 0.45]
    assert 0 < len(wanted) < NUM_CLIPS
    assert [name for ids in segment_ids(tmp_path) for name in ids] == wanted
    ledger = record(tmp_path)["ledger"]
    assert ledger["dropped"] == {
        "too_short": sum(duration < 0.4 for duration in durations.values()),
        "too_long": sum(duration > 0.45 for duration in durations.values()),
    }
    assert (ledger["out"], ledger["quarantined"]) == (len(wanted), {})


def test_a_bad_clip_is_counted_and_leaves_the_windows_of_the_others(packed, flags, talks, tmp_path):
    entries = read_manifest(talks)
    (talks.parent / "noise.flac").write_bytes(b"no sound at all")
    bad = {"id": "noise", "audio": "noise.flac", "recording_id": "first"}
    broken = write_manifest(talks.parent / "broken.jsonl", [*entries[:2], bad, *entries[2:]])
    run(SCRIPT, *flags, "-d", broken, "--max_bad_fraction", 0.5, "-o", tmp_path)
    assert segment_ids(tmp_path) == segment_ids(packed)
    assert record(tmp_path)["ledger"] == {
        "in": NUM_CLIPS + 1,
        "out": NUM_CLIPS,
        "dropped": {},
        "quarantined": {"audio": 1},
    }
    # Mended, its shard is made again with it.
    samples, rate = soundfile.read(talks.parent / entries[0]["audio"])
    soundfile.write(talks.parent / "noise.flac", samples, rate)
    run(SCRIPT, *flags, "-d", broken, "--retry_quarantined", "-o", tmp_path)
    assert [name for ids in segment_ids(tmp_path) for name in ids][2] == "noise"
    assert record(tmp_path)["ledger"]["out"] == NUM_CLIPS + 1
