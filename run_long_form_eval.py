"""Measure a Whisper model on recordings that are longer than its window.

Reads   any datasets with audio and references, joined with `+`.
Writes  one row per dataset in `metric.<language>.<task>.jsonl`, and its predictions as CSV.

Two ways of decoding: sequential (OpenAI's: each window begins at the last predicted timestamp),
which needs a model that was trained with timestamps; and, with `--chunk_length_s`, chunked
(Distil-Whisper's: overlapping chunks in a batch, joined where they agree).

    accelerate launch run_long_form_eval.py -m openai/whisper-large-v2 \
        -d distil-whisper/tedlium-long-form --dataset_config_name all \
        --dataset_split_name validation --text_column_name text --chunk_length_s 30 \
        --language en --return_timestamps --dtype bfloat16 -b 64 -o eval

On a laptop:

    accelerate launch run_long_form_eval.py -m my-student -d my_talks.jsonl --language ja -o eval
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from distillery import data, evaluation, schema, whisper
from distillery.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    RunArguments,
    flag,
    parse,
)
from distillery.evaluation import EvaluationArguments, Heard
from distillery.features import AudioError, Waveform, decode_audio
from distillery.labels import plain_text
from distillery.runtime import Run, load_model, load_outline, make_accelerator
from distillery.transcription import Decoding, transcribe_in_chunks, transcribe_sequentially

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LongFormArguments:
    """How long recordings are decoded."""

    chunk_length_s: float | None = flag(
        None, "Decode overlapping chunks of so many seconds; default: sequentially."
    )
    stride_length_s: float | None = flag(
        None, "Overlap of chunks on each side, in seconds; default: a sixth of a chunk."
    )
    condition_on_prev_tokens: bool = flag(
        False, "Sequential: show the decoder what it wrote for the window before."
    )
    temperature_fallback: bool = flag(
        False, "Sequential: decode a window again, by sampling, where the result looks bad."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = []
        if self.chunk_length_s is not None and self.chunk_length_s <= 0:
            found.append(f"--chunk_length_s must be > 0, got {self.chunk_length_s}")
        if self.chunk_length_s is None and self.stride_length_s is not None:
            found.append("--stride_length_s needs --chunk_length_s")
        sequential = self.condition_on_prev_tokens or self.temperature_fallback
        if self.chunk_length_s is not None and sequential:
            found.append(
                "--condition_on_prev_tokens and --temperature_fallback belong to sequential "
                "decoding: leave out --chunk_length_s"
            )
        return found


GROUPS = (
    ModelArguments,
    DataArguments,
    DecodingArguments,
    EvaluationArguments,
    LongFormArguments,
    RunArguments,
)

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    long_args: LongFormArguments,
    run_args: RunArguments,
) -> None:
    """Evaluate the model on each dataset in turn."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    groups = (model_args, data_args, decoding_args, args, long_args, run_args)
    run = Run(Path(args.output_dir), "run_long_form_eval", groups, {})
    model = load_outline(model_args) if run_args.dry_run else load_model(model_args, accelerator)
    evaluation.check_chunk(long_args.chunk_length_s, model)
    evaluation.evaluate_each(
        accelerator,
        run,
        model,
        data_args,
        run_args,
        lambda spec: evaluation.plan(
            "long_form", spec, model, model_args, decoding_args, args, long_form=vars(long_args)
        ),
        lambda one, rows: _transcribe(
            rows, _algorithm(model, one.decoding, long_args, args), model, accelerator
        ),
    )
    if accelerator.is_main_process and not run_args.dry_run:
        evaluation.write_page(args)


def _algorithm(
    model: whisper.Whisper,
    decoding: Decoding,
    long_args: LongFormArguments,
    args: EvaluationArguments,
) -> Callable[[Waveform], str]:
    """Return a function from a recording to its text."""
    if long_args.chunk_length_s is not None:
        return transcribe_in_chunks(
            model,
            decoding,
            long_args.chunk_length_s,
            long_args.stride_length_s,
            args.per_device_eval_batch_size,
        )
    temperatures = TEMPERATURES if long_args.temperature_fallback else TEMPERATURES[:1]

    def sequential(waveform: Waveform) -> str:
        ids = transcribe_sequentially(
            model, waveform, decoding, long_args.condition_on_prev_tokens, temperatures
        )
        return plain_text(ids, model.tokens, model.tokenizer)

    return sequential


def _transcribe(
    rows: data.Rows,
    transcribe: Callable[[Waveform], str],
    model: whisper.Whisper,
    accelerator: Accelerator,
) -> tuple[list[Heard], float]:
    """Transcribe recordings on all processes; return all rows, and the seconds it took."""
    heard: list[Heard] = []
    rate = model.log_mel.sampling_rate
    started = time.perf_counter()
    bar = tqdm(desc="evaluating", unit=" recordings", disable=not accelerator.is_local_main_process)
    for index, row in enumerate(rows):
        if index % accelerator.num_processes != accelerator.process_index:
            continue
        row_id, reference = row[schema.ID], evaluation.reference_of(row)
        try:
            waveform = decode_audio(row[schema.AUDIO], rate)
        except AudioError as error:
            logger.warning("recording %s %s", row_id, error)
            heard.append(Heard(row_id, reference, "", 0.0, str(error)))
        else:
            heard.append(Heard(row_id, reference, transcribe(waveform), len(waveform) / rate))
        bar.update()
    bar.close()
    everything = gather_object(heard)
    return everything, time.perf_counter() - started


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__))
