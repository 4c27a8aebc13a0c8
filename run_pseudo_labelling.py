r"""Let a Whisper model transcribe a dataset, and store what it writes beside the audio.

Reads   any dataset with audio (see `--dataset_name`); a reference text is optional.
Writes  the same rows in Hub layout, plus `whisper_transcript`, `condition_on_prev`, `avg_logprob`,
        `compression_ratio` and `truncated`; and `run.json`. With `--output_format labels` without
        audio, which stays where it is.

    python run_pseudo_labelling.py -m openai/whisper-large-v3 -d my-org/my-speech \
        --dataset_split_name train --text_column_name transcription --language ja \
        --return_timestamps --dtype bfloat16 --per_device_eval_batch_size 64 -o labelled

On a laptop:

    python run_pseudo_labelling.py -m openai/whisper-tiny -d my_speech.jsonl \
        --language ja --max_samples 20 -o labelled

A killed run goes on where it was when it is started again with the same flags; of a finished one,
damaged files are made again, and with `--retry_quarantined` clips that were mended are labelled.
"""

from distillery.cli.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import parse
from distillery.cli.labelling_arguments import LabellingArguments, check

GROUPS = (
    ModelArguments,
    DataArguments,
    DecodingArguments,
    LabellingArguments,
    OutputArguments,
    RunArguments,
)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

import logging
import shlex
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock

from distillery.cli import forecast, hub
from distillery.cli.labelling import (
    WORK_FOLDER,
    Split,
    duration_limits,
    num_rows,
    num_workers,
    progress_of,
    prompts_of,
    splits_of,
)
from distillery.cli.labelling_arguments import LABELS
from distillery.cli.runtime import (
    load_model,
    load_outline,
    log_end,
    log_start,
    make_accelerator,
    open_run,
    set_up_logging,
    stage_run,
    start_trackers,
)
from distillery.cli.speech_progress import SpeechProgress
from distillery.data import dataset_card, hub_layout, lineage, schema
from distillery.data.collators import TOO_LONG
from distillery.data.specs import DatasetSpec
from distillery.ingest import label_folders, sources
from distillery.ingest.label_folders import Source
from distillery.ingest.sources import describe_splits
from distillery.labelling.bad_clips import REMEDY, BadClips
from distillery.labelling.clips import ShardQueue, batches, packed_batches
from distillery.labelling.labeller import Labeller
from distillery.labelling.shards import Account, ShardAssembly, warn_of_empty_transcripts
from distillery.storage.ledger import Ledger
from distillery.storage.publication import hub_ids, public_names
from distillery.storage.runs import Run
from distillery.storage.shares import Share
from distillery.whisper import checkpoint
from distillery.whisper.decoding import Decoding

logger = logging.getLogger(__name__)

FINISHING = ".finishing.lock"


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    labelling_args: LabellingArguments,
    output_args: OutputArguments,
    run_args: RunArguments,
) -> None:
    """Label this process's share of every split; the last process to end finishes the dataset."""
    accelerator = make_accelerator(run_args, output_args.output_dir, model_args.dtype)
    specs, model = data_args.specs(), model_args.model_name_or_path
    run = stage_run(
        "run_pseudo_labelling",
        (model_args, data_args, decoding_args, labelling_args, output_args, run_args),
        Path(output_args.output_dir),
        {model: checkpoint.fingerprint(model), **{str(s): sources.fingerprint(s) for s in specs}},
        owned=(WORK_FOLDER, hub_layout.CARD, hub_layout.FILES),
        retried=tuple(map(str, specs)) if labelling_args.retry_quarantined else (),
    )
    if run_args.dry_run:
        teacher = load_outline(model_args)
        decoding = prompts_of(decoding_args, labelling_args, teacher).decoding
        forecast.show(accelerator, run, _forecast(accelerator, run, specs, teacher, decoding))
        return
    share = Share(labelling_args.shard_index, labelling_args.num_shards)
    open_run(accelerator, run, output_args.overwrite_output_dir, share)
    is_last = run.is_complete and accelerator.is_main_process
    if not run.is_complete:
        teacher = load_model(model_args, accelerator)
        prompts = prompts_of(decoding_args, labelling_args, teacher)
        splits = splits_of(specs, run, teacher, prompts.vary)
        with accelerator.main_process_first():
            if labelling_args.retry_quarantined and accelerator.is_main_process:
                for split in splits:
                    split.writer.unseal_quarantined()
        start_trackers(accelerator, run, run_args.wandb_project)
        _log_start(accelerator, run, splits)
        share = share.split(accelerator.process_index, accelerator.num_processes)
        progress = progress_of(accelerator, run, splits, share)
        labeller = Labeller(teacher, prompts, labelling_args.per_device_eval_batch_size)
        _label(splits, labeller, share, progress, run)
        is_last = _finish_if_all_sealed(run, splits, teacher, data_args.max_bad_fraction)
    if is_last:
        hub.publish(run)
    accelerator.end_training()


def _forecast(
    accelerator: Accelerator,
    run: Run,
    specs: list[DatasetSpec],
    teacher: checkpoint.Whisper,
    decoding: Decoding,
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    duration_limits(run.arguments, teacher.log_mel.window_s)
    batch_size = run.arguments["per_device_eval_batch_size"]
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    hub_layout.refuse_same_split_twice([dataset.spec for dataset in speech])
    num_labelled = forecast.sealed_rows(run.folder, f"{WORK_FOLDER}/*/*/*.parquet")
    what, num_bytes = "audio and labels", forecast.total_bytes(speech)
    if run.arguments["output_format"] == LABELS:
        what, num_bytes = "labels", forecast.label_bytes(speech)
    return [
        *forecast.data_lines(speech),
        forecast.model_line(run.arguments["model_name_or_path"], teacher),
        forecast.batches(forecast.total_rows(speech), batch_size, accelerator.num_processes),
        forecast.decoding_memory(teacher, batch_size, decoding.num_beams, decoding.max_length),
        forecast.disk_line(run.folder, num_bytes, what),
        ("resume", run.resume_status(f"{num_labelled:,} rows are labelled")),
    ]


def _log_start(accelerator: Accelerator, run: Run, splits: list[Split]) -> None:
    rows = describe_splits({split.spec: split.rows for split in splits})
    flags = run.arguments
    log_start(run, accelerator, flags["model_name_or_path"], flags["dtype"], rows)


# --- labelling: the shards of one share, one after the other -------------------------------------


def _label(
    splits: list[Split], labeller: Labeller, share: Share, progress: SpeechProgress, run: Run
) -> None:
    """Label a share of every split, less the shards that are sealed already."""
    flags = run.arguments
    bad_clips = BadClips(flags["max_bad_fraction"], num_rows(splits))
    limits = duration_limits(flags, labeller.teacher.log_mel.window_s)
    for split in splits:
        is_done = partial(_is_done, split, progress, flags["retry_quarantined"])
        packing = split.writer.packing
        queue = ShardQueue(split.rows, flags["rows_per_shard"], share, is_done, packing is None)
        assembly = ShardAssembly(split.writer, queue)
        reading = flags["per_device_eval_batch_size"], num_workers(flags), limits
        clips = (
            batches(queue, labeller.teacher.log_mel, *reading)
            if packing is None
            else packed_batches(queue, packing, *reading)
        )
        for clip in labeller.label(clips):
            if not clip.is_context:
                num_clips = split.writer.num_clips(clip.row)
                progress.advance(num_clips, clip.row.get(schema.DURATION) or 0.0)
            bad_clips.add(assembly.add(*clip))
        split.num_shards = queue.num_shards
    progress.close()


def _is_done(
    split: Split, progress: SpeechProgress, is_retry: bool, shard: int, chunk: Callable[[], Any]
) -> bool:
    ledger = split.writer.account_of(shard)
    if ledger is None:
        return False
    if is_retry:
        split.writer.refuse_other_rows(shard, chunk())
    progress.skip(ledger.num_in)
    return True


# --- the dataset, once all shards are there -------------------------------------------------------


def _finish_if_all_sealed(
    run: Run, splits: list[Split], teacher: checkpoint.Whisper, max_bad_fraction: float | None
) -> bool:
    """Complete the dataset if this process is the last to end; tell whether it did."""
    if not all(split.is_sealed for split in splits):
        logger.info("this share is labelled; the last process to end completes the dataset")
        return False
    with FileLock(run.folder / FINISHING):
        is_last = not run.was_completed()
        if is_last:
            set_up_logging()  # this process need not be the main one
            _finish(run, splits, teacher, max_bad_fraction)
    (run.folder / FINISHING).unlink(missing_ok=True)
    return is_last


def _finish(
    run: Run, splits: list[Split], teacher: checkpoint.Whisper, max_bad_fraction: float | None
) -> None:
    """Check the account, name the files, and write card and record."""
    accounts = {split.spec: split.writer.account() for split in splits}
    ledger = sum((account.ledger for account in accounts.values()), Ledger())
    if ledger.quarantined[TOO_LONG]:
        logger.warning("recordings longer than the model's window are cut by --segment vad")
    ledger.check(max_bad_fraction, REMEDY)
    if ledger.dropped and not ledger.num_out:
        raise ValueError(
            f"no clip is left: {ledger}; see --min_duration_in_seconds and "
            "--max_duration_in_seconds"
        )
    warn_of_empty_transcripts(accounts.values())
    specs = list(accounts)
    for split in splits:
        split.writer.publish()
    sources_of = {split.spec: Source.of(split.source) for split in splits if not split.has_audio}
    files = sorted(run.folder.glob(hub_layout.FILES))
    results = {
        **label_folders.record_of(sources_of),
        "ledger": ledger.to_dict(),
        dataset_card.HOURS: {dataset_card.OUT: hub_layout.hours(files)},
        "scores": {str(spec): _scores(spec, account) for spec, account in accounts.items()},
        "windows": {str(spec): _windows(spec, account) for spec, account in accounts.items()},
        "attention": teacher.attention,
    }
    _write_card(run, specs, results, files)
    run.finish(**results)
    next_command = f"python run_data_filtering.py {hub_layout.flags_naming(run.folder, specs)}"
    next_command += f" -o {shlex.quote(f'{run.folder}-filtered')}"
    log_end(run, f"{ledger.num_out:,} labelled clips; rows: {ledger}", next_command)


def _write_card(
    run: Run, specs: list[DatasetSpec], results: dict[str, Any], files: list[Path]
) -> None:
    """Write the card: who transcribed what, how well where that is known, and a row."""
    made = lineage.MadeDataset(
        str(run.folder), {"stage": run.stage, "arguments": run.arguments, **results}
    )
    first = specs[0]
    parts = [
        f"Transcripts by `{public_names(made.flags['model_name_or_path'])}`."
        + label_folders.card_text(results),
        dataset_card.describe(made),
        dataset_card.scores(results["scores"]),
        "`run.json` holds every flag and version.",
        dataset_card.example(files),
        dataset_card.usage(run.folder.resolve().name, str(first.config), str(first.split)),
    ]
    hub_layout.write_card(
        run.folder,
        hub_layout.splits_by_config(specs),
        "Pseudo-labelled speech",
        "\n\n".join(part for part in parts if part),
        header=dataset_card.header(made.language, made.flags["license"], hub_ids(made.made_of)),
    )


def _scores(spec: DatasetSpec, account: Account) -> dict[str, Any] | None:
    """Return the error rates of the transcripts; None where the source has no references."""
    if account.edits is None:
        return None
    scores = account.edits.scores()
    logger.info("%s against the references: %s", spec, scores.summary())
    return asdict(scores)


def _windows(spec: DatasetSpec, account: Account) -> dict[str, Any] | None:
    """Return how full the windows are; None where clips are not packed."""
    if account.windows is None:
        return None
    logger.info("%s: %s", spec, account.windows)
    return account.windows.to_dict()


if __name__ == "__main__":
    main(*ARGUMENTS)
