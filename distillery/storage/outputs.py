"""The files that a run wrote: a list that tells ours from the user's, and whole ones from damaged.

A file is put on the list before it gets its name, so whatever a killed run left is on it. Each
process of a launch keeps a journal of its own; a finished run's list stands in its record.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from distillery.storage.files import replacing, sha256, sync

JOURNALS = ".written"  # folder with one list for each process, until the run is finished
SMALL_BYTES = 2**20  # up to this size, a checksum costs nothing


@dataclass(frozen=True)
class Written:
    """What a file held when it was written."""

    size: int
    sha256: str


class Outputs:
    """The files that a run wrote in its folder, by their paths in it.

    Args:
        folder: of the run.
        process: number of this process in its launch.
        listed: what the run's record lists.
    """

    def __init__(
        self,
        folder: Path,
        process: int = 0,
        listed: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.folder = folder
        self._journal = folder / JOURNALS / f"{process}.jsonl"
        self._listed = {
            name: Written(int(str(entry["size"])), str(entry["sha256"]))
            for name, entry in (listed or {}).items()
        }

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Give a temporary name to write to; on success the file is listed, then gets its name."""
        with replacing(path) as temporary:
            yield temporary
            self.add([temporary], [path])

    def add(self, files: Iterable[Path], names: Iterable[Path] | None = None) -> None:
        """List files, durably.

        Args:
            files: what they hold is read here.
            names: the names that they will have; default: those that they have.
        """
        files = list(files)
        lines = [
            json.dumps(
                {
                    "path": name.relative_to(self.folder).as_posix(),
                    "size": file.stat().st_size,
                    "sha256": sha256(file),
                }
            )
            for file, name in zip(files, files if names is None else names, strict=True)
        ]
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.writelines(f"{line}\n" for line in lines)
            journal.flush()
            os.fsync(journal.fileno())
        sync(self._journal.parent)

    def written(self) -> dict[str, list[Written]]:
        """Return for each path what a run may have left there; a file that was replaced has two."""
        entries: dict[str, list[Written]] = {}
        for name, entry in [*self._listed.items(), *self._journal_entries()]:
            entries.setdefault(name, []).append(entry)
        return entries

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Return the newest entry of each path, for a run's record."""
        return {name: asdict(entries[-1]) for name, entries in sorted(self.written().items())}

    def forget_journals(self) -> None:
        """Remove the journals of a finished run, whose record has the list."""
        for path in (self.folder / JOURNALS).glob("*.jsonl"):
            path.unlink()
        if (self.folder / JOURNALS).is_dir():
            (self.folder / JOURNALS).rmdir()

    def damage(self, *, verify: bool = False) -> dict[str, str]:
        """Return what is wrong with listed files, by path; empty where all are whole.

        Args:
            verify: read every file and compare checksums; else those of small files alone, and of
                the others the sizes.
        """
        wrong = {
            name: self._fault(name, entries, verify) for name, entries in self.written().items()
        }
        return {name: fault for name, fault in wrong.items() if fault is not None}

    def delete(self) -> list[str]:
        """Delete the listed files that are as they were written; return the names of the others.

        A file that somebody changed since, or that lies behind a symbolic link, is not ours.
        """
        kept = []
        for name, entries in self.written().items():
            path = self.folder / name
            fault = self._fault(name, entries, verify=False)
            if fault is None:
                path.unlink()
                _prune(path.parent, self.folder)
            elif os.path.lexists(path):
                kept.append(name)
        return kept

    def _fault(self, name: str, entries: list[Written], verify: bool) -> str | None:
        path = self.folder / name
        if not is_inside(self.folder, name):
            return "it lies behind a symbolic link"
        if not path.is_file():
            return "it is missing"
        size = path.stat().st_size
        if size not in {entry.size for entry in entries}:
            return f"it has {size:,} bytes; {entries[-1].size:,} were written"
        if verify or size <= SMALL_BYTES:
            checksum = sha256(path)
            if checksum not in {entry.sha256 for entry in entries}:
                return "its content is not what was written"
        return None

    def _journal_entries(self) -> Iterator[tuple[str, Written]]:
        for path in sorted((self.folder / JOURNALS).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last line of a killed writer may be cut
                    entry = json.loads(line)
                    yield entry["path"], Written(entry["size"], entry["sha256"])


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


def refuse_overlap(output: Path, inputs: Iterable[str], flag: str = "--output_dir") -> None:
    """Raise ValueError if an output folder is an input, lies in one, or holds one.

    Args:
        output: the folder to be written.
        inputs: names of what is read; those that are no local file or folder are passed over.
        flag: that names the output folder.
    """
    target = output.resolve()
    for name in inputs:
        source = Path(name)
        if not source.exists():
            continue
        source = source.resolve()
        if target == source or target in source.parents or source in target.parents:
            where = "is" if target == source else "lies in" if source in target.parents else "holds"
            raise ValueError(
                f"{flag} {output} {where} the input {name}: name a folder outside of it"
            )


def _prune(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
