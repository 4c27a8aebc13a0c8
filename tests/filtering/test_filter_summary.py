import json

import pytest

from distillery.filtering import filter_report
from distillery.filtering.filter_summary import BIN_ENDS, MOST_EXAMPLES, FilterSummary
from distillery.filtering.filters import Verdict
from distillery.filtering.row_filter import JudgedRow
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.text.normalizers import normalizer_for


def judged(row_id, reason=None, wer=None, cer=None, seconds=2.0):
    verdict = Verdict(reason, wer, cer)
    return JudgedRow(row_id, f"reference {row_id}", f"text {row_id}", seconds, [1], verdict)


def many(num):
    """Rows of every kind: rates rise with the number; those above 10 % are dropped."""
    return [
        judged(f"{i:03d}", "error_rate" if i > 10 else None, wer=float(i), cer=i / 2, seconds=i % 7)
        for i in range(num)
    ] + [judged("short", "too_short", seconds=0.1), judged("unknown", seconds=None)]


def test_hours_and_bins_add_up():
    summary = FilterSummary.of(many(120), "wer")
    kept = sum(i % 7 for i in range(11))
    assert summary.seconds == pytest.approx(
        {"kept": kept, "error_rate": sum(i % 7 for i in range(11, 120)), "too_short": 0.1}
    )
    assert summary.unknown == {"kept": 1}
    assert sum(summary.bins["wer"]["kept"]) == 11  # not the one without a rate
    assert sum(summary.bins["wer"]["dropped"]) == 109
    assert sum(summary.bins["duration_s"]["dropped"]) == 110
    wer = dict(zip((*BIN_ENDS["wer"], "over"), summary.bins["wer"]["dropped"], strict=True))
    assert (wer[10], wer[15], wer[100], wer["over"]) == (0, 5, 5, 19)
    kept_wer = dict(zip((*BIN_ENDS["wer"], "over"), summary.bins["wer"]["kept"], strict=True))
    assert (kept_wer[0], kept_wer[5], kept_wer[10]) == (1, 5, 5)


def test_examples_are_those_nearest_to_the_threshold():
    summary = FilterSummary.of(many(120), "wer")
    assert [e.row_id for e in summary.worst_kept] == [f"{i:03d}" for i in range(10, 0, -1)]
    assert [e.row_id for e in summary.best_dropped] == [
        f"{i:03d}" for i in range(11, 11 + MOST_EXAMPLES)
    ]


def test_ties_are_decided_by_the_other_rate():
    rows = [judged(str(cer), "error_rate", 100.0, cer) for cer in (30.0, 10.0, 20.0)]
    summary = FilterSummary.of(rows, "wer")
    assert [e.cer for e in summary.best_dropped] == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("size", [1, 7, 50])
def test_the_sum_of_shards_is_the_summary_of_all(size):
    rows = many(120)
    total = FilterSummary("cer")
    for start in range(0, len(rows), size):
        part = FilterSummary.of(rows[start : start + size], "cer")
        total += FilterSummary.from_dict(json.loads(json.dumps(part.to_dict())))
    whole = FilterSummary.of(rows, "cer")
    assert total.seconds == pytest.approx(whole.seconds)
    assert (total.bins, total.unknown) == (whole.bins, whole.unknown)
    assert (total.worst_kept, total.best_dropped) == (whole.worst_kept, whole.best_dropped)


def test_a_report_without_comparisons_and_hours(tmp_path):
    rows = [judged("a", seconds=None), judged("b", "truncated", seconds=None)]
    summary, ledger = FilterSummary.of(rows, "cer"), Ledger(2, 1)
    ledger.dropped["truncated"] = 1
    filter_report.write(Outputs(tmp_path), summary, ledger, [], normalizer_for("ja"))
    report = (tmp_path / filter_report.REPORT).read_text("utf-8")
    assert "| truncated | 1 | 0.00 | – |" in report
    assert "all as by default" in report
    assert "unknown duration, and in no hours: kept: 1 rows" in report
    assert "png" not in report and not (tmp_path / filter_report.FIGURE).exists()


def test_rows_without_sound_are_named(tmp_path):
    ledger = Ledger(2, 1)
    ledger.quarantined["audio"] = 1
    summary = FilterSummary.of([judged("a"), judged("b")], "cer")
    filter_report.write(
        Outputs(tmp_path), summary, ledger, ["--vectorize True"], normalizer_for("ja")
    )
    report = (tmp_path / filter_report.REPORT).read_text("utf-8")
    assert "| kept | 2 |" in report and "without sound that can be read: 1 rows" in report


def test_without_matplotlib_there_is_a_report_and_a_word(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(filter_report.importlib.util, "find_spec", lambda name: None)
    summary = FilterSummary.of(many(20), "wer")
    filter_report.write(Outputs(tmp_path), summary, Ledger(22, 12), [], normalizer_for("en"))
    assert "filter_report.png was not drawn: pip install matplotlib" in caplog.text
    assert "png" not in (tmp_path / filter_report.REPORT).read_text("utf-8")
