"""What of a run's folder may leave this machine, and by which names it calls what it was made from.

Only what the run's record lists goes along: never a file of the user's, whatever its name. Record,
card and reports are uploaded as copies that name files and folders without the path to them; the
run's own record keeps its paths, because a run that goes on compares its flags with them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from distillery.storage.checkpoints import BEST, CHECKPOINTS, MANIFEST
from distillery.storage.files import RUN_RECORD, read_json
from distillery.storage.outputs import FILES, LOGS, is_hidden
from distillery.storage.runs import CONFIG

CARD = "README.md"
EVAL_RESULTS = ".eval_results"  # the Hub's folder for results on its benchmarks
WORKING_FILES = (CONFIG, MANIFEST)  # of use in this folder alone

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_ABSOLUTE = re.compile(r"(?<![^\s`\"'+=])/[^\s`\"'+/]+(?:/[^\s`\"'+/]+)+/?")


def published_files(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Return what is uploaded of a complete run, by path: a file, or what its copy holds.

    Args:
        folder: the run's.
        repo_id: the repository, which the copies name where they would name this folder.

    Raises:
        ValueError: the run lists no files: an older version made it.
    """
    record = read_json(folder / RUN_RECORD)
    if FILES not in record:
        raise ValueError(
            f"{folder} was made by an older version, which kept no list of the files that it "
            "wrote: make it again, or upload it by hand with `hf upload`"
        )
    names = [name for name in sorted(record[FILES]) if not _is_work(name) and name != RUN_RECORD]
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    sums = {name: record[FILES][name] for name in names}
    own = {str(folder), str(folder.resolve()), *_values(record["arguments"], "output_dir save_dir")}
    known = {name: Path(name).name for name in _local_names(record)} | dict.fromkeys(own, repo_id)
    for name in (name for name in names if name.endswith(".md")):  # cards and reports
        text = (folder / name).read_text(encoding="utf-8")
        if name == CARD:
            text = _renamed(text, folder.resolve().name, repo_id)
        copy = _without_paths(text, known).encode()
        files[name] = copy
        sums[name] = {"size": len(copy), "sha256": hashlib.sha256(copy).hexdigest()}
    public = {**_public(record, known), FILES: sums}
    return {**files, RUN_RECORD: f"{json.dumps(public, ensure_ascii=False, indent=2)}\n".encode()}


def _renamed(card: str, name: str, repo_id: str) -> str:
    """Return a card with the repository in the place of its folder: as title, and in commands."""
    title = re.compile(rf"^# {re.escape(name)}$", flags=re.MULTILINE)
    card = title.sub(lambda _: f"# {repo_id.rpartition('/')[2]}", card)
    return card.replace(f'"{name}"', f'"{repo_id}"')


def public_names(names: str) -> str:
    """Return names, joined with `+`, as they may be published: of a path its last part.

    Ids of the Hub stay as they are.
    """
    return "+".join(Path(name).name if _is_local(name) else name for name in joined(names))


def joined(names: str) -> list[str]:
    """Return the names that are joined with `+`; a path that exists as it stands is one name."""
    return [names] if Path(names).exists() else names.split("+")


def hub_ids(names: str) -> list[str]:
    """Return those of names, joined with `+`, that are ids of the Hub."""
    return [n for n in joined(names) if _HUB_ID.fullmatch(n) and not Path(n).exists()]


def _is_work(name: str) -> bool:
    """Tell whether a file serves only this folder: hidden, a checkpoint's, or a log of rows."""
    path = PurePosixPath(name)
    of_checkpoint = PurePosixPath(path.parts[0]).match(CHECKPOINTS) or path.parts[0] == BEST
    is_work = is_hidden(name) and path.parts[0] != EVAL_RESULTS
    return of_checkpoint or is_work or name in WORKING_FILES or path.suffix in LOGS


def _is_local(name: str) -> bool:
    """Tell a path from an id of the Hub, and from what is neither."""
    if "/" not in name or "://" in name or not Path(name).name:
        return False
    return not _HUB_ID.fullmatch(name) or Path(name).exists()


def _values(arguments: Mapping[str, Any], flags: str) -> list[str]:
    return [arguments[flag] for flag in flags.split() if arguments.get(flag)]


def _local_names(record: Mapping[str, Any]) -> Iterable[str]:
    """Yield the paths among a run's flags and inputs, as they stand in its record."""
    texts = [value for value in record["arguments"].values() if isinstance(value, str)]
    for text in (*texts, *record["inputs"]):
        for name in joined(text):
            if _is_local(name):
                yield name


def _public(value: Any, known: Mapping[str, str]) -> Any:
    """Return a value of a record without paths, in keys as in values."""
    if isinstance(value, dict):
        return {_public(key, known): _public(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item, known) for item in value]
    if isinstance(value, str):
        return known.get(value) or _without_paths(value, known)
    return value


def _without_paths(text: str, known: Mapping[str, str]) -> str:
    """Return a text in which known paths, and all that look like a path from `/`, are names."""
    paths = sorted((name for name in known if "/" in name), key=len, reverse=True)
    if paths:
        any_path = rf"(?<![\w./~-])(?:{'|'.join(map(re.escape, paths))})(?![\w-])"
        text = re.sub(any_path, lambda match: known[match[0]], text)
    return _ABSOLUTE.sub(lambda match: Path(match[0]).name, text)
