import zlib

import numpy as np
import pytest

from distillery.evaluation.hallucinations import Hallucinations, in_gaps, in_silence, loops
from distillery.text.timestamps import Segment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("ねこがみずをのむ。", []),
        ("はははは", []),  # one laughs
        ("いえいえいえいえ", []),  # four times, but short
        ("ご視聴ありがとうご視聴ありがとうご視聴ありがとう", []),  # three times
        ("ねこ" + "いえ" * 6 + "ねこ", ["いえ" * 6]),
        ("あ" * 12, ["あ" * 12]),
        ("Thank you. " * 4, ["Thank you. " * 4]),
        ("no no no no no no yes yes yes yes", ["no no no no no no "]),
        ("a\nb\n" * 4, ["a\nb\n" * 4]),
    ],
)
def test_loops(text, expected):
    assert loops(text) == expected


def test_loops_of_a_long_text_are_found_in_time():
    text = "".join(chr(0x4E00 + i * i % 20_000) for i in range(100_000))
    assert loops(text + "ねこ" * 10) == ["ねこ" * 10]


SILENT = np.repeat([False, True], 100)  # two seconds of speech, two of silence


def test_text_in_silence():
    heard, border, unheard = Segment(0, 2, "a"), Segment(1.7, 4, "b"), Segment(1.9, 4, "c")
    empty, behind = Segment(3, 4, " "), Segment(4.5, 5, "e")
    found = in_silence([heard, border, unheard, empty, behind], SILENT)
    assert found == [unheard, behind]


def test_text_in_gaps_of_the_reference():
    references = [Segment(0, 2, "a"), Segment(3, 4, "b")]
    heard, gap, long, point = (
        Segment(0, 2, "a"),
        Segment(2.0, 3.05, "x"),
        Segment(2.0, 3.2, "y"),
        Segment(2.5, 2.5, "z"),
    )
    assert in_gaps([heard, gap, long, point, Segment(2, 3, "")], references) == [gap]
    assert in_gaps([heard], []) == [heard]


def test_counts_of_recordings_are_added():
    one = Hallucinations.of([Segment(3, 4, "いえ" * 6), Segment(0, 1, "a")], SILENT, None)
    assert one.max_compression_ratio == pytest.approx(
        36 / len(zlib.compress("いえいえいえいえいえいえ".encode()))
    )
    assert (one.num_loops, one.loop_characters) == (1, 12)
    assert (one.num_segments_in_silence, one.characters_in_silence) == (1, 12)
    assert one.num_segments_in_gaps is None
    other = Hallucinations.of([Segment(2, 3, "b")], SILENT, [Segment(0, 1, "a")])
    both = one + other
    assert both.num_segments_in_silence == 2
    assert both.num_segments_in_gaps == 1
    assert both.max_compression_ratio == one.max_compression_ratio
    assert (one + one).num_segments_in_gaps is None
    assert Hallucinations.of([], SILENT, []) == Hallucinations(0, 0, 0.0, 0, 0, 0)
