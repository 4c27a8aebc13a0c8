"""An output folder is no input, and has one writer."""

import signal
import subprocess

import pytest
from launching import command, environment, launch, wait_until
from stage_runs import run, snapshot, talkative_model_folder
from tiny import REPOSITORY, tone_manifest
from training_runs import FINETUNING, manifest, model_folder

LABELLING, FILTERING = "run_pseudo_labelling.py", "run_data_filtering.py"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Return a labelled dataset and the flags it was made with."""
    root = tmp_path_factory.mktemp("folders")
    teacher = talkative_model_folder(root / "teacher")
    flags = ["-m", teacher, "-l", "ja", "--max_label_length", 20, "-b", 2]
    clips = tone_manifest(root / "clips" / "clips.jsonl", 4)
    run(LABELLING, *flags, "-d", clips, "-o", root / "labelled")
    return root / "labelled", flags


@pytest.mark.parametrize("overwrite", [[], ["--overwrite_output_dir"]])
@pytest.mark.parametrize("inside", ["", "more"])
def test_an_input_is_never_written_to(labelled, overwrite, inside):
    folder, flags = labelled
    before = snapshot(folder)
    with pytest.raises(ValueError, match=f"--output_dir .* the input {folder}"):
        run(LABELLING, *flags, "-d", folder, "-o", folder / inside, *overwrite)
    with pytest.raises(ValueError, match=f"--output_dir .* the input {folder}"):
        run(FILTERING, "-d", folder, "-o", folder / inside, *overwrite)
    assert snapshot(folder) == before


def test_a_folder_around_an_input_is_refused(labelled):
    folder, flags = labelled
    before = snapshot(folder.parent)
    with pytest.raises(ValueError, match=f"holds the input {folder}"):
        run(LABELLING, *flags, "-d", folder, "-o", folder.parent)
    assert snapshot(folder.parent) == before


def test_a_model_is_not_trained_into_its_own_folder_or_its_data(tmp_path):
    rows, model = manifest(tmp_path / "data" / "rows.jsonl"), model_folder(tmp_path / "model")
    flags = ["-m", model, "-d", rows, "--language", "ja", "--max_steps", 1]
    for folder in (model, tmp_path / "data"):
        before = snapshot(folder)
        with pytest.raises(ValueError, match=r"--output_dir .* the input"):
            run(FINETUNING, *flags, "-o", folder)
        assert snapshot(folder) == before


def test_a_second_trainer_of_one_folder_is_told_who_the_first_is(tmp_path):
    rows, model = manifest(tmp_path / "rows.jsonl"), model_folder(tmp_path / "model", 2)
    flags = ["-m", model, "-d", rows, "--language", "ja", "--max_steps", 100_000]
    flags += ["--per_device_train_batch_size", 4, "--logging_steps", 1, "-o", tmp_path / "out"]
    first = subprocess.Popen(
        command(FINETUNING, *flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=environment(),
    )
    try:
        wait_until(lambda: (tmp_path / "out" / "train_log.jsonl").exists(), 120)
        second = launch(FINETUNING, *flags, check=False)
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert second.returncode == 1
    assert f"is in use by process {first.pid} on" in second.stdout
    assert "Traceback" not in second.stdout
