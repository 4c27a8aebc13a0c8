from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny

from distillery.data import schema
from distillery.data.clip_states import clip_state
from distillery.data.collators import CLIP_STATE, IS_DROPPED, PROBLEM, REASON, TOO_SHORT
from distillery.data.hub_layout import SplitFiles
from distillery.labelling.shards import Account, ShardAssembly, ShardWriter, dataset_features
from distillery.labelling.transcripts import Transcripts
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.text.compression import compression_ratio
from distillery.text.error_rates import score
from distillery.text.normalizers import normalizer_for
from distillery.text.tokens import SpecialTokens

TOKENIZER = tiny.tiny_tokenizer()
TOKENS = SpecialTokens.from_tokenizer(TOKENIZER, is_multilingual=True)
PREFIX = TOKENS.prefix("ja", "transcribe", True)
NORMALIZER = normalizer_for("ja")


def normalizer_of(language, task):
    return normalizer_for(language)


def body(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return [TOKENS.timestamp(0), *ids, TOKENS.timestamp(1)]


def label(row_id, text=None, recording="talk", reference=None):
    """Return a labelled row; without a text, of a clip that could not be used."""
    return {
        schema.ID: row_id,
        schema.RECORDING_ID: recording,
        schema.TEXT: reference,
        schema.WHISPER_TRANSCRIPT: None if text is None else [*PREFIX, *body(text)],
        schema.AVG_LOGPROB: -0.5,
        schema.TRUNCATED: False,
        schema.LANGUAGE: "ja",
        schema.TASK: "transcribe",
        CLIP_STATE: clip_state(source(row_id)[schema.AUDIO]),
        REASON: schema.AUDIO,
        PROBLEM: "cannot be decoded" if text is None else None,
    }


def source(row_id):
    return {schema.ID: row_id, schema.AUDIO: {"bytes": row_id.encode(), "path": "x/y.wav"}}


@pytest.fixture
def writer(tmp_path):
    return writer_in(tmp_path)


def writer_in(folder, decode_token_ids=False):
    files = SplitFiles(Outputs(folder), ".labels", "default", "train")
    features = dataset_features(None, decode_token_ids)
    transcripts = Transcripts(TOKENS, TOKENIZER, decode_token_ids, normalizer_of)
    return ShardWriter(files, features, transcripts)


def write(writer, shard, labelled, before=None):
    chunk = [source(row[schema.ID]) for row in labelled]
    return writer.write(shard, chunk, labelled, before)


def rows_of(writer, shard):
    return pq.read_table(writer.files.sealed(shard)).to_pylist()


CHUNK = [label("c", "さかな"), label("d"), label("e", "ねこ"), label("f", "いぬ", "other")]


def test_contexts_are_the_windows_before_within_a_recording(writer):
    write(writer, 1, CHUNK, before=label("b", "いぬ"))
    contexts = {row[schema.ID]: row[schema.CONDITION_ON_PREV] for row in rows_of(writer, 1)}
    # `d` could not be used: there is no row of it, and no window before `e`.
    assert contexts == {"c": body("いぬ"), "e": None, "f": None}
    write(writer, 0, CHUNK[:1])
    assert rows_of(writer, 0)[0][schema.CONDITION_ON_PREV] is None


@pytest.mark.parametrize("decode_token_ids", [False, True])
def test_transcripts_and_how_well_they_compress(tmp_path, decode_token_ids):
    writer = writer_in(tmp_path, decode_token_ids)
    write(writer, 0, CHUNK[2:])
    row = rows_of(writer, 0)[0]
    written = "<|0.00|>ねこ<|1.00|>" if decode_token_ids else [*PREFIX, *body("ねこ")]
    assert row[schema.WHISPER_TRANSCRIPT] == written
    assert row[schema.COMPRESSION_RATIO] == pytest.approx(compression_ratio("ねこ"))
    assert row[schema.AUDIO] == {"bytes": b"e", "path": "y.wav"}


def test_the_account_and_the_scores_of_all_shards(writer):
    texts = [("ねこ", "ねこ"), ("いぬ", "いね"), ("さかな", None)]
    for shard, (reference, text) in enumerate(texts):
        write(writer, shard, [label(str(shard), text, reference=reference)])
    write(writer, 3, [label("3", "ねこ")])  # without a reference
    account = writer.account()
    assert account.ledger == Ledger(4, 3, quarantined={schema.AUDIO: 1})
    assert account.edits.scores() == score(["ねこ", "いぬ"], ["ねこ", "いね"], NORMALIZER)
    assert [writer.is_whole(shard) for shard in range(5)] == [True] * 4 + [False]
    writer.unseal_quarantined()
    assert [writer.is_whole(shard) for shard in range(4)] == [True, True, False, True]


def test_transcripts_without_a_word_are_counted(writer):
    times = [TOKENS.timestamp(0), TOKENS.timestamp(1)]
    silent = {**label("b", "ねこ"), schema.WHISPER_TRANSCRIPT: [*PREFIX, *times]}
    write(writer, 0, [label("a", "ねこ"), silent, label("c")])
    write(writer, 1, [{**label("d", "ねこ"), schema.WHISPER_TRANSCRIPT: PREFIX}])
    account = writer.account()
    assert (account.num_empty, account.num_rows) == (2, 3)


def test_clips_that_are_not_wanted_are_dropped_and_no_fault(writer, caplog):
    dropped = {**label("b"), REASON: TOO_SHORT, IS_DROPPED: True}
    ledger = write(writer, 0, [label("a", "ねこ"), dropped, label("c")])
    assert ledger == Ledger(3, 1, Counter(too_short=1), Counter(audio=1))
    assert [row[schema.ID] for row in rows_of(writer, 0)] == ["a"]
    assert [record.getMessage() for record in caplog.records] == ["clip c cannot be decoded"]


def test_without_references_there_are_no_scores(writer):
    write(writer, 0, [label("a", "ねこ"), label("b", "ねこ", reference="。")])
    assert writer.account() == Account(Ledger(2, 2), None, None)


def test_a_label_of_another_row_is_an_error(writer):
    with pytest.raises(AssertionError, match="the label of 'b' is at 'a'"):
        writer.write(0, [source("a")], [label("b", "ねこ")], None)
    assert writer.account_of(0) is None


def test_audio_that_is_no_longer_what_was_labelled_is_an_error(writer):
    other = {schema.ID: "a", schema.AUDIO: {"bytes": b"other", "path": None}}
    with pytest.raises(ValueError, match="the audio of clip 'a' has changed while it was labelled"):
        writer.write(0, [other], [label("a", "ねこ")], None)
    assert writer.account_of(0) is None


def test_rows_that_are_lost_on_the_way_to_the_file_are_an_error(writer, monkeypatch):
    def lossy(path, rows, features):
        pq.write_table(features.arrow_schema.empty_table(), path)

    monkeypatch.setattr("distillery.data.hub_layout.write_parquet", lossy)
    with pytest.raises(AssertionError, match="0 rows were written, 3 were labelled"):
        write(writer, 0, CHUNK)
    assert writer.account_of(0) is None


def test_a_shard_is_known_under_its_name_in_the_dataset(writer):
    for shard in range(3):
        write(writer, shard, CHUNK)
    # Publishing was interrupted behind the second.
    outputs = writer.files.outputs
    outputs.move({writer.files.sealed(i): writer.files.published(i, 3) for i in range(2)})
    assert all(writer.account_of(shard) for shard in range(3))
    writer.files.published(1, 3).write_bytes(b"damaged")
    assert writer.account_of(1) is None
    write(writer, 1, CHUNK)
    assert writer.account_of(1)
    writer.files.publish()
    names = [f"train-0000{shard}-of-00003.parquet" for shard in range(3)]
    assert sorted(path.name for path in (writer.files.folder / "default").iterdir()) == names
    assert all(writer.account_of(shard) for shard in range(3))


def test_rows_may_come_in_any_order_and_the_window_before_them_last(writer):
    chunks = {shard: [source(row[schema.ID]) for row in CHUNK] for shard in range(2)}
    queue = SimpleNamespace(chunks=chunks, followers={1})
    assembly = ShardAssembly(writer, queue)
    for position in (3, 0, 2):
        assert assembly.add(0, position, CHUNK[position]) is None
        assert assembly.add(1, position, CHUNK[position]) is None
    assert assembly.add(1, 1, CHUNK[1]) is None
    assert assembly.add(1, -1, label("b", "いぬ")) == Ledger(4, 3, quarantined={schema.AUDIO: 1})
    assert (list(chunks), queue.followers) == ([0], set())
    assert assembly.add(0, 1, CHUNK[1]) == Ledger(4, 3, quarantined={schema.AUDIO: 1})
    assert [row[schema.ID] for row in rows_of(writer, 0)] == ["c", "e", "f"]
    assert rows_of(writer, 1)[0][schema.CONDITION_ON_PREV] == body("いぬ")


def test_columns_of_the_source_stay():
    text = dataset_features(None, True)[schema.TEXT]
    features = dataset_features({"more": text, schema.ID: None}, True)
    assert features["more"] == text
    assert features[schema.WHISPER_TRANSCRIPT] == text
    assert features[schema.ID] == text
