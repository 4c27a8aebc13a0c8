r"""What `--cache_teacher` saves of an update, and what it changes of the loss.

    PYTHONPATH=. python benchmarks/teacher_cache.py speed \
        --tokenizer ../shared/data/whisper_tokenizer
    PYTHONPATH=. python benchmarks/teacher_cache.py loss --teacher TEACHER --student STUDENT \
        --dataset LABELS --split train --language ja

`speed`: models of whisper-tiny's width and vocabulary with random weights, a teacher with 4 + 32
layers, a student with 4 + 2; the encoder is frozen and the same in both, so that it runs once in
either case. Updates on batches in memory, without reading and log-mel, in strict alternation: with
the teacher, and from what was kept; seconds are the processor's. Before that, both are checked to
have the same cross-entropy, and a divergence from what was kept that is no larger.

`loss`: a trained teacher and a student, on labelled clips: how much probability the tokens that are
kept have, and how far divergence and gradient (by the student's weights, over each batch) are from
those of the whole distributions, as the student stands and for each number of tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from decoding import TINY, tiny_whisper
from torch import Tensor

from distillery.data.collators import Batch, SpeechCollator
from distillery.data.specs import DatasetSpec
from distillery.text.labels import IGNORED, decoder_inputs_and_targets
from distillery.training.losses import LossWeights
from distillery.training.order import BatchPlan
from distillery.training.rows import BatchLoader, training_data
from distillery.training.settings import LabelSettings, Length
from distillery.training.step import Learner, StudentStep, Teacher, TeacherOutputs
from distillery.training.top_tokens import NUM_TOP, POSITION, TopTokens
from distillery.whisper import checkpoint
from distillery.whisper.student import make_student

WEIGHTS = LossWeights()


def main() -> None:
    """Measure what is asked for."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    {"speed": measure_speed, "loss": measure_loss}[args.what](args)


# --- speed ----------------------------------------------------------------------------------------


def measure_speed(args: argparse.Namespace) -> None:
    """Print seconds of an update with the teacher and without it, and of keeping what it says."""
    learner = deep_learner(args)
    batch = random_batch(learner, args)
    kept_s, cached = timed(lambda: with_kept(learner, batch))
    teacherless = replace(learner, teacher=None)
    whole, cut = (
        one.losses(each, one.step) for one, each in ((learner, batch), (teacherless, cached))
    )
    for name, of in (("CE", "ce"), ("KL", "kl")):
        live, kept = (float(getattr(each, of)) / batch.num_tokens for each in (whole, cut))
        print(f"{name} of a token: {live:.4f} with the teacher, {kept:.4f} from what was kept")
    assert abs(float(whole.ce - cut.ce)) < 1e-5 * float(whole.ce)
    assert 0 <= float(cut.kl) <= float(whole.kl)
    optimizer = torch.optim.AdamW([p for p in learner.step.parameters() if p.requires_grad], 1e-5)
    seconds: dict[str, list[float]] = {"teacher": [], "cache": []}
    for number in range(args.runs + 1):
        for name, one, data in (("teacher", learner, batch), ("cache", teacherless, cached)):
            taken, _ = timed(lambda one=one, data=data: update(one, data, optimizer))
            if number:  # the first warms up
                seconds[name].append(taken)
    report_speed(seconds, kept_s, batch)


def report_speed(seconds: dict[str, list[float]], kept_s: float, batch: Batch) -> None:
    """Print medians and ratio."""
    pairs = zip(seconds["teacher"], seconds["cache"], strict=True)
    ratios = [one / other for one, other in pairs]
    num_rows = len(batch.ids)
    for name, each in seconds.items():
        print(f"an update with the {name}: {statistics.median(each):.2f} s")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"to keep what the teacher says of the same rows, once: {kept_s:.2f} s")
    num_bytes = batch.num_tokens * POSITION.itemsize
    print(f"{num_bytes / num_rows:,.0f} bytes a row of {batch.num_tokens / num_rows:.1f} positions")


def deep_learner(args: argparse.Namespace) -> Learner:
    """Return a learner with a deep teacher, whose encoder is frozen."""
    shape = {**TINY, "decoder_layers": args.decoder_layers}
    teacher = tiny_whisper(args.tokenizer, shape)
    last = args.decoder_layers - 1
    model = make_student(teacher.model, range(TINY["encoder_layers"]), [0, last])
    model.model.encoder.requires_grad_(False)
    student = replace(teacher, model=model.train())
    return Learner(student, StudentStep(model, WEIGHTS), Teacher(teacher.model, model))


def random_batch(learner: Learner, args: argparse.Namespace) -> Batch:
    """Return noise with random labels."""
    student, rng = learner.student, np.random.default_rng(0)
    shape = (args.batch_size, student.log_mel.num_mels, student.log_mel.num_frames)
    prefix = student.tokens.prefix("en", "transcribe", False)
    labels = [*prefix, *rng.integers(300, 50_000, args.ids).tolist(), student.tokens.end_of_text]
    inputs, targets = decoder_inputs_and_targets(labels, student.tokens)
    ids = [str(number) for number in range(args.batch_size)]
    rows = [torch.tensor(each).repeat(args.batch_size, 1) for each in (inputs, targets)]
    return Batch(ids, ids, [], torch.randn(shape), *rows)


def with_kept(learner: Learner, batch: Batch) -> Batch:
    """Return a batch with what the teacher says of it."""
    top = top_tokens(learner, batch, NUM_TOP, WEIGHTS.temperature)
    assert batch.targets is not None
    ends = (batch.targets != IGNORED).sum(1).cumsum(0)[:-1].tolist()
    return replace(batch, cached=np.split(top.to_positions(), ends))


@torch.no_grad()
def top_tokens(learner: Learner, batch: Batch, num_top: int, temperature: float) -> TopTokens:
    """Return the most probable tokens of a batch's positions that count."""
    return TopTokens.of(teacher_logits(learner, batch), temperature, num_top)


@torch.no_grad()
def teacher_logits(learner: Learner, batch: Batch) -> Tensor:
    """Return the teacher's logits at the positions that count."""
    features, inputs, targets = learner.tensors(batch)
    assert learner.teacher is not None
    outputs = learner.teacher(features, inputs)
    assert isinstance(outputs.decoder_states, Tensor) and outputs.head is not None
    return (outputs.decoder_states[targets != IGNORED] @ outputs.head.T).float()


def update(learner: Learner, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """Make an update."""
    (learner.losses(batch, learner.step).total / batch.num_tokens).backward()
    optimizer.step()
    optimizer.zero_grad()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds of the processor, which other programs change little, and result of work."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


# --- loss -----------------------------------------------------------------------------------------


def measure_loss(args: argparse.Namespace) -> None:
    """Print how far loss and gradient from kept tokens are from those of whole distributions."""
    student, teacher = (checkpoint.load(name) for name in (args.student, args.teacher))
    student.model.model.encoder.requires_grad_(False)
    weights = LossWeights(ce=0.0, kl=1.0, temperature=args.temperature)
    step = StudentStep(student.model, weights).train()
    learner = Learner(student, step, Teacher(teacher.model, student.model))
    figures: dict[int, list[Sequence[float]]] = {number: [] for number in args.tops}
    for batch in batches(learner, args):
        whole = loss_and_gradient(learner, batch, None)
        probabilities = (teacher_logits(learner, batch) / args.temperature).softmax(-1)
        for num_top, found in figures.items():
            top = top_tokens(learner, batch, num_top, args.temperature)
            short = loss_and_gradient(learner, batch, halved(top))
            rest = 1 - probabilities.gather(1, top.ids).sum(1)
            found.append([float(rest.mean()), *compared(short, whole)])
    print(f"{len(found)} batches of {args.batch_size}, vocabulary {probabilities.shape[1]}")
    print("| tokens | rest of the probability | KL / whole KL | gradient off by | cosine |")
    print(f"|---:|{4 * '---:|'}")
    for num_top, found in figures.items():
        rest, ratio, off, cosine = np.mean(found, axis=0)
        print(f"| {num_top} | {rest:.2%} | {ratio:.4f} | {off:.2%} | {cosine:.5f} |")


def halved(top: TopTokens) -> TopTokens:
    """Round to 16 bits, as what is kept is."""
    return replace(
        top, log_probs=top.log_probs.half().float(), log_rest=top.log_rest.half().float()
    )


def loss_and_gradient(
    learner: Learner, batch: Batch, top: TopTokens | None
) -> tuple[float, Tensor]:
    """Return the divergence of a batch, and its gradient by all weights that are trained."""
    features, inputs, targets = learner.tensors(batch)
    assert learner.teacher is not None
    outputs = learner.teacher(features, inputs)
    if top is not None:
        outputs = TeacherOutputs(top, None, outputs.encoder_states)
    total = learner.step(features, inputs, targets, outputs).total
    trained = [weight for weight in learner.step.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(total, trained)
    return float(total.detach()), torch.cat([each.flatten() for each in gradients])


def compared(short: tuple[float, Tensor], whole: tuple[float, Tensor]) -> tuple[float, ...]:
    """Return a loss as a share of another, how far gradients are apart, and their cosine."""
    (loss, gradient), (whole_loss, whole_gradient) = short, whole
    off = (gradient - whole_gradient).norm() / whole_gradient.norm()
    cosine = torch.cosine_similarity(gradient, whole_gradient, dim=0)
    return loss / whole_loss, float(off), float(cosine)


def batches(learner: Learner, args: argparse.Namespace) -> Iterator[Batch]:
    """Yield labelled clips, as training does."""
    student = learner.student
    loader = BatchLoader(SpeechCollator(student.log_mel, student.tokens), 0, False)
    settings = LabelSettings(args.language, "transcribe", 0.0, 0.0, 448, None, 0)
    plan = BatchPlan(args.batch_size, 1, 1)
    spec = DatasetSpec(args.dataset, split=args.split)
    data = training_data([spec], student, settings, Length(args.batches, 1), plan, loader)
    yield from data.micro_batches(0, 0)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=["speed", "loss"])
    add("--tokenizer", help="speed: folder or Hub id of Whisper's tokenizer")
    add("--decoder_layers", type=int, default=32, help="speed: of the teacher (32)")
    add("--ids", type=int, default=20, help="speed: ids of a text (20)")
    add("--runs", type=int, default=5, help="speed: pairs of updates (5)")
    add("--teacher", help="loss: a trained model")
    add("--student", help="loss: a model that is to follow it")
    add("--dataset", help="loss: labelled clips")
    add("--split", help="loss: of the dataset")
    add("--language", help="loss: of the clips")
    add("--temperature", type=float, default=2.0, help="loss: of both distributions (2)")
    add("--tops", type=int, nargs="+", default=[8, 32, 128], help="loss: tokens kept (8 32 128)")
    add("--batches", type=int, default=20, help="loss: batches (20)")
    add("--batch_size", type=int, default=8, help="rows of a batch (8)")
    add("--threads", type=int, default=2, help="cores used (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
