"""The log of a run while it goes on: its losses and figures, in a file and at the trackers."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator

from distillery.training.disk import enough_disk
from distillery.training.loop import HEARD, Progress, Trainer, Update
from distillery.training.loss_curve import LOSS_LOG, TRAIN
from distillery.training.losses import SUMS, means_of
from distillery.whisper.memory import peak_memory

logger = logging.getLogger(__name__)


def log_values(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    kind: str,
    values: Mapping[str, float | None],
    tracked: Mapping[str, float | str] | None = None,
) -> None:
    """Add a line to a run's log, and hand it to the trackers.

    A tracker that fails is warned of, and the run goes on: its log has everything.

    Args:
        accelerator: its main process writes.
        folder: of the run.
        step: updates done.
        kind: `train`, or `eval` and the name of the dataset.
        values: by name; None where there is no number.
        tracked: for the trackers alone: what may differ between a run and its repetition.

    Raises:
        ValueError: the disk is full.
    """
    if accelerator.is_main_process:
        with enough_disk(folder), (folder / LOSS_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    figures = {**values, **(tracked or {})}
    known = {f"{kind}/{name}": value for name, value in figures.items() if value is not None}
    try:
        accelerator.log(known, step=step)
    except Exception as error:  # noqa: BLE001  # each tracker has errors of its own
        logger.warning("a tracker did not take update %d: %s (%s has it)", step, error, LOSS_LOG)


def finish_trackers(accelerator: Accelerator) -> None:
    """Let trackers write what they still hold; one that fails does not fail the run."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:  # noqa: BLE001  # as above
            logger.warning("a tracker did not finish: %s (%s has all values)", error, LOSS_LOG)
    accelerator.trackers = []


# --- losses ---------------------------------------------------------------------------------------


def _named(sums: Sequence[float]) -> dict[str, float]:
    return dict(zip((*SUMS, *HEARD), sums, strict=True))


class LossWindow:
    """`losses.SUMS` and `loop.HEARD` since the last line of the log."""

    def __init__(self, accelerator: Accelerator, sums: Sequence[float]) -> None:
        """Begin with the sums over all processes that a checkpoint kept: the main process's now."""
        self.accelerator = accelerator
        self.sums = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
        if not accelerator.is_main_process:
            self.sums.zero_()

    def totals(self) -> dict[str, float]:
        """Return the sums over all processes, by name."""
        sums = self.accelerator.reduce(self.sums, "sum").tolist()
        return _named(sums)

    def clear(self) -> None:
        """Begin anew."""
        self.sums = torch.zeros_like(self.sums)

    def to_list(self) -> list[float]:
        """Return the sums over all processes, which the main process keeps, as after a resume."""
        self.sums = self.accelerator.reduce(self.sums, "sum")
        sums: list[float] = self.sums.tolist()
        if not self.accelerator.is_main_process:
            self.sums.zero_()
        return sums


class LossMonitor:
    """Logs the mean losses: at the first update, then at every so many, and at the last."""

    def __init__(
        self, trainer: Trainer, progress: Progress, folder: Path, every: int, num_updates: int
    ) -> None:
        """Begin, or go on with the losses of the last checkpoint.

        Args:
            trainer: whose losses they are.
            progress: of the checkpoint.
            folder: of the run.
            every: updates between two lines.
            num_updates: of the whole run.
        """
        self.trainer = trainer
        self.folder = folder
        self.every = every
        self.num_updates = num_updates
        self.window = LossWindow(trainer.accelerator, progress.window)
        self._progress = progress
        self._first_step = progress.step
        self._started = self._logged = time.monotonic()
        self._before = _named(progress.window)  # of this window, last time

    def add(self, update: Update) -> None:
        """Count an update in, and log the means where a line is due."""
        if update.is_finite:
            self.window.sums += update.sums
        is_due = update.is_last or update.step % self.every == 0
        if is_due or update.step == 1:
            totals = self.window.totals()
            means = means_of([totals[name] for name in SUMS])
            if means is None:  # all were skipped: a loss of 0 would be a lie
                return
            self._log(update, means, totals)
            self._before = dict.fromkeys(totals, 0.0) if is_due else totals
        if is_due:
            self.window.clear()

    def _log(self, update: Update, means: Mapping[str, float], totals: Mapping[str, float]) -> None:
        values = {**means, **self._values(update, totals)}
        tracked = self._tracked(totals)
        log_values(self.trainer.accelerator, self.folder, update.step, TRAIN, values, tracked)
        logger.info(
            "update %d of %d: loss %.4f%s, learning rate %.2e, %.1f s of speech a second, %s left",
            update.step,
            self.num_updates,
            means["loss"],
            _parts_of(means),
            values["learning_rate"],
            tracked["audio_s_per_s"],
            self._time_left(update.step),
        )

    def _values(self, update: Update, totals: Mapping[str, float]) -> dict[str, float | None]:
        """Return what a line says beside losses: all that is the same in a repeated run."""
        window_s = self.trainer.learner.student.log_mel.window_s
        values: dict[str, float | None] = {
            "grad_norm": update.grad_norm if update.is_finite else None,  # JSON has no NaN
            "learning_rate": float(self.trainer.schedule.get_last_lr()[0]),
            "tokens": int(totals["tokens"]),
            "audio_s": round(totals["audio_s"], 2),
            "padding_audio": round(1 - totals["audio_s"] / (totals["windows"] * window_s), 4),
        }
        if self._progress.num_without_speech:
            values["num_without_speech"] = self._progress.num_without_speech
        return values

    def _tracked(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return how fast the updates since the last line were, all that is between them included.

        How far labels are padded depends on which rows a process has. Memory is the most that this
        process had in use.
        """
        now = time.monotonic()
        wall_s, self._logged = max(now - self._logged, 1e-9), now
        peak = peak_memory(self.trainer.accelerator.device)
        return {
            "samples_per_s": (totals["windows"] - self._before["windows"]) / wall_s,
            "audio_s_per_s": (totals["audio_s"] - self._before["audio_s"]) / wall_s,
            "padding_labels": 1 - totals["inputs"] / totals["positions"],
            **({} if peak is None else {"memory_gib": peak / 2**30}),
        }

    def _time_left(self, step: int) -> timedelta:
        """Return the time that the updates left take, at the pace since this start."""
        per_update = (time.monotonic() - self._started) / (step - self._first_step)
        return timedelta(seconds=round(per_update * (self.num_updates - step)))


def _parts_of(means: Mapping[str, float]) -> str:
    """Return what a loss is made of, for a line; "" without a teacher, where it is the CE."""
    if not means["kl"]:
        return ""
    return "".join(f", {name.upper()} {means[name]:.4f}" for name in means if name != "loss")
