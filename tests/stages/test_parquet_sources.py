"""A source in Parquet, from labelling to training: read where it lies, and copied nowhere."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stage_runs import record, run, split_rows, talkative_model_folder
from tiny import tone_manifest
from training_runs import DISTILLATION, assert_same_run, student_folder

from distillery.data import column_types, hub_layout, parquet_rows, regions, schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.training import order

NUM_CLIPS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("parquet")


@pytest.fixture(scope="module")
def teacher(root):
    return talkative_model_folder(root / "teacher")


@pytest.fixture(scope="module")
def speech(root):
    """Write clips to two files in the Hub's layout, the second of which has one row group."""
    rows = sources.load(DatasetSpec(str(tone_manifest(root / "tones.jsonl", NUM_CLIPS, 0.5))))
    clips = [{**row, schema.AUDIO: hub_layout.embed_audio(row)} for row in rows]
    folder, features = root / "speech", column_types.source_features()
    for index, part in enumerate((clips[:6], clips[6:])):
        path = hub_layout.shard_path(folder, "default", "train", index, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        hub_layout.write_parquet(path, part, features)
    hub_layout.write_card(folder, {"default": ["train"]}, "Clips", "")
    return folder


def cached():
    """Return what the datasets library keeps in its cache."""
    return sorted(Path(os.environ["HF_DATASETS_CACHE"]).rglob("*"))


@pytest.fixture(scope="module")
def chains(root, teacher, speech):
    """Return what was labelled and filtered, with the audio and without."""
    before, folders = cached(), {}
    for way in ("dataset", "labels"):
        labelled, filtered = root / f"{way}-labelled", root / f"{way}-filtered"
        flags = ["-m", teacher, "-l", "ja", "-b", 4, "--max_label_length", 16]
        flags += ["--rows_per_shard", 4, "--output_format", way]
        run("run_pseudo_labelling.py", "-d", speech, *flags, "-o", labelled)
        flags = ["--keep_truncated", "--rows_per_shard", 3]
        run("run_data_filtering.py", "-d", labelled, *flags, "-o", filtered)
        folders[way] = filtered
    assert cached() == before
    return folders


@pytest.fixture
def train(root, teacher, tmp_path):
    student = root / "student"
    if not student.exists():
        student_folder(student, teacher)

    def train(to, *flags):
        always = ["-m", student, "--teacher", teacher, "--language", "ja", "--max_steps", 2]
        always += ["--logging_steps", 1, "--per_device_train_batch_size", 2]
        run(DISTILLATION, *always, "-o", tmp_path / to, *flags)
        return tmp_path / to

    return train


def test_every_row_goes_through_and_no_cache_is_made(chains, train):
    full, beside = chains["dataset"], chains["labels"]
    assert len(split_rows(full)) == NUM_CLIPS == record(beside)["ledger"]["in"]
    assert all(row[schema.AUDIO]["bytes"] for row in split_rows(full))
    before = cached()
    wanted = train("full", "-d", full)
    assert_same_run(train("beside", "-d", beside, "--dataloader_num_workers", 1), wanted)
    assert cached() == before


def test_large_row_groups_are_read_by_region(chains, train, monkeypatch, capsys):
    """What one process keeps in memory, and a worker of it, changes nothing."""
    monkeypatch.setattr(parquet_rows, "LARGE_GROUP_BYTES", 1)
    monkeypatch.setattr(regions, "REGION_BYTES", 1)
    monkeypatch.setattr(order, "POOL_BYTES", 1)
    flags = ["-d", chains["labels"], "--gradient_accumulation_steps", 2, "--max_steps", 4]
    wanted = train("by_region", *flags)
    assert "has large row groups: rows are shuffled within" in capsys.readouterr().err
    assert_same_run(train("by_a_worker", *flags, "--dataloader_num_workers", 1), wanted)


def test_evaluation_reads_it_in_place(speech, teacher, tmp_path):
    before = cached()
    flags = ["-m", teacher, "-d", speech, "-l", "ja", "-b", 4, "-o", tmp_path]
    run("run_short_form_eval.py", *flags, "--generation_max_length", 16)
    run("run_long_form_eval.py", *flags)
    assert cached() == before
    assert len(list(tmp_path.glob("metric.*.jsonl"))) >= 1


def test_a_damaged_file_stops_the_training_and_is_named(chains, speech, train):
    path = hub_layout.shard_path(speech, "default", "train", 1, 2)
    content, chunk = path.read_bytes(), pq.read_metadata(path).row_group(0).column(1)
    assert chunk.path_in_schema == "audio.bytes"
    start, stop = chunk.data_page_offset, chunk.data_page_offset + 64
    try:
        path.write_bytes(content[:start] + b"\xff" * 64 + content[stop:])
        with pytest.raises(ValueError, match=rf"{path.name} is damaged, or no Parquet file"):
            flags = ["--labels_dir", chains["labels"], "--per_device_train_batch_size", NUM_CLIPS]
            train("damaged", "-d", speech, *flags)
    finally:
        path.write_bytes(content)
