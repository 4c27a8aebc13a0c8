"""A frozen student's encoder that lies in memory once."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model_folder

from distillery.training.shared_encoder import share_encoder
from distillery.training.step import Teacher
from distillery.whisper import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"), encoder_layers=1, decoder_layers=1)


def sharing(folder, dtype):
    """Return a student, as it was loaded and as it is trained, and its teacher."""
    student = checkpoint.load(str(folder))
    student.model.model.encoder.requires_grad_(False)
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    teacher = Teacher(checkpoint.load(str(folder), dtype).model, student.model)
    assert teacher.shares_encoder
    return before, share_encoder(student, teacher), teacher


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_encoder_lies_in_memory_once_and_each_keeps_its_mode(folder, dtype):
    _, student, teacher = sharing(folder, dtype)
    ours, theirs = student.model.model.encoder, teacher.model.model.encoder
    student.model.train()
    assert ours.layers[0].training and not theirs.layers[0].training
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr(), name
        assert not one.requires_grad
    decoder = student.model.model.decoder.parameters()
    assert {(weight.dtype, weight.requires_grad) for weight in decoder} == {(torch.float32, True)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_what_was_loaded_bit_for_bit(folder, tmp_path, dtype):
    before, student, _ = sharing(folder, dtype)
    with torch.no_grad():
        student.model.model.decoder.layer_norm.weight += 1
    student.save(tmp_path / "saved")
    student.save_for_resuming(tmp_path / "checkpoint")
    found = load_file(tmp_path / "saved" / "model.safetensors")
    wanted = load_file(folder / "model.safetensors")
    assert found.keys() == wanted.keys()
    changed = "model.decoder.layer_norm.weight"
    assert [name for name in found if not torch.equal(found[name], before[name])] == [changed]
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_text() == (folder / name).read_text()
    again = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in found.items())
