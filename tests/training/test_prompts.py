"""Which language and task the labels of a row name."""

import pytest
import tiny
from datasets import Dataset

from distillery.data.packing import Layout
from distillery.data.specs import DatasetSpec
from distillery.filtering.filters import TranscriptFilter
from distillery.text.cleaning import TextCleaning
from distillery.text.labels import LabelRule
from distillery.text.normalizers import normalizer_for
from distillery.text.tokens import Prompt, SpecialTokens
from distillery.training.examples import TrainingRows, example_of, usable_rows
from distillery.training.packed_examples import Packing
from distillery.training.prompts import prompts_of, rule_of_all

JA = Prompt("ja", "transcribe")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def rule(tokenizer):
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    return LabelRule(tokens, tokenizer, None, "transcribe", 64, 0.5, 0.5, 0)


def prefix_of(row, rule):
    return rule.tokens.asked(example_of(row, rule, 0)["labels"])


OURS = ("id", "whisper_transcript", "language", "task")


@pytest.mark.parametrize(
    ("spec", "columns", "row", "wanted"),
    [
        ({"language": "Japanese"}, ("id", "text"), {}, JA),
        ({"language": "ja", "task": "translate"}, ("id", "text"), {}, ("ja", "translate")),
        # What labelling wrote is read where no flag says otherwise.
        ({}, OURS, {"language": "fr", "task": "translate"}, ("fr", "translate")),
        ({"task": "transcribe"}, OURS, {"language": "fr", "task": "translate"}, ("fr", JA.task)),
        ({"language": "ja"}, OURS, {"language": "fr", "task": "translate"}, JA),
        ({"language_column": "lang"}, (*OURS, "lang"), {"lang": "French", "language": "ja"}, None),
        ({"task_column": "do", "language": "ja"}, ("id", "do"), {"do": "translate"}, None),
    ],
)
def test_flags_go_before_columns(rule, spec, columns, row, wanted):
    wanted = wanted or {"lang": ("fr", "transcribe"), "do": ("ja", "translate")}[next(iter(row))]
    its_rule = prompts_of(DatasetSpec("d", **spec), rule, columns).given_to(rule)
    assert prefix_of({"id": "1", "text": "ねこ", **row}, its_rule) == wanted


def test_stored_labels_name_their_own(rule):
    prompts = prompts_of(DatasetSpec("d"), rule, ("id", "labels"))
    its_rule = prompts.given_to(rule)
    for prompt in (JA, Prompt("fr", "translate")):
        labels = rule.asking(prompt)("1", "ねこ")
        assert its_rule.of({"id": "1", "labels": labels}).without_speech("1", 0) is None
        assert prompts({"id": "1", "labels": labels}) == prompt
    with pytest.raises(ValueError, match="dataset d, row 7: its labels name no language and task"):
        prompts({"id": "7", "labels": [rule.tokens.start_of_transcript, 5, 6]})


@pytest.mark.parametrize(
    ("spec", "columns", "message"),
    [
        ({}, ("id", "text"), "dataset d: .* needs a language: see --language and"),
        (
            {"language_column": "lang"},
            ("id", "text"),
            "--language_column_name: .* no column 'lang'",
        ),
        ({"task_column": "do"}, ("id", "text"), "--task_column_name: dataset d has no column 'do'"),
    ],
)
def test_what_no_one_says_is_asked_for(rule, spec, columns, message):
    with pytest.raises(ValueError, match=message):
        prompts_of(DatasetSpec("d", **spec), rule, columns)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lang", "Klingon", "row 2: column 'lang': Whisper has no language 'Klingon'"),
        ("lang", None, "row 2: column 'lang': Whisper has no language 'None'"),
        ("lang", "yue", "row 2: column 'lang': the model's tokenizer has no language 'yue'"),
        ("do", "sing", "row 2: column 'do': task 'sing' is not one of transcribe, translate"),
    ],
)
def test_a_row_that_asks_for_the_impossible_is_named(tmp_path, rule, name, value, message):
    rows = [{"id": str(i), "audio": "a.wav", "text": "ねこ"} for i in range(4)]
    rows = [{**row, "lang": "ja", "do": "translate"} for row in rows]
    rows[2][name] = value
    (tmp_path / "a.wav").write_bytes(b"never read")
    Dataset.from_list(rows).to_json(tmp_path / "m.jsonl", force_ascii=False)
    spec = DatasetSpec(str(tmp_path / "m.jsonl"), language_column="lang", task_column="do")
    with pytest.raises(ValueError, match=message):
        usable_rows(spec, rule, TranscriptFilter(normalizer_for("ja")), 16_000)


def test_rows_of_each_dataset_have_their_own(rule):
    specs = [DatasetSpec("a", language="ja"), DatasetSpec("b", language="en", task="translate")]
    parts = [Dataset.from_list([{"id": str(i), "text": "ねこ"} for i in range(2)]) for _ in specs]
    rules = [prompts_of(spec, rule, ("id", "text")).given_to(rule) for spec in specs]
    rows = TrainingRows(parts, rule_of_all(rules))
    found = [rule.tokens.asked(rows[i, 0]["labels"]) for i in range(4)]
    assert found == [JA, JA, ("en", "translate"), ("en", "translate")]
    assert rule_of_all(rules[:1] * 2).prompt_of is None


def test_texts_are_compared_and_cleaned_as_their_language_is_written(rule):
    made = []

    def normalizer_of(language, task):
        made.append((language, task))
        return normalizer_for("en" if task == "translate" else language)

    limits = TranscriptFilter(normalizer_for(None), 0.0, normalizer_of=normalizer_of)
    row = {"id": "1", "text": "colour", "whisper_transcript": "color"}
    assert limits.of("ja", "translate").reason(row, "color", 4) is None
    assert limits.of("ja", "transcribe").reason(row, "color", 4) == "error_rate"
    assert made == [("ja", "translate"), ("ja", "transcribe")]
    cleaned = LabelRule(
        rule.tokens,
        rule.tokenizer,
        None,
        "transcribe",
        64,
        0,
        0,
        0,
        clean=TextCleaning(False, True),
    )
    texts = {
        language: rule.tokenizer.decode(
            cleaned.asking(Prompt(language, "transcribe")).body("い、ぬ")
        )
        for language in ("ja", "en")
    }
    assert texts == {"ja": "いぬ", "en": "い ぬ"}


@pytest.mark.parametrize("recording", [None, "talk"])
def test_windows_never_mix_languages_or_tasks(rule, recording):
    prompts = prompts_of(DatasetSpec("d"), rule, OURS)
    packing = Packing(Layout(16_000, 64_000), prompts.given_to(rule), 60)
    asked = [("ja", "transcribe"), ("en", "transcribe"), ("ja", "translate")]
    rows = [
        {"id": str(i), "text": "ねこ", "duration": 0.3, "recording_id": recording}
        | dict(zip(("language", "task"), asked[i // 2 % 3], strict=True))
        for i in range(24)
    ]
    windows = [[part.row for part in window.parts] for window in packing.windows(rows, 0)]
    assert sorted(row for window in windows for row in window) == list(range(24))
    assert all(len({asked[row // 2 % 3] for row in window}) == 1 for window in windows)
    assert len(windows) == (12 if recording else 6)  # of pairs, or of four and four
