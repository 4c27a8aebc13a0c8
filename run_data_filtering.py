r"""Drop pseudo-labelled rows that are not worth learning from, and build the labels of the rest.

Reads   a dataset written by `run_pseudo_labelling.py` (folder or Hub id).
Writes  the rows that pass, plus `labels`, in Hub layout; with `--vectorize`, log-mel features
        instead of audio; with `--keep_rejected`, the others in a dataset `rejected` beside them;
        `filter_report.md` with a figure; and `run.json` with the rows dropped for each reason.

    python run_data_filtering.py -d my-org/my-labels --dataset_config_name tiny \
        --wer_threshold 10 --text_column_name transcription --max_label_length 128

On a laptop, for a language that is written without spaces (where a WER of 10 % keeps little but
exact matches):

    python run_data_filtering.py -d labelled --cer_threshold 10 -o filtered
"""

from distillery.cli.arguments import DataArguments, RunArguments
from distillery.cli.filtering_arguments import FilterArguments, FilterOutputArguments
from distillery.cli.flags import parse, plus_list
from distillery.text.tokens import TASKS

GROUPS = (DataArguments, FilterArguments, FilterOutputArguments, RunArguments)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import IterableDataset

from distillery.audio.log_mel import LogMel
from distillery.cli import forecast
from distillery.cli.runtime import (
    end_stage,
    log_end,
    log_start,
    make_accelerator,
    open_run,
    stage_run,
    start_trackers,
)
from distillery.data import dataset_card, hub_layout, lineage, schema
from distillery.data.specs import DatasetSpec
from distillery.filtering import filter_report, filter_shards
from distillery.filtering.filter_shards import WORK_FOLDER, Account, ShardWriter, split_files
from distillery.filtering.filter_summary import FilterSummary
from distillery.filtering.filters import TranscriptFilter
from distillery.filtering.row_filter import RowFilter
from distillery.ingest import sources
from distillery.ingest.label_folders import card_text, passed_on
from distillery.ingest.sources import describe_splits, load_splits
from distillery.labelling.bad_clips import BadClips
from distillery.storage.ledger import Ledger
from distillery.storage.progress import ProgressBar
from distillery.storage.runs import Run
from distillery.text.labels import LabelRule
from distillery.whisper import checkpoint

logger = logging.getLogger(__name__)

OWNED = (
    *(WORK_FOLDER, filter_report.REPORT, filter_report.FIGURE),
    *(hub_layout.CARD, hub_layout.FILES),
    *(f"{filter_shards.REJECTED}/{name}" for name in (hub_layout.CARD, hub_layout.FILES)),
)
DEFAULT_MODEL = "openai/whisper-large-v3"
REMEDY = "start over with --overwrite_output_dir"


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
        owned=OWNED,
    )
    if run_args.dry_run:
        speech = _survey(specs)
        row_filter = _row_filter(filter_args, specs[0], run_args.seed)
        forecast.show(accelerator, run, _forecast(run, speech, row_filter))
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    # The work is shared out with --preprocessing_num_workers, not among launched processes.
    if accelerator.is_main_process and not run.is_complete:
        # First: a name that is wrong is told before any model's.
        splits = load_splits(specs, schema.WHISPER_TRANSCRIPT, "--dataset_name")
        for spec, rows in splits.items() if filter_args.vectorize else ():
            sources.require_column(rows, spec, schema.AUDIO, "--vectorize")
        row_filter = _row_filter(filter_args, specs[0], run_args.seed)
        start_trackers(accelerator, run, run_args.wandb_project)
        log_start(run, accelerator, None, None, describe_splits(splits))
        num_workers = max(run_args.preprocessing_num_workers, run_args.dataloader_num_workers)
        bad_clips = BadClips(data_args.max_bad_fraction, _num_rows(splits), REMEDY)
        accounts = {
            spec: _filter_split(run, spec, rows, row_filter, filter_args, num_workers, bad_clips)
            for spec, rows in splits.items()
        }
        summary = _report(run, accounts, filter_args, row_filter)
        ledgers = {spec: ledger for spec, (ledger, _) in accounts.items()}
        of_labels = passed_on(dict(zip(splits, specs, strict=True)))
        _finish(run, ledgers, row_filter, {**of_labels, dataset_card.HOURS: summary.hours()})
        _track(accelerator, sum(ledgers.values(), Ledger()))
    end_stage(run, accelerator)


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
    """Look at the datasets, and refuse what `load_splits` would."""
    column = schema.WHISPER_TRANSCRIPT
    speech = [forecast.survey(spec, column, "--dataset_name") for spec in specs]
    hub_layout.refuse_same_split_twice([dataset.spec for dataset in speech])
    return speech


def _forecast(
    run: Run, speech: list[forecast.Speech], row_filter: RowFilter
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    audio = "audio and " if any(dataset.has_audio for dataset in speech) else ""
    if row_filter.log_mel is None:
        signal, most = audio, forecast.total_bytes(speech)
    else:
        signal, most = "features and ", _features_bytes(speech, row_filter.log_mel)
    num_filtered = forecast.sealed_rows(run.folder, f"{WORK_FOLDER}/*/*/*.parquet")
    return [
        *forecast.data_lines(speech),
        forecast.disk_line(run.folder, most, f"{signal}labels if all rows pass,"),
        ("resume", run.resume_status(f"{num_filtered:,} rows are filtered")),
    ]


def _features_bytes(speech: list[forecast.Speech], log_mel: LogMel) -> float | None:
    seconds = [dataset.audio_s for dataset in speech]
    return None if None in seconds else log_mel.bytes_per_s * sum(s or 0 for s in seconds)


def _row_filter(args: FilterArguments, spec: DatasetSpec, seed: int) -> RowFilter:
    """Put rule and filter together; flags override what the dataset's own record says."""
    labelled = hub_layout.read_run_record(spec.name)
    name = args.model_name_or_path or labelled.get("model_name_or_path") or DEFAULT_MODEL
    language = args.language or labelled.get("language")
    processor = checkpoint.load_processor(name)
    if args.max_label_length > processor.max_label_length:
        logger.info("labels are limited by the model's %d positions", processor.max_label_length)
    max_label_length = min(args.max_label_length, processor.max_label_length)
    rule = LabelRule(
        tokens=processor.tokens,
        tokenizer=processor.tokenizer,
        language=language,
        task=args.task or labelled.get("task") or TASKS[0],
        max_positions=processor.max_label_length,
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        seed=seed,
        max_label_length=max_label_length,
    )
    processor.tokens.prefix(language, rule.task, True)  # fails by name if they do not fit
    normalizer = processor.normalizer(language, rule.task, args.normalizer)
    logger.info("texts are compared under the normaliser %s", normalizer.id)
    return RowFilter(
        rule,
        TranscriptFilter(
            normalizer=normalizer,
            wer_threshold=args.wer_threshold,
            cer_threshold=args.cer_threshold,
            min_duration_s=args.min_duration_in_seconds,
            max_duration_s=args.max_duration_in_seconds,
            max_label_length=max_label_length,
            drop_truncated=not args.keep_truncated,
            min_avg_logprob=args.min_avg_logprob,
            max_compression_ratio=args.max_compression_ratio,
            drop_all_capitals=args.drop_all_capitals,
            strict=args.strict_limits,
            scores_all=True,
        ),
        processor.log_mel if args.vectorize else None,
    )


def _num_rows(splits: Mapping[DatasetSpec, sources.Rows]) -> int | None:
    """Return the number of rows of all splits; None where a stream does not say."""
    sizes = [None if isinstance(r, IterableDataset) else len(r) for r in splits.values()]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _filter_split(
    run: Run,
    spec: DatasetSpec,
    rows: sources.Rows,
    row_filter: RowFilter,
    filter_args: FilterArguments,
    num_workers: int,
    bad_clips: BadClips,
) -> Account:
    """Filter one split into sealed shards; return its account."""
    rejected = filter_shards.rejected_files(run.outputs, spec)
    kept_too = rejected if filter_args.keep_rejected else None
    files = split_files(run.outputs, spec)
    writer = ShardWriter(row_filter, rows.features, files, kept_too, len(files.all_sealed()))
    ledger, summary = Ledger(), FilterSummary(row_filter.filter.ranked_by)
    num_rows = None if isinstance(rows, IterableDataset) else len(rows)
    progress = ProgressBar(desc=f"filtering {spec.split}", unit=" rows", total=num_rows)
    for shard, of_shard in filter_shards.filter_rows(
        writer, rows, filter_args.rows_per_shard, num_workers
    ):
        ledger += shard
        bad_clips.add(shard)
        summary += of_shard
        progress.update(shard.num_in)
    progress.close()
    logger.info("%s %s: %s", spec.config, spec.split, ledger)
    return ledger, summary


def _report(
    run: Run, accounts: Mapping[DatasetSpec, Account], args: FilterArguments, row_filter: RowFilter
) -> FilterSummary:
    """Write the report, and the rows that were dropped where they are wanted; return the summary.

    That comes before the rows that pass are published: it also tells why there are none.
    """
    values = ((each, getattr(args, each.name)) for each in fields(args))
    given = [f"--{each.name} {value}" for each, value in values if value != each.default]
    ledgers, summaries = zip(*accounts.values(), strict=True)
    summary = sum(summaries, FilterSummary(row_filter.filter.ranked_by))
    normalizer = row_filter.filter.normalizer
    filter_report.write(run.outputs, summary, sum(ledgers, Ledger()), given, normalizer)
    if args.keep_rejected:
        filter_shards.publish_rejected(run.outputs, accounts)
    return summary


def _finish(
    run: Run, ledgers: dict[DatasetSpec, Ledger], row_filter: RowFilter, notes: dict[str, Any]
) -> None:
    """Check the account, publish the shards, and write card and record; `notes` adds to it."""
    ledger = sum(ledgers.values(), Ledger())
    ledger.check(run.arguments["max_bad_fraction"], REMEDY)
    if ledger.num_out == 0:
        raise ValueError(f"no row passes the filter: {ledger}; loosen its limits")
    specs = list(ledgers)
    published = [split_files(run.outputs, spec).publish() for spec in specs]
    ledger.check_written(sum(map(hub_layout.num_rows, published)))
    results = {
        "ledger": ledger.to_dict(),
        "normalizer": row_filter.filter.normalizer.id,
        "language": row_filter.rule.language,
        "task": row_filter.rule.task,
        **notes,
    }
    _write_card(run, specs, results, [path for files in published for path in files])
    run.finish(**results)
    log_end(
        run,
        f"{ledger.num_out:,} rows to learn from; rows: {ledger}",
        *_next_commands(run, specs, row_filter.rule.language),
    )


def _write_card(
    run: Run, specs: list[DatasetSpec], results: dict[str, Any], files: list[Path]
) -> None:
    """Write the card: what was kept of what, and why; what its own source was made of; a row."""
    made = lineage.MadeDataset(
        str(run.folder), {"stage": run.stage, "arguments": run.arguments, **results}
    )
    behind = lineage.made_datasets(made.made_of)
    first = specs[0]
    parts = [
        f"Rows to learn from, with their decoder labels in `labels`.{card_text(results)}",
        *map(dataset_card.describe, [made, *behind]),
        f"Distributions and the rows near the limits are in `{filter_report.REPORT}`; "
        "`run.json` holds every flag and version.",
        dataset_card.example(files),
        dataset_card.usage(run.folder.resolve().name, str(first.config), str(first.split)),
    ]
    hub_layout.write_card(
        run.folder,
        hub_layout.splits_by_config(specs),
        "Filtered pseudo-labels",
        "\n\n".join(part for part in parts if part),
        header=dataset_card.header(
            made.language, made.flags["license"], lineage.public_sources(made.made_of)
        ),
    )


def _next_commands(run: Run, specs: list[DatasetSpec], language: str | None) -> list[str]:
    """Return what makes a student of the teacher that labelled the rows, and trains it."""
    labelled = hub_layout.read_run_record(plus_list(run.arguments["dataset_name"])[0])
    teacher = shlex.quote(labelled.get("model_name_or_path") or "TEACHER")
    data = hub_layout.flags_naming(run.folder, specs, to_train=True)
    spoken = f" --language {language}" if language else ""
    return [
        f"python create_student_model.py --teacher_checkpoint {teacher} --save_dir student-init",
        f"python run_distillation.py -m student-init --teacher {teacher} {data}{spoken} -o student",
    ]


def _track(accelerator: Accelerator, ledger: Ledger) -> None:
    """Give the trackers the number of rows, dropped and unusable ones by reason."""
    accelerator.log(
        {
            "rows/in": ledger.num_in,
            "rows/out": ledger.num_out,
            **{f"dropped/{reason}": count for reason, count in ledger.dropped.items()},
            **{f"quarantined/{reason}": count for reason, count in ledger.quarantined.items()},
        }
    )


if __name__ == "__main__":
    main(*ARGUMENTS)
