import pytest

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


def global_batch(plan, order, update, num_rows):
    """Return the rows that all processes learn from in one update."""
    return [
        row
        for process in range(plan.num_processes)
        for span in plan.spans(update, update + 1, num_rows, process)
        for row in order[span]
    ]


@pytest.mark.parametrize(
    "plan", [BatchPlan(2, 4, 1), BatchPlan(4, 1, 2), BatchPlan(2, 2, 2), BatchPlan(1, 2, 4)]
)
def test_any_number_of_processes_learns_from_the_same_rows(plan):
    order = Order((30,), None, seed=0)
    one = BatchPlan(8, 1, 1)
    assert plan.global_size == one.global_size == 8
    for update in range(10):
        assert sorted(global_batch(plan, order, update, 75)) == sorted(
            global_batch(one, order, update, 75)
        )


def test_spans_are_the_positions_in_order():
    plan = BatchPlan(per_device=2, accumulation=2, num_processes=2)
    spans = [list(plan.spans(0, 2, 100, process)) for process in (0, 1)]
    assert spans[0] == [slice(0, 2), slice(4, 6), slice(8, 10), slice(12, 14)]
    assert spans[1] == [slice(2, 4), slice(6, 8), slice(10, 12), slice(14, 16)]


@pytest.mark.parametrize("done", [0, 1, 4, 9, 10])
@pytest.mark.parametrize("process", [0, 1])
def test_resuming_continues_the_uninterrupted_sequence(done, process):
    order = Order((30, 12), (1.0, 2.0), seed=5)
    plan = BatchPlan(2, 3, 2)
    whole = [order[span] for span in plan.spans(0, 10, 115, process)]
    resumed = [order[span] for span in plan.spans(done, 10, 115, process)]
    assert resumed == whole[done * plan.accumulation :]


@pytest.mark.parametrize("num_rows", [0, 1, 5, 8, 13, 15, 16])
def test_the_last_batch_may_be_short_but_loses_nothing(num_rows):
    plan = BatchPlan(per_device=2, accumulation=2, num_processes=2)
    updates = -(-num_rows // plan.global_size)
    spans = [span for p in (0, 1) for span in plan.spans(0, updates, num_rows, p)]
    assert len(spans) == updates * 4  # every process takes part in every micro-batch
    positions = [i for span in spans for i in range(span.start, span.stop)]
    assert sorted(positions) == list(range(num_rows))
    assert all(0 <= span.start <= span.stop <= num_rows for span in spans)
