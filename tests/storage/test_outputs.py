"""What a run wrote is known from what is the user's."""

import os
from multiprocessing import get_context

import pytest

from distillery.storage.files import write_json
from distillery.storage.outputs import JOURNALS, Outputs, Written, is_inside


def write(outputs, name, content=b"ours"):
    path = outputs.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with outputs.replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


@pytest.fixture
def outputs(tmp_path):
    return Outputs(tmp_path)


def files_in(folder):
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.parts[0] != JOURNALS)


def test_what_is_written_is_listed_with_size_and_checksum(outputs):
    write(outputs, "a/b.parquet", b"abc")
    assert outputs.to_dict() == {
        "a/b.parquet": {
            "size": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }
    }
    assert outputs.damage() == outputs.damage(verify=True) == {}


def test_a_finished_runs_list_is_its_record(outputs, tmp_path):
    write(outputs, "one")
    listed = outputs.to_dict()
    write_json(tmp_path / "run.json", {"files": listed})
    outputs.forget_journals()
    assert not (tmp_path / JOURNALS).exists()
    assert outputs.to_dict() == listed
    assert outputs.names() == ["one"]


def test_every_process_has_its_own_journal(tmp_path):
    write(Outputs(tmp_path), "mine")
    child = get_context("spawn").Process(target=write, args=(Outputs(tmp_path), "the child's"))
    child.start()
    child.join()
    assert len(list((tmp_path / JOURNALS).iterdir())) == 2
    assert set(Outputs(tmp_path).to_dict()) == {"mine", "the child's"}


def test_a_file_is_listed_before_it_has_its_name(outputs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(outputs, "late")
    assert list(outputs.written()) == ["late"]
    assert outputs.damage() == {"late": "it is missing"}
    assert outputs.to_dict() == {}


def test_a_line_that_a_kill_cut_is_passed_over(outputs, tmp_path):
    write(outputs, "one")
    (journal,) = (tmp_path / JOURNALS).iterdir()
    with journal.open("a") as file:
        file.write('{"path": "tw')
    write(outputs, "three")  # by a process of the same number
    assert list(outputs.to_dict()) == ["one", "three"]


def test_a_file_that_is_written_again_may_be_either(outputs):
    path = write(outputs, "one", b"first")
    write(outputs, "one", b"the second")
    assert outputs.damage(verify=True) == {}
    path.write_bytes(b"first")  # a kill between the list and the new name
    assert outputs.damage(verify=True) == {}
    assert outputs.changed() == []
    assert outputs.to_dict()["one"]["size"] == len(b"first")  # what is there


def test_damage_is_found_and_named(outputs):
    for name in ("cut", "gone", "flipped", "whole"):
        write(outputs, name, b"content")
    (outputs.folder / "cut").write_bytes(b"con")
    (outputs.folder / "gone").unlink()
    (outputs.folder / "flipped").write_bytes(b"cOntent")
    by_size = {"cut": "it has 3 bytes; 7 were written", "gone": "it is missing"}
    assert outputs.damage() == by_size
    by_sum = {**by_size, "flipped": "its content is not what was written"}
    assert outputs.damage(verify=True) == by_sum
    assert outputs.changed() == ["cut", "flipped"]


def test_texts_may_be_edited_and_logs_be_thrown_away(outputs):
    for name in ("README.md", "config.yaml", "log.jsonl"):
        write(outputs, name)
        (outputs.folder / name).write_text("in other words")
    assert outputs.damage(verify=True) == {}
    for name in ("README.md", "log.jsonl"):
        (outputs.folder / name).unlink()
    assert outputs.damage() == {"README.md": "it is missing"}


def test_a_text_that_was_edited_is_not_written_again(outputs, caplog):
    card = outputs.folder / "README.md"
    for text in ("first", "second"):
        outputs.write_text(card, text)
        assert card.read_text() == text
    card.write_text("my own words")
    outputs.write_text(card, "third")
    assert card.read_text() == "my own words"
    assert "README.md was changed since it was written, and stays" in caplog.text


def test_spare_files_are_not_missed(outputs):
    shard = outputs.folder / ".work" / "0"
    with outputs.replacing(shard, spare=True) as temporary:
        temporary.write_bytes(b"rows")
    assert outputs.names() == []
    shard.write_bytes(b"")
    assert outputs.damage(verify=True) == {}
    outputs.delete()
    assert files_in(outputs.folder) == []


def test_a_file_that_grows_is_ours_by_its_name_until_the_end(outputs):
    log = outputs.folder / "log.jsonl"
    outputs.grow(log)
    for line in ("one\n", "two\n"):
        with log.open("a") as file:
            file.write(line)
        assert outputs.changed() == []
    outputs.grow(log)  # a second start
    assert outputs.to_dict() == {"log.jsonl": Written.of(log).to_dict()}
    outputs.delete()
    assert files_in(outputs.folder) == []


def test_a_file_that_was_deleted_is_off_the_list(outputs):
    write(outputs, "one")
    outputs.remove([outputs.folder / "one", outputs.folder / "never"])
    assert outputs.written() == {}
    write(outputs, "one", b"again")
    assert outputs.damage(verify=True) == {}


def test_files_of_a_staging_folder_are_taken_in(outputs):
    staged = outputs.folder / ".model.tmp"
    (staged / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (staged / name).write_text(name)
    outputs.take_in(staged)
    assert outputs.names() == ["a", "sub/b"]
    assert not staged.exists()


def test_what_others_left_is_not_replaced(outputs):
    path = outputs.folder / "model.json"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"model.json is about to be written, and this run"):
        write(outputs, "model.json")
    with pytest.raises(ValueError, match="about to be written"):
        outputs.grow(path)
    assert path.read_text() == "mine"


def test_nothing_is_written_through_a_link(outputs, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (outputs.folder / "default").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="symbolic link: nothing is written through it"):
        write(outputs, "default/train.parquet")
    assert files_in(elsewhere) == []


def test_only_what_was_written_is_deleted(outputs, tmp_path):
    for name in ("default/train-00000.parquet", "plots/a/b.png"):
        write(outputs, name)
    for name in ("proj/data.parquet", "default/mine.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert outputs.others() == ["default/mine.parquet", "notes.txt", "proj/data.parquet"]
    outputs.delete()
    assert files_in(tmp_path) == ["default/mine.parquet", "notes.txt", "proj/data.parquet"]
    assert not (tmp_path / "plots").exists() and not (tmp_path / JOURNALS).exists()


def test_a_changed_file_is_told_by_its_content_however_large(outputs, monkeypatch):
    monkeypatch.setattr("distillery.storage.outputs.SMALL_BYTES", 0)
    path = write(outputs, "large", b"content")
    os.utime(path, (0, 0))
    assert outputs.changed() == []
    path.write_bytes(b"cOntent")
    os.utime(path, (2**32, 2**32))
    assert outputs.changed() == ["large"]


def test_nothing_is_deleted_through_a_link(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    outputs = Outputs(out)
    write(outputs, "default/train.parquet")
    (out / "default").rename(elsewhere)
    (out / "default").symlink_to(elsewhere)
    assert outputs.damage() == {"default/train.parquet": "it lies behind a symbolic link"}
    assert outputs.changed() == ["default/train.parquet"]
    outputs.delete()
    assert files_in(elsewhere) == ["train.parquet"]


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "a/../../mine"])
def test_a_list_that_names_other_folders_deletes_nothing(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    assert not is_inside(out, name)
    write_json(out / "run.json", {"files": {name: Written.of(tmp_path / "mine").to_dict()}})
    Outputs(out).delete()
    assert (tmp_path / "mine").exists()


def test_a_list_of_thousands_is_read_and_written_at_once(outputs, tmp_path):
    entry = Written(1, "0" * 64, spare=True)
    names = [f".labels/default/train/{n:05d}.parquet" for n in range(20_000)]
    outputs.add({tmp_path / name: entry for name in names})
    assert list(outputs.written()) == names
    (journal,) = (tmp_path / JOURNALS).iterdir()
    assert journal.stat().st_size < 200 * len(names)


def test_settings_may_be_edited_and_are_damaged_only_where_they_are_no_json(tmp_path):
    outputs = Outputs(tmp_path)
    with outputs.replacing(tmp_path / "config.json") as temporary:
        temporary.write_text('{"dropout": 0.0}\n')
    (tmp_path / "config.json").write_text('{"dropout": 0.1, "mask_time_prob": 0.05}\n')
    assert outputs.damage() == outputs.damage(verify=True) == {}
    (tmp_path / "config.json").write_text('{"dropout": 0')
    assert "config.json" in outputs.damage()
