"""A clip that was replaced is in another state."""

import os

import pytest
from datasets import Dataset

from distillery.data.clip_states import ABSENT, changed_clips, clip_state


def test_bytes_are_known_by_their_content():
    assert clip_state({"bytes": b"abc", "path": "x"}) == clip_state({"bytes": b"abc"})
    assert clip_state({"bytes": b"abc"}) != clip_state({"bytes": b"abd"})


def test_a_file_is_known_by_size_and_time(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"abc")
    audio = {"bytes": None, "path": str(path)}
    os.utime(path, ns=(0, 10**9))
    first = clip_state(audio)
    assert clip_state(audio) == first
    os.utime(path, ns=(0, 10**9 + 1))
    later = clip_state(audio)
    path.write_bytes(b"abcd")
    os.utime(path, ns=(0, 10**9))
    assert len({first, later, clip_state(audio)}) == 3


@pytest.mark.parametrize("path", [None, "", "/nowhere/a.wav", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_absent(path):
    assert clip_state({"bytes": None, "path": path}) == ABSENT
    assert clip_state(None) == ABSENT


@pytest.mark.parametrize("streamed", [False, True])
def test_clips_that_were_replaced_are_named(tmp_path, streamed):
    rows = []
    for name in "abc":
        (tmp_path / name).write_bytes(b"sound")
        rows.append({"id": name, "audio": {"bytes": None, "path": str(tmp_path / name)}})
    states = {row["id"]: clip_state(row["audio"]) for row in rows}
    chunk = rows if streamed else Dataset.from_list(rows)
    assert changed_clips(chunk, states) == []
    (tmp_path / "b").write_bytes(b"another")
    (tmp_path / "c").unlink()
    assert changed_clips(chunk, states) == ["b", "c"]


def test_bytes_are_looked_at_where_they_are_at_hand():
    rows = [{"id": "a", "audio": {"bytes": b"new", "path": None}}]
    states = {"a": clip_state({"bytes": b"old"})}
    assert changed_clips(rows, states) == ["a"]
    assert changed_clips(Dataset.from_list(rows), states) == []  # as documented
