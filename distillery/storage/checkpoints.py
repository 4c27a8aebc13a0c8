"""Folders that are whole or not there, and the checkpoints of a training run."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distillery.storage.files import read_json, sha256, sync, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"  # SHA-256 checksum of every other file; written last
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
BEST = "best"
CHECKPOINT = "checkpoint-{step}"
CHECKPOINTS = "checkpoint-*"


@contextmanager
def sealed_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it gets its manifest and then its name.

    A folder of that name is replaced. A writer that fails leaves nothing, and one that is killed
    only a `.tmp` or `.old` folder, which the next one throws away.
    """
    path = path.resolve()  # "." has no name of its own
    temporary, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _seal(temporary)
    except BaseException:
        shutil.rmtree(temporary)  # it may be what fills the disk
        raise
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def _seal(folder: Path) -> None:
    """Flush a folder's files to the disk, and write their checksums beside them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        sync(file)
    checksums = {str(file.relative_to(folder)): sha256(file) for file in files}
    write_json(folder / MANIFEST, checksums)


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a sealed folder, or None if it is whole."""
    try:
        checksums = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:  # bad JSON, or bytes that are no text
        return f"its manifest cannot be read: {error}"
    if not isinstance(checksums, dict) or not checksums:
        return "its manifest names no files"
    for name, expected in checksums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} is damaged"
    return None


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step is kept."""
    return output_dir / CHECKPOINT.format(step=step)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that is whole, naming those that are not; None without any.

    Raises:
        ValueError: there are checkpoints, but none of them is whole.
    """
    paths = _checkpoints(output_dir)
    for path in reversed(paths):
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("%s is not used: %s", path, damage)
    if paths:
        raise ValueError(
            f"{output_dir}: none of its {len(paths)} checkpoints is whole; start over with "
            "--overwrite_output_dir"
        )
    return None


def rotate(output_dir: Path, step: int, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints, at least one, up to the one just saved.

    Checkpoints of later steps were damaged, else the run would have gone on from them: they go
    too, and never count as the newest.

    Args:
        output_dir: the run's folder.
        step: that was just saved.
        keep: how many stay; None keeps all.
    """
    if keep is not None:
        paths = _checkpoints(output_dir)
        of_this_run = paths[: paths.index(checkpoint_path(output_dir, step)) + 1]
        for path in paths:
            if path not in of_this_run[-keep:]:
                shutil.rmtree(path)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first; siblings such as `best` are none."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in output_dir.glob("*"))
    return [p for _, p in sorted((int(match[1]), p) for match, p in matches if match)]
