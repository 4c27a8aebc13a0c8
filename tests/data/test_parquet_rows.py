"""Rows of Parquet files, which are read where they lie."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from child_memory import peak_mib
from datasets import Audio, ClassLabel, Dataset, Features, Value, load_dataset
from datasets.features import List

from distillery.data import column_types, hub_layout, parquet_rows, regions
from distillery.data.parquet_rows import ParquetFiles, ParquetRows
from distillery.data.specs import DatasetSpec
from distillery.ingest import hub_datasets

FEATURES = Features(
    {
        "id": Value("string"),
        "audio": Audio(sampling_rate=16_000),
        "kind": ClassLabel(names=["a", "b"]),
        "ids": List(Value("int32")),
        "words": List({"word": Value("string"), "at": Value("float32")}),
        "note": Value("string"),
    }
)
NUM_ROWS = 40


def row_of(i):
    return {
        "id": f"row {i}",
        "audio": {"bytes": bytes([i]) * 500, "path": f"{i}.flac"},
        "kind": i % 2,
        "ids": None if i % 7 == 3 else list(range(i % 4)),
        "words": [{"word": f"w{j}", "at": j / 2} for j in range(i % 3)],
        "note": None if i % 5 else "x",
    }


ROWS = [row_of(i) for i in range(NUM_ROWS)]


def write(path, rows, group_size, features=FEATURES):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=group_size)
    return str(path)


@pytest.fixture(params=[1, 7, 1000])
def paths(request, tmp_path):
    """Three files, one of which is empty, with row groups of some size."""
    parts = {"a": ROWS[:23], "b": [], "c": ROWS[23:]}
    return [write(tmp_path / f"{n}.parquet", part, request.param) for n, part in parts.items()]


@pytest.fixture(params=[1, 5000, 1 << 20])
def table_bytes(request, monkeypatch):
    monkeypatch.setattr(parquet_rows, "TABLE_BYTES", request.param)


@pytest.fixture
def rows(paths, table_bytes):
    return ParquetRows.of(ParquetFiles.of(paths))


# --- what is read --------------------------------------------------------------------------------


def test_rows_are_those_of_the_files(rows):
    assert len(rows) == NUM_ROWS
    assert list(rows) == ROWS
    assert [row for table in rows.tables() for row in table.to_pylist()] == ROWS
    assert rows.table().to_pylist() == ROWS
    assert rows.features["kind"] == FEATURES["kind"]
    assert rows.features["audio"] == Audio(sampling_rate=None, decode=False)


def test_rows_are_read_in_any_order(rows):
    order = [*np.random.default_rng(0).permutation(NUM_ROWS).tolist(), 5, 5, 6, 4, -1]
    assert [rows[i] for i in order] == [ROWS[i] for i in order]
    assert list(rows.select(order)) == [ROWS[i] for i in order]
    with pytest.raises(IndexError):
        rows[NUM_ROWS]


def test_two_readers_take_turns(rows):
    here, there = iter(rows), iter(rows.select(range(20, NUM_ROWS)))
    for i in range(20):
        assert (next(here), next(there), rows[i]) == (ROWS[i], ROWS[20 + i], ROWS[i])


def test_some_rows_of_some_columns_under_other_names(rows):
    ids = pa.array([f"{i}" for i in range(NUM_ROWS)])
    some = rows.rename_column("note", "text").remove_columns("id").remove_columns("words")
    some = some.add_column("id", ids, Value("string")).select(range(10, 30)).select([3, 1, 19])
    wanted = [
        {**{name: ROWS[i][name] for name in ("audio", "kind", "ids")}, "text": ROWS[i]["note"]}
        | {"id": f"{i}"}
        for i in (13, 11, 29)
    ]
    assert some.column_names == ["audio", "kind", "ids", "text", "id"]
    assert list(some) == [some[i] for i in range(3)] == wanted
    assert some["id"] == ["13", "11", "29"]
    assert list(some.take(2)) == wanted[:2] and list(some.take(9)) == wanted
    assert list(some.select([])) == [] and some.select([]).table().column_names == some.column_names
    assert some.select_columns(["id"])[1] == {"id": "11"}


def test_rows_go_to_other_processes(rows):
    assert rows[7] == ROWS[7]  # a file is open
    sent = pickle.dumps(rows.select(range(3, 9)))
    assert list(pickle.loads(sent)) == ROWS[3:9]  # noqa: S301


def test_values_are_those_of_the_library(tmp_path):
    path = write(tmp_path / "d" / "train.parquet", ROWS, 9)
    library = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "c"))
    library = library.cast_column("audio", Audio(decode=False))
    rows = ParquetRows.of(ParquetFiles.of([path]))
    assert list(rows) == list(library)
    assert {**rows.features, "audio": None} == {**library.features, "audio": None}


# --- files of one dataset ------------------------------------------------------------------------


def test_what_fits_is_read_as_the_first_file_has_it(tmp_path):
    features = Features({"id": Value("string"), "n": Value("int64"), "m": Value("int32")})
    first = write(tmp_path / "a.parquet", [{"id": "a", "n": 1, "m": 2}], 9, features)
    second = tmp_path / "b.parquet"
    pq.write_table(pa.table({"n": pa.array([3], pa.int8()), "id": pa.array([4])}), second)
    rows = ParquetRows.of(ParquetFiles.of([first, str(second)]))
    assert list(rows) == [{"id": "a", "n": 1, "m": 2}, {"id": "4", "n": 3, "m": None}]
    assert [row["m"] for row in rows.select_columns("m")] == [2, None]


@pytest.mark.parametrize("other", [{"id": [1.5], "extra": [1]}, {"id": [{"a": 1}]}])
def test_files_with_other_columns_are_an_error_that_names_one(tmp_path, other):
    first = write(tmp_path / "a.parquet", [{"id": "a"}], 9, Features({"id": Value("string")}))
    second = tmp_path / "b.parquet"
    pq.write_table(pa.table(other), second)
    with pytest.raises(ValueError, match=r"b\.parquet has other columns .* not id \(string\)"):
        ParquetFiles.of([first, str(second)])


def test_values_that_do_not_fit_are_no_damage(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, values in zip(paths, ([1], ["one"]), strict=True):
        pq.write_table(pa.table({"n": values}), path)
    rows = ParquetRows.of(ParquetFiles.of([str(path) for path in paths]))
    assert rows[0] == {"n": 1}
    with pytest.raises(ValueError, match=r"b\.parquet has values of another type .* 'one'"):
        rows[1]


def damaged_audio(folder):
    """Write a file whose column of audio cannot be read: its pages' headers are gone."""
    path = Path(write(folder / "a.parquet", ROWS, 10))
    group = pq.read_metadata(path).row_group(1)
    chunks = [group.column(i) for i in range(group.num_columns)]
    (audio,) = (chunk for chunk in chunks if chunk.path_in_schema == "audio.bytes")
    start = min(filter(None, (audio.dictionary_page_offset, audio.data_page_offset)))
    content = bytearray(path.read_bytes())
    content[start : start + audio.total_compressed_size] = b"\xff" * audio.total_compressed_size
    path.write_bytes(content)
    return path


def test_nothing_is_read_but_the_columns_that_are_wanted(tmp_path):
    rows = ParquetRows.of(ParquetFiles.of([str(damaged_audio(tmp_path))]))
    assert rows["id"] == [row["id"] for row in ROWS]
    assert rows.select_columns(["id", "ids"])[15] == {"id": "row 15", "ids": ROWS[15]["ids"]}
    assert rows[5] == ROWS[5]  # of another row group


def test_damage_is_an_error_that_names_the_file(tmp_path):
    rows = ParquetRows.of(ParquetFiles.of([str(damaged_audio(tmp_path))]))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a\.parquet is damaged, or no Parquet file"):
            rows[15]
        with pytest.raises(ValueError, match=r"a\.parquet is damaged, or no Parquet file"):
            list(rows)
    assert rows[35] == ROWS[35]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", None])
def test_what_is_no_parquet_is_named(tmp_path, content):
    path = Path(write(tmp_path / "a.parquet", ROWS, 10))
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged, or no Parquet file"):
        ParquetFiles.of([str(path)])


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    paths = [write(tmp_path / f"{name}.parquet", ROWS[:9], 5) for name in "ab"]
    rows = ParquetRows.of(ParquetFiles.of(paths))
    assert rows[2] == ROWS[2]
    write(tmp_path / "b.parquet", ROWS[9:20], 5)
    with pytest.raises(ValueError, match=r"b\.parquet has changed since this run began"):
        rows[12]
    assert list(ParquetRows.of(ParquetFiles.of(paths))) == ROWS[:20]


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "clips"
    for index, start in enumerate((0, 10)):
        write(folder / f"train-0000{index}-of-00002.parquet", ROWS[start : start + 10], 4)
    write(folder / "test-00000-of-00001.parquet", ROWS[20:], 100)
    return folder


def loaded(folder, **fields):
    return hub_datasets.load(DatasetSpec(str(folder), **fields))


@pytest.mark.parametrize(
    "split",
    ["train", "test", "train[3:12]", "train[-5:]", "test[10%:50%]", "test[:3]+train", "all"],
)
def test_splits_and_parts_are_those_of_the_library(folder, split, tmp_path):
    wanted = load_dataset(str(folder), split=split, cache_dir=str(tmp_path))
    rows = loaded(folder, split=split)
    assert isinstance(rows, ParquetRows)
    assert rows["id"] == list(wanted["id"])


@pytest.mark.parametrize("split", ["dev", "dev[:3]", "train+dev"])
def test_a_split_that_is_not_there_is_named(folder, split):
    with pytest.raises(ValueError, match="dev"):
        loaded(folder, split=split)


def test_no_copy_is_made(folder):
    cache = Path(os.environ["HF_DATASETS_CACHE"])
    before = sorted(cache.rglob("*"))
    assert list(loaded(folder, split="test")) == ROWS[20:]
    assert sorted(cache.rglob("*")) == before


def test_the_card_decides_about_types(folder, tmp_path):
    write(tmp_path / "train.parquet", [{"id": 5}], 9, Features({"id": Value("int64")}))
    card = "dataset_info:\n  features:\n  - name: id\n    dtype: string\n"
    (tmp_path / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    assert list(loaded(tmp_path)) == [{"id": "5"}]


def test_a_selection_that_the_card_makes_is_left_to_the_library(tmp_path):
    write(tmp_path / "train.parquet", ROWS, 9)
    card = "configs:\n- config_name: default\n  data_files: train.parquet\n  columns: [id]\n"
    (tmp_path / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    rows = loaded(tmp_path, cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows, Dataset) and rows.column_names == ["id"]


# --- memory --------------------------------------------------------------------------------------

READ = """
import sys
import numpy as np
from distillery.data.parquet_rows import ParquetFiles, ParquetRows
rows = ParquetRows.of(ParquetFiles.of([sys.argv[1]]))
order = {"none": [], "order": range(len(rows)), "any": [900, 40, 1599]}[sys.argv[2]]
assert all(len(rows[i]["audio"]["bytes"]) == 100_000 for i in order)
"""


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    path = tmp_path / "a.parquet"
    noise = np.random.default_rng(0).bytes(100_000)
    audio = pa.array([{"bytes": noise[i:] + noise[:i], "path": None} for i in range(1600)])
    # Into pages of 16 rows.
    pq.write_table(pa.table({"audio": audio}), path, use_dictionary=False, write_batch_size=16)
    assert pq.read_metadata(path).num_row_groups == 1
    plain = peak_mib(READ, path, "none")
    for how in ("order", "any"):
        assert peak_mib(READ, path, how) - plain < 80  # of 160


# --- writing -------------------------------------------------------------------------------------


def test_row_groups_are_small_and_depend_on_the_rows_alone(tmp_path):
    features = column_types.Features({"id": Value("string"), "audio": column_types.AUDIO_TYPE})
    sizes = np.random.default_rng(0).integers(1, 200_000, 250)
    rows = [
        {"id": f"{i}", "audio": {"bytes": b"x" * size, "path": None}}
        for i, size in enumerate(sizes)
    ]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    contents = set()
    for step in (250, 100, 33):
        parts = [table[start : start + step] for start in range(0, 250, step)]
        path = tmp_path / f"{step}.parquet"
        assert hub_layout.write_tables(path, iter(parts), features) == 250
        assert pq.read_table(path).to_pylist() == rows
        contents.add(path.read_bytes())
    assert len(contents) == 1
    groups = [pq.read_metadata(path).row_group(i).num_rows for i in range(27)]
    assert sum(groups) == 250 and max(groups) <= 11


# --- regions -------------------------------------------------------------------------------------


@pytest.fixture
def large_groups(monkeypatch):
    """Take any row group for a large one, and about two of them for a region."""
    monkeypatch.setattr(parquet_rows, "LARGE_GROUP_BYTES", 1)
    monkeypatch.setattr(regions, "REGION_BYTES", 11_000)


def two_files(tmp_path):
    parts = {"a": ROWS[:23], "c": ROWS[23:]}  # row groups of 7, 7, 7, 2 and 7, 7, 3 rows
    return ParquetFiles.of([write(tmp_path / f"{n}.parquet", part, 7) for n, part in parts.items()])


def test_small_row_groups_are_no_regions(tmp_path):
    assert ParquetRows.of(two_files(tmp_path)).regions() is None


def test_a_region_is_a_few_row_groups_of_one_file(tmp_path, large_groups):
    rows = ParquetRows.of(two_files(tmp_path))
    found = rows.regions()
    groups = [0] * 7 + [1] * 7 + [2] * 7 + [3] * 2 + [4] * 7 + [5] * 7 + [6] * 3
    joined = dict(zip(groups, found.of_rows.tolist(), strict=True))
    assert len(found.num_bytes) < 7  # some are joined
    assert joined[3] != joined[4]  # not those of two files
    assert list(found.of_rows) == [joined[group] for group in groups]
    assert max(found.num_bytes) <= regions.REGION_BYTES
    some = rows.select([30, 2, 16]).regions()
    assert some.of_rows.tolist() == found.of_rows[[30, 2, 16]].tolist()
    assert some.num_bytes.tolist() == found.num_bytes.tolist()


def test_a_row_group_larger_than_a_region_is_one(tmp_path, large_groups, monkeypatch):
    monkeypatch.setattr(regions, "REGION_BYTES", 100)
    found = ParquetRows.of(two_files(tmp_path)).regions()
    assert found.of_rows.tolist() == [
        *[0] * 7,
        *[1] * 7,
        *[2] * 7,
        *[3] * 2,
        *[4] * 7,
        *[5] * 7,
        *[6] * 3,
    ]


def test_row_groups_that_are_kept_are_read_once_and_are_bounded(tmp_path, monkeypatch):
    reads, read = [], ParquetFiles._read

    def counted(files, file, groups, columns):
        reads.append((file, *groups))
        return read(files, file, groups, columns)

    monkeypatch.setattr(ParquetFiles, "_read", counted)

    def groups_read(rows, *numbers):
        reads.clear()
        assert [rows[number] for number in numbers] == [ROWS[number] for number in numbers]
        return list(reads)

    rows = ParquetRows.of(two_files(tmp_path))
    assert groups_read(rows.keeping(100_000), 0, 8, 30, 6, 1, 24, 7) == [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 0),
    ]
    two = rows.keeping(10_000)
    assert groups_read(two, 0, 8, 0, 15, 1) == [(0, 0), (0, 1), (0, 2)]  # the one last used stays
    assert groups_read(two, 8) == [(0, 1)]
    one = rows.keeping(1)
    assert groups_read(one, 0, 1, 8, 2) == [(0, 0), (0, 1), (0, 0)]
    assert len(one.files._kept) == 1
    assert not pickle.loads(pickle.dumps(one)).files._kept  # noqa: S301  # our own
