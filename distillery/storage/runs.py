"""A run of a stage in its output folder, and the record that it leaves there."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.storage.files import RUN_RECORD, read_json, remove_leftovers, write_json
from distillery.storage.outputs import (
    FILES,
    TEXTS,
    Outputs,
    files_in,
    is_hidden,
    recorded,
)
from distillery.storage.ownership import LOCK, refuse_overlap
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
        owned: patterns of the names that this stage writes in the folder, beside its record: a
            folder that holds files of others under them is refused.
        reads: names of what is read, as the flags have them.
        may_change: names of arguments that do not affect the result: they may differ between a
            killed run and the one that goes on with it.
        config: the text of a configuration file that repeats the run.
        remedy: what to do where the folder holds another run.
        retried: names of inputs that were mended: what was quarantined of them is tried again.
        flag: that names the folder.
    """

    folder: Path
    stage: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    owned: Sequence[str] = ()
    reads: Sequence[str] = ()
    may_change: Collection[str] = frozenset()
    config: str = ""
    remedy: str = OTHER_FOLDER
    retried: Collection[str] = ()
    flag: str = "--output_dir"
    is_complete: bool = False
    started: float = field(default_factory=time.time)

    @classmethod
    def finished(cls, folder: Path, flag: str) -> "Run":
        """Return the run that a folder holds.

        Args:
            folder: the output folder.
            flag: that names it, as users type it.

        Raises:
            ValueError: it holds no run that is complete, or several that share it.
        """
        path = folder / RUN_RECORD
        if not path.is_file():
            raise ValueError(f"{flag} {folder} holds no {RUN_RECORD}: no stage has finished it")
        record = read_json(path)
        if record["status"] != COMPLETE or record.get("shared"):
            raise ValueError(
                f"{flag} {folder} holds no finished model or dataset, but a run of "
                f"{record['stage']} that is {'shared' if record.get('shared') else 'not complete'}"
            )
        return cls(folder, record["stage"], record["arguments"], record["inputs"], is_complete=True)

    @property
    def record_path(self) -> Path:
        """Where the record is kept."""
        return self.folder / RUN_RECORD

    @property
    def outputs(self) -> Outputs:
        """The list of the files that this run wrote."""
        return Outputs(self.folder)

    @property
    def verifies(self) -> bool:
        """Whether files are compared with their checksums, and not only with their sizes."""
        return bool(self.arguments.get("verify"))

    def write(self, status: str, **results: Any) -> None:
        """Write the record, with a stage's counts and figures, and the list of its files."""
        record = {
            "stage": self.stage,
            "status": status,
            "arguments": self.arguments,
            "inputs": self.inputs,
            "versions": versions(),
            "commit": code_commit(),
            "seconds": round(time.time() - self.started, 2),
            **results,
            FILES: self.outputs.to_dict(),
        }
        write_json(self.record_path, record)

    def write_config(self) -> None:
        """Leave the flags as a file that the stage takes in their place."""
        self.outputs.write_text(self.folder / CONFIG, self.config)

    def finish(self, **results: Any) -> None:
        """Write the record of a run that is complete; no other process may be writing."""
        self._settle(COMPLETE, **results)

    def list_more(self) -> None:
        """List the files that were added to a finished run in its record."""
        record = read_json(self.record_path)
        write_json(self.record_path, {**record, FILES: self.outputs.to_dict()})
        self.outputs.forget_journals()

    def end_open(self) -> None:
        """Write the record of a run that is never complete: started again, it adds to its files."""
        self._settle(STARTED)

    def _settle(self, status: str, **results: Any) -> None:
        remove_leftovers(self.folder)
        self.write(status, **results)
        self.outputs.forget_journals()

    def refuse_unshared_folder(self) -> None:
        """Raise ValueError if the folder is none that runs share, as `share` leaves it."""
        if self.record_path.exists() and not read_json(self.record_path).get("shared"):
            self.refuse_other_stage()
        self.outputs.refuse_foreign(self.folder / CONFIG)

    def share(self) -> None:
        """Write the record of a folder that other runs add files to, one after the other.

        It has the flags of the last one, and lists the files of all, killed ones too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(COMPLETE, shared=True)
        self.outputs.forget_journals()

    def was_completed(self) -> bool:
        """Tell whether the folder holds this run and nothing is left to do."""
        return self.record_path.exists() and read_json(self.record_path)["status"] == COMPLETE

    def damage(self) -> dict[str, str]:
        """Return what is wrong with the files of an earlier run, by their names."""
        return self.outputs.damage(verify=self.verifies)

    def num_quarantined(self) -> int:
        """Return how many rows the record of an earlier run counts as unusable."""
        ledger = read_json(self.record_path).get("ledger") or {}
        return sum(ledger.get("quarantined", {}).values())

    def completion(self) -> str:
        """Say that nothing is left to do, and what else could be."""
        count = self.num_quarantined()
        if not count or "retry_quarantined" not in self.arguments:
            return "complete: nothing to do"
        return (
            f"complete: nothing to do; quarantined rows: {count}, which --retry_quarantined tries "
            "again once they are mended"
        )

    def reopen(self) -> None:
        """Let a run go on that lacks something, after a kill or after its end.

        Files that are not what was written are deleted, so that they are made again: sizes are
        looked at, and with --verify checksums. A complete run that lacks a file, or whose
        quarantined rows are to be tried again, or one of whose retried inputs has changed, is no
        longer complete.
        """
        faults = self.damage()
        if self.was_completed():
            self._log_damage(faults)
            record = read_json(self.record_path)
            has_changed = any(
                record["inputs"].get(name) != self.inputs[name] for name in self.retried
            )
            if faults or has_changed or (self.retried and self.num_quarantined()):
                reopened = {"status": STARTED, "inputs": self.inputs}
                write_json(self.record_path, {**record, **reopened})
        else:  # what a killed run has listed and not written is not missed
            faults = {name: why for name, why in faults.items() if (self.folder / name).exists()}
            self._log_damage(faults)
        self.outputs.remove([self.folder / name for name in faults])

    def _log_damage(self, faults: Mapping[str, str]) -> None:
        for name, fault in faults.items():
            logging.getLogger(self.stage).warning(
                "%s is damaged: %s; it is made again", self.folder / name, fault
            )

    def was_made(self, flag: str, overwrite: bool = False) -> bool:
        """Tell whether a folder that is written as a whole holds this very run.

        Args:
            flag: that names the folder, as users type it.
            overwrite: another run of this stage is to be replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        if not self.folder.exists() or not any(path.name != LOCK for path in self.folder.iterdir()):
            return False
        if not self.record_path.exists():
            raise ValueError(f"{flag} {self.folder} is not empty: name another folder")
        self.refuse_other_stage()
        self.refuse_old_record(overwrite)
        if overwrite:
            self.refuse_changed_files()
            return False
        self.refuse_other_configuration()
        faults = self.damage()
        self._log_damage(faults)
        if faults:
            return False
        logging.getLogger(self.stage).info("%s is complete: nothing to do", self.folder)
        return True

    def has_work(self) -> bool:
        """Tell whether an earlier run was completed, or left files beside its record."""
        if not self.record_path.exists():
            return False
        return self.was_completed() or any(
            (self.folder / name).exists() for name in self.outputs.written() if name != CONFIG
        )

    def resume_status(self, done: str = "") -> str:
        """Say how the run would begin, writing nothing.

        Args:
            done: what of it is done already, for a run that would go on.

        Raises:
            ValueError: it would be refused, as by `open_run`.
        """
        refuse_overlap(self.folder, self.reads)
        if self.record_path.exists():
            self.refuse_other_stage()
        else:
            self.refuse_foreign_files()
        if not self.has_work():
            return "nothing is there of an earlier run"
        if self.arguments.get("overwrite_output_dir"):
            return "--overwrite_output_dir would throw away the run that is there"
        self.refuse_other_configuration()
        if not self.was_completed():
            return f"goes on with the run that is there: {done}"
        faults = self.damage()
        if faults:
            named = _named([f"{name} ({fault})" for name, fault in faults.items()])
            return f"complete but for damage, which would be made again: {named}"
        return self.completion()

    def refuse_foreign_files(self) -> None:
        """Raise ValueError if the folder holds files of others under the names of this stage."""
        foreign = self._foreign_files()
        if foreign:
            raise ValueError(
                f"{self.flag} {self.folder} holds {_named(foreign)}, which this stage would write "
                "and no run of it has left there: name another folder"
            )

    def refuse_old_record(self, overwrite: bool) -> None:
        """Raise ValueError if an older version, which listed no files, left a run to change."""
        is_to_change = overwrite or not self.was_completed()
        if recorded(self.folder) is None and is_to_change:
            raise ValueError(
                f"{self.flag} {self.folder} holds a run of an older version, whose record does "
                "not list its files, so that they cannot be told from yours: name another folder, "
                "or delete this one yourself"
            )

    def refuse_damaged_inputs(self) -> None:
        """Raise ValueError if what is read is not what one of our stages wrote there."""
        for name in self.reads:
            refuse_damaged(Path(name), verify=self.verifies)

    def refuse_changed_files(self) -> None:
        """Raise ValueError if what is in the way of starting over is not what this stage wrote.

        That is a file that was changed since, lies behind a symbolic link, or stands under a name
        of this stage and is not listed.
        """
        kept = sorted({*self.outputs.changed(), *self._foreign_files()})
        if kept:
            raise ValueError(
                f"--overwrite_output_dir: {self.folder} holds {_named(kept)}: not, or no longer, "
                "what this stage wrote, or behind a symbolic link, so it is not deleted, and it is "
                "in the way: move it away, or name another folder"
            )

    def throw_away(self) -> None:
        """Delete what earlier runs of this stage left, and nothing else.

        Raises:
            ValueError: as in `refuse_changed_files`; nothing is deleted.
        """
        remove_leftovers(self.folder)
        self.refuse_changed_files()
        self.outputs.delete()
        others = self.outputs.others()
        if others:
            logging.getLogger(self.stage).warning(
                "%s: what this stage did not write is left alone: %s", self.folder, _named(others)
            )
        # The record goes last: without it, what a kill left would not look like ours.
        self.record_path.unlink()

    def _foreign_files(self) -> list[str]:
        """Return the files and links under names of this stage that are not listed."""
        found: set[Path] = set()
        for path in (
            path for pattern in (*self.owned, CONFIG) for path in self.folder.glob(pattern)
        ):
            is_folder = path.is_dir() and not path.is_symlink()
            found.update(files_in(path) if is_folder else [path])
        listed = self.outputs.written()
        return sorted(name for name in map(self.outputs.name, found) if name not in listed)

    def refuse_other_stage(self) -> None:
        """Raise ValueError if the folder holds a run of another stage."""
        stage = read_json(self.record_path)["stage"]
        if stage != self.stage:
            raise ValueError(
                f"{self.flag} {self.folder} holds a run of {stage}; name another folder"
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
            if record["inputs"].get(name, fingerprint) != fingerprint and name not in self.retried
        ]
        if changed:
            listed = "\n  ".join(changed)
            raise ValueError(
                f"{self.flag} {self.folder} holds a run of another configuration:\n  {listed}\n"
                f"{self.remedy}"
            )


def _named(names: Sequence[str]) -> str:
    """Return the first few of some names, for an error or a line of the log."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def refuse_damaged(folder: Path, *, verify: bool = False) -> None:
    """Raise ValueError if a file that is to be read is not what one of our stages wrote.

    A folder without a record of a complete run is passed over, and so are texts, which a user may
    edit or leave behind.

    Args:
        folder: that holds what is read; anything else is passed over.
        verify: compare checksums, and not only sizes.
    """
    if not recorded(folder):
        return
    record = read_json(folder / RUN_RECORD)
    if record["status"] != COMPLETE:
        return
    faults = {
        name: fault
        for name, fault in Outputs(folder).damage(verify=verify).items()
        if not is_hidden(name) and Path(name).suffix not in TEXTS
    }
    if faults:
        name, fault = next(iter(faults.items()))
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(
            f"{folder / name} is damaged{more}: {fault}; start {record['stage']}.py again with the "
            "flags that made it: it makes only what is damaged again"
        )
