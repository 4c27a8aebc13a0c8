"""How long a run is, and which rows its processes get."""

import math
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest

from distillery.data.specs import DatasetSpec
from distillery.training import rows
from distillery.training import rows as rows_module
from distillery.training.order import BatchPlan, Order
from distillery.training.rows import EvalSet, TrainingData
from distillery.training.settings import Length
from distillery.training.shard_cycles import Stream
from distillery.training.streams import StreamedRows

# --- how long a run is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "plan", "sizes", "wanted"),
    [
        (Length(5, 3), BatchPlan(4, 2, 3), (100,), (120, 5)),
        (Length(5, 3), BatchPlan(4, 2, 3), None, (120, 5)),
        (Length(None, 1), BatchPlan(4, 1, 1), (10,), (10, 3)),
        (Length(None, 2), BatchPlan(4, 1, 1), (3, 7), (20, 5)),
        (Length(None, 0.5), BatchPlan(4, 1, 1), (11,), (6, 2)),
        (Length(None, 3), BatchPlan(2, 2, 2), (9,), (27, 4)),
        (Length(1, 9), BatchPlan(2, 1, 1), (9,), (2, 1)),
    ],
)
def test_length(length, plan, sizes, wanted):
    rows_per_epoch = sum(sizes) if sizes else None
    assert length.count(plan, rows_per_epoch) == wanted


def test_a_stream_without_max_steps_has_no_length():
    with pytest.raises(ValueError, match="--streaming needs --max_steps"):
        Length(None, 3).count(BatchPlan(1, 1, 1), None)


@pytest.mark.parametrize("plan", [BatchPlan(3, 1, 1), BatchPlan(2, 2, 2), BatchPlan(7, 1, 2)])
@pytest.mark.parametrize("epochs", [1, 2.5, 4])
def test_every_row_is_trained_on_as_often_as_there_are_epochs(plan, epochs):
    order = Order((8, 5), None, 0)
    num_rows, num_updates = Length(None, epochs).count(plan, order.rows_per_epoch)
    found = [
        key
        for process in range(plan.num_processes)
        for batch in plan.micro_batches(order, range(num_updates), num_rows, process)
        for key in batch
    ]
    assert sorted(found) == sorted(order[0:num_rows])
    counts = [sum(row == index for row, _ in found) for index in range(13)]
    assert {*counts} == {math.floor(epochs), math.ceil(epochs)}


@pytest.mark.parametrize("processes", [1, 2])
def test_each_process_gets_its_micro_batches_for_every_update(processes):
    plan, order = BatchPlan(2, 3, processes), Order((17,), None, 0)
    num_rows, num_updates = Length(None, 1).count(plan, 17)
    for process in range(processes):
        batches = list(plan.micro_batches(order, range(num_updates), num_rows, process))
        assert len(batches) == num_updates * plan.accumulation
        rest = list(plan.micro_batches(order, range(1, num_updates), num_rows, process))
        assert rest == batches[plan.accumulation :]


# --- which rows ----------------------------------------------------------------------------------


def data_of(rows, order, num_rows):
    return TrainingData(rows, order, None, BatchPlan(2, 1, 1), num_rows, 1, None)


@pytest.mark.parametrize(
    ("weights", "num_rows", "wanted"),
    [(None, 5, 5), (None, 26, 13), (None, 39, 13), ((1.0, 0.001), 13, 8), ((1.0, 9.0), 13, 6)],
)
def test_a_clip_of_several_epochs_is_one_clip(weights, num_rows, wanted):
    order = Order((8, 5), weights, 0)
    assert data_of([], order, num_rows).num_clips(1.0) == wanted
    assert len({row for row, _ in order[0:num_rows]}) == wanted


def test_a_clip_of_several_passes_over_a_stream_is_one_clip():
    stream = StreamedRows([Stream(None, 1)], None, None, None)
    assert data_of(stream, None, 20).num_clips(1.0) == 20  # the first pass has not ended
    stream.rows_per_pass = 8
    assert data_of(stream, None, 20).num_clips(1.0) == 8
    assert data_of(stream, None, 6).num_clips(1.0) == 6
    assert data_of(stream, None, 3).num_clips(2.0) == 6  # in windows of two


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_rows_of_an_evaluation(processes):
    rows = SimpleNamespace(sizes=(4, 7))
    keys = [EvalSet("e", rows).keys(3, process, processes) for process in range(processes)]
    batches = [batch for each in keys for batch in each]
    assert sorted(key for batch in batches for key in batch) == [(row, 0) for row in range(11)]
    assert sorted(map(len, batches)) == [2, 3, 3, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_outlives_the_first_signal_of_a_job(number):
    worker = multiprocessing.get_context("fork").Process(
        target=_work_through_a_signal, args=(number,)
    )
    worker.start()
    worker.join(30)
    assert worker.exitcode == 7


def _work_through_a_signal(number):
    rows._outlive_first_signal(0)
    os.kill(os.getpid(), number)
    os._exit(7)


def test_one_evaluation_set_cannot_stand_for_two():
    dev, test = DatasetSpec("d", split="dev"), DatasetSpec("d", split="test")
    assert rows_module._names_of([dev, test]) == [str(dev), str(test)]
    with pytest.raises(ValueError, match=f"--eval_dataset_name: {dev} .* is there 2 times"):
        rows_module._names_of([dev, test, dev])
