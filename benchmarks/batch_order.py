"""What is padded in the decoder's inputs, and what an update takes, by how rows are put in batches.

    PYTHONPATH=. python benchmarks/batch_order.py

Labels have log-normal lengths: about those of clips of 6 s, of packed windows, and of clips whose
lengths differ more. Micro-batches are cut from the shuffled order as it comes; from each global
batch sorted by length, as `BatchPlan` does, which leaves every update the same rows; or from 50
global batches sorted together, whose updates would have rows of like length.

Then updates of a distillation in whisper-tiny's shape (4 + 4 and 4 + 2 layers, random weights, the
encoder frozen and shared) are timed on the same global batches, as they come and as `BatchPlan`
cuts them, in strict alternation; their losses must be equal. The teacher's decoder has 4 layers, or
32 as in large-v3.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperForConditionalGeneration

from distillery.text.labels import IGNORED
from distillery.training.losses import LossWeights
from distillery.training.order import BatchPlan, Order
from distillery.training.step import StudentStep, Teacher

KINDS = {"clips of 6 s": (22, 0.45), "packed windows": (110, 0.2), "clips of 1 to 30 s": (40, 0.8)}
PLANS = ((8, 1), (8, 4), (32, 1), (32, 4), (32, 8), (64, 4))
NUM_ROWS, WINDOW = 102_400, 50
SHAPE = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6}
SHAPE |= {"decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}


def lengths_of(kind: str, num_rows: int) -> NDArray[np.int16]:
    """Return numbers of ids of labels."""
    mean, spread = KINDS[kind]
    drawn = np.random.default_rng(0).lognormal(np.log(mean), spread, num_rows)
    return drawn.clip(5, 448).astype(np.int16)


def padding(lengths: NDArray[np.int16], plan: BatchPlan, window: int = 1) -> float:
    """Return the share of decoder positions that are padding, in percent.

    Args:
        lengths: of the labels, in the shuffled order.
        plan: how a global batch is cut.
        window: global batches that are sorted together; 0 sorts nothing.
    """
    if window:
        size = plan.global_size * window
        starts = range(0, len(lengths), size)
        lengths = np.concatenate([np.sort(lengths[start : start + size]) for start in starts])
    batches = lengths[: len(lengths) // plan.per_device * plan.per_device]
    batches = batches.reshape(-1, plan.per_device)
    return 100 * (1 - float(batches.sum()) / float(batches.max(1).sum() * plan.per_device))


def models(teacher_layers: int) -> tuple[StudentStep, Teacher]:
    """Return a student's step, and its teacher with the same encoder."""
    torch.manual_seed(0)
    make = partial(WhisperConfig, vocab_size=51866, **SHAPE)
    teacher = WhisperForConditionalGeneration(make(decoder_layers=teacher_layers))
    student = WhisperForConditionalGeneration(make(decoder_layers=2))
    student.model.encoder.load_state_dict(teacher.model.encoder.state_dict())
    student.model.encoder.requires_grad_(False)
    return StudentStep(student, LossWeights()), Teacher(teacher, student)


def update(
    step: StudentStep,
    teacher: Teacher,
    batches: Sequence[NDArray[np.int16]],
    features: torch.Tensor,
) -> tuple[float, float]:
    """Return the CPU seconds of an update's passes, forward and backward, and its loss."""
    start, total = time.process_time(), 0.0
    for lengths in batches:
        longest = int(lengths.max())
        places = torch.arange(longest)
        ids = (torch.tensor(lengths)[:, None] * 97 + places * 31) % 50_000
        targets = torch.where(places < torch.tensor(lengths)[:, None], ids, IGNORED)
        heard = features[: len(lengths)]
        losses = step(heard, ids, targets, teacher(heard, ids))
        losses.total.backward()
        total += float(losses.total.detach())
    step.zero_grad()
    return time.process_time() - start, total


def measure(kind: str, plan: BatchPlan, teacher_layers: int, num_updates: int) -> None:
    """Print tokens per second as rows come and grouped."""
    lengths = lengths_of(kind, plan.global_size * num_updates)
    step, teacher = models(teacher_layers)
    features = torch.randn(1, 80, 3000).expand(plan.per_device, -1, -1)
    orders = {
        name: Order((len(lengths),), None, 0, given)
        for name, given in (("as they come", None), ("grouped", lengths))
    }
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    num_ids = []
    for number in range(num_updates):
        found = {}
        for name, order in orders.items():
            keys = plan.micro_batches(order, range(number, number + 1), len(lengths), 0)
            batches = [lengths[[row for row, _ in batch]] for batch in keys]
            taken, found[name] = update(step, teacher, batches, features)
            seconds[name].append(taken)
        assert np.isclose(*found.values(), rtol=1e-5), found
        num_ids.append(sum(int(batch.sum()) for batch in batches))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    speeds = [f"{statistics.mean(num_ids) / s:.0f}" for s in medians.values()]
    ratio = medians["as they come"] / medians["grouped"]
    print(f"| {kind} | 4 + {teacher_layers} | {' | '.join(speeds)} | {ratio:.3f} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--teacher_layers", type=int, nargs="+", default=[4, 32])
    args = parser.parse_args()
    print("| labels | micro-batch | of an update | as they come | grouped | windows of 50 |")
    for kind in KINDS:
        lengths = lengths_of(kind, NUM_ROWS)
        for per_device, accumulation in PLANS:
            plan = BatchPlan(per_device, accumulation, 1)
            shares = [f"{padding(lengths, plan, window):.0f} %" for window in (0, 1, WINDOW)]
            print(f"| {kind} | {per_device} | {plan.global_size} | {' | '.join(shares)} |")
    print("| labels | teacher | ids a CPU second as they come | grouped | ratio |")
    for kind in KINDS:
        for layers in args.teacher_layers:
            measure(kind, BatchPlan(8, 4, 1), layers, args.updates)


if __name__ == "__main__":
    main()
