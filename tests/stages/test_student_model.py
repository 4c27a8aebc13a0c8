import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import kill
from stage_runs import record, run, snapshot, talkative_model_folder
from tiny import load_script, tiny_model_folder
from transformers import (
    AutoProcessor,
    WhisperForConditionalGeneration,
    pipeline,
)

from distillery.storage.checkpoints import find_damage
from distillery.whisper import checkpoint

SCRIPT = "create_student_model.py"
FILES = {
    "README.md",
    "config.json",
    "config.yaml",
    "generation_config.json",
    "manifest.json",
    "merges.txt",
    "model.safetensors",
    "normalizer.json",
    "preprocessor_config.json",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = talkative_model_folder(tmp_path_factory.mktemp("student") / "teacher")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8"))
    heads = [[0, 0], [2, 3], [3, 1]]
    path.write_text(json.dumps({**settings, "alignment_heads": heads}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def student(teacher):
    folder = teacher.parent / "student"
    run(SCRIPT, "--teacher_checkpoint", teacher, "--decoder_layers", 2, "--save_dir", folder)
    return folder


def weights(folder):
    return WhisperForConditionalGeneration.from_pretrained(folder).state_dict()


def layers(state, stack):
    return {int(key.split(".")[3]) for key in state if key.startswith(f"model.{stack}.layers.")}


@pytest.mark.parametrize(
    ("flags", "encoder", "decoder", "heads"),
    [
        (["--decoder_layers", 2], [0, 1], [0, 3], [[0, 0], [1, 1]]),
        (["--decoder_layers", 1], [0, 1], [3], [[0, 1]]),
        (["--encoder_layers", 1, "--decoder_layers", 3], [1], [0, 1, 3], [[0, 0], [2, 1]]),
        (["--decoder_layers_numbers", 1, -1], [0, 1], [1, 3], [[1, 1]]),
        (["--decoder_layers_numbers", 0], [0, 1], [0], [[0, 0]]),
        (["--encoder_layers_numbers", 0], [0], [0, 3], [[0, 0], [1, 1]]),
    ],
)
def test_the_right_layers_are_copied_and_all_else(
    tmp_path, teacher, flags, encoder, decoder, heads
):
    out = tmp_path / "student"
    run(SCRIPT, "--teacher_checkpoint", teacher, *flags, "--save_dir", out)
    old, new = weights(teacher), weights(out)
    assert layers(new, "encoder") == set(range(len(encoder)))
    assert layers(new, "decoder") == set(range(len(decoder)))
    for key, tensor in new.items():
        parts = key.split(".")
        if len(parts) > 3 and parts[2] == "layers":
            kept = encoder if parts[1] == "encoder" else decoder
            parts[3] = str(kept[int(parts[3])])
        assert torch.equal(tensor, old[".".join(parts)]), key

    config = json.loads((out / "config.json").read_text("utf-8"))
    assert (config["encoder_layers"], config["decoder_layers"]) == (len(encoder), len(decoder))
    assert config["copied_layers"] == {"encoder": encoder, "decoder": decoder}
    generation = json.loads((out / "generation_config.json").read_text("utf-8"))
    assert generation["alignment_heads"] == heads
    assert record(out)["status"] == "complete"
    assert (record(out)["encoder_layers"], record(out)["decoder_layers"]) == (encoder, decoder)


def test_the_folder_is_whole_and_loads_everywhere(student):
    assert {path.name for path in student.iterdir()} == FILES
    assert find_damage(student) is None
    model = WhisperForConditionalGeneration.from_pretrained(student)
    assert model.generation_config.lang_to_id["<|ja|>"] > 0
    assert AutoProcessor.from_pretrained(student).feature_extractor.chunk_length == 4

    recogniser = pipeline("automatic-speech-recognition", str(student))
    sound = np.sin(np.arange(16_000) * 0.1).astype(np.float32)
    # The pipeline's own default is five beams.
    options = {"num_beams": 1, "language": "ja", "max_new_tokens": 12}
    assert isinstance(recogniser(sound, generate_kwargs=options)["text"], str)


def test_dtype_of_the_weights(tmp_path, teacher):
    flags = ["--teacher_checkpoint", teacher, "--dtype", "bfloat16", "--save_dir", tmp_path / "s"]
    run(SCRIPT, *flags)
    assert checkpoint.load(str(tmp_path / "s"), "bfloat16").model.dtype == torch.bfloat16
    config = json.loads((tmp_path / "s" / "config.json").read_text("utf-8"))
    assert config["dtype"] == "bfloat16"


def test_second_start_does_nothing(student, teacher, capsys, monkeypatch):
    before = snapshot(student)
    run(SCRIPT, "--teacher_checkpoint", teacher, "--decoder_layers", 2, "--save_dir", student)
    assert "is complete: nothing to do" in capsys.readouterr().err
    monkeypatch.chdir(student.parent)  # another spelling of the same folder
    run(SCRIPT, "--teacher_checkpoint", teacher, "--decoder_layers", 2, "--save_dir", "student")
    assert snapshot(student) == before


def test_other_flags_are_refused_by_name(student, teacher):
    before = snapshot(student)
    with pytest.raises(ValueError, match=r"--decoder_layers: 2 then, 1 now\s+name another folder$"):
        run(SCRIPT, "--teacher_checkpoint", teacher, "--decoder_layers", 1, "-o", student)
    assert snapshot(student) == before


def test_a_teacher_that_was_trained_again_is_refused(tmp_path):
    teacher = tiny_model_folder(tmp_path / "teacher")
    flags = ["--teacher_checkpoint", teacher, "--save_dir", tmp_path / "student"]
    run(SCRIPT, *flags)
    tiny_model_folder(teacher, seed=1)
    with pytest.raises(ValueError, match="teacher: its content has changed"):
        run(SCRIPT, *flags)


def test_foreign_folder_is_refused_and_kept(tmp_path, teacher):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--save_dir .* is not empty: name another folder"):
        run(SCRIPT, "--teacher_checkpoint", teacher, "--save_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_failure_while_saving_leaves_nothing_under_the_name(tmp_path, teacher, monkeypatch):
    flags = ["--teacher_checkpoint", teacher, "--save_dir", tmp_path / "student"]
    save = checkpoint.save

    def fail(*args):
        save(*args)
        Path(args[-1], "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(checkpoint, "save", fail)
        run(SCRIPT, *flags)
    assert not (tmp_path / "student").exists()
    run(SCRIPT, *flags)
    assert {path.name for path in (tmp_path / "student").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_kill_while_saving_leaves_nothing_under_the_name(tmp_path, teacher):
    flags = ["--teacher_checkpoint", teacher, "--save_dir", tmp_path / "student"]
    kill(SCRIPT, "distillery.storage.checkpoints:sync", 3, *flags)
    left = [path.name for path in tmp_path.iterdir()]
    assert left
    assert all(name.startswith(".student.") for name in left)  # hidden: a lock, a folder half made
    assert not (tmp_path / "student").exists()
    run(SCRIPT, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert find_damage(tmp_path / "student") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoder_layers", 5], r"--decoder_layers: a student of 5 .* ask for 1 to 4"),
        (["--encoder_layers", 3], r"--encoder_layers: a student of 3 .* ask for 1 to 2"),
        (["--decoder_layers_numbers", 0, 4], r"_numbers 4: the teacher has 4 .* 0 to 3"),
        (["--decoder_layers_numbers", 3, -1], r"_numbers \[3, -1\]: a layer is copied once"),
    ],
)
def test_too_many_layers_are_named(tmp_path, teacher, flags, message):
    with pytest.raises(ValueError, match=message):
        run(SCRIPT, "--teacher_checkpoint", teacher, *flags, "--save_dir", tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_too_few_layers_are_named_with_whatever_else_is_wrong(capsys):
    with pytest.raises(SystemExit):
        load_script(SCRIPT).parse(
            (load_script(SCRIPT).StudentArguments,), ["--decoder_layers", "0", "--dtype", "int8"]
        )
    told = capsys.readouterr().err
    assert "--decoder_layers must be >= 1, got 0" in told
    assert "--dtype must be one of float32, float16, bfloat16; got 'int8'" in told
    assert "--teacher_checkpoint is required" in told
    assert "--save_dir is required" in told


def test_weight_that_is_not_a_number_is_named(tmp_path):
    teacher = tiny_model_folder(tmp_path / "teacher")
    loaded = checkpoint.load(str(teacher))
    with torch.no_grad():
        loaded.model.model.decoder.layers[1].fc1.weight[3, 4] = float("nan")
    checkpoint.save(loaded.model, loaded.tokenizer, loaded.feature_extractor, teacher)
    with pytest.raises(
        ValueError, match=r"weight model\.decoder\.layers\.1\.fc1\.weight holds NaN"
    ):
        run(SCRIPT, "--teacher_checkpoint", teacher, "--save_dir", tmp_path / "student")
    assert not (tmp_path / "student").exists()
