"""Flags that the seeds' training scripts have, each used in a small run."""

import pytest
import torch
from accelerate.state import AcceleratorState
from stage_runs import record, run
from training_runs import (
    FINETUNING,
    assert_same_run,
    manifest,
    model_folder,
    record_rows,
    training_log,
    weights,
)

from distillery.storage.checkpoints import find_damage


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a model, rows, and what a run without further flags makes of them."""
    folder = tmp_path_factory.mktemp("flags")
    model_folder(folder / "model")
    manifest(folder / "rows.jsonl", 4)
    run(FINETUNING, *flags_of(folder, folder / "plain"))
    return folder


def flags_of(place, out, *more):
    flags = ["-m", place / "model", "-d", place / "rows.jsonl", "--language", "ja", "-o", out]
    return [*flags, "--max_steps", 4, "--learning_rate", "1e-2", "--logging_steps", 1, *more]


@pytest.fixture
def train(place, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)

    def train(*flags, to="run"):
        run(FINETUNING, *flags_of(place, tmp_path / to, *flags))
        return tmp_path / to

    yield train
    AcceleratorState._reset_state(reset_partial_state=True)


def moves(folder, before):
    """Return by how much each weight has moved."""
    then = weights(before)
    return {name: float((w - then[name]).abs().max()) for name, w in weights(folder).items()}


DECODER, EMBEDDING = "model.decoder.", "model.decoder.embed_tokens.weight"


def test_freeze_decoder(train, place):
    moved = moves(train("--freeze_decoder"), place / "model")
    frozen = {name for name in moved if name.startswith(DECODER) and name != EMBEDDING}
    assert not any(moved[name] for name in frozen)
    assert moved[EMBEDDING] and moved["model.encoder.layers.0.fc1.weight"]


def test_freeze_embed_positions(train, place):
    moved = moves(train("--freeze_embed_positions"), place / "model")
    assert moved.pop("model.decoder.embed_positions.weight") == 0
    assert moves(place / "plain", place / "model")["model.decoder.embed_positions.weight"]
    assert moved["model.decoder.layers.0.fc1.weight"]


def test_adam_epsilon(train, place):
    """Gradients are small beside it, so that nothing moves far."""
    name = "model.decoder.layers.0.fc1.weight"
    far = moves(place / "plain", place / "model")[name]
    assert moves(train("--adam_epsilon", 100), place / "model")[name] < far / 20


def test_warmup_ratio(train):
    share = train("--warmup_ratio", 0.5)
    assert_same_run(share, train("--warmup_steps", 2, to="steps"))
    rates = [row["learning_rate"] for row in training_log(share)]
    assert rates == pytest.approx([5e-3, 1e-2, 5e-3, 0])


def test_optim(train, place):
    assert_same_run(train("--optim", "adamw_torch_fused"), place / "plain")


def test_bf16(train, place):
    half = train("--bf16")
    assert training_log(half)[0]["loss"] != training_log(place / "plain")[0]["loss"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert_same_run(half, train("--dtype", "bfloat16", to="dtype"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in float16")
def test_float16_is_no_other_name_for_float32(train, tmp_path):
    """As it is to accelerate, which says nothing."""
    with pytest.raises(ValueError, match=r"--fp16\) trains on a GPU alone"):
        train("--fp16")
    assert not (tmp_path / "run" / "run.json").exists()


def test_durations(train, monkeypatch):
    """Clips last 1, 0.92, 0.83 and 0.75 s; one just at a limit stays."""
    seen = record_rows(monkeypatch)
    folder = train("--min_duration_in_seconds", 0.8, "--max_duration_in_seconds", 0.95)
    assert {row["id"] for rows in seen for row in rows} == {"rows-0001", "rows-0002"}
    assert record(folder)["ledger"]["dropped"] == {"too_short": 1, "too_long": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--save_best_total_limit", 2], "--save_best_total_limit must be 1"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_what_is_not_taken_is_named(train, capsys, flags, said):
    with pytest.raises(SystemExit):
        train(*flags)
    assert said in capsys.readouterr().err


def test_a_checkpoint_to_begin_with_is_not_thrown_away(train):
    checkpoint = train() / "checkpoint-4"
    with pytest.raises(ValueError, match="--overwrite_output_dir would throw it away"):
        train("--resume_from_checkpoint", checkpoint, "--overwrite_output_dir")
    assert find_damage(checkpoint) is None


def test_what_changes_nothing(train, place):
    flags = ["--save_best_total_limit", 1, "--resume_from_checkpoint", "True"]
    assert_same_run(train(*flags), place / "plain")
