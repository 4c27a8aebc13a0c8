from distillery.data.hub_layout import SplitFiles, flags_naming, splits_by_config
from distillery.data.specs import DatasetSpec


def test_sealed_shards_get_their_names_in_the_dataset(tmp_path):
    files = SplitFiles(tmp_path, ".work", "default", "train")
    files.sealed(0).parent.mkdir(parents=True)
    for index in (1, 0):
        files.sealed(index).write_bytes(str(index).encode())
    assert files.all_sealed() == [files.sealed(0), files.sealed(1)]
    files.publish()
    assert files.all_sealed() == []
    assert sorted((tmp_path / "default").iterdir()) == [
        files.published(0, 2),
        files.published(1, 2),
    ]
    assert files.published(1, 2).name == "train-00001-of-00002.parquet"
    assert files.published(1, 2).read_bytes() == b"1"


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
