import random
from itertools import pairwise

import pytest

from distillery.data.packing import Fill, Layout, Utterance, alone, best_fit, fill, in_order

RATE = 16_000
STEP = RATE // 50  # samples from one timestamp to the next
LAYOUT = Layout(RATE, 30 * RATE)
TIGHT = Layout(RATE, 30 * RATE, pause_s=0.0)


def drawn(seed: int, count: int = 300) -> list[Utterance[int]]:
    """Draw utterances of up to 33 s, of a few recordings, of which neighbours often share one."""
    rng = random.Random(seed)
    longest_s = rng.choice([5, 12, 33])
    group = 0
    utterances = []
    for number in range(count):
        group += rng.random() < 0.1
        num_samples = rng.randint(1, longest_s * RATE)
        utterances.append(Utterance(number, num_samples, group % 7))
    return utterances


def numbers(windows) -> list[int]:
    return [part.row for window in windows for part in window.parts]


def seconds(*durations: float, group=None) -> list[Utterance[int]]:
    return [Utterance(i, round(d * RATE), group) for i, d in enumerate(durations)]


def rows(windows) -> list[list[int]]:
    return [[part.row for part in window.parts] for window in windows]


@pytest.mark.parametrize("pack", [alone, in_order, best_fit])
@pytest.mark.parametrize("seed", range(20))
def test_every_utterance_is_in_one_window_that_is_not_too_long(pack, seed):
    utterances = drawn(seed)
    windows = list(pack(utterances, LAYOUT))
    assert sorted(numbers(windows)) == list(range(len(utterances)))
    for window in windows:
        assert window.num_samples <= LAYOUT.window_samples or len(window.parts) == 1
        parts = [utterances[part.row] for part in window.parts]
        assert [part.num_samples for part in window.parts] == [u.num_samples for u in parts]
        assert len({utterance.group for utterance in parts}) == 1


@pytest.mark.parametrize("pack", [in_order, best_fit])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("layout", [LAYOUT, TIGHT])
def test_parts_begin_where_a_timestamp_can_and_a_pause_apart(pack, seed, layout):
    pause = round(layout.pause_s * RATE)
    for window in pack(drawn(seed), layout):
        assert window.parts[0].start == 0
        for before, part in pairwise(window.parts):
            assert part.start % STEP == 0
            assert pause <= part.start - before.end < pause + STEP


@pytest.mark.parametrize("seed", range(20))
def test_in_order_keeps_the_order_and_closes_no_window_too_early(seed):
    utterances = drawn(seed)
    windows = list(in_order(utterances, LAYOUT))
    assert numbers(windows) == list(range(len(utterances)))
    for window, following in pairwise(windows):
        last, first = utterances[window.parts[-1].row], utterances[following.parts[0].row]
        if last.group == first.group:
            parts = [utterances[part.row] for part in window.parts]
            assert LAYOUT.window([*parts, first]).num_samples > LAYOUT.window_samples - STEP


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pack", [alone, in_order, best_fit])
def test_windows_depend_on_the_utterances_alone(pack, seed):
    utterances = drawn(seed)
    assert list(pack(utterances, LAYOUT)) == list(pack(iter(utterances), LAYOUT))


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_is_at_least_as_full_as_order_allows(seed):
    utterances = [Utterance(u.row, u.num_samples) for u in drawn(seed)]
    ordered = fill(in_order(utterances, LAYOUT), LAYOUT)
    fitted = fill(best_fit(utterances, LAYOUT), LAYOUT)
    assert fitted.num_utterances == ordered.num_utterances == len(utterances)
    assert fitted.share >= ordered.share


def test_best_fit_fills_windows_with_short_clips_to_nearly_all():
    rng = random.Random(0)
    utterances = [Utterance(i, round(rng.uniform(2, 10) * RATE)) for i in range(1000)]
    assert fill(best_fit(utterances, TIGHT), TIGHT).share > 0.97
    assert 0.85 < fill(in_order(utterances, TIGHT), TIGHT).share < 0.92


@pytest.mark.parametrize("most_waiting", [1, 5, 64])
def test_best_fit_holds_no_more_than_may_wait(most_waiting):
    read = 0

    def counted():
        nonlocal read
        for utterance in drawn(3):
            read += 1
            yield utterance

    given = 0
    for window in best_fit(counted(), LAYOUT, most_waiting):
        assert read - given <= most_waiting
        given += len(window.parts)
    assert given == read == 300


def test_in_order_holds_one_window_and_the_next_utterance():
    read = given = 0

    def counted():
        nonlocal read
        for utterance in seconds(*[7.0] * 50):
            read += 1
            yield utterance

    for window in in_order(counted(), LAYOUT):
        given += len(window.parts)
        assert read - given <= 1
    assert given == 50


def test_a_window_ends_with_its_recording_and_speaker():
    first = seconds(5, 5, 5, group=("a", "x"))
    second = [Utterance(number + 3, 5 * RATE, ("a", "y")) for number in range(2)]
    assert rows(in_order([*first, *second], LAYOUT)) == [[0, 1, 2], [3, 4]]
    assert rows(best_fit([*first, *second], LAYOUT)) == [[0, 1, 2], [3, 4]]


def test_what_is_longer_than_a_window_stands_alone():
    utterances = seconds(4, 31, 5, 6)
    assert rows(in_order(utterances, LAYOUT)) == [[0], [1], [2, 3]]
    assert rows(best_fit(utterances, LAYOUT)) == [[1], [3, 2, 0]]


def test_a_window_may_be_full_to_its_last_sample():
    assert rows(in_order(seconds(10, 20, 1), TIGHT)) == [[0, 1], [2]]
    assert rows(best_fit(seconds(10, 20, 1), TIGHT)) == [[1, 0], [2]]
    assert rows(in_order(seconds(10, 19.5, 1), LAYOUT)) == [[0, 1], [2]]
    assert rows(in_order(seconds(10, 19.82, 1), LAYOUT)) == [[0], [1, 2]]


def test_best_fit_takes_the_longest_that_fits_and_of_equals_the_first():
    assert rows(best_fit(seconds(20, 3, 9, 10, 9), TIGHT)) == [[0, 3], [2, 4, 1]]


def test_chunks_that_are_packed_apart_cost_little():
    utterances = [Utterance(u.row, u.num_samples) for seed in range(4) for u in drawn(seed, 1000)]
    whole = fill(best_fit(utterances, LAYOUT), LAYOUT)
    chunks = [utterances[start : start + 1000] for start in range(0, len(utterances), 1000)]
    parts = sum((fill(best_fit(chunk, LAYOUT), LAYOUT) for chunk in chunks), Fill())
    assert parts.num_utterances == whole.num_utterances
    assert parts.num_windows - whole.num_windows <= 0.02 * whole.num_windows


def test_fill_counts_windows_and_speech():
    full = fill(in_order(seconds(10, 10, 25), LAYOUT), LAYOUT)
    assert full == Fill(num_utterances=3, num_windows=2, speech_s=45.0, window_s=60.0)
    assert (full.share, full.windows_saved) == (0.75, 1)
    assert (full + full).windows_saved == 2
    assert full.to_dict()["fill"] == 0.75
    assert str(full) == "3 utterances in 2 windows, 1 windows saved; 75% of each is speech"
    assert Fill().share == 0


def test_nothing_makes_no_window():
    for pack in (alone, in_order, best_fit):
        assert list(pack([], LAYOUT)) == []
