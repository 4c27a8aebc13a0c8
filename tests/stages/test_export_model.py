import json
import shutil

import numpy as np
import onnxruntime
import pytest
import soundfile
from command_lines import parsed
from hub_server import HubServer
from huggingface_hub import ModelCard
from launching import kill, launch
from stage_runs import (
    read_manifest,
    record,
    run,
    snapshot,
    talkative_model_folder,
    write_manifest,
)
from tiny import SAMPLE_RATE, tone_manifest, whisper_sized_tokenizer

from distillery.whisper.exports import formats

SCRIPT = "export_model.py"
ORIGINAL, CTRANSLATE2, FASTER = "original", "ctranslate2", "faster-whisper"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of 4 s, a student of Whisper's size, and clips."""
    root = tmp_path_factory.mktemp("place")
    talkative_model_folder(root / "model")
    talkative_model_folder(
        root / "student",
        encoder_layers=1,
        decoder_layers=2,
        window_s=30,
        max_target_positions=448,
        feed_forward_ratio=4,
        tokenizer=whisper_sized_tokenizer(),
    )
    tone_manifest(root / "clips.jsonl", 6)
    return root


def command(place, kind, model="model", *more):
    words = ["--format", kind, "-m", place / model, "-d", place / "clips.jsonl", "-l", "ja"]
    return [*words, "--max_label_length", 16, *more]


@pytest.fixture(scope="module")
def uploaded(place):
    """An export in two quantisations, made and uploaded as users do, with what was printed."""
    words = command(place, CTRANSLATE2, "student", "--quantization", "float32+int8")
    upload = ["--hub_model_id", "me/exported", "--license", "mit", "-o", place / "exported"]
    with HubServer() as server:
        env = server.environment(HF_HOME=str(place / "hf-home"))
        yield server, launch(SCRIPT, *words, *upload, env=env).stdout


@pytest.fixture(scope="module")
def exported(place, uploaded):
    """The same folder, and what was printed."""
    return place / "exported", uploaded[1]


def compared(folder):
    return {(row["program"], row["weights"]): row for row in record(folder)["comparison"]}


def test_the_comparison_is_printed_recorded_and_in_the_card(exported):
    folder, printed = exported
    rows = compared(folder)
    quantizations = ("float32", "int8")
    programs = [(name, kind) for kind in quantizations for name in (CTRANSLATE2, FASTER)]
    assert [*rows] == [(ORIGINAL, "float32"), *programs]
    exact = rows[CTRANSLATE2, "float32"]
    assert (exact["identical"], exact["num_clips"], exact["cer_to_original"]) == (6, 6, 0)
    assert exact["cer"] == rows[ORIGINAL, "float32"]["cer"] > 0
    assert exact["seconds"] > 0 and exact["speed"] > 0
    assert rows[CTRANSLATE2, "int8"]["megabytes"] < exact["megabytes"]
    card = (folder / "README.md").read_text("utf-8")
    for row in rows.values():
        line = f"| {row['program']} | {row['weights']} | {row['megabytes']:.2f} |"
        assert line in printed and line in card
    assert "`student` for CTranslate2 and faster-whisper" in card
    assert str(folder.parent) not in card


def test_the_record_lists_what_was_written(exported):
    folder, _ = exported
    written = record(folder)
    assert (written["status"], written["ledger"]["out"]) == ("complete", 6)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {*written["files"], "run.json"} == there


def test_what_is_uploaded_is_the_export_and_no_text_of_the_clips(uploaded, place):
    server, _ = uploaded
    files = server.files("me/exported")
    assert {"float32/model.bin", "int8/tokenizer.json", "README.md", "run.json"} <= files.keys()
    assert not [name for name in files if "transcripts" in name]
    assert not [sent for sent in server.received if str(place).encode() in sent]
    header = ModelCard(files["README.md"].decode()).data
    assert (header.library_name, header.license, header.language) == ("ctranslate2", "mit", "ja")


def test_a_second_start_does_nothing(exported, place, capsys):
    folder, _ = exported
    before = snapshot(folder)
    words = command(place, CTRANSLATE2, "student", "--quantization", "float32+int8")
    run(SCRIPT, *words, "-o", folder)
    assert snapshot(folder) == before
    assert "is complete: nothing to do" in capsys.readouterr().err


def test_a_damaged_file_is_made_again_alone(exported, place, tmp_path, capsys):
    again = shutil.copytree(exported[0], tmp_path / "again")
    weights = (again / "int8" / "model.bin").read_bytes()
    (again / "int8" / "model.bin").write_bytes(weights[:1000])
    before = snapshot(again)
    words = command(place, CTRANSLATE2, "student", "--quantization", "float32+int8")
    run(SCRIPT, *words, "-o", again)
    assert "model.bin is damaged" in capsys.readouterr().err
    assert (again / "int8" / "model.bin").read_bytes() == weights
    after = snapshot(again)
    kept = [name for name in before if name.startswith(("float32/", ".transcripts/"))]
    assert kept and {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert compared(again).keys() == compared(exported[0]).keys()


def test_a_killed_run_goes_on(place, tmp_path):
    out = tmp_path / "out"
    words = command(place, CTRANSLATE2, "model", "--quantization", "float32+int8", "-o", out)
    kill(SCRIPT, "distillery.whisper.exports.ctranslate_format:write", 2, *words)
    assert record(out)["status"] == "started"
    before = snapshot(out)
    whole = [name for name in before if name.startswith(("float32/", ".transcripts/"))]
    assert {"float32/model.bin", ".transcripts/float32.json"} <= {*whole}
    run(SCRIPT, *words)
    after = snapshot(out)
    assert {name: after[name] for name in whole} == {name: before[name] for name in whole}
    assert not [name for name in after if ".tmp" in name]
    assert [*compared(out)] == [
        (ORIGINAL, "float32"),
        (CTRANSLATE2, "float32"),
        (CTRANSLATE2, "int8"),
    ]


def test_whisper_cpp_from_start_to_end(place, tmp_path, capsys):
    words = command(place, "ggml", "student", "--max_samples", 3, "-o", tmp_path / "out")
    run(SCRIPT, *words)
    row = compared(tmp_path / "out")["whisper.cpp", "float16"]
    assert (row["identical"], row["num_clips"]) == (3, 3)
    assert (tmp_path / "out" / "float16" / "ggml-model.bin").is_file()


@pytest.mark.parametrize("named", ["flag", "model"])
def test_a_language_is_told_to_the_programs_by_its_code(place, tmp_path, named):
    folder = shutil.copytree(place / "student", tmp_path / "student")
    words = ["--format", CTRANSLATE2, "-m", folder, "-d", place / "clips.jsonl"]
    words += ["--max_label_length", 16, "--max_samples", 1]
    if named == "flag":
        words += ["-l", "Japanese"]
    else:
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**settings, "language": "japanese"}), "utf-8")
    run(SCRIPT, *words, "-o", tmp_path / "out")
    assert (FASTER, "float32") in compared(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert 'language="ja"' in card
    assert ModelCard(card).data.language == "ja"


def test_onnx_in_half_precision_from_start_to_end(place, tmp_path):
    talkative_model_folder(tmp_path / "model", encoder_layers=1, decoder_layers=1)
    words = command(place, "onnx", tmp_path / "model", "--quantization", "float16")
    run(SCRIPT, *words, "-o", tmp_path / "out")
    rows = compared(tmp_path / "out")
    original, half = rows[ORIGINAL, "float32"], rows["onnxruntime", "float16"]
    assert half["num_clips"] == 6 and half["cer_to_original"] < 50
    assert original["identical"] == 6
    folder = tmp_path / "out" / "float16"
    session = onnxruntime.InferenceSession(folder / "decoder_with_past_model.onnx")
    assert session.get_inputs()[1].type == "tensor(float16)"


def test_what_a_program_cannot_do_is_said(place, tmp_path, capsys):
    run(SCRIPT, *command(place, CTRANSLATE2), "-o", tmp_path / "out")
    (limit,) = record(tmp_path / "out")["limits"]
    assert "faster-whisper cannot run this model" in limit
    assert limit in capsys.readouterr().err
    assert limit in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_model_that_the_format_cannot_hold_is_refused(place, tmp_path):
    for more in ([], ["--dry_run"]):
        with pytest.raises(ValueError, match=r"--format ggml: whisper\.cpp cannot hold this model"):
            run(SCRIPT, *command(place, "ggml"), "-o", tmp_path / "out", *more)
    assert not [*tmp_path.glob("out/float16*")]
    # The corrected command takes the folder.
    run(SCRIPT, *command(place, CTRANSLATE2), "-o", tmp_path / "out")


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(place, tmp_path, capsys):
    words = command(place, CTRANSLATE2, "model", "--quantization", "float16+int8", "--dry_run")
    run(SCRIPT, *words, "-o", tmp_path / "out")
    told = capsys.readouterr().out
    assert "ctranslate2 in float16, int8" in told
    assert "6 rows" in told
    assert not (tmp_path / "out").exists()


def test_clips_that_cannot_be_used_are_counted(place, tmp_path, capsys):
    entries = read_manifest(place / "clips.jsonl")
    for entry in entries:
        entry["audio"] = str(place / entry["audio"])
    silence = np.zeros(5 * SAMPLE_RATE, np.float32)
    soundfile.write(tmp_path / "long.flac", silence, SAMPLE_RATE)
    clips = write_manifest(
        tmp_path / "clips.jsonl", [*entries, {"id": "long", "audio": "long.flac", "text": ""}]
    )
    words = ["--format", CTRANSLATE2, "-m", place / "model", "-d", clips, "-l", "ja"]
    run(SCRIPT, *words, "--max_label_length", 16, "-o", tmp_path / "out")
    ledger = record(tmp_path / "out")["ledger"]
    assert (ledger["in"], ledger["out"], ledger["quarantined"]) == (7, 6, {"too_long": 1})
    assert "clip long" in capsys.readouterr().err
    with pytest.raises(ValueError, match="1 of 7 rows cannot be used"):
        run(SCRIPT, *words, "--max_bad_fraction", 0, "-o", tmp_path / "other")


def test_clips_without_references_have_no_error_rate(place, tmp_path):
    entries = [{**entry, "text": ""} for entry in read_manifest(place / "clips.jsonl")]
    for entry in entries:
        entry["audio"] = str(place / entry["audio"])
    clips = write_manifest(tmp_path / "clips.jsonl", entries)
    words = ["--format", CTRANSLATE2, "-m", place / "model", "-d", clips, "-l", "ja"]
    run(SCRIPT, *words, "--max_label_length", 16, "-o", tmp_path / "out")
    row = compared(tmp_path / "out")[CTRANSLATE2, "float32"]
    assert (row["cer"], row["identical"]) == (None, 6)


def test_wrong_flags_are_told_together(capsys):
    with pytest.raises(SystemExit):
        parsed(SCRIPT, ["--format", "ggml", "--quantization", "float32+int4", "-l", "xx"])
    told = capsys.readouterr().err
    assert "--quantization of ggml must be of float16, int8; got 'float32'" in told
    assert "got 'int4'" in told
    assert "--language" in told and "--dataset_name is required" in told
    with pytest.raises(SystemExit):
        parsed(SCRIPT, ["--format", "gguf"])
    assert "--format must be one of ctranslate2, ggml, onnx; got 'gguf'" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch, capsys):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if "whisper" in name else name)
    with pytest.raises(SystemExit):
        parsed(SCRIPT, ["--format", CTRANSLATE2, "-m", "x", "-d", "y", "-o", "z"])
    told = capsys.readouterr().err
    assert "pip install faster-whisper (the extra 'ctranslate2' of this project)" in told


def test_a_multilingual_model_needs_a_language(place, tmp_path):
    settings = json.loads((place / "model" / "generation_config.json").read_text("utf-8"))
    assert settings.get("language") is None
    words = ["--format", CTRANSLATE2, "-m", place / "model", "-d", place / "clips.jsonl"]
    with pytest.raises(ValueError, match="needs a language: see --language"):
        run(SCRIPT, *words, "-o", tmp_path / "out")
