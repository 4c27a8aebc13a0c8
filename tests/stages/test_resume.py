"""A training run that is killed, stopped, damaged or moved goes on as if nothing had happened."""

import gc
import json
import os
import random
import shutil
import signal

import pytest
import torch
from accelerate import Accelerator
from launching import launch, launch_on_two_machines
from stage_runs import record, run, snapshot
from tiny import REPOSITORY
from torch.nn.parallel import DistributedDataParallel
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    NEVER,
    TERMINATE,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    run_in_child,
    run_in_two,
    student_folder,
    training_log,
    weights,
)

from distillery.storage.checkpoints import find_damage, newest_checkpoint
from distillery.training import loop, resume
from distillery.training.order import Order
from distillery.whisper import checkpoint

TESTS = REPOSITORY / "tests"

NUM_UPDATES = 8


class Runs:
    """Inputs of fine-tuning and distillation, and each of the two without any interruption."""

    def __init__(self, folder):
        self.folder = folder
        rows = manifest(folder / "rows.jsonl")
        teacher = model_folder(folder / "teacher", 3)
        with_dropout(teacher)
        student = student_folder(folder / "student", teacher)
        common = ["-d", rows, "--language", "ja", "--max_steps", NUM_UPDATES]
        common += ["--per_device_train_batch_size", 4, "--logging_steps", 2, "--save_steps", 3]
        common += ["--learning_rate", "3e-3", "--warmup_steps", 2]
        self.flags = {
            FINETUNING: ["-m", student, *common],
            DISTILLATION: ["-m", student, "--teacher", teacher, *common],
        }
        for script in self.flags:
            run(script, *self.to(script, self.whole(script)))

    def whole(self, script):
        return self.folder / f"whole-{script}"

    def to(self, script, folder, *more):
        return [*self.flags[script], "-o", folder, *more]


def with_dropout(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    shares = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    path.write_text(json.dumps({**config, **shares, "decoder_layerdrop": 0.2}), "utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("resume"))


def interrupted(runs, folder, *steps, script=FINETUNING):
    """Copy an uninterrupted run as it was when it had saved these checkpoints and gone on a bit."""
    folder.mkdir()
    for step in steps:
        shutil.copytree(runs.whole(script) / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(runs.whole(script) / "train_log.jsonl", folder)
    started = {**record(runs.whole(script)), "status": "started"}
    (folder / "run.json").write_text(json.dumps(started), "utf-8")
    return folder


def steps_of(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_dropout_is_at_work(runs):
    """Else equal logs below would not show that random numbers are the same after a resume."""
    assert [row["step"] for row in training_log(runs.whole(FINETUNING))] == [1, 2, 4, 6, 8]
    student = runs.folder / "student"
    model = checkpoint.load(str(student)).model.train()
    features = torch.zeros(1, 80, 100)
    start = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        one, other = (model(features, decoder_input_ids=start).logits for _ in range(2))
    assert not torch.equal(one, other)


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("distillery.training.loop:make_optimizer", 1),  # before anything
        ("distillery.training.loop:_update", 1),
        ("distillery.training.loop:_update", 6),
        ("distillery.training.monitor:log_values", 2),
        ("torch:save", 1),  # inside the first checkpoint
        ("torch:save", 2),
        ("distillery.storage.checkpoints:write_json", 2),  # before a manifest
        ("distillery.storage.checkpoints:rotate", 2),  # after a rename
        ("distillery.whisper.checkpoint:write_card", 1),  # after all updates
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(runs, tmp_path, script, target, call):
    args = runs.to(script, tmp_path / "run")
    assert run_in_child(script, target, call, KILL, *args) == -KILL
    if (tmp_path / "run" / "run.json").exists():
        assert record(tmp_path / "run")["status"] == "started"
    run(script, *args)
    assert_same_run(tmp_path / "run", runs.whole(script))
    assert record(tmp_path / "run")["status"] == "complete"


@pytest.mark.parametrize("more", [[], ["--dataloader_num_workers", 1]])
def test_made_up_sound_goes_on_too(runs, tmp_path, more):
    pytest.importorskip("audiomentations")
    noise = tmp_path / "noise.yaml"
    noise.write_text("- AddGaussianNoise: {p: 0.5}\n- Gain: {p: 0.5}\n")
    sound = ["--audio_augmentation", noise, "--no_speech_probability", 0.2]
    run(FINETUNING, *runs.to(FINETUNING, tmp_path / "whole", *sound))
    plain, changed = (training_log(each) for each in (runs.whole(FINETUNING), tmp_path / "whole"))
    assert plain[0]["loss"] != changed[0]["loss"]
    args = runs.to(FINETUNING, tmp_path / "run", *sound, *more)
    assert run_in_child(FINETUNING, "distillery.training.loop:_update", 6, KILL, *args) == -KILL
    noise.write_text("- AddGaussianNoise: {p: 0.9}\n")
    with pytest.raises(ValueError, match="audio_augmentation"):
        run(FINETUNING, *args)
    noise.write_text("- AddGaussianNoise: {p: 0.5}\n- Gain: {p: 0.5}  # as before\n")
    run(FINETUNING, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    counts = [record(tmp_path / name)["num_without_speech"] for name in ("run", "whole")]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("target", "call"), [("distillery.training.loop:_update", 5), ("torch:save", 2)]
)
def test_adapters_go_on_too(runs, tmp_path, target, call):
    lora = ["--lora_rank", 2, "--lora_dropout", 0.1, "--lora_target_modules", "q_proj+fc2"]
    run(FINETUNING, *runs.to(FINETUNING, tmp_path / "whole", *lora))
    args = runs.to(FINETUNING, tmp_path / "run", *lora)
    assert run_in_child(FINETUNING, target, call, KILL, *args) == -KILL
    run(FINETUNING, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    other = runs.to(FINETUNING, tmp_path / "other", *lora, "--lora_alpha", 1)
    run(FINETUNING, *other)
    assert not torch.equal(
        *(
            weights(tmp_path / name)["model.decoder.layers.0.fc2.weight"]
            for name in ("run", "other")
        )
    )


def test_a_run_that_is_killed_again_and_again_at_random(runs, tmp_path):
    rng = random.Random(0)
    args = runs.to(DISTILLATION, tmp_path)
    targets = [
        "distillery.training.loop:_update",
        "torch:save",
        "distillery.training.monitor:log_values",
    ]
    for _ in range(8):
        code = run_in_child(DISTILLATION, rng.choice(targets), rng.randint(1, 4), KILL, *args)
        assert code in (-KILL, 0)
    run(DISTILLATION, *args)
    assert_same_run(tmp_path, runs.whole(DISTILLATION))


def test_a_run_goes_on_from_every_step(runs, tmp_path):
    every = runs.to(FINETUNING, tmp_path / "every", "--save_steps", 1)
    run(FINETUNING, *every)
    assert_same_run(tmp_path / "every", runs.whole(FINETUNING))
    assert steps_of(tmp_path / "every") == list(range(1, NUM_UPDATES + 1))
    for step in range(1, NUM_UPDATES + 1):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        folder = interrupted(runs, tmp_path / "run")
        shutil.copytree(tmp_path / "every" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        run(FINETUNING, *runs.to(FINETUNING, folder))
        assert_same_run(folder, runs.whole(FINETUNING))
        assert steps_of(folder) == sorted({step, *(s for s in (3, 6, 8) if s > step)})


def test_a_stream_goes_on_too(runs, tmp_path):
    whole = runs.to(FINETUNING, tmp_path / "whole", "--streaming")
    run(FINETUNING, *whole)
    args = runs.to(FINETUNING, tmp_path / "run", "--streaming")
    assert run_in_child(FINETUNING, "distillery.training.loop:_update", 6, KILL, *args) == -KILL
    run(FINETUNING, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_evaluation_and_the_best_model_survive(runs, tmp_path):
    evaluation = ["--do_eval", "--eval_dataset_name", runs.folder / "rows.jsonl"]
    evaluation += ["--eval_steps", 2]
    run(FINETUNING, *runs.to(FINETUNING, tmp_path / "whole", *evaluation))
    args = runs.to(FINETUNING, tmp_path / "run", *evaluation)
    for target, call in (
        ("distillery.training.validation:evaluate", 3),
        ("distillery.training.loop:_update", 2),
    ):
        assert run_in_child(FINETUNING, target, call, KILL, *args) == -KILL
    run(FINETUNING, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    found, wanted = (weights(tmp_path / name / "best") for name in ("run", "whole"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert record(tmp_path / "run")["best"] == record(tmp_path / "whole")["best"]


@pytest.mark.parametrize(
    ("script", "target", "call"),
    [
        (FINETUNING, "distillery.training.validation:evaluate", 3),
        (FINETUNING, "distillery.whisper.checkpoint:write_card", 1),
        (DISTILLATION, "distillery.training.validation:evaluate", 3),
    ],
)
def test_a_run_that_ends_early_does_so_where_it_would_have(runs, tmp_path, script, target, call):
    early = ["--do_eval", "--eval_dataset_name", runs.folder / "rows.jsonl", "--eval_steps", 1]
    early += ["--learning_rate", 1, "--early_stopping_patience", 2, "--load_best_model_at_end"]
    run(script, *runs.to(script, tmp_path / "whole", *early))
    assert record(tmp_path / "whole")["updates"] < NUM_UPDATES
    args = runs.to(script, tmp_path / "run", *early)
    assert run_in_child(script, target, call, KILL, *args) == -KILL
    run(script, *args)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert record(tmp_path / "run")["updates"] == record(tmp_path / "whole")["updates"]
    best = weights(tmp_path / "run" / "best")  # is what the run leaves
    assert all(
        torch.equal(best[name], weight) for name, weight in weights(tmp_path / "run").items()
    )


# --- stopped by SIGTERM ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 3, 5, 8])
def test_sigterm_saves_and_no_update_is_lost(runs, tmp_path, monkeypatch, call):
    args = runs.to(DISTILLATION, tmp_path)
    code = run_in_child(DISTILLATION, "distillery.training.loop:_update", call, TERMINATE, *args)
    assert code == (loop.STOPPED if call < NUM_UPDATES else 0)
    assert find_damage(tmp_path / f"checkpoint-{call}") is None
    done = []
    update = loop._update
    monkeypatch.setattr(loop, "_update", lambda *a: (done.append(1), update(*a))[1])
    run(DISTILLATION, *args)
    assert len(done) == NUM_UPDATES - call
    assert_same_run(tmp_path, runs.whole(DISTILLATION))


def test_sigterm_while_a_checkpoint_is_saved_does_not_save_it_twice(runs, tmp_path, monkeypatch):
    saves = []
    save = resume.save_checkpoint

    def interrupted_save(*args):
        saves.append(args[1].step)
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*args)

    monkeypatch.setattr(resume, "save_checkpoint", interrupted_save)
    args = runs.to(FINETUNING, tmp_path)
    for step in (3, 6):
        with pytest.raises(SystemExit) as stopped:
            run(FINETUNING, *args)
        assert stopped.value.code == loop.STOPPED
        assert saves.pop() == step and not saves
    run(FINETUNING, *args)
    assert_same_run(tmp_path, runs.whole(FINETUNING))


@pytest.mark.parametrize("number", [TERMINATE, int(signal.SIGINT)])
def test_a_signal_stops_workers_that_decode_audio_no_sooner_than_the_run(runs, tmp_path, number):
    """A scheduler, and a terminal, send the signal to every process of the job at once."""
    args = runs.to(FINETUNING, tmp_path, "--dataloader_num_workers", 2)
    code = run_in_child(FINETUNING, "distillery.training.loop:_update", 3, number, *args)
    assert code == loop.STOPPED
    assert steps_of(tmp_path) == [3]
    run(FINETUNING, *args)
    assert_same_run(tmp_path, runs.whole(FINETUNING))


# --- damaged --------------------------------------------------------------------------------------


def test_every_file_of_a_checkpoint_is_watched(runs, tmp_path):
    names = [path.name for path in (runs.whole(FINETUNING) / "checkpoint-6").iterdir()]
    assert {"model.safetensors", "optimizer.pt", "progress.json", "manifest.json"} < {*names}
    for name in names:
        for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"{")):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            folder = interrupted(runs, tmp_path / "run", 3, 6)
            damage(folder / "checkpoint-6" / name)
            assert newest_checkpoint(folder) == folder / "checkpoint-3"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "manifest.json"])
def test_the_checkpoint_before_a_damaged_one_is_used_and_named(runs, tmp_path, name, capsys):
    folder = interrupted(runs, tmp_path / "run", 3, 6)
    damaged = folder / "checkpoint-6" / name
    damaged.write_bytes(damaged.read_bytes()[:-5])
    run(FINETUNING, *runs.to(FINETUNING, folder))
    said = capsys.readouterr().err
    assert f"{folder / 'checkpoint-6'} is not used" in said
    assert f"going on from {folder / 'checkpoint-3'}" in said
    assert_same_run(folder, runs.whole(FINETUNING))
    assert find_damage(folder / "checkpoint-6") is None


def test_no_whole_checkpoint_stops_the_run_and_starting_over_is_offered(runs, tmp_path):
    folder = interrupted(runs, tmp_path / "run", 3, 6)
    for step in (3, 6):
        (folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"none of its 2 checkpoints.*--overwrite_output_dir"):
        run(FINETUNING, *runs.to(FINETUNING, folder))
    run(FINETUNING, *runs.to(FINETUNING, folder, "--overwrite_output_dir"))
    assert_same_run(folder, runs.whole(FINETUNING))


# --- the folder -----------------------------------------------------------------------------------


def test_starting_over_throws_away_what_the_run_left_and_nothing_else(runs, tmp_path):
    folder = tmp_path / "run"
    run(FINETUNING, *runs.to(FINETUNING, folder, "--save_steps", 1))
    (folder / "notes.txt").write_text("mine")
    run(FINETUNING, *runs.to(FINETUNING, folder, "--overwrite_output_dir"))
    assert_same_run(folder, runs.whole(FINETUNING))
    assert steps_of(folder) == [3, 6, 8]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--learning_rate", "1e-3"], "--learning_rate: 0.003 then, 0.001 now"),
        (["--seed", 1], "--seed: 42 then, 1 now"),
        (["--max_steps", 9], "--max_steps: 8 then, 9 now"),
        (["--per_device_train_batch_size", 2], "num_processes: 4 then, 2 now"),
        (["--gradient_accumulation_steps", 2], "num_processes: 4 then, 8 now"),
    ],
)
def test_a_changed_flag_is_refused_by_name(runs, tmp_path, change, named):
    folder = interrupted(runs, tmp_path / "run", 3)
    before = snapshot(folder)
    with pytest.raises(ValueError, match="another configuration") as error:
        run(FINETUNING, *runs.to(FINETUNING, folder, *change))
    assert named in str(error.value)
    assert "start over with --overwrite_output_dir" in str(error.value)
    assert snapshot(folder) == before


def test_changed_rows_are_refused(runs, tmp_path):
    rows = manifest(tmp_path / "rows.jsonl")
    # The last of two equal flags holds.
    args = runs.to(FINETUNING, tmp_path / "run", "-d", rows)
    run(FINETUNING, *args)
    rows.write_text(rows.read_text("utf-8").replace("ねこ", "いぬ"), "utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl: its content has changed"):
        run(FINETUNING, *args)


def test_another_stage_is_refused(runs):
    with pytest.raises(ValueError, match="holds a run of run_finetuning"):
        run(DISTILLATION, *runs.to(DISTILLATION, runs.whole(FINETUNING)))


@pytest.mark.parametrize("script", [FINETUNING, DISTILLATION])
def test_a_run_begins_with_a_checkpoint_of_another_run(runs, tmp_path, script):
    """And once it has its own, it goes on from those."""
    first = runs.whole(script) / "checkpoint-3"
    args = runs.to(script, tmp_path / "run", "--resume_from_checkpoint", first)
    assert run_in_child(script, "distillery.training.loop:_update", 5, KILL, *args) == -KILL
    assert steps_of(tmp_path / "run") == [6]
    run(script, *args)
    assert [row["step"] for row in training_log(tmp_path / "run")] == [4, 6, 8]
    assert training_log(tmp_path / "run") == training_log(runs.whole(script))[2:]
    found, wanted = weights(tmp_path / "run"), weights(runs.whole(script))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_run_that_begins_with_another_ones_checkpoint_learns_as_its_own_flags_say(runs, tmp_path):
    first = runs.whole(FINETUNING) / "checkpoint-3"
    flags = ["--resume_from_checkpoint", first, "--max_steps", 5, "--logging_steps", 1]
    flags += ["--learning_rate", "1e-2", "--lr_scheduler_type", "constant"]
    flags += ["--warmup_steps", 0, "--weight_decay", 0.25, "--save_steps", 5]
    run(FINETUNING, *runs.to(FINETUNING, tmp_path / "run", *flags))
    log = training_log(tmp_path / "run")
    assert [(row["step"], row["learning_rate"]) for row in log] == [(4, 0.01), (5, 0.01)]
    state = torch.load(tmp_path / "run" / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["optimizer"]["param_groups"]] == [0.25, 0]
    assert max(int(each["step"]) for each in state["optimizer"]["state"].values()) == 5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--freeze_encoder"], "checkpoint-3 was trained with other weights frozen"),
        (["--max_steps", 3], "checkpoint-3 has made 3 updates, and this run makes 3 in all"),
    ],
)
def test_a_checkpoint_that_a_run_cannot_begin_with_is_refused(runs, tmp_path, more, said):
    first = runs.whole(FINETUNING) / "checkpoint-3"
    flags = ["--resume_from_checkpoint", first, "--warmup_steps", 0, *more]
    with pytest.raises(ValueError, match=said):
        run(FINETUNING, *runs.to(FINETUNING, tmp_path / "run", *flags))


def test_no_run_goes_back_to_a_checkpoint_or_begins_with_a_bad_one(runs, tmp_path):
    folder = interrupted(runs, tmp_path / "run", 3, 6)
    with pytest.raises(
        ValueError, match=r"checkpoint-3: the run has gone on to checkpoint-6: name"
    ):
        back = ["--resume_from_checkpoint", folder / "checkpoint-3"]
        run(FINETUNING, *runs.to(FINETUNING, folder, *back))
    model = runs.folder / "student"
    with pytest.raises(ValueError, match=r"--resume_from_checkpoint .*it is no checkpoint of a"):
        run(FINETUNING, *runs.to(FINETUNING, tmp_path / "x", "--resume_from_checkpoint", model))
    (folder / "checkpoint-6" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--resume_from_checkpoint .*config.json is damaged"):
        bad = ["--resume_from_checkpoint", folder / "checkpoint-6"]
        run(FINETUNING, *runs.to(FINETUNING, tmp_path / "y", *bad))


def test_old_checkpoints_go(runs, tmp_path):
    run(FINETUNING, *runs.to(FINETUNING, tmp_path, "--save_steps", 2, "--save_total_limit", 2))
    assert steps_of(tmp_path) == [6, 8]


def test_what_may_change_may_change(runs, tmp_path):
    """How often a run saves, logs nothing of it, and how a batch is cut, change no weight."""
    folder = interrupted(runs, tmp_path / "run", 3, script=FINETUNING)
    changes = ["--save_steps", 100, "--dataloader_num_workers", 1, "--save_total_limit", 1]
    run(FINETUNING, *runs.to(FINETUNING, folder, *changes))
    assert_same_run(folder, runs.whole(FINETUNING))
    assert steps_of(folder) == [8]


# --- several processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(runs):
    """Flags of a run that two processes of 4 rows, or one of 8, can make; and the latter's end."""
    flags = ["-m", runs.folder / "pair-student", "--teacher", runs.folder / "pair-teacher"]
    teacher = model_folder(runs.folder / "pair-teacher", 3)  # without dropout
    student_folder(runs.folder / "pair-student", teacher)
    rows = runs.folder / "rows.jsonl"
    # 2 epochs of 10 rows are 8 + 8 + 4: the second process has no row in the last update.
    flags += ["-d", rows, "--language", "ja", "--num_train_epochs", 2, "--learning_rate", "3e-3"]
    flags += ["--logging_steps", 1, "--save_steps", 1, "--do_eval", "--eval_dataset_name", rows]
    flags += ["--predict_with_generate", "--generation_max_length", 16, "--eval_steps", 2]
    one = runs.folder / "one"
    run(DISTILLATION, *flags, *EIGHT, "-o", one)
    assert [row["step"] for row in training_log(one)] == [1, 2, 3]
    return flags, one


FOUR = ["--per_device_train_batch_size", 4]
EIGHT = ["--per_device_train_batch_size", 8]


def test_two_processes_log_and_end_as_one(pair, tmp_path):
    flags, one = pair
    done = launch(DISTILLATION, *flags, *FOUR, "-o", tmp_path, processes=2)
    assert "(4 per process x 1 accumulated x 2 processes)" in done.stdout
    assert_close_run(tmp_path, one)


def test_two_machines_log_and_end_as_one(pair, tmp_path):
    flags, one = pair
    for printed in launch_on_two_machines(DISTILLATION, *flags, *FOUR, "-o", tmp_path):
        assert "(4 per process x 1 accumulated x 2 processes)" in printed
    assert_close_run(tmp_path, one)


def test_one_process_dies_and_the_launch_ends_then_one_alone_goes_on(pair, tmp_path):
    flags, one = pair
    fault = ["distillery.training.loop:_update", 3, KILL, 1]
    args = [*flags, *FOUR, "-o", tmp_path]
    script, path = "tests/stages/training_runs.py", {"PYTHONPATH": f"{REPOSITORY}:{TESTS}"}
    done = launch(script, DISTILLATION, *fault, *args, processes=2, check=False, env=path)
    assert done.returncode != 0
    assert steps_of(tmp_path) == [1, 2]
    with pytest.raises(ValueError, match="num_processes: 8 then, 4 now"):
        run(DISTILLATION, *args)
    run(DISTILLATION, *flags, *EIGHT, "-o", tmp_path)
    assert_close_run(tmp_path, one)


@pytest.fixture
def parting_checked(monkeypatch):
    """Fail a process that parts from the others while it holds the model made for several.

    That model would let go of gloo's threads last, holding Python's lock: sometimes a deadlock.
    """
    end_training = Accelerator.end_training

    def checked(self):
        assert not [None for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
        end_training(self)

    monkeypatch.setattr(Accelerator, "end_training", checked)


@pytest.mark.usefixtures("parting_checked")
def test_sigterm_to_one_process_stops_both_and_one_alone_goes_on(pair, tmp_path):
    flags, one = pair
    args = [*flags, *FOUR, "-o", tmp_path]
    codes = run_in_two(DISTILLATION, "distillery.training.loop:_update", 1, TERMINATE, *args)
    assert codes == [loop.STOPPED] * 2
    assert steps_of(tmp_path) == [1]
    run(DISTILLATION, *flags, *EIGHT, "-o", tmp_path)
    assert_close_run(tmp_path, one)


def test_a_clip_that_only_one_process_cannot_decode_fails_both(tmp_path, capfd):
    model, rows = model_folder(tmp_path / "model"), manifest(tmp_path / "rows.jsonl", 2)
    args = ["-m", model, "-d", rows, "--language", "ja", "--num_train_epochs", 1]
    args += ["--per_device_train_batch_size", 1, "-o", tmp_path / "run"]
    of_second = Order((2,), None, 42)[1:2][0][0]
    (tmp_path / f"rows-{of_second:04d}.flac").write_bytes(b"no sound")
    codes = run_in_two(FINETUNING, "distillery.training.loop:_update", NEVER, KILL, *args)
    said = capfd.readouterr().err
    assert f"clip rows-{of_second:04d} cannot be decoded" in said
    assert said.count("1 of 2 clips could not be decoded") == 2
    assert codes == [1, 1]
    assert record(tmp_path / "run")["status"] == "started"


# --- clips that cannot be used --------------------------------------------------------------------

CLIPS, EPOCHS = 4, 4


def with_a_bad_clip(tmp_path, row):
    """Return flags of a run with one clip for each update and process, and the bad one's report."""
    model = model_folder(tmp_path / "model")
    rows = manifest(tmp_path / "rows.jsonl", CLIPS)
    (tmp_path / f"rows-{row:04d}.flac").write_bytes(b"no sound")
    args = ["-m", model, "-d", rows, "--language", "ja", "-o", tmp_path / "run"]
    args += ["--num_train_epochs", EPOCHS, "--per_device_train_batch_size", 1]
    return [*args, "--max_bad_fraction", 1 / CLIPS], f"clip rows-{row:04d} cannot be decoded"


def test_a_bad_clip_is_reported_and_counted_once_though_the_run_was_killed(tmp_path, capfd):
    args, report = with_a_bad_clip(tmp_path, 2)
    args += ["--save_steps", CLIPS]
    update = "distillery.training.loop:_update"
    assert run_in_child(FINETUNING, update, 2 * CLIPS + 2, KILL, *args) == -KILL
    assert steps_of(tmp_path / "run") == [CLIPS, 2 * CLIPS]
    run(FINETUNING, *args)
    assert capfd.readouterr().err.count(report) == 1
    assert record(tmp_path / "run")["num_bad"] == 1


def test_a_bad_clip_that_two_processes_met_is_one_clip(tmp_path, capfd):
    order = [row for row, _ in Order((CLIPS,), None, 42)[0 : CLIPS * EPOCHS]]
    met_by_both = sorted({*order[::2]} & {*order[1::2]})
    args, report = with_a_bad_clip(tmp_path, met_by_both[0])
    codes = run_in_two(FINETUNING, "distillery.training.loop:_update", NEVER, KILL, *args)
    assert codes == [0, 0]
    assert capfd.readouterr().err.count(report) == 1
    assert record(tmp_path / "run")["num_bad"] == 1
