"""Train a student to follow its teacher: cross-entropy on the labels plus KL divergence.

Reads   a student of `create_student_model.py`, its teacher, and a dataset of
        `run_data_filtering.py` (or of `run_pseudo_labelling.py`; labels are then built here).
Writes  the student, its checkpoints, `best/` where it is evaluated, the losses in
        `train_log.jsonl`, and `run.json`.

    accelerate launch run_distillation.py --model_name_or_path my-org/my-student-init \
        --teacher_model_name_or_path openai/whisper-large-v3 \
        --train_dataset_name my-org/my-labels.wer_10.0 --train_dataset_config_name tiny \
        --language ja --freeze_encoder --dtype bfloat16 --gradient_checkpointing \
        --per_device_train_batch_size 16 --gradient_accumulation_steps 2 \
        --lr_scheduler_type constant_with_warmup --warmup_steps 50 --num_train_epochs 8 \
        --do_train --output_dir distilled

On a laptop:

    accelerate launch run_distillation.py -m student-init --teacher_model_name_or_path teacher \
        -d filtered --language ja --freeze_encoder --max_steps 2 -o distilled

A killed run goes on from its newest whole checkpoint when it is started again; SIGTERM saves one.
"""

from dataclasses import dataclass

from distillery.cli import forecast
from distillery.cli.arguments import (
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import at_least, flag, parse, required
from distillery.cli.runtime import load_outline, make_accelerator, open_run, publish
from distillery.cli.training_arguments import TrainDataArguments, TrainingArguments
from distillery.training.loop import batch_plan, load_student, train, training_run
from distillery.training.losses import LossWeights
from distillery.training.step import Teacher
from distillery.whisper import checkpoint


@dataclass(frozen=True)
class DistillationArguments:
    """What only this stage decides."""

    teacher_model_name_or_path: str = required("Whisper checkpoint to learn from.", "--teacher")
    kl_weight: float = flag(1.0, "Weight of the KL divergence.")
    ce_weight: float = flag(0.8, "Weight of the cross-entropy.")
    temperature: float = flag(2.0, "Softens both distributions in the KL divergence.")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = [*at_least(self, "kl_weight", 0), *at_least(self, "ce_weight", 0)]
        if self.temperature <= 0:
            found.append(f"--temperature must be > 0, got {self.temperature}")
        return found


GROUPS = (
    ModelArguments,
    DistillationArguments,
    TrainDataArguments,
    DecodingArguments,
    TrainingArguments,
    OutputArguments,
    RunArguments,
)


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
    accelerator = make_accelerator(run_args, output_args.output_dir, model_args.dtype)
    groups = (
        model_args,
        distillation_args,
        data_args,
        decoding_args,
        training_args,
        output_args,
        run_args,
    )
    name, teacher_name = model_args.model_name_or_path, distillation_args.teacher_model_name_or_path
    run = training_run(
        accelerator,
        "run_distillation",
        groups,
        [name, teacher_name],
        data_args,
        training_args,
        output_args,
    )
    if run_args.dry_run:
        student = load_outline(model_args)
        teacher = checkpoint.load_outline(
            teacher_name, model_args.dtype, cache_dir=model_args.cache_dir
        )
        plan = batch_plan(accelerator, training_args)
        lines = forecast.training_lines(run, student, teacher, data_args, training_args, plan)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        student = load_student(accelerator, model_args, training_args, run)
        teacher = checkpoint.load(
            teacher_name, model_args.dtype, model_args.attn_type, cache_dir=model_args.cache_dir
        )
        teacher.model.to(accelerator.device)
        train(
            accelerator,
            student,
            Teacher(teacher.model, student.model),
            LossWeights(
                distillation_args.ce_weight,
                distillation_args.kl_weight,
                distillation_args.temperature,
            ),
            data_args,
            decoding_args,
            training_args,
            run_args,
            run,
        )
    if accelerator.is_main_process:
        publish(run, output_args, "model")


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__))
