import re

import pytest

from distillery.storage.ledger import Ledger
from distillery.storage.names import file_name, printable


@pytest.mark.parametrize("name", ["", "a.wav", "ねこ ü é", "a b", "\N{GRINNING FACE}", "C:\\x"])
def test_names_that_can_be_read_stay(name):
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nERROR b", r"a\nERROR b"),
        ("\r\x07\x7f\x9b", r"\r\x07\x7f\x9b"),
        ("\u202egpj.wav", r"\u202egpj.wav"),
        ("\u2028\ud800", r"\u2028\ud800"),
        (ValueError("a\0"), r"a\x00"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(name, shown):
    assert printable(name) == shown


def test_what_is_to_be_kept_is():
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_places_of_an_account_can_be_read():
    ledger = Ledger(num_in=1)
    ledger.quarantine("empty", "a\n\x1b[31m.txt")
    assert r"[a\n\x1b[31m.txt]" in str(ledger)


@pytest.mark.parametrize("name", ["a", "talk 1".replace(" ", "-"), "ねこ", "a.b-c_d", "x" * 180])
def test_safe_names_of_files_stay(name):
    assert file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            ".hidden",
            "../../etc/passwd",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "a b",
            "CON:",
        ),
        *("a\0b", "a\nb", "\ud800", "x" * 5000, "ね" * 100, "\u202egpj"),
    ],
)
def test_any_name_becomes_that_of_a_file(name, tmp_path):
    safe = file_name(name)
    assert re.fullmatch(r"[\w-][\w.-]*", safe)
    (tmp_path / f"{safe}.srt").touch()
    assert [path.name for path in tmp_path.rglob("*")] == [f"{safe}.srt"]
    assert file_name(name) == safe


def test_no_two_names_become_one():
    names = ["a/b", "a_b", "a b", "a\\b", "x" * 200, "x" * 201, ".a", "a"]
    assert len({file_name(name) for name in names}) == len(names)
