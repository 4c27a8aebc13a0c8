"""What surrounds a stage: the accelerator, logging, seeding, the run's record, stopping."""

import logging
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from distillery.cli import hub
from distillery.cli.arguments import ModelArguments, RunArguments
from distillery.cli.config_files import config_text
from distillery.cli.flags import flags_of, input_names, plus_list, resumable_flags
from distillery.storage.files import remove_leftovers
from distillery.storage.names import printable
from distillery.storage.ownership import (
    OPENING_S,
    leave_folder,
    refuse_other_shares,
    refuse_overlap,
    take_folder,
    take_share,
)
from distillery.storage.runs import OTHER_FOLDER, STARTED, Run
from distillery.storage.shares import WHOLE, Share
from distillery.storage.stops import end_with_launcher
from distillery.training.seeding import seed_everything
from distillery.whisper import checkpoint
from distillery.whisper.compute import MIXED_PRECISIONS, launched_precision, resolved_dtype

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
HTTP_CLIENTS = ("httpx", "httpcore", "httpx2", "httpcore2")  # of old and of new huggingface_hub
EXPORTERS = ("faster_whisper", "pywhispercpp", "onnx_ir", "onnxscript")


def make_accelerator(run: RunArguments, output_dir: str, dtype: str) -> Accelerator:
    """Build the accelerator, set up logging, and seed.

    Args:
        run: flags of the run.
        output_dir: where a tracker that writes files puts them.
        dtype: of the model's computation, or `auto`; weights that are trained stay float32.
    """
    mixed_precision = MIXED_PRECISIONS[resolved_dtype(dtype)]
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # Without this, several processes on a machine without a GPU would not find each other.
        cpu=not torch.accelerator.is_available(),
        log_with=[name for name in plus_list(run.report_to) if name != "none"] or None,
        project_dir=output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=run.ddp_timeout))],
    )
    end_with_launcher()
    set_up_logging(accelerator.is_local_main_process)
    if launched_precision() not in ("no", mixed_precision):
        logger.warning(
            "--dtype %s wins over accelerate's --mixed_precision %s", dtype, launched_precision()
        )
    if accelerator.device.type == "cpu" and launcher_chose_threads():
        torch.set_num_threads(num_cores_each())
    seed_everything(run.seed)
    return accelerator


def launcher_chose_threads() -> bool:
    """Tell whether a launcher limited this process to some threads, and not its user.

    `accelerate launch` and torchrun set OMP_NUM_THREADS to 1 where it is not set, so that without a
    GPU all but one core would idle. What the launcher was started with is read from `/proc`; where
    there is none, the limit stays.
    """
    if not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return False
    launcher = Path("/proc") / str(os.getppid())
    try:
        environment = (launcher / "environ").read_bytes().split(b"\0")
        words = (launcher / "cmdline").read_bytes().replace(b"-", b"_").split(b"\0")
    except OSError:
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in environment) and not any(
        word.startswith(b"__num_cpu_threads_per_process") for word in words
    )


def num_cores_each() -> int:
    """Return how many of this machine's cores each of its processes of this launch can have."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def set_up_logging(speaks: bool = True) -> None:
    """Let the local main process speak, and the others only in an emergency.

    The lines of a script carry its name, which Python calls `__main__`.
    """
    logging.basicConfig(force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_name_script)
        handler.setFormatter(_PrintableFormatter(LOG_FORMAT, "%H:%M:%S"))
    logging.getLogger().setLevel(logging.INFO if speaks else logging.ERROR)
    libraries = ("urllib3", "fsspec", "accelerate", "datasets", "torch")
    for chatty in (*HTTP_CLIENTS, *EXPORTERS, *libraries):
        logging.getLogger(chatty).setLevel(logging.WARNING if speaks else logging.ERROR)
    transformers.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()


class _PrintableFormatter(logging.Formatter):
    """Writes lines that no name in them can use to give the terminal orders."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _name_script(record: logging.LogRecord) -> bool:
    if record.name == "__main__":
        record.name = Path(sys.argv[0]).stem
    return True


def load_model(model_args: ModelArguments, accelerator: Accelerator) -> checkpoint.Whisper:
    """Load the model that a stage runs but does not train, on this process's device."""
    model = checkpoint.load(
        model_args.model_name_or_path,
        model_args.compute_dtype,
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
        model_args.compute_dtype,
        model_args.model_revision,
        model_args.cache_dir,
    )


def stage_run(
    stage: str,
    groups: Sequence[Any],
    folder: Path,
    inputs: Mapping[str, str | None],
    *,
    owned: Sequence[str] = (),
    derived: Mapping[str, Any] | None = None,
    remedy: str = OTHER_FOLDER,
    retried: Sequence[str] = (),
) -> Run:
    """Describe a run of a stage by its flags.

    Args:
        stage: name of the stage's script, without `.py`.
        groups: all flags, as parsed.
        folder: the output folder.
        inputs, owned, remedy, retried: as in `Run`.
        derived: what follows from flags and launch together and must stay the same too.
    """
    arguments = {**flags_of(*groups), **(derived or {})}
    if "dtype" in arguments:  # a run that goes on elsewhere computes in the same
        arguments["dtype"] = resolved_dtype(arguments["dtype"])
    return Run(
        folder,
        stage,
        arguments,
        inputs,
        owned,
        reads=input_names(groups),
        may_change=resumable_flags(groups),
        config=config_text(f"{stage}.py", groups),
        remedy=remedy,
        retried=retried,
    )


def open_run(
    accelerator: Accelerator | None, run: Run, overwrite: bool, share: Share = WHOLE
) -> Run:
    """Take the output folder for a run, going on with an earlier one of the same configuration.

    A run that failed before it had made anything, for a wrong name, say, leaves nothing to go on
    with: the corrected command takes its folder.

    Args:
        accelerator: the main process decides, the others follow; None for a stage that runs in one
            process without one.
        run: what is to be made.
        overwrite: throw away what an earlier run left, first.
        share: that this launch makes of the run; launches with other shares may work beside it.

    Returns:
        The same run, which knows whether it is complete already.

    Raises:
        FolderInUseError: another process works on it.
        HubError: its result is to be uploaded, and the Hub would not take it.
        ValueError: the folder is an input, or in or around one; or it holds files of the user's, of
            another stage, or of another configuration that is not to be overwritten.
    """
    with nullcontext() if accelerator is None else accelerator.main_process_first():
        if accelerator is None or accelerator.is_main_process:
            hub.check(run)
            _take(run, overwrite, share)
        run.is_complete = run.was_completed()
    if run.is_complete:
        logging.getLogger(run.stage).info("%s is %s", run.folder, run.completion())
    return run


def _take(run: Run, overwrite: bool, share: Share) -> None:
    """Take the folder for as long as the run's object is there, or refuse it."""
    refuse_overlap(run.folder, run.reads)
    lock = take_folder(run.folder, wait_s=0.0 if share == WHOLE else OPENING_S)
    try:
        run.refuse_damaged_inputs()
        refuse_other_shares(run.folder, share)
        _open_record(run, overwrite)
        share_lock = lock if share == WHOLE else take_share(run.folder, share)
    except Exception:
        leave_folder(lock)
        raise
    if share != WHOLE:
        leave_folder(lock)
    weakref.finalize(run, leave_folder, share_lock)


def _open_record(run: Run, overwrite: bool) -> None:
    """Write the record of a run that begins, or go on with the one that is there."""
    if not run.record_path.exists():
        run.refuse_foreign_files()
    else:
        run.refuse_other_stage()
        run.refuse_old_record(overwrite)
        if overwrite:
            run.throw_away()
    if run.has_work():
        run.refuse_other_configuration()
        run.reopen()
    else:
        run.write(STARTED)
    if not run.was_completed():
        run.write_config()


def hold_folder(run: Run, flag: str = "--output_dir") -> None:
    """Let no other process write to a run's folder, for as long as the run's object is there.

    For the stages that do not take their folder by `open_run`. What killed writers left under
    temporary names is deleted.

    Raises:
        FolderInUseError: another process works on it.
    """
    weakref.finalize(run, leave_folder, take_folder(run.folder, flag))
    remove_leftovers(run.folder)


def start_trackers(accelerator: Accelerator, run: Run, project: str | None) -> None:
    """Hand a run's flags to the trackers, where there are any; `accelerator.log` then reaches them.

    Args:
        accelerator: of this launch; without `--report_to` it has no tracker.
        run: whose flags are kept.
        project: the trackers' project; default: the stage's name.

    Raises:
        ValueError: a tracker does not start; better now than after hours without a curve.
    """
    if accelerator.log_with:
        plain = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in run.arguments.items()
        }
        try:
            accelerator.init_trackers(project or run.stage, plain)
        except Exception as error:  # each tracker has errors of its own
            trackers = run.arguments["report_to"]
            raise ValueError(
                f"--report_to {trackers}: a tracker does not start ({error}); mend that, or leave "
                "the flag out: the log in the folder has everything"
            ) from error


def log_start(
    run: Run, accelerator: Accelerator | None, model: str | None, dtype: str | None, rows: str
) -> None:
    """Log what a stage is about to do: with which model, on what, and what leaves the machine.

    Args:
        run: says where to, and by its flags whether anything is uploaded.
        accelerator: says on which device, in how many processes; None for a stage without one.
        model: the model's name, or None for a stage that runs none.
        dtype: what the model computes in.
        rows: what is worked on, in words, such as `12,000 clips of my_speech.jsonl train`.
    """
    parts = [rows, f"to {run.folder}", hub.upload_plan(run)]
    if accelerator is not None:
        parts.insert(1, f"processes: {accelerator.num_processes}")
    if model is not None:
        device = "" if accelerator is None else f" on {accelerator.device}"
        parts[0] = f"{model} in {dtype}{device}, {rows}"
    logging.getLogger(run.stage).info("%s", "; ".join(parts))


def log_end(run: Run, made: str, *next_commands: str) -> None:
    """Log what a stage made, where, and which commands go on with it.

    Args:
        run: the finished run.
        made: what is in its folder, in words and numbers.
        next_commands: what a user would start next; names in capitals are his to fill in.
    """
    stage_logger = logging.getLogger(run.stage)
    stage_logger.info("%s: %s", run.folder, made)
    for command in next_commands:
        stage_logger.info("next: %s", command)


def end_stage(run: Run, accelerator: Accelerator | None = None) -> None:
    """Upload what a run made, where its flags ask for it, and let go of trackers and processes.

    Args:
        run: the finished run.
        accelerator: of this launch; None for a stage that runs in one process without one.
    """
    if accelerator is None or accelerator.is_main_process:
        hub.publish(run)
    if accelerator is not None:
        accelerator.end_training()
