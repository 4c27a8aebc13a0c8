"""Manifests: rows of JSON, JSON lines, CSV or TSV beside the audio."""

import json
import logging
from pathlib import Path

import pytest
import tiny
from datasets import Value

from distillery.data.specs import DatasetSpec
from distillery.ingest import manifest_rows, manifests, sources
from distillery.ingest.sources import load

SOUND = b"never decoded here"


def manifest(path: Path, rows, audio="a.wav") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "a.wav").write_bytes(SOUND)
    rows = [{"audio": audio, **row} for row in rows]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def loaded(name, **fields):
    return load(DatasetSpec(str(name), **fields))


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
    (path.parent / "a.wav").write_bytes(SOUND)
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
    with pytest.raises(ValueError, match="line 2: column 'audio' names no audio file"):
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
    with pytest.raises(
        ValueError, match=r"m\.jsonl, line 2: column 'text' holds values of several"
    ):
        loaded(path)


def test_without_a_split_column_a_manifest_is_any_split(tmp_path):
    assert len(loaded(manifest(tmp_path / "m.jsonl", [{}, {}]), split="test")) == 2


def test_paths_are_relative_to_the_manifest(tmp_path, monkeypatch):
    path = manifest(tmp_path / "corpus" / "m.jsonl", [{}])
    monkeypatch.chdir(tmp_path)
    row = loaded(Path("corpus/m.jsonl"))[0]
    assert Path(row["audio"]["path"]).read_bytes() == SOUND
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
    sources.require_column(rows, DatasetSpec("x"), "text", "--text_column_name")
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


# --- streams: the same rows, one batch at a time -------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(manifests, "BATCH_ROWS", 2)
    monkeypatch.setattr(manifests, "_BLOCK", 16)


ROWS = [
    {"audio": f"clips/{i}.wav", "text": None if i == 1 else f'"{i}", あ ] }}', "id": f"c{i}"}
    for i in range(7)
]
TABLE = "id,audio,text\n" + "".join(
    f"c{i},clips/{i}.wav," + ("" if i == 1 else f'"""{i}"", あ ] }}"') + "\n" for i in range(7)
)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("m.json", json.dumps(ROWS)),
        ("m.json", json.dumps(ROWS, ensure_ascii=False, indent=4)),
        ("m.csv", TABLE),
    ],
)
def test_batches_are_not_seen_in_the_rows(tmp_path, small_batches, name, text, streaming):
    rows = list(loaded(written(tmp_path / name, text), streaming=streaming))
    assert [row["id"] for row in rows] == [f"c{i}" for i in range(7)]
    assert [row["text"] or "" for row in rows] == [row["text"] or "" for row in ROWS]
    assert rows[6]["audio"] == {"bytes": None, "path": str(tmp_path / "clips" / "6.wav")}


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path, small_batches):
    path = manifest(tmp_path / "m.jsonl", [{"text": str(i)} for i in range(4)])
    path.write_text(path.read_text("utf-8") + "damage\n", "utf-8")
    rows = iter(loaded(path, streaming=True))
    assert [next(rows)["text"] for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"m\.jsonl, line 5: not JSON"):
        next(rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_of_a_stream(tmp_path, small_batches, streaming, caplog):
    caplog.set_level(logging.INFO)
    path = manifest(
        tmp_path / "m.jsonl", [{"split": "train" if i % 3 else "test", "n": i} for i in range(9)]
    )
    rows = loaded(path, split="test", streaming=streaming)
    assert [row["n"] for row in rows] == [0, 3, 6]
    assert "3 of 9 rows belong to split test" in caplog.text
    with pytest.raises(ValueError, match="no split 'dev': its column 'split' holds test, train"):
        loaded(path, split="dev", streaming=streaming)


def test_columns_and_types_that_come_late(tmp_path, small_batches):
    path = manifest(
        tmp_path / "m.jsonl", [{"n": 1, "text": None}, {"n": 2}, {"n": 2.5, "note": "x"}]
    )
    rows = loaded(path)
    assert list(rows["n"]) == [1.0, 2.0, 2.5]
    assert list(rows["note"]) == [None, None, "x"]
    with pytest.raises(ValueError, match=r"line 3: column 'note' is not in the first rows"):
        list(loaded(path, streaming=True))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("late", ["x", [1], {"a": 1}])
def test_a_type_that_changes_late_is_an_error(tmp_path, small_batches, streaming, late):
    path = manifest(tmp_path / "m.jsonl", [{"n": 1}, {"n": 2}, {"n": late}])
    with pytest.raises(ValueError, match=r"m\.jsonl, line 3: .*values of several types"):
        list(loaded(path, streaming=streaming))


def test_a_column_that_starts_empty_may_hold_texts_later(tmp_path, small_batches):
    path = manifest(tmp_path / "m.jsonl", [{"text": None}, {"text": None}, {"text": "x"}])
    assert [row["text"] for row in loaded(path, streaming=True)] == [None, None, "x"]


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", b'{"audio": "a"}\n{"audio": "\xff"}', "line 2: not UTF-8"),
        ("m.jsonl", b"\xef\xbb\xbf\xff", "line 1: not UTF-8"),
        ("m.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("m.jsonl", b'{"audio": "a", "n": 1' + b"0" * 30 + b"}", "line 1: column 'n' holds"),
        ("m.jsonl", b'{"audio": "a", "text": "\\ud800"}', "line 1: not UTF-8: .*'text'"),
        ("m.json", b"[" * 100_000, "not JSON"),
        ("m.json", b'[{"audio": "a"},\n\n {"audio": }]', "line 3: not JSON"),
        ("m.json", b'[{"audio": "a"},\n {"audio": "b"}', "line 2: not JSON"),
        ("m.json", b'[{"audio": "a"},\n {"audio": "b', "line 2: not JSON"),
        ("m.json", b'[{"audio": "a"},\n "b"]', "line 2: not a JSON object"),
        ("m.json", b'[{"audio": "a"}]\n]', "line 1: not JSON: more follows"),
        ("m.json", b'[{"audio": "a"},\n {"audio": "\xff"}]', "line 2: not UTF-8"),
        ("m.csv", b"audio,text\na,x\na,\xff\n", "line 3: not UTF-8"),
        ("m.csv", b'audio,text\na,"x" y\n', "line 2: .*quotes doubled"),
        ("m.tsv", b'audio\ttext\na\t"x\na\ty\n', "line 3: .*quotes doubled"),
        ("m.csv", b"audio,text,text\na,x,y\n", "line 1: a column is in the header twice"),
        ("m.csv", b"audio,text\n\na,x,y\n", "line 3: more fields"),
        ("m.jsonl", b'{"audio": "a"}\n\n{"audio": 1}\n', "line 3: column 'audio' names no audio"),
    ],
)
def test_damage_is_one_error_with_file_and_line(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        list(loaded(tmp_path / name, streaming=streaming))


BAD_ROWS = [
    ({"offset": float("nan"), "duration": 1.0}, "offset", "is nan, not a number of seconds"),
    ({"offset": 0, "duration": float("inf")}, "duration", "is inf, not a number of seconds"),
    ({"duration": -1}, "duration", "is -1, not a number of seconds"),
    ({"duration": "soon"}, "duration", "is 'soon', not a number of seconds"),
    ({"id": None}, "id", "is empty"),
    ({"id": ["x"]}, "id", "holds values of several types"),
    ({"text": 3}, "text", "holds values of several types"),
    ({"audio": "a\0b"}, "audio", "names no audio file"),
    ({"subtitles": 3}, "subtitles", "names no file"),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("bad", "column", "problem"), BAD_ROWS)
def test_one_bad_row_does_not_end_a_stage(tmp_path, bad, column, problem, streaming, caplog):
    rows = [
        {"id": f"c{index}", "text": "x", "offset": 0.0, "duration": 0.5, "subtitles": None}
        for index in range(20)
    ]
    path = manifest(tmp_path / "m.jsonl", [*rows[:10], {**rows[10], **bad}, *rows[11:]])
    options = {"streaming": streaming, "segment": "none", "max_bad_fraction": 0.05}
    found = [row["id"] for row in loaded(path, **options)]
    assert found == [row["id"] for row in rows if row["id"] != "c10"]
    assert f"m.jsonl, line 11: column '{column}' {problem}" in caplog.text
    assert f"20 in = 19 out + 0 dropped + 1 quarantined ({column}: 1 [m.jsonl:11])" in caplog.text
    with pytest.raises(ValueError, match=rf"m\.jsonl: 1 of 20 rows .*{column}.*m\.jsonl:11"):
        list(loaded(path, **{**options, "max_bad_fraction": 0.04}))
    with pytest.raises(ValueError, match=rf"m\.jsonl, line 11: column '{column}' {problem}"):
        list(loaded(path, **{**options, "max_bad_fraction": 0.0}))


@pytest.mark.parametrize("streaming", [False, True])
def test_without_one_usable_row_there_is_no_dataset(tmp_path, streaming):
    path = manifest(tmp_path / "m.jsonl", [{"duration": -1}, {"audio": ""}])
    with pytest.raises(ValueError, match=r"m\.jsonl has no rows that can be used: 2 in = 0 out"):
        list(loaded(path, streaming=streaming, max_bad_fraction=1.0))


def test_many_bad_rows_are_counted_and_a_few_are_named(tmp_path, caplog):
    path = manifest(tmp_path / "m.jsonl", [{"duration": 1 if i % 2 else -1} for i in range(100)])
    assert len(loaded(path, max_bad_fraction=0.5)) == 50
    named = [message for message in caplog.messages if "not a number of seconds" in message]
    assert len(named) == manifest_rows.MOST_LOGGED
    assert named[-1].endswith("(more of these are only counted)")


@pytest.mark.parametrize("streaming", [False, True])
def test_times_of_a_table_are_numbers(tmp_path, streaming):
    path = written(tmp_path / "m.csv", "audio,duration,offset\na.wav,1.5,\nb.wav,,0\n")
    rows = list(loaded(path, streaming=streaming, segment="none"))
    assert [row["duration"] for row in rows] == [1.5, None]


# --- NeMo's manifests ----------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_nemo_needs_no_flag(tmp_path, streaming):
    entry = {"audio_filepath": "clips/a.wav", "duration": 1.5, "text": "x", "offset": 0.0}
    (tmp_path / "m.json").write_text(json.dumps(entry) + "\n", "utf-8")
    (row,) = loaded(tmp_path / "m.json", streaming=streaming)
    assert row["audio"]["path"] == str(tmp_path / "clips" / "a.wav")
    assert (row["text"], row["duration"]) == ("x", 1.5)
    assert "audio_filepath" not in row


def test_the_name_that_is_given_goes_before_nemos(tmp_path):
    entry = {"audio": "a.wav", "audio_filepath": "n.wav"}
    path = written(tmp_path / "m.jsonl", json.dumps(entry))
    assert loaded(path)[0]["audio"]["path"].endswith("a.wav")
    (row,) = loaded(path, audio_column="audio_filepath")
    assert row["audio"]["path"].endswith("n.wav")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("offset", [3.2, -1, "0.5", "late", True, [0]])
def test_a_part_of_a_file_without_its_duration_is_refused(tmp_path, offset, streaming):
    path = manifest(tmp_path / "m.jsonl", [{"offset": 0}, {"offset": offset}])
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: column 'offset' is .*part of a file"):
        loaded(path, streaming=streaming)


@pytest.mark.parametrize("offset", [None, 0, 0.0, "", "0", "0.0"])
def test_a_row_from_the_start_of_a_file_is_not(tmp_path, offset):
    assert len(loaded(manifest(tmp_path / "m.jsonl", [{"offset": offset}]))) == 1


# --- where the audio is, without a look at each file ---------------------------------------------


@pytest.fixture
def looks(monkeypatch):
    found = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: found.append(path) or is_file(path))
    return found


def test_a_folder_is_looked_for_once(tmp_path, looks):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0.wav").write_bytes(SOUND)
    path = tmp_path / "m.csv"
    path.write_text("audio\n" + "".join(f"/old/place/clips/{i}.wav\n" for i in range(5000)))
    rows = loaded(path)
    assert rows[4999]["audio"]["path"] == str(tmp_path / "clips" / "4999.wav")
    assert len([file for file in looks if file.suffix == ".wav"]) == 4


def test_a_folder_that_is_nowhere_is_not_looked_for_again_and_again(tmp_path, looks):
    path = tmp_path / "m.csv"
    path.write_text("audio\n" + "".join(f"gone/{i}.wav\n" for i in range(5000)))
    assert loaded(path)[4999]["audio"]["path"] == str(tmp_path / "gone" / "4999.wav")
    assert len([file for file in looks if file.suffix == ".wav"]) == 2 * manifests.MAX_MISSES


def test_a_missing_file_does_not_hide_its_folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "b.wav").write_bytes(SOUND)
    path = tmp_path / "m.csv"
    path.write_text("audio\nold/clips/a.wav\nold/clips/b.wav\n")
    assert loaded(path)[1]["audio"]["path"] == str(tmp_path / "clips" / "b.wav")


def test_what_is_no_name_of_a_file_is_left_to_the_decoder(tmp_path):
    long = "x" * 5000
    (row,) = loaded(written(tmp_path / "m.csv", f"audio\n{long}\n"))
    assert row["audio"]["path"] == str(tmp_path / long)


def test_rows_without_ids_are_named_by_their_files_where_those_are_unique(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    named = [{"audio": "day/a.b.wav"}, {"audio": "c"}, {"audio": "night/d.flac"}]
    assert loaded(manifest(tmp_path / "m.jsonl", named))["id"][:] == ["a.b", "c", "d"]
    assert "named by their files" in caplog.text
    twice = [*named, {"audio": "night/a.b.mp3"}]
    rows = loaded(manifest(tmp_path / "twice.jsonl", twice))
    assert rows["id"][:] == [f"row-00000000{index}" for index in range(4)]
    streamed = loaded(manifest(tmp_path / "m.jsonl", named), streaming=True)
    assert [row["id"] for row in streamed] == [f"row-00000000{index}" for index in range(3)]


@pytest.mark.parametrize("name", ["wer_10.0.vectorized", "wer_10", "wer_1O.0"])
def test_what_lies_beside_a_missing_dataset_is_named(tmp_path, name):
    for other in ("wer_10.0", "something else"):
        (tmp_path / other).mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no such file or folder \(beside it: wer_10\.0\),"
    ):
        loaded(tmp_path / name)
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"no such file or folder \(beside it: train\.jsonl"
    ):
        loaded(tmp_path / "trian.jsonl")
