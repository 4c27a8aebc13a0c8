"""Labelling by several processes and machines, which do not wait for each other."""

import shutil
import subprocess
from pathlib import Path

import pytest
from launching import command, environment, launch, wait_until
from stage_runs import assert_same_labels, record, run, talkative_model_folder, write_manifest
from tiny import REPOSITORY, tone_manifest

from distillery.labelling import bad_clips
from distillery.storage.ownership import FolderInUseError

SCRIPT = "run_pseudo_labelling.py"
NUM_CLIPS = 10

# Labels in a process that is slower than the others: a pause for each shard.
SLOWLY = f"""
import os, sys, time
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
from stage_runs import run
from distillery.labelling.shards import ShardWriter
write = ShardWriter.write
def slowly(*args):
    if os.environ.get("RANK", "0") == "0":
        time.sleep(2)
    return write(*args)
ShardWriter.write = slowly
run({SCRIPT!r}, *sys.argv[1:])
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("shares")


@pytest.fixture(scope="module")
def flags(root):
    """Five shards of two clips, and batches of one."""
    return [
        *("-m", talkative_model_folder(root / "teacher")),
        *("-d", tone_manifest(root / "clips" / "clips.jsonl", NUM_CLIPS)),
        *("-l", "ja", "--max_label_length", 24, "--rows_per_shard", 2, "-b", 1),
    ]


@pytest.fixture(scope="module")
def labelled(root, flags):
    run(SCRIPT, *flags, "-o", root / "labelled")
    return root / "labelled"


@pytest.fixture
def slow_script(tmp_path):
    path = tmp_path / "slowly.py"
    path.write_text(SLOWLY)
    return path


def assert_same(folder: Path, other: Path) -> None:
    assert_same_labels(folder, other)
    assert record(folder)["ledger"] == record(other)["ledger"]
    assert record(folder)["scores"] == record(other)["scores"]


def test_a_process_that_is_done_early_leaves_and_takes_no_other_down(
    tmp_path, flags, labelled, slow_script
):
    # The slow process has three shards, two seconds each, and the other gives up after three.
    out = tmp_path / "out"
    launch(str(slow_script), *flags, "-o", out, "--ddp_timeout", 3, processes=2)
    assert_same(out, labelled)


def test_shares_of_two_machines_one_of_which_dies(tmp_path, flags, labelled, slow_script):
    out = tmp_path / "out"
    shares = [["--num_shards", 2, "--shard_index", index, "-o", out] for index in range(2)]
    doomed = subprocess.Popen(
        command(str(slow_script), *flags, *shares[1]), cwd=REPOSITORY, env=environment()
    )
    try:
        wait_until(lambda: any(out.glob(".labels/*/*/*.seal.json")), 120)
        with pytest.raises(FolderInUseError, match=r"in use by process \d+ on "):
            run(SCRIPT, *flags, "-o", out)
        with pytest.raises(FolderInUseError, match=r"in use by process \d+ on "):
            run(SCRIPT, *flags, "-o", out, "--num_shards", 3)
        doomed.kill()
    finally:
        doomed.kill()
        doomed.wait()
    run(SCRIPT, *flags, *shares[0])
    assert record(out)["status"] == "started"
    run(SCRIPT, *flags, "-o", out)  # one process alone goes on with what both of them left
    assert_same(out, labelled)
    assert [path.name for path in out.rglob(".*")] == [".labels"]


def test_the_last_share_completes_the_dataset(tmp_path, flags, labelled):
    for index in (2, 0, 1):
        assert not (tmp_path / "README.md").exists()
        run(SCRIPT, *flags, "--num_shards", 3, "--shard_index", index, "-o", tmp_path)
    assert_same(tmp_path, labelled)


@pytest.mark.parametrize("again", ["a damaged file", "a mended clip"])
def test_a_process_with_nothing_to_do_does_not_end_a_run_that_makes_a_shard_again(
    tmp_path, flags, labelled, slow_script, root, again
):
    """The first shard is of the slow process; the other one finds all others made."""
    clips = tmp_path / "clips"
    shutil.copytree(root / "clips", clips)
    out, first = tmp_path / "out", clips / "clips-0000.flac"
    flags = [*flags, "-d", clips / "clips.jsonl", "-o", out, "--max_bad_fraction", 0.5]
    content = first.read_bytes()
    if again == "a mended clip":
        first.write_bytes(b"no sound")
    run(SCRIPT, *flags)
    if again == "a mended clip":
        first.write_bytes(content)
        flags.append("--retry_quarantined")
    else:
        (out / "default" / "train-00000-of-00005.parquet").write_bytes(b"cut")
    launch(str(slow_script), *flags, processes=2)
    found, wanted = record(out), record(labelled)
    assert (found["status"], found["ledger"]) == ("complete", wanted["ledger"])
    assert list(found["scores"].values()) == list(wanted["scores"].values())
    assert_same_labels(out, labelled)


def test_overwriting_is_refused_where_others_may_be_at_work(tmp_path, flags):
    done = launch(
        *(SCRIPT, *flags, "--num_shards", 2, "--overwrite_output_dir", "-o", tmp_path),
        check=False,
    )
    assert done.returncode == 2
    assert "--overwrite_output_dir would throw away what the other shares" in done.stdout


@pytest.mark.parametrize("more", [[], ["--streaming", "--max_bad_fraction", 0.05]])
def test_a_hopeless_run_ends_within_its_first_shards(tmp_path, flags, capsys, monkeypatch, more):
    monkeypatch.setattr(bad_clips, "MANY_BAD", 4)
    entries = [{"id": str(index), "audio": f"{index}.flac"} for index in range(NUM_CLIPS)]
    missing = write_manifest(tmp_path / "missing.jsonl", entries)
    arguments = [*flags, "-d", missing, "--max_bad_fraction", 0.3, *more, "-o", tmp_path / "out"]
    with pytest.raises(ValueError, match=rf"4 of {4 if more else 10} rows cannot be used"):
        run(SCRIPT, *arguments)
    assert capsys.readouterr().err.count("file not found") == 4
