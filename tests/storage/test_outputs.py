"""What a run wrote is known from what is the user's."""

import json

import pytest

from distillery.storage.outputs import JOURNALS, Outputs, is_inside, refuse_overlap


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
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


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
    record = json.loads(json.dumps(outputs.to_dict()))
    outputs.forget_journals()
    assert not (tmp_path / JOURNALS).exists()
    assert Outputs(tmp_path, 0, record).to_dict() == record
    assert Outputs(tmp_path).to_dict() == {}


def test_every_process_has_its_own_list(tmp_path):
    for process in (0, 1):
        write(Outputs(tmp_path, process), f"part-{process}")
    assert set(Outputs(tmp_path, 5).to_dict()) == {"part-0", "part-1"}


def test_a_file_is_listed_before_it_has_its_name(outputs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(outputs, "late")
    assert list(outputs.to_dict()) == ["late"]
    assert outputs.damage() == {"late": "it is missing"}


def test_a_line_that_a_kill_cut_is_passed_over(outputs, tmp_path):
    write(outputs, "one")
    with (tmp_path / JOURNALS / "0.jsonl").open("a") as journal:
        journal.write('{"path": "tw')
    assert list(outputs.to_dict()) == ["one"]


def test_a_file_that_is_written_again_may_be_either(outputs):
    path = write(outputs, "one", b"first")
    path.write_bytes(b"first")
    write(outputs, "one", b"second")
    assert outputs.damage(verify=True) == {}
    path.write_bytes(b"first")  # a kill between the list and the new name
    assert outputs.damage(verify=True) == {}
    assert outputs.to_dict()["one"]["size"] == len(b"second")


def test_damage_is_found_and_named(outputs, monkeypatch):
    for name in ("cut", "gone", "flipped", "whole"):
        write(outputs, name, b"content")
    (outputs.folder / "cut").write_bytes(b"con")
    (outputs.folder / "gone").unlink()
    (outputs.folder / "flipped").write_bytes(b"cOntent")
    assert outputs.damage() == {
        "cut": "it has 3 bytes; 7 were written",
        "gone": "it is missing",
        "flipped": "its content is not what was written",
    }
    monkeypatch.setattr("distillery.storage.outputs.SMALL_BYTES", 2)
    assert "flipped" not in outputs.damage()
    assert "flipped" in outputs.damage(verify=True)


def test_only_what_was_written_is_deleted(outputs, tmp_path):
    write(outputs, "default/train-00000.parquet")
    write(outputs, "README.md")
    for name in ("proj/data.parquet", "default/mine.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "README.md").write_text("my own words")
    assert outputs.delete() == ["README.md"]
    outputs.forget_journals()
    assert files_in(tmp_path) == [
        "README.md",
        "default/mine.parquet",
        "notes.txt",
        "proj/data.parquet",
    ]


def test_nothing_is_deleted_through_a_link(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    outputs = Outputs(out)
    write(outputs, "default/train.parquet")
    (out / "default").rename(elsewhere)
    (out / "default").symlink_to(elsewhere)
    assert outputs.damage() == {"default/train.parquet": "it lies behind a symbolic link"}
    assert outputs.delete() == ["default/train.parquet"]
    assert files_in(elsewhere) == ["train.parquet"]


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "a/../../mine"])
def test_a_list_that_names_other_folders_deletes_nothing(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    assert not is_inside(out, name)
    size = len("mine")
    assert Outputs(out, 0, {name: {"size": size, "sha256": "0"}}).delete() in ([name], [])
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("output", "source", "says"),
    [
        ("in", "in", "is the input"),
        ("in/out", "in", "lies in the input"),
        (".", "in", "holds the input"),
        (".", "clips.jsonl", "holds the input"),
        ("link", "in", "is the input"),
        ("in/../in", "in", "is the input"),
    ],
)
def test_an_output_that_overlaps_an_input_is_refused(tmp_path, output, source, says):
    (tmp_path / "in").mkdir()
    (tmp_path / "clips.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match=says):
        refuse_overlap(tmp_path / output, ["org/model", str(tmp_path / source)])


def test_an_output_beside_its_inputs_is_taken(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "clips.jsonl").touch()
    names = [str(tmp_path / "in"), str(tmp_path / "clips.jsonl"), "org/set", "no/such"]
    refuse_overlap(tmp_path / "out", names)
    refuse_overlap(tmp_path / "inner", names)
