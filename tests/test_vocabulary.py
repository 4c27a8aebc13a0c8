import importlib.util
import json

import numpy as np
import pytest
from tiny import SENTENCES, SHARED, tiny_tokenizer
from transformers import WhisperTokenizer
from vocabulary import (
    build_tokenizer,
    control_tokens,
    generation_settings,
    openai_tokenizer,
    special_tokens,
    tokenizer_from_tiktoken,
    train_tokenizer,
)

from distillery.text.cleaning import TextCleaning
from distillery.text.labels import LabelRule, plain_text
from distillery.text.tokens import SpecialTokens

LITERALS = [
    "",
    " ",
    "Hello, world!  Two spaces, it's 3.14.\n",
    "こんにちは、世界。",
    "今天天氣很好。",
    "안녕하세요",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Привет, мир",
    "مرحبا بالعالم",
    "Ça coûte 12 €, naïve œuvre",
    "👩‍👩‍👧 🇯🇵 \u200b\ufeff",
    "<|ja|><|0.00|>ねこ<|1.64|><|endoftext|>",
]

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("whisper") is None, reason="the package openai-whisper is absent"
)
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared absent")


@pytest.fixture(scope="module")
def trained():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def openai():
    return openai_tokenizer()


def reload(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))
    return WhisperTokenizer.from_pretrained(folder)


@needs_openai
def test_hindi_survives_its_tokens(openai):
    """Labels of Hindi, as Whisper's own tokenizer makes them, say what was written."""
    tokens = SpecialTokens.from_tokenizer(openai, is_multilingual=True)
    clean = TextCleaning(remove_punctuation=True)
    rule = LabelRule(tokens, openai, "hi", "transcribe", 448, 1.0, 1.0, 0, clean=clean)
    spoken = "“दुःख” और सुख, ज़रा-सा हँसते हैं; राष्ट्रपति श्री कृष्ण?"
    wanted = "दुःख और सुख ज़रासा हँसते हैं राष्ट्रपति श्री कृष्ण"
    assert plain_text(rule("a", spoken), tokens, openai) == wanted
    timed = f"<|0.00|> {spoken}<|2.50|>"
    assert openai.decode(rule("a", timed), decode_with_timestamps=True).endswith(
        f"<|0.00|> {wanted}<|2.50|><|endoftext|>"
    )
    ids = openai.encode(timed, add_special_tokens=False)
    assert rule("a", ids) == rule("a", timed)


def test_special_tokens_are_in_whispers_order():
    tokens = special_tokens()
    assert tokens[:5] == ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|de|>"]
    assert tokens[100:107] == [
        "<|su|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    assert tokens[107:110] == ["<|0.00|>", "<|0.02|>", "<|0.04|>"]
    assert tokens[-1] == "<|30.00|>"
    assert len(tokens) == len(set(tokens)) == 1608


def test_large_v3_has_cantonese_as_its_hundredth_language():
    assert control_tokens(100)[101:103] == ["<|yue|>", "<|translate|>"]


@pytest.mark.parametrize("number", [0, 101])
def test_wrong_number_of_languages_is_refused(number):
    with pytest.raises(ValueError, match=f"got {number}"):
        special_tokens(number)


def test_special_ids_follow_the_vocabulary(trained):
    first = trained.convert_tokens_to_ids("<|endoftext|>")
    ids = trained.convert_tokens_to_ids(special_tokens())
    assert ids == list(range(first, first + 1608))
    assert len(trained) == first + 1608
    # Transformers takes the first timestamp to be the id after the last special token.
    assert trained.all_special_ids[-1] + 1 == trained.convert_tokens_to_ids("<|0.00|>")


def test_vocabulary_with_a_gap_is_refused():
    with pytest.raises(ValueError, match="0 to 1"):
        build_tokenizer({"a": 0, "b": 2}, [])


def test_vocabulary_too_small_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match="256"):
        train_tokenizer(["ねこ"], 255)


@pytest.mark.parametrize("text", LITERALS)
def test_trained_tokenizer_round_trips_any_text(trained, text):
    ids = trained.encode(text, add_special_tokens=False)
    assert trained.decode(ids, decode_with_timestamps=True) == text


def test_training_merges_and_is_deterministic():
    first, second = tiny_tokenizer(), tiny_tokenizer()
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first.encode(SENTENCES[0], add_special_tokens=False)) < len(SENTENCES[0].encode())


def test_large_v3_vocabulary_can_be_trained():
    tokenizer = train_tokenizer(SENTENCES, 260, num_languages=100)
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    assert tokenizer.convert_tokens_to_ids("<|yue|>") == start + 100
    assert tokenizer.convert_tokens_to_ids("<|notimestamps|>") == start + 106


def test_saved_tokenizer_comes_back_the_same(trained, tmp_path):
    again = reload(trained, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"tokenizer.json", "vocab.json", "merges.txt", "normalizer.json"} <= names
    assert again.get_vocab() == trained.get_vocab()
    assert again.all_special_ids == trained.all_special_ids
    assert again.encode(SENTENCES[2]) == trained.encode(SENTENCES[2])
    assert again.normalize("It isn't Colour.") == "it is not colour"  # crashes without the file


def test_decoding_with_and_without_timestamps(trained, tmp_path):
    again = reload(trained, tmp_path)
    text = "<|startoftranscript|><|ja|><|transcribe|><|0.00|>ねこ<|1.64|><|1.80|><|endoftext|>"
    ids = again.encode(text, add_special_tokens=False)
    assert len(ids) == 7 + len(again.encode("ねこ", add_special_tokens=False))
    assert again.decode(ids, decode_with_timestamps=True) == text
    assert again.decode(ids, skip_special_tokens=True) == "ねこ"
    whole = again.decode(ids[:-2], skip_special_tokens=True, output_offsets=True)
    assert [segment["text"] for segment in whole["offsets"]] == ["ねこ"]
    assert whole["offsets"][0]["timestamp"] == pytest.approx((0.0, 1.64))


def test_prefix_tokens(trained, tmp_path):
    again = reload(trained, tmp_path)
    again.set_prefix_tokens(language="japanese", task="transcribe", predict_timestamps=False)
    tokens = again.convert_ids_to_tokens(again("ねこ").input_ids)
    prefix = ["<|startoftranscript|>", "<|ja|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokens[:4] == prefix
    assert tokens[-1] == "<|endoftext|>"


def test_pipelines_decoding_finds_the_segments(trained):
    text = "<|startoftranscript|><|ja|><|transcribe|><|0.00|>ねこ<|1.00|><|1.50|>いぬ<|2.00|>"
    ids = trained.encode(text + "<|endoftext|>", add_special_tokens=False)
    whole, details = trained._decode_asr(
        [{"tokens": np.array([ids])}],
        return_timestamps=True,
        return_language=True,
        time_precision=0.02,
    )
    assert whole == "ねこいぬ"
    assert details["chunks"] == [
        {"language": "japanese", "timestamp": (0.0, 1.0), "text": "ねこ"},
        {"language": "japanese", "timestamp": (1.5, 2.0), "text": "いぬ"},
    ]


def test_generation_settings(trained):
    settings = generation_settings(trained)
    end = trained.convert_tokens_to_ids("<|endoftext|>")
    assert settings["decoder_start_token_id"] == end + 1
    assert settings["lang_to_id"]["<|en|>"] == end + 2
    assert len(settings["lang_to_id"]) == 99
    assert settings["task_to_id"] == {"transcribe": end + 102, "translate": end + 101}
    assert settings["no_timestamps_token_id"] == end + 106
    assert settings["begin_suppress_tokens"] == [*trained.encode(" ")[2:-1], end]
    json.dumps(settings)


def test_malformed_rank_file_is_refused(tmp_path):
    path = tmp_path / "broken.tiktoken"
    path.write_text("IQ== 0\nIg==\n")
    with pytest.raises(ValueError, match="line 2"):
        tokenizer_from_tiktoken(path)


@needs_openai
def test_openai_tokenizer_has_the_released_ids(openai):
    assert len(openai) == 51865
    assert openai.encode("Hello, world!", add_special_tokens=False) == [15947, 11, 1002, 0]
    assert openai.convert_tokens_to_ids(["<|endoftext|>", "<|ja|>", "<|30.00|>"]) == [
        50257,
        50266,
        51864,
    ]
    settings = generation_settings(openai)
    assert settings["begin_suppress_tokens"] == [220, 50257]
    assert settings["no_timestamps_token_id"] == 50363


@needs_openai
def test_openai_tokenizer_normalises_english_after_a_reload(openai, tmp_path):
    assert reload(openai, tmp_path).normalize("The colour isn't grey") == "the color is not gray"


@needs_openai
@needs_shared
def test_openai_tokenizer_equals_the_released_one(openai):
    released = WhisperTokenizer.from_pretrained(SHARED / "data" / "whisper_tokenizer")
    assert openai.get_vocab() == released.get_vocab()
    assert openai.all_special_ids == released.all_special_ids
    for text in LITERALS:
        assert openai.encode(text) == released.encode(text)
