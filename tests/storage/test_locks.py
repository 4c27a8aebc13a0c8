"""A folder has one writer."""

import os
import subprocess
import sys

import pytest
from tiny import REPOSITORY

from distillery.storage.locks import hold_folder

HOLD = """
import sys, time
from pathlib import Path
from distillery.storage.locks import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(BlockingIOError) as error, hold_folder(tmp_path / "out"):
        pass
    assert f"--output_dir {tmp_path / 'out'} is in use by process {holder.pid} on" in str(
        error.value
    )


def test_a_killed_writer_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with hold_folder(tmp_path / "out"):
        pass


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path):
        raise KeyError
    with hold_folder(tmp_path):
        pass
