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

`--lora_rank 32` trains adapters alone, and leaves a plain checkpoint with them added;
`--config_name` begins with random weights of a configuration's shape.

A killed run goes on from its newest whole checkpoint when it is started again; SIGTERM saves one.
"""

from dataclasses import dataclass

from distillery.cli.arguments import ModelArguments
from distillery.cli.flags import at_least, flag, parse, plus_list, within
from distillery.cli.training_arguments import TRAINING_GROUPS, TrainingFlags, check

# Linear layers of a Whisper by their names; the output, which is the embedding too, is none.
LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class FinetuningArguments:
    """What is trained."""

    config_name: str | None = flag(
        None,
        "Begin with random weights of this configuration's shape (folder or Hub id); tokenizer and "
        "settings of generation are those of --model_name_or_path.",
        is_input=True,
    )
    lora_rank: int | None = flag(
        None, "Train low-rank adapters (LoRA) of this rank, and nothing else; needs peft."
    )
    lora_alpha: int | None = flag(
        None, "Adapters are multiplied by this over their rank; default: twice the rank."
    )
    lora_dropout: float = flag(0.0, "Share of an adapter's inputs that are dropped.")
    lora_target_modules: str = flag(
        "q_proj+v_proj", f"Layers with adapters, joined with '+': {', '.join(LAYERS)}."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = [
            *at_least(self, "lora_rank", 1),
            *at_least(self, "lora_alpha", 1),
            *within(self, "lora_dropout", 0, 1),
        ]
        if self.lora_rank is None:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
                if getattr(self, name) != getattr(FinetuningArguments, name):
                    found.append(f"--{name} needs --lora_rank")
        for name in plus_list(self.lora_target_modules) or [""]:
            if name not in LAYERS:
                found.append(f"--lora_target_modules must be of {', '.join(LAYERS)}; got {name!r}")
        if self.config_name and self.lora_rank:
            found.append("--lora_rank does not go with --config_name: random weights are of no use")
        return found


GROUPS = (FinetuningArguments, *TRAINING_GROUPS)

if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

from pathlib import Path
from typing import Any

import torch

from distillery.cli import forecast, hub, training, training_forecast
from distillery.cli.runtime import load_outline, make_accelerator, open_run
from distillery.storage.runs import Run
from distillery.storage.stops import stop_request
from distillery.training import resume
from distillery.training.losses import LossWeights
from distillery.training.step import Learner, StudentStep, wants_masks
from distillery.training.validation import Evaluator
from distillery.whisper import untrained
from distillery.whisper.adapters import AdaptedWhisper, LoraSettings, adapted
from distillery.whisper.checkpoint import Whisper


def main(finetuning_args: FinetuningArguments, *shared_groups: Any) -> None:
    """Train, or go on training."""
    groups, flags = (finetuning_args, *shared_groups), TrainingFlags.of(*shared_groups)
    name, config_name = flags.model.model_name_or_path, finetuning_args.config_name
    models = [name, config_name] if config_name else [name]
    accelerator = make_accelerator(flags.run, flags.output.output_dir, flags.model.dtype)
    run = training.describe_run("run_finetuning", accelerator, groups, flags, models)
    if flags.run.dry_run:
        outline = model_outline(finetuning_args, flags)
        lines = training_forecast.lines(accelerator, run, flags, outline)
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, flags.output.overwrite_output_dir)
    if not run.is_complete:
        newest = resume.newest_checkpoint(accelerator, run.folder, flags.trainer.begun_with)
        training.begin_run(accelerator, run, " in the shape of ".join(models), flags)
        model = load_model(finetuning_args, newest, flags)
        model = training.prepare_student(accelerator, model, flags)
        masks_input = wants_masks(model, flags.training.apply_spec_augment)
        step = StudentStep(model.model, LossWeights(), masks_input)
        learner = Learner(model, step, teacher=None)
        evaluator = training.make_evaluator(accelerator, run, learner, flags)
        is_done = finetune(run, evaluator, newest, flags)
        training.end_run(accelerator, run, flags, is_done)
    if accelerator.is_main_process:
        hub.publish(run)


def load_model(args: FinetuningArguments, newest: Path | None, flags: TrainingFlags) -> Whisper:
    """Load what is trained: as it was begun with, or as a checkpoint has it.

    Args:
        args: flags of this stage alone.
        newest: the checkpoint that a run goes on from; None for a new run.
        flags: all others.
    """
    if args.lora_rank is not None:
        model = with_adapters(training.load_weights(None, flags.model), args, flags)
        if newest is not None:
            model.load_adapters(newest)
        return model
    if args.config_name is not None and newest is None:
        return untrained_model(args.config_name, flags.model, flags.run.seed)
    return training.load_weights(newest, flags.model)


def untrained_model(config_name: str, model_args: ModelArguments, seed: int) -> Whisper:
    """Return a model with random weights."""
    return untrained.new(
        config_name,
        model_args.model_name_or_path,
        seed,
        model_args.attn_type,
        model_args.model_revision,
        model_args.cache_dir,
    )


def with_adapters(
    model: Whisper, args: FinetuningArguments, flags: TrainingFlags
) -> AdaptedWhisper:
    """Freeze a model, and add the adapters that are trained in its place."""
    assert args.lora_rank is not None
    settings = LoraSettings(
        args.lora_rank,
        2 * args.lora_rank if args.lora_alpha is None else args.lora_alpha,
        args.lora_dropout,
        tuple(plus_list(args.lora_target_modules)),
        flags.run.seed,
    )
    return adapted(model, settings, flags.model.model_name_or_path)


def model_outline(args: FinetuningArguments, flags: TrainingFlags) -> Whisper:
    """Return what is trained without its weights, for a dry run."""
    with torch.device("meta"):
        if args.config_name is not None:
            return untrained_model(args.config_name, flags.model, flags.run.seed)
        outline = load_outline(flags.model)
        return outline if args.lora_rank is None else with_adapters(outline, args, flags)


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
