"""What leaves this machine names no folder of it."""

import json

import pytest

from distillery.storage.publication import public_names, published_files


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("org/model", "org/model"),
        ("model", "model"),
        ("/home/me/canary/model", "model"),
        ("/home/me/canary/model/", "model"),
        ("../canary/model", "model"),
        ("~/model", "model"),
        ("canary/b/clips.jsonl", "clips.jsonl"),
        ("org/a+/home/canary/b.jsonl+org/c", "org/a+b.jsonl+org/c"),
        ("https://corpus.org/data/x", "https://corpus.org/data/x"),
        ("auto", "auto"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_a_path_is_called_by_its_last_part(name, public):
    assert public_names(name) == public


def test_a_relative_path_that_reads_like_an_id_is_known_by_being_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_names("canary/model") == "canary/model"
    (tmp_path / "canary" / "model+x").mkdir(parents=True)
    (tmp_path / "canary" / "model").mkdir()
    assert public_names("canary/model") == "model"
    assert public_names("canary/model+x") == "model+x"  # one name, and not two


@pytest.fixture
def folder(tmp_path):
    """Return a complete run whose record and card name the canary in all ways we know of."""
    root = tmp_path / "canary"
    folder = root / "my out"
    folder.mkdir(parents=True)
    (root / "a b").mkdir()
    (root / "a b" / "clips.jsonl").touch()
    clips, teacher = f"{root}/a b/clips.jsonl", f"{root}/teacher"
    record = {
        "stage": "run_x",
        "arguments": {
            "output_dir": str(folder),
            "dataset_name": clips,
            "model_name_or_path": teacher,
            "cache_dir": "../canary/cache",
            "num": 3,
            "none": None,
            "list": [teacher],
        },
        "inputs": {teacher: "0a", f"{clips} default train": "0b"},
        "scores": {f"{clips} default train": {"cer": 1.5, "of": f"{root}/other/x"}},
        "versions": {"torch": "2.13.0+cpu"},
        "files": {
            "README.md": {"size": 1, "sha256": "x"},
            "report.md": {"size": 1, "sha256": "x"},
            "m.json": {"size": 2, "sha256": "y"},
        },
    }
    card = f"# my out\n\nMade from `{teacher}`, on {clips}, see [x](/docs/x), 1/2, `{folder}`.\n"
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    (folder / "README.md").write_text(card, "utf-8")
    (folder / "report.md").write_text(f"Flags: `--model_name_or_path {teacher}`\n", "utf-8")
    return folder


def test_copies_of_record_and_card_name_no_folder(folder):
    files = published_files(folder, "repo")
    record = json.loads(files["run.json"])
    assert "canary" not in files["run.json"].decode()
    assert record["arguments"] == {
        "output_dir": "repo",
        "dataset_name": "clips.jsonl",
        "model_name_or_path": "teacher",
        "cache_dir": "cache",
        "num": 3,
        "none": None,
        "list": ["teacher"],
    }
    assert record["inputs"] == {"teacher": "0a", "clips.jsonl default train": "0b"}
    assert record["scores"] == {"clips.jsonl default train": {"cer": 1.5, "of": "x"}}
    assert record["versions"] == {"torch": "2.13.0+cpu"}
    assert files["README.md"].decode() == (
        "# repo\n\nMade from `teacher`, on clips.jsonl, see [x](/docs/x), 1/2, `repo`.\n"
    )
    assert files["report.md"].decode() == "Flags: `--model_name_or_path teacher`\n"
    assert record["files"]["report.md"]["size"] == len(files["report.md"])


def test_the_runs_own_record_and_card_stay_as_they_are(folder):
    before = [(folder / name).read_bytes() for name in ("run.json", "README.md")]
    files = published_files(folder, "repo")
    assert [(folder / name).read_bytes() for name in ("run.json", "README.md")] == before
    assert files["m.json"] == folder / "m.json"
