from pathlib import Path

import pytest
import tiny

from distillery.data import hub_layout, label_shards, schema
from distillery.data.clip_states import clip_state
from distillery.data.collators import CLIP_STATE, PROBLEM
from distillery.text.compression import compression_ratio
from distillery.text.tokens import SpecialTokens

TOKENIZER = tiny.tiny_tokenizer()
TOKENS = SpecialTokens.from_tokenizer(TOKENIZER, is_multilingual=True)
PREFIX = TOKENS.prefix("ja", "transcribe", True)


def body(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return [TOKENS.timestamp(0), *ids, TOKENS.timestamp(1)]


def label(row_id, text=None, recording="talk"):
    """Return one row of a shard; without a text, of a clip that could not be used."""
    return {
        schema.ID: row_id,
        schema.RECORDING_ID: recording,
        schema.WHISPER_TRANSCRIPT: None if text is None else [*PREFIX, *body(text)],
        schema.AVG_LOGPROB: -0.5,
        schema.TRUNCATED: False,
        PROBLEM: "cannot be decoded" if text is None else None,
        CLIP_STATE: clip_state({"bytes": row_id.encode()}),
    }


@pytest.fixture
def shards(tmp_path):
    chunks = [
        [label("a", "ねこ"), label("b", "いぬ")],
        [label("c", "さかな"), label("d"), label("e", "ねこ"), label("f", "いぬ", "other")],
    ]
    paths = [tmp_path / f"{index:05d}.parquet" for index in range(len(chunks))]
    for path, rows in zip(paths, chunks, strict=True):
        hub_layout.write_parquet(path, rows, label_shards.FEATURES)
    return paths


def contract_rows(shards, index, decode_token_ids=False):
    return list(label_shards.contract_rows(shards, index, TOKENS, TOKENIZER, decode_token_ids))


def test_the_window_before_a_shard_is_the_last_of_the_shard_before(shards):
    first, second = contract_rows(shards, 0), contract_rows(shards, 1)
    contexts = {row[schema.ID]: row[schema.CONDITION_ON_PREV] for row in [*first, *second]}
    # `d` could not be used: there is no row of it, and no window before `e`.
    assert contexts == {"a": None, "b": body("ねこ"), "c": body("いぬ"), "e": None, "f": None}


@pytest.mark.parametrize("decode_token_ids", [False, True])
def test_transcripts_and_how_well_they_compress(shards, decode_token_ids):
    row = contract_rows(shards, 0, decode_token_ids)[0]
    written = "<|0.00|>ねこ<|1.00|>" if decode_token_ids else [*PREFIX, *body("ねこ")]
    assert row[schema.WHISPER_TRANSCRIPT] == written
    assert row[schema.COMPRESSION_RATIO] == compression_ratio("ねこ")


def source(row_id):
    return {schema.ID: row_id, schema.AUDIO: {"bytes": row_id.encode(), "path": "x/y.wav"}}


def test_rows_and_labels_are_joined_by_id(shards):
    chunk = [source(name) for name in "fedc"]  # in another order, with the clip that is left out
    joined = list(label_shards.joined(chunk, contract_rows(shards, 1), Path("out")))
    assert [row[schema.ID] for row in joined] == ["f", "e", "c"]
    assert joined[0][schema.AUDIO] == {"bytes": b"f", "path": "y.wav"}
    assert joined[0][schema.WHISPER_TRANSCRIPT] == [*PREFIX, *body("いぬ")]


def test_a_label_without_its_row_is_an_error(shards):
    with pytest.raises(ValueError, match="out: the input has no longer a row for label 'c'"):
        list(label_shards.joined([source("e"), source("f")], contract_rows(shards, 1), Path("out")))


def test_columns_of_the_source_stay():
    text = label_shards.FEATURES[schema.TEXT]
    features = label_shards.dataset_features({"more": text, schema.ID: None}, True)
    assert features["more"] == text
    assert features[schema.WHISPER_TRANSCRIPT] == text
    assert features[schema.ID] == label_shards.FEATURES[schema.ID]


def test_two_labels_of_one_id_are_an_error(shards):
    added = contract_rows(shards, 1)
    with pytest.raises(ValueError, match="out: two rows of the input have one id"):
        list(label_shards.joined([source("c")], [*added, added[0]], Path("out")))


def test_audio_that_is_no_longer_what_was_labelled_is_an_error(shards):
    chunk = [{**source("c"), schema.AUDIO: {"bytes": b"C", "path": None}}]
    with pytest.raises(label_shards.ChangedClipError, match="the audio of clip 'c' is no longer"):
        list(label_shards.joined(chunk, contract_rows(shards, 1), Path("out")))
