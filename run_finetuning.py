r"""Train a Whisper model on transcripts with plain cross-entropy, without a teacher.

Reads   a Whisper checkpoint, and a dataset with references (or with pseudo-labels: "shrink and
        fine-tune"). References may hold timestamps as Whisper writes them, such as `<|1.20|>`.
Writes  the model, its checkpoints, `best/` where it is evaluated, the losses in
        `train_log.jsonl`, and `run.json`.

    python run_finetuning.py --model_name_or_path openai/whisper-small \
        --train_dataset_name my-org/my-speech --train_split_name train \
        --text_column_name sentence --language hi --dtype bfloat16 \
        --per_device_train_batch_size 16 --learning_rate 1e-5 --warmup_steps 500 \
        --max_steps 5000 --output_dir finetuned

On a laptop:

    python run_finetuning.py -m openai/whisper-tiny -d my_speech.jsonl \
        --language hi --max_steps 2 -o finetuned

A killed run goes on from its newest whole checkpoint when it is started again; SIGTERM saves one.
"""

from distillery.cli.flags import parse
from distillery.cli.training_arguments import TRAINING_GROUPS, TrainingFlags, check

GROUPS = TRAINING_GROUPS

if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

from pathlib import Path
from typing import Any

from distillery.cli import forecast, hub, training, training_forecast
from distillery.cli.runtime import load_outline, make_accelerator, open_run
from distillery.storage.runs import Run
from distillery.storage.stops import stop_request
from distillery.training import resume
from distillery.training.losses import LossWeights
from distillery.training.step import Learner, StudentStep, wants_masks
from distillery.training.validation import Evaluator


def main(*groups: Any) -> None:
    """Train, or go on training."""
    flags = TrainingFlags.of(*groups)
    name = flags.model.model_name_or_path
    accelerator = make_accelerator(flags.run, flags.output.output_dir, flags.model.dtype)
    run = training.describe_run("run_finetuning", accelerator, groups, flags, [name])
    if flags.run.dry_run:
        outline = load_outline(flags.model)
        lines = training_forecast.lines(accelerator, run, flags, outline)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, flags.output.overwrite_output_dir)
    if not run.is_complete:
        newest = resume.newest_checkpoint(accelerator, run.folder)
        training.begin_run(accelerator, run, name, flags)
        model = training.load_student(accelerator, newest, flags)
        masks_input = wants_masks(model, flags.training.apply_spec_augment)
        step = StudentStep(model.model, LossWeights(), masks_input)
        learner = Learner(model, step, teacher=None)
        evaluator = training.make_evaluator(accelerator, run, learner, flags)
        is_done = finetune(run, evaluator, newest, flags)
        training.end_run(accelerator, run, flags, is_done)
    if accelerator.is_main_process:
        hub.publish(run)


def finetune(run: Run, evaluator: Evaluator, newest: Path | None, flags: TrainingFlags) -> bool:
    """Make the updates that are left; return False where SIGTERM asked to stop before the end."""
    if not flags.training.do_train:
        with stop_request() as stop:
            return evaluator.scores(0, stop) is not None
    session = training.begin_session(evaluator, newest, flags)
    with stop_request() as stop:
        with session.updates(stop) as updates:
            session.evaluate(stop)  # if the last start was stopped before
            for update in updates:
                session.losses.add(update)
                session.saver.save_if_due(session.progress)
                session.evaluate(stop)
        return session.conclude(run)


if __name__ == "__main__":
    main(*ARGUMENTS)
