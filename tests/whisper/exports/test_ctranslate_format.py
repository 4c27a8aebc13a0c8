import json

import numpy as np
import pytest
import torch
from exported import clips_of, original_texts, read_by
from faster_whisper import WhisperModel
from stage_runs import english_only, talkative_model_folder

from distillery.whisper import checkpoint
from distillery.whisper.exports import ctranslate_format

FILES = {
    "config.json",
    "model.bin",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocabulary.json",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model with a window of 4 s and a vocabulary of its own."""
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("small") / "model")))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A model with Whisper's window, two decoder layers, and heads that its teacher had."""
    folder = talkative_model_folder(
        tmp_path_factory.mktemp("sized") / "model",
        encoder_layers=1,
        decoder_layers=2,
        window_s=30,
    )
    whisper = checkpoint.load(str(folder))
    whisper.model.generation_config.alignment_heads = [[3, 0], [2, 5]]
    return whisper


@pytest.fixture(scope="module")
def export(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    ctranslate_format.write(student, folder, "float32")
    return folder


def test_ctranslate2_writes_what_the_original_does(small, tmp_path):
    ctranslate_format.write(small, tmp_path, "float32")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    texts = original_texts(small, clips_of(4))
    assert len(set(texts)) > 2
    assert read_by(ctranslate_format, small, tmp_path, clips_of(4)) == {"ctranslate2": texts}


def test_an_english_only_model_needs_no_language(tmp_path):
    folder = english_only(talkative_model_folder(tmp_path / "model", seed=5))
    whisper = checkpoint.load(str(folder))
    (tmp_path / "export").mkdir()
    ctranslate_format.write(whisper, tmp_path / "export", "float32")
    texts = original_texts(whisper, clips_of(3))
    read = read_by(ctranslate_format, whisper, tmp_path / "export", clips_of(3))
    assert read["ctranslate2"] == texts


def test_faster_whisper_writes_the_same_for_a_full_window(student, export):
    # Of a shorter clip it hears zeros behind the end, where Whisper hears silence.
    full = [np.tile(clip, 30)[: 30 * 16_000] for clip in clips_of(2)]
    texts = original_texts(student, full)
    assert all(texts)
    read = read_by(ctranslate_format, student, export, full)
    assert read == {"ctranslate2": texts, "faster-whisper": texts}


def test_faster_whisper_times_the_words_of_a_student(export):
    heads = json.loads((export / "config.json").read_text("utf-8"))["alignment_heads"]
    assert heads == [[1, 0], [1, 1], [1, 2], [1, 3]]
    model = WhisperModel(str(export), device="cpu", cpu_threads=1)
    clip = np.tile(clips_of(1)[0], 8)
    options = {"beam_size": 1, "temperature": 0.0, "max_new_tokens": 40}
    segments, _ = model.transcribe(clip, language="ja", word_timestamps=True, **options)
    words = [word for segment in segments for word in segment.words]
    assert words
    assert all(0 <= word.start <= word.end <= 30 for word in words)


@pytest.mark.parametrize(("quantization", "most"), [("float16", 0.6), ("int8", 0.5)])
def test_quantised_weights_are_smaller_and_leave_the_original_alone(
    small, tmp_path, quantization, most
):
    before = {name: weight.clone() for name, weight in small.model.state_dict().items()}
    ctranslate_format.write(small, tmp_path, quantization)
    size = (tmp_path / "model.bin").stat().st_size
    assert size < most * small.num_bytes
    assert len(read_by(ctranslate_format, small, tmp_path, clips_of(2))["ctranslate2"]) == 2
    after = small.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_ids_that_may_not_be_written_are_kept_from_the_export(small, tmp_path):
    ctranslate_format.write(small, tmp_path, "int8")
    settings = json.loads((tmp_path / "config.json").read_text("utf-8"))
    generation = small.model.generation_config
    assert settings["suppress_ids"] == generation.suppress_tokens
    assert settings["suppress_ids_begin"] == generation.begin_suppress_tokens
    assert settings["lang_ids"] == sorted(small.tokens.languages.values())


def test_what_faster_whisper_cannot_run_is_said_and_not_tried(small, student, tmp_path):
    assert ctranslate_format.limits(student) == []
    (limit,) = ctranslate_format.limits(small)
    assert "it fills every window up to 30 s, and this one hears 4 s" in limit
    ctranslate_format.write(small, tmp_path, "float32")
    assert set(read_by(ctranslate_format, small, tmp_path, clips_of(1))) == {"ctranslate2"}
