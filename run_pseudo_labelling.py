"""Let a Whisper model transcribe a dataset, and store what it writes beside the audio.

Reads   any dataset with audio (see `--dataset_name`); a reference text is optional.
Writes  the same rows in Hub layout, plus `whisper_transcript`, `condition_on_prev`, `avg_logprob`,
        `compression_ratio` and `truncated`; and `run.json`.

    accelerate launch run_pseudo_labelling.py -m openai/whisper-large-v3 -d my-org/my-speech \
        --dataset_split_name train --text_column_name transcription --language ja \
        --return_timestamps --dtype bfloat16 --per_device_eval_batch_size 64 -o labelled

On a laptop:

    accelerate launch run_pseudo_labelling.py -m openai/whisper-tiny -d my_speech.jsonl \
        --language ja --max_samples 20 -o labelled

A killed run goes on where it was when it is started again with the same flags.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from accelerate import Accelerator
from datasets import Features, Value
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from distillery.cli import forecast
from distillery.cli.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.flags import at_least, flag, parse
from distillery.cli.runtime import (
    load_model,
    load_outline,
    make_accelerator,
    open_run,
    publish,
    stage_run,
)
from distillery.data import column_types, hub_layout, schema, sources
from distillery.data.collators import PROBLEM, WindowCollator, Windows
from distillery.data.specs import DatasetSpec
from distillery.storage.files import remove_leftovers, replacing
from distillery.storage.ledger import Ledger
from distillery.storage.runs import Run
from distillery.storage.shards import read_seal, write_sealed
from distillery.text import labels
from distillery.text.compression import compression_ratio
from distillery.text.error_rates import Scores, score
from distillery.text.normalizers import raw_text
from distillery.whisper import checkpoint, windows

logger = logging.getLogger(__name__)

WORK_FOLDER = ".labels"  # sealed shards of labels alone, until the dataset is written


@dataclass(frozen=True)
class LabellingArguments:
    """What only this stage decides."""

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
    specs = data_args.specs()
    run = stage_run(
        "run_pseudo_labelling",
        (model_args, data_args, decoding_args, labelling_args, output_args, run_args),
        Path(output_args.output_dir),
        {
            model_args.model_name_or_path: checkpoint.fingerprint(model_args.model_name_or_path),
            **{str(spec): sources.fingerprint(spec) for spec in specs},
        },
        owned=(WORK_FOLDER, "README.md", "*/*.parquet"),
    )
    if run_args.dry_run:
        teacher = load_outline(model_args)
        decoding = _decoding(decoding_args, labelling_args, teacher)
        lines = _forecast(run, specs, teacher, decoding, labelling_args, accelerator.num_processes)
        forecast.show(accelerator, run.stage, lines)
        return
    open_run(accelerator, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        teacher = load_model(model_args, accelerator)
        decoding = _decoding(decoding_args, labelling_args, teacher)
        splits = [_Split(spec, sources.load(spec), run.folder) for spec in specs]
        hub_layout.refuse_same_split_twice([split.spec for split in splits])
        for split in splits:
            _label(split, teacher, decoding, labelling_args, run_args, accelerator)
        accelerator.wait_for_everyone()
        for split in splits:
            _write_dataset(split, teacher, labelling_args.decode_token_ids, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(run, splits, teacher, decoding, data_args.max_bad_fraction)
    if accelerator.is_main_process:
        publish(run, output_args, "dataset")
    accelerator.end_training()


def _forecast(
    run: Run,
    specs: list[DatasetSpec],
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
    own: LabellingArguments,
    num_processes: int,
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    batch_size = own.per_device_eval_batch_size
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    hub_layout.refuse_same_split_twice([one.spec for one in speech])
    num_labelled = forecast.sealed_rows(run.folder, f"{WORK_FOLDER}/*/*/*.parquet")
    return [
        *forecast.data_lines(speech),
        forecast.model_line(run.arguments["model_name_or_path"], teacher),
        forecast.batches(forecast.total_rows(speech), batch_size, num_processes),
        forecast.decoding_memory(teacher, batch_size, decoding.num_beams, decoding.max_length),
        forecast.disk_line(run.folder, forecast.total_bytes(speech), "audio and labels"),
        ("resume", run.resume_status(f"{num_labelled:,} rows are labelled")),
    ]


class _Split:
    """One split of the input, and where its shards are."""

    def __init__(self, spec: DatasetSpec, rows: sources.Rows, folder: Path) -> None:
        sources.require_column(rows, spec, schema.AUDIO, "--audio_column_name")
        self.spec = sources.with_split(spec, rows)
        self.rows = rows
        self.folder = folder
        self.work = folder / WORK_FOLDER / str(self.spec.config) / str(self.spec.split)

    def label_path(self, index: int) -> Path:
        """Return where the labels of a chunk of rows are sealed."""
        return self.work / f"{index:05d}.parquet"

    def label_paths(self) -> list[Path]:
        """Return all sealed label shards, in the order of the rows."""
        return sorted(self.work.glob("*.parquet"))

    def data_path(self, index: int) -> Path:
        """Return the dataset's file for a chunk of rows."""
        count = len(self.label_paths())
        return hub_layout.shard_path(
            self.folder, str(self.spec.config), str(self.spec.split), index, count
        )


def _decoding(
    args: DecodingArguments, own: LabellingArguments, teacher: checkpoint.Whisper
) -> windows.Decoding:
    if own.max_label_length > teacher.max_label_length:
        raise ValueError(
            f"--max_label_length {own.max_label_length} is more than the model's "
            f"{teacher.max_label_length} positions"
        )
    return windows.Decoding(
        args.language,
        args.task,
        args.return_timestamps,
        args.generation_num_beams,
        own.max_label_length,
    ).fitted_to(teacher)


# --- labelling: which rows, in which process, until all shards are sealed -----------------------

LABEL_SHARD = Features(
    {
        schema.ID: Value("string"),
        schema.SPEAKER_ID: Value("string"),
        schema.RECORDING_ID: Value("string"),
        schema.TEXT: Value("string"),
        schema.DURATION: Value("float32"),
        schema.WHISPER_TRANSCRIPT: column_types.TOKEN_IDS,
        schema.AVG_LOGPROB: Value("float32"),
        schema.TRUNCATED: Value("bool"),
        PROBLEM: Value("string"),
    }
)


def _label(
    split: _Split,
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
    own: LabellingArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> None:
    """Label this process's share: every so-many-th chunk of rows, less those already sealed."""
    progress = tqdm(
        desc=f"labelling {split.spec.split}",
        unit=" clips",
        total=_num_own_rows(split, own, accelerator),
        disable=not accelerator.is_local_main_process,
    )
    for index, chunk in sources.iterate_chunks(split.rows, own.rows_per_shard):
        if index % accelerator.num_processes != accelerator.process_index:
            continue
        path = split.label_path(index)
        if read_seal(path) is not None:
            progress.update(len(chunk))
            continue
        labelled = []
        for batch in _batches(chunk, teacher, own, run_args):
            labelled += _label_batch(batch, teacher, decoding, accelerator)
            progress.update(len(batch.rows))
        ledger = _account(labelled)
        write_sealed(
            path, ledger, partial(hub_layout.write_parquet, rows=labelled, features=LABEL_SHARD)
        )
    progress.close()


def _num_own_rows(split: _Split, own: LabellingArguments, accelerator: Accelerator) -> int | None:
    if split.spec.streaming:
        return None
    starts = range(0, len(split.rows), own.rows_per_shard)
    mine = starts[accelerator.process_index :: accelerator.num_processes]
    return sum(min(own.rows_per_shard, len(split.rows) - start) for start in mine)


def _batches(
    chunk: Any, teacher: checkpoint.Whisper, own: LabellingArguments, run_args: RunArguments
) -> Iterator[Windows]:
    return iter(
        DataLoader(
            chunk,
            batch_size=own.per_device_eval_batch_size,
            num_workers=run_args.dataloader_num_workers,
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
    found = iter(transcripts)
    return [row if row[PROBLEM] else {**row, **_label_columns(next(found))} for row in batch.rows]


def _label_columns(transcript: windows.Transcript) -> dict[str, Any]:
    return {
        schema.WHISPER_TRANSCRIPT: transcript.ids,
        schema.AVG_LOGPROB: transcript.avg_logprob,
        schema.TRUNCATED: transcript.truncated,
    }


def _account(labelled: list[dict[str, Any]]) -> Ledger:
    ledger = Ledger(num_in=len(labelled))
    for row in labelled:
        if row[PROBLEM]:
            logger.warning("clip %s %s", row[schema.ID], row[PROBLEM])
            ledger.quarantined["audio"] += 1
        else:
            ledger.num_out += 1
    return ledger


# --- the dataset: labels and audio joined by id --------------------------------------------------


def _write_dataset(
    split: _Split, teacher: checkpoint.Whisper, decode_token_ids: bool, accelerator: Accelerator
) -> None:
    """Write this process's share of the dataset's files; one that is there is whole."""
    rows_per_shard = _chunk_size(split)
    for index, chunk in sources.iterate_chunks(split.rows, rows_per_shard):
        path = split.data_path(index)
        mine = index % accelerator.num_processes == accelerator.process_index
        if not mine or path.exists():
            continue
        added = {
            row[schema.ID]: row for row in _contract_rows(split, index, teacher, decode_token_ids)
        }
        with replacing(path) as temporary:
            hub_layout.write_parquet(
                temporary, _joined(chunk, added, path), _features(split, decode_token_ids)
            )


def _chunk_size(split: _Split) -> int:
    return max(1, int(pq.read_metadata(split.label_path(0)).num_rows))


def _contract_rows(
    split: _Split, index: int, teacher: checkpoint.Whisper, decode_token_ids: bool
) -> Iterator[dict[str, Any]]:
    """Yield the columns that labelling adds, and the id, for the usable rows of one chunk."""
    before = _read_labels(split.label_path(index - 1))[-1:] if index else []
    rows = before + _read_labels(split.label_path(index))
    texts = [
        None if row[PROBLEM] else labels.text_ids(row[schema.WHISPER_TRANSCRIPT], teacher.tokens)
        for row in rows
    ]
    places = [(row[schema.RECORDING_ID], row[schema.SPEAKER_ID]) for row in rows]
    contexts = labels.previous_windows(
        (recording, speaker, text) for (recording, speaker), text in zip(places, texts, strict=True)
    )
    for row, context in list(zip(rows, contexts, strict=True))[len(before) :]:
        if row[PROBLEM]:
            continue
        ids = row[schema.WHISPER_TRANSCRIPT]
        text = teacher.tokenizer.decode(
            labels.text_ids(ids, teacher.tokens), decode_with_timestamps=True
        )
        yield {
            **row,
            schema.WHISPER_TRANSCRIPT: text if decode_token_ids else ids,
            schema.CONDITION_ON_PREV: context,
            schema.COMPRESSION_RATIO: compression_ratio(raw_text(text)),
        }


def _read_labels(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def _joined(chunk: Any, added: dict[str, dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Join rows and labels by id; every label finds its row or the file is not written."""
    left = dict(added)
    for row in chunk:
        label = left.pop(row[schema.ID], None)
        if label is not None:
            yield {**row, **label, schema.AUDIO: hub_layout.embed_audio(row)}
    if left:
        raise ValueError(f"{path}: the input has no longer a row for label {next(iter(left))!r}")


def _features(split: _Split, decode_token_ids: bool) -> Features:
    """Return the columns of the dataset: the contract's, and whatever else the source has."""
    source = dict(split.rows.features or {})
    own = {**column_types.source_features(), **column_types.label_features(decode_token_ids)}
    return Features({**own, **{name: kind for name, kind in source.items() if name not in own}})


def _finish(
    run: Run,
    splits: list[_Split],
    teacher: checkpoint.Whisper,
    decoding: windows.Decoding,
    max_bad_fraction: float,
) -> None:
    """Check the account, write card and record, and clear the work folder."""
    ledger = sum((_ledger(split) for split in splits), Ledger())
    logger.info("%s", ledger)
    ledger.check(max_bad_fraction)
    scores = {str(split.spec): _scores(split, teacher, decoding) for split in splits}
    configs: dict[str, list[str]] = {}
    for split in splits:
        configs.setdefault(str(split.spec.config), []).append(str(split.spec.split))
    model = run.arguments["model_name_or_path"]
    hub_layout.write_card(
        run.folder, configs, "Pseudo-labelled speech", f"Transcripts by `{model}`."
    )
    remove_leftovers(run.folder)
    run.finish(ledger=ledger.to_dict(), scores=scores)
    shutil.rmtree(run.folder / WORK_FOLDER)


def _ledger(split: _Split) -> Ledger:
    seals = [read_seal(path) for path in split.label_paths()]
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
        for path in split.label_paths()
        for row in _read_labels(path)
        if row[schema.TEXT] and not row[PROBLEM]
    ]
    normalizer = teacher.normalizer(decoding.language, decoding.task)
    comparable = any(normalizer(reference) for reference, _ in pairs)
    if not comparable or decoding.task != "transcribe":
        return None
    references, transcripts = zip(*pairs, strict=True)
    scores: Scores = score(list(references), list(transcripts), normalizer)
    logger.info("%s against the references: %s", split.spec, scores)
    return asdict(scores)


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__))
