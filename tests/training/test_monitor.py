"""What is logged of a run; whole runs are in tests/stages."""

import json
import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch

from distillery.training import monitor
from distillery.training.loop import Progress, Update
from distillery.training.loss_curve import LOSS_LOG
from distillery.training.monitor import (
    LossMonitor,
    LossWindow,
    finish_trackers,
    log_values,
)


def accelerator_of(is_main=True, others=(0.0,) * 10):
    """Return what stands for an accelerator with another process that has those sums."""
    tracked = []
    return SimpleNamespace(
        is_main_process=is_main,
        device=torch.device("cpu"),
        reduce=lambda sums, _: sums + torch.tensor(others, dtype=torch.float64),
        log=lambda values, step: tracked.append((step, values)),
        tracked=tracked,
    )


# --- losses --------------------------------------------------------------------------------------


def logged(folder, every, num_updates, sums, progress=None, norms=None):
    """Return the lines of the log, and what the trackers got, of updates with these sums."""
    accelerator = accelerator_of()
    schedule = SimpleNamespace(get_last_lr=lambda: [0.5])
    log_mel = SimpleNamespace(window_s=30.0)
    learner = SimpleNamespace(student=SimpleNamespace(log_mel=log_mel))
    trainer = SimpleNamespace(accelerator=accelerator, schedule=schedule, learner=learner)
    progress = progress or Progress()
    monitor = LossMonitor(trainer, progress, folder, every, num_updates)
    for step, each in enumerate(sums, start=progress.step + 1):
        norm = 1.0 if norms is None else norms[step - 1]
        values = torch.tensor(each, dtype=torch.float64)
        monitor.add(Update(step, step == num_updates, values, norm))
    lines = [json.loads(line) for line in (folder / LOSS_LOG).read_text("utf-8").splitlines()]
    return lines, accelerator.tracked


HEARD = [9.0, 2.0, 12.0, 16.0]  # seconds of speech, windows of 30 s, inputs and their positions
SUMS = [[4.0 * n, 2.0 * n, 1.0 * n, 0.0, 2.0, 2.0, *HEARD] for n in range(1, 6)]


def test_the_first_update_is_logged_and_then_every_so_many_and_the_last(tmp_path):
    lines, tracked = logged(tmp_path, 2, 5, SUMS)
    assert [line["step"] for line in lines] == [step for step, _ in tracked] == [1, 2, 4, 5]
    # The line of the first update takes nothing from the mean that is due.
    assert [line["tokens"] for line in lines] == [2, 4, 4, 2]
    assert [line["loss"] for line in lines] == [2, 3, 7, 10]
    assert [(line["ce"], line["kl"]) for line in lines][1] == (1.5, 0.75)
    assert {f"train/{name}": value for name, value in lines[1].items()}.items() >= {
        "train/loss": 3,
        "train/ce": 1.5,
        "train/kl": 0.75,
        "train/grad_norm": 1,
        "train/learning_rate": 0.5,
        "train/tokens": 4,
        "train/audio_s": 18.0,
        "train/padding_audio": 0.85,
    }.items()
    same = set(lines[1]) - {"step", "kind"}
    assert {name: tracked[1][1][f"train/{name}"] for name in same} == {
        name: lines[1][name] for name in same
    }


def test_the_trackers_alone_hear_how_fast_it_is(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 2.0, 7.0, 7.0])
    monkeypatch.setattr(monitor.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(monitor, "peak_memory", lambda _: 3 * 2**30)
    # The checkpoint's sums were not heard in this start.
    progress = Progress(1, [4.0, 2.0, 1.0, 0.0, 2.0, 2.0, *HEARD])
    lines, tracked = logged(tmp_path, 2, 4, SUMS[1:4], progress)
    names = ("samples_per_s", "audio_s_per_s", "memory_gib", "padding_labels")
    figures = [[values[f"train/{name}"] for name in names] for _, values in tracked]
    assert figures == [[1.0, 4.5, 3.0, 0.25], [0.8, 3.6, 3.0, 0.25]]
    assert not any(name in line for line in lines for name in names)


def test_a_line_for_each_update_is_one_line_for_the_first(tmp_path):
    lines, _ = logged(tmp_path, 1, 3, SUMS[:3])
    assert [(line["step"], line["tokens"]) for line in lines] == [(1, 2), (2, 2), (3, 2)]


def test_a_line_says_loss_ce_kl_rate_and_time_left(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        logged(tmp_path, 5, 5, SUMS)
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("update 1 of 5: loss 2.0000, CE 1.0000, KL 0.5000, ")
    assert re.search(r"learning rate 5.00e-01, [\d.]+ s of speech a second, 0:00:0\d left$", first)
    assert last.startswith("update 5 of 5: loss 6.0000") and last.endswith("0:00:00 left")


def test_a_mean_squared_error_has_a_column_of_its_own(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        lines, _ = logged(tmp_path, 2, 2, [[8.0, 2.0, 1.0, 4.0, 2.0, 2.0, *HEARD]] * 2)
    assert [line["mse"] for line in lines] == [2, 2]
    assert list(lines[0])[2:6] == ["loss", "ce", "kl", "mse"]
    assert "loss 4.0000, CE 1.0000, KL 0.5000, MSE 2.0000, " in caplog.records[0].getMessage()


def test_a_skipped_update_does_not_count(tmp_path):
    norms = [1.0, math.nan, 1.0]
    lines, _ = logged(tmp_path, 2, 3, [SUMS[0], [math.nan] * 10, SUMS[2]], norms=norms)
    assert [(line["step"], line["tokens"], line["grad_norm"]) for line in lines] == [
        (1, 2, 1.0),
        (2, 2, None),
        (3, 2, 1.0),
    ]


def test_without_any_token_there_is_no_line(tmp_path):
    (tmp_path / LOSS_LOG).touch()
    assert logged(tmp_path, 1, 2, [[0.0] * 10, [0.0] * 10]) == ([], [])


def test_a_resumed_run_goes_on_with_the_sums_of_its_checkpoint(tmp_path):
    lines, _ = logged(
        tmp_path, 4, 4, SUMS[3:4], Progress(3, [24.0, 12.0, 6.0, 0.0, 6.0, 6.0, *HEARD])
    )
    assert [(line["step"], line["loss"], line["tokens"]) for line in lines] == [(4, 5, 8)]


@pytest.mark.parametrize("is_main", [True, False])
def test_a_checkpoint_holds_the_sums_of_all_processes_once(is_main):
    kept = [float(n) for n in range(10)]
    window = LossWindow(accelerator_of(is_main, others=(5.0,) * 10), kept)
    assert window.sums.tolist() == (kept if is_main else [0.0] * 10)
    saved = window.to_list()
    assert saved == ([n + 5.0 for n in kept] if is_main else [5.0] * 10)
    assert window.sums.tolist() == (saved if is_main else [0.0] * 10)


# --- trackers that fail --------------------------------------------------------------------------


class DownTracker:
    def finish(self):
        raise ConnectionError("no route to host")


def test_a_tracker_that_is_down_ends_no_run(tmp_path, caplog):
    accelerator = accelerator_of()

    def log(values, step):
        raise ConnectionError("no route to host")

    accelerator.log, accelerator.trackers = log, [DownTracker(), DownTracker()]
    log_values(accelerator, tmp_path, 7, "train", {"loss": 1.5})
    assert json.loads((tmp_path / LOSS_LOG).read_text("utf-8"))["loss"] == 1.5
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("a tracker did not take update 7: no route to host")
    finish_trackers(accelerator)
    assert accelerator.trackers == []
    assert len(caplog.records) == 3


def test_a_disk_without_room_for_a_line_is_named(tmp_path):
    (tmp_path / LOSS_LOG).symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"cannot be written: .*No space left on device.*MB are f"):
        log_values(accelerator_of(), tmp_path, 7, "train", {"loss": 1.5})
