import pytest

from distillery.text.spacing import joined


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        ([], ""),
        (["", ""], ""),
        (["a cat.", "A dog."], "a cat. A dog."),
        (["a cat. ", "A dog."], "a cat. A dog."),
        (["a cat.", "", " A dog."], "a cat. A dog."),
        (["ねこ。", "いぬ"], "ねこ。いぬ"),
        (["猫", "Tom", "犬"], "猫 Tom 犬"),
    ],
)
def test_texts_are_joined_as_their_script_asks(texts, whole):
    assert joined(texts) == whole
