"""Distillation as its users run it, but in this process; resuming is in test_resume.py."""

from operator import itemgetter

import pytest
import torch
from accelerate.state import AcceleratorState
from stage_runs import record, run
from tiny import tiny_model_folder, tiny_tokenizer
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    NEVER,
    NUM_ROWS,
    TEXTS,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    poison,
    record_rows,
    run_in_child,
    run_in_two,
    student_folder,
    training_log,
    weights,
)

from distillery.training import step
from distillery.whisper import checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a teacher, its student, and labelled rows before and after a filter."""
    folder = tmp_path_factory.mktemp("distillation")
    teacher = model_folder(folder / "teacher", 3)
    student_folder(folder / "student", teacher)
    said = {"whisper_transcript": lambda i: f"<|0.00|>{TEXTS[i % 5]}<|0.80|>"}
    labelled = manifest(folder / "labelled.jsonl", **said)
    flags = ["-m", teacher, "--language", "ja", "--wer_threshold", 10]
    run("run_data_filtering.py", "-d", labelled, "-o", folder / "filtered", *flags)
    run("run_data_filtering.py", "-d", labelled, "-o", folder / "features", *flags, "--vectorize")
    return folder


@pytest.fixture
def distil(place, tmp_path):
    """Distil the filtered rows, unless flags say otherwise, and return the output folder."""

    def distil(*flags, to="run", rows=place / "filtered"):
        always = ["-m", place / "student", "--teacher", place / "teacher", "--language", "ja"]
        always += ["-d", rows, "--logging_steps", 1, "--per_device_train_batch_size", 5]
        run(DISTILLATION, *always, "-o", tmp_path / to, *flags)
        return tmp_path / to

    return distil


ONE_EPOCH = ["--num_train_epochs", 1]
UPDATE = "distillery.training.loop:_update"


@pytest.fixture
def teacher_outputs(monkeypatch):
    """Return a list that will hold the teacher's outputs for every batch."""
    outputs = []
    call = step.Teacher.__call__
    monkeypatch.setattr(
        step.Teacher,
        "__call__",
        lambda self, *args: outputs.append(call(self, *args)) or outputs[-1],
    )
    return outputs


def moved(folder, before):
    """Return the names of the weights that are not what they were, bit for bit."""
    then = weights(before)
    return {name for name, tensor in weights(folder).items() if not torch.equal(tensor, then[name])}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_student_follows_its_teacher(distil, place, teacher_outputs, frozen):
    flags = ["--freeze_encoder"] if frozen else []
    flags += ["--max_steps", 40, "--learning_rate", "5e-3", "--ce_weight", 0]
    folder = distil(*flags)
    log = training_log(folder)
    assert log[-1]["kl"] < log[0]["kl"] / 2
    assert all(row["loss"] == pytest.approx(row["kl"]) for row in log)
    assert teacher_outputs
    assert all((each.encoder_states is not None) == frozen for each in teacher_outputs)
    encoder = {name for name in weights(folder) if name.startswith("model.encoder.")}
    assert bool(moved(folder, place / "teacher") & encoder) is not frozen
    assert not frozen or encoder.isdisjoint(moved(folder, place / "student"))
    written = record(folder)
    assert (written["stage"], written["status"]) == ("run_distillation", "complete")
    assert "following" in (folder / "README.md").read_text("utf-8")
    assert checkpoint.load(str(folder)).model.generation_config.language == "ja"


def test_a_shared_encoder_gives_the_loss_of_two(distil, monkeypatch):
    shared = distil(*ONE_EPOCH, "--freeze_encoder", to="shared")
    monkeypatch.setattr(step, "have_same_weights", lambda *_: False)
    assert_close_run(distil(*ONE_EPOCH, "--freeze_encoder", to="two"), shared, 1e-6)


def test_the_loss_is_the_weighted_sum_of_its_parts(distil):
    flags = ["--ce_weight", 0.3, "--kl_weight", 0.7, "--temperature", 3]
    for row in training_log(distil(*ONE_EPOCH, *flags)):
        assert row["loss"] == pytest.approx(0.3 * row["ce"] + 0.7 * row["kl"], rel=1e-6)
        assert row["kl"] > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(distil, place, tmp_path):
    flags = ["-m", place / "teacher", "--teacher", place / "teacher", "--language", "ja"]
    flags += ["-d", place / "labelled.jsonl", "--max_steps", 1, "-o", tmp_path / "self"]
    run(DISTILLATION, *flags, "--logging_steps", 1, "--condition_on_prev_probability", 1)
    (row,) = training_log(tmp_path / "self")
    assert row["kl"] == pytest.approx(0, abs=1e-6)


def test_without_kl_it_is_fine_tuning(distil, place, tmp_path):
    flags = ["--num_train_epochs", 2, "--learning_rate", "3e-3"]
    distilled = distil(*flags, "--kl_weight", 0, "--ce_weight", 1)
    common = ["--language", "ja", "-d", place / "filtered", "--logging_steps", 1]
    common += ["--per_device_train_batch_size", 5, "-o", tmp_path / "tuned"]
    run(FINETUNING, "-m", place / "student", *common, *flags)
    for one, other in zip(training_log(distilled), training_log(tmp_path / "tuned"), strict=True):
        for name in ("loss", "ce", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)
    theirs = weights(tmp_path / "tuned")
    assert all(torch.allclose(w, theirs[n], atol=1e-6) for n, w in weights(distilled).items())


def test_hard_labels_alone_need_no_teacher(place, tmp_path, monkeypatch):
    """Shrink and fine-tune: even where a teacher is named, it is neither loaded nor run."""
    named = []
    load = checkpoint.load
    monkeypatch.setattr(
        checkpoint, "load", lambda name, *a, **b: named.append(name) or load(name, *a, **b)
    )
    flags = ["-m", place / "student", "-d", place / "filtered", "--language", "ja", *ONE_EPOCH]
    flags += ["--kl_weight", 0, "--logging_steps", 1, "--do_eval", "--eval_dataset_name"]
    flags += [place / "filtered"]
    run(DISTILLATION, *flags, "-o", tmp_path / "alone")
    run(DISTILLATION, *flags, "-o", tmp_path / "named", "--teacher", place / "teacher")
    assert {*named} == {str(place / "student")}
    assert_same_run(tmp_path / "named", tmp_path / "alone")
    rows = training_log(tmp_path / "alone", "")
    assert {row["kind"].split()[0] for row in rows} == {"train", "eval"}
    assert all(row["loss"] == row["ce"] > 0 and row["kl"] == 0 for row in rows)
    card = (tmp_path / "named" / "README.md").read_text("utf-8")
    assert "following" not in card and "| `kl_weight` | 0" in card
    run(DISTILLATION, *flags, "-o", tmp_path / "dry", "--dry_run")


MSE = ["--mse_weight", 0.25]


@pytest.mark.parametrize("frozen", [True, False])
def test_hidden_states_follow_those_of_the_copied_layers(distil, place, frozen):
    flags = ["--max_steps", 20, "--learning_rate", "5e-3", "--ce_weight", 0, "--kl_weight", 0]
    flags += ["--freeze_encoder"] if frozen else []
    evaluation = ["--do_eval", "--eval_dataset_name", place / "filtered", "--eval_steps", 10]
    rows = training_log(distil(*flags, *MSE, *evaluation), "")
    assert all(row["loss"] == pytest.approx(0.25 * row["mse"]) for row in rows)
    assert rows[-1]["mse"] < 0.8 * rows[0]["mse"]


def test_hidden_states_are_compared_after_a_resume_as_before(distil, place, tmp_path):
    """A checkpoint keeps the layer map, and micro-batches and recomputing change nothing."""
    flags = [*MSE, "--max_steps", 4, "--learning_rate", "3e-3"]
    whole = distil(*flags, "--per_device_train_batch_size", 4, to="whole")
    cut = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2]
    assert_close_run(distil(*flags, *cut, "--gradient_checkpointing", to="cut"), whole)
    args = ["-m", place / "student", "--teacher", place / "teacher", "--language", "ja"]
    args += ["-d", place / "filtered", "--logging_steps", 1, "--per_device_train_batch_size", 4]
    args += [*flags, "--save_steps", 1, "-o", tmp_path / "killed"]
    assert run_in_child(DISTILLATION, UPDATE, 3, KILL, *args) == -KILL
    run(DISTILLATION, *args)
    assert_same_run(tmp_path / "killed", whole)
    args = [*args[:-1], tmp_path / "two", "--per_device_train_batch_size", 2]
    assert run_in_two(DISTILLATION, UPDATE, NEVER, KILL, *args) == [0, 0]
    assert_close_run(tmp_path / "two", whole)


def test_labels_are_those_of_the_filter_with_and_without_it(distil, place, monkeypatch):
    seen = record_rows(monkeypatch)
    distil(*ONE_EPOCH)
    # In a batch, labels that are still to be drawn are counted with all timestamps.
    filtered = [sorted(rows, key=itemgetter("id")) for rows in seen]
    seen.clear()
    distil(*ONE_EPOCH, rows=place / "labelled.jsonl", to="unfiltered")
    assert filtered == [sorted(rows, key=itemgetter("id")) for rows in seen]
    assert sum(map(len, seen)) == NUM_ROWS


def test_references_are_learnt_in_place_of_stored_labels(distil, place, tmp_path, monkeypatch):
    """Of a filtered dataset, and of one whose audio lies elsewhere."""
    flags = ["-m", place / "teacher", "--language", "ja", "--max_label_length", 12]
    flags += ["-d", manifest(tmp_path / "source.jsonl"), "--output_format", "labels"]
    run("run_pseudo_labelling.py", *flags, "-o", tmp_path / "labels")
    student = checkpoint.load_processor(str(place / "student"))
    prefix, end = student.tokens.prefix("ja", "transcribe", False), student.tokens.end_of_text
    wanted = {(*prefix, *student.tokenizer.encode(t, add_special_tokens=False), end) for t in TEXTS}
    seen = record_rows(monkeypatch)
    for rows in (place / "filtered", tmp_path / "labels"):
        seen.clear()
        reading = ["--use_pseudo_labels", "False", "--timestamp_probability", 1]
        distil(*ONE_EPOCH, *reading, rows=rows, to=f"of-{rows.name}")
        assert {tuple(row["labels"]) for batch in seen for row in batch} == wanted


def test_stored_features_give_nearly_the_same(distil, place):
    audio = training_log(distil(*ONE_EPOCH, to="audio"))
    features = training_log(distil(*ONE_EPOCH, rows=place / "features", to="features"))
    for one, other in zip(audio, features, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_pseudo_labels_far_from_their_references_are_left_out(distil, tmp_path, monkeypatch):
    said = {"whisper_transcript": lambda i: TEXTS[0]}
    seen = record_rows(monkeypatch)
    folder = distil(*ONE_EPOCH, "--wer_threshold", 0, rows=manifest(tmp_path / "p.jsonl", **said))
    assert sorted(row["id"] for rows in seen for row in rows) == ["p-0000", "p-0005"]
    assert record(folder)["ledger"]["dropped"] == {"error_rate": 8}


def test_stored_labels_that_their_prompt_makes_too_long_are_left_out(distil, place, tmp_path):
    start = checkpoint.load_processor(str(place / "student")).tokens
    text = [start.start_of_transcript, start.languages["ja"], start.transcribe, 5, 300]
    prompted = {0: 92, 1: 91}  # 96 positions hold 97 labels, as the last is not read
    rows = manifest(
        tmp_path / "s.jsonl",
        labels=lambda i: [*([start.start_of_prev] + [5] * prompted[i] if i < 2 else []), *text],
    )
    folder = distil(*ONE_EPOCH, rows=rows)
    assert record(folder)["ledger"]["dropped"] == {"too_long_labels": 1}


def test_recomputed_activations_change_nothing(distil):
    plain = distil("--max_steps", 3, to="plain")
    assert_close_run(distil("--max_steps", 3, "--gradient_checkpointing", to="less"), plain)


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_times_accumulation_is_all_that_counts(distil, frozen):
    flags = ["--num_train_epochs", 2, "--learning_rate", "3e-3"]
    flags += ["--freeze_encoder"] if frozen else []
    whole = distil(*flags, "--per_device_train_batch_size", 8, to="whole")
    cut = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4]
    assert_close_run(distil(*flags, *cut, to="cut"), whole)


@pytest.fixture
def other_precision():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("frozen", [True, False])
def test_bfloat16_is_near_float32(distil, place, other_precision, frozen):
    flags = ["--max_steps", 3, *(["--freeze_encoder"] if frozen else [])]
    evaluation = ["--do_eval", "--eval_dataset_name", place / "filtered", "--predict_with_generate"]
    evaluation += ["--generation_max_length", 12]
    half = distil(*flags, *evaluation, "--dtype", "bfloat16", to="half")
    AcceleratorState._reset_state(reset_partial_state=True)
    full = distil(*flags, to="full")
    for one, other in zip(training_log(half), training_log(full), strict=True):
        assert one["ce"] == pytest.approx(other["ce"], rel=0.01)
        assert one["kl"] == pytest.approx(other["kl"], rel=0.1)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}
    assert training_log(half, "eval")[0]["loss"] > 0


def test_an_update_that_is_not_finite_is_skipped(distil, monkeypatch, capsys):
    poison(monkeypatch, "labelled-0004")
    folder = distil(*ONE_EPOCH, "--freeze_encoder")
    assert capsys.readouterr().err.count("its gradient is not finite") == 1
    assert len(training_log(folder)) == 1
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


# --- teacher and student that do not fit ----------------------------------------------------------


def refused(place, tmp_path, other):
    flags = ["-m", place / "student", "--teacher", other, "--language", "ja"]
    flags += ["-d", place / "filtered", "--max_steps", 1, "-o", tmp_path / "run"]
    with pytest.raises(ValueError) as error:
        run(DISTILLATION, *flags)
    return str(error.value)


def test_another_window_is_refused(place, tmp_path):
    other = tiny_model_folder(tmp_path / "other", window_s=2)
    said = refused(place, tmp_path, other)
    assert "do not fit: max_source_positions is 100 in the teacher and 50 in the student" in said


def test_another_vocabulary_is_refused(place, tmp_path):
    other = tiny_model_folder(tmp_path / "other", window_s=1, tokenizer=tiny_tokenizer(290))
    assert "do not fit: vocab_size is" in refused(place, tmp_path, other)


def test_wrong_weights_are_named_before_anything_loads(place, tmp_path, capsys):
    flags = ["-m", place / "student", "-d", place / "filtered", "-o", tmp_path]
    with pytest.raises(SystemExit):
        run(DISTILLATION, *flags, "--temperature", 0, "--kl_weight", -1, "--ce_weight", -2)
    said = capsys.readouterr().err
    for wrong in ("--temperature", "--kl_weight", "--ce_weight", "--teacher_model_name_or_path"):
        assert wrong in said
    with pytest.raises(SystemExit):
        run(DISTILLATION, *flags, "--kl_weight", 0, "--ce_weight", 0)
    assert "--ce_weight, --kl_weight and --mse_weight are 0" in capsys.readouterr().err
