"""The largest micro-batch that fits into the memory of a GPU; the global batch stays the same."""

import gc
import logging
from collections.abc import Callable

import torch
from accelerate import Accelerator

from distillery.data.collators import Batch
from distillery.training.order import BatchPlan
from distillery.training.step import Learner
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.memory import is_out_of_memory

logger = logging.getLogger(__name__)

MEANS = 2  # that AdamW keeps of each gradient
HEADROOM = 0.05  # share of a GPU's memory that is left for what batches of other lengths leave over


def largest_fitting(
    accelerator: Accelerator, plan: BatchPlan, learner: Learner, max_label_length: int
) -> BatchPlan:
    """Return the plan of the same global batch with the largest micro-batches that fit.

    Each size is tried with the longest labels: loss and gradients, beside the room that the
    optimiser takes. All processes must ask; the smallest answer holds for all.

    Args:
        accelerator: of this launch.
        plan: as the flags have it.
        learner: as it is trained, on its device; is not changed.
        max_label_length: ids of the longest labels.

    Raises:
        ValueError: not even one row fits.
    """

    def try_rows(num_rows: int) -> None:
        _try(accelerator, learner, worst_batch(learner.student, num_rows, max_label_length))

    share = plan.per_device * plan.accumulation
    own = torch.tensor(largest_divisor(share, try_rows), device=accelerator.device)
    num_rows = int(accelerator.gather(own).min())
    if not num_rows:
        raise ValueError(
            "--auto_batch_size: not even one row fits into memory: lower --max_label_length, or "
            "train with --gradient_checkpointing or --freeze_encoder"
        )
    logger.info(
        "--auto_batch_size: %d rows fit at once, so %d are %d x %d",
        *(num_rows, share, num_rows, share // num_rows),
    )
    return BatchPlan(num_rows, share // num_rows, plan.num_processes)


def largest_divisor(share: int, try_rows: Callable[[int], None]) -> int:
    """Return the largest divisor of a number of rows with which a trial does not run out of memory.

    0 if all do.
    """
    for num_rows in (share // parts for parts in range(1, share + 1) if share % parts == 0):
        try:
            try_rows(num_rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.info("%d rows at once do not fit", num_rows)
        else:
            return num_rows
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return 0


def worst_batch(student: Whisper, num_rows: int, max_label_length: int) -> Batch:
    """Return a batch of full windows of silence with the longest labels, all of which count."""
    num_ids = min(max_label_length, student.max_label_length)
    ids = torch.full((num_rows, num_ids), student.tokens.end_of_text)
    waveforms = torch.zeros(num_rows, student.log_mel.window_samples)
    names = [str(number) for number in range(num_rows)]
    return Batch(names, [""] * num_rows, [], None, ids, ids, waveforms=waveforms)


def _try(accelerator: Accelerator, learner: Learner, batch: Batch) -> None:
    """Compute loss and gradients of a batch beside what an update takes more, and forget them."""
    step = learner.step.train()
    trained = [weight for weight in step.parameters() if weight.requires_grad]
    # Processes that share gradients hold them twice.
    num_copies = MEANS + (accelerator.num_processes > 1)
    taken = [torch.empty_like(weight) for weight in trained for _ in range(num_copies)]
    if accelerator.device.type == "cuda":
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        num_bytes = int(HEADROOM * total)
        taken.append(torch.empty(num_bytes, dtype=torch.uint8, device=accelerator.device))
    try:
        with accelerator.autocast():
            losses = learner.losses(batch, step)
        losses.total.backward()  # type: ignore[no-untyped-call]
    finally:
        taken.clear()
        for weight in trained:
            weight.grad = None
