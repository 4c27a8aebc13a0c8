from dataclasses import replace

import numpy as np
import pytest
import soundfile
from stage_runs import english_only, talkative_model_folder
from tiny import SAMPLE_RATE, spoken

from distillery.audio.decoding import AudioError
from distillery.evaluation.side_by_side import Listener, answers, languages_of
from distillery.text.subtitles import read_subtitles
from distillery.whisper import checkpoint
from distillery.whisper.decoding import Decoding

ASKED = Decoding(None, "transcribe", timestamps=True, num_beams=1, max_length=24)


def listener(folder, name):
    return Listener(name, checkpoint.load(str(folder)), batch_size=2, asked=ASKED)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("side-by-side")
    soundfile.write(root / "talk.wav", spoken(0.5, 1.0, 1.0, 0.5)[0], SAMPLE_RATE)
    return root


@pytest.fixture(scope="module")
def listeners(root):
    """A teacher with a window of 4 s, and a student with one of 2 s."""
    teacher = talkative_model_folder(root / "teacher", seed=1)
    student = talkative_model_folder(root / "student", seed=2, decoder_layers=1, window_s=2)
    return [listener(teacher, "org/teacher"), listener(student, str(student))]


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("language", ["ja", None])
def test_both_hear_all_of_a_long_recording(root, listeners, language, timestamps):
    found = answers(listeners, root / "talk.wav", language, "transcribe", timestamps)
    assert [answer.model for answer in found] == ["org/teacher", str(root / "student")]
    for answer in found:
        assert answer.heard.text
        assert answer.heard.segments[-1].end > 6.0
        assert answer.audio_s == pytest.approx(soundfile.info(root / "talk.wav").duration)
        assert answer.wall_s > 0
        assert "times faster than real time" in answer.summary
    assert found[0].heard.text != found[1].heard.text


def test_subtitles_are_those_of_the_model(root, listeners, tmp_path):
    for answer in answers(listeners, root / "talk.wav", "ja", "transcribe", True):
        path = answer.write_srt(tmp_path / "new", "my talk/1")
        assert path.parent == tmp_path / "new"
        assert path.suffix == ".srt"
        starts = {round(s.start * 1000) for s in answer.heard.segments if s.text.strip()}
        assert {cue.start_ms for cue in read_subtitles(path).cues} == starts
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_improbable_windows_are_decoded_again_where_that_is_asked_for(listeners, root):
    again = replace(listeners[0], asked=replace(ASKED, temperature_fallback=True))
    plain, drawn = answers([listeners[0], again], root / "talk.wav", "ja", "transcribe", True)
    assert plain.heard.text != drawn.heard.text


def test_silence_is_no_text(listeners, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE, np.int16), SAMPLE_RATE)
    for timestamps in (True, False):
        found = answers(listeners, tmp_path / "silence.wav", "ja", "transcribe", timestamps)
        assert [answer.heard.text for answer in found] == ["", ""]


def test_what_cannot_be_answered_is_told(listeners, root, tmp_path):
    (tmp_path / "broken.flac").write_bytes(b"no audio")
    with pytest.raises(AudioError, match="cannot be decoded"):
        answers(listeners, tmp_path / "broken.flac", "ja", "transcribe", True)
    with pytest.raises(ValueError, match="Whisper has no language 'xx'"):
        answers(listeners, root / "talk.wav", "xx", "transcribe", True)


def test_languages_are_those_that_all_know(listeners, root):
    assert {"ja", "en", "de"} < set(languages_of(listeners))
    english = listener(english_only(talkative_model_folder(root / "english", seed=3)), "english")
    assert languages_of([listeners[0], english]) == []
    (answer,) = answers([english], root / "talk.wav", "en", "transcribe", True)
    assert answer.heard.text
