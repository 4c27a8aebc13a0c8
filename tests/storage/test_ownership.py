"""A folder has one writer, and is no input of it."""

import os
import subprocess
import sys

import pytest
from tiny import REPOSITORY

from distillery.storage.ownership import (
    LOCK,
    FolderInUseError,
    leave_folder,
    refuse_overlap,
    take_folder,
    taken_folder,
)

HOLD = """
import sys, time
from pathlib import Path
from distillery.storage.ownership import take_folder
lock = take_folder(Path(sys.argv[1]))
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
    for _ in range(2):  # the first refusal leaves the name of the holder as it is
        with pytest.raises(FolderInUseError) as error:
            take_folder(tmp_path / "out")
        holds = f"--output_dir {tmp_path / 'out'} is in use by process {holder.pid} on"
        assert holds in str(error.value)


def test_a_killed_writer_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    leave_folder(take_folder(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_same_process_may_take_a_folder_again(tmp_path):
    locks = [take_folder(tmp_path), take_folder(tmp_path)]
    leave_folder(locks[0])
    assert (tmp_path / LOCK).exists()
    leave_folder(locks[1])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_left_however_its_writer_ends(tmp_path):
    with pytest.raises(KeyError), taken_folder(tmp_path):
        assert (tmp_path / LOCK).exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "source", "says"),
    [
        ("in", "in", "is the input"),
        ("in/out", "in", "lies in the input"),
        (".", "in", "holds the input"),
        (".", "clips.jsonl", "holds the input"),
        ("link", "in", "is the input"),
        ("in/../in", "in", "is the input"),
    ],
)
def test_an_output_that_overlaps_an_input_is_refused(tmp_path, output, source, says):
    (tmp_path / "in").mkdir()
    (tmp_path / "clips.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match=says):
        refuse_overlap(tmp_path / output, ["org/model", str(tmp_path / source)])


def test_an_output_beside_its_inputs_is_taken(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "clips.jsonl").touch()
    names = [str(tmp_path / "in"), str(tmp_path / "clips.jsonl"), "org/set", "no/such"]
    refuse_overlap(tmp_path / "out", names)
    refuse_overlap(tmp_path / "inner", names)
