r"""Train a student to follow its teacher: cross-entropy on the labels plus KL divergence.

Reads   a student of `create_student_model.py`, its teacher, and a dataset of
        `run_data_filtering.py` (or of `run_pseudo_labelling.py`; labels are then built here).
Writes  the student, its checkpoints, `best/` where it is evaluated, the losses in
        `train_log.jsonl`, and `run.json`.

    python run_distillation.py --model_name_or_path my-org/my-student-init \
        --teacher_model_name_or_path openai/whisper-large-v3 \
        --train_dataset_name my-org/my-labels.wer_10.0 --train_dataset_config_name tiny \
        --language ja --freeze_encoder --dtype bfloat16 --gradient_checkpointing \
        --per_device_train_batch_size 16 --gradient_accumulation_steps 2 \
        --lr_scheduler_type constant_with_warmup --warmup_steps 50 --num_train_epochs 8 \
        --do_train --output_dir distilled

On a laptop:

    python run_distillation.py -m student-init --teacher_model_name_or_path teacher \
        -d filtered --language ja --freeze_encoder --max_steps 2 -o distilled

A killed run goes on from its newest whole checkpoint when it is started again; SIGTERM saves one.
"""

from dataclasses import dataclass

from distillery.cli.arguments import (
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import at_least, flag, parse, required
from distillery.cli.training_arguments import (
    TrainDataArguments,
    TrainingArguments,
    training_problems,
)


@dataclass(frozen=True)
class DistillationArguments:
    """What only this stage decides."""

    teacher_model_name_or_path: str = required("Whisper checkpoint to learn from.", "--teacher")
    kl_weight: float = flag(1.0, "Weight of the KL divergence.")
    ce_weight: float = flag(0.8, "Weight of the cross-entropy.")
    temperature: float = flag(2.0, "Softens both distributions in the KL divergence.")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [*at_least(self, "kl_weight", 0), *at_least(self, "ce_weight", 0)]
        if self.temperature <= 0:
            problems.append(f"--temperature must be > 0, got {self.temperature}")
        return problems


GROUPS = (
    ModelArguments,
    DistillationArguments,
    TrainDataArguments,
    DecodingArguments,
    TrainingArguments,
    OutputArguments,
    RunArguments,
)


def check(
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
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
from distillery.training.step import Learner, StudentStep, Teacher
from distillery.whisper import checkpoint


def main(
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    training_args: TrainingArguments,
    output_args: OutputArguments,
    run_args: RunArguments,
) -> None:
    """Train, or go on training."""
    groups = (
        model_args,
        distillation_args,
        data_args,
        decoding_args,
        training_args,
        output_args,
        run_args,
    )
    names = [model_args.model_name_or_path, distillation_args.teacher_model_name_or_path]
    accelerator = make_accelerator(run_args, output_args.output_dir, model_args.dtype)
    plan = training.batch_plan(accelerator, training_args)
    run = stage_run(
        "run_distillation",
        groups,
        Path(output_args.output_dir),
        resume.input_fingerprints(data_args.train_specs(), names),
        owned=resume.OWNED,
        derived={resume.GLOBAL_BATCH: plan.global_size},
    )
    if run_args.dry_run:
        outlines = load_outline(model_args), teacher_outline(names[1], model_args)
        lines = forecast.training_lines(run, *outlines, data_args, training_args, plan)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        rows = training.rows_in_words(data_args, training_args)
        log_start(run, accelerator, " following ".join(names), model_args.dtype, rows)
        start_trackers(accelerator, run, run_args.wandb_project)
        student = training.load_student(accelerator, run, model_args, decoding_args, training_args)
        learner = with_teacher(accelerator, student, model_args, distillation_args)
        is_done = distil(
            accelerator, run, learner, data_args, decoding_args, training_args, run_args
        )
        loop.leave_together(accelerator)
        if not is_done:
            raise SystemExit(loop.STOPPED)  # not 0: a recipe must not go on with this student
        log_end(run, *training.made_and_next(run, decoding_args, training_args))
    if accelerator.is_main_process:
        hub.publish(run)


def teacher_outline(name: str, model_args: ModelArguments) -> checkpoint.Whisper:
    """Load the teacher without its weights, for a dry run."""
    return checkpoint.load_outline(name, model_args.dtype, cache_dir=model_args.cache_dir)


def with_teacher(
    accelerator: Accelerator,
    student: checkpoint.Whisper,
    model_args: ModelArguments,
    args: DistillationArguments,
) -> Learner:
    """Load the teacher, in the dtype of the computation, and let the student follow it."""
    teacher = checkpoint.load(
        args.teacher_model_name_or_path,
        model_args.dtype,
        model_args.attn_type,
        cache_dir=model_args.cache_dir,
    )
    teacher.model.to(accelerator.device)
    weights = LossWeights(args.ce_weight, args.kl_weight, args.temperature)
    step = StudentStep(student.model, weights)
    return Learner(student, step, Teacher(teacher.model, student.model))


def distil(
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
