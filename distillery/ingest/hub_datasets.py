"""Datasets in the Hub's layout, from a folder or from the Hub itself.

Parquet in a folder is read where it lies. What is on the Hub, and folders of JSON, CSV or Arrow
files, are left to the datasets library, which copies them into its cache.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import (
    DatasetBuilder,
    Features,
    ReadInstruction,
    get_dataset_config_names,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.config import HF_DATASETS_CACHE
from datasets.packaged_modules.parquet.parquet import Parquet

from distillery.data.column_types import Rows
from distillery.data.hub_layout import DEFAULT_CONFIG
from distillery.data.parquet_rows import ParquetFiles, ParquetRows
from distillery.data.specs import DatasetSpec, choose
from distillery.ingest import manifests, row_streams
from distillery.storage.files import RUN_RECORD, read_json
from distillery.storage.outputs import is_hidden
from distillery.storage.runs import STARTED

logger = logging.getLogger(__name__)

DATA_FILES = (".parquet", ".arrow", *manifests.SUFFIXES)
TAIL_BYTES = 2**16


def load(spec: DatasetSpec) -> Rows:
    """Load a dataset, with the column names that it has.

    Raises:
        ValueError: a run that writes it has not ended, a configuration or split is not there or
            must be named, or a file is damaged, or has other columns than the others.
    """
    if Path(spec.name).is_file():
        raise ValueError(
            f"dataset {spec} is a single file of a kind that is not read by itself (see "
            f"docs/inputs.md); Parquet is, as part of its folder: {Path(spec.name).parent}"
        )
    _refuse_unfinished(Path(spec.name))
    config = spec.config or choose(
        "configuration", None, get_dataset_config_names(spec.name), DEFAULT_CONFIG, spec.name
    )
    if Path(spec.name).is_dir():
        return _from_folder(spec, config)
    # A split that is named may be a part of one, such as train[:10].
    split = spec.split or choose(
        "split", None, get_dataset_split_names(spec.name, config), None, spec.name
    )
    return load_dataset(
        spec.name, config, split=split, streaming=spec.streaming, cache_dir=spec.cache_dir
    )


def _refuse_unfinished(folder: Path) -> None:
    """Raise ValueError for the folder of a stage that was stopped: some rows are not there yet."""
    record = folder / RUN_RECORD
    if record.is_file() and read_json(record).get("status") == STARTED:
        raise ValueError(
            f"dataset {folder} is not finished: the run that makes it was stopped or failed; give "
            "its command again, and it goes on"
        )


def _from_folder(spec: DatasetSpec, config: str) -> Rows:
    with TemporaryDirectory() as unused:  # the library makes a cache before it needs one
        builder = load_dataset_builder(spec.name, config, cache_dir=unused)
    files = {str(name): list(paths) for name, paths in (builder.config.data_files or {}).items()}
    split = spec.split or choose("split", None, list(files), None, spec.name)
    if _is_plain_parquet(builder):
        split = "+".join(files) if split == "all" else split
        named = {name: paths for name, paths in files.items() if name in split}
        if not named:
            choose("split", split, list(files), None, spec.name)
        rows = _rows_in_place(split, named, builder.info.features)
        return row_streams.of_parquet(rows) if spec.streaming else rows
    if not spec.streaming:
        logger.info("dataset %s is no plain Parquet: it is copied into a cache first", spec)
    cache = _cache_dir(spec)
    return load_dataset(spec.name, config, split=split, streaming=spec.streaming, cache_dir=cache)


def _is_plain_parquet(builder: DatasetBuilder) -> bool:
    """Tell whether all rows and columns of local Parquet files are wanted."""
    if not isinstance(builder, Parquet) or builder.config.on_bad_files != "error":
        return False
    if builder.config.columns is not None or builder.config.filters is not None:
        return False
    files = builder.config.data_files or {}
    return not any("://" in path for paths in files.values() for path in paths)


def _rows_in_place(
    split: str, files: Mapping[str, Sequence[str]], features: Features | None
) -> ParquetRows:
    """Return a split, a part of one (`train[:10]`), or several (`train+test`).

    Args:
        split: as in `datasets.load_dataset`.
        files: of the splits that it names, and of others maybe.
        features: that the dataset's card names, if it does.
    """
    parquet = ParquetFiles.of([path for paths in files.values() for path in paths], features)
    stops = parquet.ends[np.cumsum([len(paths) for paths in files.values()]) - 1]
    sizes = dict(zip(files, np.diff(stops, prepend=0).tolist(), strict=True))
    first = dict(zip(files, (stops - list(sizes.values())).tolist(), strict=True))
    numbers = [
        first[part.splitname] + np.arange(sizes[part.splitname])[part.from_ : part.to]
        for part in ReadInstruction.from_spec(split).to_absolute(sizes)
    ]
    return ParquetRows.of(parquet, np.concatenate(numbers), split)


def _cache_dir(spec: DatasetSpec) -> str:
    """Return a cache of the library's for one state of a folder's files.

    The library's key is the folder's last name and its card: it would return the rows of another
    folder of that name, or rows that have been replaced since.
    """
    folder = Path(spec.name)
    state = hashlib.sha256(str(folder.resolve()).encode() + folder_state(folder))
    for path in sorted(path for path in folder.rglob("*") if path.suffix in DATA_FILES):
        if not is_hidden(path.relative_to(folder).as_posix()):
            state.update(str(path.stat().st_mtime_ns).encode())
    return str(Path(spec.cache_dir or HF_DATASETS_CACHE) / f"folder-{state.hexdigest()[:16]}")


def folder_state(folder: Path) -> bytes:
    """Return a checksum of the data files' names, sizes and last bytes, the same for a copy.

    At its end, Parquet keeps the statistics of what is in it.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in DATA_FILES and path.name != RUN_RECORD and not is_hidden(name):
            size = path.stat().st_size
            digest.update(f"{name} {size}".encode())
            with path.open("rb") as file:
                file.seek(max(0, size - TAIL_BYTES))
                digest.update(file.read())
    return digest.digest()
