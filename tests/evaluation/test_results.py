import json

import pytest
from tiny import SHARED

from distillery.evaluation.results import (
    Prediction,
    Result,
    find_row,
    read_folder,
    read_foreign_predictions,
    read_predictions,
    read_results,
    write_predictions,
)
from distillery.storage.json_lines import append_row

PUBLISHED = SHARED / "data" / "kotoba_predictions"
ROWS = [{"model": "先生", "cer_norm": 1.3}, {"model": "a\nb\u2028c", "cer_norm": None}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "results.jsonl"


def test_find_row_tells_equal_base_names_apart():
    rows = [
        {"model": "runs/a/student", "test_set": "short_form", "cer_norm": 1.0},
        {"model": "runs/b/student", "test_set": "short_form", "cer_norm": 2.0},
        {"model": "runs/b/student", "test_set": "long_form", "cer_norm": 3.0},
    ]
    assert find_row(rows, {"model": "runs/b/student", "test_set": "short_form"}) == rows[1]
    assert find_row(rows, {"model": "student"}) is None
    assert find_row(rows, {"model": "runs/a/student", "test_set": "long_form"}) is None


def test_find_row_takes_the_newest_and_needs_every_item():
    rows = [{"model": "a", "cer": 1}, {"model": "a", "cer": 2}]
    assert find_row(rows, {"model": "a"}) == {"model": "a", "cer": 2}
    assert find_row(rows, {"model": "a", "language": None}) is None
    assert find_row([], {"model": "a"}) is None
    with pytest.raises(ValueError, match="at least one column"):
        find_row(rows, {})


PREDICTIONS = [
    Prediction("1", "NA", "null", "", "nan"),
    Prediction("2", 'say "hi", now', "a\nb", "a\r\nb", "a\rb"),
    Prediction("003", " 空白 ", "\t", "1e5", "True"),
    Prediction("4", "", "", "", ""),
    Prediction("5", "長" * 200_000, "'", "=1+1", "\\"),
]


def test_predictions_come_back_exactly(tmp_path):
    path = tmp_path / "new" / "predictions.csv"
    write_predictions(path, iter(PREDICTIONS))
    assert read_predictions(path) == PREDICTIONS
    header = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert header == '"id","reference_norm","prediction_norm","reference_raw","prediction_raw"'


def test_failed_write_leaves_the_old_predictions(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, PREDICTIONS)

    def broken():
        yield PREDICTIONS[0]
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        write_predictions(path, broken())
    assert read_predictions(path) == PREDICTIONS
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "columns are missing"),
        ("id,text\n1,a\n", "columns are id, text"),
        (
            ",".join(Prediction._fields) + "\n1,a,b,c,d\n2,a,b\n",
            r"\.csv:3: expected 5 fields, got 3",
        ),
    ],
)
def test_other_files_are_not_predictions(tmp_path, content, message):
    path = tmp_path / "other.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


FOREIGN = {
    "id,reference_norm,prediction_norm,reference_raw,prediction_raw\n7,a,b,A.,B.\n": (
        "7",
        "A.",
        "B.",
    ),
    "id,reference,prediction\n7,A.,B.\n": ("7", "A.", "B."),
    "prediction,extra,reference\nB.,x,A.\n": ("1", "A.", "B."),
    "\ufeffid,reference,prediction\r\n7,NA,null\r\n": ("7", "NA", "null"),
    'id,reference,prediction\n7,"",\n': ("7", "", ""),
}


@pytest.mark.parametrize(("content", "row"), FOREIGN.items())
def test_predictions_from_elsewhere(tmp_path, content, row):
    path = tmp_path / "other.csv"
    path.write_text(content, encoding="utf-8")
    assert read_foreign_predictions(path) == [row]


@pytest.mark.parametrize("ids", [("7", "7"), ("", "7"), ("", "")])
def test_rows_whose_ids_do_not_tell_them_apart_are_numbered(tmp_path, caplog, ids):
    path = tmp_path / "published.csv"
    path.write_text(f"id,reference,prediction\n{ids[0]},a,b\n{ids[1]},c,d\n", "utf-8")
    assert read_foreign_predictions(path) == [("1", "a", "b"), ("2", "c", "d")]
    assert f"{path}: ids are empty or occur more than once: rows are numbered" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column reference_raw or reference; its columns are missing"),
        ("id,text\n1,a\n", "no column reference_raw or reference; its columns are id, text"),
        ("id,reference,text\n1,a,b\n", "no column prediction_raw or prediction; .* id, reference"),
        ("id,reference,prediction\n", "no row below the header"),
        ("reference,prediction\na,b\na\n", r"other\.csv:3: expected 2 fields, got 1"),
    ],
)
def test_files_that_cannot_be_scored(tmp_path, content, message):
    path = tmp_path / "other.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_foreign_predictions(path)


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "other.csv"
    path.write_bytes("reference,prediction\nねこ,ねこ\n".encode("shift_jis"))
    with pytest.raises(ValueError, match=r"other\.csv: 'utf-8' codec .* save it as UTF-8"):
        read_foreign_predictions(path)


RATES = {"cer_norm": 1.5, "wer_norm": 2.0, "cer_raw": 3.0, "wer_raw": 4.0}
OLDEST = {"form": "short_form", "model": "/m", "dataset": "set", **RATES}


def test_results_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no result"):
        read_folder(tmp_path)
    append_row(tmp_path / "metric.ja.transcribe.jsonl", {**OLDEST, "model": "second"})
    append_row(tmp_path / "metric.en.translate.jsonl", {**OLDEST, "model": "first"})
    append_row(tmp_path / "results.jsonl", {"another": "file"})
    assert [result.model for result in read_folder(tmp_path)] == ["first", "second"]


def test_a_row_of_an_older_version_lacks_figures_and_is_read():
    result = Result.from_row(OLDEST)
    assert (result.ci, result.by_duration, result.rtfx) == (None, [], None)
    assert result.to_row().items() >= OLDEST.items()


def test_what_another_version_added_survives(path):
    row = {**OLDEST, "dtype": "float16", "nested": {"new": [1, None]}}
    result = Result.from_row(row)
    assert result.figure("dtype") == "float16"
    append_row(path, result.to_row())
    (read,) = read_results(path)
    assert read == result
    assert read.to_row().items() >= row.items()


def test_a_row_without_a_model_or_a_rate_is_named(path):
    append_row(path, {name: OLDEST[name] for name in OLDEST if name not in ("model", "wer_raw")})
    with pytest.raises(ValueError, match=r"results\.jsonl: a row of results lacks model, wer_raw"):
        read_results(path)


@pytest.mark.parametrize(
    ("normalizer", "unit", "rate"),
    [
        ("whisper-basic+no-spaces", "char", "cer_norm"),
        ("whisper-english", "word", "wer_norm"),
        ("marks-kept", "word", "wer_norm"),
    ],
)
def test_unit_and_main_rate_follow_the_normaliser(normalizer, unit, rate):
    result = Result.from_row({**OLDEST, "normalizer": normalizer})
    assert (result.unit, result.main_rate) == (unit, rate)


@pytest.mark.skipif(
    not PUBLISHED.exists(), reason=f"{PUBLISHED} is absent: it comes with ../shared"
)
def test_published_predictions_can_be_read():
    counts = {path.name: len(read_predictions(path)) for path in PUBLISHED.glob("*.csv")}
    assert counts == {
        "kotoba-whisper-v1.0.ja_asr.common_voice_8_0.csv": 4483,
        "whisper-large-v3.ja_asr.jsut_basic5000.csv": 5000,
    }


def test_rows_are_plain_json_lines(path):
    append_row(path, {"b": 1, "a": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1, "a": [1, 2]}
