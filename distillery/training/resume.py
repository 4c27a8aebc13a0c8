"""Checkpoints of a training run, how a run goes on from one, and what it leaves at its end."""

import json
import logging
import pickle
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.storage import checkpoints
from distillery.storage.files import (
    read_json,
    replacing,
    temporary_path,
    write_json,
)
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.storage.runs import Run
from distillery.training import card, loss_curve
from distillery.training.disk import enough_disk
from distillery.training.loop import Progress, Trainer
from distillery.training.loss_curve import LOSS_LOG, TRAIN
from distillery.training.monitor import LossWindow
from distillery.training.order import BatchPlan
from distillery.training.rows import TrainingData
from distillery.training.sharding import whole_state, whole_student
from distillery.training.streams import StreamedRows
from distillery.whisper import checkpoint

logger = logging.getLogger(__name__)

# What a training run writes in its folder, beside its record.
OWNED = (
    checkpoints.CHECKPOINTS,
    checkpoints.BEST,
    LOSS_LOG,
    loss_curve.FIGURE,
    *checkpoint.OWN_FILES,
)

DRAW_EVERY_S = 60  # at least, between two figures of the losses

# What a resumed run must keep, however its processes share it; named as a message shows it.
GLOBAL_BATCH = "per_device_train_batch_size * gradient_accumulation_steps * num_processes"


def input_fingerprints(
    specs: Sequence[DatasetSpec], models: Sequence[str]
) -> dict[str, str | None]:
    """Return the fingerprints of what a run starts from: local data and models must stay as is."""
    return {
        **{str(spec): sources.fingerprint(spec) for spec in specs},
        **{name: checkpoint.fingerprint(name) for name in models},
    }


# --- saving ---------------------------------------------------------------------------------------


class CheckpointSaver:
    """Saves checkpoints: one every so many updates, and one where the updates end."""

    def __init__(
        self,
        trainer: Trainer,
        progress: Progress,
        window: LossWindow,
        folder: Path,
        every: int,
        keep: int | None,
        data: TrainingData,
    ) -> None:
        """Begin with what is saved already.

        Args:
            trainer: what is saved.
            progress: of the checkpoint that the run goes on from, or of a new run, which has
                nothing to lose.
            window: of the losses that are not logged yet.
            folder: of the run.
            every: updates between two checkpoints.
            keep: how many stay; None keeps all.
            data: what is trained on.
        """
        self.trainer = trainer
        self.data = data
        self.window = window
        self.folder = folder
        self.every = every
        self.keep = keep
        self._saved_step = progress.step
        self._drawn_s = time.monotonic()

    def save_if_due(self, progress: Progress) -> None:
        """Save a checkpoint after every so many updates."""
        if progress.step % self.every == 0:
            self.save(progress)

    def save(self, progress: Progress) -> None:
        """Save a checkpoint, unless there is one of this update."""
        if progress.step != self._saved_step:
            progress.window = self.window.to_list()
            progress.places = gathered_places(self.data, progress.step)
            save_checkpoint(self.trainer, progress, self.folder, self.keep)
            self._saved_step = progress.step
            self._draw_losses()

    def _draw_losses(self) -> None:
        """Draw the losses so far, now and then."""
        now_s = time.monotonic()
        if now_s - self._drawn_s >= DRAW_EVERY_S and self.trainer.accelerator.is_main_process:
            loss_curve.draw(self.folder)
            self._drawn_s = now_s


def gathered_places(data: TrainingData, step: int) -> list[dict[str, Any]]:
    """Return where all lanes of a stream go on after an update, and let it know.

    All processes must take part.
    """
    if not isinstance(data.rows, StreamedRows):
        return []
    places = {place["lane"]: place for place in gather_object(data.rows.places(data.plan, step))}
    in_order = [places[lane] for lane in sorted(places)]
    data.rows.go_on(in_order)
    return in_order


def save_checkpoint(trainer: Trainer, progress: Progress, folder: Path, keep: int | None) -> None:
    """Save all that a resumed run needs, on the main process, and delete old checkpoints.

    Args:
        trainer: its student, its optimiser and its schedule.
        progress: of the run.
        folder: of the run.
        keep: how many checkpoints stay; None keeps all.
    """
    scaler = trainer.accelerator.scaler
    student, moments = whole_student(trainer.learner.student), whole_state(trainer.optimizer)
    if trainer.accelerator.is_main_process:
        path = checkpoints.checkpoint_path(folder, progress.step)
        with enough_disk(folder), checkpoints.sealed_folder(path, Outputs(folder)) as temporary:
            student.save_for_resuming(temporary)
            state = {
                "optimizer": moments,
                "schedule": trainer.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            torch.save(state, temporary / checkpoints.OPTIMIZER)
            write_json(temporary / checkpoints.PROGRESS, asdict(progress))
        checkpoints.rotate(folder, progress.step, keep)
    trainer.accelerator.wait_for_everyone()


# --- going on -------------------------------------------------------------------------------------


def newest_checkpoint(
    accelerator: Accelerator, folder: Path, begun_with: Path | None = None
) -> Path | None:
    """Return the checkpoint that a run goes on from; None for a new run.

    The main process looks for it, once: its weights and its progress must be of one checkpoint, and
    all processes must have the same.

    Args:
        accelerator: of this launch.
        folder: of the run.
        begun_with: checkpoint of another run, which one without any of its own begins with.

    Raises:
        ValueError: none is whole, or this process does not see it.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = checkpoints.newest_checkpoint(folder)
            if begun_with is not None:
                found[0] = found[0] or _whole(begun_with)
                _refuse_older(begun_with, found[0])
        except ValueError as error:  # it is everybody's
            found[1] = str(error)
    broadcast_object_list(found)
    newest: Path | None = found[0]
    if found[1] is not None:
        raise ValueError(found[1])
    if newest is not None and not newest.is_dir():
        raise ValueError(f"{newest} is not seen by all processes: --output_dir must be")
    return newest


def _whole(path: Path) -> Path:
    """Return a checkpoint that the user names; raise ValueError if it is damaged, or none."""
    damage = checkpoints.find_damage(path)
    if damage is None and not (path / checkpoints.PROGRESS).is_file():
        damage = "it is no checkpoint of a training run"
    if damage is not None:
        raise ValueError(f"--resume_from_checkpoint {path}: {damage}")
    return path


def _refuse_older(named: Path, newest: Path) -> None:
    """Raise ValueError if a run is to go back to one of its own checkpoints."""
    named, newest = named.resolve(), newest.resolve()
    if named.parent == newest.parent and named != newest:
        raise ValueError(
            f"--resume_from_checkpoint {named}: the run has gone on to {newest.name}: name another "
            "--output_dir to train on from there"
        )


def resume(trainer: Trainer, folder: Path, newest: Path | None, num_updates: int) -> Progress:
    """Load optimiser, schedule and progress of the checkpoint that a run goes on from.

    The student's weights are loaded already. What was logged behind the checkpoint is forgotten.

    Args:
        trainer: is changed.
        folder: of the run.
        newest: as `newest_checkpoint` found it.
        num_updates: of the whole run.

    Raises:
        ValueError: a checkpoint of another run does not fit this one.
    """
    progress = Progress()
    if newest is not None:
        is_own = newest.resolve().parent == folder.resolve()
        _load_state(trainer, newest / checkpoints.OPTIMIZER, is_own)
        progress = read_progress(newest / checkpoints.PROGRESS)
        if not is_own:
            _refuse_finished(newest, progress.step, num_updates)
            # What was the best there is not here.
            progress.best, progress.stale, progress.is_over = None, 0, False
        logger.info("going on from %s", newest)
    if trainer.accelerator.is_main_process:
        cut_log(folder / LOSS_LOG, progress)
    return progress


def _refuse_finished(newest: Path, step: int, num_updates: int) -> None:
    if step >= num_updates:
        raise ValueError(
            f"--resume_from_checkpoint: {newest} has made {step} updates, and this run makes "
            f"{num_updates} in all, those among them: raise --max_steps or --num_train_epochs, or "
            "take its weights alone, with --model_name_or_path"
        )


def _load_state(trainer: Trainer, path: Path, is_own: bool) -> None:
    """Load optimiser, schedule and scaler; of another run's, rates and decays stay as flags say.

    Raises:
        ValueError: other weights were trained.
    """
    state, optimizer = read_state(path), trainer.optimizer
    saved_groups, groups = state["optimizer"]["param_groups"], optimizer.param_groups
    if [len(each["params"]) for each in saved_groups] != [len(each["params"]) for each in groups]:
        raise ValueError(
            f"--resume_from_checkpoint: {path.parent} was trained with other weights frozen: give "
            "the --freeze_… flags that it was trained with, or take its weights alone, with "
            "--model_name_or_path"
        )
    for saved, group in zip(saved_groups, groups, strict=True):
        # `fused` is as this launch's device wants it.
        kept = {"fused"} if is_own else group.keys() - {"params"}
        saved.update({name: group[name] for name in kept & group.keys()})
    optimizer.load_state_dict(state["optimizer"])
    schedule, place = trainer.schedule, state["schedule"]
    if is_own:
        schedule.load_state_dict(place)
    else:
        last = place["last_epoch"] - 1
        schedule.load_state_dict({**place, "base_lrs": schedule.base_lrs, "last_epoch": last})
        schedule.step()  # the rate of this place
    if trainer.accelerator.scaler and state["scaler"]:  # another run's may have none
        trainer.accelerator.scaler.load_state_dict(state["scaler"])


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of optimiser, schedule and scaler of a checkpoint.

    Raises:
        ValueError: it holds more than numbers, such as code to be run; none of it is.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds what no training run writes, and is not read: delete {path.parent} to "
            f"go on from the checkpoint before it ({str(error).partition(chr(10))[0]})"
        ) from error
    return state


def read_progress(path: Path) -> Progress:
    """Read the progress of a checkpoint.

    Raises:
        ValueError: another version of this software wrote it.
    """
    values = read_json(path)
    names = {each.name for each in fields(Progress)}
    if set(values) != names:
        raise ValueError(
            f"{path} was written by another version: it has {', '.join(sorted(values))} where "
            f"{', '.join(sorted(names))} are needed; go on with that version, or start over with "
            "--overwrite_output_dir"
        )
    return Progress(**values)


def cut_log(path: Path, progress: Progress) -> None:
    """Forget what was logged after the checkpoint that the run goes on from.

    Args:
        path: of the log; a run that was killed early has none.
        progress: at the checkpoint; an evaluation that it does not know of is made again.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _is_known(line, progress)]
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _is_known(line: str, progress: Progress) -> bool:
    values = json.loads(line)
    last = progress.step if values["kind"] == TRAIN else progress.evaluated
    return bool(values["step"] <= last)


# --- the end --------------------------------------------------------------------------------------


def finish(
    run: Run,
    student: checkpoint.Whisper,
    progress: Progress,
    plan: BatchPlan,
    ledger: Ledger | None,
) -> None:
    """Save the trained model with its card, and complete the run's record.

    Args:
        run: as its flags describe it.
        student: trained.
        progress: at the end.
        plan: by which the last start cut its batches.
        ledger: of the rows; of a stream, of those that were read in the first pass.
    """
    with enough_disk(run.folder):
        staged = temporary_path(run.folder / "model")
        student.save(staged)
        loss_curve.draw(run.folder)
        card.write(staged, run, progress, ledger)
        run.outputs.take_in(staged)
    results = {
        "updates": progress.step,
        "best": progress.best,
        "num_bad": len(progress.bad_clips),
        "num_dropped": len(progress.dropped_clips),
        "num_without_speech": progress.num_without_speech,
        "batch_plan": asdict(plan),
    }
    run.finish(**results, ledger=ledger.to_dict() if ledger else None)
