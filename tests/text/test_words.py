import pytest
from tiny import tiny_tokenizer

from distillery.text.words import Word, split_words


def by_character(text):
    return [(place, place + 1) for place in range(len(text))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Hello", ["Hello"]),
        (" Hello, (dear) world!", [" Hello,", " (dear)", " world!"]),
        ("it's  3.5 % ", ["it's", "  3.5", " % "]),
        ("ねこ。「みず」", ["ね", "こ。", "「み", "ず」"]),
        ("กิน ข้าว", ["กิ", "น", " ข้", "า", "ว"]),
        ("한국어 단어", ["한국어", " 단어"]),
        ("नमस्ते दुनिया", ["नमस्ते", " दुनिया"]),
        ("iPhone買う", ["iPhone", "買", "う"]),
    ],
)
def test_words_by_script(text, words):
    found = split_words(text, by_character(text))
    assert [word.text for word in found] == words
    assert [text[word.first :].startswith(word.text) for word in found] == [True] * len(words)


def test_a_word_begins_where_a_token_does():
    # One token for the first two characters, two for the bytes of the third.
    assert split_words("ねこだ", [(0, 2), (2, 3), (2, 3)]) == [Word("ねこ", 0), Word("だ", 1)]
    assert split_words("a bc", [(0, 3), (3, 4)]) == [Word("a bc", 0)]


@pytest.mark.parametrize(
    "text", ["ねこがみずをのむ。 水", "a naïve œuvre 👩‍👩‍👧 x", " \u3000 ", "\ufffd a"]
)
def test_pieces_of_any_tokens_are_the_text(text):
    encoded = tiny_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False)
    words = split_words(text, encoded.offsets)
    assert "".join(word.text for word in words) == text
    firsts = [word.first for word in words]
    assert firsts == sorted(set(firsts))
    assert max(firsts) < len(encoded.ids)
