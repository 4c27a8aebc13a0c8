import pytest
from tiny import load_script

from distillery.storage.json_lines import append_row

table = load_script("scripts/chunk_length_table.py")


def write(folder, chunk_length_s, cer, rtfx=10.0, **changes):
    row = {
        "form": "long_form",
        "model": "/m/student",
        "dataset": "talks.jsonl",
        "split": "test",
        "algorithm": "chunked",
        "normalizer": "whisper-basic+no-spaces",
        "long_form": {"chunk_length_s": chunk_length_s, "stride_length_s": None},
        "cer_norm": cer,
        "wer_norm": 100.0 - cer,
        "cer_raw": cer,
        "wer_raw": 100.0 - cer,
        "num_loops": 0,
        "rtfx": rtfx,
    }
    append_row(folder / "metric.ja.transcribe.jsonl", {**row, **changes})


def test_table_and_best(tmp_path, capsys):
    write(tmp_path, 30.0, 7.0)
    write(tmp_path, 15.0, 5.0)
    write(tmp_path, 25.0, 5.0, rtfx=20.0)
    write(tmp_path, 15.0, 4.5, algorithm="sequential", long_form={})
    table.main([str(tmp_path)])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| student")]
    assert [line.split("|")[4].strip() for line in lines] == ["15.0", "25.0", "30.0"]
    assert "best for student on talks.jsonl: --chunk_length_s 25 (cer_norm 5.0)" in printed


def test_each_model_has_a_best_one_by_its_own_metric(tmp_path):
    write(tmp_path, 15.0, 5.0)
    write(tmp_path, 30.0, 4.0)
    write(tmp_path, 15.0, 5.0, model="/m/teacher", normalizer="whisper-english")
    write(tmp_path, 30.0, 4.0, model="/m/teacher", normalizer="whisper-english")
    found = table.best_results(table.chunked_results(tmp_path))
    best = [(result.model, result.more["long_form"]["chunk_length_s"]) for result in found]
    assert best == [("/m/student", 30.0), ("/m/teacher", 15.0)]


def test_a_repeated_evaluation_counts_once_with_its_newest_figures(tmp_path):
    write(tmp_path, 15.0, 5.0)
    write(tmp_path, 15.0, 6.0)
    assert [result.cer_norm for result in table.chunked_results(tmp_path)] == [6.0]


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no chunked evaluation"):
        table.main([str(tmp_path)])
