"""Files that hold flags: read in place of a command line, and written to repeat a run."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from distillery.storage.provenance import code_commit, versions
from distillery.storage.runs import CONFIG

SUFFIXES = (".yaml", ".yml", ".json")
NOT_SAVED = frozenset({"dry_run"})  # a file that is run again must run


def config_text(program: str, groups: Sequence[Any], name: str = CONFIG) -> str:
    """Return every flag of a run and its value as YAML, so that `program file` repeats the run.

    Args:
        program: name of the script.
        groups: what `parse` returned.
        name: of the file.
    """
    return "\n".join(_lines(program, groups, name)) + "\n"


def _lines(program: str, groups: Sequence[Any], name: str) -> Iterator[str]:
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield f"# Every flag of a run of {program}. To repeat it, or to change it:"
    yield f"#     python {program} {name} [--flag value …]"
    yield from _comment(f"Made with commit {code_commit() or 'unknown'}; {made}")
    for group in groups:
        yield ""
        yield f"## {(type(group).__doc__ or '').splitlines()[0]}"
        for each in fields(group):
            if each.name not in NOT_SAVED:
                yield ""
                yield from _comment(each.metadata["help"])
                yield _entry(each.name, getattr(group, each.name))


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")


def _entry(name: str, value: Any) -> str:
    """Return `name: value` as YAML, quoted where another reader would take text for a number."""
    return str(yaml.safe_dump({name: value}, allow_unicode=True, width=10**9)).rstrip("\n")


def read_config(path: Path) -> dict[str, Any]:
    """Return the values of a configuration file: text, None, or what is no single value.

    Raises:
        OSError: it cannot be read.
        ValueError, yaml.YAMLError: it is no mapping.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        config = json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=_different_keys)
    else:
        config = yaml.load(text, _PlainLoader)
    if not isinstance(config, dict):
        raise ValueError("it must hold one mapping from flag names to values")
    return config


class _PlainLoader(yaml.SafeLoader):
    """Reads values as the text that was typed, as a command line does.

    YAML's own rules would take the suffix `0_50` for 40 and the language `no` for false.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are all different."""
        return _different_keys(self.construct_pairs(node, deep))


def _different_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a mapping of flags' names; the last of two values must not win unseen."""
    names = [name for name, _ in pairs]
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not the name of a flag")
        if name in names[:index]:
            raise ValueError(f"{name} is given twice")
    return dict(pairs)
