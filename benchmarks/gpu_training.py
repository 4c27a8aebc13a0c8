"""The training half of `gpu.py`: updates of distillation, ours and by the published formula."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from large_models import (
    END,
    LARGE,
    TOY,
    Budget,
    attempt,
    memory,
    random_whisper,
    seconds_of,
    windows,
)
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from distillery.data.collators import Batch
from distillery.training.batch_size import largest_fitting
from distillery.training.losses import LossSums, LossWeights
from distillery.training.optim import make_optimizer
from distillery.training.order import BatchPlan
from distillery.training.settings import Optimization
from distillery.training.shared_encoder import share_encoder
from distillery.training.step import Learner, StudentStep, Teacher
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.student import make_student

FLOOR = 265  # windows a second on one H200
NUM_IDS, LEARNING_RATE = 128, 1e-5
PLAIN, EAGER, COMPILED = "plain trainer", "ours", "ours, compiled"


def training_half(device: torch.device, budget: Budget, is_tiny: bool) -> None:
    """Print the lines of training."""
    shape, dtype = (TOY, torch.float32) if is_tiny else (LARGE, torch.bfloat16)
    learner = new_learner(random_whisper(device, dtype, shape))
    batch = training_batch(learner, 2 if is_tiny else 64)
    print("\n| training | batch | windows/s | of the floor | times plain | GiB |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    speeds: dict[str, float] = {}
    for program in (PLAIN, EAGER, COMPILED):
        attempt(program, budget, partial(training, learner, batch, program, speeds))
    attempt("losses", budget, partial(losses_agree, learner, batch))
    attempt("largest batch", budget, partial(largest_batch, learner, 4 if is_tiny else 1024))
    budget.longest_s = 0  # compiling says nothing of what labelling takes


def new_learner(whisper: Whisper) -> Learner:
    """Return a student of 2 decoder layers that learns from a teacher with all of them."""
    config, device = whisper.model.config, whisper.model.device
    layers = range(config.encoder_layers), (0, config.decoder_layers - 1)
    model = make_student(whisper.model, *layers).float().to(device).train()
    model.model.encoder.requires_grad_(False)
    teacher = Teacher(whisper.model, model)
    assert teacher.shares_encoder
    student = share_encoder(replace(whisper, model=model), teacher)
    return Learner(student, StudentStep(model, LossWeights()), teacher)


def training_batch(learner: Learner, num_rows: int) -> Batch:
    """Return a batch of packed windows with labels of random ids, all of which count."""
    student, device = learner.student, learner.student.model.device
    most = student.log_mel.window_samples
    speech = windows(student, "packed", num_rows)
    waveforms = [torch.from_numpy(wave[:most]) for wave in speech.waveforms]
    num_ids = min(NUM_IDS, student.max_label_length)
    ids = torch.randint(END, (num_rows, num_ids), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        [str(number) for number in range(num_rows)],
        [""] * num_rows,
        [],
        None,
        ids,
        ids.roll(-1, 1),
        waveforms=pad_sequence(waveforms, batch_first=True),
    )
    return batch.pin_memory() if device.type == "cuda" else batch


def training(learner: Learner, batch: Batch, program: str, speeds: dict[str, float]) -> str:
    """Return the line of one program: ours begins with samples, the plain one with features."""
    device = learner.student.model.device
    trained = [weight for weight in learner.step.parameters() if weight.requires_grad]
    if program == PLAIN:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        loss_of = partial(plain_loss, learner, learner.tensors(batch))
    else:
        settings = Optimization(LEARNING_RATE, "constant", 0, 0.0, (0.9, 0.999), 1.0)
        optimizer = make_optimizer(learner.step, settings)
        loss_of = partial(our_loss, learner, batch)
    if program == COMPILED:
        learner.compile(len(batch.ids))

    def update() -> None:
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    taken_s = seconds_of(update, device, runs=10 if device.type == "cuda" else 2)
    speeds[program] = speed = len(batch.ids) / taken_s
    times = f"{speed / speeds[PLAIN]:.2f}" if PLAIN in speeds else "-"
    shares = f"{speed:.1f}", f"{speed / FLOOR:.0%}", times, memory()
    return f"| {' | '.join(map(str, (program, len(batch.ids), *shares)))} |"


def our_loss(learner: Learner, batch: Batch) -> torch.Tensor:
    """Return the mean loss of a batch as the stage computes it."""

    def step(*inputs: Any) -> LossSums:
        with torch.autocast(learner.student.model.device.type, torch.bfloat16):
            losses: LossSums = learner.step(*inputs)
        return losses

    losses = learner.losses(batch, step)
    return losses.total / losses.num_tokens


def plain_loss(learner: Learner, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return it by the published formula: from all logits of both, with the encoder run once."""
    assert learner.teacher is not None
    features, inputs, targets = tensors
    teacher, student, weights = learner.teacher.model, learner.student.model, LossWeights()
    with torch.no_grad():
        heard = teacher.model.encoder(features.to(teacher.dtype))
        theirs = teacher(encoder_outputs=heard, decoder_input_ids=inputs, use_cache=False).logits
    with torch.autocast(features.device.type, torch.bfloat16):
        ours = student(encoder_outputs=heard, decoder_input_ids=inputs, use_cache=False).logits
        cross_entropy = functional.cross_entropy(ours.flatten(0, 1), targets.flatten())
        divergence = functional.kl_div(
            (ours / weights.temperature).log_softmax(-1),
            (theirs / weights.temperature).softmax(-1),
            reduction="none",
        )
    divergence = divergence.sum(-1).mean() * weights.temperature**2
    return weights.ce * cross_entropy + weights.kl * divergence


@torch.no_grad()
def losses_agree(learner: Learner, batch: Batch) -> str:
    """Return how far the two losses are apart; ours is compiled by now."""
    plain = float(plain_loss(learner, learner.tensors(batch)))
    difference = abs(float(our_loss(learner, batch)) - plain) / plain
    assert difference < 0.02, f"losses differ by {difference:.1e}"
    return f"losses of the plain and of the compiled update differ by {difference:.1e}"


def largest_batch(learner: Learner, share: int) -> str:
    """Return the largest batch that `--auto_batch_size` finds."""
    precision = "bf16" if learner.student.model.device.type == "cuda" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=precision == "no")
    with learner.step.stacks.run_as_they_are():
        found = largest_fitting(accelerator, BatchPlan(share, 1, 1), learner, NUM_IDS)
    return f"largest of {share}, {share // 2}, … rows that fits: {found.per_device}"
