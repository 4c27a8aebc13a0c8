import importlib.util

import pytest
from command_lines import parsed
from stage_runs import run, snapshot
from tiny import SHARED

from distillery.evaluation import results

SCRIPT, REDIRECT = "score_predictions.py", "run_short_form_eval.py"
TEXTS = "reference,prediction\n雨です。,雨です\n寒い。,寒い。\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.csv"
    path.write_text(TEXTS, "utf-8")
    return path


def metrics(folder, language="ja"):
    return results.read_rows(folder / f"metric.{language}.transcribe.jsonl")


def test_a_file_is_scored_and_tables_are_printed(tmp_path, file, capsys):
    run(SCRIPT, "--predictions_file", file, "-l", "ja", "-o", tmp_path / "eval")
    (row,) = metrics(tmp_path / "eval")
    assert (row["model"], row["dataset"]) == ("model", "predictions")
    assert (row["num_rows"], row["cer_norm"]) == (2, 0.0)
    assert row["cer_raw"] == pytest.approx(100 / 7)
    assert "| model | 14.3 |" in capsys.readouterr().out


def test_english_is_scored_with_whispers_spellings_and_rows_without_ids_count(tmp_path):
    if importlib.util.find_spec("whisper") is None:
        pytest.skip("openai-whisper, whose table is read, comes with scripts/test.sh")
    file = tmp_path / "published.csv"
    file.write_text("id,reference,prediction\n,the colour,the color\n,grey,gray\n", "utf-8")
    run(SCRIPT, "--predictions_file", file, "-l", "en", "-o", tmp_path / "eval")
    (row,) = metrics(tmp_path / "eval", "en")
    assert (row["num_rows"], row["normalizer"], row["wer_norm"]) == (2, "whisper-english", 0.0)
    assert row["wer_raw"] == pytest.approx(200 / 3)


def test_the_published_flags_leave_the_same_row(tmp_path, file):
    words = ["--predictions_file", file, "-m", "org/a", "-d", "org/set", "-l", "ja", "-p", "rules"]
    words += ["--dataset_config_name", "c", "--dataset_split_name", "test"]
    run(SCRIPT, *words, "-o", tmp_path / "ours")
    run(REDIRECT, *words, "-o", tmp_path / "theirs")
    assert metrics(tmp_path / "ours") == metrics(tmp_path / "theirs")
    assert metrics(tmp_path / "ours")[0]["split"] == "test"
    before = snapshot(tmp_path / "theirs")
    run(SCRIPT, *words, "-o", tmp_path / "theirs")  # was scored by the other script before
    assert snapshot(tmp_path / "theirs") == before


def test_results_that_are_there_need_no_flags_and_make_a_page(tmp_path, file, capsys):
    run(SCRIPT, "--predictions_file", file, "-l", "ja", "-o", tmp_path / "eval")
    capsys.readouterr()
    before = snapshot(tmp_path / "eval")
    run(SCRIPT, "-o", tmp_path / "eval", "--html", tmp_path / "report.html")
    assert capsys.readouterr().out.startswith("- CER\n\n| model | predictions |")
    assert "model on predictions" in (tmp_path / "report.html").read_text("utf-8")
    assert snapshot(tmp_path / "eval") == before


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no result"):
        run(SCRIPT, "-o", tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--predictions_file", "none.csv", "-t", "sing"],
            [
                "--language is required",
                "--predictions_file none.csv: there is no such file",
                "--task must be one of transcribe, translate; got 'sing'",
            ],
        ),
        (
            ["-d", "a+b+c", "--dataset_split_name", "x+y"],
            [
                "--dataset_split_name names 2, but there are 3 datasets: join 3 with '+', or give "
                "one"
            ],
        ),
    ],
)
def test_wrong_flags_are_named(capsys, words, told):
    with pytest.raises(SystemExit):
        parsed(SCRIPT, words)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()[1:]] == told


def test_as_many_names_as_files(tmp_path, file):
    words = ["--predictions_file", file, "-l", "ja", "-o", tmp_path, "-m", "a+b"]
    with pytest.raises(ValueError, match="names 2, but --predictions_file 1 files"):
        run(SCRIPT, *words)


def test_words_are_japanese_words_only(tmp_path, file):
    words = ["--predictions_file", file, "-l", "en", "-o", tmp_path, "--japanese_words"]
    with pytest.raises(ValueError, match="--japanese_words needs --language ja"):
        run(SCRIPT, *words)


PUBLISHED = SHARED / "data" / "kotoba_predictions"
KOTOBA = "kotoba-whisper-v1.0.ja_asr.common_voice_8_0.csv"


def test_published_predictions_have_the_published_rates(tmp_path, capsys):
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is absent: the published predictions come with ../shared")
    words = ["-m", "kotoba-tech/kotoba-whisper-v1.0", "-d", "cv8", "-l", "ja", "-o", tmp_path]
    run(SCRIPT, "--predictions_file", PUBLISHED / KOTOBA, *words)
    (row,) = metrics(tmp_path)
    rates = (row["cer_norm"], row["wer_norm"], row["cer_raw"])
    assert rates == pytest.approx((9.4, 59.3, 15.6), abs=0.06)
    assert "| kotoba-tech/kotoba-whisper-v1.0 | 9.4 |" in capsys.readouterr().out


def test_a_dry_run_names_the_files_and_writes_nothing(tmp_path, file, capsys):
    run(SCRIPT, "--predictions_file", file, "-l", "ja", "-o", tmp_path / "eval", "--dry_run")
    assert f"data    {file}: 2 predictions" in capsys.readouterr().out
    assert not (tmp_path / "eval").exists()
