from dataclasses import replace

import pytest

from distillery.evaluation.comparison import compare, ratio, table_rows, tally
from distillery.evaluation.results import Prediction, Result
from distillery.text.normalizers import normalizer_for

JAPANESE = normalizer_for("ja")


def predictions(texts):
    return [
        Prediction(row_id, JAPANESE(said), JAPANESE(found), said, found)
        for row_id, (said, found) in texts.items()
    ]


OURS = predictions({"a": ("ねこ。", "ねこ"), "b": ("いぬ", "いね"), "x": ("とり", "とり")})
THEIRS = predictions({"b": ("いぬ", "さる"), "c": ("みず", "みず"), "a": ("ねこ。", "ねこ。")})


def test_tally_is_of_normalised_and_raw_texts():
    scores = tally(OURS[:2], JAPANESE).scores()
    assert (scores.cer_norm, scores.cer_raw) == (25.0, 40.0)


def test_rows_are_joined_by_id():
    found = compare(OURS, THEIRS, JAPANESE)
    assert found["num_rows"] == 2
    # Of the four characters of a and b, ours are wrong in one, theirs in two.
    assert found["error_ratio"]["cer_norm"] == 0.5
    assert found["error_difference"]["cer_norm"] == -25.0
    assert found["error_ratio"]["wer_norm"] == 1.0
    low, high = found["error_difference_ci"]["cer_norm"]
    assert -50 <= low < high <= 0


def test_what_the_baseline_was_normalised_by_does_not_matter():
    other = [row._replace(reference_norm="", prediction_norm="?") for row in THEIRS]
    assert compare(OURS, other, JAPANESE) == compare(OURS, THEIRS, JAPANESE)


def test_a_baseline_without_errors_has_no_ratio():
    right = predictions({"a": ("ねこ", "ねこ")})
    found = compare(right, right, JAPANESE)
    assert found["error_ratio"] == dict.fromkeys(found["error_ratio"])
    assert found["error_difference"]["cer_norm"] == 0.0


def test_nothing_in_common():
    with pytest.raises(ValueError, match="no row in common"):
        compare(OURS, THEIRS[1:2], JAPANESE)


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"), [(3.0, 2.0, 1.5), (0.0, 2.0, 0.0), (1, 0, None), (None, 1, None)]
)
def test_ratio(ours, theirs, wanted):
    assert ratio(ours, theirs) == wanted


def test_table_rows():
    found = {"model": "org/base", **compare(OURS, THEIRS, JAPANESE), "speed_ratio": 6.0}
    found["error_difference_ci"] = {"cer_norm": [-50.0, 0.04], "wer_norm": [0.0, 0.0]}
    rates = dict.fromkeys(("cer_norm", "wer_norm", "cer_raw", "wer_raw"), 1.0)
    what = {"form": "short_form", "model": "/models/mine", "dataset": "org/set"}
    result = Result.from_row({**what, **rates, "baselines": [found]})
    shown = {"/models/mine": "mine", "org/base": "org/base"}
    assert table_rows(result, shown) == [
        {
            **{"model": "mine", "baseline": "org/base", "dataset": "org/set"},
            **{"cer_norm ratio": 0.5, "wer_norm ratio": 1.0},
            **{"cer_norm difference": "-25.0 [-50.0, +0.0]"},
            **{"wer_norm difference": "+0.0 [+0.0, +0.0]", "speed ratio": 6.0},
        }
    ]
    assert table_rows(replace(result, baselines=[]), shown) == []
