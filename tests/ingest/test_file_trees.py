"""Folders, archives and single files as trees of names."""

import gzip
import tarfile

import pytest
from child_memory import peak_mib
from corpora import member_header, pack, spread

from distillery.ingest import file_trees

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


# --- memory --------------------------------------------------------------------------------------

LIST = """
import sys
from pathlib import Path
from distillery.ingest.file_trees import file_tree
file_tree(Path(sys.argv[1]))
"""
MIB = 1 << 20


def bomb(path, headers, mib_each):
    """Write a compressed archive of members that are all zeros."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for header in headers:
            file.write(header)
            for _ in range(mib_each):
                file.write(bytes(MIB))
        file.write(bytes(1024))
    return path


def test_texts_of_a_compressed_archive_take_no_more_memory_than_is_allowed(tmp_path):
    headers = [member_header(f"{index}.txt", size=200 * MIB) for index in range(3)]
    path = bomb(tmp_path / "a.tar.gz", headers, 200)
    assert path.stat().st_size < 3 * MIB
    # The texts are 600 MiB; an interpreter takes some 30.
    assert peak_mib(LIST, path) < 150
    tree = file_trees.file_tree(path)
    assert tree.sizes == {}
    assert tree.rejected == {file_trees.TEXT_TOO_LARGE: ["0.txt", "1.txt", "2.txt"]}


def test_names_of_an_archive_take_no_more_memory_than_is_allowed(tmp_path):
    header = member_header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=MIB)
    name = b"a" * (MIB - 1) + b"\0"
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(header + name + member_header("short.wav"))
        file.write(bytes(1024))
    # The names are 200 MiB; an interpreter takes some 30.
    assert peak_mib(LIST, tmp_path / "a.tar.gz") < 100
    (names,) = file_trees.file_tree(tmp_path / "a.tar.gz").rejected.values()
    assert {len(name) for name in names} == {4096}


def test_many_texts_of_an_archive_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(file_trees, "MAX_TEXTS_BYTES", MIB)
    files = {f"{index}.txt": bytes(MIB // 2) for index in range(3)}
    with pytest.raises(ValueError, match=r"a\.tar: its texts up to '2\.txt' have more than 1 MiB"):
        file_trees.file_tree(pack(tmp_path / "a.tar", files))
    assert len(file_trees.file_tree(spread(tmp_path / "a", files)).sizes) == 3  # read one by one


@pytest.mark.parametrize("place", ["corpus", "corpus/b.wav"])
def test_a_file_without_end_is_no_transcript(tmp_path, place):
    corpus = spread(tmp_path / "corpus", {"b.wav": b"1", "b.txt": b"", "t.tsv": b"table"})
    with (corpus / "b.txt").open("wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk
    tree = file_trees.file_tree(tmp_path / place)
    assert tree.rejected == {file_trees.TEXT_TOO_LARGE: ["b.txt"]}
    assert file_trees.fingerprint(tmp_path / place)
