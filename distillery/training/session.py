"""One start of a training run: what it goes on from, and how it ends."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from distillery.storage.runs import Run
from distillery.storage.stops import stop_request
from distillery.training import loop, resume
from distillery.training.loop import Progress, Trainer, Update
from distillery.training.monitor import LossMonitor
from distillery.training.resume import CheckpointSaver
from distillery.training.rows import TrainingData


@dataclass(frozen=True)
class Session:
    """A training run between a start and its end, or the SIGTERM that stops it before.

    Attributes:
        trainer: as it is after `progress.step` updates.
        data: what is trained on.
        progress: of the run.
        losses: logs them.
        saver: saves checkpoints.
    """

    trainer: Trainer
    data: TrainingData
    progress: Progress
    losses: LossMonitor
    saver: CheckpointSaver

    @contextmanager
    def updates(self) -> Iterator[Generator[Update, None, None]]:
        """Make the updates that are left as they are asked for, and save where they end."""
        with (
            stop_request() as stop,
            closing(loop.updates(self.trainer, self.data, self.progress, stop)) as updates,
        ):
            yield updates
            self.saver.save(self.progress)

    def conclude(self, run: Run, max_bad_fraction: float) -> bool:
        """Save the model and complete the run's record; return False where updates are left.

        Raises:
            ValueError: more than `max_bad_fraction` of the clips cannot be used.
        """
        if self.progress.step < self.data.num_updates:
            return False
        loop.check_bad_clips(self.progress, self.data.num_clips(), max_bad_fraction)
        if self.trainer.accelerator.is_main_process:
            student = self.trainer.learner.student
            resume.finish(run, student, self.progress, self.data.ledger)
        return True
