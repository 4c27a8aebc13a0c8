import itertools
import logging

import pytest

from distillery.storage.checkpoints import (
    BEST,
    MANIFEST,
    OPTIMIZER,
    PROGRESS,
    checkpoint_path,
    find_damage,
    newest_checkpoint,
    rotate,
    sealed_folder,
)
from distillery.storage.files import temporary_path
from distillery.storage.outputs import Outputs, Written

FILES = {"model.safetensors": b"weights", OPTIMIZER: b"moments", PROGRESS: b"{}", "sub/x": b"1"}


def seal(path, files=FILES):
    with sealed_folder(path) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return path


def save_steps(folder, *steps):
    for step in steps:
        seal(checkpoint_path(folder, step))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_sealed_folder_is_whole(tmp_path):
    path = seal(tmp_path / "checkpoint-1")
    assert find_damage(path) is None
    assert names(tmp_path) == ["checkpoint-1"]
    assert names(path) == sorted(["model.safetensors", OPTIMIZER, PROGRESS, "sub", MANIFEST])


def test_nothing_has_the_final_name_before_all_is_there(tmp_path):
    path = tmp_path / "deep" / "checkpoint-1"
    with sealed_folder(path) as folder:
        (folder / "a").write_text("a")
        assert not path.exists()
    assert path.is_dir()


def test_an_exception_leaves_nothing_under_the_final_name(tmp_path):
    with pytest.raises(KeyError), sealed_folder(tmp_path / "checkpoint-1") as folder:
        (folder / "a").write_text("a")
        raise KeyError("killed")
    assert not (tmp_path / "checkpoint-1").exists()
    assert newest_checkpoint(tmp_path) is None


def test_an_exception_leaves_the_folder_that_was_there(tmp_path):
    path = seal(tmp_path / BEST)
    with pytest.raises(KeyError), sealed_folder(path) as folder:
        (folder / "a").write_text("a")
        raise KeyError("killed")
    assert find_damage(path) is None
    assert (path / "model.safetensors").read_bytes() == b"weights"


def test_what_a_killed_writer_left_does_not_get_into_the_next_folder(tmp_path):
    left = temporary_path(tmp_path / "checkpoint-1")
    left.mkdir()
    (left / "old").write_text("half")
    path = seal(tmp_path / "checkpoint-1")
    assert not (path / "old").exists()
    assert not left.exists()


@pytest.mark.parametrize("name", ["student.tmp", "student.old", ".student.mine.tmp"])
def test_folders_of_the_users_beside_it_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "weights").write_text("mine")
    for _ in range(2):
        seal(tmp_path / "student")
    assert (tmp_path / name / "weights").read_text() == "mine"


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path, monkeypatch, call):
    path = seal(tmp_path / BEST, {"a": b"1"})
    original, count = type(path).rename, itertools.count(1)

    def deadly(*names):
        if next(count) == call:
            raise KeyboardInterrupt
        return original(*names)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(path), "rename", deadly)
        seal(path, {"b": b"2"})
    with pytest.raises(KeyError), sealed_folder(path):  # begins, and finds the old one again
        raise KeyError
    assert names(path) == ["a", MANIFEST]
    seal(path, {"b": b"2"})
    assert names(path) == ["b", MANIFEST]


def test_what_the_user_put_into_a_folder_stays_when_it_is_replaced(tmp_path):
    path = seal(tmp_path / BEST)
    (path / "sub" / "notes.txt").write_text("mine")
    (path / "link").symlink_to("sub/notes.txt")
    seal(path, {"other": b"2"})
    assert names(path) == ["link", MANIFEST, "other", "sub"]
    assert (path / "sub" / "notes.txt").read_text() == "mine" and (path / "link").is_symlink()
    assert find_damage(path) is None
    with pytest.raises(ValueError, match=r"notes.txt is about to be written, and this run did not"):
        seal(path, {"sub/notes.txt": b"3"})
    assert (path / "sub" / "notes.txt").read_text() == "mine"


def test_its_files_are_listed_with_the_sums_of_its_manifest(tmp_path):
    outputs = Outputs(tmp_path)
    with sealed_folder(tmp_path / "checkpoint-1", outputs) as folder:
        (folder / "a").write_bytes(b"1")
    wanted = {"checkpoint-1/a", f"checkpoint-1/{MANIFEST}"}
    assert set(outputs.written()) == wanted
    for name, (entry,) in outputs.written().items():
        assert entry == Written.of(tmp_path / name, spare=True)
    save_steps(tmp_path, 2)
    rotate(tmp_path, 2, 1)
    assert outputs.written() == {}


def test_what_the_user_put_into_a_checkpoint_outlives_it(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "checkpoint-1" / "notes.txt").write_text("mine")
    rotate(tmp_path, 2, 1)
    assert names(tmp_path / "checkpoint-1") == ["notes.txt"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert caplog.text == ""


def test_a_new_folder_replaces_the_old_one_as_a_whole(tmp_path):
    seal(tmp_path / BEST)
    seal(tmp_path / BEST, {"other": b"2"})
    assert names(tmp_path / BEST) == [MANIFEST, "other"]
    assert find_damage(tmp_path / BEST) is None


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    path = seal(tmp_path / "checkpoint-1")
    (path / name).unlink()
    assert find_damage(path) == f"{name} is missing"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"X" + b[1:]])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = seal(tmp_path / "checkpoint-1")
    (path / name).write_bytes(damage(FILES[name]))
    assert find_damage(path) == f"{name} is damaged"


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"{}", b"[]", b"null", b"\xff\xfe\x00"])
def test_a_damaged_manifest_is_damage(tmp_path, content):
    path = seal(tmp_path / "checkpoint-1")
    if content is None:
        (path / MANIFEST).unlink()
    else:
        (path / MANIFEST).write_bytes(content)
    assert "its manifest" in find_damage(path)


def test_without_checkpoints_there_is_no_newest(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


def test_the_newest_is_by_number_not_by_name(tmp_path):
    save_steps(tmp_path, 10, 9, 100)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    seal(tmp_path / BEST)
    seal(tmp_path / "checkpoint-final")
    (tmp_path / "checkpoint-200.tmp").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog):
    save_steps(tmp_path, 9, 10, 11)
    (tmp_path / "checkpoint-11" / OPTIMIZER).unlink()
    (tmp_path / "checkpoint-10" / MANIFEST).write_bytes(b"\xff")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    warned = [record.getMessage() for record in caplog.records]
    assert warned[0] == f"{tmp_path / 'checkpoint-11'} is not used: {OPTIMIZER} is missing"
    assert warned[1].startswith(f"{tmp_path / 'checkpoint-10'} is not used: its manifest")


def test_no_whole_checkpoint_is_an_error(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        (checkpoint_path(tmp_path, step) / PROGRESS).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 2 checkpoints is whole.*--overwrite_output"):
        newest_checkpoint(tmp_path)


def test_rotation_keeps_the_newest_and_all_that_is_no_checkpoint(tmp_path):
    save_steps(tmp_path, 9, 10, 100)
    seal(tmp_path / BEST)
    (tmp_path / "checkpoint-1.tmp").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()
    rotate(tmp_path, 100, None)
    assert len(names(tmp_path)) == 6
    rotate(tmp_path, 100, 2)
    assert names(tmp_path) == sorted(
        ["checkpoint-10", "checkpoint-100", BEST, "checkpoint-1.tmp", "checkpoint-notes"]
    )
    rotate(tmp_path, 100, 5)
    assert len(names(tmp_path)) == 5


def test_rotation_keeps_what_was_just_saved_and_not_a_damaged_later_one(tmp_path):
    save_steps(tmp_path, 100, 200)
    (tmp_path / "checkpoint-200" / PROGRESS).write_bytes(b"")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    save_steps(tmp_path, 150)  # stopped by SIGTERM on the way
    rotate(tmp_path, 150, 1)
    assert names(tmp_path) == ["checkpoint-150"]
