"""Labelling as an array job, and on a Ray cluster of two workers of which one is killed."""

import subprocess
import sys

import psutil
import pytest
from launching import environment, wait_until
from stage_runs import assert_same_labels, record, run, talkative_model_folder
from tiny import REPOSITORY, tone_manifest

SCRIPT = "run_pseudo_labelling.py"
NUM_CLIPS = 16
NUM_SHARES = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def flags(root):
    """Sixteen shards of one clip."""
    return [
        *("-m", talkative_model_folder(root / "teacher")),
        *("-d", tone_manifest(root / "clips" / "clips.jsonl", NUM_CLIPS)),
        *("-l", "ja", "--max_label_length", 24, "--rows_per_shard", 1, "-b", 1),
    ]


@pytest.fixture(scope="module")
def labelled(root, flags):
    run(SCRIPT, *flags, "-o", root / "labelled")
    return root / "labelled"


def test_tasks_of_an_array_job(tmp_path, flags, labelled):
    for index in range(NUM_SHARES):
        task = {
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_ARRAY_TASK_ID": str(index + 1),
            "SLURM_ARRAY_TASK_MIN": "1",
            "SLURM_ARRAY_TASK_COUNT": str(NUM_SHARES),
        }
        subprocess.run(
            ["bash", "scripts/launch/slurm_labelling.sh", *map(str, flags), "-o", str(tmp_path)],
            cwd=REPOSITORY,
            env=environment(task),
            check=True,
        )
        assert record(tmp_path)["status"] == ("complete" if index else "started")
    assert_same_labels(tmp_path, labelled)


def label_tasks(driver):
    """Return the workers that label, as Ray names them."""
    return [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if "ray::label" in process.name() or "ray::label" in " ".join(process.cmdline())
    ]


def test_ray_tries_again_where_a_worker_dies(tmp_path, flags, labelled):
    out = tmp_path / "out"
    words = ["--num_shards", NUM_SHARES, "--", *flags, "-o", out]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "scripts/launch/ray_labelling.py", *map(str, words)],
            cwd=REPOSITORY,
            env=environment({"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: any(out.glob(".labels/*/*/*.seal.json")), 180)
            label_tasks(driver)[0].kill()
            assert driver.wait(240) == 0, (tmp_path / "log").read_text()
        finally:
            driver.terminate()
            driver.wait(60)
    assert record(out)["status"] == "complete"
    assert_same_labels(out, labelled)
