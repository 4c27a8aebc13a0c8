import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from datasets import (
    Audio,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    load_dataset,
)
from hub_clips import CLIPS, IDS, hub_folder, rows_of

from distillery.data import column_types, hub_layout, schema
from distillery.data.parquet_rows import ParquetRows
from distillery.data.specs import DatasetSpec, broadcast_specs
from distillery.ingest import sources
from distillery.ingest.sources import load
from distillery.storage.runs import STARTED, Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two configurations, one of which has two splits."""
    return hub_folder(
        tmp_path_factory.mktemp("hub") / "clips",
        {"small": {"train": [0, 1, 2], "test": [3]}, "large": {"train": [4]}},
    )


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """One configuration, one split."""
    return hub_folder(tmp_path_factory.mktemp("hub") / "plain", {"default": {"train": [0, 1, 2]}})


def loaded(name, **fields):
    return load(DatasetSpec(str(name), **fields))


# --- several datasets ----------------------------------------------------------------------------


def test_one_value_holds_for_all_datasets():
    specs = broadcast_specs(
        {"name": ["a", "b"], "config": ["x"], "split": [], "text_column": ["t", "u"]},
        streaming=True,
    )
    assert specs == [
        DatasetSpec("a", "x", None, text_column="t", streaming=True),
        DatasetSpec("b", "x", None, text_column="u", streaming=True),
    ]


def test_one_dataset_with_several_splits():
    specs = broadcast_specs({"name": ["a"], "split": ["train", "test"]})
    assert [str(spec) for spec in specs] == ["a train", "a test"]


def test_a_stream_without_ids_needs_no_torchcodec(tmp_path):
    """As Common Voice is on the Hub: to number rows is to write them, which encodes an Audio."""
    kinds = Features({"audio": Audio(), "sentence": Value("string")})
    rows = [{"audio": rows_of([i])[0]["audio"], "sentence": "a"} for i in range(2)]
    path = hub_layout.shard_path(tmp_path, "hi", "train", 0, 1)
    path.parent.mkdir(parents=True)
    hub_layout.write_parquet(path, rows, kinds)
    hub_layout.write_card(tmp_path, {"hi": ["train"]}, "clips", "Made by a test.")
    found = list(loaded(tmp_path, streaming=True))
    assert [row["id"] for row in found] == ["row-000000000", "row-000000001"]
    assert [row["audio"]["bytes"] for row in found] == [row["audio"]["bytes"] for row in rows]


# --- Hub layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_written_folder_loads_without_us(folder, streaming):
    rows = load_dataset(str(folder), "small", streaming=streaming)
    assert list(rows) == ["train", "test"]
    assert list(rows["train"].features) == list(column_types.source_features())
    undecoded = rows["train"].cast_column("audio", Audio(decode=False))
    assert [row["audio"]["bytes"] for row in undecoded] == CLIPS[:3]


def test_the_librarys_cache_of_one_folder_is_not_taken_for_another_of_its_name(tmp_path):
    """Which it takes without the sizes in the card: it knows neither path nor files."""
    for text in ("old", "newer"):
        folder = tmp_path / text / "labelled"
        path = hub_layout.shard_path(folder, "default", "train", 0, 1)
        path.parent.mkdir(parents=True)
        hub_layout.write_parquet(path, [{"text": text}], Features({"text": Value("string")}))
        hub_layout.write_card(folder, {"default": ["train"]}, "T", "B")
        rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["text"] == [text]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_written_folder_loads_with_us(folder, streaming):
    rows = loaded(folder, config="small", split="train", streaming=streaming)
    assert isinstance(rows, IterableDataset if streaming else ParquetRows)
    assert list(rows) == rows_of([0, 1, 2])
    assert loaded(folder, config="large", split="train")[0]["id"] == "clip-4"
    assert loaded(folder, config="small", split="test")[0]["id"] == "clip-3"


def test_the_only_split_needs_no_name(plain_folder):
    rows = loaded(plain_folder)
    assert list(rows["id"]) == IDS[:3]
    spec = sources.with_split(DatasetSpec(str(plain_folder)), rows)
    assert (spec.config, spec.split) == ("default", "train")


def test_a_choice_must_be_made_and_is_listed(folder):
    with pytest.raises(
        ValueError, match=r"several configurations: name one of (large, small|small, large)"
    ):
        loaded(folder)
    with pytest.raises(ValueError, match="several splits: name one of train, test"):
        loaded(folder, config="small")


def test_a_wrong_choice_is_named(folder):
    with pytest.raises(ValueError, match=r"medium.*not found"):
        loaded(folder, config="medium", split="train")
    with pytest.raises(ValueError, match="dev"):
        loaded(folder, config="small", split="dev")


def test_the_default_configuration_is_taken_where_there_are_others(tmp_path):
    folder = hub_folder(tmp_path / "d", {"other": {"train": [1]}, "default": {"train": [0]}})
    assert list(loaded(folder)["id"]) == ["clip-0"]


@pytest.mark.parametrize("own", [schema.WHISPER_TRANSCRIPT, schema.LABELS])
def test_a_stages_own_dataset_takes_the_flags_of_its_source(tmp_path, own):
    rows = [{**row, own: "x"} for row in rows_of([0, 1])]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    found = loaded(tmp_path, text_column="transcription", id_column="name")
    assert [(row["id"], row["text"]) for row in found] == [(r["id"], r["text"]) for r in rows]


def test_a_mistyped_column_is_not_replaced_by_the_usual_one(plain_folder):
    with pytest.raises(ValueError, match=r"--text_column_name: .* no column 'transcription'"):
        loaded(plain_folder, text_column="transcription")


def test_everything_is_kept_in_the_cache_folder_that_is_named(plain_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = Path(os.environ["HF_HOME"])
    before = {path for path in home.rglob("*") if path.is_file()}
    table = tmp_path / "table" / "train.csv"
    table.parent.mkdir()
    table.write_text("id,audio,text\na,a.wav,x\n", "utf-8")
    assert len(loaded(plain_folder, cache_dir=str(tmp_path / "cache"))) == 3
    assert not (tmp_path / "cache").exists()  # Parquet is read where it lies
    assert len(loaded(table.parent, cache_dir=str(tmp_path / "cache"))) == 1
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert {path for path in home.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "table"]


def test_an_audio_column_of_any_dataset_needs_no_decoder(tmp_path):
    rows = Dataset.from_list(rows_of([0, 1])).cast_column("audio", Audio(sampling_rate=16_000))
    (tmp_path / "d").mkdir()
    rows.to_parquet(tmp_path / "d" / "train.parquet")
    assert load_dataset(str(tmp_path / "d"), split="train").features["audio"].decode
    for streaming in (False, True):
        found = loaded(tmp_path / "d", streaming=streaming)
        assert [row["audio"]["bytes"] for row in found] == CLIPS[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_json_files(tmp_path, streaming):
    (tmp_path / "train.jsonl").write_text('{"text": "x", "audio": {"path": "a.wav"}}\n')
    rows = loaded(tmp_path, streaming=streaming)
    assert [(row["id"], row["text"]) for row in rows] == [("row-000000000", "x")]


# --- saved datasets and builders -----------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_save_to_disk(tmp_path, streaming):
    rows = Dataset.from_list(rows_of([0, 1])).cast_column("audio", Audio())
    rows.save_to_disk(tmp_path / "d")
    found = loaded(tmp_path / "d", streaming=streaming)
    assert list(found) == rows_of([0, 1])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_dict_of_save_to_disk(tmp_path, streaming):
    parts = {"train": Dataset.from_list(rows_of([0])), "test": Dataset.from_list(rows_of([1]))}
    DatasetDict(parts).save_to_disk(tmp_path / "d")
    found = loaded(tmp_path / "d", split="test", streaming=streaming)
    assert [row["id"] for row in found] == ["clip-1"]
    with pytest.raises(ValueError, match="no split 'dev': train, test"):
        loaded(tmp_path / "d", split="dev")
    with pytest.raises(ValueError, match="several splits: name one of train, test"):
        loaded(tmp_path / "d")


BUILDER = """
import datasets
from datasets import GeneratorBasedBuilder  # imported: not the builder of this file


class ClipsConfig(datasets.BuilderConfig):
    def __init__(self, dataset_dir_suffix=None, **kwargs):
        super().__init__(**kwargs)
        self.suffix = dataset_dir_suffix


class Clips(GeneratorBasedBuilder):
    BUILDER_CONFIG_CLASS = ClipsConfig

    def _info(self):
        audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        return datasets.DatasetInfo(
            features=datasets.Features(
                {"name": datasets.Value("string"), "audio": audio, "said": datasets.Value("string")}
            )
        )

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator("train", {"words": ["x", "y"]})]

    def _generate_examples(self, words):
        for word in words:
            name = f"{word}-{self.config.name}-{self.config.suffix}"
            yield name, {"name": name, "audio": {"bytes": b"1", "path": "p"}, "said": word}
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_builder_of_the_users_own(tmp_path, streaming):
    path = tmp_path / "clips.py"
    path.write_text(BUILDER)
    rows = loaded(
        path,
        config="tiny",
        data_dir_suffix="0_50",
        text_column="said",
        id_column="name",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    assert list(rows)[1] == {
        "id": "y-tiny-0_50",
        "audio": {"bytes": b"1", "path": "p"},
        "text": "y",
    }


def test_a_changed_builder_does_not_get_the_cache_of_the_old_one(tmp_path):
    path = tmp_path / "clips.py"
    fields = {"config": "tiny", "id_column": "name", "cache_dir": str(tmp_path / "cache")}
    path.write_text(BUILDER)
    assert len(loaded(path, **fields)) == 2
    path.write_text(BUILDER.replace('["x", "y"]', '["x", "y", "z"]'))
    assert len(loaded(path, **fields)) == 3


@pytest.mark.parametrize(
    ("text", "count"), [("x = 1\n", 0), (BUILDER + "\n\nclass B(Clips):\n    pass\n", 2)]
)
def test_a_file_must_hold_one_builder(tmp_path, text, count):
    (tmp_path / "clips.py").write_text(text)
    with pytest.raises(ValueError, match=f"exactly one dataset builder, found {count}"):
        loaded(tmp_path / "clips.py")


# --- writing -------------------------------------------------------------------------------------


def test_bytes_are_embedded_exactly_as_they_came_in(tmp_path):
    source = loaded(tiny.tone_manifest(tmp_path / "m.jsonl", 3, 0.1))
    files = sorted(tmp_path.glob("*.flac"))
    folder = tmp_path / "out"
    path = hub_layout.shard_path(folder, "default", "train", 0, 1)
    path.parent.mkdir(parents=True)
    rows = [{**row, "audio": hub_layout.embed_audio(row)} for row in source]
    hub_layout.write_parquet(path, rows, column_types.source_features())
    hub_layout.write_card(folder, {"default": ["train"]}, "T", "B")
    found = loaded(folder)
    assert [hashlib.sha256(row["audio"]["bytes"]).hexdigest() for row in found] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    ]
    assert [row["audio"]["path"] for row in found] == [file.name for file in files]


def test_embedding_drops_this_machines_folders(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    at = str(tmp_path / "a.wav")
    wanted = {"bytes": b"sound", "path": "a.wav"}
    assert hub_layout.embed_audio({"audio": {"bytes": None, "path": at}}) == wanted
    assert hub_layout.embed_audio({"audio": {"bytes": b"other", "path": at}}) == {
        "bytes": b"other",
        "path": "a.wav",
    }
    assert hub_layout.embed_audio({"audio": {"bytes": b"x", "path": None}}) == {
        "bytes": b"x",
        "path": None,
    }


def test_parquet_holds_the_columns_that_are_asked_for(tmp_path):
    rows = ({"id": str(i), "text": "x", "secret": 1} for i in range(250))
    hub_layout.write_parquet(tmp_path / "x.parquet", rows, column_types.source_features())
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == list(column_types.source_features())
    assert table["id"].to_pylist() == [str(i) for i in range(250)]
    assert table["duration"].null_count == 250


def test_a_shard_without_rows_still_loads(tmp_path):
    folder = hub_folder(tmp_path, {"default": {"train": [0, 1]}})
    hub_layout.write_parquet(
        folder / "default" / "train-00001-of-00002.parquet", [], column_types.source_features()
    )
    assert list(loaded(folder)["id"]) == IDS[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_chunks_cover_all_rows_in_order(plain_folder, streaming):
    rows = loaded(plain_folder, streaming=streaming)
    chunks = [(i, [row["id"] for row in chunk]) for i, chunk in sources.iterate_chunks(rows, 2)]
    assert chunks == [(0, IDS[:2]), (1, IDS[2:3])]


# --- fingerprints and records --------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_manifest(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio": "a.wav", "text": "x"}')
    spec = DatasetSpec(str(path))
    before = sources.fingerprint(spec)
    assert sources.fingerprint(spec) == before
    assert sources.fingerprint(DatasetSpec(str(path), split="test")) != before
    path.write_text('{"audio": "a.wav", "text": "y"}')
    assert sources.fingerprint(spec) != before


def test_a_fingerprint_changes_with_a_folders_files(tmp_path):
    folder = hub_folder(tmp_path, {"default": {"train": [0, 1]}})
    spec = DatasetSpec(str(folder))
    before = sources.fingerprint(spec)
    (folder / "run.json").write_text("{}")
    (folder / "default" / ".train.tmp.parquet").write_text("half")
    assert sources.fingerprint(spec) == before
    hub_folder(tmp_path, {"default": {"train": [0, 2]}})
    assert sources.fingerprint(spec) != before


def test_the_record_of_a_stage_is_read(tmp_path):
    assert hub_layout.read_run_record(str(tmp_path)) == {}
    (tmp_path / "run.json").write_text('{"arguments": {"language": "ja"}}')
    assert hub_layout.read_run_record(str(tmp_path)) == {"language": "ja"}
    assert hub_layout.read_run_record(str(tmp_path / "run.json")) == {}
    assert hub_layout.read_run_record("no/such/folder") == {}


def test_a_dataset_whose_run_was_stopped_is_refused(tmp_path):
    Run(tmp_path, "run_pseudo_labelling", {}, {}).write(STARTED)
    (tmp_path / "default").mkdir()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "default" / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="is not finished"):
        load(DatasetSpec(str(tmp_path)))


# --- ids of a stream -----------------------------------------------------------------------------


@pytest.mark.parametrize("second", [1, 4, 8])
def test_an_id_that_comes_twice_in_a_stream_is_an_error_when_it_comes(tmp_path, second):
    rows = [{"id": f"c{0 if i == second else i}", "audio": "a.wav"} for i in range(9)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    chunks = sources.iterate_chunks(loaded(path, streaming=True), 3)
    for _ in range(second // 3):
        next(chunks)
    with pytest.raises(ValueError, match=r"id 'c0' occurs more than once in the stream; name a"):
        next(chunks)


def test_a_row_without_an_id_in_a_stream_is_an_error(tmp_path):
    rows = Dataset.from_list([{"id": name, "text": "x"} for name in ("a", "b", None)])
    with pytest.raises(ValueError, match="row 2 of the stream has no id"):
        list(sources.iterate_chunks(rows.to_iterable_dataset(), 2))


@pytest.mark.parametrize("ids", [["a", None], [None, None]])
def test_a_row_without_an_id_is_an_error_where_the_column_is_named(tmp_path, ids):
    audio = [{"bytes": name, "path": None} for name in (b"x", b"y")]
    Dataset.from_dict({"id": ids, "audio": audio}).to_parquet(tmp_path / "train.parquet")
    row = ids.index(None)
    with pytest.raises(ValueError, match=rf"row {row} has no id; name a column .*--id_column_name"):
        loaded(tmp_path, id_column="id")
    # Otherwise it is a column that only happens to be called so.
    assert loaded(tmp_path)["id"] == ["row-000000000", "row-000000001"]


def test_a_single_parquet_file_is_an_error_that_names_its_folder(plain_folder):
    (path,) = plain_folder.rglob("*.parquet")
    with pytest.raises(ValueError, match=f"single file .* part of its folder: {path.parent}"):
        loaded(path)
