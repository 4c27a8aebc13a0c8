"""Updates of a small model; whole runs are in tests/stages."""

import math
from dataclasses import replace
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model_folder, tone_manifest

from distillery.data.collators import Batch, SpeechCollator
from distillery.data.specs import DatasetSpec
from distillery.storage.stops import StopRequest
from distillery.training import loop
from distillery.training.loop import Progress
from distillery.training.losses import SUMS, LossWeights
from distillery.training.order import BatchPlan
from distillery.training.rows import BatchLoader, training_data
from distillery.training.settings import LabelSettings, Length, Optimization
from distillery.training.step import Learner, StudentStep
from distillery.whisper import checkpoint

NUM_UPDATES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    tiny_model_folder(folder / "model", encoder_layers=1, decoder_layers=1, window_s=1)
    tone_manifest(folder / "rows.jsonl", 6)
    return folder


@pytest.fixture
def parts(folder):
    """Return a trainer of a small model, and data for some updates of two micro-batches."""
    student = checkpoint.load(str(folder / "model"))
    learner = Learner(student, StudentStep(student.model, LossWeights()), None)
    optimization = Optimization(1e-2, "constant", 0, 0.0, (0.9, 0.999), 1.0)
    data = training_data(
        [DatasetSpec(str(folder / "rows.jsonl"), language="ja")],
        student,
        LabelSettings(0.2, 0.2, 96, None, seed=0),
        Length(NUM_UPDATES, 1),
        BatchPlan(per_device=1, accumulation=2, num_processes=1),
        BatchLoader(SpeechCollator(student.log_mel, student.tokens), 0, pin_memory=False),
    )
    return loop.make_trainer(Accelerator(cpu=True), learner, optimization, NUM_UPDATES), data


def test_updates_count_and_move_the_weights(parts):
    trainer, data = parts
    progress, weights = Progress(), []
    for update in loop.updates(trainer, data, progress, StopRequest()):
        assert (update.step, update.is_finite) == (progress.step, True)
        assert update.is_last is (update.step == NUM_UPDATES)
        sums = dict(zip(SUMS, update.sums.tolist(), strict=False))
        assert 1 < sums["loss"] / sums["tokens"] < 100
        weights.append(trainer.learner.student.model.proj_out.weight.detach().clone())
    assert progress == Progress(NUM_UPDATES, num_clips=2 * NUM_UPDATES)
    assert not any(torch.equal(*pair) for pair in pairwise(weights))


def test_without_a_largest_norm_gradients_stay_as_they_are(parts):
    trainer, data = parts
    norms = [
        update.grad_norm
        for update in loop.updates(
            replace(trainer, max_grad_norm=0.0), data, Progress(), StopRequest()
        )
    ]
    assert all(math.isfinite(norm) and norm > 0 for norm in norms)
    first = trainer.optimizer.state[trainer.learner.student.model.proj_out.weight]["exp_avg"]
    assert first.abs().max() > 0  # gradients of 0 would leave AdamW's mean at 0


@pytest.mark.parametrize("done", [0, 2, NUM_UPDATES])
def test_a_request_to_stop_ends_the_updates_before_the_next(parts, done):
    stop, steps = StopRequest(), []
    stop.is_set = done == 0
    for update in loop.updates(*parts, Progress(), stop):
        steps.append(update.step)
        stop.is_set = update.step == done
    assert steps == list(range(1, done + 1))


def test_updates_end_when_too_many_clips_are_bad(parts, monkeypatch):
    trainer, data = parts
    collate = SpeechCollator.__call__
    spoilt = data.rows[data.order[2:3][0]]["id"]  # of the second update

    def spoiling(self, rows):
        found = collate(self, rows)
        bad = [(row["id"], "is broken") for row in rows if row["id"] == spoilt]
        return replace(found, bad=bad)

    monkeypatch.setattr(SpeechCollator, "__call__", spoiling)
    progress = Progress()
    done = [update.step for update in loop.updates(trainer, data, progress, StopRequest(), 0.1)]
    assert done == [1, 2]
    assert progress.bad_clips == [f"{spoilt} is broken"]
    assert list(loop.updates(trainer, data, progress, StopRequest(), 0.1)) == []
    assert [u.step for u in loop.updates(trainer, data, progress, StopRequest(), 0.2)] == [3, 4]


def test_a_request_of_another_process_stops_this_one(parts, monkeypatch):
    """The last of the counts that processes add up is that of the requests."""
    trainer, data = parts
    reduce = Accelerator.reduce

    def reduced_with_other(self, counts, how):
        return reduce(self, counts, how) + torch.tensor([0, 0, 0, 0, 1])

    monkeypatch.setattr(Accelerator, "reduce", reduced_with_other)
    assert list(loop.updates(trainer, data, Progress(), StopRequest())) == []


def test_the_rows_of_gradients_that_are_not_finite_are_named(parts, monkeypatch, caplog):
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *_args, **_more: torch.tensor(math.nan)
    )
    trainer, data = parts
    before = trainer.learner.student.model.proj_out.weight.detach().clone()
    with pytest.raises(ValueError, match="3 updates in a row"):
        list(loop.updates(trainer, data, Progress(), StopRequest()))
    assert torch.equal(trainer.learner.student.model.proj_out.weight, before)
    skipped = [r.getMessage() for r in caplog.records if "is skipped" in r.getMessage()]
    assert len(skipped) == 3
    batches = list(data.plan.micro_batches(data.order, range(3), data.num_rows, 0))
    for update, message in enumerate(skipped):
        keys = [key for batch in batches[2 * update : 2 * update + 2] for key in batch]
        rows = [data.rows[key]["id"] for key in keys]
        assert message.startswith(f"update {update + 1} is skipped: its gradient is not finite")
        assert message.endswith(f"rows {rows}")


# --- float16 -------------------------------------------------------------------------------------


@pytest.fixture
def scaled(parts, monkeypatch):
    """Return the same with a gradient scaler, as float16 has one on a GPU, and forty updates."""
    trainer, data = parts
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    monkeypatch.setattr(
        Accelerator,
        "unscale_gradients",
        lambda self: self.scaler.unscale_(self._optimizers[-1].optimizer),
    )
    return trainer, replace(data, num_rows=80, num_updates=40)


def test_a_dead_float16_run_fails(scaled):
    trainer, data = scaled
    with torch.no_grad():
        trainer.learner.student.model.model.decoder.layer_norm.weight[0] = math.nan
    progress = Progress()
    with pytest.raises(ValueError, match=r"^20 updates in a row .* float16 is down to 0.0625;"):
        list(loop.updates(trainer, data, progress, StopRequest()))
    assert progress.step == 20


def test_a_float16_run_whose_scale_has_collapsed_fails(scaled):
    trainer, data = scaled
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.5e-4)
    with torch.no_grad():
        trainer.learner.student.model.model.decoder.layer_norm.weight[0] = math.nan
    with pytest.raises(ValueError, match=r"^1 updates in a row .* down to 7.5e-05; .*bfloat16"):
        list(loop.updates(trainer, data, Progress(), StopRequest()))


def test_overflows_with_updates_between_them_are_no_fault(scaled, monkeypatch):
    trainer, data = scaled
    norms, clip = count(), Accelerator.clip_grad_norm_

    def clip_spoilt(self, parameters, most):
        parameters = list(parameters)
        if next(norms) % 2:
            parameters[-1].grad[0] = math.inf
        return clip(self, parameters, most)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clip_spoilt)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    found = [update.is_finite for update in loop.updates(trainer, data, Progress(), StopRequest())]
    assert found == [True, False] * 20


# --- out of memory -------------------------------------------------------------------------------


def no_memory(_batch, _step):
    return torch.empty(10**16)


def no_gpu_memory(_batch, _step):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee …")


@pytest.mark.parametrize("losses", [no_memory, no_gpu_memory])
def test_an_update_out_of_memory_names_rows_and_flag(parts, monkeypatch, losses):
    trainer, data = parts
    monkeypatch.setattr(Learner, "losses", lambda _, *args: losses(*args))
    with pytest.raises(ValueError) as error:
        list(loop.updates(trainer, data, Progress(), StopRequest()))
    said = str(error.value)
    assert said.startswith("an update with 1 rows at once needs more memory than there is: ")
    assert "--per_device_train_batch_size" in said and "memory" in said.rpartition("(")[2]
    assert "\n" not in said


def test_another_error_of_an_update_stays_what_it_is(parts, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Learner, "losses", broken)
    trainer, data = parts
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(loop.updates(trainer, data, Progress(), StopRequest()))


# --- clips that cannot be used -------------------------------------------------------------------


def batch(ids, bad=()):
    return Batch(list(ids), ["" for _ in ids], [(b, "is broken") for b in bad], None, None, None)


def bad_clips(caplog):
    return [r.getMessage() for r in caplog.records if "is broken" in r.getMessage()]


def test_a_bad_clip_is_named_and_counted_once(caplog):
    accelerator, progress = Accelerator(cpu=True), Progress()
    loop.note_clips_left_out(accelerator, [batch("ab", "c"), batch("d"), batch("", "e")], progress)
    assert bad_clips(caplog) == ["clip c is broken", "clip e is broken"]
    caplog.clear()
    loop.note_clips_left_out(accelerator, [batch("", "ecf")], progress)
    assert bad_clips(caplog) == ["clip f is broken"]
    assert progress.bad_clips == ["c is broken", "e is broken", "f is broken"]


@pytest.mark.parametrize("is_main", [True, False])
def test_all_processes_keep_the_bad_clips_of_all_and_one_names_them(monkeypatch, caplog, is_main):
    monkeypatch.setattr(loop, "gather_object", lambda own: [*own, "z is broken", *own])
    progress = Progress(bad_clips=["b is broken"])
    accelerator = SimpleNamespace(is_main_process=is_main)
    loop.note_clips_left_out(accelerator, [batch("", "ab")], progress)
    assert progress.bad_clips == ["b is broken", "a is broken", "z is broken"]
    assert bad_clips(caplog) == (["clip a is broken", "clip z is broken"] if is_main else [])


def data_of(num_clips, global_size=10):
    plan = BatchPlan(global_size, 1, 1)
    return SimpleNamespace(num_clips=lambda per_row: round(num_clips * per_row), plan=plan)


def problem(num_bad, num_clips, allowed, step=1, clips_per_row=1):
    """Return what is said of bad clips after updates of ten rows each."""
    reports = [f"{n} is broken" for n in range(num_bad)]
    progress = Progress(step, bad_clips=reports, num_clips=step * 10 * clips_per_row)
    return loop.bad_clips_problem(progress, data_of(num_clips), allowed)


def test_too_many_bad_clips_are_a_problem_as_soon_as_it_is_certain():
    assert problem(0, 0, 0.0) is None
    assert problem(2, 5, 0.4) is None
    assert problem(2, 10, None) is None
    assert "--max_bad_fraction 0.001" in problem(3, 10, None)
    said = problem(2, 5, 0.39)
    assert said.startswith("2 of 5 clips could not be decoded")
    assert "--max_bad_fraction 0.39" in said and "which is saved" in said


def test_a_run_far_past_its_share_of_bad_clips_does_not_go_on():
    assert problem(99, 10**6, 0.01, step=10) is None  # few enough to be chance
    said = problem(100, 10**6, 0.01, step=10)
    assert said.startswith("100 of the first 100 clips could not be decoded")
    assert problem(100, 10**6, 0.01, step=500) is None  # twice the share, and no more
    assert problem(101, 10**6, 0.01, step=500) is not None


def test_of_windows_of_several_clips_each_clip_counts():
    assert problem(2, 5, 0.39) is not None
    assert problem(2, 5, 0.39, clips_per_row=4) is None
    assert problem(101, 10**6, 0.01, step=500, clips_per_row=4) is None
    said = problem(401, 10**6, 0.01, step=500, clips_per_row=4)
    assert said.startswith("401 of the first 20000 clips could not be decoded")
