"""Datasets split by speaker, as users do it; what comes out is read as any dataset is."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from command_lines import complaints
from datasets import load_dataset
from stage_runs import read_manifest, record, run, snapshot, split_rows, write_manifest
from tiny import REPOSITORY, load_script

from distillery.cli import hub
from distillery.data.column_types import source_features
from distillery.data.hub_layout import write_card, write_parquet
from distillery.data.specs import DatasetSpec
from distillery.ingest.sources import load
from distillery.storage.runs import Run

SCRIPT = "scripts/split_dataset.py"
SHARES = ("--validation_share", 0.3, "--test_share", 0.3)
RATE, NUM_SPEAKERS = 8000, 12
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two clips of 0.1 s of each speaker, in a folder of its own beside the manifest."""
    root = tmp_path_factory.mktemp("corpus") / "speech"
    (root / "clips").mkdir(parents=True)
    rows = []
    for i in range(2 * NUM_SPEAKERS):
        soundfile.write(root / "clips" / f"{i}.flac", np.full(RATE // 10, i / 100), RATE)
        rows.append({"id": f"c{i}", "audio": f"clips/{i}.flac", "text": f"t {i}", "who": i // 2})
    write_manifest(root / "speech.jsonl", rows)
    return root


def sounds(rows):
    """Return each clip's first sample, which tells them apart."""
    found = {}
    for row in rows:
        audio = row["audio"]
        source = audio["path"] if audio["bytes"] is None else io.BytesIO(audio["bytes"])
        found[row["id"]] = round(100 * soundfile.read(source)[0][0])
    return found


EVERY_SOUND = {f"c{i}": i for i in range(2 * NUM_SPEAKERS)}


def test_a_manifest_becomes_three_whose_paths_lead_to_the_same_audio(corpus, tmp_path, capsys):
    words = ("-d", corpus / "speech.jsonl", "--speaker_id_column_name", "who", *SHARES)
    run(SCRIPT, *words, "-o", tmp_path / "deep" / "splits", "--dry_run")
    told = capsys.readouterr().out
    assert not (tmp_path / "deep").exists()
    run(SCRIPT, *words, "-o", tmp_path / "deep" / "splits")
    manifests = {name: tmp_path / "deep" / "splits" / f"{name}.jsonl" for name in SPLITS}
    written = {name: read_manifest(path) for name, path in manifests.items()}
    assert sum(map(len, written.values())) == 2 * NUM_SPEAKERS
    speakers = [{row["who"] for row in rows} for rows in written.values()]
    assert sum(map(len, speakers)) == len(set().union(*speakers)) == NUM_SPEAKERS
    assert not any(str(corpus) in path.read_text("utf-8") for path in manifests.values())
    loaded = [row for path in manifests.values() for row in load(DatasetSpec(str(path)))]
    assert sounds(loaded) == EVERY_SOUND
    counts = record(tmp_path / "deep" / "splits")["splits"]
    for name, rows in written.items():
        speakers = len({row["who"] for row in rows})
        assert counts[name]["rows"] == len(rows) == 2 * speakers
        assert counts[name]["speakers"] == speakers
        assert f"{name}: rows: {len(rows)}, speakers: {speakers}, " in told


def test_a_second_start_writes_nothing_and_other_flags_are_refused(corpus, tmp_path):
    words = ("-d", corpus / "speech.jsonl", "--speaker_id_column_name", "who", "-o", tmp_path / "s")
    run(SCRIPT, *words, *SHARES)
    before = snapshot(tmp_path / "s")
    run(SCRIPT, *words, *SHARES)
    assert snapshot(tmp_path / "s") == before
    with pytest.raises(ValueError, match="another configuration"):
        run(SCRIPT, *words, *SHARES, "--seed", 1)
    run(SCRIPT, *words, *SHARES, "--seed", 1, "--overwrite_output_dir")
    assert record(tmp_path / "s")["arguments"]["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        run(SCRIPT, *words[:-1], tmp_path / "mine", *SHARES)
    assert (tmp_path / "mine" / "train.jsonl").read_text() == "mine"


def test_a_manifest_keeps_its_columns_and_what_the_loader_would_cut(corpus, tmp_path):
    (corpus / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:00,050\nhi\n")
    rows = [
        {"audio_filepath": f"clips/{i}.flac", "speaker_id": f"s{i}", "note": [i], "split": "all"}
        for i in range(NUM_SPEAKERS)
    ]
    rows[0]["subtitles"] = "talk.srt"
    parts = [
        {"audio_filepath": "clips/20.flac", "offset": 0.02 * i, "duration": 0.02, "split": "all"}
        for i in range(1, 4)
    ]
    write_manifest(corpus / "nemo.json", rows + parts)
    run(SCRIPT, "-d", corpus / "nemo.json", *SHARES, "-o", corpus / "splits")
    written = {name: read_manifest(corpus / "splits" / f"{name}.jsonl") for name in SPLITS}
    assert sorted(row["note"][0] for each in written.values() for row in each if row["note"]) == [
        *range(NUM_SPEAKERS)
    ]
    assert all(row["split"] == name for name, each in written.items() for row in each)
    (cut,) = [row for each in written.values() for row in each if row["subtitles"]]
    assert cut["subtitles"] == "../talk.srt"
    assert [sum(bool(row["offset"]) for row in each) for each in written.values()].count(3) == 1
    name = next(name for name, each in written.items() if cut in each)
    clips = load(DatasetSpec(str(corpus / "splits" / f"{name}.jsonl"), split=name))
    assert "hi" in clips["text"][:]


@pytest.fixture(scope="module")
def hub_folder(corpus):
    """The same in the Hub's layout, with audio inside and no durations."""
    folder = corpus.parent / "hub"
    features = source_features()
    del features["duration"]
    rows = [
        {
            "id": row["id"],
            "audio": {"bytes": (corpus / row["audio"]).read_bytes(), "path": f"{row['id']}.flac"},
            "text": row["text"],
            "speaker_id": str(row["who"]),
        }
        for row in read_manifest(corpus / "speech.jsonl")
    ]
    (folder / "de").mkdir(parents=True)
    write_parquet(folder / "de" / "spoken-00000-of-00001.parquet", rows, features)
    write_card(folder, {"de": ["spoken"]}, "Speech", "")
    return folder


def test_a_folder_in_the_hubs_layout_becomes_one_with_three_splits(hub_folder, tmp_path):
    run(SCRIPT, "-d", hub_folder, *SHARES, "-o", tmp_path / "s", "--rows_per_shard", 4)
    rows = {name: split_rows(tmp_path / "s", name) for name in SPLITS}
    assert sounds(row for each in rows.values() for row in each) == EVERY_SOUND
    speakers = [{row["speaker_id"] for row in each} for each in rows.values()]
    assert sum(map(len, speakers)) == len(set().union(*speakers)) == NUM_SPEAKERS
    assert len(list((tmp_path / "s" / "default").glob("train-*"))) == -(-len(rows["train"]) // 4)
    assert hub.repo_type(Run.finished(tmp_path / "s", "-o")) == "dataset"
    hours = [each["hours"] for each in record(tmp_path / "s")["splits"].values()]
    assert sum(hours) == pytest.approx(2 * NUM_SPEAKERS * 0.1 / 3600, abs=2e-4)
    for name in SPLITS:
        read = load_dataset(str(tmp_path / "s"), split=name, streaming=True)
        assert [row["id"] for row in read.remove_columns("audio")] == [r["id"] for r in rows[name]]
        loaded = load(DatasetSpec(str(tmp_path / "s"), split=name, cache_dir=str(tmp_path / "c")))
        assert len(loaded) == len(rows[name])


def test_a_folder_of_audio_becomes_a_dataset_with_its_audio(corpus, tmp_path):
    run(SCRIPT, "-d", corpus / "clips", *SHARES, "-o", tmp_path / "s")
    rows = [row for name in SPLITS for row in split_rows(tmp_path / "s", name)]
    assert sorted(sounds(rows).values()) == [*range(2 * NUM_SPEAKERS)]


def test_a_writer_that_fails_leaves_nothing(hub_folder, tmp_path, monkeypatch):
    script = load_script(SCRIPT)

    def failing(*_):
        raise OSError("no space left")

    monkeypatch.setattr(script.hub_layout, "write_card", failing)
    with pytest.raises(OSError, match="no space"):
        run(SCRIPT, "-d", hub_folder, *SHARES, "-o", tmp_path / "s")
    assert not list(tmp_path.glob("*")) and not (tmp_path / "s").exists()


def test_one_speaker_is_refused(corpus, tmp_path):
    rows = [{**row, "speaker_id": "anna"} for row in read_manifest(corpus / "speech.jsonl")]
    write_manifest(corpus / "anna.jsonl", rows)
    with pytest.raises(ValueError, match="1 speaker cannot be shared out among train, validation"):
        run(SCRIPT, "-d", corpus / "anna.jsonl", "-o", tmp_path / "s")
    with pytest.raises(ValueError, match=r"--speaker_id_column_name: .* has no column 'voice'"):
        run(
            SCRIPT, "-d", corpus / "anna.jsonl", "-o", tmp_path, "--speaker_id_column_name", "voice"
        )


def test_it_runs_from_a_bare_clone(corpus, tmp_path):
    words = ["-d", corpus / "speech.jsonl", "-o", tmp_path / "s", *SHARES, "--dry_run"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, REPOSITORY / SCRIPT, *map(str, words)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train: rows: ")
    assert "clips: " in done.stdout


def test_wrong_flags_are_told_together(capsys):
    script = load_script(SCRIPT)
    words = ("-d", "a+b", "-o", "s", "--streaming", "--test_share", "1.5", "--seed", "x")
    told = complaints(capsys, *words, groups=script.GROUPS, check=script.check)
    assert "--test_share must be between 0 and 1, got 1.5" in told
    assert "--dataset_name names several: split one after the other" in told
    assert any(line.startswith("--streaming: ") for line in told)
    told = complaints(
        capsys, "-d", "a", "-o", "s", "--test_share", "1", groups=script.GROUPS, check=script.check
    )
    assert told == [
        "--validation_share and --test_share must be more than 0 and less than 1 together, got 1.05"
    ]
