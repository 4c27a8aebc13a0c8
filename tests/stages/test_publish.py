"""Cards of what a chain of stages makes, and `scripts/publish.py`, which completes and uploads."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from hub_server import HubServer, Repository
from huggingface_hub import DatasetCard, ModelCard, constants
from huggingface_hub.utils import close_session
from stage_runs import read_manifest, record, run, snapshot, talkative_model_folder
from tiny import REPOSITORY, tone_manifest
from training_runs import DISTILLATION

from distillery.cli import hub
from distillery.whisper import checkpoint

PUBLISH, EVALUATION = "scripts/publish.py", "run_short_form_eval.py"
NUM_CLIPS = 6
LICENSE = ["--license", "cc-by-4.0"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run all stages from clips to an evaluated student, in one folder."""
    root = tmp_path_factory.mktemp("canary")
    teacher = talkative_model_folder(root / "teacher")
    clips = tone_manifest(root / "clips.jsonl", NUM_CLIPS)
    spoken = ["-l", "ja"]
    length = ["--max_label_length", 80]
    labelled, filtered, init = (root / name for name in ("labelled", "filtered", "init"))
    run(
        "run_pseudo_labelling.py",
        "-m",
        teacher,
        "-d",
        clips,
        *spoken,
        *length,
        *LICENSE,
        "-o",
        labelled,
    )
    run("run_data_filtering.py", "-d", labelled, "--wer_threshold", 1e6, *LICENSE, "-o", filtered)
    run("create_student_model.py", "-m", teacher, "--decoder_layers", 1, *LICENSE, "-o", init)
    run(DISTILLATION, *training_flags(root), "-o", root / "student")
    run(
        EVALUATION,
        "-m",
        root / "student",
        "-d",
        clips,
        *spoken,
        "--generation_max_length",
        20,
        "-o",
        root / "eval",
    )
    return root


def training_flags(root):
    return [
        *("-m", root / "init", "--teacher", root / "teacher", "-d", root / "filtered"),
        *("--max_steps", 2, "--per_device_train_batch_size", 2, *LICENSE),
        *("-l", "ja"),
    ]


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        server.reach(monkeypatch)
        monkeypatch.setattr(hub, "FIRST_WAIT_S", 0.01)
        close_session()
        yield server
    close_session()


@pytest.fixture
def student(chain, tmp_path):
    """Return a student of its own, with the evaluation of it."""
    run(DISTILLATION, *training_flags(chain), "-o", tmp_path / "student")
    rows = read_manifest(chain / "eval" / "metric.ja.transcribe.jsonl")
    (tmp_path / "eval").mkdir()
    evaluated = {**rows[-1], "model": str(tmp_path / "student")}
    evaluated["model_fingerprint"] = checkpoint.fingerprint(evaluated["model"])
    for name in ("me/bench", str(chain / "clips.jsonl")):
        line = json.dumps({**evaluated, "dataset": name, "config": "ja", "split": "test"})
        with (tmp_path / "eval" / "metric.ja.transcribe.jsonl").open("a") as file:
            file.write(f"{line}\n")
    return tmp_path / "student"


def test_the_card_of_labels_has_teacher_hours_and_a_row(chain):
    card = DatasetCard((chain / "labelled" / "README.md").read_text("utf-8"))
    assert card.data.language == "ja"
    assert card.data.license == "cc-by-4.0"
    assert card.data.task_categories == ["automatic-speech-recognition"]
    assert "`clips.jsonl` was transcribed by `teacher`." in card.text
    hours = record(chain / "labelled")["hours"]["out"]
    assert f"| out | {NUM_CLIPS} | {hours:.2f} |" in card.text
    assert "| `id` | " in card.text
    assert "| `whisper_transcript` | " in card.text
    assert "`audio`" not in card.text
    assert str(chain) not in card.text


def test_the_card_of_a_filtered_set_has_limits_and_reasons(chain):
    card = DatasetCard((chain / "filtered" / "README.md").read_text("utf-8"))
    account = record(chain / "filtered")
    assert "within the limits: `wer_threshold` 1000000.0, `max_label_length` 448." in card.text
    assert account["ledger"]["dropped"]
    for reason, count in account["ledger"]["dropped"].items():
        assert f"| {reason} | {count} | {account['hours'][reason]:.2f} |" in card.text
    assert sum(account["hours"][name] for name in ("out", *account["ledger"]["dropped"])) == (
        pytest.approx(account["hours"]["in"])
    )
    assert "was transcribed by `teacher`" in card.text  # and where it comes from
    assert 'load_dataset("filtered", split="train")' in card.text


def test_the_card_of_a_student_has_use_training_losses_and_data(chain):
    card = ModelCard((chain / "student" / "README.md").read_text("utf-8"))
    header = (card.data.language, card.data.license, card.data.pipeline_tag)
    assert header == ("ja", "cc-by-4.0", "automatic-speech-recognition")
    assert 'model="student"' in card.text
    assert "WhisperModel(" in card.text and "whisper-cli" in card.text
    assert "2 updates." in card.text
    assert "| `learning_rate` | 0.0001 |" in card.text
    assert "chars_to_ignore" not in card.text  # nothing is
    assert "![losses](loss.png)" in card.text
    assert (chain / "student" / "loss.png").read_bytes().startswith(b"\x89PNG")
    for reason in record(chain / "filtered")["ledger"]["dropped"]:
        assert f"| {reason} | " in card.text
    assert str(chain) not in card.text


def test_a_figure_that_is_gone_is_not_missed(student, chain, capsys):
    (student / "loss.png").unlink()
    run(DISTILLATION, *training_flags(chain), "-o", student)
    assert "is complete: nothing to do" in capsys.readouterr().err


def test_results_are_put_into_the_card_and_the_users_words_stay(student):
    path = student / "README.md"
    path.write_text(path.read_text("utf-8").replace("## Data", "Mine.\n\n## Data"), "utf-8")
    flags = ["-m", student, "--eval_results", student.with_name("eval"), "--license", "mit"]
    run(PUBLISH, *flags)
    once = path.read_text("utf-8")
    run(PUBLISH, *flags)
    assert path.read_text("utf-8") == once
    card = ModelCard(once)
    assert "Mine." in card.text and "## Data" in card.text
    assert card.data.license == "mit"
    row = read_manifest(student.with_name("eval") / "metric.ja.transcribe.jsonl")[0]
    found = {
        (each.dataset_type, each.metric_type): each.metric_value for each in card.data.eval_results
    }
    assert found["clips.jsonl", "cer"] == found["me/bench", "cer"] == round(row["cer_norm"], 2)
    low, high = row["ci"]["wer_norm"]
    assert f"{row['wer_norm']:.1f} ({low:.1f} to {high:.1f})" in card.text
    assert card.data.metrics == ["cer", "wer"]


def test_results_of_a_model_that_was_trained_again_are_not_taken(student):
    (student / "config.json").touch()
    with pytest.raises(ValueError, match="has changed since it was evaluated: evaluate it again"):
        run(PUBLISH, "-m", student, "--eval_results", student.with_name("eval"))


def test_results_on_benchmarks_go_where_the_hub_reads_them(student, chain, server):
    tasks = [{"id": "other", "config": "en", "split": "test"}]
    tasks += [{"id": "read_speech", "config": "ja", "split": "test"}]
    server.repositories["datasets", "me/bench"] = Repository(
        False, {"eval.yaml": yaml.safe_dump({"name": "Bench", "tasks": tasks}).encode()}
    )
    results = ["--eval_results", student.with_name("eval"), "--hub_model_id", "me/student"]
    run(PUBLISH, "-m", student, *results)
    files = server.files("me/student")
    row = read_manifest(student.with_name("eval") / "metric.ja.transcribe.jsonl")[0]
    (entry,) = yaml.safe_load(files[".eval_results/me_bench.yaml"])
    assert entry["dataset"] == {"id": "me/bench", "task_id": "read_speech"}
    assert entry["value"] == round(row["cer_norm"], 2)
    assert 'model="me/student"' in files["README.md"].decode()
    assert all(str(chain).encode() not in sent for sent in server.received)
    assert all(str(student.parent).encode() not in sent for sent in server.received)
    # The training command sends the same again: it knows of what was added.
    kept = snapshot(student)
    num_commits = len(server.repositories["models", "me/student"].commits)
    run(DISTILLATION, *training_flags(chain), "-o", student, "--hub_model_id", "me/student")
    assert snapshot(student) == kept
    assert ".eval_results/me_bench.yaml" in server.files("me/student")
    assert len(server.repositories["models", "me/student"].commits) <= num_commits + 1


def test_the_hub_is_asked_before_the_card_is_changed(student, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = snapshot(student)
    with pytest.raises(hub.HubError, match="HF_HUB_OFFLINE is set"):
        run(PUBLISH, "-m", student, "--license", "mit", "--hub_model_id", "me/student")
    assert snapshot(student) == before


def test_what_cannot_be_published_is_refused(chain, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run\.json: no stage has finished it"):
        run(PUBLISH, "-m", tmp_path)
    with pytest.raises(ValueError, match="a run of run_short_form_eval that is shared"):
        run(PUBLISH, "-m", chain / "eval")
    with pytest.raises(ValueError, match=r"holds no result of .*init, but of .*student"):
        run(PUBLISH, "-m", chain / "init", "--eval_results", chain / "eval")
    (tmp_path / "run.json").write_text(
        '{"stage": "run_speed_eval", "status": "complete", "arguments": {}, "inputs": {}}'
    )
    with pytest.raises(ValueError, match="holds no model or dataset: it has no card"):
        run(PUBLISH, "-m", tmp_path)


@pytest.mark.parametrize("script", [PUBLISH, "scripts/push_pipeline.py"])
def test_a_script_in_a_subfolder_runs_from_a_bare_clone(script, tmp_path):
    done = subprocess.run(
        [sys.executable, REPOSITORY / script, "--help"],
        env={**os.environ, "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
