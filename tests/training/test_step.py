import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import load_script, tiny_tokenizer

from distillery.text.labels import IGNORED
from distillery.training.losses import LossWeights
from distillery.training.settings import Frozen
from distillery.training.step import Learner, StudentStep, Teacher, freeze, wants_masks
from distillery.whisper.student import make_student

_ = IGNORED
# A plain row, and one with a prompt, padded to its length.
INPUTS = torch.tensor(
    [
        [301, 309, 402, 406, 10, 11, 300, 300, 300],
        [404, 7, 8, 9, 301, 309, 402, 407, 12],
    ]
)
TARGETS = torch.tensor(
    [
        [309, 402, 406, 10, 11, 300, _, _, _],
        [_, _, _, _, 309, 402, 407, 12, 300],
    ]
)
FEATURES = torch.randn(2, 80, 400, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def new_model(tokenizer, **changes):
    settings = {"encoder_layers": 2, "decoder_layers": 3, "d_model": 16, "window_s": 4}
    script = load_script("scripts/demo/make_teacher.py")
    model = script.new_model(tokenizer, script.Size(**{**settings, **changes}))
    with torch.no_grad():  # random weights say nearly nothing: make them louder
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@pytest.fixture
def teacher(tokenizer):
    return new_model(tokenizer)


@pytest.fixture
def student(teacher):
    """A student with a frozen copy of the teacher's encoder."""
    student = make_student(teacher, [0, 1], [0, 2])
    student.model.encoder.requires_grad_(False)
    return student.train()


def count_calls(module):
    """Return a list that grows with every call of a module."""
    calls = []
    module.register_forward_hook(lambda *args: calls.append(1))
    return calls


def loss_of(student, teacher=None, weights=LossWeights()):  # noqa: B008
    outputs = None if teacher is None else teacher(FEATURES, INPUTS)
    return StudentStep(student, weights)(FEATURES, INPUTS, TARGETS, outputs)


def gradients(student):
    return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}


def test_frozen_copy_of_the_encoder_is_shared(teacher, student):
    assert Teacher(teacher, student).shares_encoder


def test_a_trained_encoder_is_not_shared(teacher, student):
    student.model.encoder.layers[0].fc1.weight.requires_grad_(True)
    assert not Teacher(teacher, student).shares_encoder


def test_another_encoder_is_not_shared(teacher, student):
    with torch.no_grad():
        student.model.encoder.layers[1].fc2.bias[0] += 1
    assert not Teacher(teacher, student).shares_encoder


def test_an_encoder_with_fewer_layers_is_not_shared(teacher):
    student = make_student(teacher, [1], [2])
    student.model.encoder.requires_grad_(False)
    assert not Teacher(teacher, student).shares_encoder


def test_an_encoder_of_another_width_is_not_shared(teacher, tokenizer):
    student = new_model(tokenizer, d_model=8)
    student.model.encoder.requires_grad_(False)
    assert not Teacher(teacher, student).shares_encoder


def test_a_bfloat16_teacher_shares_the_encoder_of_its_float32_student(teacher, student):
    assert Teacher(teacher.to(torch.bfloat16), student).shares_encoder


def test_the_teacher_is_frozen(teacher, student):
    teacher.train()
    frozen = Teacher(teacher, student)
    assert not frozen.model.training
    assert not any(p.requires_grad for p in frozen.model.parameters())
    outputs = frozen(FEATURES, INPUTS)
    assert not outputs.decoder_states.requires_grad
    assert outputs.decoder_states.shape == (2, 9, 16)


@pytest.mark.parametrize("shared", [True, False])
def test_the_encoder_runs_once_where_it_is_shared(teacher, student, shared):
    frozen = Teacher(teacher, student)
    frozen.shares_encoder = shared
    theirs, ours = count_calls(teacher.model.encoder), count_calls(student.model.encoder)
    loss_of(student, frozen)
    assert (len(theirs), len(ours)) == ((1, 0) if shared else (1, 1))


def test_sharing_changes_neither_loss_nor_gradient(teacher, student):
    frozen = Teacher(teacher, student)
    found = []
    for shared in (True, False):
        frozen.shares_encoder = shared
        student.zero_grad()
        sums = loss_of(student, frozen)
        sums.total.backward()
        found.append((sums.total.detach(), sums.kl, gradients(student)))
    (total, kl, ours), (other_total, other_kl, others) = found
    assert torch.equal(total, other_total) and torch.equal(kl, other_kl)
    assert float(kl) > 0.1
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_frozen_encoder_gets_no_gradient(teacher, student, shared, checkpointing):
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    frozen = Teacher(teacher, student)
    frozen.shares_encoder = shared
    loss_of(student, frozen).total.backward()
    names = set(gradients(student))
    decoder = {n for n, _ in student.named_parameters() if not n.startswith("model.encoder.")}
    assert names == decoder
    assert all(float(g.abs().max()) > 0 for n, g in gradients(student).items() if "k_proj" not in n)
    assert all(p.grad is None for p in teacher.parameters())


def test_a_trained_encoder_gets_a_gradient(teacher, student):
    student.model.encoder.layers.requires_grad_(True)
    loss_of(student, Teacher(teacher, student)).total.backward()
    assert "model.encoder.layers.0.fc1.weight" in gradients(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_prompted_rows_of_two_identical_models_do_not_diverge(teacher, temperature):
    """Given labels, a teacher would see padding in place of the prompt: KL 0.9 in the seeds."""
    twin = copy.deepcopy(teacher).train()
    sums = loss_of(twin, Teacher(teacher, twin), LossWeights(0.8, 1.0, temperature))
    assert float(sums.kl) == pytest.approx(0, abs=1e-5)
    assert float(sums.ce) > 1
    assert sums.num_tokens == 6 + 5


@pytest.mark.parametrize("shared", [True, False])
def test_a_teacher_that_no_row_follows_is_not_asked(teacher, student, shared):
    frozen = Teacher(teacher, student)
    frozen.shares_encoder = shared
    encoder, decoder = count_calls(teacher.model.encoder), count_calls(teacher.model.decoder)
    outputs = frozen(FEATURES, INPUTS, torch.zeros(2))
    assert (len(encoder), len(decoder)) == (int(shared), 0)
    step, weights = StudentStep(student, LossWeights(ce=0.5)), torch.tensor([0.0, 1e-9])
    sums = step(FEATURES, INPUTS, TARGETS, outputs)
    assert (float(sums.kl), float(sums.kl_tokens), sums.num_tokens) == (0, 0, 11)
    assert float(sums.total.detach()) == pytest.approx(0.5 * float(sums.ce))
    asked = step(FEATURES, INPUTS, TARGETS, frozen(FEATURES, INPUTS, weights))
    assert len(decoder) == 1
    assert float(asked.total.detach()) == pytest.approx(float(sums.total.detach()), rel=1e-6)
    assert float(asked.kl_tokens) == 5


def test_rows_weigh_in_the_loss_as_their_dataset_is_told(teacher, student):
    frozen, step = Teacher(teacher, student), StudentStep(student, LossWeights(ce=0.5, kl=3.0))
    one = step(FEATURES, INPUTS, TARGETS, frozen(FEATURES, INPUTS, torch.tensor([1.0, 0.0])))
    alone = step(FEATURES[:1], INPUTS[:1], TARGETS[:1], frozen(FEATURES[:1], INPUTS[:1]))
    assert float(one.kl) == pytest.approx(float(alone.kl), rel=1e-5)
    wanted = 0.5 * float(one.ce) + float(alone.kl)
    assert float(one.total.detach()) == pytest.approx(wanted, rel=1e-5)


def test_the_prompt_reaches_teacher_and_student(teacher, student):
    frozen = Teacher(teacher, student)
    other = INPUTS.clone()
    other[1, 1:4] = torch.tensor([20, 21, 22])
    one, two = frozen(FEATURES, INPUTS), frozen(FEATURES, other)
    assert torch.equal(one.decoder_states[0], two.decoder_states[0])
    assert float((one.decoder_states[1, 4:] - two.decoder_states[1, 4:]).abs().max()) > 1e-3


def test_loss_is_that_of_the_plain_forward_pass(teacher, student):
    weights = LossWeights(ce=0.8, kl=1.5, temperature=3.0)
    sums = loss_of(student, Teacher(teacher, student), weights)
    with torch.no_grad():
        ours = student(FEATURES, decoder_input_ids=INPUTS).logits.double()
        theirs = teacher(FEATURES, decoder_input_ids=INPUTS).logits.double()
    valid = TARGETS != IGNORED
    ce = torch.nn.functional.cross_entropy(ours[valid], TARGETS[valid], reduction="sum")
    q, p = ((logits[valid] / 3).log_softmax(-1) for logits in (ours, theirs))
    kl = 9 * (p.exp() * (p - q)).sum()
    assert float(sums.ce) == pytest.approx(float(ce), rel=1e-5)
    assert float(sums.kl) == pytest.approx(float(kl), rel=1e-4)
    assert float(sums.total.detach()) == pytest.approx(float(0.8 * ce + 1.5 * kl), rel=1e-5)


def test_without_a_teacher_it_is_the_cross_entropy(student):
    sums = loss_of(student)
    with torch.no_grad():
        logits = student(FEATURES, decoder_input_ids=INPUTS).logits
    valid = TARGETS != IGNORED
    ce = torch.nn.functional.cross_entropy(logits[valid], TARGETS[valid], reduction="sum")
    assert float(sums.total.detach()) == pytest.approx(float(ce), rel=1e-5)
    assert float(sums.kl) == 0


def test_padding_changes_nothing(teacher, student):
    """A row's loss does not depend on how far its batch is padded."""
    frozen, step = Teacher(teacher, student), StudentStep(student, LossWeights())
    short = [FEATURES[:1], INPUTS[:1, :6], TARGETS[:1, :6]]
    long = [FEATURES[:1], INPUTS[:1], TARGETS[:1]]
    totals = [step(*one, frozen(*one[:2])).total.detach() for one in (short, long)]
    torch.testing.assert_close(*totals, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mixed_precision(teacher, student, dtype):
    """As accelerate runs it: a bfloat16 teacher, a float32 student under autocast."""
    exact = loss_of(student, Teacher(teacher, student)).total.detach()
    frozen = Teacher(copy.deepcopy(teacher).to(dtype), student)
    outputs = frozen(FEATURES, INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        sums = StudentStep(student, LossWeights())(FEATURES, INPUTS, TARGETS, outputs)
    sums.total.backward()
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients(student).values())
    assert float(sums.total.detach()) == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mels": 128}, "num_mel_bins is 80 in the teacher and 128 in the student"),
        ({"window_s": 2}, "max_source_positions is 200 in the teacher and 100 in the student"),
        ({"max_target_positions": 97}, "student has 97 decoder positions, the teacher only 96"),
    ],
)
def test_models_that_do_not_fit(teacher, tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        Teacher(teacher, new_model(tokenizer, **changes))


def test_models_of_other_vocabularies_do_not_fit(teacher, tokenizer):
    other = new_model(tiny_tokenizer(vocab_size=290))
    with pytest.raises(ValueError, match="vocab_size is 1908 in the teacher and 1898"):
        Teacher(teacher, other)
    other = new_model(tokenizer)
    other.config.decoder_start_token_id = 300
    with pytest.raises(ValueError, match="decoder_start_token_id is 301 in the teacher and 300"):
        Teacher(teacher, other)


def test_a_student_may_have_fewer_positions(teacher, tokenizer):
    Teacher(teacher, new_model(tokenizer, max_target_positions=32))


# --- SpecAugment ---------------------------------------------------------------------------------


def masking(student, masks_input=True, **more):
    student.config.update(
        {"apply_spec_augment": True, "mask_time_prob": 0.2, "mask_feature_prob": 0.1, **more}
    )
    return StudentStep(student, LossWeights(), masks_input).train()


def heard_by(model):
    """Return a list that will hold what the model's encoder hears."""
    heard = []
    model.model.encoder.register_forward_pre_hook(lambda _, args: heard.append(args[0].clone()))
    return heard


def total_of(step, frozen=None, seed=0):
    np.random.seed(seed)
    outputs = None if frozen is None else frozen(FEATURES, INPUTS)
    return step(FEATURES, INPUTS, TARGETS, outputs).total.detach()


def test_spec_augment_masks_what_the_student_hears_and_nothing_else(teacher, student):
    step, features = masking(student), FEATURES.clone()
    theirs, ours = heard_by(teacher), heard_by(student)
    total_of(step, Teacher(teacher, student))
    assert torch.equal(theirs[0], FEATURES) and torch.equal(FEATURES, features)
    is_masked = ours[0] == 0
    assert 0.1 < float(is_masked.float().mean()) < 0.5
    assert torch.equal(ours[0][~is_masked], FEATURES[~is_masked])


def test_masks_are_a_function_of_the_seed(student):
    step = masking(student)
    one, same, other = (total_of(step, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_shared_encoder_runs_twice_for_masks_and_once_in_an_evaluation(teacher, student):
    step, frozen = masking(student), Teacher(teacher, student)
    assert frozen.shares_encoder
    theirs, ours = heard_by(teacher), heard_by(student)
    total_of(step, frozen)
    assert (len(theirs), len(ours)) == (1, 1)
    total_of(step.eval(), frozen)
    assert (len(theirs), len(ours)) == (2, 1)


def test_without_masks_the_configuration_alone_does_nothing(student):
    step = masking(student, masks_input=False)
    assert torch.equal(total_of(step, seed=1), total_of(step, seed=2))


@pytest.mark.parametrize(
    ("in_config", "trained", "asked", "wanted"),
    [
        (True, True, None, True),
        (True, False, None, False),
        (False, True, None, False),
        (False, True, True, True),
        (False, False, True, True),
        (True, True, False, False),
    ],
)
def test_where_spec_augment_is_wanted(student, caplog, in_config, trained, asked, wanted):
    student.config.apply_spec_augment = in_config
    student.model.encoder.layers.requires_grad_(trained)
    assert wants_masks(SimpleNamespace(model=student), asked) is wanted
    assert student.config.apply_spec_augment is (in_config or wanted)
    is_told = in_config and not trained and asked is None
    assert ("--apply_spec_augment applies it" in caplog.text) is is_told


def test_masks_that_would_hide_nothing_are_refused(student):
    student.config.update({"mask_time_prob": 0.0, "mask_feature_prob": 0.0})
    with pytest.raises(ValueError, match=r"^--apply_spec_augment: mask_time_prob and"):
        wants_masks(SimpleNamespace(model=student), True)


# --- what a user is told of an update ------------------------------------------------------------


def notes(teacher, student, masks_input=False):
    step = StudentStep(student, LossWeights(), masks_input)
    model = SimpleNamespace(model=student)
    return " ".join(Learner(model, step, teacher and Teacher(teacher, student)).notes())


def test_a_doubled_encoder_is_told(teacher, student, tokenizer):
    assert notes(teacher, student) == notes(None, student) == ""
    assert "runs twice in each update" in notes(teacher, student, masks_input=True)
    student.model.encoder.layers.requires_grad_(True)
    assert "is trained (not so with --freeze_encoder): two encoders run" in notes(teacher, student)
    other = new_model(tokenizer, encoder_layers=1)
    other.model.encoder.requires_grad_(False)
    assert "has other weights: two encoders run" in notes(teacher, other)


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        ({"encoder": True}, lambda name: ".encoder." not in name),
        ({"feature_encoder": True}, lambda name: ".conv" not in name),
        ({"decoder": True}, lambda name: ".decoder." not in name or "embed_tokens" in name),
        ({"embed_positions": True}, lambda name: "decoder.embed_positions" not in name),
        ({"encoder": True, "decoder": True}, lambda name: "embed_tokens" in name),
    ],
)
def test_parts_that_are_frozen(tokenizer, frozen, still):
    model = new_model(tokenizer)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    freeze(model, Frozen(**frozen))
    after = {name for name, p in model.named_parameters() if p.requires_grad}
    assert after == {name for name in before if still(name)} != before


def test_a_model_without_anything_to_train_is_refused(student):
    student.requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing is left to be trained: .* --freeze_"):
        freeze(student, Frozen(decoder=True))
