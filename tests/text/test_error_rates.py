import csv
import random
from dataclasses import replace

import jiwer
import pytest
from tiny import SHARED

from distillery.text.error_rates import (
    RATES,
    ErrorCounts,
    Scores,
    aligned_runs,
    character_errors,
    count_errors,
    pair_error_rate,
    score,
    word_errors,
)
from distillery.text.normalizers import normalizer_for

PREDICTIONS = SHARED / "data" / "kotoba_predictions"
KOTOBA = "kotoba-whisper-v1.0.ja_asr.common_voice_8_0.csv"
LARGE_V3 = "whisper-large-v3.ja_asr.jsut_basic5000.csv"


def test_error_counts():
    counts = ErrorCounts(hits=6, substitutions=1, deletions=1, insertions=2)
    assert counts.reference_length == 8
    assert counts.error_rate == 50.0
    assert counts + ErrorCounts(1, 2, 3, 4) == ErrorCounts(7, 3, 4, 6)


def test_error_rate_of_empty_reference():
    assert ErrorCounts().error_rate == 0.0
    assert ErrorCounts(insertions=3).error_rate == 300.0
    assert character_errors([], []) == word_errors([""], [""]) == ErrorCounts()


def test_word_errors():
    assert word_errors(["a b c d e f"], ["a x c e f g h"]) == ErrorCounts(4, 1, 1, 2)
    assert word_errors(["a b"], [""]) == ErrorCounts(deletions=2)
    assert word_errors([""], ["a b"]) == ErrorCounts(insertions=2)
    assert word_errors([" a\tb\n\nc "], ["a b c"]) == ErrorCounts(hits=3)
    assert word_errors(["今日は 晴れ"], ["今日は晴れ"]) == ErrorCounts(substitutions=1, deletions=1)


def test_character_errors():
    assert character_errors(["今日は晴れ"], ["今日晴れた"]) == ErrorCounts(4, 0, 1, 1)
    assert character_errors(["a b"], ["ab"]) == ErrorCounts(hits=2, deletions=1)
    assert character_errors([" ab "], ["ab"]) == ErrorCounts(hits=2)
    assert character_errors(["NA", "null", ""], ["NA", "nul", ""]) == ErrorCounts(5, 0, 1, 0)


def test_corpus_rate_weighs_rows_by_length():
    counts = word_errors(["a b c d e f g h i", "a"], ["a b c d e f g h i", "b"])
    assert counts.error_rate == 10.0


def test_counts_equal_those_of_jiwer():
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["ab", "b", "cde", "f"], k=draw.randint(1, 9))) for _ in range(400)
    ]
    references, predictions = texts[:200], texts[200:]
    words = jiwer.process_words(references, predictions)
    characters = jiwer.process_characters(references, predictions)
    for ours, theirs in [
        (word_errors(references, predictions), words),
        (character_errors(references, predictions), characters),
    ]:
        assert ours == ErrorCounts(
            theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions
        )


def test_unequal_lengths():
    for count in (character_errors, word_errors):
        with pytest.raises(ValueError, match="2 references do not fit 1 predictions"):
            count(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 references do not fit 0 predictions"):
        score(["a"], [], normalizer_for("en"))


def test_pair_error_rate():
    assert pair_error_rate("a b c d", "a x d", "word") == 50.0
    assert pair_error_rate("a b c d", "a b c d", "word") == 0.0
    assert pair_error_rate("今日は晴れ", "今日晴れた", "char") == 40.0
    assert pair_error_rate("ab", "abcdef", "char") == 200.0
    assert pair_error_rate("", "", "char") == 0.0
    assert pair_error_rate("", "a b", "word") == 200.0
    # The seeds' Japanese filter: one full stop in the middle, and nothing else, is a WER of 100.
    assert pair_error_rate("今日は晴れ", "今日は。晴れ", "word") == 100.0


def test_score():
    japanese = normalizer_for("ja")
    scores = score(
        ["朝です。", "夜、です", "。", "", None], ["朝です", "昼です", "はい", "", "はい"], japanese
    )
    assert scores == Scores(
        cer_norm=pytest.approx(100 / 6),
        wer_norm=50.0,
        cer_raw=pytest.approx(300 / 8),
        wer_raw=100.0,
        num_rows=5,
        num_empty_references=3,
    )


def test_scores_read_as_a_sentence():
    scores = Scores(11.98347, 14.46, 20.0, 30.0, num_rows=1203, num_empty_references=3)
    assert scores.summary() == (
        "WER 14.5 %, CER 12.0 % over 1,200 clips (3 more have an empty reference)"
    )
    assert replace(scores, num_rows=8, num_empty_references=0).summary("recordings") == (
        "WER 14.5 %, CER 12.0 % over 8 recordings"
    )


def test_score_without_references():
    with pytest.raises(ValueError, match="none of 2 references has text left"):
        score(["", "!"], ["a", "b"], normalizer_for("en"))


TEXTS = [("ab", "ab"), ("", "x"), ("abc d", "abd"), ("e f", "e f g")]


def test_counts_of_each_utterance():
    tally = count_errors(TEXTS, [(said + "!", found) for said, found in TEXTS])
    assert tuple(tally.counts) == RATES
    assert (tally.num_rows, tally.scored.tolist()) == (4, [0, 2, 3])
    assert tally.counts["cer_norm"].tolist() == [[2, 0, 0, 0], [3, 0, 2, 0], [3, 0, 0, 2]]
    assert tally.counts["wer_norm"].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [2, 0, 0, 1]]
    assert tally.counts["wer_raw"].tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1]]
    assert tally.totals().edits["cer_norm"] == ErrorCounts(8, 0, 2, 2)
    assert tally.scores().cer_norm == pytest.approx(40.0)
    assert tally.scores().num_empty_references == 1


def test_rates_by_duration():
    # Of the four rows the second is not scored, so its 7 s are nowhere.
    bins = count_errors(TEXTS, TEXTS).by_duration([5.0, 7.0, 5.01, 301.0])
    assert bins == [
        {"from_s": 0, "to_s": 5, "num_rows": 1, "audio_s": 5.0, "cer_norm": 0.0, "wer_norm": 0.0},
        {
            "from_s": 5,
            "to_s": 10,
            "num_rows": 1,
            "audio_s": 5.01,
            "cer_norm": 40.0,
            "wer_norm": 100,
        },
        {
            **{"from_s": 300, "to_s": None, "num_rows": 1, "audio_s": 301.0},
            **{"cer_norm": pytest.approx(200 / 3), "wer_norm": 50.0},
        },
    ]


@pytest.mark.parametrize(("seconds", "first"), [(0.01, 0), (30.0, 25), (30.5, 30), (300.0, 60)])
def test_a_bin_holds_its_end(seconds, first):
    (found,) = count_errors([("a", "a")], [("a", "a")]).by_duration([seconds])
    assert found["from_s"] == first


def test_both_rates_of_a_corpus():
    # One of two words, and "na" is two wrong characters; a lost "d" is one more of six.
    texts = ["a b", "NA", "d"], ["a b", "na", ""]
    assert word_errors(*texts).error_rate == 50.0
    assert character_errors(*texts).error_rate == 50.0
    assert word_errors(["abc"], ["abd"]).error_rate == 100.0
    assert character_errors(["abc"], ["abd"]).error_rate == pytest.approx(100 / 3)


def read_columns(name):
    path = PREDICTIONS / name
    if not path.exists():
        pytest.skip(f"{path} is absent: the published predictions come with ../shared")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {column: [row[column] for row in rows] for column in rows[0]}


@pytest.mark.parametrize(
    ("name", "num_rows", "cer_norm", "wer_norm", "cer_raw", "wer_raw"),
    [(KOTOBA, 4483, 9.4, 59.3, 15.6, 99.7), (LARGE_V3, 5000, 7.1, 59.2, 13.4, 98.5)],
)
def test_published_error_rates(name, num_rows, cer_norm, wer_norm, cer_raw, wer_raw):
    columns = read_columns(name)
    scores = score(columns["reference_raw"], columns["prediction_raw"], normalizer_for("ja"))
    assert scores.num_rows == num_rows
    assert scores.num_empty_references == 0
    assert scores.cer_norm == pytest.approx(cer_norm, abs=0.06)
    assert scores.wer_norm == pytest.approx(wer_norm, abs=0.06)
    assert scores.cer_raw == pytest.approx(cer_raw, abs=0.06)
    assert scores.wer_raw == pytest.approx(wer_raw, abs=0.09)


@pytest.mark.parametrize("name", [KOTOBA, LARGE_V3])
def test_published_normalised_texts(name):
    columns = read_columns(name)
    japanese = normalizer_for("ja")
    for side in ("reference", "prediction"):
        assert [japanese(text) for text in columns[f"{side}_raw"]] == columns[f"{side}_norm"]


def test_aligned_runs_of_characters():
    assert aligned_runs("ねこがみずをのむ", "ねこはみずのむよ", "char") == [
        ("equal", "ねこ", "ねこ"),
        ("replace", "が", "は"),
        ("equal", "みず", "みず"),
        ("delete", "を", ""),
        ("equal", "のむ", "のむ"),
        ("insert", "", "よ"),
    ]


def test_aligned_runs_of_words():
    assert aligned_runs(" the cat  sat on", "a dog sat", "word") == [
        ("replace", "the cat", "a dog"),
        ("equal", "sat", "sat"),
        ("delete", "on", ""),
    ]
    assert aligned_runs("", "", "word") == []


@pytest.mark.parametrize("unit", ["char", "word"])
def test_aligned_runs_spell_out_both_texts(unit):
    rng = random.Random(0)
    space = "" if unit == "char" else " "
    for _ in range(200):
        pair = [space.join(rng.choices("abc", k=rng.randrange(8))) for _ in range(2)]
        runs = aligned_runs(*pair, unit)
        for side, text in zip(("reference", "prediction"), pair, strict=True):
            assert space.join(filter(None, (getattr(run, side) for run in runs))) == text
