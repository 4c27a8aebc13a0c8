import random
from dataclasses import asdict

import pytest
from tiny import tiny_tokenizer

from distillery.text.timestamps import (
    Passage,
    Segment,
    matches,
    passages,
    score_timestamps,
    segments_of_markup,
    shared_s,
    union,
)
from distillery.text.tokens import SpecialTokens, split_at_timestamps

TOKENS = SpecialTokens.from_tokenizer(tiny_tokenizer(), True)


def said(*parts):
    """Return ids: a float is a timestamp, an int a token."""
    return [TOKENS.timestamp(part) if isinstance(part, float) else part for part in parts]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        (said(0.5, 7, 8, 1.5), [Passage(0.5, 1.5, (7, 8))]),
        (said(0.0, 7, 1.0, 1.0, 8, 2.0), [Passage(0.0, 1.0, (7,)), Passage(1.0, 2.0, (8,))]),
        (said(0.0, 7, 1.0, 1.5), [Passage(0.0, 1.0, (7,)), Passage(1.5, None, ())]),
        (said(0.0, 7, 1.0, 1.5, 8), [Passage(0.0, 1.0, (7,)), Passage(1.5, None, (8,))]),
        (said(0.0), [Passage(0.0, None, ())]),
        (said(0.0, 7), [Passage(0.0, None, (7,))]),
        (said(7, 8), [Passage(0.0, None, (7, 8))]),
        (said(7, 1.0), [Passage(0.0, 1.0, (7,))]),
        # One timestamp for an end and the next start.
        (said(0.0, 7, 1.0, 8, 2.0), [Passage(0.0, 1.0, (7,)), Passage(1.0, 2.0, (8,))]),
        (said(0.0, 7, 1.0, 8), [Passage(0.0, 1.0, (7,)), Passage(1.0, None, (8,))]),
        # A model that ends before it starts.
        (said(2.0, 7, 1.0), [Passage(2.0, 2.0, (7,))]),
    ],
)
def test_passages_of_a_window(ids, expected):
    assert passages(ids, TOKENS) == expected


def test_segments_of_markup():
    text = "<|0.00|> Hello.<|1.50|><|2.00|> You there?<|30.02|>"
    assert split_at_timestamps(text)[0] == (0.0, " Hello.")
    assert segments_of_markup(text) == [
        Segment(0.0, 1.5, "Hello."),
        Segment(2.0, 30.02, "You there?"),
    ]
    assert segments_of_markup("no times") == []
    assert segments_of_markup("<|ja|>ねこ<|endoftext|>") == []
    assert segments_of_markup("<|1.00|>cut off") == []
    assert segments_of_markup("<|0.00|>ねこ<|1.00|><|1.50|>") == [Segment(0.0, 1.0, "ねこ")]


def test_union_and_shared_time():
    segments = [Segment(4, 5, ""), Segment(0, 2, ""), Segment(1, 3, ""), Segment(1, 1.5, "")]
    assert union(segments) == [(0, 3), (4, 5)]
    assert union([]) == []
    assert shared_s([(0, 3), (4, 5)], [(2, 4.5)]) == 1.5
    assert shared_s([(0, 1)], [(1, 2)]) == 0
    assert shared_s([], [(1, 2)]) == 0


def test_segments_match_where_each_shares_most_time_with_the_other():
    first, second, third = Segment(0, 2, "a"), Segment(3, 5, "b"), Segment(6, 7, "c")
    whole, late, lost = Segment(0.2, 4.5, "ab"), Segment(4.6, 5.5, "b"), Segment(9, 10, "x")
    assert matches([first, second, third], [lost, late, whole]) == [(first, whole)]
    assert matches([second, first], [first, second]) == [(first, first), (second, second)]
    assert matches([first], []) == matches([], [first]) == []


def test_scores():
    references = [[Segment(0.0, 2.0, "a"), Segment(3.0, 5.0, "b")], [Segment(1.0, 2.0, "c")]]
    predictions = [[Segment(0.5, 2.0, "a"), Segment(3.0, 6.0, "b")], []]
    assert asdict(score_timestamps(references, predictions)) == pytest.approx(
        {
            "num_reference_segments": 3,
            "num_predicted_segments": 2,
            "num_matched_segments": 2,
            "start_error_mean_s": 0.25,
            "start_error_median_s": 0.25,
            "end_error_mean_s": 0.5,
            "end_error_median_s": 0.5,
            "timestamp_coverage": 70.0,  # 3.5 of 5 s
            "timestamp_overlap": 100 * 3.5 / 6,
        }
    )


def test_equal_segments_score_perfectly():
    rng = random.Random(0)
    segments, time = [], 0.0
    for _ in range(300):
        time += rng.uniform(0, 2)
        segments.append(Segment(time, time + rng.uniform(0.1, 3), "x"))
        time = segments[-1].end
    found = score_timestamps([segments], [segments[::-1]])
    assert found.num_matched_segments == 300
    assert (found.start_error_mean_s, found.end_error_median_s) == (0.0, 0.0)
    assert found.timestamp_coverage == found.timestamp_overlap == pytest.approx(100.0)


def test_nothing_matched_has_no_errors():
    found = score_timestamps([[Segment(0, 1, "a")]], [[Segment(2, 3, "a")]])
    assert found.start_error_mean_s is found.end_error_median_s is None
    assert found.timestamp_coverage == found.timestamp_overlap == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="1 references do not fit 0 predictions"):
        score_timestamps([[]], [])
    with pytest.raises(ValueError, match="nothing to compare with"):
        score_timestamps([[], [Segment(1, 1, "a")]], [[], []])
