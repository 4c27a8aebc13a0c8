import numpy as np
import pytest

from distillery.text import bootstrap
from distillery.text.bootstrap import difference_intervals, rate_intervals


def counts(errors, lengths):
    """Return edits of utterances, all errors being substitutions."""
    errors, lengths = np.array(errors), np.array(lengths)
    nothing = np.zeros_like(errors)
    return np.stack([lengths - errors, errors, nothing, nothing], axis=1)


def drawn(num=400, seed=0, share=0.1):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 30, size=num)
    return counts(generator.binomial(lengths, share), lengths)


def plain_interval(table, seed=0):
    """Resample row by row, as the paper has it."""
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(bootstrap.NUM_DRAWS):
        hits, substitutions, deletions, insertions = table[
            generator.integers(len(table), size=len(table))
        ].sum(axis=0)
        errors = substitutions + deletions + insertions
        rates.append(100 * errors / (hits + substitutions + deletions))
    return [np.percentile(rates, 2.5), np.percentile(rates, 97.5)]


def test_equals_resampling_row_by_row():
    table = drawn()
    table[:, 3] = np.arange(len(table)) % 3
    found = rate_intervals({"cer": table, "wer": drawn(seed=1)})
    assert found["cer"] == pytest.approx(plain_interval(table))
    assert found["wer"] == pytest.approx(plain_interval(drawn(seed=1)))


def test_the_interval_is_that_of_a_mean():
    # 10 % of utterances of length 1 are wrong: the standard error is sqrt(0.1 * 0.9 / 1000).
    low, high = rate_intervals({"wer": counts([1] * 100 + [0] * 900, [1] * 1000)})["wer"]
    error = 100 * np.sqrt(0.09 / 1000)
    assert low == pytest.approx(10 - 1.96 * error, abs=0.25)
    assert high == pytest.approx(10 + 1.96 * error, abs=0.25)


def test_the_seed_decides():
    first, again, other = (rate_intervals({"cer": drawn()}, seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(("errors", "rate"), [([0, 0], 0.0), ([4, 4], 100.0)])
def test_utterances_that_are_all_alike_leave_no_doubt(errors, rate):
    assert rate_intervals({"cer": counts(errors, [4, 4])}) == {"cer": [rate, rate]}


def test_pairing_narrows_the_interval():
    hard = drawn(share=0.2)
    easier = hard.copy()
    better = np.arange(len(hard)) % 25 == 0
    easier[better, 0] += easier[better, 1]
    easier[better, 1] = 0
    (low, high) = difference_intervals({"cer": easier}, {"cer": hard})["cer"]
    assert low < high < 0  # certainly better
    own, theirs = rate_intervals({"cer": easier})["cer"], rate_intervals({"cer": hard})["cer"]
    assert own[1] > theirs[0]  # which the two intervals alone would not tell


def test_a_model_does_not_differ_from_itself():
    assert difference_intervals({"cer": drawn()}, {"cer": drawn()}) == {"cer": [0.0, 0.0]}


def test_other_utterances_cannot_be_compared():
    with pytest.raises(ValueError, match=r"same utterances, got \[3, 4\]"):
        difference_intervals({"cer": drawn(3)}, {"cer": drawn(4)})
