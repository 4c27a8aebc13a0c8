"""Command lines in tests: stages and their flags, what a wrong one prints, those in documents."""

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tiny import REPOSITORY, load_script

from distillery.cli.flags import parse

SCRIPTS = tuple(
    path.name
    for path in sorted(REPOSITORY.glob("*.py"))
    if "\nGROUPS = " in path.read_text("utf-8")
)


def groups_of(script: str) -> tuple[type, ...]:
    """Return the groups of a stage's flags."""
    return tuple(load_script(script).GROUPS)


def parsed(script: str, words: Sequence[str]) -> tuple[Any, ...]:
    """Return what a stage is called with, or exit as it does."""
    stage = load_script(script)
    return parse(stage.GROUPS, words, check=getattr(stage, "check", None))


def complaints(
    capsys: pytest.CaptureFixture[str],
    *words: str,
    groups: Sequence[type],
    check: Callable[..., list[str]] | None = None,
) -> list[str]:
    """Return the lines below the first that a wrong command line prints."""
    with pytest.raises(SystemExit) as stopped:
        parse(groups, words, check=check)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = err.splitlines()
    assert first.endswith("wrong arguments (--help explains them all):")
    return [line.strip() for line in lines]


def text_of(document: str) -> str:
    """Return a document of the repository."""
    return (REPOSITORY / document).read_text("utf-8")


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Return the stage commands in a text: the script, and its words."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        match = re.search(r"(?:python|launch)\s[^`|;]*?(\w+\.py)\b(.*)", line)
        if match and match[1] in SCRIPTS:
            commands.append((match[1], shlex.split(match[2].split("`")[0], comments=True)))
    return commands
