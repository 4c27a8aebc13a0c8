from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, softmax

from distillery.training.losses import LossWeights, distillation_loss
from distillery.training.top_tokens import NUM_TOP, TopTokens

POSITIONS, VOCABULARY, WIDTH = 6, 90, 8
KL_ONLY = LossWeights(ce=0.0, kl=1.0, temperature=2.0)


def logits(seed, scale=3.0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(POSITIONS, VOCABULARY, generator=random, dtype=dtype)


def loss_and_gradient(student, teacher, weights=KL_ONLY):
    """Return the loss where the head is the identity, and its gradient by the logits."""
    hidden = student.clone().requires_grad_()
    head = torch.eye(VOCABULARY, dtype=student.dtype)
    targets = torch.arange(POSITIONS)[None]
    given = (teacher,) if isinstance(teacher, TopTokens) else (teacher[None], head)
    total = distillation_loss(hidden[None], head, targets, weights, *given).total
    return total.detach(), torch.autograd.grad(total, hidden)[0]


@pytest.mark.parametrize("weights", [KL_ONLY, LossWeights(0.8, 1.0, 2.0), LossWeights(0.3, 2, 1)])
def test_all_tokens_give_the_loss_of_the_whole_distribution(weights):
    student, teacher = logits(0), logits(1)
    top = TopTokens.of(teacher, weights.temperature, VOCABULARY)
    found, wanted = (loss_and_gradient(student, each, weights) for each in (top, teacher))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_top", [1, NUM_TOP, VOCABULARY - 1])
def test_it_is_the_divergence_of_sums(num_top):
    """Plain PyTorch, which also finds the gradient: all but the most probable are one outcome."""
    student, teacher = logits(0, dtype=torch.float64).requires_grad_(), logits(1)
    t = softmax(teacher.double() / 2, -1)
    order = t.argsort(descending=True)
    q = softmax(student / 2, -1)
    t, q = (each.gather(1, order) for each in (t, q))
    t, q = (torch.cat([p[:, :num_top], p[:, num_top:].sum(1, keepdim=True)], 1) for p in (t, q))
    wanted = 4 * kl_div(q.log(), t, reduction="sum")
    found, gradient = loss_and_gradient(student.detach().float(), TopTokens.of(teacher, 2, num_top))
    torch.testing.assert_close(found, wanted.detach().float(), rtol=1e-4, atol=1e-5)
    by_torch = torch.autograd.grad(wanted, student)[0].float()
    torch.testing.assert_close(gradient, by_torch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_more_than_the_whole_divergence_and_grows_with_the_tokens(seed):
    student, teacher = logits(seed), logits(seed + 100)
    log_q = log_softmax(student / 2, -1)
    found = [
        TopTokens.of(teacher, 2, num_top).divergence(log_q)[0] for num_top in (1, 8, 32, VOCABULARY)
    ]
    for fewer, more in pairwise(found):
        assert (fewer <= more + 1e-6).all()
        assert (fewer >= -1e-6).all()


def test_a_student_that_agrees_has_no_gradient():
    teacher = logits(0)
    top = TopTokens.of(teacher, 2)
    found, gradient = loss_and_gradient(teacher, top)
    assert float(found) == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() < 1e-5


def test_what_is_kept_is_16_bits_of_each():
    teacher = logits(3, scale=6)
    top = TopTokens.of(teacher, 2)
    kept = top.to_positions()
    assert kept.dtype.itemsize * len(kept) == POSITIONS * 130
    halves = [kept[:2], np.empty(0, kept.dtype), kept[2:]]
    read = TopTokens.from_positions(halves, torch.device("cpu"))
    assert torch.equal(read.ids, top.ids)
    torch.testing.assert_close(read.log_probs, top.log_probs, rtol=2**-11, atol=1e-7)
    torch.testing.assert_close(read.log_rest, top.log_rest, rtol=2**-11, atol=1e-7)
    found, wanted = (loss_and_gradient(logits(0), each) for each in (read, top))
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


def test_ids_above_32767_and_a_sure_teacher_are_kept():
    teacher = torch.zeros(1, 51_866)
    teacher[0, 51_000] = 100.0
    read = TopTokens.from_positions([TopTokens.of(teacher, 1).to_positions()], torch.device("cpu"))
    assert int(read.ids[0, 0]) == 51_000
    divergence, gradient = read.divergence(log_softmax(teacher, -1))
    assert float(divergence) == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all()


def test_extreme_students_stay_finite():
    teacher = TopTokens.of(logits(0), 2)
    for scale in (1e-3, 1e3):
        found, gradient = loss_and_gradient(logits(7, scale), teacher)
        assert found.isfinite()
        assert gradient.isfinite().all()


def test_chunks_do_not_change_it():
    top, head = TopTokens.of(logits(1), 2), torch.eye(VOCABULARY)
    targets = torch.arange(POSITIONS)[None]
    sums = [
        distillation_loss(logits(0)[None], head, targets, LossWeights(), top, chunk_rows=rows)
        for rows in (1, 4, 1024)
    ]
    torch.testing.assert_close(sums[0].total, sums[2].total)
    torch.testing.assert_close(sums[1].total, sums[2].total)
