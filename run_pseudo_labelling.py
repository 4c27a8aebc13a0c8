r"""Let a Whisper model transcribe a dataset, and store what it writes beside the audio.

Reads   any dataset with audio (see `--dataset_name`); a reference text is optional.
Writes  the same rows in Hub layout, plus `whisper_transcript`, `condition_on_prev`, `avg_logprob`,
        `compression_ratio` and `truncated`; and `run.json`.

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
from distillery.cli.flags import at_least, flag, parse


@dataclass(frozen=True)
class LabellingArguments:
    """Labelling."""

    per_device_eval_batch_size: int = flag(
        16, "Windows that are decoded at once.", "-b", resumable=True
    )
    max_label_length: int = flag(
        256, "Most ids of one transcript; a longer one is cut and flagged `truncated`."
    )
    decode_token_ids: bool = flag(
        True,
        "Store text instead of token ids. Ids keep exactly what the teacher wrote, as a model for "
        "speculative decoding needs; text is tokenised again for training.",
    )
    rows_per_shard: int = flag(1000, "Rows in each file; a killed process repeats at most one.")
    retry_quarantined: bool = flag(
        False,
        "Label the clips that could not be used before, and have been mended since; all other "
        "labels stay.",
        resumable=True,
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "max_label_length", 8),
            *at_least(self, "rows_per_shard", 1),
        ]


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
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from distillery.cli import forecast
from distillery.cli.runtime import (
    end_stage,
    load_model,
    load_outline,
    log_end,
    log_start,
    make_accelerator,
    open_run,
    stage_run,
    start_trackers,
)
from distillery.cli.speech_progress import SpeechProgress
from distillery.data import hub_layout, label_shards, schema, sources
from distillery.data.collators import PROBLEM, WindowCollator, Windows
from distillery.data.hub_layout import SplitFiles
from distillery.data.sources import describe_splits, load_splits
from distillery.data.specs import DatasetSpec
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Outputs
from distillery.storage.publication import public_names
from distillery.storage.runs import Run
from distillery.storage.shards import read_seal
from distillery.text import labels
from distillery.text.error_rates import score
from distillery.text.normalizers import raw_text
from distillery.whisper import checkpoint, windows

logger = logging.getLogger(__name__)

# Sealed shards of labels alone. They stay, so that a damaged file of the dataset can be made again
# without the teacher.
WORK_FOLDER = ".labels"


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    labelling_args: LabellingArguments,
    output_args: OutputArguments,
    run_args: RunArguments,
) -> None:
    """Label every split, then write the dataset."""
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
        decoding = _decoding(decoding_args, labelling_args.max_label_length, teacher)
        forecast.show(accelerator, run, _forecast(accelerator, run, specs, teacher, decoding))
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        teacher = load_model(model_args, accelerator)
        decoding = _decoding(decoding_args, labelling_args.max_label_length, teacher)
        splits = _splits_of(specs, run.outputs)
        start_trackers(accelerator, run, run_args.wandb_project)
        _log_start(accelerator, run, splits)
        _label(splits, teacher, decoding, labelling_args, run_args, accelerator)
        accelerator.wait_for_everyone()
        for split in splits:
            _write_dataset(split, teacher, labelling_args, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(run, splits, teacher, decoding, data_args.max_bad_fraction)
    end_stage(run, accelerator)


def _decoding(
    args: DecodingArguments, max_length: int, teacher: checkpoint.Whisper
) -> windows.Decoding:
    if max_length > teacher.max_label_length:
        raise ValueError(
            f"--max_label_length {max_length} is more than the model's "
            f"{teacher.max_label_length} positions"
        )
    return windows.Decoding(
        args.language,
        args.task,
        args.return_timestamps,
        args.generation_num_beams,
        max_length,
    ).fitted_to(teacher)


def _forecast(
    accelerator: Accelerator,
    run: Run,
    specs: list[DatasetSpec],
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    batch_size = run.arguments["per_device_eval_batch_size"]
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    hub_layout.refuse_same_split_twice([dataset.spec for dataset in speech])
    num_labelled = forecast.sealed_rows(run.folder, f"{WORK_FOLDER}/*/*/*.parquet")
    return [
        *forecast.data_lines(speech),
        forecast.model_line(run.arguments["model_name_or_path"], teacher),
        forecast.batches(forecast.total_rows(speech), batch_size, accelerator.num_processes),
        forecast.decoding_memory(teacher, batch_size, decoding.num_beams, decoding.max_length),
        forecast.disk_line(run.folder, forecast.total_bytes(speech), "audio and labels"),
        ("resume", run.resume_status(f"{num_labelled:,} rows are labelled")),
    ]


@dataclass(frozen=True)
class _Split:
    """One split of the input, and its files in the output."""

    spec: DatasetSpec
    rows: sources.Rows
    files: SplitFiles


def _splits_of(specs: list[DatasetSpec], outputs: Outputs) -> list[_Split]:
    loaded = load_splits(specs, schema.AUDIO, "--audio_column_name")
    return [
        _Split(spec, rows, SplitFiles(outputs, WORK_FOLDER, str(spec.config), str(spec.split)))
        for spec, rows in loaded.items()
    ]


def _log_start(accelerator: Accelerator, run: Run, splits: list[_Split]) -> None:
    rows = describe_splits({split.spec: split.rows for split in splits})
    flags = run.arguments
    log_start(run, accelerator, flags["model_name_or_path"], flags["dtype"], rows)


# --- labelling: which rows, in which process, until all shards are sealed -----------------------


def _label(
    splits: list[_Split],
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
    labelling_args: LabellingArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> None:
    """Label this process's share of the chunks of rows, less those that are sealed already."""
    size = labelling_args.rows_per_shard
    num_clips = _num_clips(splits, size, accelerator)
    progress = SpeechProgress(accelerator, "labelling", num_clips, run_args.logging_steps)
    for split in splits:
        for index, chunk in sources.iterate_chunks(split.rows, size):
            if not _is_mine(index, accelerator):
                continue
            path = split.files.sealed(index)
            if read_seal(path) is not None and not labelling_args.retry_quarantined:
                progress.skip(len(chunk))
                continue
            there = label_shards.usable(path, chunk)
            left = label_shards.without(chunk, there)
            progress.skip(len(chunk) - len(left))
            if not len(left):
                continue
            rows = []
            for batch in _batches(left, teacher, labelling_args, run_args.dataloader_num_workers):
                rows += _label_batch(batch, teacher, decoding, accelerator)
                seconds = sum(row.get(schema.DURATION) or 0.0 for row in batch.rows)
                progress.advance(len(batch.rows), seconds)
            if not there or any(not row[PROBLEM] for row in rows):
                rows = label_shards.in_order(chunk, [*there.values(), *rows])
                label_shards.seal(split.files, index, rows)
    progress.close()


def _is_mine(index: int, accelerator: Accelerator) -> bool:
    """Tell whether this process makes a chunk: they are dealt out in turn."""
    return bool(index % accelerator.num_processes == accelerator.process_index)


def _num_clips(splits: list[_Split], size: int, accelerator: Accelerator) -> int | None:
    """Return the number of clips in this process's chunks; None where a stream does not say."""
    if any(split.spec.streaming for split in splits):
        return None
    return sum(
        min(size, len(split.rows) - start)
        for split in splits
        for index, start in enumerate(range(0, len(split.rows), size))
        if _is_mine(index, accelerator)
    )


def _batches(
    chunk: Any, teacher: checkpoint.Whisper, args: LabellingArguments, num_workers: int
) -> Iterator[Windows]:
    return iter(
        DataLoader(
            chunk,
            batch_size=args.per_device_eval_batch_size,
            num_workers=num_workers,
            collate_fn=WindowCollator(teacher.log_mel),
        )
    )


def _label_batch(
    batch: Windows,
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    transcripts: list[windows.Transcript] = []
    if batch.features is not None:
        features = batch.features.to(accelerator.device)
        transcripts = windows.transcribe_windows(teacher, features, decoding)
    usable = iter(transcripts)
    for row in batch.rows:
        if row[PROBLEM]:
            logger.warning("clip %s %s", row[schema.ID], row[PROBLEM])
    return [row if row[PROBLEM] else {**row, **_label_columns(next(usable))} for row in batch.rows]


def _label_columns(transcript: windows.Transcript) -> dict[str, Any]:
    return {
        schema.WHISPER_TRANSCRIPT: transcript.ids,
        schema.AVG_LOGPROB: transcript.avg_logprob,
        schema.TRUNCATED: transcript.truncated,
    }


# --- the dataset: labels and audio joined by id --------------------------------------------------


def _write_dataset(
    split: _Split,
    teacher: checkpoint.Whisper,
    labelling_args: LabellingArguments,
    accelerator: Accelerator,
) -> None:
    """Write this process's share of the dataset's files; one that is there is whole."""
    sealed = split.files.all_sealed()
    decode_token_ids = labelling_args.decode_token_ids
    features = label_shards.dataset_features(split.rows.features, decode_token_ids)
    for index, chunk in sources.iterate_chunks(split.rows, labelling_args.rows_per_shard):
        path = split.files.published(index, len(sealed))
        if _is_mine(index, accelerator) and not path.exists():
            added = label_shards.contract_rows(
                sealed, index, teacher.tokens, teacher.tokenizer, decode_token_ids
            )
            rows = label_shards.joined(chunk, added, path)
            with split.files.outputs.replacing(path) as temporary:
                hub_layout.write_parquet(temporary, rows, features)


def _finish(
    run: Run,
    splits: list[_Split],
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
    max_bad_fraction: float,
) -> None:
    """Check the account, and write card and record."""
    ledger = _ledger(splits)
    ledger.check(max_bad_fraction, "start again with --retry_quarantined")
    scores = {str(split.spec): _scores(split, teacher, decoding) for split in splits}
    specs = [split.spec for split in splits]
    hub_layout.write_card(
        run.folder,
        hub_layout.splits_by_config(specs),
        "Pseudo-labelled speech",
        f"Transcripts by `{public_names(run.arguments['model_name_or_path'])}`.",
    )
    run.finish(ledger=ledger.to_dict(), scores=scores, attention=teacher.attention)
    next_command = f"python run_data_filtering.py {hub_layout.flags_naming(run.folder, specs)}"
    next_command += f" -o {shlex.quote(f'{run.folder}-filtered')}"
    log_end(run, f"{ledger.num_out:,} labelled clips; rows: {ledger}", next_command)


def _ledger(splits: list[_Split]) -> Ledger:
    seals = [read_seal(path) for split in splits for path in split.files.all_sealed()]
    return sum((seal for seal in seals if seal is not None), Ledger())


def _scores(
    split: _Split, teacher: checkpoint.Whisper, decoding: windows.Decoding
) -> dict[str, Any] | None:
    """Score the transcripts where the source has references; None where it has none."""
    pairs = [
        (
            raw_text(row[schema.TEXT]),
            labels.plain_text(row[schema.WHISPER_TRANSCRIPT], teacher.tokens, teacher.tokenizer),
        )
        for path in split.files.all_sealed()
        for row in label_shards.read(path)
        if row[schema.TEXT] and not row[PROBLEM]
    ]
    normalizer = teacher.normalizer(decoding.language, decoding.task)
    comparable = any(normalizer(reference) for reference, _ in pairs)
    if not comparable or decoding.task != "transcribe":
        return None
    references, transcripts = zip(*pairs, strict=True)
    scores = score(list(references), list(transcripts), normalizer)
    logger.info("%s against the references: %s", split.spec, scores.summary())
    return asdict(scores)


if __name__ == "__main__":
    main(*ARGUMENTS)
