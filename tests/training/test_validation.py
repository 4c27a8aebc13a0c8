"""What a model is worth while it is trained; whole runs are in tests/stages."""

import pytest

from distillery.text.normalizers import normalizer_for
from distillery.training.validation import EvalScores, error_rates_of


def test_error_rates_are_normalised_percent():
    pairs = [("ねこ。", "ねこ"), ("いぬとさかな", "いぬとさかに"), ("", "うるさい")]
    rates, num_scored = error_rates_of(pairs, normalizer_for("ja"))
    assert rates == {"wer": pytest.approx(50), "cer": pytest.approx(100 / 8)}
    assert num_scored == 2
    assert error_rates_of([], normalizer_for("ja")) == ({}, 0)
    assert error_rates_of([("", "x")], normalizer_for("ja")) == ({}, 0)


LOSSES = {"loss": 1.25, "ce": 1.5, "kl": 0.125}


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        (
            EvalScores(LOSSES, 0, {"wer": 14.549, "cer": 11.983471074380166}, 200),
            "WER 14.5 %, CER 12.0 % over 200 clips; loss 1.2500, CE 1.5000, KL 0.1250",
        ),
        (EvalScores(LOSSES, 0, {}, 0), "loss 1.2500, CE 1.5000, KL 0.1250"),
        (
            EvalScores(LOSSES, 3, {}, 0),
            "loss 1.2500, CE 1.5000, KL 0.1250; 3 clips cannot be used",
        ),
    ],
)
def test_scores_in_words(scores, wanted):
    assert str(scores) == wanted
