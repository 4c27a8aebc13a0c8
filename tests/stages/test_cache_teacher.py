"""Distillation with `--cache_teacher`: the teacher says all it has to say once, before training."""

import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from command_lines import complaints, groups_of
from stage_runs import read_manifest, record, run, talkative_model_folder, write_manifest
from tiny import load_script
from training_runs import (
    DISTILLATION,
    KILL,
    TERMINATE,
    TEXTS,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    run_in_child,
    run_in_two,
    student_folder,
    training_log,
)

from distillery.storage.ownership import take_folder
from distillery.training import loop
from distillery.whisper import checkpoint

WRITE = "distillery.training.teacher_cache:write_sealed"
UPDATE = "distillery.training.loop:_update"


class Place:
    """A teacher, its student, labelled rows, and a run with a cache that nothing disturbed."""

    def __init__(self, folder):
        self.folder = folder
        size = {"encoder_layers": 1, "decoder_layers": 3, "window_s": 1}
        self.teacher = talkative_model_folder(folder / "teacher", **size)
        student_folder(folder / "student", self.teacher)
        said = {"whisper_transcript": lambda i: f"<|0.00|>{TEXTS[i % 5]}<|0.80|>"}
        self.rows = manifest(folder / "rows.jsonl", **said)
        self.whole, self.cache = folder / "whole", folder / "cache"
        self.distil(self.whole, self.cache)

    def flags(self, out, cache, *more):
        """Return the flags of four epochs: whether rows keep their timestamps is drawn."""
        flags = ["-m", self.folder / "student", "--teacher", self.teacher, "--language", "ja"]
        flags += ["-d", self.rows, "--freeze_encoder", "--learning_rate", "3e-3"]
        flags += ["--max_steps", 8, "--logging_steps", 1, "--save_steps", 3]
        flags += ["--per_device_train_batch_size", 4, "--timestamp_probability", 0.5, "-o", out]
        return [*flags, *(["--cache_teacher", cache] if cache else []), *more]

    def distil(self, out, cache, *more):
        run(DISTILLATION, *self.flags(out, cache, *more))
        return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def loaded(monkeypatch):
    """Return a list that will hold the names of the models that are loaded."""
    names = []
    load = checkpoint.load
    monkeypatch.setattr(
        checkpoint, "load", lambda name, *a, **k: names.append(name) or load(name, *a, **k)
    )
    return names


def test_the_folder_is_a_runs_with_its_files_and_its_account(place):
    written = record(place.cache)
    assert (written["stage"], written["status"]) == ("teacher_cache", "complete")
    assert written["ledger"]["in"] == written["ledger"]["out"] == 10
    shards = sorted(path.name for path in place.cache.glob("*.arrow"))
    assert len(shards) == 10  # a hundredth of the rows is less than one
    files = {*shards, *(f"{name}.seal.json" for name in shards)}
    assert set(written["files"]) == files
    assert {path.name for path in place.cache.iterdir()} == {*files, "run.json"}


def test_the_divergence_is_at_most_that_of_the_whole_distributions(place, tmp_path):
    flags = ["--timestamp_probability", 0, "--condition_on_prev_probability", 0, "--max_steps", 4]
    cached = training_log(place.distil(tmp_path / "cached", tmp_path / "cache", *flags))
    live = training_log(place.distil(tmp_path / "live", None, *flags))
    assert cached[0]["ce"] == live[0]["ce"]
    assert 0.1 * live[0]["kl"] < cached[0]["kl"] < live[0]["kl"]
    assert cached[-1]["kl"] < cached[0]["kl"]


def test_another_student_needs_no_teacher(place, tmp_path, loaded):
    place.distil(tmp_path / "again", place.cache)
    assert str(place.teacher) not in map(str, loaded)
    assert_same_run(tmp_path / "again", place.whole)


def test_an_evaluation_needs_the_teacher_and_its_whole_distributions(place, tmp_path, loaded):
    more = ["--do_eval", "--eval_dataset_name", place.rows]
    place.distil(tmp_path / "cached", place.cache, *more)
    assert str(place.teacher) in map(str, loaded)
    assert training_log(tmp_path / "cached") == training_log(place.whole)
    shutil.copytree(tmp_path / "cached", tmp_path / "model", ignore=lambda *_: ["run.json"])
    flags = [*place.flags(tmp_path / "live", None, *more), "-m", tmp_path / "model"]
    run(DISTILLATION, *flags, "--do_train", "False")
    (cached,) = training_log(tmp_path / "cached", "eval")
    (live,) = training_log(tmp_path / "live", "eval")
    assert cached["kl"] == pytest.approx(live["kl"], rel=1e-6)


@pytest.mark.parametrize(
    ("target", "call", "number"),
    [(WRITE, 1, KILL), (WRITE, 4, KILL), (WRITE, 6, TERMINATE), (UPDATE, 5, KILL)],
)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(place, tmp_path, target, call, number):
    args = place.flags(tmp_path / "run", tmp_path / "cache")
    wanted = loop.STOPPED if number == TERMINATE else -number
    assert run_in_child(DISTILLATION, target, call, number, *args) == wanted
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.seal.json")}
    assert len(made) == {1: 0, 4: 3, 6: 6, 5: 10}[call]
    run(DISTILLATION, *args)
    assert_same_run(tmp_path / "run", place.whole)
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())
    assert record(tmp_path / "cache")["status"] == "complete"


def test_two_processes_share_the_shards(place, tmp_path):
    args = place.flags(tmp_path / "run", tmp_path / "cache", "--per_device_train_batch_size", 2)
    assert run_in_two(DISTILLATION, WRITE, 3, TERMINATE, *args) == [loop.STOPPED] * 2
    assert record(tmp_path / "cache")["status"] == "started"
    assert run_in_two(DISTILLATION, WRITE, 99, KILL, *args) == [0, 0]
    assert_close_run(tmp_path / "run", place.whole)
    assert record(tmp_path / "cache")["ledger"]["in"] == 10


def test_a_damaged_shard_of_the_teachers_is_made_again(place, tmp_path):
    cache = shutil.copytree(place.cache, tmp_path / "cache")
    path = cache / "teacher-00003.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes(100))
    (cache / "teacher-00007.arrow").unlink()
    place.distil(tmp_path / "run", cache)
    assert path.read_bytes() == whole
    assert_same_run(tmp_path / "run", place.whole)


def test_a_clip_that_cannot_be_used_has_no_shard_of_its_own_and_trains_nothing(place, tmp_path):
    rows = read_manifest(place.rows)
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    for row in rows:
        row["audio"] = str(place.folder / row["audio"])
    rows[2]["audio"] = str(tmp_path / "broken.flac")
    broken = write_manifest(tmp_path / "rows.jsonl", rows)
    more = ["-d", broken, "--max_bad_fraction", 0.2]
    place.distil(tmp_path / "run", tmp_path / "cache", *more)
    assert record(tmp_path / "cache")["ledger"]["quarantined"] == {"audio": 1}
    assert record(tmp_path / "run")["num_bad"] == 1
    shutil.copy(rows[3]["audio"], tmp_path / "broken.flac")
    with pytest.raises(ValueError, match=f"nothing of row {rows[2]['id']}, whose clip"):
        place.distil(tmp_path / "mended", tmp_path / "cache", *more)


def test_windows_of_several_clips_are_cached_too(place, tmp_path):
    more = ["--pack", "True", "--max_steps", 3]
    place.distil(tmp_path / "one", tmp_path / "cache", *more)
    place.distil(tmp_path / "two", tmp_path / "cache", *more)
    assert_same_run(tmp_path / "one", tmp_path / "two")


# --- what does not fit ----------------------------------------------------------------------------


def test_the_cache_of_another_teacher_or_loss_is_refused(place, tmp_path):
    other = model_folder(tmp_path / "other", 2)
    with pytest.raises(ValueError, match=r"--cache_teacher .* another configuration:\n *--teacher"):
        place.distil(tmp_path / "run", place.cache, "--teacher", other)
    with pytest.raises(ValueError, match=r"--temperature: 2.0 then, 1.0 now\nname another folder"):
        place.distil(tmp_path / "run", place.cache, "--temperature", 1)
    with pytest.raises(ValueError, match="rows that are used: 10 then, 9 now"):
        place.distil(tmp_path / "run", place.cache, "--max_train_samples", 9)
    with pytest.raises(ValueError, match=r"holds a run of run_distillation; name another folder"):
        place.distil(tmp_path / "run", place.whole)
    assert record(place.cache)["status"] == "complete"


def test_what_the_teacher_heard_or_computed_in_otherwise_is_refused(place, tmp_path):
    rows = [{**row, "louder": row["audio"]} for row in read_manifest(place.rows)]
    twice = write_manifest(place.rows.with_name("twice.jsonl"), rows)
    flags = ["-d", twice, "--max_steps", 1]
    place.distil(tmp_path / "one", tmp_path / "cache", *flags)
    with pytest.raises(ValueError, match="--audio_column_name: 'audio' then, 'louder' now"):
        other = [*flags, "--audio_column_name", "louder"]
        place.distil(tmp_path / "two", tmp_path / "cache", *other)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="--dtype: 'float32' then, 'bfloat16' now"):
        place.distil(tmp_path / "three", tmp_path / "cache", *flags, "--bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_teacher_that_was_trained_again_is_refused(place, tmp_path):
    teacher = shutil.copytree(place.teacher, tmp_path / "teacher")
    flags = ["--teacher", teacher, "--max_steps", 1]
    place.distil(tmp_path / "run", tmp_path / "cache", *flags)
    model = checkpoint.load(str(teacher))
    with torch.no_grad():
        model.model.model.decoder.layers[0].fc1.bias += 1
    model.save(teacher)
    with pytest.raises(ValueError, match="teacher: its content has changed"):
        place.distil(tmp_path / "other", tmp_path / "cache", *flags)


def test_other_labels_of_the_same_rows_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match=r"other rows or other labels: row .* --seed"):
        place.distil(tmp_path / "run", place.cache, "--timestamp_probability", 0)


def test_a_folder_that_is_the_output_an_input_or_a_users_is_refused(place, tmp_path):
    with pytest.raises(ValueError, match=r"--cache_teacher .* is the input .*run"):
        place.distil(tmp_path / "run", tmp_path / "run")
    with pytest.raises(ValueError, match=r"--cache_teacher .* lies in the input .*teacher"):
        place.distil(tmp_path / "run2", place.teacher / "cache")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "teacher-00000.arrow").write_text("mine")
    with pytest.raises(ValueError, match=r"--cache_teacher .* holds teacher-00000.arrow, which"):
        place.distil(tmp_path / "run3", mine)
    assert (mine / "teacher-00000.arrow").read_text() == "mine"


def test_a_cache_that_another_run_makes_is_waited_for_and_then_refused(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr("distillery.cli.teacher_cache.OPENING_S", 0.1)
    args = place.flags(tmp_path / "run", tmp_path / "cache")
    assert run_in_child(DISTILLATION, WRITE, 3, KILL, *args) == -KILL
    lock = take_folder(tmp_path / "cache")
    try:
        assert run_in_child(DISTILLATION, WRITE, 99, KILL, *args) == 1
    finally:
        lock.release()


def test_what_varies_by_epoch_is_refused_at_once(capsys, tmp_path):
    (tmp_path / "noise.yaml").write_text("- AddGaussianNoise: {p: 1.0}\n")
    words = ["-m", "m", "--teacher", "t", "-d", "d", "-o", "o", "--cache_teacher", "c"]
    words += ["--streaming", "--max_steps", "5"]
    stage = load_script(DISTILLATION)
    for more in (
        ["--no_speech_probability", "0.1"],
        ["--audio_augmentation", str(tmp_path / "noise.yaml")],
    ):
        found = complaints(capsys, *words, *more, groups=groups_of(DISTILLATION), check=stage.check)
        assert ["--streaming" in line for line in found] == [True, False]
        assert more[0] in found[1]


@pytest.mark.parametrize("more", [["--mse_weight", "1"], ["--kl_weight", "0"]])
def test_a_loss_that_the_cache_does_not_serve_is_refused(capsys, more):
    words = ["-m", "m", "--teacher", "t", "-d", "d", "-o", "o", "--cache_teacher", "c", *more]
    stage = load_script(DISTILLATION)
    (line,) = complaints(capsys, *words, groups=groups_of(DISTILLATION), check=stage.check)
    assert "--cache_teacher keeps what the KL divergence needs, and nothing else" in line


def test_a_dry_run_says_what_it_takes(place, tmp_path, capsys):
    place.distil(tmp_path / "run", tmp_path / "cache", "--dry_run")
    said = capsys.readouterr().out
    what = "what the teacher says at 50 label positions of each row"
    assert f"about 65.00 kB for {what} in {tmp_path / 'cache'}" in said
    assert not (tmp_path / "cache").exists()
    place.distil(tmp_path / "run", None, "--dry_run")
    assert "what the teacher says" not in capsys.readouterr().out
