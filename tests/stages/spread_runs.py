"""What the tests of training that is spread over two processes share."""

from pathlib import Path
from typing import Any

import torch
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    NEVER,
    manifest,
    model_folder,
    run_in_two,
    student_folder,
    weights,
)

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
