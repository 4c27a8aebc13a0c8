"""The pipeline in this process; `tests/stages/test_push_pipeline.py` saves it and loads it."""

import sys

import numpy as np
import pytest
from pipeline_parts import GENERATION, Parrot, sound
from stage_runs import talkative_model_folder
from tiny import REPOSITORY, SAMPLE_RATE
from transformers.dynamic_module_utils import get_imports

from distillery.cli import hub
from distillery.whisper import checkpoint
from distillery.whisper.pipelines import recognition
from distillery.whisper.pipelines.punctuation import ModelPunctuator, punctuate_by_rules
from distillery.whisper.pipelines.recognition import RecognitionPipeline, finish
from distillery.whisper.pipelines.silence import fit_to_silence


def chunk(start, end, text):
    return {"timestamp": (start, end), "text": text}


def times(chunks):
    return [c["timestamp"] for c in chunks]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def recognise(loaded):
    return RecognitionPipeline(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        feature_extractor=loaded.feature_extractor,
        generate_kwargs=dict(GENERATION),
    )


def test_times_move_out_of_silence_and_texts_stay(stable_ts):
    audio = sound(-1, 2, -1, 2, -1)
    chunks = [chunk(0.0, 3.5, "雨です"), chunk(3.5, 7.0, "寒いです")]
    fitted = fit_to_silence(chunks, audio, SAMPLE_RATE)
    assert [c["text"] for c in fitted] == ["雨です", "寒いです"]
    ((start, end), (later, last)) = times(fitted)
    assert (start, end) == pytest.approx((1.0, 3.0), abs=0.1)
    assert (later, last) == pytest.approx((4.0, 6.0), abs=0.1)
    assert all(type(time) is float for time in (start, end, later, last))


def test_times_inside_sound_stay(stable_ts):
    chunks = [chunk(0.5, 1.5, "a"), chunk(1.5, 2.5, "b")]
    assert times(fit_to_silence(chunks, sound(3), SAMPLE_RATE)) == [(0.5, 1.5), (1.5, 2.5)]


def test_missing_times_are_filled_from_the_neighbours_and_the_recording(stable_ts):
    chunks = [chunk(None, 1.0, "a"), chunk(None, None, ""), chunk(2.0, None, "c"), chunk(9, 9, "d")]
    wanted = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 3.0)]
    assert times(fit_to_silence(chunks, sound(3), SAMPLE_RATE)) == wanted


def test_disordered_times_are_no_error(stable_ts):
    chunks = [chunk(2.0, 1.0, "a"), chunk(0.5, 1.0, "b")]
    assert times(fit_to_silence(chunks, sound(3), SAMPLE_RATE)) == [(2.0, 2.0), (0.5, 1.0)]


@pytest.mark.parametrize("num_samples", [0, 1, 100])
def test_hardly_any_sound_is_no_error(stable_ts, num_samples):
    assert fit_to_silence([], sound(1)[:num_samples], SAMPLE_RATE) == []
    (found,) = fit_to_silence([chunk(0.0, 0.5, "a")], sound(1)[:num_samples], SAMPLE_RATE)
    assert found["text"] == "a"


def test_times_are_fixed_before_texts_are_punctuated(stable_ts):
    audio = {"raw": sound(-1, 2), "sampling_rate": SAMPLE_RATE}
    (found,) = finish([chunk(0.0, 3.0, "雨です")], punctuate_by_rules, audio)
    assert found["text"] == "雨です。"
    assert found["timestamp"] == pytest.approx((1.0, 3.0), abs=0.1)
    assert finish([{"text": "雨です"}], None, None) == [{"text": "雨です"}]


def test_without_the_packages_a_clear_error_comes_first(recognise, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_whisper", None)
    with pytest.raises(ImportError, match=r"pip install stable-ts, and the torchaudio that fits"):
        recognise(sound(1), stable_ts=True)
    monkeypatch.setitem(sys.modules, "punctuators.models.punc_cap_seg_model", None)
    with pytest.raises(ImportError, match="pip install punctuators"):
        recognise(sound(1), punctuator=True)


def test_an_unfitting_torchaudio_is_named(stable_ts, monkeypatch):
    (stable_ts / "torchaudio.py").write_text("raise OSError('libcudart is missing')", "utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "stable_whisper"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"stable-ts \(libcudart is missing\): pip install"):
        fit_to_silence([chunk(0.0, 1.0, "a")], sound(1), SAMPLE_RATE)


def test_plain_use_is_greedy_and_has_text_alone(recognise, loaded, monkeypatch):
    asked = []
    generate = loaded.model.generate
    monkeypatch.setattr(
        loaded.model, "generate", lambda **o: asked.append(o["num_beams"]) or generate(**o)
    )
    assert set(recognise(sound(2))) == {"text"}
    recognise(sound(2), generate_kwargs={**GENERATION, "num_beams": 2})
    assert asked == [1, 2]


@pytest.mark.parametrize("options", [{}, {"chunk_length_s": 3, "batch_size": 2}])
def test_timestamps_and_chunks(recognise, stable_ts, options):
    audio = sound(-0.7, 2, -0.8, 2, -1.5)  # longer than the window
    plain = recognise(audio, return_timestamps=True, **options)
    fitted = recognise(audio, stable_ts=True, **options)
    assert set(fitted) == {"text", "chunks"}
    assert fitted["text"] == plain["text"] == "".join(c["text"] for c in fitted["chunks"])
    assert times(fitted["chunks"]) == times(fit_to_silence(plain["chunks"], audio, SAMPLE_RATE))
    assert times(fitted["chunks"]) != times(plain["chunks"])


def test_a_call_leaves_nothing_behind(recognise, stable_ts):
    plain = recognise(sound(-1, 2))
    recognise(sound(-1, 2), stable_ts=True, punctuator="rules", num_beams=2)
    assert recognise(sound(-1, 2)) == plain == {"text": plain["text"]}


def test_several_recordings_keep_their_own_sound(recognise, stable_ts):
    recordings = [sound(-1, 2), sound(2, -1), sound(-0.5, 1)]
    together = recognise(list(recordings), stable_ts=True, batch_size=2, chunk_length_s=2)
    alone = [recognise(r, stable_ts=True, chunk_length_s=2) for r in recordings]
    assert together == alone


@pytest.mark.parametrize("options", [{}, {"return_timestamps": True}, {"stable_ts": True}])
def test_punctuation_goes_into_text_and_chunks(recognise, stable_ts, monkeypatch, options):
    audio = sound(-0.5, 2, -0.5)
    plain = recognise(audio, **options)
    first = plain["text"].strip()[0]
    model = ModelPunctuator(Parrot(plain["text"].replace(first, f"{first}。")))
    monkeypatch.setattr(recognition, "load_punctuator", lambda name: {"mine": model}[name])
    found = recognise(audio, punctuator="mine", **options)
    assert found["text"].replace("。", "") == plain["text"]
    assert found["text"] != plain["text"]
    if options:
        assert times(found["chunks"]) == times(plain["chunks"])
        assert "".join(c["text"] for c in found["chunks"]) == found["text"]
    assert recognise(audio, punctuator="mine", **options) == found
    assert recognise(audio, punctuator=False, **options) == plain


def test_sound_comes_as_array_dict_file_or_decoder(recognise, stable_ts, tmp_path, monkeypatch):
    audio = sound(-0.5, 2)
    stereo = np.stack([audio, audio])

    class Samples:
        data, sample_rate = stereo, SAMPLE_RATE

    class Decoder:
        def get_all_samples(self):
            return Samples

    # There need not be an ffmpeg where the tests run.
    monkeypatch.setattr(
        recognition, "ffmpeg_read", lambda content, rate: np.frombuffer(content, "<f4")
    )
    file = tmp_path / "sound.raw"
    file.write_bytes(audio.tobytes())
    wanted = recognise(audio, stable_ts=True)
    given = {"raw": audio, "sampling_rate": SAMPLE_RATE}
    for other in (
        given,
        {"array": stereo, "sampling_rate": SAMPLE_RATE, "path": None},
        str(file),
        audio.tobytes(),
        Decoder(),
    ):
        assert recognise(other, stable_ts=True) == wanted
    assert set(given) == {"raw", "sampling_rate"}


def test_saved_modules_import_nothing_that_a_user_lacks():
    files = sorted((REPOSITORY / "distillery" / "whisper" / "pipelines").glob("[a-z]*.py"))
    needed = {name for file in files for name in get_imports(file)} - {*sys.stdlib_module_names}
    assert needed == {"numpy", "transformers"}
    assert {file.name for file in files} <= {*hub.MODEL_FILES}
