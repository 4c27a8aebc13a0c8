"""What has a name is on the disk: flushed before its rename, and the rename flushed after it."""

import os
from pathlib import Path

import pytest

from distillery.storage.checkpoints import MANIFEST, sealed_folder
from distillery.storage.files import replacing, write_json


@pytest.fixture
def calls(monkeypatch):
    """Return a list that will hold ("fsync", path), and ("rename", new path) of each rename."""
    calls = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def recorded_fsync(handle):
        calls.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def recorded(original):
        def move(source, target):
            calls.append(("rename", Path(target)))
            original(source, target)

        return move

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded(replace))
    monkeypatch.setattr(os, "rename", recorded(rename))
    return calls


def test_a_file_is_flushed_then_renamed_and_its_folder_flushed(tmp_path, calls):
    path = tmp_path / "b.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert calls == []
    assert calls == [("fsync", temporary), ("rename", path), ("fsync", tmp_path)]


def test_json_is_flushed_too(tmp_path, calls):
    write_json(tmp_path / "x.json", {})
    assert [kind for kind, _ in calls] == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize("replaces", [False, True])
def test_a_folder_has_its_name_when_all_of_it_is_flushed(tmp_path, calls, replaces):
    path = tmp_path / "checkpoint-1"
    if replaces:
        path.mkdir()
    with sealed_folder(path) as temporary:
        (temporary / "weights").write_text("1")
        (temporary / "moments").write_text("2")
        assert calls == []
    named = calls.index(("rename", path))
    before, after = calls[:named], calls[named + 1 :]
    manifest = before.index(("rename", temporary / MANIFEST))
    for name in ("weights", "moments"):
        assert before.index(("fsync", temporary / name)) < manifest
    assert ("fsync", temporary) in before[manifest:]  # the manifest's own name
    assert after == [("fsync", tmp_path)]
    assert (("rename", tmp_path / ".checkpoint-1.old.tmp") in before) is replaces
