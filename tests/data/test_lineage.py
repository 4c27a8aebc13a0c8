import json

import pytest

from distillery.data import hub_layout
from distillery.data.lineage import made_datasets, public_sources


def made(folder, stage, source, **results):
    """Write the record of a stage that made a dataset."""
    folder.mkdir()
    ledger = {"in": 3, "out": 2, "dropped": {"wer": 1}, "quarantined": {}}
    arguments = {"dataset_name": source, "language": None}
    record = {"stage": stage, "arguments": arguments, "ledger": ledger, **results}
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return str(folder)


def test_a_dataset_is_followed_to_what_others_made(tmp_path):
    labels = made(tmp_path / "labels", "run_pseudo_labelling", "org/speech+mine.jsonl")
    other = made(tmp_path / "other", "run_pseudo_labelling", "org/more")
    rows = made(tmp_path / "rows", "run_data_filtering", f"{labels}+{other}", language="ja")
    found = made_datasets(f"{rows}+{rows}+mine.jsonl")
    assert [each.name for each in found] == [rows, labels, other]
    assert [each.language for each in found] == ["ja", None, None]
    assert public_sources(rows) == ["org/speech", "org/more"]


def test_a_dataset_with_the_name_of_what_it_was_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "rows", "run_data_filtering", "rows+labels")
    made(tmp_path / "labels", "run_pseudo_labelling", "org/speech")
    assert [each.name for each in made_datasets("rows")] == ["rows", "labels"]


def test_a_folder_of_another_machine_is_not_asked_for(tmp_path, monkeypatch):
    rows = made(tmp_path / "rows", "run_data_filtering", "labels")
    monkeypatch.setattr(hub_layout, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    assert [each.name for each in made_datasets(rows)] == [rows]


def test_what_no_stage_made_has_no_record(tmp_path):
    (tmp_path / "rows").mkdir()
    assert made_datasets(str(tmp_path / "rows")) == []
    assert made_datasets("clips.jsonl") == []
    assert public_sources(f"{tmp_path}/rows+org/speech") == ["org/speech"]
