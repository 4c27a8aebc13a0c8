"""The layout of a dataset on disk, which is the Hub's own.

A folder and a Hub id are therefore interchangeable: `README.md` with the configurations, and
`<config>/<split>-00000-of-000NN.parquet`.
"""

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features
from huggingface_hub import DatasetCard, DatasetCardData, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.storage.files import RUN_RECORD, read_json
from distillery.storage.outputs import Outputs
from distillery.storage.shards import SEAL

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "default"
CARD = "README.md"
# The most signal and rows of a row group. To read one row, its group is read, and the list of all
# groups of the file, which is the longer the smaller they are.
GROUP_BYTES, GROUP_ROWS = 1 << 20, 100
FILES = "*/*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].parquet"  # of a dataset


def embed_audio(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's audio with its bytes read in, and the file's name without folders."""
    audio = row[schema.AUDIO]
    content = audio["bytes"]
    path = Path(audio["path"]) if audio.get("path") else None
    if content is None and path is not None:
        content = path.read_bytes()
    return {"bytes": content, "path": path.name if path else None}


def embedded_audio(audio: pa.ChunkedArray) -> pa.Array:
    """Return a column of audio with its bytes read in, as `embed_audio` does for one row.

    Bytes that are there already stay where they are in memory.
    """
    content, path = pc.struct_field(audio, "bytes"), pc.struct_field(audio, "path")
    if content.null_count:
        rows = [embed_audio({schema.AUDIO: row}) for row in audio.to_pylist()]
        return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    if pc.any(pc.match_substring(path, "/")).as_py():
        path = pc.replace_substring_regex(path, r"(?s)^.*/", "")
    columns = [column.combine_chunks() for column in (content, path)]
    return pa.StructArray.from_arrays(columns, names=["bytes", "path"])


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], features: Features) -> None:
    """Write rows to one Parquet file; columns beside `features` are left out."""
    arrow_schema = features.arrow_schema
    slim = (
        [{name: row.get(name) for name in features} for row in batch]
        for batch in _batched(rows, GROUP_ROWS)
    )
    write_tables(path, (pa.Table.from_pylist(b, schema=arrow_schema) for b in slim), features)


def write_tables(path: Path, tables: Iterable[pa.Table], features: Features) -> int:
    """Write Arrow tables to one Parquet file; return the file's rows.

    Columns beside `features` are left out. Row groups are small, so that rows can be read in any
    order (`parquet_rows`). What is written depends on the rows alone, not on how they come.
    """
    arrow_schema = features.arrow_schema
    slim = (table.select(arrow_schema.names).cast(arrow_schema) for table in tables)
    # In groups this small a dictionary is longer than what it saves.
    with pq.ParquetWriter(path, arrow_schema, use_dictionary=False) as writer:
        for block in _blocks(slim):
            size = max(1, GROUP_BYTES * len(block) // max(1, _signal_bytes(block)))
            writer.write_table(block, row_group_size=size)
    return int(pq.read_metadata(path).num_rows)


def _blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `GROUP_ROWS` rows."""
    rest: list[pa.Table] = []
    for table in tables:
        rest.append(table)
        while sum(map(len, rest)) >= GROUP_ROWS:
            whole = pa.concat_tables(rest)
            yield whole[:GROUP_ROWS].combine_chunks()
            rest = [whole[GROUP_ROWS:]]
    if sum(map(len, rest)):
        yield pa.concat_tables(rest).combine_chunks()


def _signal_bytes(table: pa.Table) -> int:
    """Return how much audio, or how many features, there are in rows."""
    signals = []
    if schema.AUDIO in table.column_names:
        signals.append(pc.struct_field(table[schema.AUDIO], "bytes"))
    if schema.INPUT_FEATURES in table.column_names:
        signals.append(pc.list_flatten(table[schema.INPUT_FEATURES]))
    return sum(pc.sum(pc.binary_length(signal)).as_py() or 0 for signal in signals)


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def shard_path(folder: Path, config: str, split: str, index: int, count: int) -> Path:
    """Return the Hub layout's name for one file of a split."""
    return folder / config / f"{split}-{index:05d}-of-{count:05d}.parquet"


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split: sealed shards while a stage works on it, then those of the dataset.

    Attributes:
        outputs: list of the dataset's files.
        work_folder: name of the folder in it that holds the sealed shards.
        config, split: names of the configuration and of the split.
    """

    outputs: Outputs
    work_folder: str
    config: str
    split: str
    _count: list[int] = field(default_factory=list, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return self.outputs.folder

    def sealed(self, index: int) -> Path:
        """Return where the shard of one chunk of rows is sealed."""
        return self.folder / self.work_folder / self.config / self.split / f"{index:05d}.parquet"

    def all_sealed(self) -> list[Path]:
        """Return the shards that have a seal, in the order of the rows, even if they were moved."""
        seals = self.sealed(0).parent.glob(f"*.parquet{SEAL}")
        paths = (path.with_name(path.name.removesuffix(SEAL)) for path in seals)
        return sorted(paths, key=lambda path: int(path.stem))  # 100000 stands behind 99999

    def published(self, index: int, count: int) -> Path:
        """Return the path of one chunk of rows in the finished dataset."""
        return shard_path(self.folder, self.config, self.split, index, count)

    def found(self, index: int) -> Path | None:
        """Return the file of one chunk of rows in the dataset, however many there are, if any."""
        if (
            not self._count
        ):  # all names of a split's files tell it; to look takes long where many are
            names = (self.folder / self.config).glob(f"{self.split}-[0-9]*-of-[0-9]*.parquet")
            self._count.extend(int(path.stem.rpartition("-")[2]) for path in islice(names, 1))
        path = self.published(index, self._count[0]) if self._count else None
        return path if path is not None and path.exists() else None

    def withdraw(self, *indices: int) -> None:
        """Delete the files of chunks of rows in the dataset, where they are there."""
        found = (self.found(index) for index in indices)
        self.outputs.remove([path for path in found if path is not None])

    def publish(self) -> list[Path]:
        """Give the sealed shards their names in the dataset, and return these; seals stay."""
        paths = self.all_sealed()
        names = {path: self.published(index, len(paths)) for index, path in enumerate(paths)}
        self.outputs.move({path: name for path, name in names.items() if path.exists()})
        return list(names.values())


def num_rows(paths: Iterable[Path]) -> int:
    """Return how many rows lie in Parquet files, by their own account."""
    return sum(pq.read_metadata(path).num_rows for path in paths)


def hours(paths: Iterable[Path]) -> float | None:
    """Return the hours of audio in Parquet files, of the rows that say how long they are.

    None where no row does.
    """
    seconds = [
        pc.sum(pq.read_table(path, columns=[schema.DURATION])[schema.DURATION]).as_py()
        for path in paths
        if schema.DURATION in pq.read_schema(path).names
    ]
    known = [part for part in seconds if part is not None]
    return sum(known) / 3600 if known else None


def splits_by_config(specs: Iterable[DatasetSpec]) -> dict[str, list[str]]:
    """Return the names of splits by configuration, as `write_card` takes them."""
    configs: dict[str, list[str]] = {}
    for spec in specs:
        configs.setdefault(str(spec.config), []).append(str(spec.split))
    return configs


def write_card(
    folder: Path,
    splits: Mapping[str, Sequence[str]],
    title: str,
    body: str,
    outputs: Outputs | None = None,
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write the dataset card, whose header tells `load_dataset` where the files are.

    It tells their sizes, too, where they are there: by the header alone the library knows whether
    its cache is of this dataset, or of another that lay in a folder of the same name.

    Args:
        folder: the dataset's folder, with its files.
        splits: names of the splits, by configuration.
        title: heading of the card.
        body: Markdown below it.
        outputs: list of the card, where it is not the folder's own.
        header: more of the header: language, licence, what the dataset was made of.
    """
    configs = [
        {
            "config_name": config,
            "data_files": [
                {"split": split, "path": f"{config}/{split}-*.parquet"} for split in names
            ],
        }
        for config, names in splits.items()
    ]
    infos = [_info(folder, config, names) for config, names in splits.items()]
    data = DatasetCardData(
        **(header or {}),
        task_categories=["automatic-speech-recognition"],
        dataset_info=[info for info in infos if info] or None,
        configs=configs,
    )
    card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{body}\n")
    (outputs or Outputs(folder)).write_text(folder / CARD, str(card))


def _info(folder: Path, config: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what the library knows a configuration by; empty where files are missing."""
    splits = []
    for name in names:
        paths = sorted((folder / config).glob(f"{name}-*.parquet"))
        if not paths:
            return {}
        num_rows = sum(pq.read_metadata(path).num_rows for path in paths)
        num_bytes = sum(path.stat().st_size for path in paths)
        splits.append({"name": name, "num_bytes": num_bytes, "num_examples": num_rows})
    num_bytes = sum(split["num_bytes"] for split in splits)
    sizes = {"download_size": num_bytes, "dataset_size": num_bytes}
    return {"config_name": config, "splits": splits, **sizes}


def refuse_same_split_twice(specs: Sequence[DatasetSpec]) -> None:
    """Raise ValueError if two datasets would be written to the same files.

    Args:
        specs: with the configuration and split that `with_split` filled in.
    """
    names = [(spec.config, spec.split) for spec in specs]
    for config, split in names:
        if names.count((config, split)) > 1:
            raise ValueError(
                f"two datasets would both be written as split {split!r} of configuration "
                f"{config!r}: write them to two output folders"
            )


def flags_naming(folder: Path, specs: Sequence[DatasetSpec], *, to_train: bool = False) -> str:
    """Return the flags by which a stage reads all splits of a dataset that was written here.

    Args:
        folder: the dataset.
        specs: its configurations and splits.
        to_train: name the flags as the stages that train do.
    """
    config_flag, split_flag = (
        ("--train_dataset_config_name", "--train_split_name")
        if to_train
        else ("--dataset_config_name", "--dataset_split_name")
    )
    words = ["-d", str(folder)]
    if any(spec.config != DEFAULT_CONFIG for spec in specs):
        words += [config_flag, "+".join(str(spec.config) for spec in specs)]
    if len(specs) > 1:
        words += [split_flag, "+".join(str(spec.split) for spec in specs)]
    return shlex.join(words)


def read_record(name: str) -> dict[str, Any]:
    """Return the record of the stage that wrote a dataset; empty if none of our stages did.

    Args:
        name: a local folder, or a Hub id, whose record is fetched.
    """
    folder = Path(name)
    if folder.exists():
        path = folder / RUN_RECORD
        if not path.is_file():
            return {}
    else:
        try:
            path = Path(hf_hub_download(name, RUN_RECORD, repo_type="dataset"))
        except LocalEntryNotFoundError as error:
            logger.warning("the record of %s cannot be fetched: %s", name, error)
            return {}
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
            return {}
    return dict(read_json(path))


def read_run_record(name: str) -> dict[str, Any]:
    """Return the flags of the stage that wrote a dataset; empty if none of our stages did."""
    return dict(read_record(name).get("arguments", {}))
