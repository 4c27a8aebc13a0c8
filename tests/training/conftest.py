"""How labels are made, and which rows are wanted, in tests of training rows."""

import pytest
import tiny

from distillery.filtering.filters import TranscriptFilter
from distillery.text.labels import LabelRule
from distillery.text.normalizers import normalizer_for
from distillery.text.tokens import SpecialTokens


@pytest.fixture(scope="module")
def rule():
    tokenizer = tiny.tiny_tokenizer()
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    return LabelRule(tokens, tokenizer, "ja", "transcribe", 64, 0.5, 0.5, 0)


@pytest.fixture(scope="module")
def limits():
    return TranscriptFilter(normalizer=normalizer_for("ja"), max_label_length=64)
