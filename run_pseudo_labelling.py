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

from dataclasses import dataclass

from distillery.cli.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import at_least, flag, one_of, parse

DATASET, LABELS = "dataset", "labels"
IN_ORDER, BEST_FIT = "in_order", "best_fit"  # names in `distillery.data.packing.PACKERS`


@dataclass(frozen=True)
class LabellingArguments:
    """Labelling."""

    per_device_eval_batch_size: int = flag(
        16, "Windows that are decoded at once.", "-b", resumable=True
    )
    max_label_length: int = flag(
        256, "Most ids of one transcript; a longer one is cut and flagged `truncated`."
    )
    min_duration_in_seconds: float | None = flag(None, "Drop shorter clips.")
    max_duration_in_seconds: float | None = flag(
        None,
        "Drop longer clips. Without it, those that are longer than the model's window are "
        "quarantined, and count for --max_bad_fraction.",
    )
    decode_token_ids: bool = flag(
        True,
        "Store text instead of token ids. Ids keep exactly what the teacher wrote, as a model for "
        "speculative decoding needs; text is tokenised again for training.",
    )
    output_format: str = flag(
        DATASET,
        "What is written: dataset (rows with their audio, complete in themselves), or labels (the "
        "same without audio: filter and training find it in the source, which must stay).",
    )
    concatenate_audio: bool = flag(
        False,
        "Let clips share a window of the model, so that little of it is silence: several times "
        "faster. Rows of the dataset are then windows, with the columns of the contract alone.",
    )
    packing: str = flag(
        IN_ORDER,
        "How clips share windows: in_order (neighbours of one recording and speaker), or best_fit "
        "(any clips, where their order carries no meaning).",
    )
    language_column_name: str | None = flag(
        None,
        "Column with the language of each clip, in place of --language. Without either, a "
        "multilingual model detects it; column `language` then says which.",
    )
    task_column_name: str | None = flag(
        None, "Column with the task of each clip, transcribe or translate, in place of --task."
    )
    rows_per_shard: int = flag(1000, "Rows in each file; a killed process repeats at most one.")
    retry_quarantined: bool = flag(
        False,
        "Label the clips that could not be used before, and have been mended since: their shards "
        "are made again, all others stay.",
        resumable=True,
    )
    shard_index: int = flag(
        0,
        "Label this share of the shards, from 0, of --num_shards: for array jobs on many machines "
        "that write to one folder and need no launcher. The last to end finishes the dataset.",
        resumable=True,
    )
    num_shards: int = flag(1, "Number of shares; see --shard_index.", resumable=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "max_label_length", 8),
            *at_least(self, "min_duration_in_seconds", 0),
            *at_least(self, "max_duration_in_seconds", self.min_duration_in_seconds or 0),
            *at_least(self, "rows_per_shard", 1),
            *at_least(self, "shard_index", 0),
            *at_least(self, "num_shards", 1),
            *one_of(self, "output_format", (DATASET, LABELS)),
            *one_of(self, "packing", (IN_ORDER, BEST_FIT)),
        ]
        if self.shard_index >= self.num_shards:
            problems.append(
                f"--shard_index {self.shard_index} must be below --num_shards {self.num_shards}"
            )
        return problems


def check(labelling_args: LabellingArguments, output_args: OutputArguments) -> list[str]:
    """Return what is wrong with flags of several groups together."""
    if labelling_args.num_shards > 1 and output_args.overwrite_output_dir:
        return [
            "--overwrite_output_dir would throw away what the other shares of --num_shards make: "
            "remove the output folder before the first of them is started"
        ]
    return []


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
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock

from distillery.cli import forecast, hub
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
from distillery.data import (
    column_types,
    hub_layout,
    label_folders,
    packed_windows,
    schema,
    sources,
)
from distillery.data.collators import TOO_LONG, DurationLimits
from distillery.data.hub_layout import SplitFiles
from distillery.data.label_folders import Source
from distillery.data.packed_windows import WindowPacking
from distillery.data.packing import PACKERS
from distillery.data.sources import describe_splits, load_splits
from distillery.data.specs import DatasetSpec
from distillery.labelling.bad_clips import REMEDY, BadClips
from distillery.labelling.clips import ShardQueue, batches, packed_batches
from distillery.labelling.labeller import Labeller, Prompts
from distillery.labelling.shards import (
    Account,
    ShardAssembly,
    ShardWriter,
    dataset_features,
    warn_of_empty_transcripts,
)
from distillery.labelling.transcripts import Transcripts
from distillery.storage.ledger import Ledger
from distillery.storage.publication import public_names
from distillery.storage.runs import Run
from distillery.storage.shares import Share
from distillery.whisper import checkpoint
from distillery.whisper.decoding import Decoding

logger = logging.getLogger(__name__)

# The shards, until all of them are there and get their names in the dataset. Their seals, which
# hold the account, stay, so that a damaged file can be made again alone.
WORK_FOLDER = ".labels"
FINISHING = ".finishing.lock"
PROMPT_COLUMNS = ("language_column_name", "task_column_name")


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
        decoding = _prompts(decoding_args, labelling_args, teacher).decoding
        forecast.show(accelerator, run, _forecast(accelerator, run, specs, teacher, decoding))
        return
    share = Share(labelling_args.shard_index, labelling_args.num_shards)
    open_run(accelerator, run, output_args.overwrite_output_dir, share)
    is_last = run.is_complete and accelerator.is_main_process
    if not run.is_complete:
        teacher = load_model(model_args, accelerator)
        prompts = _prompts(decoding_args, labelling_args, teacher)
        splits = _splits_of(specs, run, teacher, prompts.vary)
        start_trackers(accelerator, run, run_args.wandb_project)
        _log_start(accelerator, run, splits)
        share = share.split(accelerator.process_index, accelerator.num_processes)
        progress = _progress(accelerator, run, splits, share)
        labeller = Labeller(teacher, prompts, labelling_args.per_device_eval_batch_size)
        _label(splits, labeller, share, progress, run)
        is_last = _finish_if_all_sealed(run, splits, teacher, data_args.max_bad_fraction)
    if is_last:
        hub.publish(run)
    accelerator.end_training()


def _prompts(
    args: DecodingArguments, labelling_args: LabellingArguments, teacher: checkpoint.Whisper
) -> Prompts:
    if labelling_args.max_label_length > teacher.max_label_length:
        raise ValueError(
            f"--max_label_length {labelling_args.max_label_length} is more than the model's "
            f"{teacher.max_label_length} positions"
        )
    decoding = Decoding(
        args.language,
        args.task,
        args.return_timestamps,
        args.generation_num_beams,
        labelling_args.max_label_length,
    )
    return Prompts(
        decoding.fitted_to(teacher, detect_language=True),
        teacher.tokens,
        labelling_args.language_column_name,
        labelling_args.task_column_name,
    )


def _forecast(
    accelerator: Accelerator,
    run: Run,
    specs: list[DatasetSpec],
    teacher: checkpoint.Whisper,
    decoding: Decoding,
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    _duration_limits(run.arguments, teacher.log_mel.window_s)
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


@dataclass
class _Split:
    """One split of the input, as it is called in the output and in the flags; what makes its files.

    `num_shards` is known once its rows have been gone through.
    """

    spec: DatasetSpec
    source: DatasetSpec
    rows: sources.Rows
    writer: ShardWriter
    num_shards: int | None = None

    @property
    def has_audio(self) -> bool:
        """Whether rows are written with their audio."""
        return schema.AUDIO in self.writer.features

    @property
    def is_sealed(self) -> bool:
        """Whether the shards of all shares are there."""
        return self.num_shards is not None and self.writer.num_sealed() == self.num_shards


def _splits_of(
    specs: list[DatasetSpec], run: Run, teacher: checkpoint.Whisper, prompts_vary: bool
) -> list[_Split]:
    flags, splits = run.arguments, []
    transcripts = Transcripts(
        teacher.tokens, teacher.tokenizer, flags["decode_token_ids"], teacher.normalizer
    )
    loaded = load_splits(specs, schema.AUDIO, "--audio_column_name")
    for source, (spec, rows) in zip(specs, loaded.items(), strict=True):
        for name in PROMPT_COLUMNS:
            if flags[name] is not None:
                sources.require_column(rows, spec, flags[name], f"--{name}")
        packing = _packing(rows, flags, teacher)
        columns = rows.features if packing is None else column_types.SEGMENT_TYPES
        writer = ShardWriter(
            SplitFiles(run.outputs, WORK_FOLDER, str(spec.config), str(spec.split)),
            dataset_features(
                columns, flags["decode_token_ids"], prompts_vary, flags["output_format"] == DATASET
            ),
            transcripts,
            packing,
            flags["retry_quarantined"],
            run.verifies,
        )
        splits.append(_Split(spec, source, rows, writer))
    return splits


def _packing(
    rows: sources.Rows, flags: Mapping[str, Any], teacher: checkpoint.Whisper
) -> WindowPacking | None:
    """Return how the clips of a split share windows; None where each has its own."""
    columns = [name for name in packed_windows.SAME_RECORDING if name in rows.column_names]
    if not flags["concatenate_audio"] or not (columns or flags["packing"] == BEST_FIT):
        return None
    prompts = [flags[name] for name in PROMPT_COLUMNS if flags[name] is not None]
    together = [] if flags["packing"] == BEST_FIT else columns
    return WindowPacking(PACKERS[flags["packing"]], [*together, *prompts], teacher.log_mel)


def _log_start(accelerator: Accelerator, run: Run, splits: list[_Split]) -> None:
    rows = describe_splits({split.spec: split.rows for split in splits})
    flags = run.arguments
    log_start(run, accelerator, flags["model_name_or_path"], flags["dtype"], rows)


# --- labelling: the shards of one share, one after the other -------------------------------------


def _label(
    splits: list[_Split], labeller: Labeller, share: Share, progress: SpeechProgress, run: Run
) -> None:
    """Label a share of every split, less the shards that are sealed already."""
    flags = run.arguments
    bad_clips = BadClips(flags["max_bad_fraction"], _num_rows(splits))
    limits = _duration_limits(flags, labeller.teacher.log_mel.window_s)
    for split in splits:
        is_done = partial(_is_done, split, progress)
        packing = split.writer.packing
        queue = ShardQueue(split.rows, flags["rows_per_shard"], share, is_done, packing is None)
        assembly = ShardAssembly(split.writer, queue)
        reading = flags["per_device_eval_batch_size"], _num_workers(flags), limits
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


def _duration_limits(flags: Mapping[str, Any], window_s: float) -> DurationLimits:
    longest_s = flags["max_duration_in_seconds"]
    if longest_s is not None and longest_s > window_s:
        raise ValueError(
            f"--max_duration_in_seconds {longest_s:g} is longer than the model's window of "
            f"{window_s:g} s: give that, or less; --segment vad cuts long recordings"
        )
    return DurationLimits(flags["min_duration_in_seconds"], longest_s)


def _num_workers(flags: Mapping[str, Any]) -> int:
    """Return how many processes decode; one preprocessing worker is this process."""
    others = flags["preprocessing_num_workers"]
    return int(flags["dataloader_num_workers"] or (others if others > 1 else 0))


def _progress(
    accelerator: Accelerator, run: Run, splits: list[_Split], share: Share
) -> SpeechProgress:
    num_clips = _num_clips(splits, run.arguments["rows_per_shard"], share)
    clips_per_line = run.arguments["logging_steps"] * run.arguments["per_device_eval_batch_size"]
    return SpeechProgress(accelerator, "labelling", num_clips, clips_per_line)


def _is_done(split: _Split, progress: SpeechProgress, shard: int, chunk: Callable[[], Any]) -> bool:
    ledger = split.writer.account_of(shard)
    if ledger is not None and split.writer.retry_quarantined:
        split.writer.refuse_other_rows(shard, chunk())
    if ledger is not None:
        progress.skip(ledger.num_in)
    return ledger is not None


def _num_rows(splits: list[_Split]) -> int | None:
    """Return the number of all rows; None where a stream does not say."""
    if any(split.spec.streaming for split in splits):
        return None
    return sum(len(split.rows) for split in splits)


def _num_clips(splits: list[_Split], size: int, share: Share) -> int | None:
    """Return the number of clips in a share; None where a stream does not say."""
    if any(split.spec.streaming for split in splits):
        return None
    return sum(
        min(size, len(split.rows) - start)
        for split in splits
        for shard, start in enumerate(range(0, len(split.rows), size))
        if share.has(shard)
    )


# --- the dataset, once all shards are there -------------------------------------------------------


def _finish_if_all_sealed(
    run: Run, splits: list[_Split], teacher: checkpoint.Whisper, max_bad_fraction: float | None
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
    run: Run, splits: list[_Split], teacher: checkpoint.Whisper, max_bad_fraction: float | None
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
    beside_audio = label_folders.record_of(sources_of)
    hub_layout.write_card(
        run.folder,
        hub_layout.splits_by_config(specs),
        "Pseudo-labelled speech",
        f"Transcripts by `{public_names(run.arguments['model_name_or_path'])}`."
        + label_folders.card_text(beside_audio),
    )
    run.finish(
        **beside_audio,
        ledger=ledger.to_dict(),
        scores={str(spec): _scores(spec, account) for spec, account in accounts.items()},
        windows={str(spec): _windows(spec, account) for spec, account in accounts.items()},
        attention=teacher.attention,
    )
    next_command = f"python run_data_filtering.py {hub_layout.flags_naming(run.folder, specs)}"
    next_command += f" -o {shlex.quote(f'{run.folder}-filtered')}"
    log_end(run, f"{ledger.num_out:,} labelled clips; rows: {ledger}", next_command)


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
