"""A clip that was replaced is in another state."""

import os

import pytest

from distillery.data.clip_states import ABSENT, clip_state, refuse_changed


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


def test_a_clip_that_changed_is_named():
    audio = {"bytes": b"new", "path": None}
    refuse_changed("a", audio, clip_state(audio))
    with pytest.raises(ValueError, match="the audio of clip 'a' has changed while it was labelled"):
        refuse_changed("a", audio, clip_state({"bytes": b"old"}))
