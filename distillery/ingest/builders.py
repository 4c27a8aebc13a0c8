"""Datasets that a .py file of the user's builds, with a builder of the datasets library."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder

from distillery.data.column_types import Rows
from distillery.data.specs import DatasetSpec
from distillery.ingest import file_trees
from distillery.storage.files import sha256


def load(spec: DatasetSpec) -> Rows:
    """Load what the one dataset builder of a .py file makes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it defines no builder, or several.
    """
    builder = _builder_class(Path(spec.name))
    # The cache of another version of the file is not taken.
    options: dict[str, Any] = {"hash": sha256(Path(spec.name))}
    if spec.data_dir_suffix:
        options["dataset_dir_suffix"] = spec.data_dir_suffix
    prepared = builder(config_name=spec.config, cache_dir=spec.cache_dir, **options)
    split = spec.split or "train"
    if spec.streaming:
        return prepared.as_streaming_dataset(split=split)
    prepared.download_and_prepare()
    return prepared.as_dataset(split=split)


def _builder_class(path: Path) -> type[DatasetBuilder]:
    """Import a .py file, as the user's own code, and return the one builder in it."""
    if not path.is_file():
        raise FileNotFoundError(file_trees.not_there(path))
    name = f"dataset_builder_{path.stem}"  # never the name of a library
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # the datasets library looks a builder's module up
    module_spec.loader.exec_module(module)
    builders = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, DatasetBuilder)
        and member.__module__ == module.__name__
    ]
    if len(builders) != 1:
        raise ValueError(f"{path} must define exactly one dataset builder, found {len(builders)}")
    return builders[0]
