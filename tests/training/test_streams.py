"""Streams: an order of shards for each pass, lanes that processes share, and places in them."""

import json
import logging
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from torch.utils.data import DataLoader

from distillery.data import schema
from distillery.data.packing import Layout
from distillery.ingest import row_streams
from distillery.training import streams
from distillery.training.order import BatchPlan
from distillery.training.packed_examples import Packing
from distillery.training.shard_cycles import Stream
from distillery.training.streams import StreamedRows

NUM_ROWS, BLOCK = 300, 64  # rows of all blocks together
PLAN = BatchPlan(per_device=4, accumulation=2, num_processes=1)
TEXTS = Features({"id": Value("string"), "text": Value("string")})


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "SHUFFLED_ROWS", BLOCK)
    monkeypatch.setattr(streams, "PACKED_ROWS", BLOCK)
    monkeypatch.setattr(row_streams, "SHARD_ROWS", 5)


def texts(name="r", num_rows=NUM_ROWS):
    """Return rows, of which every seventh has nothing to learn."""
    return [{"id": f"{name}{i:03}", "text": "ねこ" if i % 7 else None} for i in range(num_rows)]


def usable(rows):
    return sorted(row["id"] for row in rows if row["text"] is not None)


def by_number(rows, reads=None):
    """Return a stream of rows that notes which of them it reads."""

    def read(_shard, number):
        if reads is not None:
            reads.append(rows[number]["id"])
        return rows[number]

    return row_streams.of_rows(np.arange(len(rows)) + 1, read, TEXTS, None)


def _in_order(rows):
    yield from rows


def of_kind(kind, folder):
    rows = texts()
    if kind == "by number":
        return by_number(rows)
    if kind == "in memory":
        return Dataset.from_list(rows).to_iterable_dataset(num_shards=7)
    if kind == "one shard":
        return IterableDataset.from_generator(_in_order, TEXTS, {"rows": tuple(rows)})
    files = [str(folder / f"{i}.parquet") for i in range(4)]
    for i, path in enumerate(files):
        Dataset.from_list(rows[i * 75 : i * 75 + 75]).to_parquet(path, batch_size=10)
    return load_dataset("parquet", data_files=files, streaming=True, split="train")


def streamed(rule, limits, *datasets, weights=None, packing=None):
    opened = [Stream(rows, rows.num_shards) for rows in datasets]
    return StreamedRows(opened, weights, rule, limits, packing)


def ids(batches, num_batches):
    return [
        [[row["id"] for row in rows] for _, rows in batch] for batch in islice(batches, num_batches)
    ]


def names(batches):
    return [name for batch in batches for window in batch for name in window]


def saved(rows, plan, update):
    """Return what a checkpoint holds."""
    return json.loads(json.dumps(rows.places(plan, update)))


# --- the place in a stream ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["by number", "in memory", "one shard", "parquet"])
def test_a_stream_goes_on_at_its_place(rule, limits, tmp_path, kind):
    rows = of_kind(kind, tmp_path)
    whole = ids(streamed(rule, limits, rows).batches(PLAN, 0, 0), 160)
    assert len(set(names(whole))) == len(usable(texts()))
    places, run = [], streamed(rule, limits, rows)
    for update, _ in enumerate(run.batches(PLAN, 0, 0)):
        if update % 2 == 0:
            places.append(saved(run, PLAN, update // 2))
        if update == 120:
            break
    for update in (0, 1, 5, 17, 42, 60):
        run = streamed(rule, limits, rows)
        run.go_on(places[update])
        assert ids(run.batches(PLAN, update, 0), 12) == whole[2 * update : 2 * update + 12]


@pytest.mark.parametrize("update", [3, 20, 31, 50])
def test_what_is_before_the_place_is_not_read_again(rule, limits, update):
    before, after = [], []
    rows = texts()
    run = streamed(rule, limits, by_number(rows, before))
    list(islice(run.batches(PLAN, 0, 0), 2 * update))
    again = streamed(rule, limits, by_number(rows, after))
    again.go_on(saved(run, PLAN, update))
    next(again.batches(PLAN, update, 0))
    # Its lanes' blocks, with what cannot be learnt from in them, and nothing else.
    assert len(after) <= BLOCK * 7 / 6 + run.num_lanes
    assert len(before) >= update * PLAN.global_size
    assert len(json.dumps(saved(run, PLAN, update))) < 1000 * run.num_lanes


def test_a_place_of_other_files_is_refused(rule, limits):
    rows = streamed(rule, limits, by_number(texts()))
    next(rows.batches(PLAN, 0, 0))
    places, num_shards = saved(rows, PLAN, 0), by_number(texts()).num_shards
    for others in ([10], [NUM_ROWS + 20], [NUM_ROWS, 10]):  # the last two are read in 16 lanes, too
        datasets = [by_number(texts(num_rows=num_rows)) for num_rows in others]
        now = sum(each.num_shards for each in datasets)
        with pytest.raises(ValueError, match=f"had {num_shards} shards, and now it has {now}: its"):
            streamed(rule, limits, *datasets).go_on(places)
    two = by_number(texts()), by_number(texts())
    with pytest.raises(ValueError, match=f"and now it has {num_shards} . {num_shards}: its"):
        streamed(rule, limits, *two, weights=(1, 1)).go_on(places)


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [2, 3, 8, 24])
def test_a_global_batch_has_the_same_rows_for_any_number_of_processes(rule, limits, num_processes):
    rows = by_number(texts())
    one = ids(streamed(rule, limits, rows).batches(BatchPlan(24, 1, 1), 0, 0), 20)
    plan = BatchPlan(24 // num_processes, 1, num_processes)
    shares = [
        ids(streamed(rule, limits, rows).batches(plan, 0, process), 20)
        for process in range(num_processes)
    ]
    for batch, *parts in zip(one, *shares, strict=True):
        assert sorted(names([batch])) == sorted(names(parts))


@pytest.mark.parametrize("num_processes", [2, 4, 8])
def test_processes_read_their_own_shards_alone(rule, limits, num_processes):
    plan, reads = BatchPlan(4, 1, num_processes), []
    for process in range(num_processes):
        reads.append([])
        run = streamed(rule, limits, by_number(texts(), reads[-1]))
        list(islice(run.batches(plan, 0, process), 120 // plan.global_size))
    counts = Counter(name for some in reads for name in set(some))
    assert set(counts.values()) == {1}
    assert min(map(len, reads)) > 0


def test_other_processes_go_on_at_the_places_of_two(rule, limits):
    two, four = BatchPlan(8, 1, 2), BatchPlan(4, 1, 4)
    runs = [streamed(rule, limits, by_number(texts())) for _ in range(2)]
    shares = [list(islice(run.batches(two, 0, i), 30)) for i, run in enumerate(runs)]
    places = [place for run in runs for place in saved(run, two, 20)]
    places.sort(key=lambda place: place["lane"])
    for plan in (four, BatchPlan(16, 1, 1)):
        found = []
        for process in range(plan.num_processes):
            run = streamed(rule, limits, by_number(texts()))
            run.go_on(places)
            found += names(ids(run.batches(plan, 20, process), 10))
        wanted = [row["id"] for share in shares for batch in share[20:] for _, (row,) in batch]
        assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(rule, limits, num_workers):
    def examples(workers):
        run = streamed(rule, limits, by_number(texts()))
        loader = DataLoader(
            run.examples,
            batch_sampler=run.batches(PLAN, 0, 0),
            collate_fn=list,
            num_workers=workers,
        )
        return list(islice(loader, 20)), saved(run, PLAN, 8)

    assert examples(num_workers) == examples(0)


# --- passes ---------------------------------------------------------------------------------------


def test_every_pass_has_every_row_once_in_an_order_of_its_own(rule, limits):
    some, others = texts("a", 90), texts("b", 60)
    run = streamed(rule, limits, by_number(some), by_number(others))
    passes = {}
    for batch in islice(run.batches(PLAN, 0, 0), 200):
        for number, (row,) in batch:
            passes.setdefault(number, []).append(row["id"])
    assert len(passes) > 4
    for number in range(3):
        assert sorted(passes[number]) == usable(some + others)
    assert passes[0] != passes[1] != sorted(passes[1])
    # Not a block after the other: neighbours are of many shards.
    assert len({name[:-1] for name in passes[0][:16]}) > 4


def test_rows_that_are_left_out_are_counted_once(rule, limits, caplog):
    caplog.set_level(logging.INFO)
    run = streamed(rule, limits, by_number(texts()))
    batches = run.batches(PLAN, 0, 0)
    list(islice(batches, 8))
    run.go_on(saved(run, PLAN, 4))
    assert run.rows_per_pass is None and 0 < run.account.num_in < NUM_ROWS
    assert run.account.balances
    again = streamed(rule, limits, by_number(texts()))
    again.go_on(saved(run, PLAN, 4))
    list(islice(again.batches(PLAN, 4, 0), 200))
    for update in (104, 104):
        again.go_on(saved(again, PLAN, update))
    assert again.account.to_dict() == {
        "in": 300,
        "out": 257,
        "dropped": {"empty_reference": 43},
        "quarantined": {},
    }
    assert again.rows_per_pass == 257
    told = [message for message in caplog.messages if "one pass over the stream" in message]
    assert told == [f"one pass over the stream: {again.account}"]


def test_streams_are_mixed_by_weight_and_go_on_too(rule, limits):
    datasets = by_number(texts("a")), by_number(texts("b"))
    run = streamed(rule, limits, *datasets, weights=[3.0, 1.0])
    whole = ids(run.batches(PLAN, 0, 0), 100)
    assert 250 <= sum(name.startswith("a") for name in names(whole)) <= 350
    places = saved(run, PLAN, 40)
    again = streamed(rule, limits, *datasets, weights=[3.0, 1.0])
    again.go_on(places)
    assert ids(again.batches(PLAN, 40, 0), 20) == whole[80:]


def test_a_stream_with_nothing_to_learn_from_ends_in_an_error(rule, limits):
    reads = []
    nothing = [{"id": str(i), "text": None} for i in range(40)]
    run = streamed(rule, limits, by_number(nothing, reads))
    with pytest.raises(ValueError, match="no row to learn from"):
        next(run.batches(PLAN, 0, 0))
    assert sorted(reads) == sorted(row["id"] for row in nothing)  # each once


def test_rows_without_ids_are_named_by_shard_and_number(rule, limits):
    rows = Dataset.from_list([{"text": "ねこ"}] * 60).to_iterable_dataset(num_shards=6)
    run = streamed(rule, limits, rows)
    found = names(ids(run.batches(BatchPlan(60, 1, 1), 0, 0), 1))
    assert len(set(found)) >= 40  # of the first pass, and some of the next
    assert "row-00003-000000007" in found


# --- packed ---------------------------------------------------------------------------------------


def utterances(num_rows=120):
    return Dataset.from_list(
        [
            {
                schema.ID: f"r{i:03}",
                schema.TEXT: "ねこ",
                schema.DURATION: 0.5 + i % 3,
                schema.RECORDING_ID: f"talk{i // 20}" if i < 80 else None,
                schema.SPEAKER_ID: None,
            }
            for i in range(num_rows)
        ]
    ).to_iterable_dataset(num_shards=6)


def test_a_packed_stream_is_shared_and_goes_on_at_its_place(rule, limits):
    packing = Packing(Layout(16_000, 4 * 16_000), rule, 64)

    def run():
        return streamed(rule, limits, utterances(), packing=packing)

    first = run()
    whole = ids(first.batches(BatchPlan(4, 1, 1), 0, 0), 40)
    assert any(len(window) > 1 for batch in whole for window in batch)
    once = names(whole)[: len(whole)]
    assert len(set(once)) == len(once)
    for update in (5, 12, 33):
        again = run()
        again.go_on(saved(first, BatchPlan(4, 1, 1), update) if update == 33 else [])
        batches = again.batches(BatchPlan(4, 1, 1), update, 0)
        assert ids(batches, 3) == whole[update : update + 3]
    halves = [ids(run().batches(BatchPlan(2, 1, 2), 0, process), 40) for process in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert sorted(batch) == sorted(window for part in parts for window in part)


def test_every_pass_of_a_packed_stream_has_every_row_once(rule, limits):
    packing = Packing(Layout(16_000, 4 * 16_000), rule, 64)
    run = streamed(rule, limits, utterances(), packing=packing)
    found = [name for name in names(ids(run.batches(BatchPlan(1, 1, 1), 0, 0), 200))]
    counts = Counter(found)
    assert len(counts) == 120 and max(counts.values()) - min(counts.values()) <= 2
