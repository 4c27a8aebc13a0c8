import numpy as np
import onnxruntime
import pytest
import torch
from exported import clips_of, decoding_of, original_texts, read_by
from stage_runs import talkative_model_folder

from distillery.whisper import checkpoint
from distillery.whisper.exports import onnx_format

GRAPHS = {"encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "model"
    talkative_model_folder(folder, seed=5, encoder_layers=1, decoder_layers=2)
    return checkpoint.load(str(folder))


@pytest.fixture(scope="module")
def export(whisper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    onnx_format.write(whisper, folder, "float32")
    return folder


def test_onnxruntime_writes_what_the_original_does(whisper, export):
    assert {path.name for path in export.iterdir()} >= GRAPHS
    texts = original_texts(whisper, clips_of(4))
    assert len(set(texts)) > 2
    assert read_by(onnx_format, whisper, export, clips_of(4)) == {"onnxruntime": texts}


def test_the_folder_has_what_a_program_needs_beside_the_graphs(whisper, export):
    processor = checkpoint.load_processor(str(export))
    assert processor.tokens == whisper.tokens
    assert processor.log_mel.window_s == 4


def test_graphs_take_any_number_of_clips(whisper, export):
    features = whisper.log_mel(clips_of(3))
    prefix = whisper.tokens.prefix("ja", decoding_of(whisper).task, timestamps=False)
    encoder, decoder = (
        onnxruntime.InferenceSession(export / name)
        for name in ("encoder_model.onnx", "decoder_model.onnx")
    )
    (states,) = encoder.run(None, {"input_features": features.numpy()})
    ids = np.array([prefix] * 3)
    logits, *_ = decoder.run(None, {"input_ids": ids, "encoder_hidden_states": states})
    with torch.inference_mode():
        expected = whisper.model(features, decoder_input_ids=torch.from_numpy(ids)).logits
    assert np.allclose(logits, expected, atol=1e-3)


def test_weights_in_8_bits_of_a_model_too_large_for_one_file(
    whisper, export, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_format, "MOST_BYTES", 1000)
    before = {name: weight.clone() for name, weight in whisper.model.state_dict().items()}
    onnx_format.write(whisper, tmp_path, "int8")
    names = {path.name for path in tmp_path.iterdir()}
    assert GRAPHS | {f"{name}.data" for name in GRAPHS} <= names
    encoder = "encoder_model.onnx.data"
    assert (tmp_path / encoder).stat().st_size < (export / "encoder_model.onnx").stat().st_size
    (texts,) = read_by(onnx_format, whisper, tmp_path, clips_of(2)).values()
    assert len(texts) == 2 and all(texts)
    after = whisper.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert whisper.model.proj_out.weight is whisper.model.model.decoder.embed_tokens.weight
