"""Measure a Whisper model on clips that fit into one window.

Reads   any datasets with audio and references, joined with `+`.
Writes  one row per dataset in `metric.<language>.<task>.jsonl`, and its predictions as CSV.

    accelerate launch run_short_form_eval.py -m my-org/my-student \
        -d japanese-asr/ja_asr.reazonspeech_test --text_column_name transcription \
        --language ja --dtype bfloat16 -b 64 -o eval

On a laptop:

    accelerate launch run_short_form_eval.py -m my-student -d my_test.jsonl --language ja -o eval

An evaluation that was made before, of the same model on the same rows, is shown and not repeated.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from distillery import data, evaluation, schema, whisper
from distillery.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    RunArguments,
    parse,
)
from distillery.collators import PROBLEM, WindowCollator, Windows
from distillery.evaluation import Evaluation, EvaluationArguments, Heard
from distillery.labels import plain_text
from distillery.runtime import load_model, make_accelerator
from distillery.transcription import transcribe_windows

logger = logging.getLogger(__name__)

GROUPS = (ModelArguments, DataArguments, DecodingArguments, EvaluationArguments, RunArguments)


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    run_args: RunArguments,
) -> None:
    """Evaluate the model on each dataset in turn."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    model = load_model(model_args, accelerator)
    evaluation.evaluate_each(
        accelerator,
        model,
        data_args,
        run_args,
        lambda spec: [evaluation.plan("short_form", spec, model, model_args, decoding_args, args)],
        lambda one, rows: _transcribe(one, rows, model, args, run_args, accelerator),
    )


def _transcribe(
    one: Evaluation,
    rows: data.Rows,
    model: whisper.Whisper,
    args: EvaluationArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> tuple[list[Heard], float]:
    """Transcribe a dataset on all processes; return all rows, and the seconds it took."""
    heard: list[Heard] = []
    bar = tqdm(desc="evaluating", unit=" clips", disable=not accelerator.is_local_main_process)
    started = time.perf_counter()
    for batch in _batches(rows, model, args, run_args, accelerator):
        heard += _hear(batch, one, model, accelerator)
        bar.update(len(batch.rows))
    bar.close()
    everything = gather_object(heard)
    return everything, time.perf_counter() - started


def _batches(
    rows: data.Rows,
    model: whisper.Whisper,
    args: EvaluationArguments,
    run_args: RunArguments,
    accelerator: Accelerator,
) -> Iterator[Windows]:
    """Yield this process's share of the dataset: every so-many-th batch."""
    collate = WindowCollator(model.log_mel)
    size, count, mine = (
        args.per_device_eval_batch_size,
        accelerator.num_processes,
        accelerator.process_index,
    )
    if not isinstance(rows, data.Dataset):
        chunks = data.iterate_chunks(rows, size)
        return (collate(chunk) for index, chunk in chunks if index % count == mine)
    starts = range(0, len(rows), size)[mine::count]
    indices = [list(range(start, min(start + size, len(rows)))) for start in starts]
    return iter(
        DataLoader(
            rows,
            batch_sampler=indices,
            collate_fn=collate,
            num_workers=run_args.dataloader_num_workers,
        )
    )


def _hear(
    batch: Windows, one: Evaluation, model: whisper.Whisper, accelerator: Accelerator
) -> list[Heard]:
    written: Iterator[Any] = iter(())
    if batch.features is not None:
        features = batch.features.to(accelerator.device)
        written = iter(transcribe_windows(model, features, one.decoding))
    heard = []
    for row in batch.rows:
        reference, row_id = evaluation.reference_of(row), row[schema.ID]
        if row[PROBLEM]:
            logger.warning("clip %s %s", row_id, row[PROBLEM])
            heard.append(Heard(row_id, reference, "", 0.0, row[PROBLEM]))
        else:
            text = plain_text(next(written).ids, model.tokens, model.tokenizer)
            heard.append(Heard(row_id, reference, text, row[schema.DURATION]))
    return heard


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__))
