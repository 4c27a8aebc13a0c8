import pytest
import torch
from torch.nn import KLDivLoss
from torch.nn.functional import log_softmax, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from distillery.text.labels import IGNORED
from distillery.training.losses import LossWeights, distillation_loss, means_of

BATCH, TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 4, 7, 6, 10, 31
WEIGHTS = [
    LossWeights(),
    LossWeights(ce=0.8, kl=1.0, temperature=1.0),
    LossWeights(ce=0.3, kl=1.7, temperature=3.5),
    LossWeights(ce=0.0, kl=1.0, temperature=2.0),
    LossWeights(ce=1.0, kl=0.0, temperature=2.0),
]


def plain_loss(hidden, head, targets, weights, teacher_hidden=None, teacher_head=None):
    """Return total, CE and KL as the papers write them, on whole logits."""
    valid = targets != IGNORED
    logits = (hidden @ head.T)[valid]
    wanted = targets[valid]
    ce = -log_softmax(logits, -1)[torch.arange(len(wanted)), wanted].sum()
    if teacher_hidden is None:
        return ce, ce, torch.zeros(())
    teacher_logits = (teacher_hidden @ teacher_head.T)[valid]
    t = weights.temperature
    divergence = KLDivLoss(reduction="sum")
    kl = divergence(log_softmax(logits / t, -1), softmax(teacher_logits / t, -1)) * t**2
    return weights.ce * ce + weights.kl * kl, ce, kl


def example(seed=0, dtype=torch.float64, masked=0.4, scale=1.0):
    """Return random hidden states, head, targets, and a teacher's states and head."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).mul(scale).to(dtype)

    hidden = normal(BATCH, TOKENS, WIDTH).requires_grad_()
    head = normal(VOCABULARY, WIDTH).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=random)
    targets[torch.rand(BATCH, TOKENS, generator=random) < masked] = IGNORED
    teacher = (normal(BATCH, TOKENS, TEACHER_WIDTH), normal(VOCABULARY, TEACHER_WIDTH))
    return hidden, head, targets, *teacher


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def close(found, expected, tolerance=1e-6):
    """Compare to a tolerance that is relative to the largest number."""
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0, atol=tolerance * scale, msg=None
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_rows", [1, 3, 5, 16, 1024])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_values_and_gradients_are_those_of_the_plain_formula(weights, chunk_rows, dtype):
    exact = example()
    expected = plain_loss(*exact[:3], weights, *exact[3:])
    expected_gradients = gradients(expected[0], *exact[:2])
    hidden, head, targets, *teacher = example(dtype=dtype)
    sums = distillation_loss(hidden, head, targets, weights, *teacher, chunk_rows=chunk_rows)
    for found, wanted in zip((sums.total, sums.ce, sums.kl), expected, strict=True):
        assert found.dtype == torch.float32
        close(found, wanted)
    for found, wanted in zip(gradients(sums.total, hidden, head), expected_gradients, strict=True):
        assert found.dtype == dtype
        close(found, wanted)
    assert sums.num_tokens == int((targets != IGNORED).sum())


@pytest.mark.parametrize("chunk_rows", [1, 5, 1024])
@pytest.mark.parametrize("by_row", [(1.0, 0.0, 0.5, 2.0), (0.0, 0.0, 0.0, 0.0)])
def test_rows_follow_their_teacher_as_much_as_each_is_told(by_row, chunk_rows):
    hidden, head, targets, *teacher = example()
    weights = LossWeights(ce=0.8, kl=torch.tensor(by_row), temperature=3.0)
    sums = distillation_loss(hidden, head, targets, weights, *teacher, chunk_rows=chunk_rows)
    alone = [
        plain_loss(
            hidden[i], head, targets[i], LossWeights(0.8, kl, 3.0), teacher[0][i], teacher[1]
        )
        for i, kl in enumerate(by_row)
    ]
    total = sum(loss for loss, _, _ in alone)
    close(sums.total, total)
    close(sums.ce, sum(ce for _, ce, _ in alone))
    close(
        sums.kl,
        sum((kl for (_, _, kl), w in zip(alone, by_row, strict=True) if w), torch.zeros(())),
    )
    follows = torch.tensor(by_row)[:, None] > 0
    assert int(sums.kl_tokens) == int(((targets != IGNORED) & follows).sum())
    wanted = gradients(total, hidden, head)
    for found, one in zip(gradients(sums.total, hidden, head), wanted, strict=True):
        close(found, one)


def test_the_mean_divergence_is_that_of_the_tokens_that_have_one():
    hidden, head, targets, *teacher = example()
    weights = LossWeights(kl=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    sums = distillation_loss(hidden, head, targets, weights, *teacher)
    alone = distillation_loss(
        hidden[:1], head, targets[:1], LossWeights(), teacher[0][:1], teacher[1]
    )
    means, others = means_of(sums.to_tensor().tolist()), means_of(alone.to_tensor().tolist())
    assert means["kl"] == pytest.approx(others["kl"])
    assert means["ce"] == pytest.approx(float(sums.ce) / sums.num_tokens)
    plain = distillation_loss(hidden, head, targets, weights)
    assert means_of(plain.to_tensor().tolist())["kl"] == 0


@pytest.mark.parametrize("chunk_rows", [1, 5, 1024])
def test_cross_entropy_alone(chunk_rows):
    hidden, head, targets, *_ = example()
    weights = LossWeights(ce=0.8)  # a weight says nothing where there is one loss
    expected, _, _ = plain_loss(hidden, head, targets, weights)
    sums = distillation_loss(hidden, head, targets, weights, chunk_rows=chunk_rows)
    close(sums.total, expected)
    close(sums.ce, expected)
    assert float(sums.kl) == 0
    wanted = gradients(expected, hidden, head)
    for found, one in zip(gradients(sums.total, hidden, head), wanted, strict=True):
        close(found, one)


def test_only_the_total_carries_a_gradient():
    hidden, head, targets, *teacher = example()
    sums = distillation_loss(hidden, head, targets, LossWeights(), *teacher)
    assert sums.total.requires_grad
    assert not sums.ce.requires_grad and not sums.kl.requires_grad


@pytest.mark.parametrize("with_teacher", [False, True])
def test_all_masked_is_zero_with_zero_gradient(with_teacher):
    hidden, head, targets, *teacher = example(masked=2.0)
    sums = distillation_loss(
        hidden, head, targets, LossWeights(), *(teacher if with_teacher else ())
    )
    assert (sums.total.item(), float(sums.ce), float(sums.kl), sums.num_tokens) == (0, 0, 0, 0)
    sums.total.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(head.grad, torch.zeros_like(head))


def test_masked_rows_get_no_gradient_and_give_none():
    hidden, head, targets, *teacher = example()
    loss = distillation_loss(hidden, head, targets, LossWeights(), *teacher).total
    states, embedding = gradients(loss, hidden, head)
    masked = targets == IGNORED
    assert masked.any()
    assert (states[masked] == 0).all()
    assert (states[~masked] != 0).all()
    other = hidden.detach().clone()
    other[masked] = 1e6
    other.requires_grad_()
    again = distillation_loss(other, head, targets, LossWeights(), *teacher).total
    assert torch.equal(again, loss)
    assert torch.equal(gradients(again, head)[0], embedding)


def test_the_teacher_gets_no_gradient():
    hidden, head, targets, *teacher = example()
    teacher = [tensor.requires_grad_() for tensor in teacher]
    distillation_loss(hidden, head, targets, LossWeights(), *teacher).total.backward()
    assert teacher[0].grad is None and teacher[1].grad is None


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_student_like_its_teacher_has_no_divergence(temperature):
    hidden, head, targets, *_ = example()
    weights = LossWeights(ce=0.0, kl=1.0, temperature=temperature)
    sums = distillation_loss(hidden, head, targets, weights, hidden.detach(), head.detach())
    assert abs(float(sums.kl)) < 1e-6
    for gradient in gradients(sums.total, hidden, head):
        assert float(gradient.abs().max()) < 1e-6


def test_upstream_factor_scales_the_gradient():
    hidden, head, targets, *teacher = example()
    total = distillation_loss(hidden, head, targets, LossWeights(), *teacher).total
    once = gradients(total, hidden, head)
    total = distillation_loss(hidden, head, targets, LossWeights(), *teacher).total
    scaled = gradients(total * 0.25 - 3, hidden, head)
    for one, other in zip(once, scaled, strict=True):
        close(other, one * 0.25)


def test_tied_weights_receive_both_gradients():
    random = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCABULARY, WIDTH, generator=random).requires_grad_()
    mixing = torch.randn(WIDTH, WIDTH, generator=random)
    ids = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=random)
    _, _, targets, *teacher = example(dtype=torch.float32)

    def gradient(loss):
        hidden = torch.tanh(embedding[ids] @ mixing)
        total = loss(hidden, embedding, targets, LossWeights(), *teacher)
        return gradients(getattr(total, "total", total), embedding)[0]

    both = gradient(lambda *args: plain_loss(*args)[0])
    close(gradient(distillation_loss), both)
    head_only = gradient(lambda hidden, *args: plain_loss(hidden.detach(), *args)[0])
    assert float((both - head_only).abs().max()) > 0.1


def test_a_frozen_head_or_frozen_states_need_no_gradient():
    hidden, head, targets, *teacher = example()
    total = distillation_loss(hidden, head, targets, LossWeights(), *teacher).total
    both = gradients(total, hidden, head)
    frozen = distillation_loss(hidden, head.detach(), targets, LossWeights(), *teacher).total
    assert torch.equal(gradients(frozen, hidden)[0], both[0])
    frozen = distillation_loss(hidden.detach(), head, targets, LossWeights(), *teacher).total
    assert torch.equal(gradients(frozen, head)[0], both[1])
    with torch.no_grad():
        evaluated = distillation_loss(hidden, head, targets, LossWeights(), *teacher).total
    assert torch.equal(evaluated, total.detach())


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("head_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_is_finite_and_near(scale, head_dtype):
    """Mixed precision hands over bfloat16 states and a float32 head."""
    hidden, head, targets, *teacher = example(dtype=torch.bfloat16, scale=scale**0.5)
    head = head.detach().to(head_dtype).requires_grad_()
    sums = distillation_loss(hidden, head, targets, LossWeights(), *teacher)
    found = gradients(sums.total, hidden, head)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, head_dtype]
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    teacher = [tensor.double() for tensor in teacher]
    expected = plain_loss(*exact, targets, LossWeights(), *teacher)[0]
    assert float(sums.total.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    for one, other in zip(found, gradients(expected, *exact), strict=True):
        assert one.isfinite().all()
        close(one, other, 0.03)


def test_extreme_logits_stay_finite():
    hidden, head, targets, *teacher = example(dtype=torch.float32, scale=100.0)
    sums = distillation_loss(hidden, head, targets, LossWeights(), *teacher)
    assert sums.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(sums.total, hidden, head))


class Operations(TorchDispatchMode):
    """Records the operations of a block: their names, and the tensors that they take and make."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        taken = [each for each in args if isinstance(each, torch.Tensor)]
        self.seen.append((operation.overloadpacket.__name__, taken, made))
        return made

    def dtypes_taken(self, *names):
        return {each.dtype for name, taken, _ in self.seen if name in names for each in taken}


def test_autocast_multiplies_logits_in_its_dtype_and_nothing_else():
    """Layer norm leaves states in float32, so that the head would be multiplied in float32."""
    hidden, head, targets, *teacher = example(dtype=torch.float32)
    exact = distillation_loss(hidden, head, targets, LossWeights(), *teacher).total
    wanted = gradients(exact, hidden, head)
    with Operations() as operations:
        with torch.autocast("cpu", torch.bfloat16):
            sums = distillation_loss(hidden, head, targets, LossWeights(), *teacher)
        found = gradients(sums.total, hidden, head)
    assert operations.dtypes_taken("mm", "addmm") == {torch.bfloat16}
    assert operations.dtypes_taken("_log_softmax", "exp") == {torch.float32}
    assert sums.total.dtype == sums.ce.dtype == sums.kl.dtype == torch.float32
    close(sums.total, exact, 0.01)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        close(one, other, 0.05)


@pytest.mark.parametrize("evaluates", [True, False])
def test_an_evaluation_has_no_gradient_of_the_head(evaluates):
    hidden, head, targets, *teacher = example(dtype=torch.float32)
    with Operations() as operations, torch.set_grad_enabled(not evaluates):
        sums = distillation_loss(hidden, head, targets, LossWeights(), *teacher)
    made = [each for _, _, each in operations.seen if isinstance(each, torch.Tensor)]
    of_head = [each for each in made if each.shape == head.shape]
    assert any(each.data_ptr() != head.data_ptr() for each in of_head) is not evaluates
    plain = distillation_loss(hidden, head, targets, LossWeights(), *teacher)
    assert torch.equal(sums.total, plain.total)


def test_the_host_asks_once_which_rows_count():
    """Each of these questions stops it until a GPU has done all that it was told before."""
    hidden, head, targets, *teacher = example(dtype=torch.float32)
    with Operations() as operations:
        distillation_loss(hidden, head, targets, LossWeights(), *teacher)
    names = [name for name, _, _ in operations.seen]
    assert names.count("nonzero") == 1
    assert "_local_scalar_dense" not in names


def test_the_factor_of_a_float16_scaler_may_be_more_than_float16_holds():
    hidden, head, targets, *_ = example(dtype=torch.float16, scale=0.1)
    plain = gradients(distillation_loss(hidden, head, targets, LossWeights()).total, hidden)[0]
    total = 1e-6 * distillation_loss(hidden, head, targets, LossWeights()).total
    scaled = gradients(total * 1e6, hidden)[0]
    close(scaled, plain, 1e-3)
    large = gradients(distillation_loss(hidden, head, targets, LossWeights()).total * 1e5, hidden)
    assert large[0][plain.abs() < 0.1].isfinite().all()


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 3), (1, 1, 1, 1)])
def test_accumulation_does_not_change_loss_or_gradient(sizes):
    """A mean of the micro-batches' means would: they have different numbers of tokens."""
    hidden, head, targets, *teacher = example()
    targets[0] = IGNORED  # a micro-batch of its own in the last case
    num_tokens = int((targets != IGNORED).sum())
    whole = plain_loss(hidden, head, targets, LossWeights(), *teacher)[0] / num_tokens
    expected = gradients(whole, hidden, head)
    parts = zip(*(tensor.split(sizes) for tensor in (hidden, targets, teacher[0])), strict=True)
    sums = [
        distillation_loss(states, head, wanted, LossWeights(), teacher_states, teacher[1])
        for states, wanted, teacher_states in parts
    ]
    assert sum(part.num_tokens for part in sums) == num_tokens
    total = sum(part.total / num_tokens for part in sums)
    close(total, whole)
    for found, wanted in zip(gradients(total, hidden, head), expected, strict=True):
        close(found, wanted)
