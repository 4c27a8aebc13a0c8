"""The parser behind a stage's flags: argparse over dataclasses, all faults reported at once."""

import difflib
from argparse import (
    SUPPRESS,
    Action,
    ArgumentError,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
    _ArgumentGroup,
)
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

from distillery.cli.config_files import SUFFIXES, read_config
from distillery.cli.seed_flags import SEED_FLAGS

TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
METAVARS = {int: "N", float: "X", str: "TEXT"}
CLOSE = 0.82  # share of letters in common, above which a name is taken for mistyped


class StageParser(ArgumentParser):
    """A parser that collects everything that is wrong instead of stopping at the first thing.

    Attributes:
        faults: what is wrong so far, one message each.
    """

    def __init__(self, groups: Sequence[type], description: str | None) -> None:
        super().__init__(
            usage="%(prog)s [config.yaml] [--flag value …]",
            description=description,
            epilog="A .yaml or .json file with values by flags' names may stand anywhere among the "
            "flags, which override it; examples are in scripts/configs/.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.faults: list[str] = []
        # argparse would stop at a missing flag before it has seen the others.
        self._required: list[str] = []
        self._by_name: dict[str, Action] = {}
        demanded = self.add_argument_group("required")
        for group in groups:
            self._add_group(group, demanded)
        self.add_argument(
            "--save_config",
            metavar="FILE.yaml",
            help="Write all flags, defaults too, to a file that this script takes in their place.",
        )
        spellings = [s for action in self._actions for s in action.option_strings]
        self._spellings = {s.replace("_", "-"): s for s in spellings if s.startswith("--")}

    def _add_group(self, group: type, demanded: _ArgumentGroup) -> None:
        """Add the flags of a group under its heading, required ones under theirs."""
        types = get_type_hints(group)
        heading = self.add_argument_group((group.__doc__ or "").splitlines()[0].rstrip("."))
        for each in fields(group):
            is_required = each.default is MISSING and each.default_factory is MISSING
            if is_required:
                self._required.append(each.name)
            action = (demanded if is_required else heading).add_argument(
                f"--{each.name}",
                *each.metadata.get("aliases", ()),
                **_options(each, types[each.name]),
            )
            self._by_name[each.name] = action
            if each.default is True:
                heading.add_argument(
                    f"--no_{each.name}",
                    action="store_false",
                    dest=each.name,
                    default=SUPPRESS,
                    help=f"The same as --{each.name} False.",
                )

    def collect(self, argv: Sequence[str]) -> Namespace:
        """Return the value of every flag; of one that did not parse, its default.

        Args:
            argv: flags and values, and the name of a configuration file or none.
        """
        words = [self.known_spelling(word) for word in argv]
        self._take_file(words)
        namespace, unknown = self.parse_known_args(words)
        self._note_unknown([word for word in unknown if word.startswith("-")] or unknown)
        return namespace

    def known_spelling(self, word: str) -> str:
        """Return a flag as it is declared, whichever of `-` and `_` it is typed with."""
        name, equals, value = word.partition("=")
        return self._spellings.get(name.replace("_", "-"), name) + equals + value

    def _take_file(self, words: list[str]) -> None:
        """Take a configuration file out of a command line, and defaults out of the file."""
        for index, word in enumerate(words):
            is_value = index > 0 and self._wants_value(words[index - 1])
            if Path(word).suffix in SUFFIXES and word[0] != "-" and not is_value:
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
            config = read_config(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.faults.append(f"{path}: cannot be read as a configuration: {error}")
            return
        for key, value in config.items():
            if key not in self._by_name:
                advice = self._advice(key, self._by_name)
                self.faults.append(f"{path}: unknown key {key!r}{advice}")
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
            convert = super()._get_value  # type: ignore[misc]
            try:
                converted = [convert(action, str(each)) for each in values]
            except ArgumentError as error:
                self.faults.append(f"{path}: {action.dest}: {error.message}")
                return
            action.default = converted if action.nargs == "+" else converted[0]

    def _note_unknown(self, words: Sequence[str]) -> None:
        """Report flags that no group has."""
        for word in words:
            name = word.split("=")[0]
            advice = self._advice(name, self._option_string_actions)
            self.faults.append(f"unknown flag {name}{advice}")

    def _advice(self, name: str, known: Collection[str]) -> str:
        """Return what to do about a name that is unknown: a flag of the seeds, or mistyped."""
        seeds = SEED_FLAGS.get(Path(self.prog).stem, {})
        advice = seeds.get(name.lstrip("-").replace("-", "_"))
        if advice is not None:
            return f": {advice}"
        close = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE)
        return f" (did you mean {close[0]}?)" if close else ""

    def note_missing(self, values: Namespace) -> None:
        """Report required flags that neither the command line nor the file gave."""
        for name in self._required:
            if getattr(values, name) is None:
                self.faults.append(f"--{name} is required")

    def note_bad_target(self, path: str | None) -> None:
        """Report a file name that could not be taken as a configuration later."""
        if path is not None and Path(path).suffix not in (".yaml", ".yml"):
            self.faults.append(f"--save_config {path}: name a file that ends in .yaml")

    def exit_on_faults(self) -> None:
        """End the program, showing everything that was found wrong."""
        if self.faults:
            lines = "\n".join(f"  {fault}" for fault in self.faults)
            self.exit(2, f"{self.prog}: wrong arguments (--help explains them all):\n{lines}\n")

    def error(self, message: str) -> NoReturn:
        """Add argparse's own complaint to the others and end the program."""
        self.faults.append(message)
        self.exit_on_faults()
        raise SystemExit(2)

    def _get_value(self, action: Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)  # type: ignore[misc]
        except ArgumentError as error:
            self.faults.append(str(error).removeprefix("argument "))
            return action.default


def _options(each: Field[Any], annotation: Any) -> dict[str, Any]:
    """Return what argparse is told about a field of a group: its type, default and help."""
    options = {
        "help": each.metadata["help"].replace("%", "%%"),
        "default": None if each.default is MISSING else each.default,
        **{name: each.metadata[name] for name in ("nargs", "const") if name in each.metadata},
    }
    (kind,) = [t for t in get_args(annotation) if t is not NoneType] or [annotation]
    if get_origin(annotation) is list:
        options.update(nargs="+", action=_Collect, default=[])
    if kind is bool:
        return {**options, "type": _truth, "nargs": "?", "const": True, "metavar": "True"}
    return {**options, "type": kind, "metavar": METAVARS[kind]}


def _truth(text: str) -> bool:
    """Return what a word says that stands behind a switch."""
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise ArgumentTypeError(f"must be True or False, got {text!r}")


class _Collect(Action):
    """Collects the values of a flag that is given several times; they replace the default."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Shows defaults that say something, and leaves a docstring's commands in one piece."""

    def _get_help_string(self, action: Action) -> str | None:
        is_said = action.default not in (None, SUPPRESS, [])
        return f"{action.help} (default: %(default)s)" if is_said else action.help

    def _format_action_invocation(self, action: Action) -> str:
        """Return all spellings of a flag with its value named once."""
        spellings = ", ".join(action.option_strings)
        default = self._get_default_metavar_for_optional(action)
        value = "" if action.nargs == 0 else self._format_args(action, default)
        return f"{spellings} {value}".rstrip()
