"""Streams of rows that are read by number: shards of them, and places in these."""

import numpy as np
import pytest
from corpora import pack
from datasets import Dataset, Features, Value, load_from_disk
from hub_clips import CLIPS, IDS, hub_folder

from distillery.data.specs import DatasetSpec
from distillery.ingest import clip_rows, row_streams, sources


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(row_streams, "SHARD_ROWS", 2)


def numbers(ends):
    features = Features({"n": Value("int64"), "shard": Value("int64")})
    return row_streams.of_rows(
        np.array(ends), lambda shard, row: {"n": row, "shard": shard}, features, None
    )


@pytest.mark.parametrize(
    ("ends", "num_shards"),
    [([1], 1), ([1, 2, 3], 1), (range(1, 11), 5), ([4, 8, 9], 3), ([3, 4, 5, 6, 7, 8], 4)],
)
def test_shards_have_all_rows_in_order(ends, num_shards):
    rows = numbers(list(ends))
    assert rows.num_shards == num_shards
    parts = [list(rows.shard(num_shards, i)) for i in range(num_shards)]
    assert [row["n"] for part in parts for row in part] == list(range(ends[-1]))
    assert [row["n"] for row in rows] == list(range(ends[-1]))
    assert {part[-1]["n"] + 1 for part in parts} <= set(ends)
    assert rows.info.splits["train"].num_examples == ends[-1]


def test_there_are_never_too_many_shards(monkeypatch):
    monkeypatch.setattr(row_streams, "MOST_SHARDS", 7)
    assert 7 <= numbers(np.arange(1, 101)).num_shards <= 8
    assert row_streams.num_shards(10**9) == 7


def sources_of(folder):
    members = {f"{name}.wav": content for name, content in zip(IDS, CLIPS, strict=True)}
    archive = pack(folder / "clips.tar", members)
    packed = pack(folder / "clips.tar.gz", members)
    files = folder / "files"
    files.mkdir()
    for name, content in members.items():
        (files / name).write_bytes(content)
    plain = Dataset.from_list([{"id": name, "text": name} for name in IDS])
    plain.save_to_disk(folder / "disk")
    layout = hub_folder(folder / "set", {"default": {"train": range(5)}})
    return {"tar": archive, "gz": packed, "files": files, "disk": folder / "disk", "set": layout}


def bare(rows):
    """Return rows without the paths of their files, which a cache names otherwise."""
    return [
        {**row, "audio": row.get("audio") and (row["audio"]["bytes"], row["id"])} for row in rows
    ]


@pytest.mark.parametrize("kind", ["tar", "gz", "files", "disk", "set"])
def test_a_stream_has_the_rows_that_are_there_without_it(tmp_path, kind):
    name = str(sources_of(tmp_path)[kind])
    cache = str(tmp_path / "cache")
    rows = sources.load(DatasetSpec(name, streaming=True))
    assert rows.num_shards == {"gz": 1, "set": 1}.get(kind, 2)
    assert bare(rows) == bare(sources.load(DatasetSpec(name, cache_dir=cache)))
    iterator = iter(rows)
    first = [next(iterator) for _ in range(3)]
    state = rows.state_dict()
    rest = sources.load(DatasetSpec(name, streaming=True))
    rest.load_state_dict(state)
    assert bare(first) + bare(rest) == bare(rows)


def test_of_an_archive_only_the_clips_of_a_shard_are_read(tmp_path, monkeypatch):
    read = []
    stored = clip_rows._stored
    monkeypatch.setattr(clip_rows, "_stored", lambda *args: read.append(args[1]) or stored(*args))
    rows = sources.load(DatasetSpec(str(sources_of(tmp_path)["tar"]), streaming=True))
    found = list(rows.shard(2, 1))
    assert read == [f"{row['id']}.wav" for row in found]
    assert [row["audio"]["bytes"] for row in found] == CLIPS[-len(found) :]


def test_an_archive_that_was_replaced_is_not_read_on(tmp_path):
    archive = sources_of(tmp_path)["tar"]
    rows = iter(sources.load(DatasetSpec(str(archive), streaming=True)))
    next(rows)
    archive.write_bytes(archive.read_bytes() + b"\0" * 512)
    with pytest.raises(ValueError, match="was changed while it was read"):
        next(rows)


def test_shards_of_parquet_are_row_groups(tmp_path):
    Dataset.from_list([{"id": f"{i:02}", "n": i} for i in range(30)]).to_parquet(
        tmp_path / "train-0.parquet", batch_size=5
    )
    rows = sources.load(DatasetSpec(str(tmp_path), streaming=True))
    assert rows.num_shards == 6
    shards = [list(rows.shard(6, i)) for i in range(6)]
    assert [[row["n"] for row in shard] for shard in shards] == np.arange(30).reshape(6, 5).tolist()
    # Shards that are read in turns.
    turns = [iter(rows.shard(6, i)) for i in (4, 1)]
    assert [next(turns[i % 2])["n"] for i in range(10)] == [20, 5, 21, 6, 22, 7, 23, 8, 24, 9]


def test_rows_without_ids_get_none_where_shards_are_read_by_themselves(tmp_path):
    Dataset.from_list([{"audio": {"bytes": b"x", "path": None}}] * 6).save_to_disk(tmp_path / "d")
    assert load_from_disk(tmp_path / "d").num_rows == 6
    spec = DatasetSpec(str(tmp_path / "d"), streaming=True)
    assert [row["id"] for row in sources.load(spec)][-1] == "row-000000005"
    assert sources.load(spec, in_shards=True).column_names == ["audio"]
    cut = DatasetSpec(str(tmp_path / "d"), streaming=True, segment="vad")
    with pytest.raises(ValueError, match="name a column with --id_column_name"):
        sources.load(cut, in_shards=True)
