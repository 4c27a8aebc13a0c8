"""A run of a stage in its output folder, and the record that it leaves there."""

import logging
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.storage.files import RUN_RECORD, read_json, write_json, write_text
from distillery.storage.provenance import code_commit, versions

CONFIG = "config.yaml"  # what a stage leaves beside its output, to be run again
STARTED, COMPLETE = "started", "complete"
OTHER_FOLDER = "name another folder, or start over with --overwrite_output_dir"


@dataclass
class Run:
    """One run of a stage in its output folder, and the record that it leaves there.

    Attributes:
        folder: the output folder.
        stage: name of the stage's script, without `.py`.
        arguments: all flags by name, and what is derived from them.
        inputs: fingerprints of what is read, by name.
        owned: patterns of the names that this stage writes in the folder, beside its record; only
            these are ever deleted.
        may_change: names of arguments that do not affect the result: they may differ between a
            killed run and the one that goes on with it.
        config: the text of a configuration file that repeats the run.
        remedy: what to do where the folder holds another run.
    """

    folder: Path
    stage: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    owned: Sequence[str] = ()
    may_change: Collection[str] = frozenset()
    config: str = ""
    remedy: str = OTHER_FOLDER
    is_complete: bool = False
    started: float = field(default_factory=time.time)

    @property
    def record_path(self) -> Path:
        """Where the record is kept."""
        return self.folder / RUN_RECORD

    def write(self, status: str, **results: Any) -> None:
        """Write the record, with a stage's counts and figures."""
        record = {
            "stage": self.stage,
            "status": status,
            "arguments": self.arguments,
            "inputs": self.inputs,
            "versions": versions(),
            "commit": code_commit(),
            "seconds": round(time.time() - self.started, 2),
            **results,
        }
        write_json(self.record_path, record)

    def write_config(self) -> None:
        """Leave the flags as a file that the stage takes in their place."""
        write_text(self.folder / CONFIG, self.config)

    def finish(self, **results: Any) -> None:
        """Write the record of a run that is complete."""
        self.write(COMPLETE, **results)

    def was_completed(self) -> bool:
        """Tell whether the folder holds this run and nothing is left to do."""
        return self.record_path.exists() and read_json(self.record_path)["status"] == COMPLETE

    def was_made(self, flag: str, overwrite: bool = False) -> bool:
        """Tell whether a folder that is written as a whole holds this very run.

        Args:
            flag: that names the folder, as users type it.
            overwrite: another run of this stage is to be replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return False
        if not self.record_path.exists():
            raise ValueError(f"{flag} {self.folder} is not empty: name another folder")
        self.refuse_other_stage()
        if overwrite:
            return False
        self.refuse_other_configuration()
        logging.getLogger(self.stage).info("%s is complete: nothing to do", self.folder)
        return True

    def has_work(self) -> bool:
        """Tell whether an earlier run was completed, or left files beside its record."""
        left = (path for pattern in self.owned for path in self.folder.glob(pattern))
        return self.record_path.exists() and (self.was_completed() or any(left))

    def resume_status(self, done: str = "") -> str:
        """Say how the run would begin, writing nothing.

        Args:
            done: what of it is done already, for a run that would go on.

        Raises:
            ValueError: it would be refused, as by `open_run`.
        """
        if self.record_path.exists():
            self.refuse_other_stage()
        if not self.has_work():
            return "nothing is there of an earlier run"
        if self.arguments.get("overwrite_output_dir"):
            return "--overwrite_output_dir would throw away the run that is there"
        self.refuse_other_configuration()
        if self.was_completed():
            return "complete: nothing to do"
        return f"goes on with the run that is there: {done}"

    def refuse_foreign_files(self) -> None:
        """Raise ValueError if a folder without a run holds files under the names of this stage."""
        foreign = self._files_of_stage()
        if foreign:
            names = ", ".join(str(path.relative_to(self.folder)) for path in foreign[:3])
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise ValueError(
                f"--output_dir {self.folder} holds {names}{more}, which this stage would write "
                "and no run of it has left there: name another folder"
            )

    def throw_away(self) -> None:
        """Delete what earlier runs of this stage left, and never through a symbolic link."""
        for path in self._files_of_stage():
            if _leads_elsewhere(path, self.folder):
                raise ValueError(
                    f"--overwrite_output_dir: {path} is, or lies behind, a symbolic link: what it "
                    "leads to is not deleted; remove the link"
                )
        for path in self._files_of_stage():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # The record goes last: without it, what a kill left would not look like ours.
        self.record_path.unlink()

    def _files_of_stage(self) -> list[Path]:
        patterns = (*self.owned, CONFIG)
        return sorted({path for pattern in patterns for path in self.folder.glob(pattern)})

    def refuse_other_stage(self) -> None:
        """Raise ValueError if the folder holds a run of another stage."""
        stage = read_json(self.record_path)["stage"]
        if stage != self.stage:
            raise ValueError(
                f"--output_dir {self.folder} holds a run of {stage}; name another folder"
            )

    def refuse_other_configuration(self) -> None:
        """Raise ValueError if the folder holds a run of another stage, or with other flags."""
        self.refuse_other_stage()
        record = read_json(self.record_path)
        before, now = record["arguments"], self.arguments
        changed = [
            f"--{name}: {before.get(name)!r} then, {now.get(name)!r} now"
            for name in sorted({*before, *now}.difference(self.may_change))
            if before.get(name) != now.get(name)
        ]
        changed += [
            f"{name}: its content has changed"
            for name, fingerprint in self.inputs.items()
            if record["inputs"].get(name, fingerprint) != fingerprint
        ]
        if changed:
            listed = "\n  ".join(changed)
            raise ValueError(
                f"--output_dir {self.folder} holds a run of another configuration:\n  {listed}\n"
                f"{self.remedy}"
            )


def _leads_elsewhere(path: Path, folder: Path) -> bool:
    """Tell whether a path in a folder is, or lies behind, a symbolic link."""
    parts = path.relative_to(folder).parts
    return any(folder.joinpath(*parts[: n + 1]).is_symlink() for n in range(len(parts)))
