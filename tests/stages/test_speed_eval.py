import csv
import importlib.util
import json

import numpy as np
import pytest
import soundfile
from command_lines import parsed
from stage_runs import run, snapshot, talkative_model_folder, write_manifest
from tiny import tiny_model_folder, tone_manifest

from distillery.evaluation import results, speed
from distillery.whisper import checkpoint, long_form, memory

SCRIPT = "run_speed_eval.py"
LENGTHS = ["--lengths_s", "1+6"]  # the models' window is 4 s
FORCED = ["--num_tokens", 3]
WORK = ["-l", "ja", *LENGTHS, *FORCED, "--num_runs", 3, "--max_batch_size", 2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def models(root):
    teacher = talkative_model_folder(root / "teacher")
    student = tiny_model_folder(root / "student", decoder_layers=1)
    return teacher, student


@pytest.fixture(scope="module")
def flags(models):
    return ["-m", "+".join(map(str, models)), *WORK]


@pytest.fixture(scope="module")
def measured(root, flags):
    run(SCRIPT, *flags, "-o", root / "speed")
    return root / "speed"


def rows_of(folder):
    return results.read_rows(folder / "speed.jsonl")


def test_every_model_length_and_batch_has_a_row(measured, models):
    rows = rows_of(measured)
    assert [(row["length_s"], row["setting"], row["model"]) for row in rows] == [
        (length_s, setting, str(model))
        for length_s in (1.0, 6.0)
        for setting in ("batch 1", "saturating batch")
        for model in models
    ]
    for row in rows:
        assert row["models"] == [
            [str(model), checkpoint.fingerprint(str(model))] for model in models
        ]
        assert row["sound"] == "made"
        assert row["num_windows"] == row["num_recordings"] * (1 if row["length_s"] == 1 else 2)
        assert row["num_windows"] >= row["batch_size"]
        assert row["sound_s"] == row["num_recordings"] * row["length_s"]
        assert row["rtfx"] == pytest.approx(row["sound_s"] / row["wall_s"])
        assert len(row["rtfx_runs"]) == 3
        assert row["rtfx"] == pytest.approx(sorted(row["rtfx_runs"])[1])
        assert 0 < row["encoder_share"] < row["encoder_share"] + row["decoder_share"] < 1
        assert row["memory_kind"] in (memory.RESIDENT_PEAK, None)
        assert row["device"].startswith("cpu: ")


def test_the_second_model_has_its_ratio_to_the_first(measured):
    for row in rows_of(measured):
        if row["model"].endswith("teacher"):
            assert "speed_ratio" not in row
        else:
            assert row["speed_ratio_low"] < row["speed_ratio"] < row["speed_ratio_high"]


def test_the_search_for_the_batch_is_in_its_row(measured):
    for row in rows_of(measured):
        if row["setting"] == "batch 1":
            assert row["batch_size"] == 1
            assert "search" not in row
        else:
            sizes = [size for size, _ in row["search"]]
            assert sizes == [1, 2]
            assert row["batch_size"] in sizes
            assert row["search_ended_by"] in ("throughput", "largest batch")


def test_table_and_picture_hold_what_the_rows_hold(measured):
    with (measured / "speed.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    rows = rows_of(measured)
    assert [line["model"] for line in found] == [row["model"] for row in rows]
    assert [float(line["rtfx"]) for line in found] == [row["rtfx"] for row in rows]
    assert [line["speed_ratio"] for line in found] == [
        str(row.get("speed_ratio", "")) for row in rows
    ]
    assert (measured / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_shown_and_not_repeated(measured, flags, capsys):
    before = snapshot(measured)
    run(SCRIPT, *flags, "-o", measured)
    run(SCRIPT, measured / "config.yaml")
    told = capsys.readouterr()
    assert told.err.count("all lengths were measured before") == 2
    assert "| speed ratio |" in told.out
    assert "| speed ratio |" not in told.err
    assert snapshot(measured) == before


def test_only_what_is_missing_is_measured(measured, flags, tmp_path):
    lines = (measured / "speed.jsonl").read_text("utf-8").splitlines(keepends=True)
    # The last row of the second length was never written.
    (tmp_path / "speed.jsonl").write_text("".join(lines[:-1]), "utf-8")
    run(SCRIPT, *flags, "-o", tmp_path)
    again = rows_of(tmp_path)[len(lines) - 1 :]
    assert [row["length_s"] for row in again] == [6.0] * 4
    with (tmp_path / "speed.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_dry_run_foretells_and_writes_nothing(measured, flags, capsys, tmp_path):
    before = snapshot(tmp_path)
    run(SCRIPT, *flags, "-o", tmp_path / "new", "--dry_run")
    run(SCRIPT, *flags, "-o", measured, "--dry_run")
    told = capsys.readouterr().out
    assert snapshot(tmp_path) == before
    assert "1+6" not in told
    assert "1 + 6 s at batch 1 and the best batch up to 2, 3 runs each" in told
    assert "0 of 2 lengths were measured before" in told
    assert "2 of 2 lengths were measured before" in told


def test_both_models_write_as_many_ids_as_asked_for(monkeypatch, flags, tmp_path):
    written = []

    def spy(*args):
        for key, one in original(*args):
            written.append(len(one.ids) - 4)
            yield key, one

    original = long_form.transcribe_stream
    monkeypatch.setattr(long_form, "transcribe_stream", spy)
    run(SCRIPT, *flags, "--lengths_s", 1, "-o", tmp_path)
    assert set(written) == {3}


def test_sound_of_a_dataset_and_its_bad_clips(models, tmp_path, capsys, monkeypatch):
    manifest = tone_manifest(tmp_path / "clips.jsonl", 3)
    (tmp_path / "noise.flac").write_bytes(b"no sound at all" * 100)
    good = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    entries = [good[0], {"id": "bad", "audio": "noise.flac"}, *good[1:]]
    broken = write_manifest(tmp_path / "broken.jsonl", entries)
    flags = ["-m", models[1], "-d", broken, *WORK, "--lengths_s", 1, "-o", tmp_path / "speed"]
    with pytest.raises(ValueError, match=r"broken.jsonl: 1 of 4 clips cannot be used; .*--max_bad"):
        run(SCRIPT, *flags)

    heard = []
    monkeypatch.setattr(speed, "cut", lambda sound, *args: heard.append(sound) or [sound])
    run(SCRIPT, *flags, "--max_bad_fraction", 0.5)
    told = capsys.readouterr().err
    assert "clip bad cannot be decoded" in told
    wanted = [soundfile.read(tmp_path / row["audio"])[0] for row in good]
    assert heard[0] == pytest.approx(np.concatenate(wanted), abs=1e-4)
    (row, _) = rows_of(tmp_path / "speed")
    assert row["num_bad"] == 1
    ((name, fingerprint),) = row["sound"]
    assert name.startswith(str(broken))
    assert fingerprint


def test_without_matplotlib_there_is_a_table_and_a_word(models, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *at: None if name == "matplotlib" else find(name, *at),
    )
    run(SCRIPT, "-m", models[1], *WORK, "--lengths_s", 1, "-o", tmp_path)
    assert "speed.png was not drawn: pip install matplotlib" in capsys.readouterr().err
    assert (tmp_path / "speed.csv").exists()
    assert not (tmp_path / "speed.png").exists()


def test_models_that_do_other_work_are_refused(models, tmp_path):
    short = tiny_model_folder(tmp_path / "short", window_s=2)
    with pytest.raises(ValueError, match=r"windows of \[4.0, 2.0\] s do not do the same work"):
        run(SCRIPT, "-m", f"{models[1]}+{short}", *WORK, "-o", tmp_path)
    with pytest.raises(ValueError, match="--num_tokens 500: a window has room for 92"):
        run(SCRIPT, "-m", models[1], *WORK, "--num_tokens", 500, "-o", tmp_path)


def test_wrong_flags_are_all_reported(capsys):
    argv = [
        "-m",
        "m+n",
        "--model_revision",
        "main",
        "--lengths_s",
        "10+x",
        "--num_runs",
        "2",
        "--min_growth",
        "-1",
    ]
    with pytest.raises(SystemExit):
        parsed(SCRIPT, argv)
    told = capsys.readouterr().err
    assert "--lengths_s must be numbers above 0, joined with '+'; got 10+x" in told
    assert "--model_revision: for one model" in told
    assert "--num_runs must be >= 3, got 2" in told
    assert "--min_growth must be >= 0, got -1" in told
    assert "dataset_name" not in told
