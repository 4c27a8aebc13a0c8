"""Flags: how a stage declares, checks and parses them, and the files that hold them.

A stage's flags are small frozen dataclasses. A group may have a method `problems()` that returns
one message per wrong value; rules across groups are one function `check` of the stage, which gets
the groups that its parameters are annotated with. All messages are shown together, before anything
loads. In a flag's name, `-` and `_` are the same.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, get_type_hints

from distillery.cli.config_files import config_text
from distillery.cli.parser import StageParser
from distillery.storage.files import write_text
from distillery.storage.names import printable

DRY_RUN = (
    "Read the data's first rows and the models' configurations, say what would be done, what it "
    "takes and what is done already, write nothing and stop."
)
VERIFY = (
    "Compare the checksums of files that our stages wrote, read ones and those in the output, and "
    "not only the sizes: every byte is read."
)
TRACEBACK = "DISTILLERY_TRACEBACK"  # environment variable: show where errors come from


def flag(
    default: Any, help: str, *aliases: str, resumable: bool = False, is_input: bool = False
) -> Any:
    """Return a dataclass field for a flag with a default, a help text and other spellings.

    Args:
        default: its value where it is not given.
        help: shown by `--help`.
        aliases: other spellings.
        resumable: it says how a run is made, not what comes out of it, so that it may differ
            between a killed run and the one that goes on with it.
        is_input: it names what is read, joined with `+`: nothing may be written there.
    """
    return field(default=default, metadata=_metadata(help, aliases, resumable, is_input))


def required(help: str, *aliases: str, resumable: bool = False, is_input: bool = False) -> Any:
    """Return a dataclass field for a flag that must be given; the arguments are those of `flag`."""
    return field(metadata=_metadata(help, aliases, resumable, is_input))


def _metadata(help: str, aliases: Sequence[str], resumable: bool, is_input: bool) -> dict[str, Any]:
    return {"help": help, "aliases": list(aliases), "resumable": resumable, "is_input": is_input}


def repeated(help: str, *aliases: str) -> Any:
    """Return a dataclass field for a flag that may be given several times; its type is a list."""
    metadata = {"help": help, "aliases": list(aliases)}
    return field(default_factory=list, metadata=metadata)


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


def missing(group: Any, *names: str) -> list[str]:
    """Return a message for each flag that was not given, where a rule demands it."""
    return [f"--{name} is required" for name in names if getattr(group, name) is None]


def same_length(group: Any, *names: str) -> list[str]:
    """Return a message unless all values joined with `+` are as many as the longest, or one."""
    counts = {name: len(plus_list(getattr(group, name))) for name in names}
    return uneven(counts, max(counts.values()))


def uneven(counts: Mapping[str, int], num_datasets: int) -> list[str]:
    """Return a message for each flag that has neither one value nor one for each dataset."""
    return [
        f"--{name} names {count}, but there are {num_datasets} datasets: join {num_datasets} with "
        "'+', or give one"
        for name, count in counts.items()
        if count not in (0, 1, num_datasets)
    ]


def plus_list(value: str | None) -> list[str]:
    """Split a value that joins several with `+`; a path that exists as it stands is one value."""
    if not value:
        return []
    return [value] if Path(value).exists() else value.split("+")


def parse(
    groups: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    check: Callable[..., list[str]] | None = None,
) -> tuple[Any, ...]:
    """Parse a command line into one instance of each group, or say all that is wrong and exit.

    `stage.py config.yaml --flag value …` reads the file first (JSON or YAML; keys are the flags'
    names) and lets flags override it. `--save_config x.yaml` writes all flags to such a file.

    Args:
        groups: dataclasses; their fields are the flags.
        argv: the arguments; default: those of this program, whose errors are then shown to users.
        description: shown by `--help`; a stage passes its docstring.
        check: rules across groups: is given the groups that its parameters are annotated with, and
            returns what is wrong.
    """
    if argv is None:
        sys.excepthook = _show_error
        argv = sys.argv[1:]
    parser = StageParser(groups, description)
    namespace = parser.collect(argv)
    parser.note_missing(namespace)
    # What did not parse has its default here, and what is missing is None: so all that is wrong
    # with the other values is reported too.
    parsed = tuple(
        group(**{each.name: getattr(namespace, each.name) for each in fields(group)})
        for group in groups
    )
    for built in parsed:
        parser.faults += built.problems() if hasattr(built, "problems") else []
    parser.faults += _problems_across(parsed, check) if check else []
    parser.note_bad_target(namespace.save_config)
    parser.exit_on_faults()
    # Of the processes of a launch, which all parse the same words, the first one writes.
    if namespace.save_config and os.environ.get("RANK", "0") == "0":
        path = Path(namespace.save_config)
        write_text(path, config_text(parser.prog, parsed, path.name))
    return parsed


def _problems_across(groups: Sequence[Any], check: Callable[..., list[str]]) -> list[str]:
    """Call a stage's `check` with the groups that its parameters are annotated with."""
    by_type = {type(group): group for group in groups}
    hints = get_type_hints(check)
    hints.pop("return", None)
    return check(*(by_type[hint] for hint in hints.values()))


def _show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error that a user can mend as its message alone, and any other with its trace.

    Those are what our own code raised, of three kinds, and what the machine lacks.
    """
    raised_in = Path(traceback.extract_tb(trace)[-1].filename).resolve()
    script = Path(sys.argv[0]).resolve()
    is_ours = raised_in == script or raised_in.is_relative_to(Path(__file__).resolve().parents[1])
    is_told = is_ours and isinstance(error, ValueError | FileNotFoundError | ImportError)
    remedy = _remedy(error)
    if (is_told or remedy) and TRACEBACK not in os.environ:
        message = f"{str(error) or 'out of memory'}{remedy}"
        text = f"{script.name}: {message}\n(set {TRACEBACK}=1 to see where)\n"
    else:
        text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(printable(text, keep="\n\t"))


def _remedy(error: BaseException) -> str:
    """Return what to do about a full disk or memory; "" for any other error."""
    if os.strerror(errno.ENOSPC) in str(error):  # each library has a class of its own for it
        return ": make room on the disk of --output_dir, and start the same command again"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            ": start again with a smaller --per_device_eval_batch_size, or a smaller "
            "--per_device_train_batch_size and as much more --gradient_accumulation_steps"
        )
    return ""


def flags_of(*groups: Any) -> dict[str, Any]:
    """Return the flags of parsed groups and their values, for a run's record."""
    return {name: value for group in groups for name, value in asdict(group).items()}


def resumable_flags(groups: Sequence[Any]) -> frozenset[str]:
    """Return the names of the flags that a run may be resumed with other values of."""
    return frozenset(
        each.name for group in groups for each in fields(group) if each.metadata.get("resumable")
    )


def input_names(groups: Sequence[Any]) -> list[str]:
    """Return the names of all that the flags say is read."""
    return [
        name
        for group in groups
        for each in fields(group)
        if each.metadata.get("is_input")
        for name in plus_list(getattr(group, each.name))
    ]
