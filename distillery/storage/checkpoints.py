"""Folders that are whole or not there, and the checkpoints of a training run."""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from distillery.storage.files import (
    RUN_RECORD,
    read_json,
    remove_leftovers,
    sha256,
    sync,
    temporary_path,
    write_json,
)
from distillery.storage.outputs import TEXTS, Outputs, Written, files_in, prune, recorded

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"  # SHA-256 checksum of every other file; written last
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
BEST = "best"
CHECKPOINT = "checkpoint-{step}"
CHECKPOINTS = "checkpoint-*"


@contextmanager
def sealed_folder(path: Path, outputs: Outputs | None = None) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it gets its manifest and then its name.

    A folder of that name is replaced, but for files in it that are not in its manifest, and texts
    that were changed since: they stay.
    A writer that fails leaves nothing, and one that is killed only a hidden `.tmp` folder, which
    the next one throws away.

    Args:
        path: of the folder.
        outputs: list of the files of the run that the folder is one of, if it is.

    Raises:
        ValueError: a file that is about to be written is there, and not in the manifest.
    """
    path = path.resolve()  # "." has no name of its own
    temporary, old = temporary_path(path), path.with_name(f".{path.name}.old.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    if old.exists():  # a kill came between the two renamings below, or right after them
        shutil.rmtree(old) if path.exists() else old.rename(path)
    remove_leftovers(path.parent, path.name)
    temporary.mkdir()
    try:
        yield temporary
        _seal(path, temporary, outputs)
    except BaseException:
        shutil.rmtree(temporary)  # it may be what fills the disk
        raise
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def _seal(path: Path, temporary: Path, outputs: Outputs | None) -> None:
    """Complete a filled folder with its manifest, and with what is the user's in its place.

    Args:
        path: that the folder will have.
        temporary: the folder.
        outputs: as in `sealed_folder`.
    """
    for name in Outputs(path).changed():
        if Path(name).suffix in TEXTS:  # that the user has edited
            shutil.copy2(path / name, temporary / name)
    checksums = _write_manifest(temporary)
    foreign = _foreign_files(path, outputs)
    for name in foreign:
        if (temporary / name).exists():
            raise ValueError(
                f"{path / name} is about to be written, and this run did not leave it there: move "
                "it away"
            )
    if outputs is not None:
        _list_files(outputs, path, temporary, checksums)
    for name in foreign:
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path / name, temporary / name, follow_symlinks=False)


def _write_manifest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        sync(file)
    checksums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    write_json(folder / MANIFEST, checksums)
    return checksums


def _foreign_files(folder: Path, outputs: Outputs | None) -> list[str]:
    """Return the files in a sealed folder that no manifest or list of ours names."""
    ours = {MANIFEST, RUN_RECORD, *_manifest_names(folder), *(recorded(folder) or ())}
    if outputs is not None:
        inside = PurePosixPath(folder.name)
        listed = (PurePosixPath(name) for name in outputs.written())
        ours.update(str(n.relative_to(inside)) for n in listed if n.is_relative_to(inside))
    names = (file.relative_to(folder).as_posix() for file in files_in(folder))
    return [name for name in names if name not in ours]


def _manifest_names(folder: Path) -> list[str]:
    try:
        return list(read_json(folder / MANIFEST))
    except (OSError, ValueError, TypeError):
        return []


def _list_files(
    outputs: Outputs, path: Path, temporary: Path, checksums: Mapping[str, str]
) -> None:
    manifest = Written.of(temporary / MANIFEST, spare=True)
    outputs.add(
        {
            outputs.folder / path.name / MANIFEST: manifest,
            **{
                outputs.folder / path.name / name: Written(
                    (temporary / name).stat().st_size, checksum, spare=True
                )
                for name, checksum in checksums.items()
            },
        }
    )


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
                delete_sealed(path, Outputs(output_dir))


def delete_sealed(path: Path, outputs: Outputs) -> None:
    """Delete a sealed folder, but for files in it that the user put there."""
    foreign = set(_foreign_files(path, outputs))
    ours = [file for file in files_in(path) if file.relative_to(path).as_posix() not in foreign]
    for file in ours:
        file.unlink()
    outputs.forget(ours)
    for folder in {file.parent for file in ours}:
        prune(folder, path.parent)


def _checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first; siblings such as `best` are none."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in output_dir.glob("*"))
    numbered = sorted((int(match[1]), p) for match, p in matches if match)
    # What the user put into a checkpoint stays when it is deleted, and is none.
    ours = (MANIFEST, OPTIMIZER, PROGRESS)
    return [p for _, p in numbered if any((p / name).exists() for name in ours)]
