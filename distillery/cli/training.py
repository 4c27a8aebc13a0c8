"""What the flags of the two training stages come down to: the plain values that training takes."""

from accelerate import Accelerator

from distillery.cli.arguments import DecodingArguments, ModelArguments, RunArguments
from distillery.cli.training_arguments import TrainDataArguments, TrainingArguments
from distillery.data.collators import SpeechCollator
from distillery.data.order import BatchPlan
from distillery.storage.checkpoints import newest_checkpoint
from distillery.storage.runs import Run
from distillery.training.monitor import LOSS_LOG, Evaluator
from distillery.training.rows import BatchLoader, TrainingData, eval_sets, training_data
from distillery.training.settings import (
    Evaluation,
    LabelSettings,
    Length,
    Optimization,
    Saving,
)
from distillery.training.step import Learner, make_trainable, set_prompt
from distillery.whisper import checkpoint


def batch_plan(accelerator: Accelerator, args: TrainingArguments) -> BatchPlan:
    """Return how this launch cuts a global batch."""
    return BatchPlan(
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
    )


def length(args: TrainingArguments) -> Length:
    """Return how long a run trains."""
    return Length(args.max_steps if args.max_steps > 0 else None, args.num_train_epochs)


def label_settings(
    decoding_args: DecodingArguments, args: TrainingArguments, seed: int
) -> LabelSettings:
    """Return which rows are learnt from, and what their labels are."""
    return LabelSettings(
        language=decoding_args.language,
        task=decoding_args.task,
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        max_label_length=args.max_label_length,
        wer_threshold=args.wer_threshold,
        seed=seed,
    )


def optimization(args: TrainingArguments) -> Optimization:
    """Return how weights are updated."""
    return Optimization(
        learning_rate=args.learning_rate,
        schedule=args.lr_scheduler_type,
        warmup_steps=args.warmup_steps,
        weight_decay=args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        max_grad_norm=args.max_grad_norm,
    )


def saving(args: TrainingArguments) -> Saving:
    """Return when checkpoints are saved."""
    return Saving(args.save_steps, args.save_total_limit)


def evaluation(decoding_args: DecodingArguments, args: TrainingArguments) -> Evaluation:
    """Return how the model is evaluated while it is trained."""
    return Evaluation(
        every=args.eval_steps,
        batch_size=args.per_device_eval_batch_size,
        metric=args.metric_for_best_model or ("cer" if args.predict_with_generate else "loss"),
        transcribe=args.predict_with_generate,
        timestamps=decoding_args.return_timestamps,
        num_beams=decoding_args.generation_num_beams,
        max_length=args.generation_max_length,
    )


def batch_loader(
    accelerator: Accelerator, student: checkpoint.Whisper, run_args: RunArguments
) -> BatchLoader:
    """Return how rows become a student's batches."""
    return BatchLoader(
        SpeechCollator(student.log_mel, student.tokens),
        run_args.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def load_student(
    accelerator: Accelerator,
    run: Run,
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    args: TrainingArguments,
) -> checkpoint.Whisper:
    """Load the model to be trained, from the run's newest checkpoint where there is one.

    Its weights are float32, whatever the dtype of the computation: AdamW on bfloat16 weights loses
    small updates.
    """
    newest = newest_checkpoint(run.folder)
    student = checkpoint.load(
        str(newest or model_args.model_name_or_path),
        "float32",
        model_args.attn_type,
        None if newest else model_args.model_revision,
        model_args.cache_dir,
    )
    make_trainable(student, args.freeze_encoder, args.gradient_checkpointing)
    set_prompt(student, decoding_args.language, decoding_args.task)
    student.model.to(accelerator.device)
    return student


def load_data(
    accelerator: Accelerator,
    student: checkpoint.Whisper,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    args: TrainingArguments,
    run_args: RunArguments,
) -> TrainingData:
    """Load what is trained on, with its labels, order and batches."""
    return training_data(
        data_args.train_specs(),
        student,
        label_settings(decoding_args, args, run_args.seed),
        length(args),
        batch_plan(accelerator, args),
        batch_loader(accelerator, student, run_args),
    )


def make_evaluator(
    accelerator: Accelerator,
    run: Run,
    learner: Learner,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    args: TrainingArguments,
    run_args: RunArguments,
) -> Evaluator:
    """Load what is evaluated on while training; without `--do_eval` that is nothing."""
    labels = label_settings(decoding_args, args, run_args.seed)
    return Evaluator(
        accelerator,
        learner,
        eval_sets(data_args.eval_specs(), learner.student, labels) if args.do_eval else [],
        evaluation(decoding_args, args),
        batch_loader(accelerator, learner.student, run_args),
        run.folder,
    )


def rows_in_words(data_args: TrainDataArguments, args: TrainingArguments) -> str:
    """Return which datasets a run works on, for its first line of log."""
    parts = []
    if args.do_train:
        parts.append("trains on " + " + ".join(map(str, data_args.train_specs())))
    if args.do_eval:
        parts.append("evaluates on " + " + ".join(map(str, data_args.eval_specs())))
    return ", ".join(parts)


def made_and_next(
    run: Run, decoding_args: DecodingArguments, args: TrainingArguments
) -> tuple[str, ...]:
    """Return what a run has made, and the command that goes on with it, if any."""
    if not args.do_train:
        return (f"scores in {LOSS_LOG}",)
    language = f" --language {decoding_args.language}" if decoding_args.language else ""
    return (
        f"the trained model, its checkpoints, and its losses in {LOSS_LOG}",
        f"python run_short_form_eval.py -m {run.folder} -d TEST_SET{language} -o {run.folder}-eval",
    )
