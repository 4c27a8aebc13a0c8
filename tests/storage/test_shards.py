import json
from collections import Counter

import pytest

from distillery.storage.files import read_json, replacing, sha256, write_json
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import JOURNALS, Outputs
from distillery.storage.shards import read_seal, seal_path, write_sealed


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replacing_makes_the_folder_and_the_file(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["b.txt"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        temporary.write_text("half of the new")
    assert path.read_text() == "half of the new"


def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError("interrupted")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["b.txt"]


def test_a_writer_that_writes_nothing_fails_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "b") as first, replacing(tmp_path / "b") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "b").read_text() == "1"  # the last to finish


def test_json_keeps_text_readable_and_comes_back(tmp_path):
    write_json(tmp_path / "x.json", {"言語": "日本語", "n": 0.1})
    assert "日本語" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"言語": "日本語", "n": 0.1}


def test_sha256_is_the_standard_sum(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


LEDGER = Ledger(num_in=10, num_out=6)
LEDGER.dropped.update(too_long=2, truncated=1)
LEDGER.quarantined.update(audio=1)


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "00000.parquet"
    write_sealed(Outputs(tmp_path), path, LEDGER, lambda p: p.write_bytes(b"rows"))
    return path


def test_a_seal_gives_the_account_back(sealed):
    assert read_seal(sealed) == LEDGER
    assert names(sealed.parent) == [JOURNALS, "00000.parquet", "00000.parquet.seal.json"]
    listed = Outputs(sealed.parent).written()
    assert {name: [entry.spare for entry in entries] for name, entries in listed.items()} == {
        "00000.parquet": [True],
        "00000.parquet.seal.json": [True],
    }


def test_no_shard_no_seal(tmp_path):
    assert read_seal(tmp_path / "00000.parquet") is None


@pytest.mark.parametrize("content", [b"rowz", b"row", b"rows\n", b""])
def test_a_changed_shard_has_no_seal(sealed, content):
    sealed.write_bytes(content)
    assert read_seal(sealed) is None


def test_a_shard_without_its_seal_does_not_count(sealed):
    seal_path(sealed).unlink()
    assert read_seal(sealed) is None


def test_a_seal_without_its_shard_does_not_count(sealed):
    sealed.unlink()
    assert read_seal(sealed) is None


@pytest.mark.parametrize("content", [b"", b'{"sha256": "', b"{}", b"[]", b"null", b"\xff\xfe"])
def test_a_half_written_seal_does_not_count(sealed, content):
    seal_path(sealed).write_bytes(content)
    assert read_seal(sealed) is None


@pytest.mark.parametrize("ledger", [{}, {"in": 1}, [], None])
def test_a_seal_with_the_right_checksum_and_no_account_does_not_count(sealed, ledger):
    seal = json.loads(seal_path(sealed).read_text())
    seal_path(sealed).write_text(json.dumps({**seal, "ledger": ledger}))
    assert read_seal(sealed) is None


def test_a_seal_cut_anywhere_does_not_count(sealed):
    whole = seal_path(sealed).read_bytes()
    for cut in range(len(whole) - 1):  # the last byte is only the end of the line
        seal_path(sealed).write_bytes(whole[:cut])
        assert read_seal(sealed) is None


def test_a_shard_that_fails_is_not_sealed(tmp_path):
    def write(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_sealed(Outputs(tmp_path), tmp_path / "x", Ledger(), write)
    assert names(tmp_path) == []


def test_a_new_shard_that_fails_unseals_nothing(sealed):
    def write(path):
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_sealed(Outputs(sealed.parent), sealed, Ledger(), write)
    assert read_seal(sealed) == LEDGER


def test_ledgers_add_up():
    total = LEDGER + LEDGER + Ledger(num_in=1, num_out=1)
    assert total.to_dict() == {
        "in": 21,
        "out": 13,
        "dropped": {"too_long": 4, "truncated": 2},
        "quarantined": {"audio": 2},
    }
    assert sum([LEDGER, LEDGER], Ledger()) + Ledger(1, 1) == total
    assert Ledger.from_dict(json.loads(json.dumps(total.to_dict()))) == total


def test_a_ledger_names_the_first_places_of_each_reason():
    ledger = Ledger(num_in=9, num_out=2)
    ledger.quarantine("blank", "x.tsv:3")
    ledger.quarantine("link", *"abcdef")
    ledger.quarantine("never")
    assert str(ledger) == (
        "9 in = 2 out + 0 dropped + 7 quarantined (link: 6 [a, b, c, d, e, …], blank: 1 [x.tsv:3])"
    )
    assert ledger.balances
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger
    twice = ledger + ledger
    assert twice.places == {"blank": ["x.tsv:3"] * 2, "link": list("abcdef") * 2}
    assert twice.balances


def test_a_ledger_reads_as_an_equation():
    assert str(LEDGER) == (
        "10 in = 6 out + 3 dropped (too_long: 2, truncated: 1) + 1 quarantined (audio: 1)"
    )
    assert str(Ledger(2, 2)) == "2 in = 2 out + 0 dropped + 0 quarantined"


@pytest.mark.parametrize("num_in", [9, 11])
def test_a_lost_or_doubled_row_is_found(num_in):
    ledger = Ledger(num_in, LEDGER.num_out, LEDGER.dropped, LEDGER.quarantined)
    with pytest.raises(AssertionError, match="does not balance"):
        ledger.check(1.0)


def test_quarantine_up_to_the_limit_passes():
    LEDGER.check(0.1)


def test_quarantine_past_the_limit_names_the_flag():
    with pytest.raises(ValueError) as error:
        LEDGER.check(0.09)
    assert str(error.value) == (
        "1 of 10 rows cannot be used (audio: 1); that is more than --max_bad_fraction 0.09 allows; "
        "allow more, or mend them and start over with --overwrite_output_dir"
    )


@pytest.mark.parametrize(
    ("num_rows", "most"),
    [
        (1, 0),
        (3, 0),
        (4, 0),
        (5, 1),
        (10, 2),
        (15, 3),
        (100, 3),
        (3000, 3),
        (4000, 4),
        (10**6, 1000),
    ],
)
def test_a_few_rows_of_a_small_set_pass_where_nothing_is_said(num_rows, most):
    def ledger(bad):
        return Ledger(num_rows, num_rows - bad, quarantined=Counter(audio=bad))

    ledger(most).check(None)
    with pytest.raises(ValueError, match=f"^{most + 1} of {num_rows} rows.*0.001 allows .where it"):
        ledger(most + 1).check(None)


def test_dropped_rows_are_no_bad_rows():
    ledger = Ledger(num_in=3, num_out=0)
    ledger.dropped["error_rate"] = 3
    ledger.check(0.0)
    Ledger().check(0.0)
