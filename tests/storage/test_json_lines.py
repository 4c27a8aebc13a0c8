import logging
import multiprocessing
import time
from pathlib import Path

import filelock
import pytest

from distillery.storage import json_lines
from distillery.storage.json_lines import append_row, read_rows

ROWS = [{"model": "先生", "cer_norm": 1.3}, {"model": "a\nb\u2028c", "cer_norm": None}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "results.jsonl"


def test_rows_come_back_in_order(path):
    assert read_rows(path) == []
    for row in ROWS:
        append_row(path, row)
    assert read_rows(path) == ROWS
    assert len(path.read_bytes().split(b"\n")) == 3
    assert "先生".encode() in path.read_bytes()


def test_appending_keeps_what_is_there(path):
    append_row(path, ROWS[0])
    before = path.read_bytes()
    append_row(path, ROWS[1])
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize("cut", range(1, 41))
def test_row_cut_anywhere_does_not_swallow_the_next(path, cut):
    append_row(path, ROWS[0])
    whole = path.read_bytes()
    torn = whole[:cut]
    assert len(whole) > 30
    path.write_bytes(whole + torn)
    append_row(path, ROWS[1])
    aside = Path(f"{path}.torn")
    if cut < len(whole) - 1:
        assert read_rows(path) == ROWS
        assert aside.read_bytes() == torn + b"\n"
    else:  # the row was whole: only its end of line was missing, or not even that
        assert read_rows(path) == [ROWS[0], ROWS[0], ROWS[1]]
        assert not aside.exists()


def test_zeros_after_a_power_cut_are_put_aside(path):
    append_row(path, ROWS[0])
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    append_row(path, ROWS[1])
    assert read_rows(path) == ROWS


def test_torn_tail_is_left_out_and_reported(path, caplog):
    append_row(path, ROWS[0])
    path.write_bytes(path.read_bytes() + '{"model": "生'.encode()[:-1])
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert read_rows(path) == ROWS[:1]
    assert f"{path}:2" in caplog.text
    assert path.read_bytes() == before


def test_whole_tail_without_end_of_line_is_a_row(path, caplog):
    append_row(path, ROWS[0])
    path.write_bytes(path.read_bytes() + b'{"model": "b"}')
    assert read_rows(path) == [ROWS[0], {"model": "b"}]
    assert not caplog.records


@pytest.mark.parametrize("line", [b'{"model": ', b"", b"[1]", b"null", b"\xff\xfe", b"\0\0"])
def test_bad_line_in_the_middle_is_an_error(path, line):
    append_row(path, ROWS[0])
    path.write_bytes(path.read_bytes() + line + b"\n")
    append_row(path, ROWS[1])
    with pytest.raises(ValueError, match=r"results\.jsonl:2: "):
        read_rows(path)


def test_row_that_json_cannot_hold_is_not_written(path):
    append_row(path, ROWS[0])
    with pytest.raises(ValueError, match="cannot write the row"):
        append_row(path, {"rtfx": float("nan")})
    assert read_rows(path) == ROWS[:1]


def append_many(path, writer):
    for number in range(20):
        append_row(path, {"writer": writer, "number": number, "text": "x" * 9000})


def test_two_processes_append_whole_rows(path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    rows = read_rows(path)
    for name in "ab":
        assert [row["number"] for row in rows if row["writer"] == name] == list(range(20))


def test_writer_waits_for_the_lock(path, monkeypatch):
    append_row(path, ROWS[0])
    monkeypatch.setattr(json_lines, "LOCK_TIMEOUT_S", 0.01)
    holder = multiprocessing.get_context("fork").Process(
        target=hold_lock, args=(path,), daemon=True
    )
    holder.start()
    while not path.with_suffix(".held").exists():
        assert holder.is_alive()
    with pytest.raises(filelock.Timeout):
        append_row(path, ROWS[1])
    path.with_suffix(".held").unlink()
    holder.join(60)
    append_row(path, ROWS[1])
    assert read_rows(path) == ROWS


def hold_lock(path):
    with filelock.FileLock(f"{path}.lock"):
        path.with_suffix(".held").touch()
        while path.with_suffix(".held").exists():
            time.sleep(0.01)
