"""Training on windows that hold several utterances."""

import pytest
from stage_runs import read_manifest, record, run, write_manifest
from tiny import tone_manifest
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    assert_close_run,
    assert_same_run,
    model_folder,
    record_rows,
    run_in_child,
    run_in_two,
    student_folder,
)

NUM_CLIPS = 12


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Clips of up to 0.2 s, half of one talk, of which two fit into a window of 1 s."""
    root = tmp_path_factory.mktemp("packed_training")
    clips = tone_manifest(root / "clips.jsonl", NUM_CLIPS, 0.2)
    entries = [
        {**entry, "recording_id": "talk" if index < 6 else None, "speaker_id": None}
        for index, entry in enumerate(read_manifest(clips))
    ]
    teacher = model_folder(root / "teacher", 3)
    student = student_folder(root / "student", teacher)
    common = ["-d", write_manifest(clips, entries), "--language", "ja", "--pack", "True"]
    common += ["--per_device_train_batch_size", 2, "--save_steps", 2, "--logging_steps", 1]
    return {
        FINETUNING: ["-m", student, *common, "--num_train_epochs", 2],
        DISTILLATION: ["-m", student, "--teacher", teacher, *common, "--max_steps", 6],
    }


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for script, args in flags.items():
        run(script, *args, "-o", folder / script)
    return folder


def test_an_epoch_has_every_utterance_in_one_window(flags, tmp_path, monkeypatch, capsys):
    batches = record_rows(monkeypatch)
    run(FINETUNING, *flags[FINETUNING], "-o", tmp_path)
    windows = [row["id"] for batch in batches for row in batch]
    assert len(windows) == 12  # 2 epochs of 6 windows of two
    assert sorted(windows[:6]) == sorted(windows[6:]) == sorted(set(windows))
    said = capsys.readouterr().err
    assert "12 utterances in 6 windows, 6 windows saved; 35% of each is speech" in said
    assert record(tmp_path)["ledger"]["in"] == NUM_CLIPS


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_a_killed_run_goes_on_as_if_it_had_not_been(flags, trained, tmp_path, script):
    args = [*flags[script], "-o", tmp_path]
    assert run_in_child(script, "distillery.training.loop:_update", 4, KILL, *args) == -KILL
    run(script, *args)
    assert_same_run(tmp_path, trained / script)


def test_two_processes_train_as_one(flags, trained, tmp_path):
    args = [*flags[DISTILLATION], "--per_device_train_batch_size", 1, "-o", tmp_path]
    assert run_in_two(DISTILLATION, "distillery.training.loop:_update", 10**9, KILL, *args) == [
        0,
        0,
    ]
    assert_close_run(tmp_path, trained / DISTILLATION)


@pytest.mark.parametrize("more", [[], ["--streaming"]])
def test_rows_without_durations_stay_as_they_are(flags, tmp_path, capsys, more):
    _, model, _, clips, *common = flags[FINETUNING]
    entries = [
        {name: value for name, value in entry.items() if name != "duration"}
        for entry in read_manifest(clips)
    ]
    plain = write_manifest(clips.parent / "plain.jsonl", entries)
    to = ["--max_steps", 1, "-o", tmp_path, *more]
    run(FINETUNING, "-m", model, "-d", plain, *common, *to)
    assert "is not packed: it has no column `duration`" in capsys.readouterr().err
