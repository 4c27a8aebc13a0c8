import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from distillery.cli.evaluation_arguments import EvaluationArguments
from distillery.data.specs import DatasetSpec
from distillery.evaluation import results
from distillery.evaluation.evaluations import Evaluation, Scoring, Transcription, reference_of
from distillery.evaluation.predictions_files import PredictionsFile, plan_for_file
from distillery.text.normalizers import normalizer_for
from distillery.whisper import checkpoint
from distillery.whisper.windows import Decoding

TRANSCRIBED = [
    Transcription("1", "ねこ。", "ねこ", 1.5),
    Transcription("2", "いぬとさかな", "いぬとさかに", 2.0),
    Transcription("3", "NA", "null", 0.5),
    Transcription("4", "みず", "", 1.0),
]
BAD = Transcription("5", "とり", "", 0.0, "cannot be decoded")


def evaluation_of(folder, model="/a/student", with_words=False, max_bad=0.0, **fields):
    identity = {"form": "short_form", "model": model, "dataset": "org/test"}
    one = Evaluation(
        DatasetSpec("org/test", "default", "test"),
        Decoding("Japanese", "transcribe", False, 1, 225),
        normalizer_for("ja"),
        Scoring(folder, with_words=with_words, max_bad_fraction=max_bad),
        identity,
    )
    return replace(one, **fields)


def test_names_of_the_files(tmp_path):
    one = evaluation_of(tmp_path)
    digest = hashlib.sha256(json.dumps(one.identity, sort_keys=True).encode()).hexdigest()
    assert one.metrics_path == tmp_path / "metric.ja.transcribe.jsonl"
    assert one.predictions_path.parent == tmp_path / "predictions"
    assert one.predictions_path.name == f"student.test.test.{digest[:8]}.csv"
    english = evaluation_of(tmp_path, decoding=Decoding(None, "transcribe", False, 1, 225))
    assert english.metrics_path == tmp_path / "metric.en.transcribe.jsonl"


def test_two_models_of_one_base_name_share_nothing(tmp_path):
    first, second = (evaluation_of(tmp_path, f"/{run}/student") for run in "ab")
    assert first.predictions_path != second.predictions_path
    first.conclude(TRANSCRIBED, 2.0, 7)
    assert second.earlier() is None
    assert first.earlier().model == "/a/student"


def test_an_earlier_result_counts_only_with_its_predictions(tmp_path):
    one = evaluation_of(tmp_path)
    assert one.earlier() is None
    row = one.conclude(TRANSCRIBED, 2.0, 7)
    assert one.earlier() == row
    assert evaluation_of(tmp_path, identity={**one.identity, "dtype": "x"}).earlier() is None
    one.predictions_path.unlink()
    assert one.earlier() is None


def test_predictions_without_a_result_do_not_count(tmp_path):
    one = evaluation_of(tmp_path)
    one.conclude(TRANSCRIBED, 2.0, 7)
    one.metrics_path.unlink()
    assert one.earlier() is None


def test_the_row_of_metrics(tmp_path):
    one = evaluation_of(tmp_path, max_bad=0.2)
    row = one.conclude([*TRANSCRIBED, BAD], 2.0, 7)
    assert results.read_results(one.metrics_path) == [row]
    assert row.to_row().items() >= one.identity.items()
    assert results.read_rows(one.metrics_path) == [row.to_row()]
    assert row.num_rows == 4
    assert row.num_bad == 1
    assert row.num_parameters == 7
    assert (row.audio_s, row.wall_s, row.rtfx) == (5.0, 2.0, 2.5)
    assert row.predictions == f"predictions/{one.predictions_path.name}"
    # Normalised: ねこ, いぬとさかな (1 of 6 wrong), na against null (3 of 2), みず (2 of 2).
    assert row.cer_norm == pytest.approx(100 * (0 + 1 + 3 + 2) / (2 + 6 + 2 + 2))
    assert row.cer_raw > 0
    assert row.columns == {"audio": "audio", "text": None, "id": None}
    assert set(row.versions) >= {"torch", "transformers"}


def test_the_row_has_intervals_edits_and_rates_by_duration(tmp_path):
    row = evaluation_of(tmp_path, max_bad=0.2).conclude([*TRANSCRIBED, BAD], 2.0, 7)
    assert set(row.ci) == set(row.edits) == {"cer_norm", "wer_norm", "cer_raw", "wer_raw"}
    low, high = row.ci["cer_norm"]
    assert 0 <= low < row.cer_norm < high
    # いぬとさかに has one character wrong, null for na three (of which two are too many), みず is
    # missing.
    assert row.edits["cer_norm"] == {
        **{"hits": 8, "substitutions": 2, "deletions": 2, "insertions": 2},
    }
    assert [(b["from_s"], b["to_s"], b["num_rows"]) for b in row.by_duration] == [(0, 5, 4)]
    assert (row.wer_words, row.baselines) == (None, [])


def test_an_earlier_result_is_completed_without_a_model(tmp_path):
    one = evaluation_of(tmp_path)
    row = one.conclude(TRANSCRIBED, 2.0, 7)
    assert one.complete(row) == row
    other = evaluation_of(tmp_path, "/b/student").conclude(TRANSCRIBED[:3], 1.0, 7)
    compared = replace(one, baselines=(other,))
    fuller = compared.complete(row)
    assert results.read_results(one.metrics_path) == [row, other, fuller]
    (found,) = fuller.baselines
    assert (found["model"], found["num_rows"]) == ("/b/student", 3)
    # 5 s in 2 s, against 4 s in 1 s.
    assert found["speed_ratio"] == pytest.approx(2.5 / 4)
    assert fuller == replace(row, baselines=[found])
    assert compared.complete(compared.earlier()) == fuller
    assert len(results.read_results(one.metrics_path)) == 3
    assert evaluation_of(tmp_path).complete(fuller) == fuller  # what is there is not taken away


def test_words_of_japanese(tmp_path):
    transcriptions = [
        Transcription("1", "明日は、晴れです。", "明日は雨です", 1.0),
        Transcription("2", "。", "はい", 1.0),
    ]
    row = evaluation_of(tmp_path, with_words=True).conclude(transcriptions, 2.0, 7)
    assert row.wer_words == 25.0  # 明日 は 晴れ です
    assert re.fullmatch(r"fugashi [\d.]+ unidic-lite [\d.]+", row.word_segmenter)
    assert row.wer_norm == 100.0


def test_words_are_japanese_words_only(tmp_path):
    with pytest.raises(ValueError, match="--japanese_words needs --language ja"):
        plan_for_file(SOURCE, asked("en"), Scoring(tmp_path, with_words=True), {})


def test_words_need_their_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = EvaluationArguments(japanese_words=True).problems()
    assert problem.startswith("--japanese_words: ")
    assert "pip install fugashi unidic-lite" in problem


SOURCE = PredictionsFile(Path(__file__), "org/model", DatasetSpec("org/set"))  # any file will do


def asked(language, task="transcribe"):
    return Decoding(language, task, False, 0, 0)


def test_texts_alone_can_be_scored(tmp_path):
    one = plan_for_file(SOURCE, asked("Japanese"), Scoring(tmp_path), {})
    assert one.metrics_path == tmp_path / "metric.ja.transcribe.jsonl"
    row = one.conclude([replace(h, duration_s=None) for h in TRANSCRIBED], None, None)
    assert results.read_results(one.metrics_path) == [row]
    assert (row.form, row.model, row.dataset) == ("short_form", "org/model", "org/set")
    unknown = ("audio_s", "wall_s", "rtfx", "num_parameters")
    assert [row.figure(name) for name in unknown] == [None] * 4
    assert row.by_duration == []
    assert row.decoding == {"language": "Japanese", "task": "transcribe"}


def test_translations_are_english(tmp_path):
    one = plan_for_file(SOURCE, asked("ja", "translate"), Scoring(tmp_path), {})
    assert one.normalizer.id.startswith("whisper-english")


def test_predictions_hold_the_good_clips_as_they_are(tmp_path):
    one = evaluation_of(tmp_path, max_bad=0.2)
    one.conclude([*TRANSCRIBED, BAD], 2.0, 7)
    found = results.read_predictions(one.predictions_path)
    assert [row.id for row in found] == ["1", "2", "3", "4"]
    assert (found[0].reference_norm, found[0].reference_raw) == ("ねこ", "ねこ。")
    assert (found[2].reference_raw, found[2].prediction_raw) == ("NA", "null")
    assert found[3].prediction_raw == ""


def test_the_worst_utterances_are_shown_and_the_right_ones_are_not(tmp_path):
    one = evaluation_of(tmp_path)
    one.conclude(TRANSCRIBED, 2.0, 7)
    shown = one.predictions_path.with_suffix(".worst.txt").read_text(encoding="utf-8")
    headings = [line for line in shown.splitlines() if "wrong" in line]
    assert headings == [
        "3: 150.0 % of the chars wrong",
        "4: 100.0 % of the chars wrong",
        "2: 16.7 % of the chars wrong",
    ]
    assert "REF: いぬとさかな" in shown


def test_a_model_without_a_fault_has_no_worst_utterances(tmp_path):
    one = evaluation_of(tmp_path)
    row = one.conclude(TRANSCRIBED[:1], 2.0, 7)
    assert row.cer_norm == 0
    assert not one.predictions_path.with_suffix(".worst.txt").read_text(encoding="utf-8").strip()


def test_bad_clips_up_to_the_limit_pass(tmp_path):
    evaluation_of(tmp_path, max_bad=0.2).conclude([*TRANSCRIBED, BAD], 2.0, 7)
    evaluation_of(tmp_path / "a", max_bad=None).conclude([*TRANSCRIBED, BAD], 2.0, 7)
    with pytest.raises(ValueError, match=r"2 of 5 .*--max_bad_fraction 0\.001 allows"):
        two = [replace(BAD, id="other"), BAD]
        evaluation_of(tmp_path / "b", max_bad=None).conclude([*TRANSCRIBED[1:], *two], 2.0, 7)
    with pytest.raises(ValueError) as error:
        evaluation_of(tmp_path / "b", max_bad=0.19).conclude([*TRANSCRIBED, BAD], 2.0, 7)
    assert str(error.value) == (
        "org/test default test: 1 of 5 clips cannot be used; that is more than "
        "--max_bad_fraction 0.19 allows"
    )
    assert not (tmp_path / "b").exists()


def test_ids_that_occur_twice_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"ids are not unique.*--id_column_name"):
        evaluation_of(tmp_path, max_bad=1.0).conclude([*TRANSCRIBED, replace(BAD, id="1")], 2.0, 7)


@pytest.mark.parametrize(
    ("transcriptions", "reason"),
    [([BAD], "no clip could be used: cannot be decoded"), ([], "used: empty")],
)
def test_nothing_to_score_is_an_error(tmp_path, transcriptions, reason):
    with pytest.raises(ValueError, match=reason):
        evaluation_of(tmp_path, max_bad=1.0).conclude(transcriptions, 2.0, 7)


def test_an_error_about_many_clips_is_short(tmp_path):
    transcriptions = [replace(BAD, id=str(n), problem=f"lasts {n} s") for n in range(40, 1040)]
    with pytest.raises(ValueError, match=r"lasts 40 s, lasts 41 s, lasts 42 s, 997 more$"):
        evaluation_of(tmp_path, max_bad=1.0).conclude(transcriptions, 2.0, 7)


def test_a_trained_on_model_is_another_model(tmp_path):
    assert checkpoint.fingerprint(tmp_path / "org" / "name") is None
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = checkpoint.fingerprint(tmp_path)
    assert checkpoint.fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert checkpoint.fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({}, ""),
        ({"text": None}, ""),
        ({"text": "<|0.00|> ねこ<|1.00|>"}, "ねこ"),
        ({"text": "NA"}, "NA"),
    ],
)
def test_references_are_plain_text(row, wanted):
    assert reference_of(row) == wanted
