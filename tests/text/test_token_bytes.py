import random

import pyarrow as pa
import pytest
from tiny import SHARED, tiny_tokenizer
from tokenizers import AddedToken, decoders
from transformers import WhisperTokenizer

from distillery.text.label_columns import IdLists
from distillery.text.token_bytes import TokenBytes

REAL = SHARED / "data" / "whisper_tokenizer"


@pytest.fixture(scope="module", params=["tiny", "real"])
def tokenizer(request):
    if request.param == "tiny":
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([AddedToken("東京 タワー"), AddedToken("<|odd|>", special=True)])
        return tokenizer
    if not REAL.exists():
        pytest.skip(f"{REAL} is absent: the real vocabulary comes with ../shared")
    return WhisperTokenizer.from_pretrained(REAL)


def check(tokenizer, sequences):
    """Assert that texts are those of the tokenizer; return them."""
    lists = IdLists.of(pa.array(sequences, pa.list_(pa.int32())))
    texts = TokenBytes.of(tokenizer).texts(lists)
    backend = tokenizer.backend_tokenizer
    expected = backend.decode_batch(sequences, skip_special_tokens=True)
    assert texts == [text.strip() for text in expected]
    return texts


def test_random_ids_are_decoded_as_the_tokenizer_does(tokenizer):
    """With characters cut in two, special and added tokens, timestamps, and ids of no token."""
    draw, num_ids = random.Random(0), len(tokenizer) + 50
    sequences = [[draw.randrange(num_ids) for _ in range(draw.randint(0, 30))] for _ in range(3000)]
    texts = check(tokenizer, sequences)
    assert sum("\ufffd" in text for text in texts) > 1000


def test_random_bytes_are_decoded_as_the_tokenizer_does(tokenizer):
    """The first 256 tokens of a byte-level vocabulary are the bytes."""
    draw = random.Random(1)
    sequences = [[draw.randrange(256) for _ in range(draw.randint(1, 12))] for _ in range(5000)]
    check(tokenizer, sequences)


def test_texts_cut_at_any_byte_are_decoded_as_the_tokenizer_does(tokenizer):
    text = "  ねこ🐈‍⬛ é ẞ हिन्दी\u200d <|x|> naïve\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    sequences = [ids[start:end] for start in range(len(ids)) for end in range(start, len(ids) + 1)]
    assert check(tokenizer, sequences)[len(ids)] == text.strip()


def test_every_token_alone(tokenizer):
    check(tokenizer, [[i] for i in range(len(tokenizer))])


def test_no_ids_and_no_lists(tokenizer):
    assert check(tokenizer, [[], []]) == ["", ""]
    assert check(tokenizer, []) == []


def test_a_tokenizer_of_another_kind_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="it is not Whisper's"):
        TokenBytes.of(tokenizer)
