"""What is known of a run while it goes on: the log of its losses, and its evaluations."""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from distillery.data.collators import Batch
from distillery.storage import checkpoints
from distillery.storage.outputs import Outputs
from distillery.text.error_rates import character_errors, word_errors
from distillery.text.labels import LabelRule, plain_text
from distillery.text.normalizers import Normalizer
from distillery.training.loop import Progress, Trainer, Update, log_bad_clips
from distillery.training.losses import LossSums
from distillery.training.rows import BatchLoader, EvalSet
from distillery.training.settings import Evaluation
from distillery.training.step import Learner
from distillery.whisper.windows import Decoding, transcribe_windows

logger = logging.getLogger(__name__)

LOSS_LOG = "train_log.jsonl"


def log_values(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    kind: str,
    values: Mapping[str, float | None],
) -> None:
    """Add a line to a run's log, and hand it to the trackers.

    Args:
        accelerator: its main process writes.
        folder: of the run.
        step: updates done.
        kind: `train`, or `eval` and the name of the dataset.
        values: by name; None where there is no number.
    """
    if accelerator.is_main_process:
        with (folder / LOSS_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    known = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
    accelerator.log(known, step=step)


# --- losses ---------------------------------------------------------------------------------------


class LossWindow:
    """Sums of loss, CE, KL and tokens since the last line of the log."""

    def __init__(self, accelerator: Accelerator, sums: Sequence[float]) -> None:
        """Begin with the sums over all processes that a checkpoint kept: the main process's now."""
        self.accelerator = accelerator
        self.sums = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
        if not accelerator.is_main_process:
            self.sums.zero_()

    def means(self) -> dict[str, float] | None:
        """Return loss, CE, KL for each token of all processes, and tokens; None without any."""
        total, ce, kl, tokens = self.accelerator.reduce(self.sums, "sum").tolist()
        if not tokens:
            return None
        return {"loss": total / tokens, "ce": ce / tokens, "kl": kl / tokens, "tokens": int(tokens)}

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
        self._first_step = progress.step
        self._started = time.monotonic()

    def add(self, update: Update) -> None:
        """Count an update in, and log the means where a line is due."""
        if update.is_finite:
            self.window.sums += update.sums
        is_due = update.is_last or update.step % self.every == 0
        if is_due or update.step == 1:
            means = self.window.means()
            if means is None:  # all were skipped: a loss of 0 would be a lie
                return
            self._log(update, means)
        if is_due:
            self.window.clear()

    def _log(self, update: Update, means: dict[str, float]) -> None:
        values: dict[str, float | None] = {
            "loss": means["loss"],
            "ce": means["ce"],
            "kl": means["kl"],
            "grad_norm": update.grad_norm if update.is_finite else None,  # JSON has no NaN
            "learning_rate": float(self.trainer.schedule.get_last_lr()[0]),
            "tokens": means["tokens"],
        }
        log_values(self.trainer.accelerator, self.folder, update.step, "train", values)
        logger.info(
            "update %d of %d: loss %.4f%s, learning rate %.2e, %s left",
            update.step,
            self.num_updates,
            means["loss"],
            # Without a teacher the loss is the CE.
            f", CE {means['ce']:.4f}, KL {means['kl']:.4f}" if means["kl"] else "",
            values["learning_rate"],
            self._time_left(update.step),
        )

    def _time_left(self, step: int) -> timedelta:
        """Return the time that the updates left take, at the pace since this start."""
        per_update = (time.monotonic() - self._started) / (step - self._first_step)
        return timedelta(seconds=round(per_update * (self.num_updates - step)))


# --- evaluation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalScores:
    """What a model is worth on one set.

    Attributes:
        losses: mean loss, CE and KL of a token.
        num_bad: clips that cannot be used.
        error_rates: `wer` and `cer` in percent; empty where nothing was transcribed.
        num_scored: clips with a reference, which these are over.
    """

    losses: Mapping[str, float]
    num_bad: int
    error_rates: Mapping[str, float]
    num_scored: int

    def values(self) -> dict[str, float]:
        """Return all figures of the log by name."""
        return {**self.losses, "num_bad": self.num_bad, **self.error_rates}

    def __str__(self) -> str:
        parts = [
            f"loss {self.losses['loss']:.4f}, CE {self.losses['ce']:.4f}, "
            f"KL {self.losses['kl']:.4f}"
        ]
        if self.error_rates:
            wer, cer = self.error_rates["wer"], self.error_rates["cer"]
            parts.insert(0, f"WER {wer:.1f} %, CER {cer:.1f} % over {self.num_scored} clips")
        if self.num_bad:
            parts.append(f"{self.num_bad} clips cannot be used")
        return "; ".join(parts)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a learner on some datasets, and keeps the best model.

    Attributes:
        accelerator: of this launch.
        learner: as it is trained.
        sets: what to evaluate on; none evaluates nothing.
        settings: when, and with what.
        loader: makes batches.
        folder: of the run.
        reported: what was logged of clips that cannot be used: no clip is named twice.
    """

    accelerator: Accelerator
    learner: Learner
    sets: Sequence[EvalSet]
    settings: Evaluation
    loader: BatchLoader
    folder: Path
    reported: set[str] = field(default_factory=set)

    def keep_best(self, update: Update, progress: Progress) -> None:
        """Evaluate where that is due, and save the model where it is the best so far."""
        every = self.settings.every
        is_due = update.is_last or (every is not None and update.step % every == 0)
        if not self.sets or not is_due:
            return
        values = [self._metric(name, scores) for name, scores in self.scores(update.step).items()]
        mean = sum(values) / len(values)
        if math.isfinite(mean) and (progress.best is None or mean < progress.best):
            progress.best = mean
            if self.accelerator.is_main_process:
                with checkpoints.sealed_folder(
                    self.folder / checkpoints.BEST, Outputs(self.folder)
                ) as folder:
                    self.learner.student.save(folder)
        self.accelerator.wait_for_everyone()

    def scores(self, step: int) -> dict[str, EvalScores]:
        """Evaluate on every set, and log it; return what came out by the sets' names.

        Args:
            step: updates done.

        Raises:
            ValueError: no clip of a set can be decoded.
        """
        scores_by_name = {}
        for eval_set in self.sets:
            scores = scores_by_name[eval_set.name] = evaluate(self, eval_set)
            kind = f"eval {eval_set.name}"
            log_values(self.accelerator, self.folder, step, kind, scores.values())
            logger.info("update %d, %s: %s", step, eval_set.name, scores)
        return scores_by_name

    def step(self, *inputs: Any) -> LossSums:
        """Run the learner's step in the launch's dtype, though no update wraps it."""
        with self.accelerator.autocast():
            losses: LossSums = self.learner.step(*inputs)
        return losses

    def _metric(self, name: str, scores: EvalScores) -> float:
        metric = self.settings.metric
        if metric not in scores.values():
            raise ValueError(f"{name} has no references to score: use --metric_for_best_model loss")
        return scores.values()[metric]


@torch.no_grad()
def evaluate(evaluator: Evaluator, eval_set: EvalSet) -> EvalScores:
    """Evaluate on one set; all processes share its rows, and return the same.

    Raises:
        ValueError: none of its clips can be decoded.
    """
    accelerator, learner = evaluator.accelerator, evaluator.learner
    learner.step.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    bad: list[str] = []
    pairs: list[tuple[str, str]] = []
    for batch in _batches(evaluator, eval_set):
        bad += [f"{row_id} {reason}" for row_id, reason in batch.bad]
        if batch.input_features is None:
            continue
        sums += learner.losses(batch, evaluator.step).to_tensor()
        if evaluator.settings.transcribe:
            transcripts = _transcribe(evaluator, batch, eval_set.rows.rule)
            pairs += zip(batch.references, transcripts, strict=True)
    learner.step.train()
    num_bad = _report_bad_clips(evaluator, bad)
    total, ce, kl, tokens = accelerator.reduce(sums, "sum").tolist()
    if not tokens:
        raise ValueError(f"{eval_set.name}: none of its clips can be decoded")
    rule = eval_set.rows.rule
    error_rates, num_scored = error_rates_of(
        gather_object(pairs), learner.student.normalizer(rule.language, rule.task)
    )
    losses = {"loss": total / tokens, "ce": ce / tokens, "kl": kl / tokens}
    return EvalScores(losses, num_bad, error_rates, num_scored)


def _batches(evaluator: Evaluator, eval_set: EvalSet) -> Iterable[Batch]:
    accelerator = evaluator.accelerator
    batch_size = evaluator.settings.batch_size
    keys = eval_set.keys(batch_size, accelerator.process_index, accelerator.num_processes)
    return evaluator.loader.batches(eval_set.rows, keys)


def _report_bad_clips(evaluator: Evaluator, bad: Sequence[str]) -> int:
    """Log the clips of all processes that were not logged before; return how many are bad."""
    reports = gather_object(list(bad))
    if evaluator.accelerator.is_main_process:
        log_bad_clips([report for report in reports if report not in evaluator.reported])
    evaluator.reported.update(reports)
    return len(reports)


def _transcribe(evaluator: Evaluator, batch: Batch, rule: LabelRule) -> list[str]:
    settings, student = evaluator.settings, evaluator.learner.student
    decoding = Decoding(
        rule.language,
        rule.task,
        settings.timestamps,
        settings.num_beams,
        settings.max_length,
    ).fitted_to(student)
    assert batch.input_features is not None
    features = batch.input_features.to(student.model.device)
    with evaluator.accelerator.autocast():
        transcripts = transcribe_windows(student, features, decoding)
    return [plain_text(each.ids, student.tokens, student.tokenizer) for each in transcripts]


def error_rates_of(
    pairs: Sequence[tuple[str, str]], normalizer: Normalizer
) -> tuple[dict[str, float], int]:
    """Return WER and CER in percent after normalisation, and over how many clips they are.

    A clip without a reference does not count; where there is no other, there are no rates.

    Args:
        pairs: (reference, transcript) of each clip.
        normalizer: applied to both.
    """
    normalized = [(normalizer(reference), normalizer(text)) for reference, text in pairs]
    scored = [(reference, text) for reference, text in normalized if reference]
    if not scored:
        return {}, 0
    references, transcripts = zip(*scored, strict=True)
    wer = word_errors(references, transcripts).error_rate
    cer = character_errors(references, transcripts).error_rate
    return {"wer": wer, "cer": cer}, len(scored)
