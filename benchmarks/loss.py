"""Speed and memory of the distillation loss against the plain formula, in the same run.

    PYTHONPATH=. python benchmarks/loss.py --rows 2048 --valid 0.18 --vocabulary 51866 --width 384

The plain formula makes logits for every position and lets autograd keep what it wants; ours makes
them for valid rows only, in chunks. Both are checked for equal gradients first, then timed in
strict alternation; memory is the growth of the process's peak, each in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillery.text.labels import IGNORED
from distillery.training.losses import LossWeights, distillation_loss

WEIGHTS = LossWeights()
NUM_RUNS = 5


def plain(
    student: Tensor, head: Tensor, targets: Tensor, teacher: Tensor, teacher_head: Tensor
) -> Tensor:
    """Return the loss by the formula as the paper writes it."""
    logits, teacher_logits = student @ head.T, teacher @ teacher_head.T
    valid = (targets != IGNORED).float()
    ce = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    log_q = functional.log_softmax(logits / WEIGHTS.temperature, dim=-1)
    t = functional.softmax(teacher_logits / WEIGHTS.temperature, dim=-1)
    divergence = functional.kl_div(log_q, t, reduction="none").sum(-1)
    kl = (divergence * valid).sum() * WEIGHTS.temperature**2
    return WEIGHTS.ce * ce + WEIGHTS.kl * kl


def chunked(
    student: Tensor, head: Tensor, targets: Tensor, teacher: Tensor, teacher_head: Tensor
) -> Tensor:
    """Return the loss as this package computes it."""
    return distillation_loss(student, head, targets, WEIGHTS, teacher, teacher_head).total


def make_inputs(args: argparse.Namespace) -> tuple[Tensor, ...]:
    """Return seeded states and heads, and targets of which `--valid` is the share that counts."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / args.width**0.5

    targets = torch.randint(args.vocabulary, (args.rows,), generator=generator)
    targets[torch.rand(args.rows, generator=generator) > args.valid] = IGNORED
    return (
        draw(args.rows, args.width).requires_grad_(),
        draw(args.vocabulary, args.width).requires_grad_(),
        targets,
        draw(args.rows, args.width),
        draw(args.vocabulary, args.width),
    )


def run(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, Tensor, Tensor]:
    """Return seconds for forward and backward, and the gradients of states and head."""
    student, head = inputs[:2]
    student.grad = head.grad = None
    started = time.perf_counter()
    loss(*inputs).backward()
    seconds = time.perf_counter() - started
    assert student.grad is not None and head.grad is not None
    return seconds, student.grad, head.grad


def peak_memory() -> int:
    """Return this process's peak resident memory in bytes (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))


def peak_growth(loss: Callable[..., Tensor], args: argparse.Namespace, queue: Any) -> None:
    """Send the bytes by which one run raises this process's peak memory."""
    inputs = make_inputs(args)
    before = peak_memory()
    run(loss, inputs)
    queue.put(peak_memory() - before)


def measure_memory(loss: Callable[..., Tensor], args: argparse.Namespace) -> float:
    """Return the peak's growth in bytes, measured in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_growth, args=(loss, args, queue))
    process.start()
    grown = float(queue.get())
    process.join()
    return grown


def main() -> None:
    """Check that both agree, then measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048, help="positions of the batch")
    parser.add_argument("--valid", type=float, default=0.18, help="share of them that counts")
    parser.add_argument("--vocabulary", type=int, default=51866, help="tokens")
    parser.add_argument("--width", type=int, default=384, help="width of the decoder")
    args = parser.parse_args()
    inputs = make_inputs(args)
    _, *expected = run(plain, inputs)
    expected = [gradient.clone() for gradient in expected]
    _, *gradients = run(chunked, inputs)
    for name, want, got in zip(("states", "head"), expected, gradients, strict=True):
        worst = float((want - got).abs().max() / want.abs().max())
        print(f"gradient of {name}: largest difference {worst:.1e} of the largest entry")
        assert worst < 1e-5, "the two do not agree: their times mean nothing"
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(NUM_RUNS):
        times["plain"].append(run(plain, inputs)[0])
        times["ours"].append(run(chunked, inputs)[0])
    seconds = {name: statistics.median(values) for name, values in times.items()}
    memory = {"plain": measure_memory(plain, args), "ours": measure_memory(chunked, args)}
    for name in times:
        print(
            f"{name:>6}: {seconds[name]:.3f} s (median of {NUM_RUNS}), "
            f"{memory[name] / 2**20:.0f} MiB"
        )
    print(
        f" ratio: {seconds['plain'] / seconds['ours']:.1f} times faster, "
        f"{memory['plain'] / memory['ours']:.1f} times less memory"
    )


if __name__ == "__main__":
    main()
