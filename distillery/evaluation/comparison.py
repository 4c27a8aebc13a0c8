"""Two models on the same rows: how many times the errors, how many times the speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from distillery.evaluation.results import Prediction, Result
from distillery.text.bootstrap import difference_intervals
from distillery.text.error_rates import RATES, Tally, count_errors
from distillery.text.normalizers import Normalizer


def tally(predictions: Sequence[Prediction], normalizer: Normalizer) -> Tally:
    """Count the edits of predictions whose normalised texts are this normaliser's."""
    return count_errors(
        [(row.reference_norm, row.prediction_norm) for row in predictions],
        [(normalizer.raw(r.reference_raw), normalizer.raw(r.prediction_raw)) for r in predictions],
    )


def compare(
    ours: Sequence[Prediction], theirs: Sequence[Prediction], normalizer: Normalizer
) -> dict[str, Any]:
    """Compare a model with a baseline on the rows that both transcribed, joined by id.

    Returns:
        num_rows; and for each rate: error_ratio, ours / theirs (None where theirs is 0);
        error_difference, ours - theirs in points; error_difference_ci, its 95 % interval.

    Raises:
        ValueError: they have no row in common.
    """
    by_id = {row.id: row for row in theirs}
    pairs = [(row, by_id[row.id]) for row in ours if row.id in by_id]
    if not pairs:
        raise ValueError("the model and its baseline have no row in common")
    model = tally([our for our, _ in pairs], normalizer)
    # With our references and normaliser: those in the baseline's file may differ.
    baseline = tally(
        [_with_prediction_of(their, our, normalizer) for our, their in pairs], normalizer
    )
    our_rates, their_rates = vars(model.scores()), vars(baseline.scores())
    return {
        "num_rows": len(pairs),
        "error_ratio": {name: ratio(our_rates[name], their_rates[name]) for name in RATES},
        "error_difference": {name: our_rates[name] - their_rates[name] for name in RATES},
        "error_difference_ci": difference_intervals(model.counts, baseline.counts),
    }


def _with_prediction_of(theirs: Prediction, ours: Prediction, normalizer: Normalizer) -> Prediction:
    """Return our row with their prediction."""
    text = theirs.prediction_raw
    return ours._replace(prediction_norm=normalizer(text), prediction_raw=text)


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Return ours / theirs; None where one is unknown, or theirs is 0."""
    return ours / theirs if ours is not None and theirs else None


def table_rows(result: Result, shown: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row of a table for each baseline of a result.

    Args:
        result: of the model.
        shown: the names to print, by the models' full names.
    """
    return [
        {
            "model": shown[result.model],
            "baseline": shown.get(baseline["model"], baseline["model"]),
            "dataset": result.dataset,
            **{f"{name} ratio": baseline["error_ratio"][name] for name in ("cer_norm", "wer_norm")},
            **{f"{name} difference": _with_interval(baseline, name) for name in RATES[:2]},
            "speed ratio": baseline["speed_ratio"],
        }
        for baseline in result.baselines
    ]


def _with_interval(baseline: Mapping[str, Any], name: str) -> str:
    low, high = baseline["error_difference_ci"][name]
    return f"{baseline['error_difference'][name]:+.1f} [{low:+.1f}, {high:+.1f}]"
