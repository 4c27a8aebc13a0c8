import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value
from tiny import tiny_tokenizer

from distillery.data import column_types, hub_layout, schema
from distillery.filtering import row_filter
from distillery.filtering.filters import FilterReason, TranscriptFilter, Verdict
from distillery.filtering.row_filter import JudgedRow, RowFilter, rejected
from distillery.text.labels import LabelRule, num_text_labels, plain_text
from distillery.text.normalizers import normalizer_for
from distillery.text.tokens import SpecialTokens

COLUMNS = Features(
    {schema.ID: Value("string"), schema.AUDIO: column_types.AUDIO_TYPE, "note": Value("string")}
)
REASON = "too_short"


def chunk_of(num_rows, audio=None):
    rows = [
        {
            schema.ID: f"{i}",
            schema.AUDIO: audio or {"bytes": bytes([i]) * 1000, "path": f"some/folder/{i}.flac"},
            "note": f"note {i}",
        }
        for i in range(num_rows)
    ]
    return Dataset(pa.Table.from_pylist(rows, schema=COLUMNS.arrow_schema))


def judged(num_rows, dropped):
    return [
        JudgedRow(f"{i}", None, "", 1.0, [i], Verdict(REASON if i in dropped else None))
        for i in range(num_rows)
    ]


@pytest.mark.parametrize("table_bytes", [1, 2500, 1 << 20])
def test_rows_of_a_chunk_come_in_tables_of_bounded_size(monkeypatch, table_bytes):
    monkeypatch.setattr(row_filter, "TABLE_BYTES", table_bytes)
    tables = list(rejected(chunk_of(20), judged(20, {0, 2, 3, 19})))
    found = [row for table in tables for row in table.to_pylist()]
    assert [row[schema.ID] for row in found] == ["0", "2", "3", "19"]
    assert [row["note"] for row in found] == ["note 0", "note 2", "note 3", "note 19"]
    assert found[2][schema.AUDIO] == {"bytes": b"\3" * 1000, "path": "3.flac"}
    assert {row[schema.FILTER_REASON] for row in found} == {REASON}
    most = {1: 1, 2500: 2, 1 << 20: 4}[table_bytes]
    assert max(table.num_rows for table in tables) == most


def test_audio_in_files_is_read_in(tmp_path):
    path = tmp_path / "clip.flac"
    path.write_bytes(b"sound")
    audio = {"bytes": None, "path": str(path)}
    (table,) = rejected(chunk_of(2, audio), judged(2, {1}))
    assert table[schema.AUDIO].to_pylist() == [{"bytes": b"sound", "path": "clip.flac"}]


TEXTS = ["ねこ", "", None, "[301, 309, 402, 406, 10, 300]", "<|0.00|>い(ぬ<|1.00|>", " [5] ", "�é"]


@pytest.fixture(scope="module")
def judge():
    """A filter that compares all rows, which must not see their audio."""
    tokenizer = tiny_tokenizer()
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    rule = LabelRule(tokens, tokenizer, "ja", "transcribe", 96, 0.5, 0.5, 0)
    limits = TranscriptFilter(normalizer_for("ja"), cer_threshold=50.0, max_label_length=96)
    return RowFilter(rule, limits, None)


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("truncated", [[True, False, None], [1, 0, None], None])
def test_rows_are_judged_together_as_each_one_is(judge, as_ids, truncated):
    rule, num = judge.rule, 60
    texts = [TEXTS[i % len(TEXTS)] for i in range(num)]
    columns = {
        schema.ID: [f"row {i}" for i in range(num)],
        schema.TEXT: [(*TEXTS, "ねこ。")[i % 8] for i in range(num)],
        schema.WHISPER_TRANSCRIPT: texts,
        schema.CONDITION_ON_PREV: [[301, 10 + i % 5, 410] if i % 4 else None for i in range(num)],
    }
    if as_ids:
        bodies = [None if text is None else rule.body(text) for text in texts]
        columns[schema.WHISPER_TRANSCRIPT] = bodies
    if truncated:
        columns[schema.TRUNCATED] = [truncated[i % 3] for i in range(num)]
    found = judge.judge(Dataset.from_dict(columns))
    for i, row in enumerate(found):
        values = {name: column[i] for name, column in columns.items()}
        transcript, cut = values[schema.WHISPER_TRANSCRIPT], bool(values.get(schema.TRUNCATED))
        assert (row.row_id, row.reference) == (values[schema.ID], values[schema.TEXT])
        if transcript is None:
            assert row.verdict == Verdict(FilterReason.NO_TRANSCRIPT)
            continue
        previous = values[schema.CONDITION_ON_PREV]
        labels = rule(row.row_id, transcript, previous, truncated=cut)
        text = plain_text(labels, rule.tokens, rule.tokenizer)
        num_text = num_text_labels(labels, rule.tokens)
        assert (list(row.labels), row.transcript) == (labels, text)
        assert row.verdict == judge.filter.verdict(values, text, num_text)


@pytest.mark.parametrize("path", ["clip.flac", "/a/b/clip.flac", "a/odd\nname/clip.flac", None])
def test_a_column_of_audio_is_embedded_as_each_row_is(path):
    row = {schema.AUDIO: {"bytes": b"sound", "path": path}}
    table = pa.Table.from_pylist([row, row], schema=Features(audio=COLUMNS["audio"]).arrow_schema)
    embedded = hub_layout.embedded_audio(table[schema.AUDIO])
    assert embedded.to_pylist() == [hub_layout.embed_audio(row)] * 2
