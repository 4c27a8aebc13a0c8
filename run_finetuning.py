"""Train a Whisper model on transcripts with plain cross-entropy, without a teacher.

Reads   a Whisper checkpoint, and a dataset with references (or with pseudo-labels: "shrink and
        fine-tune"). References may hold timestamps as Whisper writes them, such as `<|1.20|>`.
Writes  the model, its checkpoints, `best/` where it is evaluated, the losses in
        `train_log.jsonl`, and `run.json`.

    accelerate launch run_finetuning.py --model_name_or_path openai/whisper-small \
        --train_dataset_name my-org/my-speech --train_split_name train \
        --text_column_name sentence --language hi --dtype bfloat16 \
        --per_device_train_batch_size 16 --learning_rate 1e-5 --warmup_steps 500 \
        --max_steps 5000 --output_dir finetuned

On a laptop:

    accelerate launch run_finetuning.py -m openai/whisper-tiny -d my_speech.jsonl \
        --language hi --max_steps 2 -o finetuned

A killed run goes on from its newest whole checkpoint when it is started again; SIGTERM saves one.
"""

from distillery.cli import forecast
from distillery.cli.arguments import (
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import parse
from distillery.cli.runtime import load_outline, make_accelerator, open_run, publish
from distillery.cli.training_arguments import TrainDataArguments, TrainingArguments
from distillery.training.loop import batch_plan, load_student, train, training_run
from distillery.training.losses import LossWeights

GROUPS = (
    ModelArguments,
    TrainDataArguments,
    DecodingArguments,
    TrainingArguments,
    OutputArguments,
    RunArguments,
)


def main(
    model_args: ModelArguments,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    training_args: TrainingArguments,
    output_args: OutputArguments,
    run_args: RunArguments,
) -> None:
    """Train, or go on training."""
    accelerator = make_accelerator(run_args, output_args.output_dir, model_args.dtype)
    groups = (model_args, data_args, decoding_args, training_args, output_args, run_args)
    run = training_run(
        accelerator,
        "run_finetuning",
        groups,
        [model_args.model_name_or_path],
        data_args,
        training_args,
        output_args,
    )
    if run_args.dry_run:
        plan = batch_plan(accelerator, training_args)
        model = load_outline(model_args)
        lines = forecast.training_lines(run, model, None, data_args, training_args, plan)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        model = load_student(accelerator, model_args, training_args, run)
        train(
            accelerator,
            model,
            None,
            LossWeights(),
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
