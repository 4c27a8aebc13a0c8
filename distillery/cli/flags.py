"""Flags: how a stage declares, checks and parses them, and the files that hold them.

A stage's flags are small frozen dataclasses. A group may have a method `problems()` that returns
one message per wrong value; all messages of all groups are shown together, before anything loads.
A group whose flags change which others must be given has a static method `required_flags(values,
usual)`: it takes the values of all flags and the names that are required without it, and returns
the names that are. In a flag's name, `-` and `_` are the same.
"""

import difflib
import json
import os
import sys
import textwrap
import traceback
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentError,
    ArgumentParser,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from distillery.storage.files import write_text
from distillery.storage.provenance import code_commit, versions
from distillery.storage.runs import CONFIG

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
DRY_RUN = (
    "Read the data's first rows and the models' configurations, say what would be done, what it "
    "takes and what is done already, write nothing and stop."
)
TRACEBACK = "DISTILLERY_TRACEBACK"  # environment variable: show where errors come from
NOT_SAVED = frozenset({"dry_run"})  # a file that is run again must run


def flag(default: Any, help: str, *aliases: str, resumable: bool = False) -> Any:
    """Return a dataclass field for a flag with a default, a help text and other spellings.

    Args:
        default: its value where it is not given.
        help: shown by `--help`.
        aliases: other spellings.
        resumable: it says how a run is made, not what comes out of it, so that it may differ
            between a killed run and the one that goes on with it.
    """
    metadata = {"help": help, "aliases": list(aliases), "resumable": resumable}
    return field(default=default, metadata=metadata)


def required(help: str, *aliases: str, resumable: bool = False) -> Any:
    """Return a dataclass field for a flag that must be given."""
    return field(metadata={"help": help, "aliases": list(aliases), "resumable": resumable})


def repeated(help: str, *aliases: str) -> Any:
    """Return a dataclass field for a flag that may be given several times; its type is a list."""
    metadata = {"help": help, "aliases": list(aliases), "action": _Collect}
    return field(default_factory=list, metadata=metadata)


class _Collect(Action):
    """Collects the values of a flag that is given several times; they replace the default."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


def at_least(group: Any, name: str, least: float) -> list[str]:
    """Return a message if a number is smaller than it may be; None passes."""
    value = getattr(group, name)
    if value is None or value >= least:
        return []
    return [f"--{name} must be >= {least:g}, got {value}"]


def within(group: Any, name: str, least: float, most: float) -> list[str]:
    """Return a message if a number is outside its bounds; None passes."""
    value = getattr(group, name)
    if value is None or least <= value <= most:
        return []
    return [f"--{name} must be between {least:g} and {most:g}, got {value}"]


def one_of(group: Any, name: str, choices: Iterable[str]) -> list[str]:
    """Return a message if a value is none of the choices."""
    value = getattr(group, name)
    if value in choices:
        return []
    return [f"--{name} must be one of {', '.join(choices)}; got {value!r}"]


def same_length(group: Any, *names: str) -> list[str]:
    """Return a message unless all values joined with `+` are as many as the longest, or one."""
    counts = {name: len(plus_list(getattr(group, name))) for name in names}
    most = max(counts.values())
    return [
        f"--{name} names {count}, but there are {most} datasets: join {most} with '+', or give one"
        for name, count in counts.items()
        if count not in (0, 1, most)
    ]


def plus_list(value: str | None) -> list[str]:
    """Split a value that joins several with `+`; a path that exists as it stands is one value."""
    if not value:
        return []
    return [value] if Path(value).exists() else value.split("+")


def parse(
    groups: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Parse a command line into one instance of each group, or say all that is wrong and exit.

    `stage.py config.yaml --flag value …` reads the file first (JSON or YAML; keys are the flags'
    names) and lets flags override it. `--save_config x.yaml` writes all flags to such a file.

    Args:
        groups: dataclasses; their fields are the flags.
        argv: the arguments; default: those of this program, whose errors are then shown to users.
        description: shown by `--help`; a stage passes its docstring.
    """
    if argv is None:
        sys.excepthook = _show_error
    parser = _StageParser(groups, description=description)
    words = [parser.known_spelling(word) for word in (sys.argv[1:] if argv is None else argv)]
    parser.take_file(words)
    namespace, unknown = parser.parse_known_args(words)
    values = vars(namespace)
    parser.note_unknown([word for word in unknown if word.startswith("-")] or unknown)
    required_now = {action.dest for action in parser.usually_required}
    for group in groups:
        if hasattr(group, "required_flags"):
            required_now = group.required_flags(namespace, required_now)
    parser.note_missing(values, required_now)
    for group in groups:
        # The checks only read attributes, so they run before there is an instance of the group,
        # and a wrong value is reported together with an unknown flag.
        parser.faults += group.problems(namespace) if hasattr(group, "problems") else []
    parser.note_bad_target(namespace.save_config)
    parser.exit_on_problems()
    parsed = tuple(g(**{f.name: values[f.name] for f in fields(g)}) for g in groups)
    # Of the processes of a launch, which all parse the same words, the first one writes.
    if namespace.save_config and os.environ.get("RANK", "0") == "0":
        path = Path(namespace.save_config)
        write_text(path, config_text(parser.prog, parsed, path.name))
    return parsed


def _show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error that our own code raised as its message alone, and any other with its trace.

    What a user can mend is raised as one of three kinds; the place in the code says nothing to him.
    """
    raised_in = Path(traceback.extract_tb(trace)[-1].filename).resolve()
    script = Path(sys.argv[0]).resolve()
    is_ours = raised_in == script or raised_in.is_relative_to(Path(__file__).resolve().parents[1])
    is_told = isinstance(error, ValueError | FileNotFoundError | ImportError)
    if is_ours and is_told and TRACEBACK not in os.environ:
        sys.stderr.write(f"{script.name}: {error}\n(set {TRACEBACK}=1 to see where)\n")
    else:
        sys.__excepthook__(kind, error, trace)


def flags_of(*groups: Any) -> dict[str, Any]:
    """Return the flags of parsed groups and their values, for a run's record."""
    return {name: value for group in groups for name, value in asdict(group).items()}


def resumable_flags(groups: Sequence[Any]) -> frozenset[str]:
    """Return the names of the flags that a run may be resumed with other values of."""
    return frozenset(
        each.name for group in groups for each in fields(group) if each.metadata.get("resumable")
    )


# --- configuration files --------------------------------------------------------------------------


def config_text(program: str, groups: Sequence[Any], name: str = CONFIG) -> str:
    """Return every flag of a run and its value as YAML, so that `program file` repeats the run.

    Args:
        program: name of the script.
        groups: what `parse` returned.
        name: of the file.
    """
    return "\n".join(_config_lines(program, groups, name)) + "\n"


def _config_lines(program: str, groups: Sequence[Any], name: str) -> Iterator[str]:
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


def _read_config(path: Path) -> dict[str, Any]:
    """Return the values of a configuration file: text, None, or what is no single value.

    Raises:
        OSError: it cannot be read.
        ValueError, yaml.YAMLError: it is no mapping.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        found = json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=_different_keys)
    else:
        found = yaml.load(text, _PlainLoader)
    if not isinstance(found, dict):
        raise ValueError("it must hold one mapping from flag names to values")
    return found


def _different_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a mapping of flags' names; the last of two values must not win unseen."""
    names = [name for name, _ in pairs]
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not the name of a flag")
        if name in names[:index]:
            raise ValueError(f"{name} is given twice")
    return dict(pairs)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the commands in a stage's docstring in one piece."""


class _StageParser(HfArgumentParser):
    """A parser that collects everything that is wrong instead of stopping at the first thing."""

    def __init__(self, groups: Sequence[type], description: str | None) -> None:
        super().__init__(
            groups,
            description=description,
            epilog="A .yaml or .json file with values by flags' names may stand anywhere among the "
            "flags, which override it; examples are in scripts/configs/.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--save_config",
            "--save-config",
            metavar="FILE.yaml",
            help="Write all flags, defaults too, to a file that this script takes in their place.",
        )
        names = {each.name for group in groups for each in fields(group)}
        # `--no_x` has the name of `--x`; the first of the two takes what a file says.
        self._by_name = {a.dest: a for a in reversed(self._actions) if a.dest in names}
        self.faults: list[str] = []
        # argparse stops at a missing flag before it has seen the others; we look ourselves.
        self.usually_required = [action for action in self._actions if action.required]
        for action in self.usually_required:
            action.required = False
        spellings = [s for action in self._actions for s in action.option_strings]
        self._spellings = {s.replace("_", "-"): s for s in spellings if s.startswith("--")}

    def add_argument(self, *words: Any, resumable: bool = False, **options: Any) -> Action:
        """Add a flag; what else its field says of it is not for argparse."""
        return super().add_argument(*words, **options)

    def known_spelling(self, word: str) -> str:
        """Return a flag as it is declared, whichever of `-` and `_` it is typed with."""
        name, equals, value = word.partition("=")
        return self._spellings.get(name.replace("_", "-"), name) + equals + value

    def take_file(self, words: list[str]) -> None:
        """Take a configuration file out of a command line, and defaults out of the file."""
        for index, word in enumerate(words):
            is_value = index > 0 and self._wants_value(words[index - 1])
            if Path(word).suffix in CONFIG_SUFFIXES and word[0] != "-" and not is_value:
                self._read_file(Path(words.pop(index)))
                return

    def _wants_value(self, word: str) -> bool:
        """Tell whether the word behind this one is its value."""
        action = self._option_string_actions.get(word)
        if action is None:  # an unknown flag will be reported, and its value is not looked at
            return word.startswith("--") and "=" not in word
        return action.nargs in (None, "+")

    def _read_file(self, path: Path) -> None:
        try:
            config = _read_config(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.faults.append(f"{path}: cannot be read as a configuration: {error}")
            return
        for key, value in config.items():
            if key not in self._by_name:
                nearest = _nearest(key, list(self._by_name))
                self.faults.append(f"{path}: unknown key {key!r}{nearest}")
            elif value is not None:
                self._take_value(path, self._by_name[key], value)

    def _take_value(self, path: Path, action: Action, value: Any) -> None:
        """Make a file's value the default of its flag, or note what is wrong with it."""
        values = value if isinstance(value, list) and action.nargs == "+" else [value]
        if any(isinstance(each, list | dict) for each in values):
            self.faults.append(f"{path}: {action.dest} must be one value, got {value!r}")
        elif action.type is str and any(isinstance(each, bool) for each in values):
            self.faults.append(f"{path}: {action.dest} must be text, got {value!r}: quote it")
        else:
            converted = super()._get_value  # type: ignore[misc]
            try:
                found = [converted(action, str(each)) for each in values]
            except ArgumentError as error:
                self.faults.append(f"{path}: {action.dest}: {error.message}")
                return
            action.default = found if action.nargs == "+" else found[0]

    def note_unknown(self, words: Sequence[str]) -> None:
        """Report flags that no group has."""
        spellings = [s for action in self._actions for s in action.option_strings]
        for word in words:
            name = word.split("=")[0]
            self.faults.append(f"unknown flag {name}{_nearest(name, spellings)}")

    def note_missing(self, values: dict[str, Any], required_now: Collection[str]) -> None:
        """Report required flags that neither the command line nor the file gave."""
        for action in self._actions:
            if action.dest in required_now and values.get(action.dest) is None:
                self.faults.append(f"--{action.dest} is required")

    def note_bad_target(self, path: str | None) -> None:
        """Report a file name that could not be taken as a configuration later."""
        if path is not None and Path(path).suffix not in (".yaml", ".yml"):
            self.faults.append(f"--save_config {path}: name a file that ends in .yaml")

    def exit_on_problems(self) -> None:
        """End the program, showing everything that was found wrong."""
        if self.faults:
            lines = "\n".join(f"  {fault}" for fault in self.faults)
            self.exit(2, f"{self.prog}: wrong arguments (--help explains them all):\n{lines}\n")

    def error(self, message: str) -> NoReturn:
        """Add argparse's own complaint to the others and end the program."""
        self.faults.append(message)
        self.exit_on_problems()
        raise SystemExit(2)

    def _get_value(self, action: Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)  # type: ignore[misc]
        except ArgumentError as error:
            self.faults.append(str(error).removeprefix("argument "))
            return action.default


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
