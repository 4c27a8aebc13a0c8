import pytest

from distillery.text.differences import Side, differences

F, S, B = Side.FIRST, Side.SECOND, Side.BOTH


@pytest.mark.parametrize(
    ("first", "second", "pieces"),
    [
        ("", "", []),
        ("", "a b", [("a b", S)]),
        ("a b", "a b", [("a b", B)]),
        (
            "the cat sat",
            "the dog sat down",
            [("the", B), (" cat", F), (" dog", S), (" sat", B), (" down", S)],
        ),
        ("ねこがみずを", "いぬがみず", [("ねこ", F), ("いぬ", S), ("がみず", B), ("を", F)]),
        ("a  b", "a b", [("a  b", B)]),
        ("Hello, you", "Hello you", [("Hello,", F), ("Hello", S), (" you", B)]),
    ],
)
def test_what_only_one_of_two_texts_has(first, second, pieces):
    assert differences(first, second) == pieces
    assert "".join(piece.text for piece in differences(first, second) if piece.side != S) == first


def test_hours_of_speech_are_compared_in_no_time():
    words = [f"w{number}" for number in range(20_000)]
    other = [word if number % 50 else "x" for number, word in enumerate(words)]
    found = differences(" ".join(words), " ".join(other))
    assert sum(piece.side == S for piece in found) == 400
