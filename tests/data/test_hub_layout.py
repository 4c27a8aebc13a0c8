import itertools
from functools import partial
from pathlib import Path

import pytest

from distillery.data.hub_layout import SplitFiles, flags_naming, splits_by_config
from distillery.data.specs import DatasetSpec
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.storage.shards import write_sealed


def sealed_files(folder, *indices):
    files = SplitFiles(Outputs(folder), ".work", "default", "train")
    for index in indices:
        content = str(index).encode()
        write = partial(Path.write_bytes, data=content)
        write_sealed(files.outputs, files.sealed(index), Ledger(), write)
    return files


def test_shards_are_in_order_however_many_there_are(tmp_path):
    files = sealed_files(tmp_path, 100_000, 99_999, 2)
    assert files.all_sealed() == [files.sealed(2), files.sealed(99_999), files.sealed(100_000)]


def test_sealed_shards_get_their_names_in_the_dataset(tmp_path):
    files = sealed_files(tmp_path, 1, 0)
    assert files.all_sealed() == [files.sealed(0), files.sealed(1)]
    assert files.found(1) is None
    files.publish()
    assert not files.sealed(0).exists()
    assert files.all_sealed() == [files.sealed(0), files.sealed(1)]  # their seals are there
    assert sorted((tmp_path / "default").iterdir()) == [
        files.published(0, 2),
        files.published(1, 2),
    ]
    assert files.published(1, 2).name == "train-00001-of-00002.parquet"
    assert files.published(1, 2).read_bytes() == b"1"
    assert files.found(1) == files.published(1, 2)
    assert files.outputs.names() == [f"default/train-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert files.outputs.damage(verify=True) == {}


def test_work_on_a_shard_does_not_read_the_list_of_all(tmp_path, monkeypatch):
    def read(_outputs):
        raise AssertionError("with each of thousands of shards it would take longer")

    monkeypatch.setattr(Outputs, "written", read)
    files = sealed_files(tmp_path, 0, 1)
    files.withdraw(0, 1)


def test_the_folder_is_not_looked_through_for_each_shard(tmp_path, monkeypatch):
    files = sealed_files(tmp_path, 0, 1, 2)
    files.publish()
    assert files.found(0) == files.published(0, 3)

    original = Path.glob

    def glob(folder, pattern):
        assert folder != tmp_path / "default", "for each of thousands of shards it takes longer"
        return original(folder, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    assert files.found(2) == files.published(2, 3)
    files.withdraw(2)
    assert files.found(2) is None


def test_publishing_goes_on_after_a_kill_and_takes_one_shard_alone(tmp_path, monkeypatch):
    files = sealed_files(tmp_path, 0, 1, 2)
    original, count = Path.replace, itertools.count(1)

    def deadly(path, target):
        if next(count) == 2:
            raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", deadly)
        files.publish()
    files.publish()
    assert [files.published(n, 3).read_bytes() for n in range(3)] == [b"0", b"1", b"2"]
    assert files.outputs.damage(verify=True) == {}

    files.withdraw(1, 3)
    assert not files.published(1, 3).exists()
    sealed_files(tmp_path, 1).publish()
    assert [files.published(n, 3).read_bytes() for n in range(3)] == [b"0", b"1", b"2"]


def test_a_file_of_the_users_in_the_place_of_a_shard_stays(tmp_path):
    files = sealed_files(tmp_path, 0)
    files.published(0, 1).parent.mkdir()
    files.published(0, 1).write_text("mine")
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet is about to be written"):
        files.publish()
    files.withdraw(0)
    assert files.published(0, 1).read_text() == "mine"


def test_splits_are_listed_by_configuration():
    specs = [DatasetSpec("x", config, split) for config, split in ("am", "an", "bm")]
    assert splits_by_config(specs) == {"a": ["m", "n"], "b": ["m"]}


def test_a_written_dataset_is_named_by_as_few_flags_as_will_do(tmp_path):
    folder = tmp_path / "my labels"
    one = DatasetSpec("x", "default", "train")
    assert flags_naming(folder, [one]) == f"-d '{folder}'"
    two = [one, DatasetSpec("x", "other", "test")]
    assert flags_naming(tmp_path, two) == (
        f"-d {tmp_path} --dataset_config_name default+other --dataset_split_name train+test"
    )
