"""Drop pseudo-labelled rows that are not worth learning from, and build the labels of the rest.

Reads   a dataset written by `run_pseudo_labelling.py` (folder or Hub id).
Writes  the rows that pass, plus `labels`, in Hub layout; with `--vectorize`, log-mel features
        instead of audio; and `run.json` with the number of rows dropped for each reason.

    python run_data_filtering.py -d my-org/my-labels --dataset_config_name tiny \
        --wer_threshold 10 --text_column_name transcription --max_label_length 128

On a laptop, for a language that is written without spaces (where a WER of 10 % keeps little but
exact matches):

    python run_data_filtering.py -d labelled --cer_threshold 10 -o filtered
"""

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from distillery.audio.decoding import AudioError, decode_audio
from distillery.audio.log_mel import LogMel
from distillery.cli import forecast
from distillery.cli.arguments import (
    DataArguments,
    OutputArguments,
    RunArguments,
    at_least,
    flag,
    known_language,
    one_of,
    parse,
    plus_list,
    within,
)
from distillery.cli.runtime import make_accelerator, open_run, publish, stage_run
from distillery.data import column_types, hub_layout, schema, sources
from distillery.data.filters import TranscriptFilter
from distillery.data.specs import DatasetSpec
from distillery.storage.ledger import Ledger
from distillery.storage.runs import Run
from distillery.storage.shards import read_seal, write_sealed
from distillery.text.labels import LabelRule, num_text_labels, plain_text
from distillery.text.normalizers import VARIANTS
from distillery.text.tokens import TASKS
from distillery.whisper import checkpoint

logger = logging.getLogger(__name__)

WORK_FOLDER = ".filtered"  # sealed shards, renamed into place when all are there


@dataclass(frozen=True)
class FilterOutputArguments(OutputArguments):
    """Where the stage writes; by default beside its input, named after its threshold."""

    output_dir: str | None = flag(
        None,
        "Folder to write to; default: the dataset's name, then '.wer_<threshold>', "
        "'.cer_<threshold>' and '.vectorized' as they apply.",
        "-o",
        resumable=True,
    )


@dataclass(frozen=True)
class FilterArguments:
    """What only this stage decides."""

    wer_threshold: float | None = flag(
        None, "Drop rows whose word error rate against the reference is higher, in percent."
    )
    cer_threshold: float | None = flag(
        None, "Drop rows whose character error rate against the reference is higher, in percent."
    )
    normalizer: str = flag(
        "auto", f"How texts are normalised before they are compared: {', '.join(VARIANTS)}."
    )
    min_duration_in_seconds: float | None = flag(None, "Drop shorter clips.")
    max_duration_in_seconds: float | None = flag(None, "Drop longer clips.")
    max_label_length: int = flag(
        448, "Drop rows with more label ids than this, prefix and end included, prompt not."
    )
    min_avg_logprob: float | None = flag(
        None, "Drop rows that the teacher was less sure of; for data without references."
    )
    max_compression_ratio: float | None = flag(
        None, "Drop rows whose transcript repeats itself more; Whisper takes 2.4 for a loop."
    )
    keep_truncated: bool = flag(False, "Keep transcripts that ran into their maximum length.")
    timestamp_probability: float = flag(
        0.2, "Share of the rows whose labels keep the timestamps that the teacher wrote."
    )
    condition_on_prev_probability: float = flag(
        0.2, "Share of the rows with a window before them whose labels begin with its transcript."
    )
    vectorize: bool = flag(
        False, "Store log-mel features instead of audio: about 15 times the disk, less CPU later."
    )
    model_name_or_path: str | None = flag(
        None,
        "Checkpoint whose tokenizer and features are used; default: the one that labelled the "
        "dataset, by its run.json, else openai/whisper-large-v3.",
        "-m",
    )
    language: str | None = flag(None, "Language; default: as the dataset was labelled.", "-l")
    task: str | None = flag(
        None, f"Task, {' or '.join(TASKS)}; default: as the dataset was labelled.", "-t"
    )
    rows_per_shard: int = flag(1000, "Rows of the input that make one file of the output.")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "wer_threshold", 0),
            *at_least(self, "cer_threshold", 0),
            *one_of(self, "normalizer", VARIANTS),
            *at_least(self, "min_duration_in_seconds", 0),
            *at_least(self, "max_duration_in_seconds", self.min_duration_in_seconds or 0),
            *at_least(self, "max_label_length", 8),
            *within(self, "timestamp_probability", 0, 1),
            *within(self, "condition_on_prev_probability", 0, 1),
            *known_language(self.language),
            *([] if self.task is None else one_of(self, "task", TASKS)),
            *at_least(self, "rows_per_shard", 1),
        ]


GROUPS = (DataArguments, FilterArguments, FilterOutputArguments, RunArguments)


def main(
    data_args: DataArguments,
    filter_args: FilterArguments,
    output_args: FilterOutputArguments,
    run_args: RunArguments,
) -> None:
    """Filter every split and write the dataset."""
    folder = output_args.output_dir or _default_output(data_args.dataset_name, filter_args)
    accelerator = make_accelerator(run_args, folder, "float32")
    specs = data_args.specs()
    run = stage_run(
        "run_data_filtering",
        (data_args, filter_args, output_args, run_args),
        Path(folder),
        {str(spec): sources.fingerprint(spec) for spec in specs},
        owned=(WORK_FOLDER, "README.md", "*/*.parquet"),
    )
    if run_args.dry_run:
        speech = _survey(specs)
        work = _work(filter_args, hub_layout.read_run_record(specs[0].name), run_args.seed)
        forecast.show(accelerator, run.stage, _forecast(run, speech, work))
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not accelerator.is_main_process:
        return  # the work is shared out with --preprocessing_num_workers instead
    if not run.is_complete:
        splits = _load_splits(specs)  # first: a name that is wrong is told before any model's
        work = _work(filter_args, hub_layout.read_run_record(specs[0].name), run_args.seed)
        ledgers = {
            spec: _filter_split(spec, rows, work, run, run_args.preprocessing_num_workers)
            for spec, rows in splits.items()
        }
        _finish(run, ledgers, data_args.max_bad_fraction, work)
    publish(run, output_args, "dataset")


def _default_output(dataset_name: str, args: FilterArguments) -> str:
    if len(plus_list(dataset_name)) > 1:
        raise ValueError("--output_dir must be given where several datasets are filtered")
    local = Path(dataset_name).exists()
    parts = [dataset_name.rstrip("/") if local else dataset_name.rsplit("/", 1)[-1]]
    if args.wer_threshold is not None:
        parts.append(f"wer_{args.wer_threshold:.1f}")
    if args.cer_threshold is not None:
        parts.append(f"cer_{args.cer_threshold:.1f}")
    if args.vectorize:
        parts.append("vectorized")
    return ".".join(parts if len(parts) > 1 else [*parts, "filtered"])


def _survey(specs: list[DatasetSpec]) -> list[forecast.Speech]:
    """Look at the datasets, and refuse what `_load_splits` would."""
    column = schema.WHISPER_TRANSCRIPT
    speech = [forecast.survey(spec, column, "--dataset_name") for spec in specs]
    hub_layout.refuse_same_split_twice([one.spec for one in speech])
    return speech


def _forecast(run: Run, speech: list[forecast.Speech], work: "_Work") -> list[forecast.Line]:
    """Say what this run would do and take."""
    most, what = forecast.total_bytes(speech), "audio and labels if all rows pass,"
    if work.log_mel is not None:
        most, what = _features_bytes(speech, work.log_mel), "features and labels if all rows pass,"
    num_filtered = forecast.sealed_rows(run.folder, f"{WORK_FOLDER}/*/*/*.parquet")
    return [
        *forecast.data_lines(speech),
        forecast.disk_line(run.folder, most, what),
        ("resume", run.resume_status(f"{num_filtered:,} rows are filtered")),
    ]


def _features_bytes(speech: list[forecast.Speech], log_mel: LogMel) -> float | None:
    seconds = [one.audio_s for one in speech]
    if None in seconds:
        return None
    frames = sum(s or 0 for s in seconds) * log_mel.num_frames / log_mel.window_s
    return frames * log_mel.num_mels * np.dtype(np.float16).itemsize


def _load_splits(specs: list[DatasetSpec]) -> dict[DatasetSpec, sources.Rows]:
    found = []
    for spec in specs:
        rows = sources.load(spec)
        sources.require_column(rows, spec, schema.WHISPER_TRANSCRIPT, "--dataset_name")
        found.append((sources.with_split(spec, rows), rows))
    hub_layout.refuse_same_split_twice([spec for spec, _ in found])
    return dict(found)


@dataclass(frozen=True)
class _Work:
    """What is done to each row; small enough to be sent to other processes."""

    rule: LabelRule
    filter: TranscriptFilter
    log_mel: LogMel | None  # where features are stored instead of audio


def _work(args: FilterArguments, labelled: dict[str, Any], seed: int) -> _Work:
    """Put rule and filter together; flags go before what the dataset's own record says."""
    name = args.model_name_or_path or labelled.get("model_name_or_path")
    language = args.language or labelled.get("language")
    processor = checkpoint.load_processor(name or "openai/whisper-large-v3")
    if args.max_label_length > processor.max_label_length:
        logger.info("labels are limited by the model's %d positions", processor.max_label_length)
    rule = LabelRule(
        tokens=processor.tokens,
        tokenizer=processor.tokenizer,
        language=language,
        task=args.task or labelled.get("task") or TASKS[0],
        max_positions=processor.max_label_length,
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        seed=seed,
    )
    processor.tokens.prefix(language, rule.task, True)  # fails by name if they do not fit
    normalizer = processor.normalizer(language, rule.task, args.normalizer)
    logger.info("texts are compared under the normaliser %s", normalizer.id)
    return _Work(
        rule,
        TranscriptFilter(
            normalizer=normalizer,
            wer_threshold=args.wer_threshold,
            cer_threshold=args.cer_threshold,
            min_duration_s=args.min_duration_in_seconds,
            max_duration_s=args.max_duration_in_seconds,
            max_label_length=min(args.max_label_length, processor.max_label_length),
            drop_truncated=not args.keep_truncated,
            min_avg_logprob=args.min_avg_logprob,
            max_compression_ratio=args.max_compression_ratio,
        ),
        processor.log_mel if args.vectorize else None,
    )


def _filter_split(
    spec: DatasetSpec, rows: sources.Rows, work: _Work, run: Run, num_workers: int
) -> list[Ledger]:
    """Filter one split into sealed shards; return the account of each."""
    folder = _work_folder(run, spec)
    features = _features(rows, work)
    size = run.arguments["rows_per_shard"]
    filter_chunk = partial(_filter_chunk, folder=folder, work=work, features=features)
    ledgers = []
    progress = tqdm(desc=f"filtering {spec.split}", unit=" shards")
    with _executor(num_workers if isinstance(rows, Dataset) else 1) as executor:
        chunks = sources.iterate_chunks(rows, size)
        # Sent one by one, a stream's rows are not all held in memory.
        results = executor.map(filter_chunk, chunks) if executor else map(filter_chunk, chunks)
        for ledger in results:
            ledgers.append(ledger)
            progress.update()
    progress.close()
    logger.info("%s: %s", spec, sum(ledgers, Ledger()))
    return ledgers


def _work_folder(run: Run, spec: DatasetSpec) -> Path:
    return run.folder / WORK_FOLDER / str(spec.config) / str(spec.split)


def _executor(num_workers: int) -> Any:
    """Return a pool of processes, or, for one worker, a stand-in that yields None."""
    if num_workers == 1:
        return nullcontext()
    # Forking a process that runs threads (torch's, the tokenizer's) can hang; a fresh one cannot.
    return ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))


def _filter_chunk(
    numbered: tuple[int, Any], folder: Path, work: _Work, features: Features
) -> Ledger:
    """Write the rows of one chunk that pass to their sealed shard; return the chunk's account."""
    index, chunk = numbered
    path = folder / f"{index:05d}.parquet"
    ledger = read_seal(path)
    if ledger is None:
        ledger = Ledger(num_in=len(chunk))
        kept = _kept(chunk, work, ledger)
        rows = list(_output_rows(chunk, kept, work, ledger))
        ledger.num_out = len(rows)
        write_sealed(path, ledger, partial(hub_layout.write_parquet, rows=rows, features=features))
    return ledger


def _kept(chunk: Any, work: _Work, ledger: Ledger) -> dict[int, list[int]]:
    """Return the labels of the rows that pass, by their place in the chunk.

    Only text and metadata are read here; audio is read for the rows that are kept.
    """
    slim = chunk.select_columns(_metadata(chunk)) if isinstance(chunk, Dataset) else chunk
    kept = {}
    for place, row in enumerate(slim):
        labels = work.rule(
            row[schema.ID],
            row[schema.WHISPER_TRANSCRIPT],
            row.get(schema.CONDITION_ON_PREV),
            truncated=bool(row.get(schema.TRUNCATED)),
        )
        reason = work.filter.reason(
            row,
            plain_text(labels, work.rule.tokens, work.rule.tokenizer),
            num_text_labels(labels, work.rule.tokens),
        )
        if reason is None:
            kept[place] = labels
        else:
            ledger.dropped[reason] += 1
    return kept


def _metadata(chunk: Dataset) -> list[str]:
    heavy = (schema.AUDIO, schema.INPUT_FEATURES)
    return [name for name in chunk.column_names if name not in heavy]


def _output_rows(
    chunk: Any, kept: dict[int, list[int]], work: _Work, ledger: Ledger
) -> Iterator[dict[str, Any]]:
    rows = chunk.select(list(kept)) if isinstance(chunk, Dataset) else (chunk[i] for i in kept)
    for row, labels in zip(rows, kept.values(), strict=True):
        try:
            signal = _signal(row, work.log_mel)
        except AudioError as error:
            logger.warning("clip %s %s", row[schema.ID], error)
            ledger.quarantined["audio"] += 1
            continue
        yield {**row, **signal, schema.LABELS: labels}


def _signal(row: dict[str, Any], log_mel: LogMel | None) -> dict[str, Any]:
    """Return the row's audio, or its features where those are stored."""
    if log_mel is None:
        return {schema.AUDIO: hub_layout.embed_audio(row)}
    wave = decode_audio(row[schema.AUDIO], log_mel.sampling_rate, log_mel.window_s)
    frames = log_mel.real_frames(wave).numpy().astype(np.float16)
    return {schema.INPUT_FEATURES: frames.tolist()}


def _features(rows: sources.Rows, work: _Work) -> Features:
    """Return the columns of the output: those of the input, labels, and features for audio."""
    source = dict(rows.features or column_types.source_features())
    if work.log_mel is None:
        source[schema.AUDIO] = column_types.AUDIO_TYPE
    else:
        source.pop(schema.AUDIO, None)
        source[schema.INPUT_FEATURES] = List(List(Value("float16")))
    return Features({**source, schema.LABELS: column_types.TOKEN_IDS})


def _finish(
    run: Run,
    ledgers: dict[DatasetSpec, list[Ledger]],
    max_bad_fraction: float,
    work: _Work,
) -> None:
    """Check the account, publish the shards, write card and record, and clear the work folder."""
    ledger = sum((one for split in ledgers.values() for one in split), Ledger())
    ledger.check(max_bad_fraction)
    if ledger.num_out == 0:
        raise ValueError(f"no row passes the filter: {ledger}; loosen its limits")
    configs: dict[str, list[str]] = {}
    for spec, shards in ledgers.items():
        configs.setdefault(str(spec.config), []).append(str(spec.split))
        _publish(run, spec, len(shards))
    hub_layout.write_card(run.folder, configs, "Filtered pseudo-labels", f"Rows: {ledger}.")
    run.finish(
        ledger=ledger.to_dict(),
        normalizer=work.filter.normalizer.id,
        language=work.rule.language,
        task=work.rule.task,
    )
    shutil.rmtree(run.folder / WORK_FOLDER)


def _publish(run: Run, spec: DatasetSpec, num_shards: int) -> None:
    """Give the shards of a split their final names."""
    for index in range(num_shards):
        target = hub_layout.shard_path(
            run.folder, str(spec.config), str(spec.split), index, num_shards
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        (_work_folder(run, spec) / f"{index:05d}.parquet").replace(target)


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__))
