import pytest
from tiny import SENTENCES, SHARED, tiny_tokenizer
from transformers import WhisperTokenizer
from vocabulary import train_tokenizer

from distillery.text.tokens import SpecialTokens, language_code

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared absent")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)


@pytest.fixture(scope="module")
def english(tokenizer):
    return SpecialTokens.from_tokenizer(tokenizer, is_multilingual=False)


def test_ids_of_the_tiny_tokenizer(tokens):
    assert (tokens.end_of_text, tokens.start_of_transcript) == (300, 301)
    assert (tokens.translate, tokens.transcribe) == (401, 402)
    assert (tokens.start_of_prev, tokens.no_timestamps, tokens.timestamp_begin) == (404, 406, 407)
    assert (tokens.languages["en"], tokens.languages["ja"]) == (302, 309)
    assert len(tokens.languages) == 99
    assert "yue" not in tokens.languages


def test_cantonese_moves_what_stands_behind_it():
    tokenizer = train_tokenizer(SENTENCES, 300, num_languages=100)
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    assert (tokens.languages["ja"], tokens.languages["yue"]) == (309, 401)
    assert (tokens.translate, tokens.transcribe) == (402, 403)
    assert (tokens.start_of_prev, tokens.no_timestamps, tokens.timestamp_begin) == (405, 407, 408)
    assert tokens.prefix("cantonese", "translate", False) == [301, 401, 402, 407]


@needs_shared
def test_ids_of_openais_tokenizer():
    tokenizer = WhisperTokenizer.from_pretrained(SHARED / "data" / "whisper_tokenizer")
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    assert (tokens.end_of_text, tokens.start_of_transcript) == (50257, 50258)
    assert (tokens.translate, tokens.transcribe) == (50358, 50359)
    assert (tokens.start_of_prev, tokens.no_timestamps) == (50361, 50363)
    assert tokens.timestamp_begin == 50364
    assert tokens.timestamp(30.0) == 51864
    assert tokens.prefix("ja", "transcribe", False) == [50258, 50266, 50359, 50363]


@pytest.mark.parametrize(
    ("language", "task", "timestamps", "ids"),
    [
        ("ja", "transcribe", False, [301, 309, 402, 406]),
        ("ja", "transcribe", True, [301, 309, 402]),
        ("Japanese", "translate", True, [301, 309, 401]),
        ("EN", "translate", False, [301, 302, 401, 406]),
        ("mandarin", "transcribe", True, [301, 303, 402]),
    ],
)
def test_prefix(tokens, language, task, timestamps, ids):
    assert tokens.prefix(language, task, timestamps) == ids

    assert len(ids) == tokens.prefix_length(timestamps)
    assert tokens.asked([404, 5, *ids, 9]) == (language_code(language), task)


@pytest.mark.parametrize("ids", [[], [302, 402], [301], [301, 302], [301, 402, 302], [301, 5, 402]])
def test_what_has_no_prefix_asks_for_nothing(tokens, english, ids):
    with pytest.raises(ValueError, match="no language and task"):
        tokens.asked(ids)
    assert english.asked(ids) == (None, "transcribe")


def test_prefix_of_an_english_only_model(english):
    assert english.prefix_length(True) == 1
    assert not english.is_multilingual
    assert english.prefix(None, "transcribe", True) == [301]
    assert english.prefix(None, "transcribe", False) == [301, 406]


def test_english_only_model_refuses_a_language(english):
    with pytest.raises(ValueError, match="'ja' was given, but the model is English-only"):
        english.prefix("ja", "transcribe", True)


@pytest.mark.parametrize(
    ("language", "task", "message"),
    [
        (None, "transcribe", "needs a language"),
        ("klingon", "transcribe", "no language 'klingon'"),
        ("yue", "transcribe", "tokenizer has no language 'yue'"),
        ("ja", "summarise", "'summarise' is not one of transcribe, translate"),
    ],
)
def test_wrong_prefix(tokens, language, task, message):
    with pytest.raises(ValueError, match=message):
        tokens.prefix(language, task, True)


@pytest.mark.parametrize(
    ("seconds", "token_id"), [(0, 407), (0.02, 408), (1.64, 489), (1.649, 489), (30, 1907)]
)
def test_timestamps(tokens, tokenizer, seconds, token_id):
    assert tokens.timestamp(seconds) == token_id
    assert tokens.is_timestamp(token_id)
    assert tokenizer.convert_ids_to_tokens(489) == "<|1.64|>"


def test_no_timestamps_is_no_timestamp(tokens):
    assert not tokens.is_timestamp(tokens.no_timestamps)


class OtherTokenizer:
    """A tokenizer that knows some tokens, and maps all others to one id."""

    def __init__(self, known, unknown):
        self.known, self.unknown = known, unknown

    def convert_tokens_to_ids(self, token):
        return self.known.get(token, self.unknown)


@pytest.mark.parametrize("unknown", [None, 0])
def test_another_models_tokenizer_is_refused(unknown):
    tokenizer = OtherTokenizer({"<|endoftext|>": 0}, unknown)
    with pytest.raises(ValueError, match=r"startoftranscript.*not a Whisper tokenizer"):
        SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)


@pytest.mark.parametrize(
    ("language", "code"), [("ja", "ja"), ("JA", "ja"), ("Japanese", "ja"), ("castilian", "es")]
)
def test_language_code(language, code):
    assert language_code(language) == code


def test_unknown_language():
    with pytest.raises(ValueError, match="no language 'jp'"):
        language_code("jp")
