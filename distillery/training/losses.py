"""Cross-entropy and Kullback-Leibler losses on the rows that count, in chunks.

A decoder batch holds many positions that are padding or prompt, and the vocabulary is large: logits
for all of them cost most of a training step's memory. Here logits exist for one chunk of valid rows
at a time, and their gradient is taken while they exist, so that nothing of vocabulary size is kept
for the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from distillery.text.labels import IGNORED
from distillery.training.top_tokens import TopTokens

# A GPU's kernels want many rows; of 128, logits of Whisper's vocabulary stay in a CPU's cache.
GPU_CHUNK_ROWS, CPU_CHUNK_ROWS = 1024, 128


@dataclass(frozen=True)
class LossWeights:
    """Weights of the distillation loss: `ce * CE + kl * temperature² * KL + mse * MSE`.

    The defaults are those of Distil-Whisper (https://arxiv.org/abs/2311.00430, section 4). The MSE
    is that of `layer_states.mean_squared_errors`. `kl` may be float32 (batch,): a weight for each
    row, of which those of weight 0 have no KL.
    """

    ce: float = 0.8
    kl: float | Tensor = 1.0
    temperature: float = 2.0
    mse: float = 0.0

    def at(self, places: slice) -> "LossWeights":
        """Return the weights of some rows."""
        return replace(self, kl=self.kl[places]) if isinstance(self.kl, Tensor) else self


# What is added up over rows, in this order: the losses, and the tokens that they are of.
SUMS = ("loss", "ce", "kl", "mse", "tokens", "kl_tokens")


class LossSums(NamedTuple):
    """Losses summed over the valid rows; divide by the tokens of the whole global batch.

    A tuple, as DeepSpeed looks for tensors in those alone.

    `total` carries the gradient, `ce`, `kl` and `mse` are the unweighted parts for the log (`kl`
    with its factor temperature²); each is a float32 scalar. `num_tokens` counts the valid rows,
    `kl_tokens`, a float32 scalar, those that have a KL.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    mse: Tensor
    num_tokens: int
    kl_tokens: Tensor

    def plus_mse(self, mse: Tensor, weight: float) -> "LossSums":
        """Return the losses with a mean squared error, which carries its gradient."""
        return self._replace(total=self.total + weight * mse, mse=mse.detach())

    def to_tensor(self) -> Tensor:
        """Return the `SUMS` without their gradient, float64 (6,)."""
        num_tokens = torch.full_like(self.ce, self.num_tokens)
        losses = self.total.detach(), self.ce, self.kl, self.mse
        return torch.stack([*losses, num_tokens, self.kl_tokens]).double()


def means_of(sums: Sequence[float]) -> dict[str, float] | None:
    """Return the losses for each token by their names; None without any token.

    The `kl` is that of a token that has one. Without hidden states to compare, there is no `mse`.

    Args:
        sums: over all processes, as `SUMS` says.
    """
    *losses, num_tokens, kl_tokens = sums
    if not num_tokens:
        return None
    means = {name: loss / num_tokens for name, loss in zip(SUMS[:4], losses, strict=True)}
    means["kl"] *= num_tokens / max(kl_tokens, 1)
    return {name: mean for name, mean in means.items() if name != "mse" or mean}


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    targets: Tensor,
    weights: LossWeights,
    teacher: Tensor | TopTokens | None = None,
    teacher_head: Tensor | None = None,
    chunk_rows: int | None = None,
) -> LossSums:
    """Return the summed distillation loss over the rows whose target counts.

    Args:
        student_hidden: last decoder states of the student, float (batch, tokens, width).
        student_head: output embedding of the student, float (vocabulary, width).
        targets: int64 (batch, tokens); `IGNORED` rows do not count.
        weights: weights and temperature; without a teacher none is used: the loss is the
            cross-entropy itself.
        teacher: its states for the same decoder inputs, (batch, tokens, width of the teacher); or
            its most probable tokens at the positions whose target counts, batch row by batch row;
            None for plain cross-entropy.
        teacher_head: output embedding of the teacher, (vocabulary, width of the teacher), where
            its states are given.
        chunk_rows: rows whose logits exist at one time; None for what suits the device.

    Without any valid row all sums are 0 and so is the gradient. Under autocast, logits are
    multiplied in its dtype; what is made of them is float32 always.
    """
    # Asked once: a GPU's host must wait for the answer.
    valid = (targets.reshape(-1) != IGNORED).nonzero().squeeze(1)
    dtype = _compute_dtype(student_hidden)
    rows = student_hidden.flatten(0, -2).index_select(0, valid).to(dtype)
    if not torch.is_grad_enabled():  # inside the function it never is
        rows, student_head = rows.detach(), student_head.detach()
    whole = None
    if isinstance(teacher, Tensor) and teacher_head is not None:
        teacher_rows = teacher.detach().flatten(0, -2).index_select(0, valid)
        teacher_dtype = _compute_dtype(teacher_rows)
        whole = _Logits(teacher_rows.to(teacher_dtype), teacher_head.to(teacher_dtype))
    if isinstance(weights.kl, Tensor):
        by_row = weights.kl.to(valid.device, non_blocking=True)
        weights = replace(weights, kl=by_row[valid // targets.shape[-1], None])
    total, ce, kl, kl_tokens = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]  # torch's own
        rows,
        student_head,
        targets.reshape(-1)[valid],
        teacher if isinstance(teacher, TopTokens) else whole,
        weights,
        chunk_rows or (GPU_CHUNK_ROWS if rows.is_cuda else CPU_CHUNK_ROWS),
    )
    return LossSums(total, ce, kl, torch.zeros_like(ce), len(valid), kl_tokens)


def _compute_dtype(states: Tensor) -> torch.dtype:
    """Return what autocast multiplies states in; layer norm has left them in float32."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


@dataclass(frozen=True)
class _Logits:
    """A teacher's logits, of which those of a span are there when they are asked for."""

    rows: Tensor
    head: Tensor

    def __getitem__(self, span: slice) -> Tensor:
        return (self.rows[span] @ self.head.T).float()


class _ChunkedLoss(torch.autograd.Function):
    """Sum the losses over rows chunk by chunk and keep only the gradients of the inputs."""

    @staticmethod
    def forward(ctx, rows, head, targets, teacher, weights, chunk_rows):  # type: ignore[no-untyped-def]
        sums = torch.zeros(4, dtype=torch.float32, device=rows.device)
        grad_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        # Summed over many chunks, so kept in float32 whatever the computation's dtype.
        grad_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        compute_head = head.to(rows.dtype)
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, rows.shape[0], chunk_rows):
                part = slice(start, start + chunk_rows)
                theirs = None if teacher is None else teacher[part]
                logits = (rows[part] @ compute_head.T).float()
                losses, grad = _losses_and_gradient(logits, targets[part], theirs, weights.at(part))
                sums += losses
                grad = grad.to(rows.dtype)
                if grad_rows is not None:
                    grad_rows[part] = grad @ compute_head
                if grad_head is not None and grad.dtype == grad_head.dtype:
                    grad_head.addmm_(grad.T, rows[part])
                elif grad_head is not None:
                    grad_head += grad.T @ rows[part]
        ctx.save_for_backward(grad_rows, grad_head)
        ctx.head_dtype = head.dtype
        total, *others = sums.unbind()
        ctx.mark_non_differentiable(*others)
        return total, *others

    @staticmethod
    def backward(ctx, grad_total, *_):  # type: ignore[no-untyped-def]
        grad_rows, grad_head = ctx.saved_tensors
        rows = None
        if grad_rows is not None:
            # A float16 scaler's factor may be more than float16 holds.
            wide = torch.promote_types(grad_rows.dtype, torch.float32)
            rows = (grad_rows.to(wide) * grad_total).to(grad_rows.dtype)
        # In place, as a copy is as large as the vocabulary; autograd refuses a second pass.
        head = None if grad_head is None else grad_head.mul_(grad_total).to(ctx.head_dtype)
        return rows, head, None, None, None, None


def _losses_and_gradient(
    logits: Tensor, targets: Tensor, teacher: Tensor | TopTokens | None, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """Return sums over rows (total, CE, KL, KL's tokens), and the gradient of total by the logits.

    logits, and the teacher's: float32 (rows, vocabulary), written over: on a CPU, memory that is
    asked for anew costs as much as what is computed in it; targets: int64 (rows,).

    With p = softmax(z), q = softmax(z / T) and teacher t: dCE/dz = p - onehot, and
    d(T² KL)/dz = T (q - t).
    """
    log_p = functional.log_softmax(logits, dim=-1)
    picked = log_p.gather(1, targets[:, None])
    ce = -picked.sum()
    grad = log_p.exp_()
    grad.scatter_add_(1, targets[:, None], -torch.ones_like(picked))
    if teacher is None:
        return torch.stack([ce, ce, torch.zeros_like(ce), torch.zeros_like(ce)]), grad
    grad *= weights.ce
    log_q = functional.log_softmax(logits.div_(weights.temperature), dim=-1)
    if isinstance(teacher, TopTokens):
        divergences, difference = teacher.divergence(log_q)
    else:
        log_t = functional.log_softmax(teacher.div_(weights.temperature), dim=-1)
        t = log_t.exp()
        divergences = log_t.sub_(log_q).mul_(t).sum(1)
        difference = log_q.exp_().sub_(t)
    kl = divergences[:, None] * weights.temperature**2
    grad += difference.mul_(weights.kl * weights.temperature)
    total = weights.ce * ce + (weights.kl * kl).sum()
    has_kl = (weights.kl > 0).float() if isinstance(weights.kl, Tensor) else torch.ones_like(kl)
    return torch.stack([total, ce, (has_kl * kl).sum(), has_kl.sum()]), grad
