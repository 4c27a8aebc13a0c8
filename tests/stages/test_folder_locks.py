"""What evaluates, and what writes a folder as a whole, is alone in its folder too."""

import os
import subprocess
import sys

import pytest
from launching import launch
from stage_runs import run, snapshot
from tiny import REPOSITORY, tiny_model_folder, tone_manifest

from distillery.storage.ownership import LOCK, FolderInUseError

SCORING, STUDENT = "score_predictions.py", "create_student_model.py"
SCRIPTS = [
    "run_short_form_eval.py",
    "run_long_form_eval.py",
    "run_speed_eval.py",
    SCORING,
    STUDENT,
    "scripts/push_pipeline.py",
    "scripts/split_dataset.py",
]

HOLD = """
import sys, time
from pathlib import Path
from distillery.storage.ownership import take_folder
lock = take_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Return each stage's command but for its output folder."""
    root = tmp_path_factory.mktemp("locks")
    model, clips = tiny_model_folder(root / "model"), tone_manifest(root / "clips.jsonl", 2)
    (root / "a.csv").write_text("reference,prediction\n雨。,雨\n", "utf-8")
    evaluated = ["-m", model, "-d", clips, "-l", "ja"]
    return {
        "run_short_form_eval.py": [*evaluated, "--max_label_length", 8],
        "run_long_form_eval.py": [*evaluated, "--max_label_length", 8],
        "run_speed_eval.py": ["-m", model, "-l", "ja", "--lengths_s", 1],
        SCORING: ["--predictions_file", root / "a.csv", "-l", "ja"],
        STUDENT: ["--teacher_checkpoint", model],
        "scripts/push_pipeline.py": ["-m", model],
        "scripts/split_dataset.py": ["-d", clips],
    }


@pytest.fixture(scope="module")
def held(tmp_path_factory, commands):
    """Return a folder with results that another process holds, and that process."""
    folder = tmp_path_factory.mktemp("held") / "out"
    run(SCORING, *commands[SCORING], "-o", folder)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_in_use_is_refused(commands, held, script):
    folder, holder = held
    before = snapshot(folder)
    with pytest.raises(FolderInUseError, match=f"{folder} is in use by process {holder.pid} on"):
        run(script, *commands[script], "-o", folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("script", ["run_short_form_eval.py", STUDENT])
def test_a_user_is_told_who_writes_there(commands, held, script):
    folder, holder = held
    done = launch(script, *commands[script], "-o", folder, check=False)
    assert done.returncode == 1, done.stdout
    assert f"{folder} is in use by process {holder.pid} on" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("script", [SCORING, STUDENT])
def test_a_lock_that_a_killed_writer_left_means_nothing_and_goes(commands, tmp_path, script):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).write_text("process 1 on elsewhere", "utf-8")
    launch(script, *commands[script], "-o", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(names) > 1
    assert LOCK not in names


def test_a_start_that_is_refused_leaves_no_lock(commands, tmp_path):
    words = commands["run_short_form_eval.py"]
    words = [*words, "--text_column_name", "nowhere", "-o", tmp_path / "out"]
    assert launch("run_short_form_eval.py", *words, check=False).returncode == 1
    assert not (tmp_path / "out" / LOCK).exists()


def test_results_are_shown_while_an_evaluation_runs(held):
    folder, _ = held
    assert launch(SCORING, "-o", folder).returncode == 0
