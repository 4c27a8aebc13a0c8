"""A stage that is told to stop saves and leaves, and does not outlive its launcher."""

import signal
import subprocess

import psutil
import pytest
from launching import command, environment, wait_until
from tiny import REPOSITORY
from training_runs import FINETUNING, manifest, model_folder

from distillery.storage.checkpoints import newest_checkpoint

STARTS_WITHIN_S = 120
ENDS_WITHIN_S = 20
MANY_UPDATES = 100_000


@pytest.fixture
def training(tmp_path):
    """Start a training of very many updates by `accelerate launch`; yield launcher and trainer."""
    rows, model = manifest(tmp_path / "rows.jsonl"), model_folder(tmp_path / "model", 2)
    flags = ["-m", model, "-d", rows, "--language", "ja", "--max_steps", MANY_UPDATES]
    flags += [
        "--per_device_train_batch_size",
        4,
        "--logging_steps",
        1,
        "--save_steps",
        MANY_UPDATES,
    ]
    launcher = subprocess.Popen(
        command(FINETUNING, *flags, "-o", tmp_path / "out", processes=1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=environment(),
    )
    wait_until(lambda: (tmp_path / "out" / "train_log.jsonl").exists(), STARTS_WITHIN_S)
    (trainer,) = psutil.Process(launcher.pid).children()
    yield launcher, trainer
    for process in (trainer, launcher):
        if process.poll() is None if process is launcher else process.is_running():
            process.kill()
    launcher.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_trainer_saves_and_ends_with_its_launcher(training, tmp_path, number):
    launcher, trainer = training
    launcher.send_signal(number)
    launcher.wait(ENDS_WITHIN_S)
    wait_until(lambda: not trainer.is_running(), ENDS_WITHIN_S)
    assert newest_checkpoint(tmp_path / "out") is not None


def test_ctrl_c_saves_and_leaves(training, tmp_path):
    launcher, trainer = training
    for process in (launcher, trainer):  # a terminal tells them all
        process.send_signal(signal.SIGINT)
    launcher.wait(ENDS_WITHIN_S)
    wait_until(lambda: not trainer.is_running(), ENDS_WITHIN_S)
    assert newest_checkpoint(tmp_path / "out") is not None
