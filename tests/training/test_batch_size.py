"""The micro-batch that fits; a whole run is in tests/stages/test_training_device.py."""

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model_folder

from distillery.training import batch_size
from distillery.training.batch_size import largest_divisor, largest_fitting, worst_batch
from distillery.training.losses import LossWeights
from distillery.training.order import BatchPlan
from distillery.training.step import Learner, StudentStep
from distillery.whisper import checkpoint


def out_of_memory_above(most, tried):
    def try_rows(num_rows):
        tried.append(num_rows)
        if num_rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return try_rows


@pytest.mark.parametrize(
    ("share", "most", "wanted"),
    [(32, 100, [32]), (32, 9, [32, 16, 8]), (24, 7, [24, 12, 8, 6]), (7, 6, [7, 1])],
)
def test_divisors_are_tried_from_the_largest_on(share, most, wanted):
    tried = []
    assert largest_divisor(share, out_of_memory_above(most, tried)) == wanted[-1]
    assert tried == wanted


def test_where_nothing_fits_and_where_something_else_is_wrong():
    assert largest_divisor(4, out_of_memory_above(0, [])) == 0

    def broken(_):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        largest_divisor(4, broken)


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    folder = tiny_model_folder(
        tmp_path_factory.mktemp("model"), encoder_layers=1, decoder_layers=1, window_s=1
    )
    student = checkpoint.load(str(folder))
    return Learner(student, StudentStep(student.model, LossWeights()), None)


def plan_of(learner, monkeypatch, most):
    try_rows = out_of_memory_above(most, [])
    monkeypatch.setattr(batch_size, "_try", lambda _, __, batch: try_rows(len(batch.ids)))
    return largest_fitting(Accelerator(cpu=True), BatchPlan(4, 6, 3), learner, 40)


@pytest.mark.parametrize(("most", "wanted"), [(24, (24, 1)), (11, (8, 3)), (3, (3, 8))])
def test_the_global_batch_stays(learner, monkeypatch, caplog, most, wanted):
    caplog.set_level("INFO")
    found = plan_of(learner, monkeypatch, most)
    assert (found.per_device, found.accumulation) == wanted
    assert found.global_size == BatchPlan(4, 6, 3).global_size
    rows, turns = wanted
    assert f"{rows} rows fit at once, so 24 are {rows} x {turns}" in caplog.text


def test_the_process_with_the_least_memory_decides(learner, monkeypatch):
    others = []
    monkeypatch.setattr(Accelerator, "gather", lambda _, own: torch.tensor([int(own), *others]))
    others.append(2)
    assert plan_of(learner, monkeypatch, 8).per_device == 2
    others.append(0)
    with pytest.raises(ValueError, match=r"^--auto_batch_size: not even one row fits into memory"):
        plan_of(learner, monkeypatch, 8)


def test_the_longest_labels_and_the_fullest_windows_are_tried(learner):
    batch = worst_batch(learner.student, 3, 10**6)
    most = learner.student.max_label_length
    assert batch.targets.shape == batch.decoder_input_ids.shape == (3, most)
    assert batch.num_tokens == 3 * most
    features, *_ = learner.tensors(batch)
    log_mel = learner.student.log_mel
    assert features.shape == (3, log_mel.num_mels, log_mel.num_frames)
    assert worst_batch(learner.student, 3, 40).targets.shape == (3, 40)


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_takes_what_an_update_takes_and_leaves_nothing(learner, monkeypatch, fails):
    taken, before = [], {n: w.clone() for n, w in learner.student.model.state_dict().items()}
    empty_like, losses = torch.empty_like, Learner.losses
    monkeypatch.setattr(
        torch, "empty_like", lambda weight, **_: taken.append(weight) or empty_like(weight)
    )

    def tried(self, *args):
        counts = [sum(one is each for one in taken) for each in trained]
        assert counts == [batch_size.MEANS] * len(trained)
        found = losses(self, *args)
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(Learner, "losses", tried)
    trained = [weight for weight in learner.step.parameters() if weight.requires_grad]
    try:
        batch_size._try(Accelerator(cpu=True), learner, worst_batch(learner.student, 2, 40))
    except torch.OutOfMemoryError:
        assert fails
    assert all(weight.grad is None for weight in trained)
    after = learner.student.model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
