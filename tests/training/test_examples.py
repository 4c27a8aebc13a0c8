import json
import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hub_clips import hub_folder

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.training import examples
from distillery.training.examples import TrainingRows, labels_of, usable_rows
from distillery.training.label_lengths import LabelLengths

RATE = 16_000


def text_of(labels, rule):
    return rule.tokenizer.decode(rule.body(labels), skip_special_tokens=True)


# --- labels of one row ---------------------------------------------------------------------------


def test_stored_labels_go_before_all_else(rule):
    row = {"id": "1", "labels": [1, 2], "whisper_transcript": "いぬ", "text": "ねこ"}
    assert labels_of(row, rule, 0) == [1, 2]


def test_the_teachers_transcript_goes_before_the_reference(rule):
    row = {"id": "1", "labels": None, "whisper_transcript": "いぬ", "text": "ねこ"}
    assert text_of(labels_of(row, rule, 0), rule) == "いぬ"
    ids = rule.tokenizer.encode("いぬ", add_special_tokens=False)
    assert labels_of({**row, "whisper_transcript": ids}, rule, 0) == labels_of(row, rule, 0)
    assert text_of(labels_of({**row, "whisper_transcript": None}, rule, 0), rule) == "ねこ"


def test_silence_that_the_teacher_heard_is_learnt_as_silence(rule, limits):
    row = {"id": "1", "whisper_transcript": "", "text": "ねこ"}
    tokens = rule.tokens
    prefix = tokens.prefix("ja", "transcribe", False)
    assert labels_of(row, rule, 0) == [*prefix, tokens.end_of_text]
    assert examples.unusable_reason({**row, "text": None}, rule, limits) is None


def test_prompt_and_truncation_reach_the_rule(rule):
    always = replace(rule, condition_on_prev_probability=1.0)
    row = {"id": "1", "whisper_transcript": "いぬ", "condition_on_prev": [5], "truncated": True}
    labels = labels_of(row, always, 0)
    assert labels[:2] == [rule.tokens.start_of_prev, 5]
    assert labels[-1] != rule.tokens.end_of_text


def test_epochs_draw_anew(rule):
    row = {"id": "1", "text": "<|0.00|>ねこ<|1.00|>"}
    drawn = {tuple(labels_of(row, rule, epoch)) for epoch in range(20)}
    assert len(drawn) == 2
    assert labels_of(row, rule, 3) == labels_of(row, rule, 3)


# --- which rows can be learnt from ---------------------------------------------------------------


def spec_of(tmp_path, rows):
    (tmp_path / "a.wav").write_bytes(b"never read")
    Dataset.from_list(rows).to_json(tmp_path / "m.jsonl", force_ascii=False)
    return DatasetSpec(str(tmp_path / "m.jsonl"))


def test_rows_are_left_out_with_a_reason(tmp_path, rule, limits, caplog):
    texts = ["ねこ", None, "ねこ" * 60, "いぬ", "いぬ"]
    truncated = [False, False, False, True, False]
    spec = spec_of(
        tmp_path,
        [
            {"id": str(i), "audio": "a.wav", "text": text, "truncated": cut}
            for i, (text, cut) in enumerate(zip(texts, truncated, strict=True))
        ],
    )
    with caplog.at_level(logging.INFO):
        rows, ledger, _ = usable_rows(spec, rule, limits, RATE)
    assert list(rows["id"]) == ["0", "4"]
    assert ledger.to_dict() == {
        "in": 5,
        "out": 2,
        "dropped": {"empty_reference": 1, "too_long_labels": 1, "truncated": 1},
        "quarantined": {},
    }
    ledger.check(0)
    assert "learning from 'text': 5 in = 2 out + 3 dropped" in caplog.text


@pytest.mark.parametrize("text", ["ねこがいる", "<|0.00|>ねこがいる<|1.00|>"])
def test_the_limit_of_label_ids_is_exact(text, rule, limits):
    row = {"id": "1", "text": text}
    longest = max(len(labels_of(row, rule, epoch)) for epoch in range(20))
    assert examples.unusable_reason(row, rule, replace(limits, max_label_length=longest)) is None
    assert (
        examples.unusable_reason(row, rule, replace(limits, max_label_length=longest - 1))
        == "too_long_labels"
    )


def test_labels_that_are_stored_are_measured_without_their_prompt(rule, limits):
    always = replace(rule, condition_on_prev_probability=1.0)
    labels = always("1", "ねこ", [5] * 10)
    assert labels[0] == rule.tokens.start_of_prev
    row = {"id": "1", "labels": labels, "truncated": True, "text": None}
    num_text = len(labels) - 11
    assert examples.unusable_reason(row, rule, replace(limits, max_label_length=num_text)) is None
    assert (
        examples.unusable_reason(row, rule, replace(limits, max_label_length=num_text - 1))
        is not None
    )


def random_row(rule, rng, index):
    """Return a row with any of the columns that labels are made of."""
    tokens = rule.tokens
    some = [*rng.integers(0, 50, rng.integers(0, 60)).tolist()]
    special = rng.choice(
        [tokens.timestamp_begin, tokens.timestamp_begin + 9, tokens.no_timestamps], 2
    )
    ids = [*some, *special.tolist()][:: rng.choice([-1, 1])]
    prompt = [tokens.start_of_prev, 5, 6] * rng.integers(0, 2)
    whole = [*prompt, *[tokens.start_of_transcript] * rng.integers(0, 3), *ids, tokens.end_of_text]
    texts = ["ねこ" * rng.integers(0, 40), "<|0.00|>ねこ<|1.00|>", "", str(whole)]
    return {
        "id": f"{index}",
        "labels": whole if rng.random() < 0.2 else None,
        "whisper_transcript": whole if rng.random() < 0.5 else None,
        "text": None if rng.random() < 0.3 else texts[rng.integers(4)],
        "truncated": bool(rng.random() < 0.2),
        "duration": None if rng.random() < 0.2 else float(rng.random()),
    }


def reasons(rows, rule, limits):
    table = pa.Table.from_pylist(rows)
    return examples._reasons(table, LabelLengths.of(table, rule), rule, limits)


def test_rows_are_judged_by_their_columns_as_one_by_one(rule, limits):
    rng = np.random.default_rng(0)
    rows = [random_row(rule, rng, index) for index in range(400)]
    limits = replace(limits, min_duration_s=0.1, max_label_length=45)
    wanted = [examples.unusable_reason(row, rule, limits) for row in rows]
    assert len(set(wanted)) == 5  # kept, no target, too long, too short, truncated
    assert reasons(rows, rule, limits) == wanted
    words = [{**row, "whisper_transcript": row["text"], "labels": None} for row in rows]
    wanted = [examples.unusable_reason(row, rule, limits) for row in words]
    assert reasons(words, rule, limits) == wanted
    for name in ("labels", "duration"):
        fewer = [{key: value for key, value in row.items() if key != name} for row in rows]
        wanted = [examples.unusable_reason(row, rule, limits) for row in fewer]
        assert reasons(fewer, rule, limits) == wanted


def test_labels_are_as_long_as_was_counted(rule, limits):
    rng = np.random.default_rng(1)
    rows = [random_row(rule, rng, index) for index in range(200)]
    rows = [row for row in rows if examples.unusable_reason(row, rule, limits) is None]
    counted = LabelLengths.of(pa.Table.from_pylist(rows), rule).whole
    always = replace(rule, timestamp_probability=1.0, condition_on_prev_probability=0.0)
    assert counted.tolist() == [len(labels_of(row, always, 0)) for row in rows]
    assert counted.dtype == np.int16
    assert LabelLengths(np.array([40_000, -1]), np.array([5, -1])).whole.tolist() == [32767, 0]


def test_a_threshold_compares_transcript_and_reference(rule, limits):
    strict = replace(limits, wer_threshold=10.0)
    row = {"id": "1", "whisper_transcript": "いぬ", "text": "ねこ"}
    assert examples.unusable_reason(row, rule, strict) == "error_rate"
    assert examples.unusable_reason({**row, "text": "いぬ。"}, rule, strict) is None
    assert examples.unusable_reason({**row, "text": None}, rule, strict) == "empty_reference"


@pytest.mark.parametrize(("filtered_by", "num_kept"), [(None, 1), (5.0, 2), (10.0, 2), (20.0, 1)])
def test_stored_labels_are_compared_again_only_by_a_tighter_limit(
    tmp_path, rule, limits, filtered_by, num_kept
):
    folder = tmp_path / "filtered"
    config = folder / "default"
    config.mkdir(parents=True)
    rows = [
        {"id": text, "audio": None, "text": "ねこ", "labels": rule(text, text)}
        for text in ("ねこ", "いぬ")
    ]
    Dataset.from_list(rows).to_parquet(config / "train-00000-of-00001.parquet")
    if filtered_by is not None:
        record = {"arguments": {"wer_threshold": filtered_by}}
        (folder / "run.json").write_text(json.dumps(record))
    spec = DatasetSpec(str(folder))
    kept, ledger, _ = usable_rows(spec, rule, replace(limits, wer_threshold=10.0), RATE)
    assert (len(kept), ledger.num_in, ledger.dropped.total()) == (num_kept, 2, 2 - num_kept)


def test_labels_are_decoded_only_where_a_limit_reads_them(rule, limits, monkeypatch):
    rows = [{"id": "1", "labels": rule("1", "ねこ"), "text": "ねこ"}, {"id": "1", "text": "ねこ"}]
    strict = replace(limits, wer_threshold=10.0)
    assert [examples.unusable_reason(row, rule, strict) for row in rows] == [None, None]
    monkeypatch.setattr(examples, "plain_text", None)
    assert [examples.unusable_reason(row, rule, limits) for row in rows] == [None, None]
    with pytest.raises(TypeError):
        examples.unusable_reason(rows[0], rule, strict)


def test_no_usable_row_is_an_error(tmp_path, rule, limits):
    spec = spec_of(tmp_path, [{"id": "1", "audio": "a.wav", "text": "ねこ" * 60}])
    with pytest.raises(ValueError, match=r"no row is left to learn from: 1 in = 0 out.*too_long"):
        usable_rows(spec, rule, limits, RATE)


def test_nothing_to_learn_from_is_an_error(tmp_path, rule, limits):
    spec = spec_of(tmp_path, [{"id": "1", "audio": "a.wav", "note": "ねこ"}])
    with pytest.raises(ValueError, match=r"no column that .* references.*note"):
        usable_rows(spec, rule, limits, RATE)


def test_audio_stays_with_its_row(tmp_path, rule, limits):
    folder = hub_folder(tmp_path, {"default": {"train": [0, 1, 2]}})
    rows, _, _ = usable_rows(DatasetSpec(str(folder)), rule, limits, RATE)
    assert rows[2]["audio"]["path"] == f"{rows[2][schema.ID]}.wav"


def parts_of(*sizes):
    names = iter("abcdefghij")
    return [
        Dataset.from_list([{"id": f"{name}{i}", "text": "ねこ"} for i in range(size)])
        for name, size in zip(names, sizes, strict=False)
    ]


def test_parts_stand_one_behind_the_other(rule):
    rows = TrainingRows(parts_of(2, 1, 3), rule)
    assert rows.sizes == (2, 1, 3)
    assert [rows[i, 0]["id"] for i in range(6)] == ["a0", "a1", "b0", "c0", "c1", "c2"]
    assert rows[5, 0]["labels"] == labels_of(rows[5, 0], rule, 0)
    with pytest.raises(IndexError):
        rows[6, 0]
