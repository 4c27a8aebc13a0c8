r"""Train a student to follow its teacher: cross-entropy on the labels plus KL divergence.

With `--mse_weight` their hidden states are compared, too; with `--kl_weight 0` the student learns
from the labels alone ("shrink and fine-tune"), and no teacher is needed.

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

import math
from dataclasses import dataclass, replace

from distillery.cli.arguments import ModelArguments
from distillery.cli.example_arguments import ExampleArguments
from distillery.cli.flags import at_least, flag, parse, plus_list, uneven
from distillery.cli.prompt_arguments import PromptArguments
from distillery.cli.train_data_arguments import TrainDataArguments, num_train_sets
from distillery.cli.trainer_arguments import TrainerArguments
from distillery.cli.training_arguments import (
    TRAINING_GROUPS,
    TrainingArguments,
    TrainingFlags,
)
from distillery.cli.training_arguments import check as check_training


@dataclass(frozen=True)
class DistillationArguments:
    """Teacher and distillation loss."""

    teacher_model_name_or_path: str | None = flag(
        None,
        "Whisper checkpoint to learn from; neither needed nor loaded where --kl_weight and "
        "--mse_weight are 0.",
        "--teacher",
        is_input=True,
    )
    kl_weight: str = flag(
        "1.0",
        "Weight of the KL divergence, of each dataset joined with '+'; 0 learns the labels of one "
        "alone, as where the teacher does not know its task.",
    )
    ce_weight: float = flag(
        0.8, "Weight of the cross-entropy; without a teacher, it alone is the loss."
    )
    mse_weight: float = flag(
        0.0,
        "Weight of the mean squared error between the hidden states behind each layer of the "
        "student that is trained and behind the teacher's layer that it was copied from.",
    )
    temperature: float = flag(
        2.0, "Softens both distributions in the KL divergence; it is 1 in an evaluation."
    )
    cache_teacher: str | None = flag(
        None,
        "Folder that keeps the teacher's 32 most probable tokens of every label position, about "
        "130 bytes each. What is missing there is made before the first update, in one pass; then "
        "no teacher runs, and the KL divergence is from these 32 and the rest. Labels that are "
        "built here are drawn once, not for each epoch. Other students may use the same folder.",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [*at_least(self, "ce_weight", 0), *at_least(self, "mse_weight", 0)]
        if not all(weight >= 0 for weight in self.kl_weights):
            problems.append(f"--kl_weight must be numbers >= 0, got {self.kl_weight}")
        if not (self.follows or self.ce_weight):
            problems.append("--ce_weight, --kl_weight and --mse_weight are 0: nothing is learnt")
        if self.follows and self.teacher_model_name_or_path is None:
            problems.append(
                "--teacher_model_name_or_path is required; with --kl_weight 0 the labels alone are "
                "learnt, without a teacher"
            )
        if self.temperature <= 0:
            problems.append(f"--temperature must be > 0, got {self.temperature}")
        if self.cache_teacher is not None and (self.mse_weight or not any(self.kl_weights)):
            problems.append(
                "--cache_teacher keeps what the KL divergence needs, and nothing else: leave it "
                "out, or give a --kl_weight above 0 and no --mse_weight"
            )
        return problems

    @property
    def kl_weights(self) -> tuple[float, ...]:
        """The weight of the KL divergence for each dataset, or one for all; NaN for no number."""
        try:
            return tuple(map(float, plus_list(self.kl_weight)))
        except ValueError:
            return (math.nan,)

    @property
    def follows(self) -> bool:
        """Whether there is anything to be learnt from a teacher."""
        return any(self.kl_weights) or bool(self.mse_weight)


def check(
    distillation_args: DistillationArguments,
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    args: TrainingArguments,
    trainer_args: TrainerArguments,
    example_args: ExampleArguments,
    prompt_args: PromptArguments,
) -> list[str]:
    """Return what is wrong with flags of several groups."""
    problems = check_training(model_args, data_args, args, trainer_args, prompt_args)
    counts = {"kl_weight": len(plus_list(distillation_args.kl_weight))}
    problems += uneven(counts, num_train_sets(data_args, prompt_args))
    if distillation_args.cache_teacher is None:
        return problems
    if data_args.streaming:
        problems.append("--cache_teacher does not go with --streaming: rows have no number there")
    if example_args.no_speech_probability or example_args.audio_augmentation:
        problems.append(
            "--cache_teacher does not go with --no_speech_probability or --audio_augmentation: the "
            "teacher would have to hear what is drawn for each epoch"
        )
    return problems


GROUPS = (DistillationArguments, *TRAINING_GROUPS)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillery.cli import forecast, hub, teacher_cache, training, training_forecast
from distillery.cli.runtime import load_outline, make_accelerator, open_run
from distillery.storage.runs import Run
from distillery.storage.stops import StopRequest, stop_request
from distillery.training import resume
from distillery.training.layer_states import compared_layers
from distillery.training.losses import LossWeights
from distillery.training.rows import TrainingData
from distillery.training.session import Session
from distillery.training.shared_encoder import share_encoder
from distillery.training.step import Learner, StudentStep, Teacher, wants_masks
from distillery.training.validation import Evaluator
from distillery.whisper import checkpoint
from distillery.whisper.student import NO_LAYERS


def main(distillation_args: DistillationArguments, *shared_groups: Any) -> None:
    """Train, or go on training."""
    if not distillation_args.follows:  # a teacher has no part in what comes out
        distillation_args = replace(distillation_args, teacher_model_name_or_path=None)
    groups = (distillation_args, *shared_groups)
    flags = TrainingFlags.of(*shared_groups)._replace(kl_weights=distillation_args.kl_weights)
    teacher = distillation_args.teacher_model_name_or_path
    models = [flags.model.model_name_or_path, *([teacher] if teacher else [])]
    accelerator = make_accelerator(flags.run, flags.output.output_dir, flags.model.dtype)
    run = training.describe_run("run_distillation", accelerator, groups, flags, models)
    if flags.run.dry_run:
        outlines = load_outline(flags.model), teacher and teacher_outline(teacher, flags.model)
        lines = training_forecast.lines(accelerator, run, flags, *outlines)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, flags.output.overwrite_output_dir)
    if not run.is_complete:
        newest = resume.newest_checkpoint(accelerator, run.folder, flags.trainer.begun_with)
        training.begin_run(accelerator, run, " following ".join(models), flags)
        student = training.load_student(accelerator, newest, flags)
        needs_teacher = distillation_args.cache_teacher is None or flags.training.do_eval
        followed = teacher if needs_teacher else None
        learner = new_learner(
            accelerator,
            student,
            flags,
            replace(distillation_args, teacher_model_name_or_path=followed),
        )
        evaluator = training.make_evaluator(accelerator, run, learner, flags)
        is_done = distil(run, evaluator, newest, flags, distillation_args)
        training.end_run(accelerator, run, flags, is_done)
    if accelerator.is_main_process:
        hub.publish(run)


def teacher_outline(name: str, model_args: ModelArguments) -> checkpoint.Whisper:
    """Load the teacher without its weights, for a dry run."""
    return checkpoint.load_outline(name, model_args.compute_dtype, cache_dir=model_args.cache_dir)


def new_learner(
    accelerator: Accelerator,
    student: checkpoint.Whisper,
    flags: TrainingFlags,
    args: DistillationArguments,
) -> Learner:
    """Surround a student with its loss, and with the teacher that it follows, if it does."""
    kl_weight = max(args.kl_weights)  # where rows differ in it, each comes with its own
    weights = LossWeights(args.ce_weight, kl_weight, args.temperature, args.mse_weight)
    masks_input = wants_masks(student, flags.training.apply_spec_augment)
    step = StudentStep(student.model, weights, masks_input)
    name = args.teacher_model_name_or_path
    if name is None:
        return Learner(student, step, None)
    model = load_teacher(name, accelerator, flags.model).model
    compared = compared_layers(student.model, model) if args.mse_weight else NO_LAYERS
    teacher = Teacher(model, student.model, compared)
    if teacher.shares_encoder and not accelerator.is_fsdp2:  # which spreads each model by itself
        student = share_encoder(student, teacher)
    return Learner(student, step, teacher)


def load_teacher(
    name: str, accelerator: Accelerator, model_args: ModelArguments
) -> checkpoint.Whisper:
    """Load the teacher, in the dtype of the computation."""
    dtype, cache_dir = model_args.compute_dtype, model_args.cache_dir
    teacher = checkpoint.load(name, dtype, model_args.attn_type, cache_dir=cache_dir)
    teacher.model.to(accelerator.device)
    return teacher


def distil(
    run: Run,
    evaluator: Evaluator,
    newest: Path | None,
    flags: TrainingFlags,
    args: DistillationArguments,
) -> bool:
    """Make the updates that are left; return False where SIGTERM asked to stop before the end."""
    if not flags.training.do_train:
        with stop_request() as stop:
            return evaluator.scores(0, stop) is not None
    session = training.begin_session(evaluator, newest, flags)
    with stop_request() as stop:
        if args.cache_teacher is not None:
            data = cached(run, session, flags, args, stop)
            if data is None:
                return False
            session = replace(session, data=data)
        with session.updates(stop) as updates:
            session.evaluate(stop)  # if the last start was stopped before
            for update in updates:
                session.losses.add(update)
                session.saver.save_if_due(session.progress)
                session.evaluate(stop)
        return session.conclude(run)


def cached(
    run: Run, session: Session, flags: TrainingFlags, args: DistillationArguments, stop: StopRequest
) -> TrainingData | None:
    """Return what is trained on with what the teacher says of it, which it says now if it must.

    None where SIGTERM asked to stop before it had said all.
    """
    accelerator, learner = session.trainer.accelerator, session.trainer.learner
    model, data = learner.student.model, session.data
    with teacher_cache.opened(accelerator, run, flags, data, model.config.vocab_size) as making:
        if making.missing and learner.teacher is None:  # it is let go of again
            name = str(args.teacher_model_name_or_path)
            teacher = Teacher(load_teacher(name, accelerator, flags.model).model, model)
            learner = replace(learner, teacher=teacher)
        if making.missing and not making.complete(learner, data, stop):
            return None
        return making.rows_of(data)


if __name__ == "__main__":
    main(*ARGUMENTS)
