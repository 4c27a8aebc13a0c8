"""Fine-tuning as its users run it, but in this process; resuming is in test_resume.py."""

import json
import math
import multiprocessing
from collections import Counter

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from stage_runs import english_only, read_manifest, record, run, snapshot, write_manifest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tone_manifest
from training_runs import (
    FINETUNING,
    NUM_ROWS,
    TEXTS,
    assert_close_run,
    assert_same_run,
    manifest,
    model_folder,
    poison,
    record_rows,
    training_log,
    weights,
)
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.storage.checkpoints import find_damage
from distillery.training.validation import NUM_EXAMPLES
from distillery.whisper import checkpoint

CHECKPOINT_FILES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    model_folder(folder / "model")
    manifest(folder / "rows.jsonl")
    return folder


@pytest.fixture
def finetune(place, tmp_path):
    """Fine-tune on the rows, unless flags say otherwise, and return the output folder."""

    def finetune(*flags, to="run", rows=place / "rows.jsonl", model=place / "model"):
        always = ["-m", model, "--language", "ja", "--logging_steps", 1]
        if rows:
            always += ["-d", rows]
        run(FINETUNING, *always, "-o", tmp_path / to, *flags)
        return tmp_path / to

    return finetune


def files_in(folder):
    return {path.name for path in folder.iterdir()}


def ids_of(micro_batches):
    return Counter(row["id"] for rows in micro_batches for row in rows)


# --- what comes out -------------------------------------------------------------------------------


def test_a_model_learns_and_the_folder_is_whole(finetune, place, capsys):
    flags = ["--max_steps", 60, "--learning_rate", "1e-2", "--per_device_train_batch_size", 10]
    folder = finetune(*flags)
    log = training_log(folder)
    assert log[-1]["loss"] < log[0]["loss"] / 3
    assert [row["step"] for row in log] == list(range(1, 61))
    assert log[0]["learning_rate"] == pytest.approx(1e-2 * 59 / 60)
    assert all(row["ce"] == row["loss"] and row["kl"] == 0 for row in log)

    assert files_in(folder) >= CHECKPOINT_FILES | {"README.md", "run.json", "train_log.jsonl"}
    assert files_in(folder / "checkpoint-60") >= CHECKPOINT_FILES
    model, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.generation_config.language == "ja"
    assert model.generation_config.task == "transcribe"
    assert model.generation_config.lang_to_id and model.generation_config.task_to_id
    WhisperProcessor.from_pretrained(folder).tokenizer.normalize("it's colour")
    before = weights(place / "model")
    assert all(not torch.equal(before[name], w) for name, w in weights(folder).items() if w.any())

    written = record(folder)
    assert (written["stage"], written["status"]) == ("run_finetuning", "complete")
    assert (written["updates"], written["num_bad"], written["best"]) == (60, 0, None)
    assert written["ledger"] == {"in": 10, "out": 10, "dropped": {}, "quarantined": {}}
    assert written["arguments"]["max_steps"] == 60
    assert list(written["inputs"]) == [str(place / "rows.jsonl"), str(place / "model")]
    card = (folder / "README.md").read_text("utf-8")
    assert (
        "Made by `run_finetuning` from `model`, on `rows.jsonl`" in card
    )  # no folders of this machine

    kept = snapshot(folder)
    capsys.readouterr()
    finetune(*flags)
    assert snapshot(folder) == kept
    assert "is complete: nothing to do" in capsys.readouterr().err


def test_an_english_only_model_is_trained_without_a_language(tmp_path, place):
    model = english_only(model_folder(tmp_path / "model"))
    flags = ["-d", place / "rows.jsonl", "--max_steps", 1, "-o", tmp_path / "run"]
    with pytest.raises(ValueError, match="English-only"):
        run(FINETUNING, "-m", model, "--language", "ja", *flags)
    run(FINETUNING, "-m", model, *flags, "--overwrite_output_dir")
    settings = json.loads((tmp_path / "run" / "generation_config.json").read_text("utf-8"))
    assert "language" not in settings


def test_a_multilingual_model_needs_a_language(tmp_path, place):
    flags = ["-m", place / "model", "-d", place / "rows.jsonl", "-o", tmp_path, "--max_steps", 1]
    with pytest.raises(ValueError, match="needs a language"):
        run(FINETUNING, *flags)


# --- what is learnt -------------------------------------------------------------------------------


@pytest.fixture
def tokens(place):
    return checkpoint.load_processor(str(place / "model")).tokens


@pytest.fixture
def tokenizer(place):
    return checkpoint.load_processor(str(place / "model")).tokenizer


ONE_EPOCH = ["--num_train_epochs", 1]


def test_labels_from_plain_text(finetune, tokens, tokenizer, monkeypatch):
    seen = record_rows(monkeypatch)
    finetune(*ONE_EPOCH, "--timestamp_probability", 1)
    for row in (row for rows in seen for row in rows):
        text = TEXTS[int(row["id"][-4:]) % len(TEXTS)]
        body = tokenizer.encode(text, add_special_tokens=False)
        prefix = [tokens.start_of_transcript, tokens.languages["ja"], tokens.transcribe]
        assert row["labels"] == [*prefix, tokens.no_timestamps, *body, tokens.end_of_text]


def test_training_texts_are_cleaned_and_evaluated_ones_are_not(
    finetune, tmp_path, tokenizer, monkeypatch
):
    spoken = "“कि हूँ, ज़रा-सा!” WHO"
    rows = manifest(tmp_path / "h.jsonl", text=lambda i: spoken)
    seen = record_rows(monkeypatch)
    cleaning = ["--do_lower_case", "--do_remove_punctuation", "--chars_to_ignore", "र", "H"]
    evaluation = ["--do_eval", "--eval_dataset_name", rows, "--max_eval_samples", 1]
    folder = finetune(*ONE_EPOCH, *cleaning, *evaluation, rows=rows)
    *learnt, evaluated = [row for rows in seen for row in rows]
    texts = {tokenizer.decode(row["labels"], skip_special_tokens=True) for row in learnt}
    assert texts == {"कि हूँ ज़ासा wo"}
    assert tokenizer.decode(evaluated["labels"], skip_special_tokens=True) == spoken
    assert record(folder)["arguments"]["chars_to_ignore"] == ["र", "H"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_share_of_windows_is_without_speech_and_counted(
    finetune, tokens, monkeypatch, place, streaming
):
    seen = record_rows(monkeypatch)
    flags = ["--max_steps", 10, "--per_device_train_batch_size", 4, "--no_speech_probability", 0.5]
    flags += ["--do_eval", "--eval_dataset_name", place / "rows.jsonl"]
    folder = finetune(*flags, *(["--streaming"] if streaming else []))
    learnt, evaluated = seen[:-1], seen[-1]
    first = {tuple(row["labels"][:2]) for row in evaluated}
    start = tokens.start_of_transcript
    assert first == {(start, tokens.languages["ja"])}
    silent = sum(
        row["labels"] == [start, tokens.no_speech, tokens.end_of_text] or len(row["labels"]) == 5
        for rows in learnt
        for row in rows
    )
    assert 10 <= silent <= 30
    assert record(folder)["num_without_speech"] == silent
    assert training_log(folder)[-1]["num_without_speech"] == silent


def test_labels_that_are_built_already_cannot_be_cleaned(finetune, tmp_path, tokens):
    labels = [*tokens.prefix("ja", "transcribe", False), 5, tokens.end_of_text]
    rows = manifest(tmp_path / "l.jsonl", labels=lambda i: labels)
    with pytest.raises(ValueError, match=r"row l-0000: its labels are built already"):
        finetune(*ONE_EPOCH, "--do_lower_case", rows=rows)


@pytest.mark.parametrize("share", [0, 1])
def test_labels_from_text_with_timestamps(finetune, tmp_path, tokens, monkeypatch, share):
    rows = manifest(tmp_path / "t.jsonl", timed=lambda i: f"<|0.00|>{TEXTS[i % 5]}<|0.80|>")
    seen = record_rows(monkeypatch)
    flags = [*ONE_EPOCH, "--text_column_name", "timed", "--timestamp_probability", share]
    folder = finetune(*flags, rows=rows)
    labels = [row["labels"] for rows in seen for row in rows]
    assert len(labels) == NUM_ROWS
    for ids in labels:
        assert (tokens.no_timestamps in ids) is not bool(share)
        assert sum(tokens.is_timestamp(i) for i in ids) == 2 * share
    # All but <|startoftranscript|> is learnt.
    assert training_log(folder)[0]["tokens"] == sum(len(ids) - 1 for ids in labels)


@pytest.mark.parametrize("as_ids", [True, False])
def test_labels_from_pseudo_labels(finetune, tmp_path, tokens, tokenizer, monkeypatch, as_ids):
    def transcript(i):
        text = f"<|0.00|>{TEXTS[(i + 1) % 5]}<|0.80|>"
        return tokenizer.encode(text, add_special_tokens=False) if as_ids else text

    rows = manifest(tmp_path / "p.jsonl", whisper_transcript=transcript)
    seen = record_rows(monkeypatch)
    finetune(*ONE_EPOCH, rows=rows)
    for row in (row for rows in seen for row in rows):
        spoken = TEXTS[(int(row["id"][-4:]) + 1) % 5]
        assert tokenizer.decode(row["labels"], skip_special_tokens=True).strip() == spoken


def test_pseudo_labels_far_from_their_references_are_left_out(finetune, tmp_path, monkeypatch):
    rows = manifest(tmp_path / "p.jsonl", whisper_transcript=lambda i: TEXTS[0 if i % 2 else i % 5])
    seen = record_rows(monkeypatch)
    folder = finetune(*ONE_EPOCH, "--wer_threshold", 10, rows=rows)
    kept = {f"p-{i:04d}": 1 for i in range(NUM_ROWS) if i % 2 == 0 or i % 5 == 0}
    assert ids_of(seen) == kept
    assert record(folder)["ledger"] == {
        "in": NUM_ROWS,
        "out": len(kept),
        "dropped": {"error_rate": NUM_ROWS - len(kept)},
        "quarantined": {},
    }


def test_labels_longer_than_the_model_are_left_out_and_counted(finetune, tmp_path, monkeypatch):
    rows = manifest(tmp_path / "long.jsonl", text=lambda i: "ねこ" * (60 if i == 3 else 2))
    seen = record_rows(monkeypatch)
    folder = finetune(*ONE_EPOCH, rows=rows)
    assert "long-0003" not in ids_of(seen)
    assert record(folder)["ledger"]["dropped"] == {"too_long_labels": 1}


# --- how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "per_row"), [(2, {2: 10}), (1.5, {2: 5, 1: 5}), (0.5, {1: 5})])
def test_every_row_comes_once_per_epoch_though_the_last_batch_is_short(
    finetune, monkeypatch, epochs, per_row
):
    seen = record_rows(monkeypatch)
    folder = finetune("--num_train_epochs", epochs, "--per_device_train_batch_size", 3)
    assert Counter(ids_of(seen).values()) == per_row
    if epochs >= 1:  # the update in which an epoch ends has rows of the next one, too
        first = [row["id"] for rows in seen[: math.ceil(NUM_ROWS / 3)] for row in rows]
        assert len(set(first)) == NUM_ROWS
    log = training_log(folder)
    assert len(log) == math.ceil(NUM_ROWS * epochs / 3)
    labels = [row["labels"] for rows in seen for row in rows]
    assert sum(row["tokens"] for row in log) == sum(len(ids) - 1 for ids in labels)


def test_several_datasets_are_mixed_by_size_or_by_weight(finetune, place, tmp_path, monkeypatch):
    other = manifest(tmp_path / "other.jsonl", 5)
    both = f"{place / 'rows.jsonl'}+{other}"
    seen = record_rows(monkeypatch)
    folder = finetune(*ONE_EPOCH, rows=both)
    assert Counter(name[:-5] for name in ids_of(seen)) == {"rows": 10, "other": 5}
    assert ids_of(seen).most_common(1)[0][1] == 1
    assert record(folder)["ledger"]["in"] == 15
    seen.clear()
    finetune(*ONE_EPOCH, "--train_dataset_samples", "5+10", rows=both, to="weighted")
    drawn = Counter(name[:-5] for name in ids_of(seen).elements())
    assert drawn == {"rows": 5, "other": 10}
    seen.clear()
    finetune(*ONE_EPOCH, "--max_train_samples", 3, rows=both, to="few")
    assert Counter(name[:-5] for name in ids_of(seen)) == {"rows": 3, "other": 3}


def test_several_splits_and_text_columns(finetune, tmp_path, monkeypatch, tokenizer):
    tone_manifest(tmp_path / "two.jsonl", 6)
    rows = read_manifest(tmp_path / "two.jsonl")
    for i, row in enumerate(rows):
        row |= {"split": "ab"[i % 2], "first": "いぬ", "second": "ねこ"}
    write_manifest(tmp_path / "two.jsonl", rows)
    seen = record_rows(monkeypatch)
    flags = ["--train_split_name", "a+b", "--text_column_name", "first+second"]
    finetune(*ONE_EPOCH, *flags, rows=tmp_path / "two.jsonl")
    learnt = Counter(
        (int(row["id"][-4:]) % 2, tokenizer.decode(row["labels"], skip_special_tokens=True))
        for rows in seen
        for row in rows
    )
    assert learnt == {(0, "いぬ"): 3, (1, "ねこ"): 3}


def test_a_stream_can_be_trained_on_and_evaluated(finetune, monkeypatch, place):
    seen = record_rows(monkeypatch)
    flags = ["--streaming", "--max_steps", 5, "--per_device_train_batch_size", 4]
    evaluation = ["--do_eval", "--eval_dataset_name", place / "rows.jsonl"]
    folder = finetune(*flags)
    # Shuffled in blocks of many passes: 20 rows of 1,000 need not all differ.
    assert sum(ids_of(seen).values()) == 20
    finetune(*flags, *evaluation, to="evaluated")
    assert training_log(folder) == training_log(folder.parent / "evaluated")
    assert len(training_log(folder.parent / "evaluated", "eval")) == 1


# --- the arithmetic -------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 4), (1, 8), (3, 3)])
def test_batch_times_accumulation_is_all_that_counts(finetune, batch, accumulation):
    size = batch * accumulation
    flags = ["--num_train_epochs", 2, "--learning_rate", "3e-3"]
    whole = finetune(*flags, "--per_device_train_batch_size", size, to="whole")
    cut = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
    parts = finetune(*flags, *cut, to="parts")
    assert len({row["tokens"] for row in training_log(whole)}) > 1
    assert_close_run(parts, whole)


def test_recomputed_activations_change_nothing(finetune):
    plain = finetune("--max_steps", 3, to="plain")
    assert_close_run(finetune("--max_steps", 3, "--gradient_checkpointing", to="less"), plain)


def test_decoding_workers_change_nothing(finetune):
    plain = finetune("--max_steps", 3, to="plain")
    assert_same_run(finetune("--max_steps", 3, "--dataloader_num_workers", 2, to="w"), plain)


def test_a_frozen_encoder_stays_bit_for_bit(finetune, place):
    before = weights(place / "model")
    after = weights(finetune("--max_steps", 2, "--freeze_encoder"))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(".encoder." in name for name in moved)


@pytest.fixture
def other_precision():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bfloat16_is_near_float32(finetune, place, other_precision):
    flags = ["--max_steps", 4, "--learning_rate", "1e-3"]
    half = finetune(*flags, "--dtype", "bfloat16", to="half")
    AcceleratorState._reset_state(reset_partial_state=True)
    full = finetune(*flags, to="full")
    for one, other in zip(training_log(half), training_log(full), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
        assert one["loss"] != other["loss"]
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}


def test_adapters_alone_are_trained_and_the_result_is_plain(finetune, place):
    flags = ["--lora_rank", 4, "--max_steps", 10, "--learning_rate", "0.03", "--do_eval"]
    flags += ["--eval_dataset_name", place / "rows.jsonl", "--predict_with_generate"]
    flags += ["--generation_max_length", 12, "--metric_for_best_model", "loss"]
    folder = finetune(*flags, "--per_device_train_batch_size", 10)
    log = training_log(folder)
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    for plain in (folder, folder / "best"):
        found, base = weights(plain), weights(place / "model")
        moved = {name for name in base if not torch.equal(found[name], base[name])}
        assert found.keys() == base.keys()
        assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj"}
    assert not (folder / "checkpoint-10" / "model.safetensors").exists()
    whole = finetune("--max_steps", 1, to="whole")
    adapters, everything = (
        sum(path.stat().st_size for path in each.iterdir())
        for each in (folder / "checkpoint-10", whole / "checkpoint-1")
    )
    assert adapters < everything / 5


def test_a_model_begins_with_random_weights(finetune, place, tmp_path, capsys):
    shape = model_folder(tmp_path / "shape", decoder_layers=1)
    flags = ["--config_name", shape, "--max_steps", 2, "--save_steps", 1]
    finetune(*flags, "--dry_run", to="dry")
    assert "checkpoint" in capsys.readouterr().out
    folder = finetune(*flags)
    model = checkpoint.load(str(folder)).model
    assert model.config.decoder_layers == 1
    assert str(shape) in record(folder)["inputs"]
    assert_same_run(finetune(*flags, to="again"), folder)
    other = weights(finetune(*flags, "--seed", 1, to="other"))
    name = "model.decoder.embed_tokens.weight"
    assert not torch.allclose(other[name], weights(folder)[name], atol=1e-3)


def test_flags_of_adapters_that_do_not_fit_are_named(finetune, capsys):
    flags = ["--lora_rank", 0, "--lora_target_modules", "q_proj+proj_out", "--config_name", "x"]
    with pytest.raises(SystemExit):
        finetune(*flags)
    said = capsys.readouterr().err
    assert "--lora_rank must be >= 1" in said
    assert "--lora_target_modules must be of q_proj, " in said and "got 'proj_out'" in said
    flags = ["--lora_alpha", 0, "--lora_dropout", 0.1, "--lora_target_modules", ""]
    with pytest.raises(SystemExit):
        finetune(*flags)
    said = capsys.readouterr().err
    assert "--lora_alpha must be >= 1" in said and "got ''" in said
    for name in flags[::2]:
        assert f"{name} needs --lora_rank" in said


# --- evaluation -----------------------------------------------------------------------------------


def test_the_best_of_several_evaluations_is_kept(finetune, place, tmp_path):
    other = manifest(tmp_path / "other.jsonl", 4)
    flags = ["--do_eval", "--eval_dataset_name", f"{place / 'rows.jsonl'}+{other}"]
    flags += ["--eval_steps", 2, "--max_steps", 5, "--predict_with_generate"]
    flags += ["--generation_max_length", 16, "--save_steps", 1, "--metric_for_best_model", "loss"]
    folder = finetune(*flags, "--learning_rate", "0.05")  # so high that it gets worse, too
    rows = training_log(folder, "eval")
    assert [row["step"] for row in rows] == [2, 2, 4, 4, 5, 5]
    assert {row["kind"] for row in rows} == {f"eval {place / 'rows.jsonl'}", f"eval {other}"}
    assert all({"loss", "ce", "kl", "wer", "cer"} <= row.keys() for row in rows)
    means = {step: sum(r["loss"] for r in rows if r["step"] == step) / 2 for step in (2, 4, 5)}
    best = min(means, key=means.get)
    assert record(folder)["best"] == pytest.approx(means[best])
    assert find_damage(folder / "best") is None
    assert files_in(folder / "best") >= CHECKPOINT_FILES
    found, wanted = weights(folder / "best"), weights(folder / f"checkpoint-{best}")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_sets_have_weights_and_the_card_has_each_of_them(finetune, place, tmp_path):
    other = manifest(tmp_path / "other.jsonl", 2)
    flags = [
        "--do_eval",
        "--eval_dataset_name",
        f"{place / 'rows.jsonl'}+{other}",
        "--max_steps",
        1,
    ]
    folder = finetune(*flags, "--eval_dataset_samples", "1+3")
    one, two = training_log(folder, "eval")
    assert one["loss"] != two["loss"]
    assert record(folder)["best"] == pytest.approx((one["loss"] + 3 * two["loss"]) / 4)
    card = (folder / "README.md").read_text("utf-8")
    assert "Evaluated after update 1:" in card
    assert f"| other.jsonl | {two['loss']:.3f} | {two['ce']:.3f} | {two['kl']:.3f} |" in card


def test_references_are_learnt_in_place_of_pseudo_labels(finetune, tmp_path, capsys):
    """And evaluated on, wherever there are any."""
    said = {"whisper_transcript": lambda i: "うそ", "truncated": lambda i: i == 0}
    rows = manifest(tmp_path / "r.jsonl", 4, **said)
    plain = manifest(tmp_path / "plain.jsonl", 4)
    plain.write_text(plain.read_text("utf-8").replace("plain-", "r-"), "utf-8")
    flags = ["--max_steps", 2, "--do_eval", "--eval_dataset_name", rows]
    wanted = finetune(*flags, rows=plain, to="plain")
    found = finetune(*flags, "--use_pseudo_labels", "False", "--wer_threshold", 0, rows=rows)
    assert_same_run(found, wanted)
    assert record(found)["ledger"]["out"] == 4
    pseudo = finetune(*flags, rows=rows, to="pseudo")
    assert record(pseudo)["ledger"]["dropped"] == {"truncated": 1}
    assert training_log(pseudo)[0]["loss"] != training_log(wanted)[0]["loss"]
    assert training_log(pseudo, "eval") != training_log(wanted, "eval")
    stream = finetune(*flags, "--use_pseudo_labels", "False", "--streaming", rows=rows, to="stream")
    assert len(training_log(stream)) > 0
    without = manifest(tmp_path / "w.jsonl", 4, whisper_transcript=lambda i: "うそ")
    rows = read_manifest(without)
    write_manifest(without, [{n: v for n, v in row.items() if n != "text"} for row in rows])
    with pytest.raises(ValueError, match=r"^--text_column_name: dataset .*w\.jsonl has no column"):
        finetune("--max_steps", 1, "--use_pseudo_labels", "False", rows=without, to="none")


def test_training_ends_early_and_leaves_the_best_model(finetune, place):
    flags = ["--do_eval", "--eval_dataset_name", place / "rows.jsonl", "--eval_steps", 1]
    flags += ["--max_steps", 40, "--learning_rate", "0.2", "--lr_scheduler_type", "constant"]
    folder = finetune(*flags, "--early_stopping_patience", 2, "--load_best_model_at_end")
    losses = [row["loss"] for row in training_log(folder, "eval")]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 40
    written = record(folder)
    assert (written["status"], written["updates"]) == ("complete", len(losses))
    assert written["best"] == min(losses)
    left, kept = weights(folder), weights(folder / "best")
    assert all(torch.equal(left[name], kept[name]) for name in kept)
    last = weights(folder / f"checkpoint-{len(losses)}")
    assert not all(torch.equal(left[name], last[name]) for name in last)


def test_evaluation_does_not_change_training(finetune, place):
    flags = ["--max_steps", 3]
    plain = finetune(*flags, to="plain")
    evaluation = ["--do_eval", "--eval_dataset_name", place / "rows.jsonl", "--eval_steps", 1]
    more = finetune(*flags, *evaluation, "--predict_with_generate", to="more")
    assert training_log(more) == training_log(plain)
    assert all(torch.equal(w, weights(plain)[name]) for name, w in weights(more).items())


def test_evaluation_alone_leaves_no_model(finetune, place, capsys):
    flags = ["--no_do_train", "--do_eval", "--eval_dataset_name", place / "rows.jsonl"]
    folder = finetune(*flags, "--predict_with_generate", "--per_device_eval_batch_size", 3)
    assert files_in(folder) == {"config.yaml", "run.json", "train_log.jsonl"}
    (row,) = training_log(folder, "")
    assert row["step"] == 0
    model = checkpoint.load(str(place / "model")).model.eval()
    total = count = 0.0
    for clip in sources.load(DatasetSpec(str(place / "rows.jsonl"))):
        loss, num = plain_loss(place / "model", model, clip)
        total, count = total + loss, count + num
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)
    assert f"{place / 'rows.jsonl'}: " in capsys.readouterr().err


def plain_loss(folder, model, clip):
    """Return the summed cross-entropy of one clip as transformers computes it, and its tokens."""
    processor = WhisperProcessor.from_pretrained(folder)
    processor.tokenizer.set_prefix_tokens(language="ja", task="transcribe")
    samples, rate = soundfile.read(clip[schema.AUDIO]["path"])
    features = processor.feature_extractor(samples, sampling_rate=rate, return_tensors="pt")
    ids = processor.tokenizer(clip[schema.TEXT]).input_ids
    labels = torch.tensor([ids[1:]])
    with torch.no_grad():
        logits = model(features.input_features, decoder_input_ids=torch.tensor([ids[:-1]])).logits
    loss = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum")
    return float(loss), len(ids) - 1


def test_rows_that_are_trained_on_are_no_other_split(finetune, tmp_path):
    split = ["--do_eval", "--train_split_name", "train", "--eval_split_name", "test"]
    with pytest.raises(ValueError, match=r"rows\.jsonl has no column `split`, .*eval_dataset_name"):
        finetune(*split)
    assert not (tmp_path / "run").exists()
    rows = read_manifest(manifest(tmp_path / "split.jsonl"))
    rows = [{**row, "split": "test" if i < 3 else "train"} for i, row in enumerate(rows)]
    folder = finetune(*split, "--max_steps", 1, rows=write_manifest(tmp_path / "split.jsonl", rows))
    assert record(folder)["ledger"]["in"] == NUM_ROWS - 3
    assert training_log(folder, "eval")


def test_rows_without_references_can_be_evaluated_by_loss_alone(finetune, tmp_path):
    rows = manifest(tmp_path / "r.jsonl", whisper_transcript=lambda i: "ねこ", text=lambda i: None)
    flags = ["--no_do_train", "--do_eval", "--eval_dataset_name", rows, "--predict_with_generate"]
    folder = finetune(*flags)
    (row,) = training_log(folder, "eval")
    assert "cer" not in row and row["loss"] > 0
    flags[0] = "--max_steps=1"
    with pytest.raises(ValueError, match=r"r\.jsonl has no references.*--metric_for_best_model"):
        finetune(*flags, to="late")
    finetune(*flags, "--metric_for_best_model", "loss", to="by_loss")


def test_a_bad_evaluation_clip_is_named_and_counted(finetune, tmp_path, capsys):
    rows = manifest(tmp_path / "e.jsonl", 4)
    (tmp_path / "e-0002.flac").write_bytes(b"no sound")
    folder = finetune("--no_do_train", "--do_eval", "--eval_dataset_name", rows)
    assert training_log(folder, "eval")[0]["num_bad"] == 1
    assert "clip e-0002 cannot be decoded" in capsys.readouterr().err
    for path in tmp_path.glob("e-*.flac"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"e\.jsonl: none of its clips can be decoded"):
        finetune("--no_do_train", "--do_eval", "--eval_dataset_name", rows, to="none")


# --- bad input ------------------------------------------------------------------------------------


def test_a_clip_that_cannot_be_decoded_is_named_counted_and_left_out(finetune, tmp_path, capsys):
    rows = manifest(tmp_path / "b.jsonl")
    (tmp_path / "b-0003.flac").write_bytes(b"no sound")
    flags = ["--num_train_epochs", 2, "--per_device_train_batch_size", 1]
    with pytest.raises(ValueError, match=r"1 of 10 clips .* --max_bad_fraction 0\.001 allows"):
        finetune(*flags, "--max_bad_fraction", 0.001, rows=rows)
    assert capsys.readouterr().err.count("clip b-0003 cannot be decoded") == 1
    # Checked as they come, not after the last update; what was trained till then is saved.
    (saved,) = (tmp_path / "run").glob("checkpoint-*")
    assert int(saved.name.removeprefix("checkpoint-")) <= 10 and find_damage(saved) is None
    folder = finetune(*flags, rows=rows)  # one is allowed: goes on, to the same end
    assert record(folder)["num_bad"] == 1
    assert record(folder)["updates"] == 20
    # An update without any row has no gradient, so it is no news, and no fault either.
    assert len(training_log(folder)) == 18


@pytest.mark.parametrize("known", [True, False])
def test_clips_of_other_lengths_are_left_out_and_counted(finetune, tmp_path, monkeypatch, known):
    """By their column where there is one, else as they are decoded."""
    rows = manifest(tmp_path / "d.jsonl", duration=lambda i: None)
    lengths = {"short": 0.2, "fit": 0.9, "long": 1.8}  # the model's window is 1 s
    entries = read_manifest(rows)[:3]
    for entry, (name, seconds) in zip(entries, lengths.items(), strict=True):
        soundfile.write(tmp_path / f"{name}.wav", [0.1] * round(16_000 * seconds), 16_000)
        entry.update(id=name, audio=f"{name}.wav", duration=seconds if known else None)
    write_manifest(rows, entries)
    seen = record_rows(monkeypatch)
    limits = ["--min_duration_in_seconds", 0.5, "--max_duration_in_seconds", 1]
    folder = finetune("--num_train_epochs", 2, *limits, "--max_bad_fraction", 0, rows=rows)
    written = record(folder)
    dropped = {"too_short": 1, "too_long": 1} if known else {}
    assert written["ledger"]["dropped"] == dropped
    assert written["num_dropped"] == 2 - len(dropped)
    assert written["num_bad"] == 0
    assert set(ids_of(seen)) == ({"fit"} if known else set(lengths))
    (fit,) = {len(row["labels"]) for rows in seen for row in rows if row["id"] == "fit"}
    assert training_log(folder)[-1]["tokens"] == 2 * (fit - 1)


def test_an_update_that_is_not_finite_is_skipped(finetune, monkeypatch, place, capsys):
    poison(monkeypatch, "rows-0004")
    flags = ["--per_device_train_batch_size", 5, "--num_train_epochs", 1, "--learning_rate", 0.01]
    folder = finetune(*flags, "--save_steps", 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "is skipped" in line]
    assert len(said) == 1 and "its gradient is not finite" in said[0] and "rows-0004" in said[0]
    (row,) = training_log(folder)
    skipped = ({1, 2} - {row["step"]}).pop()
    before = place / "model" if skipped == 1 else folder / "checkpoint-1"
    after, kept = weights(folder / f"checkpoint-{skipped}"), weights(before)
    assert all(torch.equal(after[name], kept[name]) for name in kept)
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_three_such_updates_in_a_row_stop_the_run(finetune, monkeypatch, place, capsys):
    poison(monkeypatch, *(f"rows-{i:04d}" for i in range(NUM_ROWS)))
    with pytest.raises(ValueError, match="3 updates in a row had gradients that are not finite"):
        finetune("--max_steps", 10, "--per_device_train_batch_size", 2)
    assert capsys.readouterr().err.count("is skipped") == 3


def test_an_error_does_not_hang_where_workers_decode(place, tmp_path):
    """They outlive one SIGTERM, so they must not outlive the run: its end would wait for them."""
    flags = ["-m", place / "model", "-d", place / "rows.jsonl", "--language", "ja"]
    flags += ["--max_steps", 50, "--dataloader_num_workers", 1, "-o", tmp_path]
    flags += ["--per_device_train_batch_size", 1, "--lr_scheduler_type", "constant"]
    started = multiprocessing.get_context("fork").Process(target=run_into_nan, args=(flags,))
    started.start()
    started.join(60)
    code = started.exitcode
    started.kill()
    assert code == 1


def run_into_nan(flags):
    torch.nn.utils.clip_grad_norm_ = lambda *_args, **_kwargs: torch.tensor(math.nan)
    run(FINETUNING, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--streaming"], "--streaming needs --max_steps"),
        (["--do_eval", "--max_steps", 1], "--do_eval needs --eval_dataset_name"),
        (["--do_eval", "--eval_split_name", "test"], "needs --train_split_name"),
    ],
)
def test_flags_that_do_not_fit_are_named_before_anything_loads(finetune, capsys, flags, message):
    with pytest.raises(SystemExit):
        finetune(*flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "message"),
    [("# none yet\n", "lists no transforms"), ("- Gian: {p: 0.5}\n", "no transform 'Gian'")],
)
def test_wrong_transforms_are_named_before_anything_is_written(finetune, tmp_path, listed, message):
    pytest.importorskip("audiomentations")
    path = tmp_path / "transforms.yaml"
    path.write_text(listed)
    for more in [[], ["--dry_run"]]:
        with pytest.raises(ValueError, match=message):
            finetune("--audio_augmentation", path, *more)
    assert not (tmp_path / "run").exists()


def test_a_column_that_is_not_there_is_named(finetune):
    message = "--audio_column_name: .*'sound'; its columns are id,"
    with pytest.raises(ValueError, match=message):
        finetune("--audio_column_name", "sound")


def test_a_dataset_without_text_names_its_columns(finetune, tmp_path):
    rows = tone_manifest(tmp_path / "n.jsonl", 2)
    entries = [{k: v for k, v in row.items() if k != "text"} for row in read_manifest(rows)]
    write_manifest(rows, entries)
    missing = "no column that is known to hold references .* its columns, which are .*speaker_id"
    with pytest.raises(ValueError, match=missing):
        finetune(rows=rows)
    with pytest.raises(ValueError, match=r"no column 'words'; its columns are .*speaker_id"):
        finetune("--text_column_name", "words", rows=rows)


def test_no_rows_is_an_error(finetune, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        finetune(rows=tmp_path / "empty.jsonl")
    rows = manifest(tmp_path / "none.jsonl", text=lambda i: None)
    with pytest.raises(ValueError, match=r"no row is left to learn from: .*empty_reference: 10"):
        finetune(rows=rows, to="none")


# --- trackers -------------------------------------------------------------------------------------


def test_trackers_are_off_unless_asked_for(finetune):
    folder = finetune("--max_steps", 2)
    assert not list(folder.rglob("events.*"))


def test_trackers_show_losses_speed_and_what_the_model_writes(finetune, place):
    flags = ["--do_eval", "--eval_dataset_name", place / "rows.jsonl", "--predict_with_generate"]
    flags += ["--generation_max_length", 16, "--report_to", "tensorboard"]
    folder = finetune("--max_steps", 2, *flags, to="tracked")
    events = [EventAccumulator(str(path)).Reload() for path in folder.rglob("events.*")]
    tags = {tag for event in events for tag in event.Tags()["scalars"]}
    assert {f"train/{name}" for name in ("loss", "audio_s", "samples_per_s", "memory_gib")} <= tags
    (table,) = (
        text.tensor_proto.string_val[0].decode()
        for event in events
        for tag in event.Tags()["tensors"]
        if "examples" in tag
        for text in event.Tensors(tag)
    )
    head, _, *rows = table.splitlines()
    assert head == "| Reference | Written |"
    assert [row.count(" | ") for row in rows] == [1] * NUM_EXAMPLES
