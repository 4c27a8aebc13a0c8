"""Parts of the training loop; whole runs are in tests/stages."""

import json
import math
import random
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model_folder

from distillery.cli.arguments import ModelArguments
from distillery.cli.training_arguments import TrainingArguments
from distillery.data.collators import Batch
from distillery.data.order import BatchPlan, Order
from distillery.storage import checkpoints
from distillery.storage.files import read_json, write_json
from distillery.text.normalizers import normalizer_for
from distillery.training import loop
from distillery.training.loop import Progress
from distillery.whisper import checkpoint

# --- how long a run is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "plan", "sizes", "wanted"),
    [
        ({"max_steps": 5}, BatchPlan(4, 2, 3), (100,), (120, 5)),
        ({"max_steps": 5}, BatchPlan(4, 2, 3), None, (120, 5)),
        ({"num_train_epochs": 1}, BatchPlan(4, 1, 1), (10,), (10, 3)),
        ({"num_train_epochs": 2}, BatchPlan(4, 1, 1), (3, 7), (20, 5)),
        ({"num_train_epochs": 0.5}, BatchPlan(4, 1, 1), (11,), (6, 2)),
        ({"num_train_epochs": 3}, BatchPlan(2, 2, 2), (9,), (27, 4)),
        ({"num_train_epochs": 9, "max_steps": 1}, BatchPlan(2, 1, 1), (9,), (2, 1)),
    ],
)
def test_length(flags, plan, sizes, wanted):
    rows_per_epoch = sum(sizes) if sizes else None
    assert loop.length(TrainingArguments(**flags), plan, rows_per_epoch) == wanted


def test_a_stream_without_max_steps_has_no_length():
    with pytest.raises(ValueError, match="--streaming needs --max_steps"):
        loop.length(TrainingArguments(), BatchPlan(1, 1, 1), None)


@pytest.mark.parametrize("plan", [BatchPlan(3, 1, 1), BatchPlan(2, 2, 2), BatchPlan(7, 1, 2)])
@pytest.mark.parametrize("epochs", [1, 2.5, 4])
def test_every_row_is_trained_on_as_often_as_there_are_epochs(plan, epochs):
    order = Order((8, 5), None, 0)
    num_rows, num_updates = loop.length(
        TrainingArguments(num_train_epochs=epochs), plan, order.rows_per_epoch
    )
    found = [
        key
        for process in range(plan.num_processes)
        for span in plan.spans(0, num_updates, num_rows, process)
        for key in order[span]
    ]
    assert sorted(found) == sorted(order[0:num_rows])
    counts = [sum(row == index for row, _ in found) for index in range(13)]
    assert {*counts} == {math.floor(epochs), math.ceil(epochs)}


@pytest.mark.parametrize("processes", [1, 2])
def test_each_process_gets_its_micro_batches_for_every_update(processes):
    plan = BatchPlan(2, 3, processes)
    num_rows, num_updates = loop.length(TrainingArguments(num_train_epochs=1), plan, 17)
    for process in range(processes):
        spans = list(plan.spans(0, num_updates, num_rows, process))
        assert len(spans) == num_updates * plan.accumulation
        assert list(plan.spans(1, num_updates, num_rows, process)) == spans[plan.accumulation :]


# --- the log -------------------------------------------------------------------------------------


def log_of(path, *lines):
    path.write_text("".join(lines))
    return path


LINES = [json.dumps({"step": step, "kind": "train", "loss": 0.1}) + "\n" for step in (1, 2, 2, 3)]


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_the_log_is_cut_behind_a_step(tmp_path, step, kept):
    path = log_of(tmp_path / "log", *LINES)
    loop._cut_log(path, step)
    assert path.read_text() == "".join(LINES[:kept])
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_a_line_that_a_kill_cut_short_is_forgotten(tmp_path):
    path = log_of(tmp_path / "log", *LINES[:2], LINES[2][:-5])
    loop._cut_log(path, 2)
    assert path.read_text() == "".join(LINES[:2])
    loop._cut_log(tmp_path / "none", 2)
    assert not (tmp_path / "none").exists()


@pytest.fixture
def accelerator():
    return SimpleNamespace(is_main_process=True)


def test_without_a_checkpoint_the_log_of_a_killed_run_is_forgotten(tmp_path, accelerator):
    path = log_of(tmp_path / loop.LOSS_LOG, *LINES, '{"step": 4, "ki')
    assert loop._resume(tmp_path, None, None, accelerator) == Progress()
    assert path.read_text() == ""


# --- progress ------------------------------------------------------------------------------------


def test_progress_comes_back_exactly(tmp_path):
    rng = random.Random(0)
    for _ in range(50):
        window = [rng.uniform(-1, 1) * 10 ** rng.randint(-12, 12) for _ in range(4)]
        progress = Progress(rng.randrange(10**9), window, rng.random() / 3, 5, 7)
        write_json(tmp_path / "progress.json", asdict(progress))
        assert Progress(**read_json(tmp_path / "progress.json")) == progress


def test_two_runs_do_not_share_a_window():
    Progress().window[0] = 1.0
    assert Progress() == Progress(0, [0.0] * 4, None, 0, 0)


# --- bad clips and bad gradients -----------------------------------------------------------------


def batch(ids, bad=()):
    return Batch(list(ids), ["" for _ in ids], [(b, "is broken") for b in bad], None, None, None)


def test_bad_clips_are_named(caplog):
    loop._name_bad([batch("ab", "c"), batch("d"), batch("", "e")])
    assert [record.getMessage() for record in caplog.records] == [
        "clip c is broken",
        "clip e is broken",
    ]


@pytest.mark.parametrize("is_set", [False, True])
def test_processes_agree_on_sums(is_set):
    job = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", reduce=lambda own, how: 2 * own)
    )
    micro = [batch("ab", "c"), batch("d")]
    stop = SimpleNamespace(is_set=is_set)
    assert loop._agree(job, micro, stop) == [0, 8, 2, 2 * is_set]


def test_too_many_bad_clips_are_an_error():
    progress = Progress(num_bad=2, num_seen=5)
    loop._check_bad(progress, 0.4)
    with pytest.raises(ValueError, match=r"2 of 5 clips .* --max_bad_fraction 0.39"):
        loop._check_bad(progress, 0.39)


def test_the_rows_of_a_gradient_that_is_not_finite_are_named(caplog):
    loop._note_non_finite([batch("ab"), batch("c")], 7, 1)
    assert "update 7 is skipped" in caplog.text
    assert "['a', 'b', 'c']" in caplog.text
    loop._note_non_finite([batch("a")], 8, 2)
    with pytest.raises(ValueError, match="3 updates in a row"):
        loop._note_non_finite([batch("a")], 9, 3)


@pytest.mark.parametrize(
    ("step", "every", "wanted"), [(4, 2, True), (5, 2, False), (5, None, False), (1, 1, True)]
)
def test_when_something_is_due(step, every, wanted):
    assert loop._is_due(step, every) is wanted


# --- scores while training -----------------------------------------------------------------------


def test_error_rates_are_normalised_percent():
    pairs = [("ねこ。", "ねこ"), ("いぬとさかな", "いぬとさかに"), ("", "うるさい")]
    found = loop._error_rates(pairs, normalizer_for("ja"))
    assert found["cer"] == pytest.approx(100 / 8)
    assert found["wer"] == pytest.approx(50)
    assert loop._error_rates([], normalizer_for("ja")) == {}
    assert loop._error_rates([("", "x")], normalizer_for("ja")) == {}


# --- the model to be trained ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def student_of(folder, run_folder, freeze_encoder=True, gradient_checkpointing=False):
    return loop.load_student(
        SimpleNamespace(device=torch.device("cpu")),
        ModelArguments(model_name_or_path=str(folder)),
        TrainingArguments(
            freeze_encoder=freeze_encoder, gradient_checkpointing=gradient_checkpointing
        ),
        SimpleNamespace(folder=run_folder),
    )


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_student_is_widened_and_its_encoder_frozen(folder, tmp_path):
    half = checkpoint.load(str(folder), "bfloat16")
    checkpoint.save(half.model, half.tokenizer, half.feature_extractor, tmp_path / "half")
    student = student_of(tmp_path / "half", tmp_path)
    assert {p.dtype for p in student.model.parameters()} == {torch.float32}
    names = trainable(student.model)
    assert names == {n for n, _ in student.model.named_parameters() if ".encoder." not in n}
    assert "model.decoder.embed_tokens.weight" in names


def test_the_encoder_is_trained_too(folder, tmp_path):
    student = student_of(folder, tmp_path, freeze_encoder=False)
    everything = {name for name, _ in student.model.named_parameters()}
    # Whisper's own: the encoder's positions are sinusoids.
    assert everything - trainable(student.model) <= {"model.encoder.embed_positions.weight"}
    assert not student.model.model.decoder.gradient_checkpointing


def test_the_student_goes_on_from_a_checkpoint(folder, tmp_path):
    other = checkpoint.load(str(folder))
    with torch.no_grad():
        other.model.model.decoder.layer_norm.weight.fill_(7)
    with checkpoints.sealed_folder(checkpoints.checkpoint_path(tmp_path, 3)) as temporary:
        checkpoint.save(other.model, other.tokenizer, other.feature_extractor, temporary)
    student = student_of(folder, tmp_path)
    assert float(student.model.model.decoder.layer_norm.weight.detach().mean()) == 7


def test_gradient_checkpointing(folder, tmp_path):
    student = student_of(folder, tmp_path, gradient_checkpointing=True)
    assert student.model.model.decoder.gradient_checkpointing
