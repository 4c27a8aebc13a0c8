import csv
import dataclasses

import jiwer
import pytest
from tiny import SHARED
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from distillery.filtering import filters
from distillery.filtering.filters import FilterReason, TranscriptFilter, is_all_capitals
from distillery.text.compression import compression_ratio
from distillery.text.normalizers import Normalizer, normalizer_for

JAPANESE = normalizer_for("ja")
ENGLISH = normalizer_for("en")
ROW = {"text": "a b c d e f g h i j", "duration": 3.0, "truncated": False}


def reason(limits, transcript="a b c d e f g h i j", num_label_tokens=12, **row):
    return limits.reason({**ROW, **row}, transcript, num_label_tokens)


def test_a_good_row_passes_every_limit():
    limits = TranscriptFilter(
        ENGLISH,
        wer_threshold=0.0,
        cer_threshold=0.0,
        min_duration_s=3.0,
        max_duration_s=3.0,
        max_label_length=12,
        min_avg_logprob=-1.0,
        max_compression_ratio=2.4,
    )
    assert reason(limits, avg_logprob=-1.0) is None
    assert reason(limits, avg_logprob=None, duration=None) is None


def test_lengths():
    limits = TranscriptFilter(
        ENGLISH, min_duration_s=1.0, max_duration_s=30.0, max_label_length=448
    )
    assert reason(limits, duration=0.99) == "too_short"
    assert reason(limits, duration=30.01) == "too_long"
    assert reason(limits, num_label_tokens=448) is None
    assert reason(limits, num_label_tokens=449) == "too_long_labels"


def test_truncated():
    assert reason(TranscriptFilter(ENGLISH), truncated=True) == "truncated"
    assert reason(TranscriptFilter(ENGLISH, drop_truncated=False), truncated=True) is None


def test_wer_threshold_is_the_last_rate_that_passes():
    one_word_wrong = "a b c d e f g h i x"
    assert reason(TranscriptFilter(ENGLISH, wer_threshold=10.0), transcript=one_word_wrong) is None
    strict = TranscriptFilter(ENGLISH, wer_threshold=9.99)
    assert reason(strict, transcript=one_word_wrong) == "error_rate"
    assert reason(strict, transcript="A, b, c, d, e, f, g, h, i, j.") is None


def test_either_threshold_drops():
    row = {"text": "今日は晴れです", "transcript": "今日は、雨れです"}  # WER 100, CER 14.3
    assert reason(TranscriptFilter(JAPANESE, wer_threshold=10.0), **row) == "error_rate"
    assert reason(TranscriptFilter(JAPANESE, cer_threshold=15.0), **row) is None
    assert reason(TranscriptFilter(JAPANESE, cer_threshold=14.0), **row) == "error_rate"
    both = TranscriptFilter(JAPANESE, wer_threshold=10.0, cer_threshold=15.0)
    assert reason(both, **row) == "error_rate"
    both = TranscriptFilter(JAPANESE, wer_threshold=100.0, cer_threshold=14.0)
    assert reason(both, **row) == "error_rate"


def test_markup_does_not_count_as_text():
    limits = TranscriptFilter(JAPANESE, cer_threshold=0.0)
    assert reason(limits, text="朝です。", transcript="<|0.00|>朝です<|1.20|>") is None
    assert reason(limits, text="", transcript="<|0.00|><|1.20|>") is None


def test_references_are_not_looked_at_without_a_threshold():
    for reference in (None, "", "something else"):
        assert reason(TranscriptFilter(ENGLISH), text=reference) is None
    assert reason(TranscriptFilter(ENGLISH), transcript="") is None


@pytest.mark.parametrize("threshold", ["wer_threshold", "cer_threshold"])
def test_empty_texts(threshold):
    limits = TranscriptFilter(ENGLISH, **{threshold: 10.0})
    assert reason(limits, text=None) == "empty_reference"
    assert reason(limits, text=None, transcript="") == "empty_reference"
    assert reason(limits, text="!?") == "empty_reference"
    assert reason(limits, text="!?", transcript="") is None
    assert reason(limits, text="", transcript="!") is None
    assert reason(limits, transcript="") == "empty_transcript"
    assert reason(limits, transcript="!?") == "empty_transcript"
    # However lax the threshold, there is nothing to hold the transcript against.
    lax = TranscriptFilter(ENGLISH, **{threshold: 1e9})
    assert reason(lax, text="") == "empty_reference"


def test_confidence():
    assert (
        reason(TranscriptFilter(ENGLISH, min_avg_logprob=-1.0), avg_logprob=-1.01) == "low_logprob"
    )
    looping = "<|0.00|>" + "ありがとう " * 40 + "<|9.00|>"
    limits = TranscriptFilter(ENGLISH, max_compression_ratio=2.4)
    assert reason(limits, transcript=looping) == "high_compression"
    assert reason(TranscriptFilter(ENGLISH), transcript=looping, avg_logprob=-9.0) is None


def test_a_stored_compression_ratio_is_read_and_not_computed_again(monkeypatch):
    limits = TranscriptFilter(ENGLISH, max_compression_ratio=2.4)
    assert reason(limits, compression_ratio=None) is None
    monkeypatch.setattr(filters, "compression_ratio", None)
    assert reason(limits, compression_ratio=2.4) is None
    assert reason(limits, compression_ratio=2.41) == "high_compression"


@pytest.mark.parametrize(
    "limits",
    [
        {"wer_threshold": 1.0},
        {"cer_threshold": 1.0},
        {"max_compression_ratio": 2.4},
        {"drop_all_capitals": True},
        {"scores_all": True},
    ],
)
def test_which_limits_read_the_text(limits):
    assert TranscriptFilter(ENGLISH, **limits).reads_text
    assert not TranscriptFilter(ENGLISH, max_label_length=9, min_avg_logprob=-1.0).reads_text


def test_first_reason_counts():
    limits = TranscriptFilter(ENGLISH, wer_threshold=0.0, min_duration_s=4.0, max_label_length=1)
    assert reason(limits, truncated=True, transcript="x") == "truncated"
    assert reason(limits, transcript="x") == "too_short"
    assert reason(limits, transcript="x", duration=5.0) == "too_long_labels"


def test_normaliser_runs_once_per_text():
    seen = []

    def record(text):
        seen.append(text)
        return text

    limits = TranscriptFilter(Normalizer("recorded", (record,)), wer_threshold=0, cer_threshold=0)
    filters._normalized.cache_clear()
    for _ in range(3):
        reason(limits, text="yes", transcript="no")
    reason(limits, text="no", transcript="no")
    assert seen == ["yes", "no"]


def test_memory_keeps_normalisers_apart():
    row = {"text": "colour", "transcript": "color"}
    plain = TranscriptFilter(normalizer_for("en", english_spelling={"x": "y"}), wer_threshold=0.0)
    american = TranscriptFilter(
        normalizer_for("en", english_spelling={"colour": "color"}), wer_threshold=0.0
    )
    assert plain.normalizer.id == american.normalizer.id
    assert reason(plain, **row) == "error_rate"
    assert reason(american, **row) is None
    assert reason(plain, **row) == "error_rate"


# What kotoba-whisper's filter makes of Japanese pairs at its threshold of 10 %. Its normaliser puts
# a space in place of punctuation, so that a comma which only one side has cuts a word in two.
KOTOBA_VERDICTS = [
    ("今日は雨です。", "今日は雨です。", True),
    ("今日は雨です。", "今日は雨です", True),
    ("「今日は雨です」", "今日は雨です。", True),
    ("１０時です", "10時です。", True),
    ("ＮＨＫです", "nhkです", True),
    ("今日は(笑)雨です", "今日は雨です", True),
    ("今日は、雨です。", "今日は、雨です。", True),
    ("今日は、雨です。", "今日は 雨です。", True),
    ("今日は、雨です。", "今日は雨です。", False),  # WER 100
    ("今日は雨です。", "今日は、雨です。", False),  # WER 200
    ("今日は雨です。明日も", "今日は雨です明日も", False),
    ("今日は雨です", "今日は雪です", False),
    (
        "一、二、三、四、五、六、七、八、九、十",
        "一、二、三、四、五、六、七、八、九、王",
        False,
    ),  # 10
    ("一、二、三、四、五、六、七、八、九、十、百", "一 二 三 四 五 六 七 八 九 十 千", True),  # 9.1
    ("今日は雨です", "", False),
    ("今日は雨です", "。", False),
    ("", "", False),
    ("。", "。", False),
    ("。", "", False),
    ("", "今日は雨です", False),
    (None, "今日は雨です", False),
]


def kotoba_keeps(reference, transcript, threshold=10.0):
    """The rule of its script, in words of our own, with the libraries that it is made of."""
    normalizer = BasicTextNormalizer()
    if reference is None or not normalizer(reference).strip():
        return False  # there, no rate can be computed
    rate = jiwer.wer(normalizer(reference), normalizer(transcript))
    return 100 * rate < threshold


def as_kotoba(threshold=10.0):
    normalizer = normalizer_for("ja", variant="kotoba")
    return TranscriptFilter(normalizer, wer_threshold=threshold, strict=True)


@pytest.mark.parametrize(("reference", "transcript", "is_kept"), KOTOBA_VERDICTS)
def test_verdicts_of_kotoba_whispers_filter(reference, transcript, is_kept):
    assert kotoba_keeps(reference, transcript) is is_kept
    found = as_kotoba().reason({"text": reference}, transcript, 9)
    assert (found is None) is is_kept


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent: it has the predictions")
@pytest.mark.parametrize("threshold", [10.0, 100.0])
def test_kotobas_verdicts_on_real_predictions(threshold):
    ours = as_kotoba(threshold)
    for path in sorted((SHARED / "data" / "kotoba_predictions").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                reference, prediction = row["reference_raw"], row["prediction_raw"]
                kept = ours.reason({"text": reference}, prediction, 9) is None
                assert kept == kotoba_keeps(reference, prediction, threshold), row["id"]


def test_strict_limits_drop_what_is_just_at_them():
    row = {"transcript": "a b c d e f g h i x"}  # WER 10, CER 5.3
    for limits, strict_reason in [
        ({"wer_threshold": 10.0}, "error_rate"),
        ({"cer_threshold": 100 / 19}, "error_rate"),
        ({"min_duration_s": 3.0}, "too_short"),
        ({"max_duration_s": 3.0}, "too_long"),
        ({"max_label_length": 12}, None),  # there, too, the longest that passes
    ]:
        assert reason(TranscriptFilter(ENGLISH, **limits), **row) is None
        assert reason(TranscriptFilter(ENGLISH, **limits, strict=True), **row) == strict_reason


def test_strict_limits_drop_silence_that_is_labelled_as_silence():
    for text, transcript in [("", ""), ("!?", "!"), ("", "?")]:
        kept = TranscriptFilter(ENGLISH, wer_threshold=10.0)
        assert reason(kept, text=text, transcript=transcript) is None
        strict = TranscriptFilter(ENGLISH, wer_threshold=10.0, strict=True)
        assert reason(strict, text=text, transcript=transcript) == "empty_reference"


def test_all_capitals():
    for text in ("HELLO THERE", "I'M 30, OK?", "ПРИВЕТ"):
        assert is_all_capitals(text)
    for text in ("", "...", "30", "Hello", "HELLO there", "今日は", "NHKです", "नमस्ते"):
        assert not is_all_capitals(text)
    shouted = {"transcript": "<|0.00|> A B C D E F G H I J<|1.00|>"}
    assert reason(TranscriptFilter(ENGLISH, drop_all_capitals=True), **shouted) == "all_capitals"
    assert reason(TranscriptFilter(ENGLISH, wer_threshold=0.0), **shouted) is None


def test_a_verdict_has_the_rates_of_what_was_compared():
    row = {**ROW, "text": "a b c d"}
    for limits in ({"wer_threshold": 10.0}, {"cer_threshold": 50.0}, {"scores_all": True}):
        verdict = TranscriptFilter(ENGLISH, **limits).verdict(row, "a b c x", 9)
        assert (verdict.wer, verdict.cer) == pytest.approx((25.0, 100 / 7))
        assert (verdict.reason is None) is ("wer_threshold" not in limits)
    for change in ({"truncated": True}, {"text": None}, {"text": "!"}):
        limits = TranscriptFilter(ENGLISH, scores_all=True)
        verdict = limits.verdict({**row, **change}, "a b c x", 9)
        assert verdict.wer is verdict.cer is None


def test_filter_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TranscriptFilter(ENGLISH).wer_threshold = 5.0


def test_reasons_are_distinct_strings():
    reasons = [value for name, value in vars(FilterReason).items() if name.isupper()]
    assert len(reasons) == len(set(reasons)) == 12
    assert all(isinstance(value, str) for value in reasons)


def test_compression_ratio():
    assert compression_ratio("") == 0.0
    assert compression_ratio("abc") == pytest.approx(3 / 11)
    assert compression_ratio("あ") == pytest.approx(3 / 11)  # UTF-8 bytes, not characters
    assert compression_ratio("Thank you. " * 30) > 10
    assert compression_ratio("Ask what you can do for your country.") < 1.2
