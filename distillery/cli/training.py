"""What the two training stages share: their run, and the plain values that training takes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distillery.audio.augmentation import augmentation
from distillery.cli.arguments import DecodingArguments, ModelArguments, RunArguments
from distillery.cli.device_arguments import DeviceArguments
from distillery.cli.example_arguments import ExampleArguments
from distillery.cli.flags import flags_of, plus_list
from distillery.cli.runtime import log_end, log_start, stage_run, start_trackers
from distillery.cli.train_data_arguments import TrainDataArguments
from distillery.cli.trainer_arguments import refuse_lost_checkpoint
from distillery.cli.training_arguments import TrainingArguments, TrainingFlags
from distillery.data.collators import DurationLimits, SpeechCollator
from distillery.data.specs import DatasetSpec
from distillery.ingest import manifests
from distillery.storage.runs import Run
from distillery.text.cleaning import TextCleaning
from distillery.training import loop, resume
from distillery.training.batch_size import largest_fitting
from distillery.training.loss_curve import LOSS_LOG
from distillery.training.monitor import LossMonitor, finish_trackers
from distillery.training.order import BatchPlan
from distillery.training.prompts import asked_prompts
from distillery.training.rows import BatchLoader, eval_sets, training_data
from distillery.training.session import Session
from distillery.training.settings import (
    OPTIMIZERS,
    Evaluation,
    Frozen,
    LabelSettings,
    Length,
    Optimization,
)
from distillery.training.sharding import refuse_sharding, spread_by
from distillery.training.step import Learner, make_trainable, refuse_layerdrop, set_prompt
from distillery.training.streams import StreamedRows
from distillery.training.validation import Evaluator
from distillery.whisper import checkpoint

# --- the run --------------------------------------------------------------------------------------


def describe_run(
    stage: str,
    accelerator: Accelerator,
    groups: Sequence[Any],
    flags: TrainingFlags,
    models: Sequence[str],
) -> Run:
    """Describe a run of a training stage.

    Args:
        stage: name of the stage's script, without `.py`.
        accelerator: of this launch.
        groups: all flags, as parsed.
        flags: those that both training stages have.
        models: Hub ids or folders of the models that it starts from.

    Raises:
        ValueError: the launch spreads the model over processes as training cannot, a flag asks for
            what its device cannot do, what is trained on would be evaluated on, or the
            checkpoint to begin with would be thrown away.
    """
    optimizer = OPTIMIZERS[flags.training.optim]
    refuse_sharding(accelerator, optimizer, flags_of(*groups).get("lora_rank"))
    refuse_float16_on_cpu(accelerator)
    refuse_device_flags(accelerator, flags.device, bool(flags_of(*groups).get("mse_weight")))
    refuse_lost_checkpoint(flags.trainer, flags.output)
    if flags.training.do_train and flags.training.do_eval:
        _refuse_one_split(flags.data)
    return stage_run(
        stage,
        groups,
        Path(flags.output.output_dir),
        resume.input_fingerprints(flags.train_specs(), models),
        owned=resume.OWNED,
        derived=_derived(accelerator, flags),
    )


def refuse_float16_on_cpu(accelerator: Accelerator) -> None:
    """Raise ValueError where accelerate would say float16 and compute in float32."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "--dtype float16 (--fp16) trains on a GPU alone: use bfloat16 or float32 here"
        )


def refuse_device_flags(
    accelerator: Accelerator, args: DeviceArguments, compares_layers: bool = False
) -> None:
    """Raise ValueError for a flag that this launch cannot follow.

    Args:
        accelerator: of the launch.
        args: the flags.
        compares_layers: whether states between layers are learnt from.
    """
    if args.auto_batch_size and accelerator.device.type != "cuda":
        raise ValueError(
            "--auto_batch_size needs a GPU: a computer without one has no limit that could be "
            "tried, it slows down or ends the run; choose --per_device_train_batch_size"
        )
    spread = spread_by(accelerator)
    if args.auto_batch_size and spread:
        raise ValueError(
            f"--auto_batch_size does not go with {spread}, whose processes cannot try on their "
            "own: choose --per_device_train_batch_size"
        )
    if args.compile and spread:
        raise ValueError(
            f"--compile does not go with {spread}: leave it out, or launch with MULTI_GPU"
        )
    if args.compile and compares_layers:
        raise ValueError("--compile does not go with --mse_weight: leave one of them out")


def _refuse_one_split(args: TrainDataArguments) -> None:
    """Raise ValueError if another split is asked for of a manifest without splits."""
    for spec in args.eval_specs() if args.evaluates_on_training_data else []:
        path = Path(spec.name)
        if path.suffix in manifests.SUFFIXES and not manifests.Manifest(path).has_splits:
            raise ValueError(
                f"--eval_split_name {spec.split}: {path} has no column `{manifests.SPLIT}`, and "
                "all would be trained and evaluated on: name other rows with --eval_dataset_name"
            )


def _derived(accelerator: Accelerator, flags: TrainingFlags) -> dict[str, Any]:
    """Return what must stay the same in a resumed run, beside its flags."""
    derived: dict[str, Any] = {
        resume.GLOBAL_BATCH: batch_plan(accelerator, flags.training).global_size
    }
    transforms = flags.examples.transforms()
    if transforms is not None:
        augmentation(transforms)  # what is wrong with them is said before anything is loaded
        derived["audio_augmentation"] = transforms  # not the file's name
    return derived


def begin_run(accelerator: Accelerator, run: Run, models: str, flags: TrainingFlags) -> None:
    """Log what is about to be done, with which models, and start the trackers."""
    parts = []
    if flags.training.do_train:
        parts.append("trains on " + " + ".join(map(str, flags.train_specs())))
    if flags.training.do_eval:
        parts.append("evaluates on " + " + ".join(map(str, flags.eval_specs())))
    log_start(run, accelerator, models, flags.model.compute_dtype, ", ".join(parts))
    if accelerator.is_main_process:
        run.outputs.grow(run.folder / LOSS_LOG)
    start_trackers(accelerator, run, flags.run.wandb_project)


def end_run(accelerator: Accelerator, run: Run, flags: TrainingFlags, is_done: bool) -> None:
    """Let go of the other processes, and log what was made and the command that goes on with it.

    Raises:
        SystemExit: SIGTERM ended the training: a recipe must not go on with this model.
    """
    finish_trackers(accelerator)
    if accelerator.is_main_process and not flags.training.do_train:
        run.end_open()
    loop.leave_together(accelerator)
    if not is_done:
        raise SystemExit(loop.STOPPED)
    if not flags.training.do_train:
        log_end(run, f"scores in {LOSS_LOG}")
        return
    spoken = plus_list(flags.decoding.language)
    language = f" --language {spoken[0]}" if len(set(spoken)) == 1 else ""
    log_end(
        run,
        f"the trained model, its checkpoints, and its losses in {LOSS_LOG}",
        f"python run_short_form_eval.py -m {run.folder} -d TEST_SET{language} -o {run.folder}-eval",
    )


# --- plain values ---------------------------------------------------------------------------------


def batch_plan(accelerator: Accelerator, args: TrainingArguments) -> BatchPlan:
    """Return how this launch cuts a global batch."""
    return BatchPlan(
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
    )


def fitted_plan(accelerator: Accelerator, learner: Learner, flags: TrainingFlags) -> BatchPlan:
    """Return the same, or where it is asked for, with micro-batches that fill the GPU."""
    plan = batch_plan(accelerator, flags.training)
    if not flags.device.auto_batch_size:
        return plan
    return largest_fitting(accelerator, plan, learner, flags.training.max_label_length)


def length(args: TrainingArguments) -> Length:
    """Return how long a run trains."""
    return Length(args.max_steps if args.max_steps > 0 else None, args.num_train_epochs)


def label_settings(flags: TrainingFlags) -> LabelSettings:
    """Return which rows are learnt from, and what their labels are."""
    args = flags.training
    return LabelSettings(
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        max_label_length=args.max_label_length,
        wer_threshold=args.wer_threshold if flags.data.use_pseudo_labels else None,
        seed=flags.run.seed,
        min_duration_s=flags.data.min_duration_in_seconds,
        max_duration_s=flags.data.max_duration_in_seconds,
        cleaning=text_cleaning(flags.examples),
        pack=flags.examples.pack,
        no_speech_probability=flags.examples.no_speech_probability,
    )


def text_cleaning(args: ExampleArguments) -> TextCleaning:
    """Return what is done to the texts that are learnt."""
    return TextCleaning(
        args.do_lower_case,
        args.do_remove_punctuation,
        "".join("".join(args.chars_to_ignore).split()),
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
        epsilon=args.adam_epsilon,
        warmup_ratio=args.warmup_ratio,
        optimizer=OPTIMIZERS[args.optim],
    )


def frozen(args: TrainingArguments) -> Frozen:
    """Return which parts of the model are not trained."""
    return Frozen(
        encoder=args.freeze_encoder,
        feature_encoder=args.freeze_feature_encoder,
        decoder=args.freeze_decoder,
        embed_positions=args.freeze_embed_positions,
    )


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
        temperature_fallback=decoding_args.temperature_fallback,
        patience=args.early_stopping_patience,
        ends_with_best=args.load_best_model_at_end,
    )


# --- what is trained, and on what -----------------------------------------------------------------


def load_student(
    accelerator: Accelerator, newest: Path | None, flags: TrainingFlags
) -> checkpoint.Whisper:
    """Load the model to be trained, from the checkpoint that the run goes on from, if there is one.

    Its weights are float32, whatever the dtype of the computation: AdamW on bfloat16 weights loses
    small updates.

    Raises:
        ValueError: it cannot be trained by several processes, or does not write the language.
    """
    return prepare_student(accelerator, load_weights(newest, flags.model), flags)


def load_weights(newest: Path | None, model_args: ModelArguments) -> checkpoint.Whisper:
    """Load the model that the flags name, or where there is one, a run's newest checkpoint."""
    return checkpoint.load(
        str(newest or model_args.model_name_or_path),
        "float32",
        model_args.attn_type,
        None if newest else model_args.model_revision,
        model_args.cache_dir,
    )


def prepare_student(
    accelerator: Accelerator, student: checkpoint.Whisper, flags: TrainingFlags
) -> checkpoint.Whisper:
    """Make a model ready to be trained.

    Raises:
        ValueError: it cannot be trained by several processes, or does not write the language.
    """
    refuse_layerdrop(student, accelerator.num_processes)
    make_trainable(student, frozen(flags.training), flags.training.gradient_checkpointing)
    set_prompt(student, asked_prompts(flags.train_specs()))
    student.model.to(accelerator.device)
    return student


def batch_loader(
    accelerator: Accelerator, student: checkpoint.Whisper, run_args: RunArguments
) -> BatchLoader:
    """Return how rows become a student's batches.

    A GPU makes the features of all clips of a batch at once; a CPU does so clip by clip, in the
    processes that decode.
    """
    is_on_gpu = accelerator.device.type == "cuda"
    return BatchLoader(
        SpeechCollator(student.log_mel, student.tokens, makes_features=not is_on_gpu),
        run_args.dataloader_num_workers,
        pin_memory=is_on_gpu,
    )


def kl_weights_of(specs: Sequence[DatasetSpec]) -> tuple[float, ...]:
    """Return how much the rows of each dataset follow a teacher; none where all do alike."""
    weights = tuple(spec.kl_weight for spec in specs if spec.kl_weight is not None)
    return weights if len(set(weights)) > 1 else ()


def training_loader(loader: BatchLoader, flags: TrainingFlags) -> BatchLoader:
    """Return a loader that makes batches to learn from, where the given one evaluates."""
    data_args = flags.data
    limits = DurationLimits(data_args.min_duration_in_seconds, data_args.max_duration_in_seconds)
    transforms = flags.examples.transforms()
    augment = None if transforms is None else augmentation(transforms)
    weights = kl_weights_of(flags.train_specs())
    collate = replace(loader.collate, limits=limits, augment=augment, kl_weights=weights)
    return replace(loader, collate=collate)


def make_evaluator(
    accelerator: Accelerator, run: Run, learner: Learner, flags: TrainingFlags
) -> Evaluator:
    """Load what is evaluated on while training; without `--do_eval` that is nothing."""
    is_evaluated, specs = flags.training.do_eval, flags.eval_specs()
    loader = batch_loader(accelerator, learner.student, flags.run)
    collate = replace(loader.collate, kl_weights=kl_weights_of(specs))
    return Evaluator(
        accelerator,
        learner,
        eval_sets(specs, learner.student, label_settings(flags)) if is_evaluated else [],
        evaluation(flags.decoding, flags.training),
        replace(loader, collate=collate),
        run.folder,
    )


def begin_session(evaluator: Evaluator, newest: Path | None, flags: TrainingFlags) -> Session:
    """Load what is trained on, and go on from a run's newest checkpoint.

    Args:
        evaluator: of the run; its learner is trained.
        newest: None for a new run.
        flags: as parsed.
    """
    accelerator, learner, folder = evaluator.accelerator, evaluator.learner, evaluator.folder
    args = flags.training
    plan = fitted_plan(accelerator, learner, flags)
    if flags.device.compile:
        learner.compile(plan.per_device)
    data = training_data(
        flags.train_specs(),
        learner.student,
        label_settings(flags),
        length(args),
        plan,
        training_loader(evaluator.loader, flags),
    )
    trainer = loop.make_trainer(accelerator, learner, optimization(args), data.num_updates)
    progress = resume.resume(trainer, folder, newest, data.num_updates)
    if isinstance(data.rows, StreamedRows):
        data.rows.go_on(progress.places)
    losses = LossMonitor(trainer, progress, folder, flags.run.logging_steps, data.num_updates)
    saver = resume.CheckpointSaver(
        trainer, progress, losses.window, folder, args.save_steps, args.save_total_limit, data
    )
    return Session(trainer, data, progress, losses, saver, evaluator, flags.data.max_bad_fraction)
