"""Stages hand each other datasets and models through a stand-in of the Hub, as users start them."""

import json
import shlex
import signal
import subprocess
import sys
import uuid

import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard
from launching import command, environment, launch, wait_until
from stage_runs import record, snapshot, talkative_model_folder
from tiny import REPOSITORY, tone_manifest

LABELLING, FILTERING = "run_pseudo_labelling.py", "run_data_filtering.py"
STUDENT, DISTILLATION = "create_student_model.py", "run_distillation.py"
EVALUATION, PUBLISHING = "run_short_form_eval.py", "scripts/publish.py"

# What a user's program does elsewhere, in a process that knows nothing of this repository.
PROGRAM = """
import json, sys
from datasets import load_dataset
import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

rows = load_dataset("me/labelled", split="train")
stream = load_dataset("me/labelled", split="train", streaming=True)
model = WhisperForConditionalGeneration.from_pretrained("me/student")
processor = WhisperProcessor.from_pretrained("me/student")
recognise = pipeline("automatic-speech-recognition", model="me/student")
short = {"num_beams": 1, "max_new_tokens": 5}
said = recognise(np.zeros(8000, np.float32), generate_kwargs=short)["text"]
transcripts = [list(rows["whisper_transcript"]), [row["whisper_transcript"] for row in stream]]
print(json.dumps([*transcripts, model.config.decoder_layers, len(processor.tokenizer), said]))
"""


@pytest.fixture
def server(tmp_path):
    with HubServer() as server:
        server.token = f"hf_canary{uuid.uuid4().hex}"
        yield server


@pytest.fixture
def env(server, tmp_path):
    return server.environment(HF_HOME=str(tmp_path / "hf-home"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return talkative_model_folder(tmp_path_factory.mktemp("hub") / "teacher")


def test_a_recipe_runs_from_hub_id_to_hub_id_and_tells_no_folder(server, env, teacher, tmp_path):
    root = tmp_path / f"canary-{uuid.uuid4().hex}"
    clips = tone_manifest(root / "clips" / "clips.jsonl", 4)
    said = [
        launch(
            LABELLING,
            *("-m", teacher, "-d", clips, "-l", "ja", "--max_label_length", 80),
            *("-o", root / "labels", "--hub_model_id", "me/labelled"),
            env=env,
        ),
        launch(
            FILTERING,
            *("-m", teacher, "-d", "me/labelled", "-l", "ja", "-o", root / "filtered"),
            *("--hub_model_id", "my-org/filtered"),
            env=env,
        ),
        launch(
            STUDENT,
            *("--teacher_checkpoint", teacher, "-o", root / "init"),
            *("--hub_model_id", "me/init"),
            env=env,
        ),
        launch(
            DISTILLATION,
            *("-m", "me/init", "--teacher", teacher, "-d", "my-org/filtered", "-l", "ja"),
            *("--max_steps", 2, "--save_steps", 1, "--per_device_train_batch_size", 2),
            *("--push_to_hub", "--hub_model_id", "me/student", "-o", root / "student"),
            env=env,
        ),
        launch(
            EVALUATION,
            *("-m", "me/student", "-d", "me/labelled", "-l", "ja", "-o", root / "eval"),
            *("--generation_max_length", 20),
            env=env,
        ),
        launch(
            PUBLISHING,
            *("-m", root / "student", "--eval_results", root / "eval"),
            *("--hub_model_id", "me/student"),
            env=env,
        ),
    ]
    assert sorted(server.files("me/student")) == [
        *("README.md", "config.json", "generation_config.json", "loss.png", "merges.txt"),
        *("model.safetensors", "normalizer.json", "preprocessor_config.json", "run.json"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.json"),
    ]
    assert all(repository.is_private for repository in server.repositories.values())
    for sent in server.received:
        assert root.name.encode() not in sent
        assert str(tmp_path).encode() not in sent
        assert str(teacher.parent).encode() not in sent
        assert server.token.encode() not in sent
    for path in root.rglob("*"):
        assert path.is_dir() or server.token.encode() not in path.read_bytes()
    assert not [done for done in said if server.token in done.stdout]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(env), "PYTHONPATH": ""},
        cwd=tmp_path,
        check=True,
    )
    rows, stream, num_layers, num_tokens, said = json.loads(done.stdout)
    assert rows == stream
    assert len(rows) == 4
    assert num_layers == 2
    assert num_tokens > 256
    assert isinstance(said, str)
    results = ModelCard(server.files("me/student")["README.md"].decode()).data.eval_results
    assert {(each.dataset_type, each.metric_type) for each in results} == {
        ("me/labelled", "wer"),
        ("me/labelled", "cer"),
    }


def test_a_hub_that_is_down_is_told_before_anything_is_written(server, env, teacher, tmp_path):
    words = ["--teacher_checkpoint", teacher, "-o", tmp_path / "out", "--push_to_hub"]
    server.faults["whoami"] = [503] * 100
    server.retry_after = "3600"
    done = launch(STUDENT, *words, env=env, check=False)
    assert done.returncode == 1
    assert "the Hub answers 503 and asks to wait 3600 s" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "out").exists()
    planned = launch(STUDENT, *words, "--dry_run", env=env)
    assert "will be uploaded as out, private; NOT POSSIBLE NOW: the Hub answers" in planned.stdout


def test_a_result_that_could_not_be_uploaded_is_uploaded_by_the_same_command(
    server, env, teacher, tmp_path
):
    clips = tone_manifest(tmp_path / "clips" / "clips.jsonl", 2)
    words = ["-m", teacher, "-d", clips, "-l", "ja", "--max_label_length", 20]
    words += ["-o", tmp_path / "out", "--hub_model_id", "me/labelled"]
    server.faults["create"] = [504] * 100
    server.retry_after = "3600"
    done = launch(LABELLING, *words, env=env, check=False)
    assert done.returncode == 1
    assert f"{tmp_path / 'out'} is complete, but was not uploaded as me/labelled" in done.stdout
    (told,) = (line for line in done.stdout.splitlines() if "is complete, but" in line)
    assert "The same command, started again, uploads it" in told
    assert "Traceback" not in done.stdout
    assert record(tmp_path / "out")["status"] == "complete"
    before = snapshot(tmp_path / "out")
    server.faults.clear()
    # The command that the message names, and the same one again.
    script, *named = shlex.split(told.split("so does: python ")[1])
    launch(script, *named, env=env)
    assert "run.json" in server.files("me/labelled", "datasets")
    del server.repositories["datasets", "me/labelled"]
    launch(LABELLING, *words, env=env)
    assert "run.json" in server.files("me/labelled", "datasets")
    assert snapshot(tmp_path / "out") == before


def test_a_kill_during_the_upload_and_a_rerun_complete(server, env, teacher, tmp_path):
    words = ["--teacher_checkpoint", teacher, "-o", tmp_path / "out", "--push_to_hub"]
    server.faults["put"] = ["stall"]
    process = subprocess.Popen(
        command(STUDENT, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=environment(env),
    )
    try:
        wait_until(lambda: server.counts["put"] == 1, 120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not server.files("me/out")
    launch(STUDENT, *words, env=env)
    assert "model.safetensors" in server.files("me/out")
    assert len(server.repositories["models", "me/out"].commits) == 1
