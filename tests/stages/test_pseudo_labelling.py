import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
from datasets import Audio
from launching import kill, launch
from stage_runs import (
    assert_same_labels,
    english_only,
    loaded,
    read_manifest,
    record,
    run,
    snapshot,
    split_rows,
    talkative_model_folder,
    tracked_scalars,
    write_manifest,
)
from tiny import (
    REPOSITORY,
    SENTENCES,
    broken_av,
    broken_torchcodec,
    load_script,
    tone_manifest,
)

from distillery.data import schema
from distillery.labelling import clips
from distillery.labelling.shards import ShardWriter
from distillery.storage.outputs import Outputs
from distillery.text import labels
from distillery.whisper import checkpoint

SCRIPT = "run_pseudo_labelling.py"
NUM_CLIPS = 10
LABEL_COLUMNS = {
    "id": "string",
    "text": "string",
    "speaker_id": "string",
    "recording_id": "string",
    "duration": "float",
    "whisper_transcript": "list<item: int32>",
    "condition_on_prev": "list<item: int32>",
    "avg_logprob": "float",
    "compression_ratio": "float",
    "truncated": "bool",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("labelling")


@pytest.fixture(scope="module")
def teacher(root):
    return talkative_model_folder(root / "teacher")


@pytest.fixture(scope="module")
def manifest(root):
    return tone_manifest(root / "clips" / "clips.jsonl", NUM_CLIPS)


@pytest.fixture(scope="module")
def flags(teacher, manifest):
    """Three shards of at most four clips, and ids instead of text."""
    return [
        *("-m", teacher, "-d", manifest, "-l", "ja", "--return_timestamps"),
        *("--decode_token_ids", "False", "--max_label_length", 24),
        *("--rows_per_shard", 4, "-b", 2),
    ]


@pytest.fixture(scope="module")
def labelled(root, flags):
    """The dataset of a run that nothing disturbed."""
    run(SCRIPT, *flags, "-o", root / "labelled")
    return root / "labelled"


@pytest.fixture(scope="module")
def tokens(teacher):
    return checkpoint.load_processor(str(teacher)).tokens


def by_id(rows):
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


# --- what is written -----------------------------------------------------------------------------


def test_columns_and_types_are_those_of_the_contract(labelled):
    dataset = loaded(labelled, split="train")
    found = {field.name: str(field.type) for field in dataset.features.arrow_schema}

    assert dataset.features["audio"] == Audio(decode=False)
    assert {name: found[name] for name in LABEL_COLUMNS} == LABEL_COLUMNS
    assert set(found) == {*LABEL_COLUMNS, "audio"}
    assert len(sorted(labelled.glob("default/train-*-of-00003.parquet"))) == 3
    assert [path.name for path in labelled.rglob(".*")] == [".labels"]


def test_audio_is_the_very_bytes_that_came_in(labelled, manifest):
    rows = by_id(split_rows(labelled))
    for entry in read_manifest(manifest):
        row = rows[entry["id"]]
        assert row["audio"]["bytes"] == (manifest.parent / entry["audio"]).read_bytes()
        assert row["audio"]["path"] == entry["audio"]
        assert row["text"] == entry["text"]
        assert row["duration"] == pytest.approx(entry["duration"], abs=1e-4)


def test_transcripts_are_whole_differ_and_are_flagged_where_cut(labelled, tokens):
    rows = split_rows(labelled)
    prefix = tokens.prefix("ja", "transcribe", True)
    assert len({tuple(row["whisper_transcript"]) for row in rows}) == NUM_CLIPS
    for row in rows:
        ids = row["whisper_transcript"]
        assert ids[: len(prefix)] == prefix
        assert len(ids) <= 24
        assert labels.has_timestamps(ids, tokens)
        assert (ids[-1] == tokens.end_of_text) == (not row["truncated"])
        assert tokens.end_of_text not in ids[:-1]
        assert row["avg_logprob"] < 0
        assert row["compression_ratio"] >= 0
    assert any(row["compression_ratio"] > 0.5 for row in rows)
    assert {row["truncated"] for row in rows} == {True, False}


def test_record_holds_flags_counts_and_scores(labelled):
    found = record(labelled)
    assert (found["stage"], found["status"]) == ("run_pseudo_labelling", "complete")
    assert found["arguments"]["language"] == "ja"
    assert found["ledger"] == {
        "in": NUM_CLIPS,
        "out": NUM_CLIPS,
        "dropped": {},
        "quarantined": {},
    }
    (scores,) = found["scores"].values()
    assert scores["num_rows"] == NUM_CLIPS
    assert scores["cer_norm"] > 0


def test_log_and_trackers_say_what_is_made_how_fast_and_how_well(tmp_path, flags, capsys):
    tracked = ["--logging_steps", 2, "--report_to", "tensorboard"]
    run(SCRIPT, *flags, *tracked, "-o", tmp_path)
    log = capsys.readouterr().err
    assert f"{NUM_CLIPS} rows of " in log and "nothing is uploaded" in log
    # Shards of 4, 4 and 2 clips in batches of 2: five batches.
    reported = re.findall(
        r"labelling: (\d+) of 10 clips, [\d.]+ h of audio, RTFx [\d.]+, .* left", log
    )
    assert reported == ["4", "8", "10"]
    assert re.search(r"against the references: WER [\d.]+ %, CER [\d.]+ % over 10 clips", log)
    assert "10 labelled clips; rows: 10 in = 10 out" in log
    assert f"next: python run_data_filtering.py -d {tmp_path} -o {tmp_path}-filtered\n" in log
    scalars = tracked_scalars(tmp_path)
    assert scalars["labelling/clips"] == [(4, 4.0), (8, 8.0), (10, 10.0)]
    assert {"labelling/audio_hours", "labelling/rtfx"} < set(scalars)
    assert record(tmp_path)["attention"] == "sdpa"


def test_second_start_changes_no_file(labelled, flags, capsys):
    before = snapshot(labelled)
    capsys.readouterr()
    run(SCRIPT, *flags, "-o", labelled)
    assert "is complete: nothing to do" in capsys.readouterr().err
    assert snapshot(labelled) == before


# --- kills, damage, processes --------------------------------------------------------------------


def test_killed_runs_go_on_and_lose_double_and_change_nothing(tmp_path, flags, labelled):
    out = tmp_path / "killed"
    work = out / ".labels" / "default" / "train"
    arguments = (*flags, "-o", out)

    # Files are synced one by one, each by 2 calls: run.json, config.yaml, then shard and seal three
    # times. A run that goes on writes config.yaml again.
    kill(SCRIPT, "distillery.storage.files:sync", 11, *arguments)
    assert sorted(path.name for path in work.glob("[0-9]*")) == [
        "00000.parquet",
        "00000.parquet.seal.json",
        "00001.parquet",  # its seal was not yet there
    ]
    first = snapshot(work)["00000.parquet"]

    # Shards 1 and 2, and all have their names in the dataset, which has no card yet.
    kill(SCRIPT, "distillery.data.hub_layout:write_card", 1, *arguments)
    assert len(list(work.glob("*.seal.json"))) == 3
    published = snapshot(out / "default")
    assert published["train-00000-of-00003.parquet"] == first
    assert record(out)["status"] == "started"

    run(SCRIPT, *arguments)
    assert snapshot(out / "default") == published
    assert_same_labels(out, labelled)
    assert record(out)["ledger"] == record(labelled)["ledger"]
    assert [path.name for path in out.rglob(".*")] == [".labels"], "half-written files are left"


def test_damaged_shard_is_made_again(tmp_path, flags, labelled, monkeypatch):
    out = tmp_path / "damaged"
    work = out / ".labels" / "default" / "train"
    stage = load_script(SCRIPT)

    def stop(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_finish", stop)  # by now, all shards are sealed
        run(SCRIPT, *flags, "-o", out)
    before = snapshot(work)
    shard = work / "00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_finish", stop)
        run(SCRIPT, *flags, "-o", out)
    after = snapshot(work)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"00001.parquet", "00001.parquet.seal.json"}
    run(SCRIPT, *flags, "-o", out)
    assert_same_labels(out, labelled)


def test_two_processes_write_what_one_writes(tmp_path, flags, labelled):
    spy = tmp_path / "sitecustomize.py"
    spy.write_text(
        "import atexit, os, pathlib\n"
        "rank = os.environ.get('RANK')\n"
        f"note = pathlib.Path({str(tmp_path)!r}, f'rank-{{rank}}')\n"
        "atexit.register(lambda: rank and note.write_text(os.environ['WORLD_SIZE']))\n"
    )
    out = tmp_path / "two"
    launch(SCRIPT, *flags, "-o", out, processes=2, env={"PYTHONPATH": f"{tmp_path}:."})
    assert {p.name: p.read_text() for p in tmp_path.glob("rank-*")} == {
        "rank-0": "2",
        "rank-1": "2",
    }
    assert_same_labels(out, labelled)
    assert record(out)["ledger"] == record(labelled)["ledger"]


# --- ways to decode ------------------------------------------------------------------------------


def test_text_instead_of_ids_keeps_the_timestamps(tmp_path, flags, labelled, teacher, tokens):
    flags = [*flags, "--decode_token_ids", "True"]
    run(SCRIPT, *flags, "-o", tmp_path)
    tokenizer = checkpoint.load_processor(str(teacher)).tokenizer
    dataset = loaded(tmp_path, split="train")
    assert dataset.features["whisper_transcript"].dtype == "string"
    for text, row in zip(dataset["whisper_transcript"], split_rows(labelled), strict=True):
        ids = labels.text_ids(row["whisper_transcript"], tokens)
        assert text.startswith("<|") and "<|endoftext|>" not in text and "<|ja|>" not in text
        assert text == tokenizer.decode(ids, decode_with_timestamps=True)


@pytest.mark.parametrize(
    ("more", "language", "task", "timestamps"),
    [
        (["-l", "French", "-t", "translate"], "fr", "translate", True),
        (["--no_return_timestamps"], "ja", "transcribe", False),
        (["--num_beams", 2], "ja", "transcribe", True),
    ],
)
def test_language_task_timestamps_and_beams(
    tmp_path, flags, labelled, tokens, more, language, task, timestamps
):
    if "--no_return_timestamps" in more:
        flags, more = [flag for flag in flags if flag != "--return_timestamps"], []
    run(SCRIPT, *flags, *more, "-o", tmp_path)
    rows = split_rows(tmp_path)
    prefix = tokens.prefix(language, task, timestamps)
    assert all(row["whisper_transcript"][: len(prefix)] == prefix for row in rows)
    assert rows != split_rows(labelled)
    if "--num_beams" in more:  # of two beams, at least one clip's is likelier than greedy's
        greedy = by_id(split_rows(labelled))
        assert any(row["avg_logprob"] > greedy[row["id"]]["avg_logprob"] for row in rows)


def test_what_is_drawn_depends_on_the_row_alone(tmp_path, flags, labelled):
    """Not on batches, shards, order or number of processes: random weights are never sure."""
    flags = [*flags, "--temperature_fallback"]
    run(SCRIPT, *flags, "-o", tmp_path / "one")
    more = ["-b", 3, "--rows_per_shard", 3]
    launch(SCRIPT, *flags, *more, "-o", tmp_path / "two", processes=2)
    assert_same_labels(tmp_path / "two", tmp_path / "one")
    rows, greedy = split_rows(tmp_path / "one"), by_id(split_rows(labelled))
    assert {row["sampling_temperature"] for row in rows} == {1.0}
    assert len({tuple(row["whisper_transcript"]) for row in rows}) == NUM_CLIPS
    for row in rows:
        assert row["whisper_transcript"] != greedy[row["id"]]["whisper_transcript"]
    features = loaded(tmp_path / "one", split="train").features
    assert str(features.arrow_schema.field("sampling_temperature").type) == "float"


def test_a_column_of_the_source_is_not_taken_for_the_temperature(tmp_path, flags, manifest):
    entries = [{**read_manifest(manifest)[0], schema.TEMPERATURE: "warm"}]
    weather = write_manifest(manifest.parent / "weather.jsonl", entries)
    run(SCRIPT, *flags, "-d", weather, "-o", tmp_path)
    assert [row[schema.TEMPERATURE] for row in split_rows(tmp_path)] == ["warm"]


def test_streaming_equals_reading_from_disk(tmp_path, flags, labelled):
    run(SCRIPT, *flags, "--streaming", "-o", tmp_path)
    assert_same_labels(tmp_path, labelled)
    assert loaded(tmp_path, split="train").features == (loaded(labelled, split="train").features)


def test_workers_that_decode_change_nothing(tmp_path, flags, labelled):
    run(SCRIPT, *flags, "--dataloader_num_workers", 1, "-o", tmp_path)
    assert_same_labels(tmp_path, labelled)


def test_english_only_model_takes_no_language(tmp_path, flags):
    model = english_only(talkative_model_folder(tmp_path / "model.en"))
    with pytest.raises(ValueError, match=r"'ja' was given, but the model is English-only"):
        run(SCRIPT, *flags, "-m", model, "-o", tmp_path / "refused")
    flags = [flag for flag in flags if flag not in ("-l", "ja")]
    run(SCRIPT, *flags, "-m", model, "-o", tmp_path / "out")
    tokens = checkpoint.load_processor(str(model)).tokens
    ids = [row["whisper_transcript"] for row in split_rows(tmp_path / "out")]
    assert {row[0] for row in ids} == {tokens.start_of_transcript}
    assert all(tokens.is_timestamp(row[1]) for row in ids)


def test_without_a_language_it_is_detected_and_kept(tmp_path, flags, labelled, tokens):
    flags = [flag for flag in flags if flag not in ("-l", "ja")]
    run(SCRIPT, *flags, "-o", tmp_path)
    rows = split_rows(tmp_path)
    assert {row["language"] for row in rows} <= set(tokens.languages)
    for row in rows:
        prefix = tokens.prefix(row["language"], "transcribe", True)
        assert row["whisper_transcript"][: len(prefix)] == prefix
    assert "language" not in split_rows(labelled)[0]


def test_rows_say_their_language_and_task(tmp_path, flags, manifest, labelled, tokens, capsys):
    wanted = [("ja", "transcribe"), ("French", "translate"), ("FR", "transcribe"), ("ja", "sing")]
    wanted += [(None, "transcribe"), ("Klingon", "transcribe")]
    entries = [
        {**entry, "locale": language, "to_do": task}
        for entry, (language, task) in zip(read_manifest(manifest), wanted, strict=False)
    ]
    mixed = write_manifest(manifest.parent / "mixed.jsonl", entries)
    columns = ["--language_column_name", "locale", "--task_column_name", "to_do"]
    run(SCRIPT, *flags, "-d", mixed, *columns, "--max_bad_fraction", 0.5, "-o", tmp_path)
    rows, undisturbed = split_rows(tmp_path), by_id(split_rows(labelled))
    prompts = [("ja", "transcribe"), ("fr", "translate"), ("fr", "transcribe")]
    assert [(row["language"], row["task"]) for row in rows] == prompts
    for row, (language, task) in zip(rows, prompts, strict=True):
        prefix = tokens.prefix(language, task, True)
        assert row["whisper_transcript"][: len(prefix)] == prefix
    first = rows[0]
    assert first["whisper_transcript"] == undisturbed[first["id"]]["whisper_transcript"]
    heard = capsys.readouterr().err
    assert "task 'sing' is not one of transcribe, translate" in heard
    assert "Whisper has no language 'Klingon'" in heard
    assert record(tmp_path)["ledger"]["quarantined"] == {"prompt": 3}
    (scores,) = record(tmp_path)["scores"].values()
    assert scores["num_rows"] == 2, "a translation has no reference"

    with pytest.raises(ValueError, match=r"--task_column_name: .* 'verb'"):
        run(SCRIPT, *flags, "-d", mixed, "--task_column_name", "verb", "-o", tmp_path / "refused")


def test_label_length_beyond_the_positions_is_refused(tmp_path, flags):
    with pytest.raises(ValueError, match=r"--max_label_length 97 is more than the model's 96"):
        run(SCRIPT, *flags, "--max_label_length", 97, "-o", tmp_path / "out")


# --- several datasets, other columns -------------------------------------------------------------


def test_two_manifests_become_two_splits(tmp_path, flags, manifest, labelled, teacher):
    other = tone_manifest(tmp_path / "other" / "other.jsonl", 3, 0.5)
    names = ["-d", f"{manifest}+{other}", "--dataset_split_name", "train+validation"]
    run(SCRIPT, *flags, *names, "-o", tmp_path / "out")
    assert_same_labels(tmp_path / "out", labelled)
    assert len(split_rows(tmp_path / "out", "validation")) == 3
    assert set(loaded(tmp_path / "out")) == {"train", "validation"}

    # Both splits of one folder go in, and out again under the same names.
    again = ["-d", tmp_path / "out", "--dataset_split_name", "train+validation", "--streaming"]
    run(SCRIPT, *flags, *again, "-o", tmp_path / "again")
    for split in ("train", "validation"):
        assert_same_labels(tmp_path / "again", tmp_path / "out", split)


def test_two_datasets_of_one_split_name_are_refused(tmp_path, flags, manifest):
    other = tone_manifest(tmp_path / "other.jsonl", 3, 0.5)
    with pytest.raises(ValueError, match="would both be written as split 'train'"):
        run(SCRIPT, *flags, "-d", f"{manifest}+{other}", "-o", tmp_path / "out")


def test_audio_alone_is_enough(tmp_path, flags, labelled, manifest):
    entries = [{"audio": entry["audio"]} for entry in read_manifest(manifest)]
    bare = write_manifest(manifest.parent / "bare.jsonl", entries)
    run(SCRIPT, *flags, "-d", bare, "-o", tmp_path)
    rows = split_rows(tmp_path)
    assert [row["id"] for row in rows] == [Path(entry["audio"]).stem for entry in entries]
    wanted = [row["whisper_transcript"] for row in split_rows(labelled)]
    assert [row["whisper_transcript"] for row in rows] == wanted
    assert {row["text"] for row in rows} == {row["condition_on_prev"] for row in rows} == {None}
    assert list(record(tmp_path)["scores"].values()) == [None]


def test_references_of_punctuation_alone_do_not_end_the_run(tmp_path, flags, manifest):
    entries = [{**entry, "text": "。"} for entry in read_manifest(manifest)[:2]]
    mute = write_manifest(manifest.parent / "mute.jsonl", entries)
    run(SCRIPT, *flags, "-d", mute, "-o", tmp_path)
    assert list(record(tmp_path)["scores"].values()) == [None]


def test_missing_column_names_the_columns_there_are(tmp_path, flags, manifest):
    entries = [{"audio": read_manifest(manifest)[0]["audio"], "note": "x"}]
    bare = write_manifest(manifest.parent / "noted.jsonl", entries)
    with pytest.raises(ValueError, match=r"--text_column_name: .* 'words'; its .* audio, note"):
        run(SCRIPT, *flags, "-d", bare, "--text_column_name", "words", "-o", tmp_path / "a")
    with pytest.raises(ValueError, match=r"--audio_column_name: .* 'sound'; .* id, audio, text"):
        run(SCRIPT, *flags, "--audio_column_name", "sound", "-o", tmp_path / "b")


def test_previous_window_only_inside_a_recording_and_speaker(tmp_path, flags, manifest, tokens):
    # Ten clips in shards of four: a pair straddles the border between the first two shards.
    places = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "y"), ("b", "y"), (None, "y")]
    places += [(None, "y"), (None, None), (None, None), ("b", None)]
    entries = [
        {**entry, "recording_id": recording, "speaker_id": speaker}
        for entry, (recording, speaker) in zip(read_manifest(manifest), places, strict=True)
    ]
    talks = write_manifest(manifest.parent / "talks.jsonl", entries)
    run(SCRIPT, *flags, "-d", talks, "--concatenate_audio", "False", "-o", tmp_path)
    rows = split_rows(tmp_path)
    texts = [labels.text_ids(row["whisper_transcript"], tokens) for row in rows]
    wanted = [None, texts[0], None, None, texts[3], None, texts[5], None, None, None]
    assert [row["condition_on_prev"] for row in rows] == wanted


# --- input that changes ------------------------------------------------------------------------


@pytest.fixture
def own_clips(tmp_path, manifest):
    """A manifest and clips that a test may change."""
    shutil.copytree(manifest.parent, tmp_path / "clips")
    return tmp_path / "clips" / manifest.name


def replace_clip(manifest, index, by):
    entries = read_manifest(manifest)
    paths = [manifest.parent / entries[place]["audio"] for place in (by, index)]
    shutil.copyfile(*paths)


@pytest.mark.parametrize("more", [[], ["--streaming"]])
def test_a_clip_that_is_replaced_between_two_starts_has_label_and_audio_of_one(
    tmp_path, flags, own_clips, more, monkeypatch
):
    """Clips 5 and 9 are replaced: one in a shard that is sealed, one in a shard that is not."""
    out, arguments = tmp_path / "out", [*flags, "-d", own_clips, *more]
    run(SCRIPT, *arguments, "-o", tmp_path / "before")
    kill(SCRIPT, "distillery.labelling.shards:write_sealed", 3, *arguments, "-o", out)
    for index in (5, 9):
        replace_clip(own_clips, index, by=0)
    run(SCRIPT, *arguments, "-o", out)
    run(SCRIPT, *arguments, "-o", tmp_path / "after")
    rows, before, after = (split_rows(tmp_path / name) for name in ("out", "before", "after"))
    for row, old, new, is_new in zip(rows, before, after, [False] * 8 + [True] * 2, strict=True):
        wanted = new if is_new else old
        assert row["audio"] == wanted["audio"]
        assert row["whisper_transcript"] == wanted["whisper_transcript"]
    assert before[5]["audio"] != after[5]["audio"] and before[9]["audio"] != after[9]["audio"]


@pytest.mark.parametrize("more", [[], ["--packing", "best_fit"]])
def test_a_clip_that_is_replaced_while_the_stage_runs_is_an_error_that_names_it(
    tmp_path, flags, own_clips, monkeypatch, more
):
    write = ShardWriter.write

    def replaced_first(self, shard, *args):
        if shard == 1:
            replace_clip(own_clips, 5, by=0)
        return write(self, shard, *args)

    flags = [*flags, "-d", own_clips, *more, "-o", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", replaced_first)
        with pytest.raises(ValueError, match=r"the audio of clip 'clips-0005' has changed"):
            run(SCRIPT, *flags)
    run(SCRIPT, *flags)
    run(SCRIPT, *flags[:-1], tmp_path / "fresh")
    assert_same_labels(tmp_path / "out", tmp_path / "fresh")


def test_an_id_that_comes_twice_in_a_stream_is_refused(tmp_path, flags, own_clips):
    entries = read_manifest(own_clips)
    entries[7]["id"] = entries[5]["id"]
    write_manifest(own_clips, entries)
    with pytest.raises(ValueError, match=f"id '{entries[5]['id']}' occurs more than once"):
        run(SCRIPT, *flags, "-d", own_clips, "--streaming", "-o", tmp_path / "out")


def test_rows_are_counted_in_the_files(tmp_path, flags, monkeypatch):
    move = Outputs.move

    def losing(self, targets):
        move(self, targets)
        path = next(iter(targets.values()))
        pq.write_table(pq.read_table(path).slice(1), path)

    monkeypatch.setattr(Outputs, "move", losing)
    with pytest.raises(AssertionError, match="9 rows lie in the files, 10 were labelled"):
        run(SCRIPT, *flags, "-o", tmp_path)


# --- bad clips -----------------------------------------------------------------------------------


@pytest.fixture
def broken(manifest):
    """The manifest with three more clips in the midst: noise, a missing file, one too long."""
    folder = manifest.parent
    (folder / "noise.flac").write_bytes(b"no sound at all" * 100)
    samples, rate = soundfile.read(folder / read_manifest(manifest)[0]["audio"])
    soundfile.write(folder / "long.flac", list(samples) * 5, rate)
    entries = read_manifest(manifest)
    for place, name in ((1, "noise.flac"), (6, "missing.flac"), (7, "long.flac")):
        entries.insert(place, {"id": name, "audio": name, "text": SENTENCES[0]})
    return write_manifest(folder / "broken.jsonl", entries)


def test_bad_clips_are_named_counted_and_skipped(tmp_path, flags, broken, labelled, capsys):
    arguments = [*flags, "-d", broken, "-o", tmp_path]
    with pytest.raises(ValueError, match=r"3 of 13 rows cannot be used.*--max_bad_fraction 0.001"):
        run(SCRIPT, *arguments)
    heard = capsys.readouterr().err
    assert "clip noise.flac cannot be decoded" in heard
    assert "clip missing.flac file not found" in heard
    assert "clip long.flac lasts" in heard
    assert record(tmp_path)["status"] == "started"

    run(SCRIPT, *arguments, "--max_bad_fraction", 0.3)  # goes on from the sealed shards
    assert record(tmp_path)["ledger"] == {
        "in": 13,
        "out": 10,
        "dropped": {},
        "quarantined": {"audio": 2, "too_long": 1},
    }
    # Batches are others here, so that the last digits of avg_logprob may differ.
    undisturbed = by_id(split_rows(labelled))
    for row in split_rows(tmp_path):
        wanted = undisturbed[row["id"]]
        assert row["whisper_transcript"] == wanted["whisper_transcript"]
        assert row["truncated"] == wanted["truncated"]
        assert row["avg_logprob"] == pytest.approx(wanted["avg_logprob"], abs=1e-4)
    assert loaded(tmp_path, split="train")["id"][:] == list(undisturbed)


def wav(samples, rate, **options):
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="WAV", **options)
    return content.getvalue()


def test_every_kind_of_bad_clip_is_alone_in_being_left_out(tmp_path, flags, manifest, labelled):
    """With a torchcodec that does not load and an FFmpeg that crashes, as users meet them."""
    clips = tmp_path / "clips"
    shutil.copytree(manifest.parent, clips)
    entries = read_manifest(manifest)
    samples, rate = soundfile.read(clips / entries[0]["audio"], dtype="float32")
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(3 * 3600 * 100, np.int16), 100, format="FLAC")
    good = {
        "8 channels.wav": wav(np.stack([samples] * 8, axis=1), rate, subtype="FLOAT"),
        "192 kHz.wav": wav(soxr.resample(samples, rate, 192_000), 192_000),
        "flac in truth.mp3": (clips / entries[0]["audio"]).read_bytes(),
    }
    bad = {
        "empty.wav": (b"", "is an empty file"),
        "0 samples.wav": (wav(samples[:0], rate), "holds no samples"),
        "NaN.wav": (wav(samples * np.nan, rate, subtype="FLOAT"), "holds NaN or infinite samples"),
        "cut short.wav": (wav(samples, rate)[:9000], "is cut short: 8956 of "),
        "hours of silence.flac": (silence.getvalue(), "lasts 10800.00 s, longer than the model's"),
        "crash.m4a": (b"no format that libsndfile knows", "FFmpeg: stopped by signal 11"),
    }
    for name, content in {**good, **{name: content for name, (content, _) in bad.items()}}.items():
        (clips / name).write_bytes(content)
        entries.insert(2 * len(entries) % 7, {"id": name, "audio": name})
    broken = broken_torchcodec(tmp_path, "decoders", "OSError('libavutil is missing')")
    broken_av(broken, "os.kill(os.getpid(), 11)")

    done = launch(
        SCRIPT,
        *flags,
        *("-d", write_manifest(clips / "all.jsonl", entries)),
        *("-o", tmp_path / "out", "--max_bad_fraction", 0.5),
        env={"PYTHONPATH": f"{broken}:{REPOSITORY}"},
    )
    for name, (_, reason) in bad.items():
        assert re.search(f"clip {name} .*{reason}", done.stdout), done.stdout
    assert record(tmp_path / "out")["ledger"]["quarantined"] == {
        "audio": len(bad) - 1,
        "too_long": 1,
    }
    found, undisturbed = by_id(split_rows(tmp_path / "out")), by_id(split_rows(labelled))
    assert set(found) == {*undisturbed, *good}
    for row_id, row in undisturbed.items():
        assert found[row_id]["whisper_transcript"] == row["whisper_transcript"]
    first = found[read_manifest(manifest)[0]["id"]]["whisper_transcript"]
    assert found["8 channels.wav"]["whisper_transcript"] == first
    assert found["flac in truth.mp3"]["whisper_transcript"] == first


def test_a_dataset_without_one_good_clip(tmp_path, flags, manifest):
    (manifest.parent / "noise.flac").write_bytes(b"no sound at all" * 100)
    bad = write_manifest(manifest.parent / "bad.jsonl", [{"id": "x", "audio": "noise.flac"}])
    with pytest.raises(ValueError, match="1 of 1 rows cannot be used"):
        run(SCRIPT, *flags, "-d", bad, "-o", tmp_path)


def test_clips_of_unwanted_durations_are_dropped(tmp_path, flags, broken, labelled):
    entries = read_manifest(broken)
    lengths = sorted(entry["duration"] for entry in entries if "duration" in entry)
    limits = ["--min_duration_in_seconds", lengths[2], "--max_duration_in_seconds", lengths[-2]]
    # Two cannot be decoded; the one that is longer than the window is longer than asked for.
    run(SCRIPT, *flags, "-d", broken, *limits, "-o", tmp_path)
    undisturbed = by_id(split_rows(labelled))
    wanted = [e["id"] for e in entries if lengths[2] <= e.get("duration", 0) <= lengths[-2]]
    rows = split_rows(tmp_path)
    assert [row["id"] for row in rows] == wanted
    for row in rows:
        assert row["whisper_transcript"] == undisturbed[row["id"]]["whisper_transcript"]
    short, long = (sum(x < lengths[2] for x in lengths), sum(x > lengths[-2] for x in lengths))
    assert record(tmp_path)["ledger"]["dropped"] == {"too_short": short, "too_long": long + 1}
    assert record(tmp_path)["ledger"]["quarantined"] == {"audio": 2}


def test_durations_that_nothing_can_have_are_refused(tmp_path, flags):
    for more in ([], ["--dry_run"]):
        with pytest.raises(
            ValueError, match=r"--max_duration_in_seconds 4\.5 is longer than the mod"
        ):
            run(SCRIPT, *flags, "--max_duration_in_seconds", 4.5, *more, "-o", tmp_path / "long")
    with pytest.raises(ValueError, match=r"no clip is left: 10 in = 0 out \+ 10 dropped"):
        run(SCRIPT, *flags, "--min_duration_in_seconds", 3, "-o", tmp_path / "none")


def test_many_empty_transcripts_are_a_sign_of_a_wrong_flag(tmp_path, flags, capsys):
    silent = talkative_model_folder(tmp_path / "silent", seed=2)
    run(SCRIPT, *flags, "-m", silent, "-o", tmp_path / "out")
    assert "10 of 10 transcripts are empty" in capsys.readouterr().err
    run(SCRIPT, *flags, "-o", tmp_path / "words")
    assert "transcripts are empty" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workers", "wanted"),
    [
        ([], 0),
        (["--preprocessing_num_workers", 1], 0),
        (["--preprocessing_num_workers", 2], 2),
        (["--preprocessing_num_workers", 2, "--dataloader_num_workers", 1], 1),
    ],
)
def test_either_kind_of_workers_decodes(tmp_path, flags, labelled, monkeypatch, workers, wanted):
    used = []
    original = clips.DataLoader

    def loader(*args, num_workers, **options):
        used.append(num_workers)
        return original(*args, num_workers=num_workers, **options)

    monkeypatch.setattr(clips, "DataLoader", loader)
    run(SCRIPT, *flags, *workers, "-o", tmp_path)
    assert used == [wanted]
    assert_same_labels(tmp_path, labelled)


# --- other configurations in the same folder -----------------------------------------------------


def test_changed_flags_and_content_are_refused_by_name(tmp_path, flags, labelled, manifest):
    before = snapshot(labelled)
    with pytest.raises(ValueError, match=r"--generation_num_beams: 1 then, 3 now"):
        run(SCRIPT, *flags, "--num_beams", 3, "-o", labelled)
    assert snapshot(labelled) == before

    copy = write_manifest(manifest.parent / "copy.jsonl", read_manifest(manifest)[:2])
    arguments = [*flags, "-d", copy, "-o", tmp_path]
    run(SCRIPT, *arguments)
    write_manifest(copy, read_manifest(manifest)[:3])
    with pytest.raises(ValueError, match=r"copy.jsonl: its content has changed"):
        run(SCRIPT, *arguments)


def test_a_teacher_that_was_trained_again_is_refused(tmp_path, flags):
    model = talkative_model_folder(tmp_path / "model")
    arguments = [*flags, "-m", model, "--max_samples", 2, "-o", tmp_path / "out"]
    run(SCRIPT, *arguments)
    talkative_model_folder(model, seed=2)
    with pytest.raises(ValueError, match=r"model: its content has changed"):
        run(SCRIPT, *arguments)


def test_starting_over_leaves_foreign_files_alone(tmp_path, flags, teacher):
    run(SCRIPT, *flags, "-o", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_text("mine too")
    more = ["--max_samples", 5, "--overwrite_output_dir"]
    run(SCRIPT, *flags, *more, "-o", tmp_path)
    assert len(split_rows(tmp_path)) == 5
    assert len(list(tmp_path.glob("default/*.parquet"))) == 2, "files of the first run are left"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "plots" / "loss.png").read_text() == "mine too"


def test_folder_of_another_stage_is_refused_even_to_overwrite(tmp_path, flags):
    (tmp_path / "run.json").write_text(json.dumps({"stage": "run_distillation"}), "utf-8")
    with pytest.raises(ValueError, match="holds a run of run_distillation; name another folder"):
        run(SCRIPT, *flags, "--overwrite_output_dir", "-o", tmp_path)
    assert Path(tmp_path, "run.json").exists()


def test_card_names_every_configuration_and_split(labelled):
    text = (labelled / "README.md").read_text("utf-8")
    assert "config_name: default" in text
    assert "path: default/train-*.parquet" in text
    assert schema.AUDIO in loaded(labelled, "default", split="train").column_names


def test_names_give_the_terminal_no_orders(tmp_path, flags, manifest):
    """Of a file, in an id, and in an error that ends the stage."""
    entries = read_manifest(manifest)[:2]
    odd = "\x1b[2J\x1b]0;title\x07\nERROR all is lost"
    (manifest.parent / f"{odd}.flac").write_bytes(b"no sound at all" * 100)
    entries += [{**entries[0], "id": odd}, {**entries[0], "id": "x", "audio": f"{odd}.flac"}]
    entries[2]["audio"] = f"{odd} is not there.flac"
    path = write_manifest(manifest.parent / "odd.jsonl", entries)
    done = launch(SCRIPT, *flags, "-d", path, "-o", tmp_path, check=False)
    assert "clip \\x1b[2J\\x1b]0;title\\x07\\nERROR all is lost file not found" in done.stdout
    assert "2 of 4 rows cannot be used" in done.stdout
    assert not {"\x1b", "\x07"} & set(done.stdout)
    assert not any(line.startswith("ERROR all") for line in done.stdout.splitlines())
