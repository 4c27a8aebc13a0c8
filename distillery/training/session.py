"""One start of a training run: what it goes on from, and how it ends."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from distillery.storage.runs import Run
from distillery.storage.stops import StopRequest
from distillery.training import loop, resume
from distillery.training.loop import Progress, Trainer, Update
from distillery.training.monitor import LossMonitor
from distillery.training.resume import CheckpointSaver
from distillery.training.rows import TrainingData
from distillery.training.sharding import whole_student
from distillery.training.validation import Evaluator


@dataclass(frozen=True)
class Session:
    """A training run between a start and its end, or the SIGTERM that stops it before.

    Attributes:
        trainer: as it is after `progress.step` updates.
        data: what is trained on.
        progress: of the run.
        losses: logs them.
        saver: saves checkpoints.
        evaluator: evaluates, and keeps the best model.
        max_bad_fraction: share of the clips that may turn out to be unusable; see
            `ledger.most_bad`.
    """

    trainer: Trainer
    data: TrainingData
    progress: Progress
    losses: LossMonitor
    saver: CheckpointSaver
    evaluator: Evaluator
    max_bad_fraction: float | None

    @contextmanager
    def updates(self, stop: StopRequest) -> Iterator[Generator[Update, None, None]]:
        """Make the updates that are left as they are asked for, and save where they end."""
        updates = loop.updates(self.trainer, self.data, self.progress, stop, self.max_bad_fraction)
        with closing(updates):
            yield updates
            self.saver.save(self.progress)

    def evaluate(self, stop: StopRequest) -> None:
        """Evaluate after this update if that is due; what a stop cuts off, the next start makes."""
        self.evaluator.keep_best(self.progress, self.data.num_updates, stop)

    def conclude(self, run: Run) -> bool:
        """Save the model and complete the run's record; return False where something is left.

        Raises:
            ValueError: too many clips cannot be used.
        """
        problem = loop.bad_clips_problem(self.progress, self.data, self.max_bad_fraction)
        if problem is not None:
            raise ValueError(problem)
        num_updates = self.data.num_updates
        is_short = self.progress.step < num_updates and not self.progress.is_over
        if is_short or self.evaluator.is_due(self.progress, num_updates):
            return False
        last = whole_student(self.trainer.learner.student)
        if self.trainer.accelerator.is_main_process:
            student = self.evaluator.result(self.progress, last)
            resume.finish(run, student, self.progress, self.data.plan, self.data.account)
        # The others wait here, where a request to stop does not end them.
        self.trainer.accelerator.wait_for_everyone()
        return True
