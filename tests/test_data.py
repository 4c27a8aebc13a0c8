import hashlib
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
from datasets import Audio, Dataset, DatasetDict, IterableDataset, Value, load_dataset

from distillery import data, schema
from distillery.data import DatasetSpec, broadcast_specs, load


def wav(seed: int) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, 160)
    soundfile.write(buffer, samples, 16_000, format="WAV")
    return buffer.getvalue()


CLIPS = [wav(seed) for seed in range(5)]
IDS = [f"clip-{i}" for i in range(5)]


def rows_of(numbers):
    return [
        {
            "id": IDS[i],
            "audio": {"bytes": CLIPS[i], "path": f"{IDS[i]}.wav"},
            "text": f"文 {i}",
            "speaker_id": "s",
            "recording_id": None,
            "duration": 0.5,
        }
        for i in numbers
    ]


def hub_folder(folder: Path, splits) -> Path:
    """Write a dataset as our stages do: {config: {split: row numbers}}."""
    for config, by_split in splits.items():
        for split, numbers in by_split.items():
            path = data.shard_path(folder, config, split, 0, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            data.write_parquet(path, rows_of(numbers), schema.source_features())
    data.write_card(folder, splits, "Clips", "Made by a test.")
    return folder


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


def manifest(path: Path, rows, audio="a.wav") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "a.wav").write_bytes(CLIPS[0])
    rows = [{"audio": audio, **row} for row in rows]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


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


# --- manifests -----------------------------------------------------------------------------------


def test_jsonl(tmp_path):
    rows = loaded(manifest(tmp_path / "m.jsonl", [{"id": "1", "text": "あ", "more": 3}]))
    assert list(rows) == [
        {
            "id": "1",
            "audio": {"bytes": None, "path": str(tmp_path / "a.wav")},
            "text": "あ",
            "more": 3,
        }
    ]


def written(path: Path, text: str) -> Path:
    (path.parent / "a.wav").write_bytes(CLIPS[0])
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", '\ufeff{"audio": "a.wav", "text": "x"}\r\n\r\n{"audio": "a.wav", "text": "y"}'),
        ("m.json", '{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav", "text": "y"}\n'),
        ("m.json", '\ufeff [{"audio": "a.wav", "text": "x"},\n {"audio": "a.wav", "text": "y"}]'),
        ("m.csv", "\ufeffaudio,text\na.wav,x\na.wav,y\n"),
        ("m.csv", '"audio","text"\r\n"a.wav","x"\r\n"a.wav","y"\r\n'),
        ("m.tsv", "\ufeffaudio\ttext\na.wav\tx\na.wav\ty"),
    ],
)
def test_every_kind_of_manifest_with_and_without_a_byte_order_mark(tmp_path, name, text):
    rows = loaded(written(tmp_path / name, text))
    assert rows.column_names == ["audio", "text", "id"]
    assert [row["text"] for row in rows] == ["x", "y"]
    assert rows[0]["audio"]["path"] == str(tmp_path / "a.wav")


def test_texts_that_look_like_nothing_stay_texts(tmp_path):
    texts = ["NA", "null", "", "None", "nan", "1"]
    table = "audio,text\n" + "".join(f"a.wav,{text}\n" for text in texts)
    assert list(loaded(written(tmp_path / "m.csv", table))["text"]) == texts
    rows = loaded(manifest(tmp_path / "m.jsonl", [{"text": text} for text in texts]))
    assert list(rows["text"]) == texts


@pytest.mark.parametrize("name", ["m.jsonl", "m.json", "m.csv"])
def test_only_an_end_of_line_ends_a_row(tmp_path, name):
    text = "a\u2028b\x85c\x0bd\x1ee"
    if name == "m.csv":
        path = written(tmp_path / name, f"audio,text\na.wav,{text}\na.wav,y\n")
    else:
        path = manifest(tmp_path / name, [{"text": text}, {"text": "y"}])
    assert list(loaded(path)["text"]) == [text, "y"]


def test_quoted_fields_may_hold_lines_and_commas(tmp_path):
    path = written(tmp_path / "m.csv", 'audio,text\na.wav,"x,\n""y"""\n')
    assert list(loaded(path)["text"]) == ['x,\n"y"']


def test_a_key_that_some_rows_lack_is_null_there(tmp_path):
    rows = loaded(manifest(tmp_path / "m.jsonl", [{"a": 1}, {"text": "x"}, {"a": 2}]))
    assert list(rows["a"]) == [1, None, 2]
    assert list(rows["text"]) == [None, "x", None]
    rows = loaded(written(tmp_path / "m.csv", "audio,text\na.wav\n"))
    assert list(rows["text"]) == [None]


def test_too_many_fields_are_not_swallowed(tmp_path):
    path = written(tmp_path / "m.csv", "audio,text\na.wav,x\na.wav,y,z\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 3: more fields than the header"):
        loaded(path)


@pytest.mark.parametrize("line", ['{"audio": "a.wav"', "[1, 2]", '"text"', "nothing"])
def test_a_bad_line_is_named(tmp_path, line):
    path = written(tmp_path / "m.jsonl", f'{{"audio": "a.wav"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 3: not "):
        loaded(path)


def test_a_missing_audio_column_names_those_there_are(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{"note": "x"}])
    with pytest.raises(ValueError) as error:
        loaded(path, audio_column="path")
    assert str(error.value) == (
        f"--audio_column_name: dataset {path} has no column 'path'; its columns are audio, note"
    )


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"text_column": "words"}, "--text_column_name"),
        ({"id_column": "words"}, "--id_column_name"),
        ({"speaker_id_column": "words"}, "--speaker_id_column_name"),
        ({"recording_id_column": "words"}, "--recording_id_column_name"),
    ],
)
def test_any_other_missing_column_is_named_with_its_flag(tmp_path, fields, flag):
    path = manifest(tmp_path / "m.jsonl", [{"note": "x"}])
    with pytest.raises(ValueError, match=f"{flag}: .* no column 'words'; .* audio, note"):
        loaded(path, **fields)


@pytest.mark.parametrize("value", [None, "", 3])
def test_a_row_without_audio_is_named(tmp_path, value):
    path = manifest(tmp_path / "m.jsonl", [{}, {"audio": value}])
    with pytest.raises(ValueError, match="line 2: column .audio. names no audio file"):
        loaded(path)


def test_the_users_columns_get_the_names_of_the_contract(tmp_path):
    entry = {"clip": "a.wav", "words": "x", "key": "k", "who": "s", "tape": "r", "text": "old"}
    path = written(tmp_path / "m.jsonl", json.dumps(entry))
    rows = loaded(
        path,
        audio_column="clip",
        text_column="words",
        id_column="key",
        speaker_id_column="who",
        recording_id_column="tape",
    )
    assert list(rows) == [
        {
            "id": "k",
            "audio": {"bytes": None, "path": str(tmp_path / "a.wav")},
            "text": "x",
            "speaker_id": "s",
            "recording_id": "r",
        }
    ]


def test_the_usual_names_of_a_reference_need_no_flag(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{"transcript": "b", "sentence": "a"}])
    assert loaded(path)[0]["text"] == "a"
    assert loaded(path, text_column="transcript")[0]["text"] == "b"


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_that_name_something_become_text(tmp_path, streaming):
    path = manifest(tmp_path / "m.jsonl", [{"id": 7, "speaker_id": 12, "n": 3}])
    rows = loaded(path, streaming=streaming)
    row = next(iter(rows))
    assert (row["id"], row["speaker_id"], row["n"]) == ("7", "12", 3)
    assert rows.features["id"] == rows.features["speaker_id"] == Value("string")


def test_splits_of_a_manifest(tmp_path):
    path = manifest(
        tmp_path / "m.jsonl", [{"split": "train", "n": 1}, {"split": "test", "n": 2}, {"n": 3}]
    )
    assert list(loaded(path)["n"]) == [1, 2, 3]
    assert list(loaded(path, split="train")["n"]) == [1]
    with pytest.raises(ValueError, match="no split 'dev': its column 'split' holds test, train"):
        loaded(path, split="dev")
    path = manifest(tmp_path / "folds.jsonl", [{"split": 1, "n": 1}, {"split": 2, "n": 2}])
    assert list(loaded(path, split="2")["n"]) == [2]


def test_a_column_of_several_types_is_named(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{"text": "x"}, {"text": 1}])
    with pytest.raises(ValueError, match=r"m\.jsonl: column 'text' holds values of several types"):
        loaded(path)


def test_without_a_split_column_a_manifest_is_any_split(tmp_path):
    assert len(loaded(manifest(tmp_path / "m.jsonl", [{}, {}]), split="test")) == 2


def test_paths_are_relative_to_the_manifest(tmp_path, monkeypatch):
    path = manifest(tmp_path / "corpus" / "m.jsonl", [{}])
    monkeypatch.chdir(tmp_path)
    row = loaded(Path("corpus/m.jsonl"))[0]
    assert Path(row["audio"]["path"]).read_bytes() == CLIPS[0]
    absolute = manifest(tmp_path / "other" / "m.jsonl", [{}], audio=str(path.parent / "a.wav"))
    assert loaded(absolute)[0]["audio"]["path"] == str(path.parent / "a.wav")


def test_a_manifest_that_was_moved_with_its_audio_finds_it(tmp_path):
    (tmp_path / "audios").mkdir()
    (tmp_path / "audios" / "x.mp3").write_bytes(b"right")
    (tmp_path / "x.mp3").write_bytes(b"wrong: a shorter end of the path")
    path = manifest(tmp_path / "m.jsonl", [{}], audio="./demo_data/audios/x.mp3")
    assert Path(loaded(path)[0]["audio"]["path"]) == tmp_path / "audios" / "x.mp3"


def test_a_file_that_is_nowhere_keeps_the_path_as_written(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{}], audio="gone/x.mp3")
    assert loaded(path)[0]["audio"]["path"] == str(tmp_path / "gone" / "x.mp3")


def test_real_manifest_that_was_moved():
    path = tiny.SHARED / "data" / "common_voice_zh_tw" / "demo_jsonl_dataset.jsonl"
    if not path.exists():
        pytest.skip("../shared absent")
    rows = loaded(path, audio_column="path", split="train")
    assert len(rows) == 8
    assert rows[0]["text"] == "有一天離開的時候"
    for row in rows:
        assert Path(row["audio"]["path"]).is_file()


def test_audio_alone_is_enough(tmp_path):
    rows = loaded(manifest(tmp_path / "m.jsonl", [{}, {}]))
    assert rows.column_names == ["audio", "id"]
    assert list(rows["id"]) == ["row-000000000", "row-000000001"]


@pytest.mark.parametrize("streaming", [False, True])
def test_row_numbers_are_ids_where_there_are_none(tmp_path, streaming, caplog):
    path = manifest(tmp_path / "m.jsonl", [{"text": "a"}, {"text": "b"}, {"text": "c"}])
    with caplog.at_level(logging.INFO):
        rows = loaded(path, streaming=streaming, max_rows=2)
    assert [(row["id"], row["text"]) for row in rows] == [
        ("row-000000000", "a"),
        ("row-000000001", "b"),
    ]
    data.require_column(rows, DatasetSpec("x"), "text", "--text_column_name")
    assert "named by their number" in caplog.text


def test_ids_that_occur_twice_are_an_error(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{"id": "a"}, {"id": "b"}, {"id": "a"}])
    with pytest.raises(ValueError, match=r"id 'a' occurs more than once.*--id_column_name"):
        loaded(path)


@pytest.mark.parametrize(
    ("name", "text"), [("m.jsonl", "\n"), ("m.json", "[]"), ("m.csv", "audio,text\n")]
)
def test_no_rows_is_an_error(tmp_path, name, text):
    with pytest.raises(ValueError, match="has no rows"):
        loaded(written(tmp_path / name, text))


@pytest.mark.parametrize("max_rows", [2, 99])
def test_max_rows(tmp_path, max_rows):
    path = manifest(tmp_path / "m.jsonl", [{}] * 3)
    assert len(loaded(path, max_rows=max_rows)) == min(3, max_rows)


@pytest.mark.parametrize(
    "name", ["no/such/file.jsonl", "nothing.csv", "./gone", "/gone", "builder.py"]
)
def test_what_is_not_there_is_named(name):
    with pytest.raises(
        FileNotFoundError, match=f"dataset {Path(name) if '.' in name[1:] else name}"
    ):
        loaded(name)


# --- Hub layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_written_folder_loads_without_us(folder, streaming):
    rows = load_dataset(str(folder), "small", streaming=streaming)
    assert list(rows) == ["train", "test"]
    assert list(rows["train"].features) == list(schema.source_features())
    undecoded = rows["train"].cast_column("audio", Audio(decode=False))
    assert [row["audio"]["bytes"] for row in undecoded] == CLIPS[:3]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_written_folder_loads_with_us(folder, streaming):
    rows = loaded(folder, config="small", split="train", streaming=streaming)
    assert isinstance(rows, IterableDataset if streaming else Dataset)
    assert list(rows) == rows_of([0, 1, 2])
    assert loaded(folder, config="large", split="train")[0]["id"] == "clip-4"
    assert loaded(folder, config="small", split="test")[0]["id"] == "clip-3"


def test_the_only_split_needs_no_name(plain_folder):
    rows = loaded(plain_folder)
    assert list(rows["id"]) == IDS[:3]
    spec = data.with_split(DatasetSpec(str(plain_folder)), rows)
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


def test_a_stages_own_dataset_takes_the_flags_of_its_source(plain_folder):
    rows = loaded(plain_folder, text_column="transcription", id_column="name")
    assert list(rows) == rows_of([0, 1, 2])


def test_everything_is_kept_in_the_cache_folder_that_is_named(plain_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = Path(os.environ["HF_HOME"])
    before = {path for path in home.rglob("*") if path.is_file()}
    loaded(plain_folder, cache_dir=str(tmp_path / "cache"), text_column="x", id_column="y")
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert {path for path in home.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


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
    path = data.shard_path(folder, "default", "train", 0, 1)
    path.parent.mkdir(parents=True)
    rows = [{**row, "audio": data.embed_audio(row)} for row in source]
    data.write_parquet(path, rows, schema.source_features())
    data.write_card(folder, {"default": ["train"]}, "T", "B")
    found = loaded(folder)
    assert [hashlib.sha256(row["audio"]["bytes"]).hexdigest() for row in found] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    ]
    assert [row["audio"]["path"] for row in found] == [file.name for file in files]


def test_embedding_drops_this_machines_folders(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    at = str(tmp_path / "a.wav")
    wanted = {"bytes": b"sound", "path": "a.wav"}
    assert data.embed_audio({"audio": {"bytes": None, "path": at}}) == wanted
    assert data.embed_audio({"audio": {"bytes": b"other", "path": at}}) == {
        "bytes": b"other",
        "path": "a.wav",
    }
    assert data.embed_audio({"audio": {"bytes": b"x", "path": None}}) == {
        "bytes": b"x",
        "path": None,
    }


def test_parquet_holds_the_columns_that_are_asked_for(tmp_path):
    rows = ({"id": str(i), "text": "x", "secret": 1} for i in range(250))
    data.write_parquet(tmp_path / "x.parquet", rows, schema.source_features())
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == list(schema.source_features())
    assert table["id"].to_pylist() == [str(i) for i in range(250)]
    assert table["duration"].null_count == 250


def test_a_shard_without_rows_still_loads(tmp_path):
    folder = hub_folder(tmp_path, {"default": {"train": [0, 1]}})
    data.write_parquet(
        folder / "default" / "train-00001-of-00002.parquet", [], schema.source_features()
    )
    assert list(loaded(folder)["id"]) == IDS[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_chunks_cover_all_rows_in_order(plain_folder, streaming):
    rows = loaded(plain_folder, streaming=streaming)
    chunks = [(i, [row["id"] for row in chunk]) for i, chunk in data.iterate_chunks(rows, 2)]
    assert chunks == [(0, IDS[:2]), (1, IDS[2:3])]


# --- fingerprints and records --------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_manifest(tmp_path):
    path = manifest(tmp_path / "m.jsonl", [{"text": "x"}])
    spec = DatasetSpec(str(path))
    before = data.fingerprint(spec)
    assert data.fingerprint(spec) == before
    assert data.fingerprint(DatasetSpec(str(path), split="test")) != before
    manifest(path, [{"text": "y"}])
    assert data.fingerprint(spec) != before


def test_a_fingerprint_changes_with_a_folders_files(tmp_path):
    folder = hub_folder(tmp_path, {"default": {"train": [0, 1]}})
    spec = DatasetSpec(str(folder))
    before = data.fingerprint(spec)
    (folder / "run.json").write_text("{}")
    (folder / "default" / ".train.tmp.parquet").write_text("half")
    assert data.fingerprint(spec) == before
    hub_folder(tmp_path, {"default": {"train": [0, 2]}})
    assert data.fingerprint(spec) != before


def test_the_record_of_a_stage_is_read(tmp_path):
    assert data.read_run_record(str(tmp_path)) == {}
    (tmp_path / "run.json").write_text('{"arguments": {"language": "ja"}}')
    assert data.read_run_record(str(tmp_path)) == {"language": "ja"}
    assert data.read_run_record(str(manifest(tmp_path / "m.jsonl", [{}]))) == {}
    assert data.read_run_record("no/such/folder") == {}
