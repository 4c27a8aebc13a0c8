"""How a start of a training run ends; whole runs are in tests/stages."""

from types import SimpleNamespace

import pytest
from torch import nn

from distillery.training import resume
from distillery.training.loop import Progress
from distillery.training.order import BatchPlan
from distillery.training.session import Session

NUM_UPDATES = 4


def session(progress, accelerator=None, is_due=False):
    data = SimpleNamespace(
        num_updates=NUM_UPDATES, num_clips=lambda _: 10, plan=BatchPlan(1, 1, 1), account=None
    )
    learner = SimpleNamespace(student=SimpleNamespace(model=nn.Linear(1, 1)))
    trainer = SimpleNamespace(accelerator=accelerator, learner=learner)
    evaluator = SimpleNamespace(is_due=lambda *_: is_due, result=lambda _, last: last)
    return Session(trainer, data, progress, None, None, evaluator, max_bad_fraction=0.1)


@pytest.mark.parametrize("is_main", [True, False])
def test_all_processes_stay_until_the_model_is_saved(monkeypatch, is_main):
    """A process that left earlier would be ended by a late SIGTERM, and the others with it."""
    did = []
    monkeypatch.setattr(resume, "finish", lambda *_: did.append("save"))
    accelerator = SimpleNamespace(
        is_main_process=is_main, wait_for_everyone=lambda: did.append("wait")
    )
    assert session(Progress(NUM_UPDATES), accelerator).conclude(None)
    assert did == (["save", "wait"] if is_main else ["wait"])


def test_a_run_with_updates_or_an_evaluation_left_is_not_over():
    assert not session(Progress(NUM_UPDATES - 1)).conclude(None)
    assert not session(Progress(NUM_UPDATES), is_due=True).conclude(None)


def test_a_run_that_ends_early_is_over(monkeypatch):
    accelerator = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: None)
    assert session(Progress(NUM_UPDATES - 1, is_over=True), accelerator).conclude(None)


@pytest.mark.parametrize("step", [1, NUM_UPDATES])
def test_too_many_bad_clips_are_an_error_at_any_time(step):
    progress = Progress(step, bad_clips=["a is broken", "b is broken"])
    with pytest.raises(ValueError, match=r"2 of 10 clips .* --max_bad_fraction 0\.1 allows"):
        session(progress).conclude(None)
