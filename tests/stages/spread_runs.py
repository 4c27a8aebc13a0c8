"""What the tests of training that is spread over two processes share."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import run
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
    weights,
)

from distillery.storage.checkpoints import find_damage
from distillery.training import loop

UPDATE = "distillery.training.loop:_update"
ALONE = ["--gradient_accumulation_steps", 4]  # for the same global batch in one process


class Runs:
    """Inputs of both stages, and each stage by two processes that only share gradients (DDP)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows, teacher = manifest(folder / "rows.jsonl", 9), model_folder(folder / "teacher", 3)
        student = student_folder(folder / "student", teacher)
        # Of nine clips one process evaluates two batches, and the other one.
        common = ["-m", student, "-d", rows, "--language", "ja", "--max_steps", 6]
        common += ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 2]
        common += ["--save_steps", 2, "--learning_rate", "3e-3", "--warmup_steps", 2]
        common += ["--do_eval", "--eval_dataset_name", rows, "--eval_steps", 3]
        common += ["--per_device_eval_batch_size", 4, "--logging_steps", 1]
        self.flags: dict[str, list[object]] = {
            FINETUNING: [*common, "--predict_with_generate", "--gradient_checkpointing"],
            DISTILLATION: [*common, "--teacher", teacher, "--freeze_encoder", "--mse_weight", 0.1],
        }

    def to(self, script: str, folder: Path, *more: object) -> list[object]:
        """Return a stage's command line."""
        return [*self.flags[script], "-o", folder, *more]

    def by_two(self, script: str, folder: Path, *more: object) -> Path:
        """Run a stage without any interruption."""
        args = self.to(script, folder, *more)
        assert run_in_two(script, UPDATE, NEVER, KILL, *args) == [0, 0]
        return folder


def assert_close_weights(found: Path, wanted: Path) -> None:
    """Assert that two checkpoints differ by rounding alone."""
    theirs: dict[str, Any] = weights(wanted)
    for name, tensor in weights(found).items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("spread")
class Interruption:
    """Tests of runs that do not end at once, for each way of spreading.

    The module has the fixtures `runs`, `whole` (by stage the folder of a spread run without any
    interruption) and `spread` (lets processes be launched so).
    """

    def test_a_killed_run_goes_on_spread_or_in_one_process_alone(
        self, runs: Runs, whole: Mapping[str, Path], tmp_path: Path
    ) -> None:
        args = runs.to(FINETUNING, tmp_path / "run")
        assert run_in_two(FINETUNING, UPDATE, 5, KILL, *args)[1] == -KILL
        assert find_damage(tmp_path / "run" / "checkpoint-4") is None
        shutil.copytree(tmp_path / "run", tmp_path / "alone")
        runs.by_two(FINETUNING, tmp_path / "run")
        assert_same_run(tmp_path / "run", whole[FINETUNING])
        run(FINETUNING, *runs.to(FINETUNING, tmp_path / "alone", *ALONE))
        assert_close_run(tmp_path / "alone", whole[FINETUNING])

    def test_what_one_process_began_goes_on_spread_and_is_stopped_on_both(
        self, runs: Runs, whole: Mapping[str, Path], tmp_path: Path
    ) -> None:
        args = runs.to(DISTILLATION, tmp_path)
        assert run_in_child(DISTILLATION, UPDATE, 3, KILL, *args, *ALONE) == -KILL
        assert run_in_two(DISTILLATION, UPDATE, 2, TERMINATE, *args) == [loop.STOPPED] * 2
        assert find_damage(tmp_path / "checkpoint-4") is None
        runs.by_two(DISTILLATION, tmp_path)
        assert_close_run(tmp_path, whole[DISTILLATION])
