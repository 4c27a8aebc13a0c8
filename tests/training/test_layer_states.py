"""The mean squared error between hidden states, against plain PyTorch."""

from types import SimpleNamespace

import pytest
import torch
from test_step import FEATURES, INPUTS, TARGETS, new_model
from tiny import tiny_tokenizer

from distillery.text.labels import IGNORED
from distillery.training.layer_states import compared_layers
from distillery.training.losses import LossWeights
from distillery.training.step import StudentStep, Teacher
from distillery.whisper.student import NO_LAYERS, CopiedLayers, copied_layers, make_student

MSE = LossWeights(ce=0.0, kl=0.0, mse=1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def teacher(tokenizer):
    return new_model(tokenizer).eval()


def student_of(teacher, encoder=(1,), decoder=(0, 2), frozen=False):
    """Return a student whose layers are no longer those of its teacher."""
    student = make_student(teacher, encoder, decoder)
    student.model.encoder.requires_grad_(not frozen)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for stack in (student.model.encoder, student.model.decoder):
            for weight in stack.layers.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=random))
    return student.train()


def sums_of(student, teacher, weights=MSE, inputs=INPUTS, targets=TARGETS, training=True):
    frozen = Teacher(teacher, student, compared_layers(student, teacher))
    step = StudentStep(student, weights).train(training)
    return step(FEATURES, inputs, targets, frozen(FEATURES, inputs))


def stack_states(layers, states, **more):
    """Return what each layer of a stack puts out, one after the other."""
    found = []
    for layer in layers:
        states = layer(states, None, **more)
        states = states[0] if isinstance(states, tuple) else states
        found.append(states)
    return found


def plain_states(model):
    """Return the states behind each layer of encoder and decoder, without any of our code."""
    encoder, decoder = model.model.encoder, model.model.decoder
    heard = torch.nn.functional.gelu(encoder.conv1(FEATURES))
    heard = torch.nn.functional.gelu(encoder.conv2(heard)).transpose(1, 2)
    heard = stack_states(encoder.layers, heard + encoder.embed_positions.weight)
    read = decoder.embed_tokens(INPUTS) + decoder.embed_positions.weight[: INPUTS.shape[1]]
    causal = torch.full((INPUTS.shape[1],) * 2, -torch.inf).triu(1)[None, None]
    read_states = []
    for layer in decoder.layers:
        read = layer(read, causal, encoder_hidden_states=encoder.layer_norm(heard[-1]))
        read = read[0] if isinstance(read, tuple) else read
        read_states.append(read)
    return heard, read_states


def plain_mse(student, teacher, encoder, decoder):
    """Return the sum over layers and targets that count, written out row by row."""
    (our_heard, our_read), (their_heard, their_read) = map(plain_states, (student, teacher))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(INPUTS)):
        for place in range(INPUTS.shape[1]):
            if TARGETS[row, place] == IGNORED:
                continue
            for own, copied in enumerate(decoder):
                ours, theirs = our_read[own][row, place], their_read[copied][row, place]
                total = total + torch.nn.functional.mse_loss(ours, theirs).double()
            for own, copied in enumerate(encoder):
                ours, theirs = our_heard[own][row], their_heard[copied][row]
                total = total + torch.nn.functional.mse_loss(ours, theirs).double()
    return total


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_values_and_gradients_are_those_of_plain_pytorch(teacher, frozen, checkpointing):
    encoder, decoder = (0, 1), (0, 2)
    student = student_of(teacher, encoder, decoder, frozen)
    plain_mse(student, teacher, () if frozen else encoder, decoder).backward()
    wanted = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    expected = plain_mse(student, teacher, () if frozen else encoder, decoder)
    student.zero_grad()
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    sums = sums_of(student, teacher)
    assert float(sums.mse) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(sums.total.detach()) == pytest.approx(float(sums.mse))
    sums.total.backward()
    found = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert wanted.keys() <= found.keys()
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * largest + 1e-7)


def test_it_is_weighted_and_added_to_the_other_losses(teacher):
    student = student_of(teacher)
    sums = sums_of(student, teacher, LossWeights(0.5, 2.0, 2.0, 0.25))
    parts = 0.5 * sums.ce + 2 * sums.kl + 0.25 * sums.mse
    assert float(sums.total.detach()) == pytest.approx(float(parts), rel=1e-6)
    assert float(sums.mse) > 1
    plain = sums_of(student, teacher, LossWeights(0.5, 2.0, 2.0))
    assert (float(plain.mse), float(plain.ce), float(plain.kl)) == (
        0,
        *map(float, (sums.ce, sums.kl)),
    )
    *losses, num_tokens, num_kl_tokens = sums.to_tensor().tolist()
    assert losses[1:] == [*map(float, (sums.ce, sums.kl, sums.mse))]
    assert (num_tokens, num_kl_tokens) == (11, 11)


def test_a_copy_has_no_error(teacher):
    twin = make_student(teacher, [0, 1], [0, 1, 2]).train()
    assert float(sums_of(twin, teacher).mse) == 0


def test_padding_and_prompts_do_not_count(teacher):
    student = student_of(teacher, frozen=True)
    changed = INPUTS.clone()
    changed[0, 6:] = 42  # padding: nothing that counts looks back at it
    one, other = (sums_of(student, teacher, inputs=inputs) for inputs in (INPUTS, changed))
    torch.testing.assert_close(one.mse, other.mse)
    nothing = sums_of(student, teacher, targets=torch.full_like(TARGETS, IGNORED))
    assert float(nothing.total.detach()) == float(nothing.mse) == 0
    nothing.total.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in student.parameters() if p.grad is not None)


def test_micro_batches_add_up_to_the_batch(teacher):
    student = student_of(teacher)
    frozen = Teacher(teacher, student, compared_layers(student, teacher))
    step = StudentStep(student, MSE)
    cuts = (slice(0, 1), slice(1, 2), slice(0, 2))
    batches = [(FEATURES[cut], INPUTS[cut], TARGETS[cut]) for cut in cuts]
    first, second, both = (step(*one, frozen(*one[:2])).mse for one in batches)
    torch.testing.assert_close(first + second, both)


def test_states_are_kept_of_the_compared_layers_alone(teacher):
    student = student_of(teacher, (1,), (0, 2), frozen=True)
    outputs = Teacher(teacher, student, compared_layers(student, teacher))(FEATURES, INPUTS)
    assert outputs.layers.encoder == {}
    assert {n: states.shape for n, states in outputs.layers.decoder.items()} == {
        0: (2, 9, 16),
        1: (2, 9, 16),
    }
    outputs = Teacher(teacher, student, NO_LAYERS)(FEATURES, INPUTS)
    assert outputs.layers.decoder == {}
    assert not any(layer._forward_hooks for layer in teacher.model.decoder.layers)


def test_a_dropped_layer_has_no_error(teacher):
    student = student_of(teacher, frozen=True)
    student.model.decoder.layerdrop = 1.0
    assert float(sums_of(student, teacher).mse) == 0


def test_mixed_precision_is_near(teacher):
    student = student_of(teacher)
    exact = sums_of(student, teacher).mse
    with torch.autocast("cpu", torch.bfloat16):
        sums = sums_of(student, teacher)
    sums.total.backward()
    assert float(sums.mse) == pytest.approx(float(exact), rel=0.05)


def test_the_temperature_of_an_evaluation_is_1(teacher):
    student = student_of(teacher)
    weights = LossWeights(0.8, 1.0, 3.0)
    found = sums_of(student, teacher, weights, training=False)
    wanted = sums_of(student, teacher, LossWeights(0.8, 1.0, 1.0))
    assert torch.equal(found.kl, wanted.kl) and torch.equal(found.total, wanted.total)
    assert not torch.equal(found.kl, sums_of(student, teacher, weights).kl)


# --- the layer map -------------------------------------------------------------------------------


def test_the_map_is_kept_by_the_student(teacher, tmp_path):
    student = make_student(teacher, [1], [2, 0])
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert copied_layers(loaded, teacher) == CopiedLayers((1,), (2, 0))


def test_without_a_map_layers_are_taken_to_be_spaced(teacher, caplog):
    student = make_student(teacher, [0, 1], [0, 1])
    del student.config.copied_layers
    assert copied_layers(student, teacher) == CopiedLayers((0, 1), (0, 2))
    assert "has no copied_layers: taken to be" in caplog.text


def test_another_teacher_is_refused(teacher, tokenizer):
    student = make_student(teacher, [1], [0, 2])
    smaller = new_model(tokenizer, decoder_layers=2)
    with pytest.raises(ValueError, match=r"\[0, 2\] of the decoder .* a teacher that has 2: name"):
        copied_layers(student, smaller)
    wider = SimpleNamespace(config=SimpleNamespace(**{**teacher.config.to_dict(), "d_model": 32}))
    with pytest.raises(ValueError, match=r"width 16 in the student and 32 in the teacher .* --mse"):
        copied_layers(student, wider)
