"""Tables that the documents take from the code: flags, and what lies in each room.

A page says where a table goes by a comment of its own line; MkDocs fills it in while it builds:

    <!-- flags: run_data_filtering.py -->
    <!-- seed flags -->
    <!-- rooms -->
"""

import ast
import html
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"^<!-- (?P<table>flags|seed flags|rooms)(?:: (?P<script>[\w/.]+))? -->$", re.M)
# From left to right, as the import rule has them.
ROOMS = ("storage", "text", "audio", "data", "ingest", "filtering", "whisper")
ROOMS += ("labelling", "training", "evaluation", "cli")

sys.path.insert(0, str(REPOSITORY))  # the stages work from a bare clone

from distillery.cli.seed_flags import OTHER_MEANINGS, SEED_FLAGS  # noqa: E402 (after the path)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page by their tables (a hook of MkDocs)."""
    return MARKER.sub(_table, markdown)


def _table(marker: re.Match[str]) -> str:
    if marker["table"] == "flags":
        return "\n".join(flag_tables(marker["script"]))
    return "\n".join(room_tables() if marker["table"] == "rooms" else seed_flag_tables())


@cache
def stage_groups(script: str) -> tuple[type, ...]:
    """Return the dataclasses whose fields are the flags of a stage."""
    return tuple(runpy.run_path(str(REPOSITORY / script), run_name="stage")["GROUPS"])


def flag_tables(script: str) -> Iterator[str]:
    """Yield the lines of a table for each group of a stage's flags."""
    for group in stage_groups(script):
        yield f"### {_first_line(group.__doc__).rstrip('.')}\n"
        yield "| flag | default | meaning |"
        yield "|---|---|---|"
        for each in sorted(fields(group), key=lambda each: not _is_required(each)):
            yield f"| {_spellings(each)} | {_default(each)} | {_markdown(each.metadata['help'])} |"
        yield ""


def _is_required(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _spellings(each: Field[Any]) -> str:
    spellings = [f"--{each.name}", *each.metadata.get("aliases", ())]
    if each.default is True:
        spellings.append(f"--no_{each.name}")
    mark = " ↻" if each.metadata.get("resumable") else ""
    return ", ".join(f"`{spelling}`" for spelling in spellings) + mark


def _default(each: Field[Any]) -> str:
    if _is_required(each):
        return "**required**"
    if isinstance(each.default, bool):
        return "on" if each.default else "off"
    return "" if each.default in (None, MISSING) else f"`{each.default}`"


def _markdown(text: str) -> str:
    """Return a help text as Markdown: nothing in it is markup, and flags are code."""
    text = html.escape(text, quote=False)
    escaped = re.sub(r"([|*~])", r"\\\1", text)
    return re.sub(r"(?<![\w`])(--?[a-zA-Z]\w*)", r"`\1`", escaped)


def seed_flag_tables() -> Iterator[str]:
    """Yield the lines of a table for each stage: flags of the ancestors that differ here."""
    for stage, answers in SEED_FLAGS.items():
        yield f"### `{stage}.py`\n"
        yield "| flag | taken | here |"
        yield "|---|---|---|"
        rows = {name: ("no", answer) for name, answer in answers.items()}
        rows |= {name: ("yes", here) for name, here in OTHER_MEANINGS.get(stage, {}).items()}
        alike: dict[tuple[str, str], list[str]] = {}  # flags with the same answer share a row
        for name, answer in sorted(rows.items()):
            alike.setdefault(answer, []).append(f"`{'--' if len(name) > 1 else '-'}{name}`")
        for (is_taken, here), names in alike.items():
            yield f"| {', '.join(names)} | {is_taken} | {_markdown(here)} |"
        yield ""


def room_tables() -> Iterator[str]:
    """Yield the lines of a table for each room of the package: its modules, and what each is."""
    for room in ROOMS:
        folder = REPOSITORY / "distillery" / room
        yield f"### `{room}`\n"
        yield f"{_docstring(folder / '__init__.py')}\n"
        yield "| module | what it holds |"
        yield "|---|---|"
        for path in sorted(folder.rglob("[a-z]*.py")):
            name = path.relative_to(folder).as_posix()
            yield f"| `{name}` | {_first_line(_docstring(path))} |"
        yield ""


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]
