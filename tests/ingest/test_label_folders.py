import io
import json
import logging
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset
from hub_clips import hub_folder

from distillery.audio.decoding import decode_audio
from distillery.data import parquet_rows, regions, schema
from distillery.data.collators import PROBLEM
from distillery.data.packed_windows import with_audio
from distillery.data.parquet_rows import ParquetFiles, ParquetRows
from distillery.data.specs import DatasetSpec
from distillery.ingest import label_folders, sources
from distillery.ingest.label_folders import LabelledRows, Source, join

RATE = 16_000
SOURCE, LABELS = DatasetSpec("the-source"), DatasetSpec("the-labels")


def clip(name):
    """Return a row whose samples are finer than the 16 bits that a stored window has."""
    noise = 0.1 * np.random.default_rng(ord(name)).standard_normal(800)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, RATE, format="WAV", subtype="FLOAT")
    return {schema.ID: name, schema.AUDIO: {"bytes": buffer.getvalue(), "path": None}}


def label(name):
    return {schema.ID: name, schema.LABELS: [ord(name[0])]}


def window(*names):
    return {
        **label(names[0]),
        schema.SEGMENT_IDS: list(names),
        schema.SEGMENT_OFFSETS: [0.1 * i for i in range(len(names))],
    }


def joined(labels, clips):
    return join(Dataset.from_list(labels), Dataset.from_list(clips), RATE, LABELS, SOURCE)


@pytest.fixture
def clips():
    return [clip(name) for name in "abcdef"]


# --- the join ------------------------------------------------------------------------------------


def test_rows_have_the_order_of_the_labels_and_the_audio_of_their_id(clips):
    rows = joined([label(name) for name in "ecaf"], clips)
    by_id = {row[schema.ID]: row[schema.AUDIO] for row in clips}
    assert [rows[i] for i in range(len(rows))] == [
        {**label(name), schema.AUDIO: by_id[name]} for name in "ecaf"
    ]
    assert rows.num_unlabelled == 2
    some = rows.select([3, 0])
    assert [some[i][schema.ID] for i in range(2)] == ["f", "e"]
    assert [some[i][schema.AUDIO] for i in range(2)] == [by_id["f"], by_id["e"]]


def test_a_window_sounds_as_if_it_had_been_stored(clips):
    windows = [window("c", "a"), window("b"), window("d", "e")]
    stored = {row[schema.ID]: row for row in with_audio(clips, windows, RATE)}
    rows = joined(windows, clips)
    assert rows.num_unlabelled == 1
    for row in (rows[i] for i in range(3)):
        wanted = stored[row[schema.ID]][schema.AUDIO]
        heard = [decode_audio(audio, RATE) for audio in (row[schema.AUDIO], wanted)]
        assert np.array_equal(*heard)
    assert rows[1][schema.AUDIO] == clips[1][schema.AUDIO]


def test_a_window_with_a_broken_part_says_so_and_stops_nothing(clips):
    clips[1][schema.AUDIO]["bytes"] = b"no audio"
    row = joined([window("a", "b")], clips)[0]
    assert row[PROBLEM].startswith("clip b, which is a part of a window, cannot be decoded")


def test_rows_lie_where_their_audio_does(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "LARGE_GROUP_BYTES", 1)
    monkeypatch.setattr(regions, "REGION_BYTES", 1)
    path = tmp_path / "clips.parquet"
    pq.write_table(Dataset.from_list(clips).data.table, path, row_group_size=2)
    source = ParquetRows.of(ParquetFiles.of([str(path)]))
    labels = Dataset.from_list([label("d"), label("a")])
    rows = join(labels, source, RATE, LABELS, SOURCE)
    assert rows.regions().of_rows.tolist() == [1, 0]
    assert rows.select([1]).regions().of_rows.tolist() == [0]
    kept = rows.keeping(1 << 20)
    assert [kept[0], kept[1]] == [rows[0], rows[1]]
    assert len(kept.source.files._kept) == 2
    windows = Dataset.from_list([window("c", "d"), window("b")])
    assert join(windows, source, RATE, LABELS, SOURCE).regions().of_rows.tolist() == [1, 0]
    assert joined([label("d")], clips).regions() is None


def test_labels_without_a_row_are_an_error_that_names_it(clips):
    with pytest.raises(ValueError, match="the-labels: id 'x' has labels, but no row in the-source"):
        joined([label("a"), label("x")], clips)
    with pytest.raises(ValueError, match="id 'y' has labels, but no row"):
        joined([window("a", "y")], clips)


def test_a_clip_in_two_windows_is_an_error(clips):
    with pytest.raises(ValueError, match="clip 'b' has labels more than once"):
        joined([window("a", "b"), window("c", "b")], clips)


# --- the source of a folder ----------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    return DatasetSpec(str(hub_folder(tmp_path / "speech", {"default": {"train": [0, 1, 2]}})))


def labels_folder(folder, rows, source=None, split="train"):
    """Write a folder of labels, and a record that names its source, if there is one."""
    (folder / "default").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "default" / f"{split}-00000-of-00001.parquet")
    if source:
        written = DatasetSpec(str(folder), "default", split)
        record = {"arguments": {}, **label_folders.record_of({written: Source.of(source)})}
        (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return DatasetSpec(str(folder))


def labels_of(source, *places):
    ids = list(sources.load(source)[schema.ID])
    return [{schema.ID: ids[place], schema.LABELS: [place]} for place in places]


def test_the_record_leads_to_the_source_from_any_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = replace(source, name="speech", split="train[:2]", id_column="id")
    labels = labels_folder(tmp_path / "labels", labels_of(source, 1, 0), relative)
    monkeypatch.chdir("/")
    assert label_folders.recorded_source(labels).spec == replace(relative, name=source.name)
    rows = label_folders.load(labels, RATE)
    assert isinstance(rows, LabelledRows) and (len(rows), rows.num_unlabelled) == (2, 0)
    assert rows[0][schema.AUDIO]["path"] == f"{rows[0][schema.ID]}.wav"


def test_a_source_that_is_named_goes_before_the_record(source, tmp_path, caplog):
    labels = labels_folder(tmp_path / "labels", labels_of(source, 2), source)
    given = replace(source, labels_dir=labels.name)
    with caplog.at_level(logging.WARNING):
        assert label_folders.load(given, RATE).num_unlabelled == 2
    assert not caplog.text
    other = hub_folder(tmp_path / "other", {"default": {"train": [2]}})
    rows = label_folders.load(replace(given, name=str(other)), RATE)
    assert (len(rows), rows.num_unlabelled) == (1, 0)
    assert "is not, or no longer, what the labels" in caplog.text


def test_the_number_of_samples_is_that_of_the_labels(source, tmp_path):
    labels = labels_folder(tmp_path / "labels", labels_of(source, 2, 1, 0))
    rows = label_folders.load(replace(source, labels_dir=labels.name, max_rows=2), RATE)
    assert [rows[i][schema.LABELS] for i in range(len(rows))] == [[2], [1]]


def test_a_source_that_has_changed_is_refused_unless_it_is_named(source, tmp_path):
    labels = labels_folder(tmp_path / "labels", labels_of(source, 0), source)
    hub_folder(tmp_path / "speech", {"default": {"train": [0, 1]}})
    with pytest.raises(ValueError, match="speech, which has changed since: label it again"):
        label_folders.load(labels, RATE)
    assert len(label_folders.load(replace(source, labels_dir=labels.name), RATE)) == 1


def test_what_to_do_where_the_source_is_not_there_or_not_known(source, tmp_path):
    labels = labels_folder(tmp_path / "labels", labels_of(source, 0), source)
    (tmp_path / "speech").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="speech, which is not here: name the source with -d"):
        label_folders.load(labels, RATE)
    (tmp_path / "labels" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no audio, nor a record .*: name the source with -d"):
        label_folders.load(labels, RATE)


def test_a_source_on_the_hub_is_read_there(source, tmp_path, monkeypatch):
    on_the_hub = replace(source, name="my-org/speech")
    labels = labels_folder(tmp_path / "labels", labels_of(source, 1), on_the_hub)
    load, read = sources.load, []

    def fetched(spec):
        read.append(spec.name)
        return load(replace(spec, name=source.name) if spec.name == on_the_hub.name else spec)

    monkeypatch.setattr(sources, "load", fetched)
    assert len(label_folders.load(labels, RATE)) == 1
    assert read == [labels.name, on_the_hub.name]


def test_a_dataset_with_neither_audio_nor_labels_lacks_its_audio(tmp_path):
    spec = labels_folder(tmp_path / "texts", [{schema.ID: "a", schema.TEXT: "ねこ"}])
    with pytest.raises(ValueError, match=r"--audio_column_name: .* has no column 'audio'"):
        label_folders.load(spec, RATE)


def test_a_stream_is_not_joined(source, tmp_path):
    labels = labels_folder(tmp_path / "labels", labels_of(source, 0), source)
    with pytest.raises(ValueError, match="joined with their audio by id: leave out --streaming"):
        label_folders.stream(replace(labels, streaming=True))
    assert label_folders.stream(replace(source, streaming=True)).column_names


def test_the_columns_of_the_source_may_still_be_named(source, tmp_path):
    """A recipe gives all stages the names that its source has."""
    labels = labels_folder(tmp_path / "labels", labels_of(source, 0), source)
    assert len(label_folders.load(replace(labels, audio_column="sound"), RATE)) == 1
