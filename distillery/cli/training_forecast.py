"""What a training run would do and take, for its `--dry_run`."""

import math
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from distillery.cli import forecast, training
from distillery.cli.forecast import Line, size
from distillery.cli.training_arguments import TrainingArguments, TrainingFlags
from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import label_folders
from distillery.storage import checkpoints
from distillery.storage.runs import Run
from distillery.training.order import BatchPlan
from distillery.training.prompts import asked_prompts, prompts_of
from distillery.training.rows import label_rule
from distillery.training.sharding import DEEPSPEED, FSDP2, spread_by
from distillery.training.step import freeze, refuse_layerdrop, set_prompt
from distillery.training.top_tokens import POSITION
from distillery.whisper.adapters import AdaptedWhisper
from distillery.whisper.checkpoint import Whisper, have_same_weights

LABELS = 50  # ids of a row, about, as for `forecast.LABEL_BYTES`
FLOAT32, ADAMW = 4, 8  # bytes for each number, and for AdamW's two means of its gradient


def lines(
    accelerator: Accelerator,
    run: Run,
    flags: TrainingFlags,
    student: Whisper,
    teacher: Whisper | None = None,
) -> list[Line]:
    """Say what a training run would do and take.

    Args:
        accelerator: of this launch.
        run: as `open_run` would take it.
        flags: of the run.
        student: an outline, in the dtype of the computation.
        teacher: an outline; None for plain fine-tuning.
    """
    args, targets = flags.training, (schema.TEXT, "--text_column_name", *schema.TARGET_COLUMNS)
    refuse_layerdrop(student, accelerator.num_processes)
    specs = flags.train_specs()
    set_prompt(student, asked_prompts(specs))  # fails by name if they misfit
    speech = [forecast.survey(label_folders.labels_spec(spec), *targets) for spec in specs]
    prompts = _prompts(student, flags, specs, speech)
    eval_specs = flags.eval_specs() if args.do_eval else []
    eval_speech = [forecast.survey(spec, *targets) for spec in eval_specs]
    plan = training.batch_plan(accelerator, args)
    spread = spread_by(accelerator)
    num_updates = _num_updates(args, plan, forecast.total_rows(speech))
    num_bytes = checkpoint_bytes(student, args, num_updates)
    models = [(flags.model.model_name_or_path, student)]
    if teacher is not None:
        models.append((run.arguments["teacher_model_name_or_path"], teacher))
    return [
        *forecast.data_lines(speech),
        *[("prompts", line) for line in prompts],
        *[("eval", str(dataset)) for dataset in eval_speech],
        *[forecast.model_line(name, model) for name, model in models],
        ("steps", _steps(args, plan, num_updates)),
        ("memory", training_memory(student, teacher, args, spread, plan.num_processes)),
        forecast.disk_line(run.folder, num_bytes, "checkpoints and model"),
        *_cache_lines(run, flags, forecast.total_rows(speech)),
        ("resume", _resume_status(run)),
    ]


def _cache_lines(run: Run, flags: TrainingFlags, num_rows: int | None) -> list[Line]:
    """Say what `--cache_teacher` takes, where it is asked for, by the labels of usual rows."""
    folder = run.arguments.get("cache_teacher")
    if folder is None or not flags.training.do_train:
        return []
    num_bytes = None if num_rows is None else float(num_rows * LABELS * POSITION.itemsize)
    what = f"what the teacher says at {LABELS} label positions of each row"
    return [forecast.disk_line(Path(folder), num_bytes, what)]


def _prompts(
    student: Whisper,
    flags: TrainingFlags,
    specs: Sequence[DatasetSpec],
    speech: Sequence[forecast.Speech],
) -> list[str]:
    """Say what the labels of each dataset ask for, and how much they follow a teacher."""
    rule = label_rule(student, training.label_settings(flags))
    return [
        f"{spec}: {prompts_of(spec, rule, dataset.column_names)}"
        + ("" if spec.kl_weight is None else f", KL weight {spec.kl_weight:g}")
        for spec, dataset in zip(specs, speech, strict=True)
    ]


def _num_updates(args: TrainingArguments, plan: BatchPlan, num_rows: int | None) -> int | None:
    if num_rows is None and args.max_steps < 0:
        return None
    return training.length(args).count(plan, num_rows)[1]


def _steps(args: TrainingArguments, plan: BatchPlan, num_updates: int | None) -> str:
    if num_updates is None:
        count = "unknown updates (the data does not say how long it is)"
    elif args.max_steps > 0:
        count = f"{num_updates:,} updates"
    else:
        count = f"at most {num_updates:,} updates (rows that cannot be learnt from are left out)"
    return (
        f"{count} of {plan.global_size} rows: {plan.per_device} per process x {plan.accumulation} "
        f"accumulated x {plan.num_processes} processes"
    )


def _num_trained(student: Whisper, args: TrainingArguments) -> int:
    freeze(student.model, training.frozen(args))
    return sum(p.numel() for p in student.model.parameters() if p.requires_grad)


def training_memory(
    student: Whisper,
    teacher: Whisper | None,
    args: TrainingArguments,
    spread: str | None = None,
    num_processes: int = 1,
) -> str:
    """Say what training takes of each process at least, and what of it.

    Args:
        student, teacher: as in `lines`.
        args: of the run.
        spread: what spreads it over processes, as `spread_by` says.
        num_processes: of the launch.
    """
    trained = _num_trained(student, args)
    num_shares = num_processes if spread else 1
    if spread == FSDP2:
        weights = student.num_parameters / num_shares
    else:
        weights = student.num_parameters - _num_shared(student, teacher, args)
    # DeepSpeed updates a copy of each process's share of the weights.
    adamw = ADAMW + FLOAT32 if spread == DEEPSPEED else ADAMW
    parts = {
        "weights (float32)": weights * FLOAT32,
        "gradients": trained * FLOAT32 / num_shares,
        "AdamW": trained * adamw / num_shares,
        "teacher": teacher.num_bytes if teacher else 0,
        "inputs of the trained layers": _layer_inputs(student, args),
    }
    listed = " + ".join(f"{size(value)} {name}" for name, value in parts.items() if value)
    return (
        f"{size(sum(parts.values()))} at least: {listed}; leaves out what layers hold beside their "
        "inputs (little with --gradient_checkpointing), copies of the weights in another "
        "dtype, and the libraries"
    )


def _num_shared(student: Whisper, teacher: Whisper | None, args: TrainingArguments) -> int:
    """Return how many numbers of a frozen student are not held beside its teacher's."""
    if teacher is None or not args.freeze_encoder:
        return 0
    own, theirs = student.model.model.encoder, teacher.model.model.encoder
    return sum(p.numel() for p in own.parameters()) if have_same_weights(theirs, own) else 0


def _layer_inputs(student: Whisper, args: TrainingArguments) -> int:
    """Return the bytes that the backward pass needs at least: the input of each trained layer."""
    config = student.model.config
    numbers = config.decoder_layers * min(args.max_label_length, student.max_label_length)
    if not args.freeze_encoder:
        numbers += config.encoder_layers * config.max_source_positions
    numbers *= args.per_device_train_batch_size * config.d_model
    return int(numbers * student.model.dtype.itemsize)


def checkpoint_bytes(
    student: Whisper, args: TrainingArguments, num_updates: int | None
) -> float | None:
    """Return the bytes of all files that a run keeps at once; None for unknown updates."""
    if num_updates is None:
        return None
    weights = student.num_parameters * FLOAT32
    saved = math.ceil(num_updates / args.save_steps)
    # The oldest goes when the newest is whole.
    kept = min(saved, args.save_total_limit + 1 if args.save_total_limit else saved)
    trained = _num_trained(student, args)
    # Of adapters, a checkpoint holds nothing else.
    numbers = trained if isinstance(student, AdaptedWhisper) else student.num_parameters
    models = 2 if args.do_eval else 1  # the last, and the best
    return kept * (numbers * FLOAT32 + trained * ADAMW) + models * weights


def _resume_status(run: Run) -> str:
    if run.arguments["overwrite_output_dir"]:
        return run.resume_status()
    newest = checkpoints.newest_checkpoint(run.folder)
    return run.resume_status(f"from {newest.name}" if newest else "it has no checkpoint yet")
