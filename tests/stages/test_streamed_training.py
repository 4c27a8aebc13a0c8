"""Training on a stream of several shards, as a user starts it: killed, shared, counted."""

from pathlib import Path

import pytest
from corpora import pack
from stage_runs import read_manifest, record, run
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    run_in_child,
    run_in_two,
    student_folder,
)

from distillery.ingest import clip_rows, row_streams
from distillery.training import streams

NUM_CLIPS, NUM_UPDATES, BATCH = 24, 9, 4
UPDATE = "distillery.training.loop:_update"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(row_streams, "SHARD_ROWS", 3)
    monkeypatch.setattr(streams, "SHUFFLED_ROWS", 16)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Return the flags of both stages; what they train on is an archive with one clip too many."""
    folder = tmp_path_factory.mktemp("streamed")
    rows = read_manifest(manifest(folder / "rows.jsonl", NUM_CLIPS))
    members = {}
    for row in rows:
        clip = folder / row["audio"]
        members[clip.name] = clip.read_bytes()
        members[f"{clip.stem}.txt"] = row["text"].encode()
    del members[f"{clip.stem}.txt"]
    teacher = model_folder(folder / "teacher", 2)
    student = student_folder(folder / "student", teacher)
    common = ["-d", pack(folder / "clips.tar", members), "--streaming", "--language", "ja"]
    common += ["--max_steps", NUM_UPDATES, "--per_device_train_batch_size", BATCH]
    common += ["--logging_steps", 1, "--save_steps", 2, "--learning_rate", "3e-3"]
    return {
        FINETUNING: ["-m", student, *common],
        DISTILLATION: ["-m", student, "--teacher", teacher, *common],
    }


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """Return runs that nothing interrupted, by the stage."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_streams, "SHARD_ROWS", 3)
        patch.setattr(streams, "SHUFFLED_ROWS", 16)
        for script, words in flags.items():
            run(script, *words, "-o", folder / script)
    return folder


@pytest.mark.parametrize(
    ("script", "calls", "more"),
    [
        (FINETUNING, [4, 4], []),
        (FINETUNING, [6], ["--dataloader_num_workers", 2]),
        (DISTILLATION, [9], []),
    ],
)
def test_a_killed_run_reads_on_at_its_place(
    flags, whole, tmp_path, monkeypatch, script, calls, more
):
    words = [*flags[script], "-o", tmp_path]
    for call in calls:
        assert run_in_child(script, UPDATE, call, KILL, *words) == -KILL
    reads = []
    stored = clip_rows._stored
    monkeypatch.setattr(
        clip_rows, "_stored", lambda tree, name, *a: reads.append(name) or stored(tree, name, *a)
    )
    run(script, *words, *more)
    assert_same_run(tmp_path, whole / script)
    saved = int((sum(calls) - len(calls)) // 2 * 2)
    # What is left, a block of each lane around it, and the clips that have no text.
    assert len(reads) <= (NUM_UPDATES + 4 - saved) * BATCH + 2 * 16 + 8


def test_two_processes_and_then_one_train_as_one_does(flags, whole, tmp_path):
    words = [*flags[FINETUNING], "--per_device_train_batch_size", BATCH // 2, "-o"]
    assert run_in_two(FINETUNING, UPDATE, 10**9, KILL, *words, tmp_path / "two") == [0, 0]
    assert_close_run(tmp_path / "two", whole / FINETUNING)
    codes = run_in_two(FINETUNING, UPDATE, 6, KILL, *words, tmp_path / "one")
    assert codes[1] == -KILL and codes[0] != 0
    run(FINETUNING, *flags[FINETUNING], "-o", tmp_path / "one")
    assert_close_run(tmp_path / "one", whole / FINETUNING)


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_what_is_left_out_of_a_pass_is_counted(whole, script):
    ledger = record(whole / script)["ledger"]
    assert ledger["in"] == ledger["out"] + sum(ledger["dropped"].values())
    assert ledger["dropped"] == {"empty_reference": 1}
    assert f"{ledger['out']} out" in Path(whole / script / "README.md").read_text("utf-8")
