"""Ids of a stream, of which none may come twice."""

import random

import pytest

from distillery.data.ids import SeenIds


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_set(seed):
    draw = random.Random(seed)
    seen, ids = set(), SeenIds()
    for _ in range(300):
        batch = [f"clip-{draw.randrange(20_000)}" for _ in range(draw.randrange(1, 9))]
        twice = next((x for i, x in enumerate(batch) if x in seen or x in batch[:i]), None)
        if twice is None:
            seen.update(batch)
        assert ids.add(batch) == twice
    assert len(seen) > 500


def test_what_comes_late_is_found_too():
    ids = SeenIds()
    for start in range(0, 50_000, 100):
        assert ids.add([str(number) for number in range(start, start + 100)]) is None
    assert len(ids._runs) < 20
    assert ids.add(["new", "31415", "1"]) == "31415"


def test_texts_of_any_sort():
    ids = SeenIds()
    assert ids.add(["", "\ud800", "a\0", "a"]) is None
    assert ids.add(["a\0"]) == "a\0"
