from itertools import pairwise

import numpy as np
import pytest

from distillery.data.regions import Regions
from distillery.training import order as order_module
from distillery.training.order import BatchPlan, Order


def rows_of(order, start, stop):
    return [row for row, _epoch in order[start:stop]]


def test_every_row_comes_once_per_epoch():
    order = Order((5, 3, 9), None, seed=0)
    assert order.rows_per_epoch == 17
    for epoch in range(4):
        found = order[17 * epoch : 17 * (epoch + 1)]
        assert sorted(row for row, _ in found) == list(range(17))
        assert {number for _, number in found} == {epoch}


def test_epochs_and_seeds_differ():
    order = Order((50,), None, seed=0)
    first = rows_of(order, 0, 50)
    assert first != list(range(50))
    assert first != rows_of(order, 50, 100)
    assert first != rows_of(Order((50,), None, seed=1), 0, 50)
    assert first == rows_of(Order((50,), None, seed=0), 0, 50)


def test_order_is_the_same_on_every_machine():
    """Literal numbers: a run that resumes elsewhere must find its rows again."""
    assert Order((6, 4), None, seed=7)[8:12] == [(1, 0), (3, 0), (7, 1), (1, 1)]


def test_a_span_may_cross_the_end_of_an_epoch():
    order = Order((7,), None, seed=3)
    assert order[5:16] == [*order[5:7], *order[7:14], *order[14:16]]
    assert [epoch for _, epoch in order[5:16]] == [0] * 2 + [1] * 7 + [2] * 2
    assert order[5:5] == []


@pytest.mark.parametrize(
    ("sizes", "weights", "shares"),
    [
        ((100, 300), (1.0, 1.0), [200, 200]),
        ((100, 300), (3.0, 1.0), [300, 100]),
        ((10, 10, 10), (0.5, 0.25, 0.25), [15, 7, 8]),
        ((10, 20), (1.0, 0.0), [30, 0]),
        ((100, 300), None, [100, 300]),
    ],
)
def test_weights_are_the_shares_of_an_epoch(sizes, weights, shares):
    order = Order(sizes, weights, seed=0)
    assert sum(shares) == order.rows_per_epoch
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for epoch in range(2):
        rows = rows_of(order, epoch * sum(sizes), (epoch + 1) * sum(sizes))
        counts = [
            sum(start <= row < start + size for row in rows)
            for start, size in zip(starts, sizes, strict=True)
        ]
        assert counts == shares


def test_a_row_is_repeated_only_after_all_others_of_its_dataset():
    rows = rows_of(Order((10, 90), (25.0, 75.0), seed=0), 0, 100)
    counts = sorted(rows.count(row) for row in range(10))
    assert counts == [2] * 5 + [3] * 5
    assert max(rows.count(row) for row in range(10, 100)) == 1


def test_rows_that_an_epoch_leaves_out_come_in_others():
    order = Order((90, 10), (1.0, 9.0), seed=0)
    seen = {row for row in rows_of(order, 0, 100 * 60) if row < 90}
    assert seen == set(range(90))


# --- batches -------------------------------------------------------------------------------------


def micro_batches(plan, order, updates, num_rows):
    """Return, for each process, its micro-batches."""
    return [
        list(plan.micro_batches(order, updates, num_rows, process))
        for process in range(plan.num_processes)
    ]


def global_batch(plan, order, update, num_rows):
    """Return the rows that all processes learn from in one update."""
    of_processes = micro_batches(plan, order, range(update, update + 1), num_rows)
    return [key for batches in of_processes for batch in batches for key in batch]


@pytest.mark.parametrize("lengths", [None, np.arange(30, 0, -1, dtype=np.int16)])
@pytest.mark.parametrize("regions", [(), (Regions(np.arange(30) // 4, np.full(8, 9)),)])
@pytest.mark.parametrize(
    "plan", [BatchPlan(2, 4, 1), BatchPlan(4, 1, 2), BatchPlan(2, 2, 2), BatchPlan(1, 2, 4)]
)
def test_any_number_of_processes_learns_from_the_same_rows(plan, regions, lengths):
    order = Order((30,), None, 0, lengths, regions)
    one = BatchPlan(8, 1, 1)
    assert plan.global_size == one.global_size == 8
    for update in range(10):
        wanted = sorted(order[8 * update : min(8 * update + 8, 75)])
        assert sorted(global_batch(plan, order, update, 75)) == wanted
        assert sorted(global_batch(one, order, update, 75)) == wanted


def test_without_lengths_and_regions_batches_are_cut_in_order():
    order = Order((16,), None, seed=0)
    batches = micro_batches(BatchPlan(2, 2, 2), order, range(2), 16)
    assert [
        key
        for update in (0, 2)
        for p in (0, 1)
        for b in batches[p][update : update + 2]
        for key in b
    ] == order[0:16]


@pytest.mark.parametrize("done", [0, 1, 4, 9, 10])
@pytest.mark.parametrize("process", [0, 1])
def test_resuming_continues_the_uninterrupted_sequence(done, process):
    lengths = np.arange(42, dtype=np.int16) % 7
    order = Order((30, 12), (1.0, 2.0), 5, lengths, (Regions(np.arange(30), np.ones(30)), None))
    plan = BatchPlan(2, 3, 2)
    whole = list(plan.micro_batches(order, range(10), 115, process))
    resumed = list(plan.micro_batches(order, range(done, 10), 115, process))
    assert resumed == whole[done * plan.accumulation :]


@pytest.mark.parametrize("num_rows", [0, 1, 5, 8, 13, 15, 16])
def test_the_last_batch_may_be_short_but_loses_nothing(num_rows):
    order = Order((20,), None, seed=0)
    plan = BatchPlan(per_device=2, accumulation=2, num_processes=2)
    updates = -(-num_rows // plan.global_size)
    of_processes = micro_batches(plan, order, range(updates), num_rows)
    # Every process takes part in every micro-batch.
    assert [len(batches) for batches in of_processes] == [updates * 2] * 2
    found = [batch for batches in of_processes for batch in batches]
    assert sorted(key for batch in found for key in batch) == sorted(order[0:num_rows])
    assert all(len(batch) <= plan.per_device for batch in found)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_micro_batches_have_labels_of_like_length(processes):
    lengths = np.random.default_rng(0).integers(5, 100, 240).astype(np.int16)
    order = Order((240,), None, 0, lengths)
    for batches in micro_batches(BatchPlan(4, 5, processes), order, range(4), 240):
        for update in range(4):
            found = [[lengths[row] for row, _ in b] for b in batches[5 * update : 5 * update + 5]]
            assert all(max(a) <= min(b) for a, b in pairwise(found))


# --- regions -------------------------------------------------------------------------------------


def test_rows_of_a_pool_of_regions_come_before_those_of_the_next(monkeypatch):
    monkeypatch.setattr(order_module, "POOL_BYTES", 30)
    of_rows = np.arange(100) // 10
    order = Order((100,), None, 0, None, (Regions(of_rows, np.full(10, 10)),))
    pools = []
    for epoch in range(2):
        rows = np.array(rows_of(order, 100 * epoch, 100 * epoch + 100))
        assert sorted(rows) == list(range(100))
        regions = of_rows[rows]
        pools.append([sorted({*regions[i : i + 30].tolist()}) for i in range(0, 100, 30)])
        assert [len(pool) for pool in pools[-1]] == [3, 3, 3, 1]
        assert len({*regions[:10].tolist()}) > 1  # they are shuffled among each other
        assert np.any(np.diff(rows[:30]) < 0)
    assert pools[0] != pools[1]


def test_rows_by_region_are_mixed_with_those_of_other_datasets(monkeypatch):
    monkeypatch.setattr(order_module, "POOL_BYTES", 20)
    regions = Regions(np.arange(60) // 6, np.full(10, 10))
    order = Order((60, 120), (1.0, 1.0), 0, None, (regions, None))
    rows = np.array(rows_of(order, 0, 180))
    first = rows[rows < 60]
    assert len(first) == 90  # the first 60 of which are all of them, and two regions at a time
    assert sorted(first[:60]) == list(range(60))
    assert all(len({*regions.of_rows[first[i : i + 12]].tolist()}) == 2 for i in range(0, 60, 12))
    assert all(20 < np.sum(rows[i : i + 60] < 60) < 40 for i in range(0, 180, 60))


def test_processes_share_regions_between_them():
    regions = Regions(np.arange(64) // 8, np.ones(8))
    order = Order((64,), None, 0, None, (regions,))
    read = [
        {int(regions.of_rows[row]) for batch in batches for row, _ in batch}
        for batches in micro_batches(BatchPlan(8, 2, 4), order, range(1), 64)
    ]
    assert read == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
