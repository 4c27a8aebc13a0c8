import json
import subprocess
import sys

import numpy as np
import pytest
from launching import environment
from pipeline_parts import GENERATION, sound
from stage_runs import record, run, snapshot, talkative_model_folder
from tiny import tiny_punctuator_folder
from transformers import pipeline

from distillery.cli import hub
from distillery.whisper import checkpoint
from distillery.whisper.pipelines.recognition import RecognitionPipeline

SCRIPT = "scripts/push_pipeline.py"

# What a user's program does, in a process that knows nothing of this repository.
PROGRAM = """
import json, sys
import numpy as np
from transformers import pipeline

folder, clips, options, calls = sys.argv[1], np.load(sys.argv[2]), *map(json.loads, sys.argv[3:])
recognise = pipeline(model=folder, trust_remote_code=True, **options)
assert "distillery" not in sys.modules
print(type(recognise).__module__)
print(json.dumps([recognise(clips[name], **call) for name in clips for call in calls]))
"""

CALLS = [
    {},
    {"return_timestamps": True},
    {"stable_ts": True},
    {"stable_ts": True, "chunk_length_s": 2, "batch_size": 2},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = talkative_model_folder(tmp_path_factory.mktemp("push") / "student")
    checkpoint.write_card(folder, "A student.")
    return folder


@pytest.fixture(scope="module")
def saved(model):
    folder = model.with_name("student-v1.1")
    run(SCRIPT, "-m", model, "-o", folder)
    return folder


def test_saved_pipeline_does_in_a_fresh_process_what_it_does_here(saved, stable_ts, tmp_path):
    clips = {"short": sound(-0.5, 2, -0.5), "long": sound(-1, 1.5, -1)}
    np.savez(tmp_path / "clips.npz", **clips)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    folder = tiny_punctuator_folder(tmp_path / "p", dict.fromkeys(letters, "。"), letters)
    options = {"punctuator": str(folder), "generate_kwargs": GENERATION}
    words = [saved, tmp_path / "clips.npz", json.dumps(options), json.dumps(CALLS)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=environment({"PYTHONPATH": str(stable_ts), "HF_MODULES_CACHE": str(tmp_path / "m")}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module, answers = done.stdout.splitlines()
    assert module.startswith("transformers_modules.")
    loaded = checkpoint.load(str(saved))
    here = RecognitionPipeline(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        feature_extractor=loaded.feature_extractor,
        **options,
    )
    wanted = [here(clip, **call) for clip in clips.values() for call in CALLS]
    assert json.loads(answers) == json.loads(json.dumps(wanted))
    assert any("。" in answer["text"] for answer in wanted)


def test_a_users_consent_is_needed_and_the_plain_pipeline_is_still_there(saved):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline(model=str(saved))
    plain = pipeline("automatic-speech-recognition", model=str(saved))
    assert type(plain).__module__.startswith("transformers.pipelines")
    assert set(plain(sound(1), generate_kwargs={**GENERATION, "num_beams": 1})) == {"text"}


def test_saved_folder_is_the_model_and_the_pipeline(model, saved):
    pipeline_files = {"recognition.py", "punctuation.py", "silence.py"}
    names = {path.name for path in saved.iterdir()}
    assert names == {path.name for path in model.iterdir()} | pipeline_files | {
        "run.json",
        "manifest.json",
    }
    assert (saved / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    config = json.loads((saved / "config.json").read_text("utf-8"))
    assert config.pop("custom_pipelines") == {
        "whisper-distillery": {
            "impl": "recognition.RecognitionPipeline",
            "pt": ["WhisperForConditionalGeneration"],
        }
    }
    assert config == json.loads((model / "config.json").read_text("utf-8"))
    assert record(saved)["stage"] == "push_pipeline"


def test_card_says_what_to_install_and_how_to_load(model, saved):
    card = (saved / "README.md").read_text("utf-8")
    assert card.startswith((model / "README.md").read_text("utf-8").rstrip())
    assert "pip install punctuators" in card
    assert "pip install stable-ts torchaudio" in card
    assert 'model="student-v1.1", trust_remote_code=True' in card


def test_second_start_does_nothing(model, saved):
    before = snapshot(saved)
    run(SCRIPT, "-m", model, "-o", saved)
    assert snapshot(saved) == before


def test_pipeline_of_a_pipeline_has_its_instructions_once(saved, tmp_path):
    run(SCRIPT, "-m", saved, "-o", tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text("utf-8")
    assert card.count("## Punctuation and timestamps") == 1
    assert 'model="again"' in card


def test_model_without_a_card_gets_one(model, tmp_path):
    bare = talkative_model_folder(tmp_path / "bare")
    run(SCRIPT, "-m", bare, "-o", tmp_path / "named")
    card = (tmp_path / "named" / "README.md").read_text("utf-8")
    assert "\n# named\n" in card
    assert "pipeline_tag: automatic-speech-recognition" in card


def test_folders_of_something_else_are_left_alone(model, saved, tmp_path):
    before = snapshot(model)
    with pytest.raises(ValueError, match="is not empty: name another folder"):
        run(SCRIPT, "-m", model, "-o", model, "--overwrite_output_dir")
    assert snapshot(model) == before
    other = talkative_model_folder(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        run(SCRIPT, "-m", other, "-o", saved)
    run(SCRIPT, "-m", other, "-o", tmp_path / "copy")
    (tmp_path / "copy" / "mine.txt").write_text("x")
    run(SCRIPT, "-m", other, "-o", tmp_path / "copy", "--overwrite_output_dir")
    assert (tmp_path / "copy" / "mine.txt").read_text() == "x"


def test_what_is_no_whisper_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(ValueError, match="not a Whisper checkpoint"):
        run(SCRIPT, "-m", tmp_path, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_upload_is_private_unless_asked_otherwise(model, saved, monkeypatch):
    calls = []
    monkeypatch.setattr(hub, "check", lambda run: None)
    monkeypatch.setattr(
        hub, "_upload", lambda run, name: calls.append((name, run.arguments["hub_public"]))
    )
    run(SCRIPT, "-m", model, "-o", saved)
    run(SCRIPT, "-m", model, "-o", saved, "--push_to_hub", "--hub_model_id", "me/x")
    run(SCRIPT, "-m", model, "-o", saved, "--push_to_hub", "--hub_public")
    assert calls == [("me/x", False), ("student-v1.1", True)]


def test_model_of_the_hub_is_fetched(model, tmp_path, monkeypatch):
    asked = []

    def fetch(repo_id, **options):
        asked.append((repo_id, options))
        return str(model)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    run(SCRIPT, "-m", "me/student", "--model_revision", "v2", "-o", tmp_path / "out")
    assert asked == [
        ("me/student", {"allow_patterns": hub.MODEL_FILES, "revision": "v2", "cache_dir": None})
    ]
    assert (tmp_path / "out" / "recognition.py").exists()
