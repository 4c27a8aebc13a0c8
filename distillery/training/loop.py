"""The loop that fine-tuning and distillation share: one update after another, until the last.

What a stage does between two updates (log, evaluate, save) is written out in its script; what
stands around them is a `Session`.
"""

import gc
import logging
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from distillery.data.collators import Batch
from distillery.storage.ledger import allowance, most_bad
from distillery.storage.progress import ProgressBar
from distillery.storage.stops import StopRequest
from distillery.training import sharding
from distillery.training.losses import SUMS
from distillery.training.optim import make_optimizer, make_schedule
from distillery.training.rows import TrainingData
from distillery.training.seeding import seed_everything
from distillery.training.settings import Optimization
from distillery.training.step import Learner
from distillery.whisper.memory import enough_memory

logger = logging.getLogger(__name__)

MAX_NON_FINITE = 3  # updates in a row
# With float16 an overflow is no fault: the gradients' scale begins at 65,536 and is halved until
# none is left. A run that halves it much further than to 1 learns nothing any more.
MAX_OVERFLOWS = 20  # updates in a row
MIN_SCALE = 1e-4
# A run past its share of bad clips by far need not go on until it is certain to fail.
FAR_PAST, MIN_BAD_CLIPS = 2, 100
SMALLER_BATCH = (
    "lower --per_device_train_batch_size, raise --gradient_accumulation_steps as much (on a GPU "
    "--auto_batch_size does so)"
)
# What is added up beside the losses: seconds of speech, windows, decoder inputs, and the positions
# that these are padded to.
HEARD = ("audio_s", "windows", "inputs", "positions")
STOPPED = 143  # exit status of a run that SIGTERM stopped, as the shell has it: 128 + 15


@dataclass
class Progress:
    """All that a resumed run must know beside weights and optimiser.

    Attributes:
        step: updates done.
        window: `losses.SUMS` and `HEARD` since the last line of the log.
        best: lowest evaluation metric so far.
        bad_clips: what was reported of clips that cannot be used, each clip once, whichever process
            met it.
        evaluated: the last update that was evaluated, on every set.
        stale: evaluations in a row that found no better model.
        is_over: whether that were so many that no further update is made.
        dropped_clips: as `bad_clips`, of those that are shorter or longer than what is wanted.
        num_without_speech: windows so far whose sound was replaced by one without speech.
        num_clips: that were met so far, each as often as it was.
        places: where all lanes of a stream go on: see `streams`.
    """

    step: int = 0
    window: list[float] = field(default_factory=lambda: [0.0] * len((*SUMS, *HEARD)))
    best: float | None = None
    bad_clips: list[str] = field(default_factory=list)
    evaluated: int = 0
    stale: int = 0
    is_over: bool = False
    dropped_clips: list[str] = field(default_factory=list)
    num_without_speech: int = 0
    num_clips: int = 0
    places: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Trainer:
    """A learner with what updates it.

    Attributes:
        accelerator: of this launch.
        learner: float32 weights, on the accelerator's device.
        step: the learner's step, which `updates` wraps for several processes.
        optimizer, schedule: of its trainable weights.
        max_grad_norm: gradients are scaled down to this norm; by 0 they are left as they are.
    """

    accelerator: Accelerator
    learner: Learner
    step: nn.Module
    optimizer: Any
    schedule: LRScheduler
    max_grad_norm: float


def make_trainer(
    accelerator: Accelerator, learner: Learner, settings: Optimization, num_updates: int
) -> Trainer:
    """Surround a learner with a new optimiser and its schedule."""
    optimizer = make_optimizer(learner.step, settings)
    schedule = make_schedule(optimizer, settings, num_updates)
    return Trainer(accelerator, learner, learner.step, optimizer, schedule, settings.max_grad_norm)


@dataclass(frozen=True)
class Update:
    """What one update was like.

    Attributes:
        step: updates done with it.
        is_last: whether it is the run's last.
        sums: float64 (10,): `losses.SUMS` and `HEARD` of this process.
        grad_norm: before it was scaled down; where it is not finite, the update was skipped.
    """

    step: int
    is_last: bool
    sums: Tensor
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the gradient was finite, and so the weights were updated."""
        return math.isfinite(self.grad_norm)


def updates(
    trainer: Trainer,
    data: TrainingData,
    progress: Progress,
    stop: StopRequest,
    max_bad_fraction: float | None = 1.0,
) -> Generator[Update, None, None]:
    """Make the updates that are left, one when the one before has been dealt with.

    To close it ends the processes that read rows.

    Args:
        trainer: as it is after `progress.step` updates.
        data: what is trained on.
        progress: is kept up to date.
        stop: a request of any process is the end for all of them, before the next update.
        max_bad_fraction: where more clips cannot be used, the updates end: see
            `bad_clips_problem`.

    Raises:
        ValueError: several updates in a row had gradients that are not finite.
    """
    accelerator = trainer.accelerator
    # The wrapper for several processes lives here alone: `leave_together` needs it gone.
    step, optimizer = sharding.prepare(
        accelerator, trainer.step, trainer.optimizer, trainer.max_grad_norm
    )
    step.train()
    trainer = replace(trainer, step=step, optimizer=optimizer)
    _log_beginning(trainer.learner, data, progress.step)
    non_finite = 0
    has_problem = bad_clips_problem(progress, data, max_bad_fraction) is not None
    batches = data.micro_batches(progress.step, accelerator.process_index)
    with closing(batches), _bar(accelerator, progress.step, data.num_updates) as bar:
        while progress.step < data.num_updates and not has_problem and not progress.is_over:
            micro_batches = list(islice(batches, data.plan.accumulation))
            counts = _reduced_counts(accelerator, micro_batches, stop)
            if counts.stops:
                logger.info("told to stop at update %d: start again to go on", progress.step)
                return
            seed_everything(data.rows.rule.seed, progress.step, accelerator.process_index)
            sums, norm = _update(trainer, micro_batches, counts.tokens)
            progress.step += 1
            progress.num_without_speech += counts.without_speech
            progress.num_clips += counts.clips
            update = Update(progress.step, progress.step == data.num_updates, sums, norm)
            non_finite = _count_non_finite(accelerator, update, micro_batches, non_finite)
            if counts.left_out:
                note_clips_left_out(accelerator, micro_batches, progress)
                has_problem = bad_clips_problem(progress, data, max_bad_fraction) is not None
            bar.update()
            yield update


def _log_beginning(learner: Learner, data: TrainingData, step: int) -> None:
    trained = sum(p.numel() for p in learner.step.parameters() if p.requires_grad)
    logger.info(
        "%s; %.2f M of %.2f M parameters are trained; starting at update %d",
        data,
        trained / 1e6,
        learner.student.num_parameters / 1e6,
        step,
    )
    for note in learner.notes():
        logger.info("%s", note)


def _bar(accelerator: Accelerator, step: int, num_updates: int) -> ProgressBar:
    return ProgressBar(
        total=num_updates,
        initial=step,
        desc="training",
        unit=" updates",
        disable=not accelerator.is_local_main_process,
    )


class _Counts(NamedTuple):
    """Sums over all processes, of one update; `stops` are requests to stop before it."""

    tokens: int
    left_out: int
    without_speech: int
    clips: int
    stops: int


def _reduced_counts(
    accelerator: Accelerator, micro_batches: Sequence[Batch], stop: StopRequest
) -> _Counts:
    counts = _Counts(
        tokens=sum(batch.num_tokens for batch in micro_batches),
        left_out=sum(len(batch.bad) + len(batch.dropped) for batch in micro_batches),
        without_speech=sum(batch.num_without_speech for batch in micro_batches),
        clips=sum(batch.num_clips for batch in micro_batches),
        stops=int(stop.is_set),
    )
    # One process alone need not wait for its GPU to hear of its own counts.
    device = accelerator.device if accelerator.num_processes > 1 else "cpu"
    sums = accelerator.reduce(torch.tensor(counts, device=device), "sum")
    return _Counts(*map(int, sums.tolist()))


def _update(
    trainer: Trainer, micro_batches: Sequence[Batch], num_tokens: int
) -> tuple[Tensor, float]:
    """Make one update; return this process's sums and the gradient's norm.

    Losses are summed over the tokens of the whole global batch and divided once: a mean of the
    micro-batches' means would weigh tokens of short batches more. Processes average their
    gradients, hence the factor. A non-finite gradient changes nothing.
    """
    accelerator = trainer.accelerator
    scale = accelerator.num_processes / max(num_tokens, 1)
    sums = torch.zeros(len((*SUMS, *HEARD)), dtype=torch.float64, device=accelerator.device)
    for index, batch in enumerate(micro_batches):
        sync = sharding.micro_batch(accelerator, trainer.step, index == len(micro_batches) - 1)
        with sync, enough_memory(f"an update with {len(batch.ids)} rows at once", SMALLER_BATCH):
            losses = trainer.learner.losses(batch, trainer.step)
            if losses.total.requires_grad:  # not where layerdrop left out all that is trained
                accelerator.backward(losses.total * scale)
        sums += torch.cat([losses.to_tensor(), _heard(batch).to(sums.device, non_blocking=True)])
    max_norm = trainer.max_grad_norm or math.inf
    norms = accelerator.clip_grad_norm_(trainer.step.parameters(), max_norm)
    norm = float(sharding.whole(norms))
    # With float16 the gradient scaler skips the update itself, and lowers its scale.
    if math.isfinite(norm) or accelerator.scaler is not None:
        trainer.optimizer.step()
    trainer.schedule.step()
    trainer.optimizer.zero_grad()
    return sums, norm


def _heard(batch: Batch) -> Tensor:
    """Return `HEARD` of a batch, float64 (4,)."""
    num_positions = 0 if batch.decoder_input_ids is None else batch.decoder_input_ids.numel()
    heard = (batch.speech_s, len(batch.ids), batch.num_inputs, num_positions)
    return torch.tensor(heard, dtype=torch.float64)


def _count_non_finite(
    accelerator: Accelerator, update: Update, micro_batches: Sequence[Batch], in_a_row: int
) -> int:
    """Return how many updates in a row were skipped; log the rows of this one if it was."""
    if update.is_finite:
        return 0
    in_a_row += 1
    scale = None if accelerator.scaler is None else float(accelerator.scaler.get_scale())
    ids = [row_id for batch in micro_batches for row_id in batch.ids]
    level = logging.ERROR if scale is None else logging.INFO
    message = "update %d is skipped: its gradient is not finite; rows %s"
    logger.log(level, message, update.step, ids)
    is_over = in_a_row == MAX_NON_FINITE if scale is None else in_a_row == MAX_OVERFLOWS
    if is_over or (scale is not None and scale < MIN_SCALE):
        raise ValueError(
            f"{in_a_row} updates in a row had gradients that are not finite"
            + ("" if scale is None else f", and the scale of float16 is down to {scale:g}")
            + "; the weights are as before them: look at the rows named above, or lower "
            + ("--learning_rate" if scale is None else "--learning_rate, or use --dtype bfloat16")
        )
    return in_a_row


# --- clips that are left out ----------------------------------------------------------------------


def note_clips_left_out(
    accelerator: Accelerator, micro_batches: Sequence[Batch], progress: Progress
) -> None:
    """Log the clips of all processes that were left out, each once in a run, and keep them.

    All processes must take part.
    """
    new_bad = _news([each for batch in micro_batches for each in batch.bad], progress.bad_clips)
    progress.bad_clips += new_bad
    dropped = _news([x for batch in micro_batches for x in batch.dropped], progress.dropped_clips)
    progress.dropped_clips += dropped
    if accelerator.is_main_process:
        log_bad_clips(new_bad)
        for report in dropped:
            logger.info("clip %s: left out", report)


def _news(clips: Sequence[tuple[str, str]], known: Sequence[str]) -> list[str]:
    """Return what all processes say of clips, by id and reason, that is not known.

    Ids alone would not do: joined datasets may have the same ones.
    """
    reports = [f"{row_id} {reason}" for row_id, reason in clips]
    return sorted(set(gather_object(reports)).difference(known))


def log_bad_clips(reports: Sequence[str]) -> None:
    """Log why clips cannot be used."""
    for report in reports:
        # Other processes than the main one are heard only from this level on.
        logger.error("clip %s", report)


def bad_clips_problem(
    progress: Progress, data: TrainingData, max_bad_fraction: float | None
) -> str | None:
    """Return what is wrong if there are too many bad clips; None if there are not.

    There are too many if they are more than is allowed of all clips that will be trained on, or
    more than `FAR_PAST` times what is allowed of those met so far, and at least `MIN_BAD_CLIPS`.

    Args:
        progress: of the run.
        data: what it trains on.
        max_bad_fraction: the share that is allowed; see `ledger.most_bad`.
    """
    num_bad = len(progress.bad_clips)
    if not num_bad:
        return None
    clips_per_row = max(1.0, progress.num_clips / (progress.step * data.plan.global_size))
    num_clips = data.num_clips(clips_per_row)
    num_met = min(progress.num_clips, num_clips)
    is_far_past = num_bad > FAR_PAST * most_bad(num_met, max_bad_fraction)
    if num_bad > most_bad(num_clips, max_bad_fraction):
        share = f"{num_bad} of {num_clips} clips"
    elif is_far_past and num_bad >= MIN_BAD_CLIPS:
        share = f"{num_bad} of the first {num_met} clips"
    else:
        return None
    return (
        f"{share} could not be decoded; that is more than {allowance(max_bad_fraction)}; allow "
        "more to go on with what was trained, which is saved, or mend them and start over with "
        "--overwrite_output_dir"
    )


# --- the end --------------------------------------------------------------------------------------


def leave_together(accelerator: Accelerator) -> None:
    """Let go of the process group, on all processes at once.

    The wrapper that shares the model's gradients must be gone before, so `updates` has been closed:
    its reducer would else let go of the group last, which joins gloo's threads while it holds
    Python's lock, and hangs where one of them waits for that lock to forget the last collective.
    (Seen with torch 2.13.)
    """
    accelerator.wait_for_everyone()
    gc.collect()  # should the wrapper be in a cycle
    accelerator.end_training()
