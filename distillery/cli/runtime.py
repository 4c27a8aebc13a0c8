"""What surrounds a stage: the accelerator, logging, seeding, the run's record, stopping."""

import logging
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from distillery.cli import hub
from distillery.cli.arguments import ModelArguments, RunArguments, flags_of, plus_list
from distillery.cli.flags import CONFIG, write_config
from distillery.storage.files import RUN_RECORD, read_json, write_json
from distillery.storage.provenance import code_commit, versions
from distillery.whisper import checkpoint

logger = logging.getLogger(__name__)

STARTED, COMPLETE = "started", "complete"

# Flags that say how a run is made, not what comes out of it: they may change between a killed run
# and the one that goes on with it.
FREE_FLAGS = frozenset(
    {
        "cache_dir",
        "dataloader_num_workers",
        "dataset_cache_dir",
        "ddp_timeout",
        "dry_run",
        "gradient_accumulation_steps",  # of a batch's parts, only the product counts
        "hub_model_id",
        "hub_public",
        "logging_steps",
        "max_bad_fraction",
        "overwrite_output_dir",
        "output_dir",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "preprocessing_num_workers",
        "push_to_hub",
        "report_to",
        "save_dir",
        "save_steps",
        "save_total_limit",
        "wandb_project",
    }
)


def make_accelerator(run: RunArguments, output_dir: str, dtype: str) -> Accelerator:
    """Build the accelerator, set up logging, and seed.

    Args:
        run: flags of the run.
        output_dir: where a tracker that writes files puts them.
        dtype: number type of the model's computation; weights that are trained stay float32.
    """
    mixed_precision = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # Without this, several processes on a machine without a GPU would not find each other.
        cpu=not torch.accelerator.is_available(),
        log_with=[name for name in plus_list(run.report_to) if name != "none"] or None,
        project_dir=output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=run.ddp_timeout))],
    )
    set_up_logging(accelerator.is_local_main_process)
    seed_everything(run.seed)
    return accelerator


def set_up_logging(speaks: bool = True) -> None:
    """Let the local main process speak, and the others only in an emergency."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger().setLevel(logging.INFO if speaks else logging.ERROR)
    for chatty in ("httpx", "httpcore", "urllib3", "fsspec", "accelerate", "datasets", "torch"):
        logging.getLogger(chatty).setLevel(logging.WARNING if speaks else logging.ERROR)
    transformers.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()


def load_model(model_args: ModelArguments, accelerator: Accelerator) -> checkpoint.Whisper:
    """Load the model that a stage runs but does not train, on this process's device."""
    model = checkpoint.load(
        model_args.model_name_or_path,
        model_args.dtype,
        model_args.attn_type,
        model_args.model_revision,
        model_args.cache_dir,
    )
    model.model.to(accelerator.device).eval()
    return model


def load_outline(model_args: ModelArguments) -> checkpoint.Whisper:
    """Load the same model without its weights, for a dry run."""
    return checkpoint.load_outline(
        model_args.model_name_or_path,
        model_args.dtype,
        model_args.model_revision,
        model_args.cache_dir,
    )


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and torch from integers; the same integers give the same numbers.

    Seeding each training step from (seed, step, rank) makes its dropout and masking a pure
    function of them, so that a resumed run needs no generator states.
    """
    words = np.random.SeedSequence(parts).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


@dataclass
class Run:
    """One run of a stage in its output folder, and the record that it leaves there.

    Attributes:
        folder: the output folder.
        stage: name of the stage's script, without `.py`.
        groups: all flags, as parsed.
        inputs: fingerprints of what is read, by name.
        owned: patterns of the names that this stage writes in the folder, beside its record; only
            these are ever deleted.
        derived: what follows from flags and launch together and must stay the same too.
        remedy: what to do where the folder holds another run.
    """

    folder: Path
    stage: str
    groups: Sequence[Any]
    inputs: Mapping[str, str | None]
    owned: Sequence[str] = ()
    derived: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = "name another folder, or start over with --overwrite_output_dir"
    is_complete: bool = False
    started: float = field(default_factory=time.time)

    @property
    def arguments(self) -> dict[str, Any]:
        """All flags by name, and what is derived from them."""
        return {**flags_of(*self.groups), **self.derived}

    @property
    def record_path(self) -> Path:
        """Where the record is kept."""
        return self.folder / RUN_RECORD

    def write(self, status: str, **results: Any) -> None:
        """Write the record, with a stage's counts and figures."""
        record = {
            "stage": self.stage,
            "status": status,
            "arguments": self.arguments,
            "inputs": self.inputs,
            "versions": versions(),
            "commit": code_commit(),
            "seconds": round(time.time() - self.started, 2),
            **results,
        }
        write_json(self.record_path, record)

    def write_config(self) -> None:
        """Leave the flags as a file that the stage takes in their place."""
        write_config(self.folder / CONFIG, f"{self.stage}.py", self.groups)

    def finish(self, **results: Any) -> None:
        """Write the record of a run that did all it had to."""
        self.write(COMPLETE, **results)

    def was_completed(self) -> bool:
        """Tell whether the folder holds this run and nothing is left to do."""
        return self.record_path.exists() and read_json(self.record_path)["status"] == COMPLETE

    def has_work(self) -> bool:
        """Tell whether an earlier run was completed, or left more in the folder than its record."""
        left = (path for pattern in self.owned for path in self.folder.glob(pattern))
        return self.record_path.exists() and (self.was_completed() or any(left))

    def outlook(self, done: str = "") -> str:
        """Say how the run would begin, writing nothing.

        Args:
            done: what of it is done already, for a run that would go on.

        Raises:
            ValueError: it would be refused, as by `open_run`.
        """
        if self.record_path.exists():
            self.refuse_other_stage()
        if not self.has_work():
            return "nothing is there of an earlier run"
        if self.arguments.get("overwrite_output_dir"):
            return "--overwrite_output_dir would throw away the run that is there"
        self.refuse_other_configuration()
        if self.was_completed():
            return "complete: nothing to do"
        return f"goes on with the run that is there: {done}"

    def refuse_other_stage(self) -> None:
        """Raise ValueError if the folder holds a run of another stage."""
        stage = read_json(self.record_path)["stage"]
        if stage != self.stage:
            raise ValueError(
                f"--output_dir {self.folder} holds a run of {stage}; name another folder"
            )

    def refuse_other_configuration(self) -> None:
        """Raise ValueError if the folder holds a run of another stage, or with other flags."""
        self.refuse_other_stage()
        record = read_json(self.record_path)
        before, now = record["arguments"], self.arguments
        changed = [
            f"--{name}: {before.get(name)!r} then, {now.get(name)!r} now"
            for name in sorted({*before, *now} - FREE_FLAGS)
            if before.get(name) != now.get(name)
        ]
        changed += [
            f"{name}: its content has changed"
            for name, fingerprint in self.inputs.items()
            if record["inputs"].get(name, fingerprint) != fingerprint
        ]
        if changed:
            listed = "\n  ".join(changed)
            raise ValueError(
                f"--output_dir {self.folder} holds a run of another configuration:\n  {listed}\n"
                f"{self.remedy}"
            )


def open_run(accelerator: Accelerator, run: Run, overwrite: bool) -> Run:
    """Take the output folder for a run, going on with an earlier one of the same configuration.

    A run that failed before it had made anything, for a wrong name, say, leaves nothing to go on
    with: the corrected command takes its folder.

    Args:
        accelerator: the main process decides, the others follow.
        run: what is to be made.
        overwrite: throw away what an earlier run left, first.

    Returns:
        The same run, which knows whether it is complete already.

    Raises:
        ValueError: the folder holds a run of another stage, or of another configuration that is
            not to be overwritten.
    """
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            if run.record_path.exists():
                run.refuse_other_stage()
                if overwrite:
                    # The record goes last: without it, what a kill left would not look like ours.
                    _throw_away(run.folder, [*run.owned, CONFIG, RUN_RECORD])
            if run.has_work():
                run.refuse_other_configuration()
            else:
                run.write(STARTED)
            if not run.was_completed():
                run.write_config()
        run.is_complete = run.was_completed()
    if run.is_complete:
        logger.info("%s is complete: nothing to do", run.folder)
    return run


def _throw_away(folder: Path, owned: Sequence[str]) -> None:
    for pattern in owned:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class StopRequest:
    """Whether SIGTERM has asked this program to stop at the next safe point."""

    def __init__(self) -> None:
        self.is_set = False

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGTERM into a request while the block runs, instead of the program's end."""
    request = StopRequest()
    before = signal.signal(signal.SIGTERM, request._set)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def publish(run: Run, args: Any, repo_type: str) -> None:
    """Upload what a run made, where its flags ask for it.

    A dataset is uploaded as soon as a repository is named for it, as the commands of
    kotoba-whisper have it; a model wants `--push_to_hub`.

    Args:
        run: the finished run.
        args: has the flags `push_to_hub`, `hub_model_id` and `hub_public`.
        repo_type: `model` or `dataset`.
    """
    named = repo_type == "dataset" and args.hub_model_id
    if args.push_to_hub or named:
        repo_id = args.hub_model_id or run.folder.resolve().name
        files = hub.MODEL_FILES if repo_type == "model" else hub.DATASET_FILES
        message = f"Made by {run.stage}"
        hub.upload(run.folder, repo_id, repo_type, files, args.hub_public, message)
