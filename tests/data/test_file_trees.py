"""Folders, archives and single files as trees of names."""

import pytest
from corpora import pack, spread

from distillery.data import file_trees

FILES = {"a.wav": b"sound a", "a.txt": b"words", "deep/b.flac": b"sound b", "deep/b.txt": b"more"}
KINDS = ["folder", "tar", "tar.gz"]


def source(tmp_path, kind, files):
    if kind == "folder":
        return spread(tmp_path / "corpus", files)
    return pack(tmp_path / f"corpus.{kind}", files)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_and_an_archive_are_the_same(tmp_path, kind):
    tree = file_trees.file_tree(
        source(tmp_path, kind, {**FILES, ".hidden/c.wav": b"", "._a.wav": b""})
    )
    assert tree.sizes == {name: len(content) for name, content in FILES.items()}
    assert sorted(tree.audio) == ["a.wav", "deep/b.flac"]
    assert tree.read_text("deep/b.txt") == b"more"
    assert tree.rejected == {}


@pytest.mark.parametrize(
    ("name", "expected"), [("a.wav", ["a.wav", "a.txt"]), ("c.wav", ["c.wav"])]
)
def test_one_file_is_itself_and_its_text(tmp_path, name, expected):
    spread(tmp_path, {**FILES, "c.wav": b"1"})
    assert list(file_trees.file_tree(tmp_path / name).sizes) == expected


def test_links_are_followed_to_files_only(tmp_path):
    folder = spread(tmp_path / "corpus", FILES)
    (folder / "linked.wav").symlink_to(folder / "a.wav")
    (folder / "dead.wav").symlink_to(folder / "gone.wav")
    (folder / "elsewhere").symlink_to(tmp_path)
    tree = file_trees.file_tree(folder)
    assert set(tree.sizes) == {*FILES, "linked.wav"}
    assert tree.rejected == {"link to a folder": ["elsewhere"], "link to nothing": ["dead.wav"]}


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError("no"))
        yield from ()

    monkeypatch.setattr(file_trees.os, "walk", walk)
    with pytest.raises(PermissionError):
        file_trees.file_tree(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change", [{"a.txt": b"WORDS"}, {"a.wav": b"a longer sound"}, {"new.wav": b"1"}]
)
def test_a_fingerprint_changes_with_texts_and_audio(tmp_path, kind, change):
    path = source(tmp_path, kind, FILES)
    before = file_trees.fingerprint(path)
    assert file_trees.fingerprint(path) == before
    source(tmp_path, kind, {**FILES, **change})
    assert file_trees.fingerprint(path) != before


def test_a_copy_has_the_same_fingerprint(tmp_path):
    folders = [spread(tmp_path / name, FILES) for name in ("one", "two")]
    assert file_trees.fingerprint(folders[0]) == file_trees.fingerprint(folders[1])
