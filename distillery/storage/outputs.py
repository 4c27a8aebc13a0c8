"""The files that a run wrote: a list that tells ours from the user's, and whole ones from damaged.

A file is put on the list before it gets its name, so whatever a killed run left is on it. Until a
run is finished, each of its processes keeps a journal of its own; then the list stands in the run's
record, with the size and the SHA-256 checksum of each file.
"""

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from distillery.storage.files import RUN_RECORD, is_json, read_json, replacing, sha256, sync

logger = logging.getLogger(__name__)

JOURNALS = ".written"  # folder with the journals, until the run is finished
FILES = "files"  # the list in a run's record
SMALL_BYTES = 2**20  # up to this size, a checksum costs nothing

# What people read and may edit, and no stage computes with: what it holds is never damage.
TEXTS = (".md", ".yaml", ".html")
LOGS = (".jsonl",)  # nor are these missed: they cannot be made again


@dataclass(frozen=True)
class Written:
    """What a file held when it was written.

    Attributes:
        size, sha256: in bytes and hexadecimal; None while the file grows.
        spare: a finished run can do without it, and what reads it checks it: a shard of work with a
            seal, a checkpoint with a manifest.
    """

    size: int | None = None
    sha256: str | None = None
    spare: bool = False

    @classmethod
    def of(cls, file: Path, *, spare: bool = False) -> "Written":
        """Read what a file holds."""
        return cls(file.stat().st_size, sha256(file), spare)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry for a JSON file."""
        plain = {"size": self.size, "sha256": self.sha256}
        return {**plain, "spare": True} if self.spare else plain

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Written":
        """Read what `to_dict` returned."""
        return cls(entry["size"], entry["sha256"], entry.get("spare", False))


@dataclass(frozen=True)
class Outputs:
    """The files that a run wrote in its folder, by their paths in it.

    Any number of processes may add to the list at once.
    """

    folder: Path

    # --- writing ----------------------------------------------------------------------------------

    @contextmanager
    def replacing(self, path: Path, *, spare: bool = False) -> Iterator[Path]:
        """Give a temporary name to write to; on success the file is listed, then gets its name.

        Args:
            path: in the folder.
            spare: as in `Written`.

        Raises:
            ValueError: something else has that name, or it lies behind a symbolic link.
        """
        self.refuse_foreign(path)
        with replacing(path) as temporary:
            yield temporary
            self.add({path: Written.of(temporary, spare=spare)})

    def write_text(self, path: Path, text: str) -> None:
        """Write UTF-8 text for people; one that somebody changed since it was written stays."""
        if self._is_edited(path):
            return
        with self.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def take_in(self, staged: Path) -> None:
        """Move all files of a folder, which lies in this one, to the same names in this one.

        Texts that somebody changed since they were written stay.
        """
        files = {file: self.folder / file.relative_to(staged) for file in files_in(staged)}
        files = {file: path for file, path in files.items() if not self._is_edited(path)}
        for path in files.values():
            self.refuse_foreign(path)
        self.add({path: Written.of(file) for file, path in files.items()})
        for file, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            file.replace(path)
        sync(self.folder)
        shutil.rmtree(staged)

    def move(self, targets: Mapping[Path, Path]) -> None:
        """Give files other names; they must be listed, and what they hold is not read again."""
        entries = self.written()
        new = {
            target: replace(entries[self.name(path)][-1], spare=False)
            for path, target in targets.items()
        }
        for target in new:
            self.refuse_foreign(target)
        self.add(new)
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for folder in {target.parent for target in new}:
            sync(folder)
        self.forget(targets)

    def add_all(self) -> None:
        """List all files of a folder that nobody but this process has written to."""
        files = (file for file in files_in(self.folder) if not is_hidden(self.name(file)))
        self.add({file: Written.of(file) for file in files})

    def grow(self, path: Path) -> None:
        """List a file that is appended to: it is ours by its name until the run is finished."""
        self.refuse_foreign(path)
        self.add({path: Written()})

    def remove(self, paths: Collection[Path]) -> None:
        """Delete files that are listed, whatever they hold; others, and links, are left alone."""
        listed = self.written() if paths else {}
        ours = [path for path in paths if self.name(path) in listed]
        for path in ours:
            if is_inside(self.folder, self.name(path)) and path.is_file():
                path.unlink()
        self.forget(ours)

    def refuse_foreign(self, path: Path) -> None:
        """Raise ValueError if what has a name that is about to be written is not on the list."""
        name = self.name(path)
        if not is_inside(self.folder, name):
            raise ValueError(
                f"{path} is, or lies behind, a symbolic link: nothing is written through it; "
                "remove it, or name another folder"
            )
        if os.path.lexists(path) and name not in self.written():
            raise ValueError(
                f"{path} is about to be written, and this run did not leave it there: move it away"
            )

    # --- the list ---------------------------------------------------------------------------------

    def name(self, path: Path) -> str:
        """Return a file's name on the list: its path in the folder."""
        return path.relative_to(self.folder).as_posix()

    def add(self, files: Mapping[Path, Written]) -> None:
        """List files, durably."""
        self._note({self.name(path): written.to_dict() for path, written in files.items()})

    def written(self) -> dict[str, list[Written]]:
        """Return for each path what a run may have left there; a file that was replaced has two."""
        entries = {
            name: [Written.from_dict(entry)]
            for name, entry in (recorded(self.folder) or {}).items()
        }
        for name, line in self._journal_lines():
            if line.get("gone"):
                entries.pop(name, None)
            else:
                entries.setdefault(name, []).append(Written.from_dict(line))
        return entries

    def names(self) -> list[str]:
        """Return the listed paths that are there and are what the run is for, sorted.

        Left out are shards of work, in hidden folders.
        """
        return sorted(
            name for name in self.written() if not is_hidden(name) and self._is_file(name)
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return what is listed and there, by path, for the record of a finished run."""
        return {
            name: self._what_is_there(name, entries).to_dict()
            for name, entries in sorted(self.written().items())
            if self._is_file(name)
        }

    @property
    def is_pending(self) -> bool:
        """Whether files were listed since the record was written, by a killed run maybe."""
        return any((self.folder / JOURNALS).glob("*.journal"))

    def forget_journals(self) -> None:
        """Remove the journals of a finished run, whose record has the list."""
        for path in (self.folder / JOURNALS).glob("*.journal"):
            path.unlink(missing_ok=True)
        prune(self.folder / JOURNALS, self.folder)

    # --- what is there ----------------------------------------------------------------------------

    def damage(
        self, *, verify: bool = False, only: Collection[Path] | None = None
    ) -> dict[str, str]:
        """Return what is wrong with listed files that are no spare ones, by path.

        Args:
            only: look at these alone.
            verify: read every file and compare checksums; else only sizes are.
        """
        faults = {
            name: self._fault(name, entries, verify)
            for name, entries in self.written().items()
            if only is None or self.folder / name in only
        }
        return {name: fault for name, fault in faults.items() if fault is not None}

    def changed(self) -> list[str]:
        """Return the listed files that are there, and are not what was written.

        A large file that nobody has touched since is not read.
        """
        return [
            name
            for name, entries in sorted(self.written().items())
            if os.path.lexists(self.folder / name) and not self._is_as_written(name, entries)
        ]

    def others(self) -> list[str]:
        """Return the files and links in the folder that are not listed; none in hidden folders."""
        listed = self.written()
        names = (self.name(file) for file in files_in(self.folder))
        return [name for name in names if name not in listed and not is_hidden(name)]

    def delete(self) -> None:
        """Delete the listed files, and then the journals; the user's stay, and links too."""
        paths = [self.folder / name for name in self.written() if is_inside(self.folder, name)]
        self.remove(paths)
        for folder in {path.parent for path in paths}:
            prune(folder, self.folder)
        self.forget_journals()

    def _is_edited(self, path: Path) -> bool:
        """Tell whether somebody has changed a text since it was written, and say that it stays."""
        name = self.name(path)
        entries = self.written().get(name) if path.suffix in TEXTS and path.exists() else None
        if not entries or self._is_as_written(name, entries):
            return False
        logger.warning("%s was changed since it was written, and stays as it is", path)
        return True

    def _is_as_written(self, name: str, entries: list[Written]) -> bool:
        if not is_inside(self.folder, name):
            return False
        path = self.folder / name
        if not path.is_file() or entries[-1].spare:
            return path.is_file()
        stat = path.stat()
        fitting = [entry for entry in entries if entry.size in (None, stat.st_size)]
        if not fitting or any(entry.size is None for entry in fitting):
            return bool(fitting)
        if stat.st_size > SMALL_BYTES and stat.st_mtime_ns < self._listed_ns():
            return True
        return sha256(path) in {entry.sha256 for entry in fitting}

    def _listed_ns(self) -> int:
        """Return when the list was written to last."""
        lists = [self.folder / RUN_RECORD, *(self.folder / JOURNALS).glob("*.journal")]
        return max((path.stat().st_mtime_ns for path in lists if path.exists()), default=0)

    def _fault(self, name: str, entries: list[Written], verify: bool) -> str | None:
        path = self.folder / name
        if entries[-1].spare:
            return None
        if not is_inside(self.folder, name):
            return "it lies behind a symbolic link"
        if not path.is_file():
            return None if path.suffix in LOGS else "it is missing"
        if path.suffix in (*LOGS, *TEXTS) or any(entry.size is None for entry in entries):
            return None
        if path.suffix == ".json" and is_json(path):
            return None  # settings of a model, which a user may edit; one that is cut is no JSON
        size = path.stat().st_size
        if size not in {entry.size for entry in entries}:
            return f"it has {size:,} bytes; {entries[-1].size:,} were written"
        if verify and sha256(path) not in {entry.sha256 for entry in entries}:
            return "its content is not what was written"
        return None

    def _what_is_there(self, name: str, entries: list[Written]) -> Written:
        """Return the newest entry that fits a file's size, or what a file that grew holds now."""
        path = self.folder / name
        if entries[-1].size is None:
            return Written.of(path)
        size = path.stat().st_size
        fitting = [entry for entry in entries if entry.size == size]
        return (fitting or entries)[-1]

    def _is_file(self, name: str) -> bool:
        return is_inside(self.folder, name) and (self.folder / name).is_file()

    # --- journals ---------------------------------------------------------------------------------

    def forget(self, paths: Collection[Path]) -> None:
        """Take files that were deleted off the list."""
        listed = self.written() if paths else {}
        names = [name for name in map(self.name, paths) if name in listed]
        self._note({name: {"gone": True} for name in names})

    @property
    def _journal(self) -> Path:
        return self.folder / JOURNALS / f"{socket.gethostname()}-{os.getpid()}.journal"

    def _note(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        if not lines:
            return
        journal = self._journal
        is_new = not journal.exists()
        journal.parent.mkdir(parents=True, exist_ok=True)
        at = time.time()
        with journal.open("a", encoding="utf-8") as file:
            # Where a killed process of the same number left half a line, this begins a new one.
            file.write("\n")
            for name, line in lines.items():
                file.write(json.dumps({"path": name, "at": at, **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(journal.parent)

    def _journal_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield path and entry of all journals, in the order of their times."""
        lines = []
        for path in sorted((self.folder / JOURNALS).glob("*.journal")):
            for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:
                    continue  # a killed writer left half a line, and no file under its name
        for line in sorted(lines, key=lambda line: float(line["at"])):
            yield line["path"], line


def recorded(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the list in the record of a folder; None without one: an older version's has none."""
    path = folder / RUN_RECORD
    if not path.is_file():
        return None
    files: dict[str, dict[str, Any]] | None = read_json(path).get(FILES)
    return files


def is_inside(folder: Path, name: str) -> bool:
    """Tell whether a path in a folder stays in it, and no part of it is a symbolic link."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        return False
    path = folder
    for part in parts.parts:
        path = path / part
        if path.is_symlink():
            return False
    return True


def files_in(folder: Path) -> list[Path]:
    """Return all files and links below a folder, sorted; what a link leads to is not looked at."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def is_hidden(name: str) -> bool:
    """Tell whether a path lies in a hidden folder, or is hidden itself."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def prune(folder: Path, root: Path) -> None:
    """Remove a folder and those around it, up to a root, as far as they are empty."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
