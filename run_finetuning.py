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

from distillery.cli.arguments import (
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import parse
from distillery.cli.training_arguments import (
    TrainDataArguments,
    TrainingArguments,
    training_problems,
)

GROUPS = (
    ModelArguments,
    TrainDataArguments,
    DecodingArguments,
    TrainingArguments,
    OutputArguments,
    RunArguments,
)


def check(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    training_args: TrainingArguments,
    output_args: OutputArguments,
    run_args: RunArguments,
) -> list[str]:
    """Return what is wrong with flags of several groups."""
    return training_problems(data_args, training_args)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

from contextlib import closing
from pathlib import Path

from accelerate import Accelerator

from distillery.cli import forecast, hub, training
from distillery.cli.runtime import (
    load_outline,
    log_end,
    log_start,
    make_accelerator,
    open_run,
    stage_run,
    start_trackers,
)
from distillery.storage.runs import Run
from distillery.storage.stops import stop_request
from distillery.training import loop, resume
from distillery.training.losses import LossWeights
from distillery.training.monitor import LossMonitor
from distillery.training.step import Learner, StudentStep


def main(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    training_args: TrainingArguments,
    output_args: OutputArguments,
    run_args: RunArguments,
) -> None:
    """Train, or go on training."""
    groups = (model_args, data_args, decoding_args, training_args, output_args, run_args)
    name = model_args.model_name_or_path
    accelerator = make_accelerator(run_args, output_args.output_dir, model_args.dtype)
    plan = training.batch_plan(accelerator, training_args)
    run = stage_run(
        "run_finetuning",
        groups,
        Path(output_args.output_dir),
        resume.input_fingerprints(data_args.train_specs(), [name]),
        owned=resume.OWNED,
        derived={resume.GLOBAL_BATCH: plan.global_size},
    )
    if run_args.dry_run:
        outline = load_outline(model_args)
        lines = forecast.training_lines(run, outline, None, data_args, training_args, plan)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        rows = training.rows_in_words(data_args, training_args)
        log_start(run, accelerator, name, model_args.dtype, rows)
        start_trackers(accelerator, run, run_args.wandb_project)
        model = training.load_student(accelerator, run, model_args, decoding_args, training_args)
        learner = Learner(model, StudentStep(model.model, LossWeights()), teacher=None)
        is_done = finetune(
            accelerator, run, learner, data_args, decoding_args, training_args, run_args
        )
        loop.leave_together(accelerator)
        if not is_done:
            raise SystemExit(loop.STOPPED)  # not 0: a recipe must not go on with this model
        log_end(run, *training.made_and_next(run, decoding_args, training_args))
    if accelerator.is_main_process:
        hub.publish(run)


def finetune(
    accelerator: Accelerator,
    run: Run,
    learner: Learner,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    args: TrainingArguments,
    run_args: RunArguments,
) -> bool:
    """Make the updates that are left; return False where SIGTERM asked to stop before the last."""
    evaluator = training.make_evaluator(
        accelerator, run, learner, data_args, decoding_args, args, run_args
    )
    if not args.do_train:
        evaluator.scores(step=0)
        return True
    student = learner.student
    data = training.load_data(accelerator, student, data_args, decoding_args, args, run_args)
    trainer = loop.make_trainer(accelerator, learner, training.optimization(args), data.num_updates)
    progress = resume.resume(trainer, run.folder)
    losses = LossMonitor(trainer, progress, run.folder, run_args.logging_steps, data.num_updates)
    saver = resume.CheckpointSaver(
        trainer, progress, losses.window, run.folder, training.saving(args)
    )
    with stop_request() as stop, closing(loop.updates(trainer, data, progress, stop)) as updates:
        for update in updates:
            losses.add(update)
            evaluator.keep_best(update, progress)
            saver.save_if_due(progress)
        saver.save(progress)
    if progress.step < data.num_updates:
        return False
    loop.check_bad_clips(progress, data.num_clips(), data_args.max_bad_fraction)
    if accelerator.is_main_process:
        resume.finish(run, student, progress, data.ledger)
    return True


if __name__ == "__main__":
    main(*ARGUMENTS)
