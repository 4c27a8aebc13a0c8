"""What labelling takes from its flags: splits, and the plain values of `distillery.labelling`."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from distillery.cli.arguments import DecodingArguments
from distillery.cli.labelling_arguments import DATASET, IN_ORDER, LABELS, LabellingArguments
from distillery.cli.speech_progress import SpeechProgress
from distillery.data import column_types, packed_windows, schema
from distillery.data.collators import DurationLimits
from distillery.data.hub_layout import SplitFiles
from distillery.data.packed_windows import WindowPacking
from distillery.data.packing import PACKERS
from distillery.data.specs import DatasetSpec
from distillery.ingest import label_folders, sources
from distillery.labelling.labeller import Prompts
from distillery.labelling.shards import ShardWriter, dataset_features
from distillery.labelling.transcripts import Transcripts
from distillery.storage.runs import Run
from distillery.storage.shares import Share
from distillery.whisper import checkpoint
from distillery.whisper.decoding import Decoding

logger = logging.getLogger(__name__)

# The shards, until all of them are there and get their names in the dataset. Their seals, which
# hold the account, stay, so that a damaged file can be made again alone.
WORK_FOLDER = ".labels"
PROMPT_COLUMNS = ("language_column_name", "task_column_name")


def prompts_of(
    args: DecodingArguments, labelling_args: LabellingArguments, teacher: checkpoint.Whisper
) -> Prompts:
    """Return what the teacher is asked for.

    Raises:
        ValueError: transcripts may be longer than the model's positions, or it does not know the
            language.
    """
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
        args.temperature_fallback,
    )
    return Prompts(
        decoding.fitted_to(teacher, detect_language=True),
        teacher.tokens,
        labelling_args.language_column_name,
        labelling_args.task_column_name,
    )


@dataclass
class Split:
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
        if self.num_shards is None:
            return False
        return all(self.writer.is_whole(shard) for shard in range(self.num_shards))


def splits_of(
    specs: list[DatasetSpec], run: Run, teacher: checkpoint.Whisper, prompts_vary: bool
) -> list[Split]:
    """Load the datasets, and put together what makes their files.

    Raises:
        ValueError: a dataset lacks a column or, for labels alone, ids; or two would be written to
            the same files.
    """
    flags, splits = run.arguments, []
    for spec in specs if flags["output_format"] == LABELS else ():
        label_folders.refuse_numbers_of_stream(spec)
    transcripts = Transcripts(
        teacher.tokens, teacher.tokenizer, flags["decode_token_ids"], teacher.normalizer
    )
    loaded = sources.load_splits(specs, schema.AUDIO, "--audio_column_name")
    for source, (spec, rows) in zip(specs, loaded.items(), strict=True):
        for name in PROMPT_COLUMNS:
            if flags[name] is not None:
                sources.require_column(rows, spec, flags[name], f"--{name}")
        packing = _packing(rows, flags, teacher)
        columns = rows.features if packing is None else column_types.SEGMENT_TYPES
        features = dataset_features(
            columns,
            flags["decode_token_ids"],
            prompts_vary,
            flags["temperature_fallback"],
            flags["output_format"] == DATASET,
        )
        if packing is not None:
            _say_what_packing_means(spec, packing, set(rows.column_names) - set(features))
        files = SplitFiles(run.outputs, WORK_FOLDER, str(spec.config), str(spec.split))
        writer = ShardWriter(files, features, transcripts, packing, run.verifies)
        splits.append(Split(spec, source, rows, writer))
    return splits


def _packing(
    rows: sources.Rows, flags: Mapping[str, Any], teacher: checkpoint.Whisper
) -> WindowPacking | None:
    """Return how the clips of a split share windows; None where each has its own."""
    if not flags["concatenate_audio"]:
        return None
    columns = []
    if flags["packing"] == IN_ORDER:
        if not packed_windows.has_neighbours(rows):
            return None
        columns = [name for name in packed_windows.SAME_RECORDING if name in rows.column_names]
    prompts = [flags[name] for name in PROMPT_COLUMNS if flags[name] is not None]
    return WindowPacking(PACKERS[flags["packing"]], [*columns, *prompts], teacher.log_mel)


def _say_what_packing_means(
    spec: DatasetSpec, packing: WindowPacking, left_out: Collection[str]
) -> None:
    alike = f" of one {' and '.join(packing.columns)}" if packing.columns else ""
    without = f", without the columns {', '.join(sorted(left_out))}" if left_out else ""
    logger.info(
        "%s: clips%s share windows, which are the rows that are written%s; --concatenate_audio "
        "False gives each clip its own",
        *(spec, alike, without),
    )


def duration_limits(flags: Mapping[str, Any], window_s: float) -> DurationLimits:
    """Return which clips are wanted.

    Raises:
        ValueError: longer ones than the model's window.
    """
    longest_s = flags["max_duration_in_seconds"]
    if longest_s is not None and longest_s > window_s:
        raise ValueError(
            f"--max_duration_in_seconds {longest_s:g} is longer than the model's window of "
            f"{window_s:g} s: give that, or less; --segment vad cuts long recordings"
        )
    return DurationLimits(flags["min_duration_in_seconds"], longest_s)


def num_workers(flags: Mapping[str, Any]) -> int:
    """Return how many processes decode; one preprocessing worker is this process."""
    others = flags["preprocessing_num_workers"]
    return int(flags["dataloader_num_workers"] or (others if others > 1 else 0))


def progress_of(
    accelerator: Accelerator, run: Run, splits: list[Split], share: Share
) -> SpeechProgress:
    """Return what counts the clips of a share."""
    clips = num_clips(splits, run.arguments["rows_per_shard"], share)
    clips_per_line = run.arguments["logging_steps"] * run.arguments["per_device_eval_batch_size"]
    return SpeechProgress(accelerator, "labelling", clips, clips_per_line)


def num_rows(splits: list[Split]) -> int | None:
    """Return the number of all rows; None where a stream does not say."""
    if any(split.spec.streaming for split in splits):
        return None
    return sum(len(split.rows) for split in splits)


def num_clips(splits: list[Split], size: int, share: Share) -> int | None:
    """Return the number of clips in a share; None where a stream does not say."""
    if any(split.spec.streaming for split in splits):
        return None
    return sum(
        min(size, len(split.rows) - start)
        for split in splits
        for shard, start in enumerate(range(0, len(split.rows), size))
        if share.has(shard)
    )
