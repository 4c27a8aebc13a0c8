"""The folder of `--cache_teacher`: whose it is, and what is left to be made in it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distillery.cli.training_arguments import TrainingFlags
from distillery.storage.ownership import OPENING_S, leave_folder, refuse_overlap, take_folder
from distillery.storage.progress import ProgressBar
from distillery.storage.runs import STARTED, Run
from distillery.storage.stops import StopRequest
from distillery.training import resume, teacher_cache
from distillery.training.examples import TrainingRows
from distillery.training.rows import TrainingData
from distillery.training.step import Learner
from distillery.training.teacher_cache import FixedRows, TeacherCache
from distillery.training.top_tokens import MOST_TOKENS, NUM_TOP
from distillery.whisper import checkpoint

logger = logging.getLogger(__name__)

STAGE, FLAG = "teacher_cache", "--cache_teacher"


@dataclass(frozen=True)
class CacheRun:
    """The making of a cache, which goes on where it was killed.

    Attributes:
        accelerator: of this launch, whose processes share the shards that are missing.
        run: what the folder holds, and its record.
        cache: its shards.
        missing: numbers of those that are to be made.
    """

    accelerator: Accelerator
    run: Run
    cache: TeacherCache
    missing: Sequence[int]

    def complete(self, learner: Learner, data: TrainingData, stop: StopRequest) -> bool:
        """Make what is missing; return False where any process was told to stop before the end.

        Args:
            learner: with its teacher.
            data: all rows that are trained on.
            stop: a request of any process.
        """
        accelerator = self.accelerator
        shares = self.missing[accelerator.process_index :: accelerator.num_processes]
        with ProgressBar(
            total=sum(len(self.cache.numbers(shard)) for shard in shares),
            desc="teacher",
            unit=" rows",
            disable=not accelerator.is_local_main_process,
        ) as bar:
            teacher_cache.fill(self.cache, shares, learner, data, stop, bar)
        told = torch.tensor(int(stop.is_set), device=accelerator.device)
        if accelerator.reduce(told, "sum"):
            return False
        if accelerator.is_main_process:
            self.run.finish(ledger=self.cache.ledger().to_dict())
        accelerator.wait_for_everyone()
        return True

    def rows_of(self, data: TrainingData) -> TrainingData:
        """Return what is trained on, with what the teacher says of it."""
        return replace(data, rows=FixedRows(_numbered(data), self.cache.read))


@contextmanager
def opened(
    accelerator: Accelerator,
    run: Run,
    flags: TrainingFlags,
    data: TrainingData,
    num_tokens: int,
) -> Iterator[CacheRun]:
    """Open the folder of a run's `--cache_teacher`, which no other run makes meanwhile.

    Args:
        accelerator: of this launch: the main process decides, the others follow.
        run: the distillation.
        flags: of the run.
        data: what is trained on.
        num_tokens: of the vocabulary.

    Raises:
        FolderInUseError: another run makes this cache.
        ValueError: the folder is an input or the output, or holds something else, such as what
            another teacher says.
    """
    if num_tokens > MOST_TOKENS:
        raise ValueError(
            f"{FLAG}: the vocabulary has {num_tokens} tokens, and what is kept has 16 bits for an "
            "id: leave it out"
        )
    cache_run, cache = describe(run, flags, data)
    lock = None
    if accelerator.is_main_process:
        refuse_overlap(cache_run.folder, [*run.reads, str(run.folder)], FLAG)
        lock = take_folder(cache_run.folder, FLAG, OPENING_S)
    try:
        missing = [_opened(cache_run, cache, run.verifies) if lock else None]
        broadcast_object_list(missing)
        yield CacheRun(accelerator, cache_run, cache, missing[0] or [])
    finally:
        if lock is not None:
            leave_folder(lock)


def describe(run: Run, flags: TrainingFlags, data: TrainingData) -> tuple[Run, TeacherCache]:
    """Return the run that makes the cache of a distillation, and its shards."""
    teacher = checkpoint.full_name(run.arguments["teacher_model_name_or_path"])
    specs = flags.train_specs()
    num_rows = sum(_numbered(data).sizes)
    folder = Path(run.arguments["cache_teacher"])
    arguments = {
        "teacher_model_name_or_path": teacher,
        "temperature": run.arguments["temperature"],
        "dtype": flags.model.compute_dtype,  # whichever flag names it
        "train_dataset_name": " + ".join(map(str, specs)),
        "audio_column_name": flags.data.audio_column_name,
        "dataset_dir_suffix": flags.data.dataset_dir_suffix,
        "train_dataset_name, rows that are used": num_rows,
        "tokens of a position": NUM_TOP,
    }
    cache_run = Run(
        folder,
        STAGE,
        arguments,
        resume.input_fingerprints(specs, [teacher]),
        owned=(teacher_cache.FILES,),
        remedy="name another folder",
        flag=FLAG,
    )
    return cache_run, TeacherCache(folder, num_rows, arguments["temperature"])


def _numbered(data: TrainingData) -> TrainingRows:
    """Return the rows, which are no stream: that is refused with the flags."""
    assert isinstance(data.rows, TrainingRows)
    return data.rows


def _opened(cache_run: Run, cache: TeacherCache, verify: bool) -> list[int]:
    """Take the folder for this cache, or refuse it; return the shards that are to be made."""
    if cache_run.record_path.exists():
        cache_run.refuse_other_configuration()
    else:
        cache_run.refuse_foreign_files()
    missing = cache.missing(verify)
    logger.info(
        "%s %s: %d of %d shards with what the teacher says are there%s",
        *(FLAG, cache_run.folder, len(cache.shards) - len(missing), len(cache.shards)),
        "; the teacher runs for the others first" if missing else "",
    )
    if missing:
        cache_run.write(STARTED)
    return missing
