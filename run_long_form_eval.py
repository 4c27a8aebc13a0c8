r"""Measure a Whisper model on recordings that are longer than its window.

Reads   any datasets with audio and references, joined with `+`. The times of the references are
        scored where they are there: as a column `segments` (start, end and text of each), as
        Whisper's timestamps in the text, or as subtitles (SRT, WebVTT), which are the text, too.
Writes  one row per dataset and algorithm in `metric.<language>.<task>.jsonl`; its predictions as
        CSV; and beside these, in `.segments.jsonl`, the segments of each recording with their times
        and what was counted in them: loops, and text in silence.

Two algorithms: sequential (OpenAI's: each window begins where the timestamps of the one before
end), which needs a model that was trained with timestamps; and, with `--chunk_length_s`, chunked
(Distil-Whisper's: chunks are decoded in a batch). `--algorithm sequential+chunked` measures both.

    python run_long_form_eval.py -m openai/whisper-large-v2 \
        -d distil-whisper/tedlium-long-form --dataset_config_name all \
        --dataset_split_name validation --text_column_name text --chunk_length_s 30 \
        --language en --return_timestamps --dtype bfloat16 -b 64 -o eval

On a laptop:

    python run_long_form_eval.py -m my-student -d my_talks.jsonl --language ja -o eval
"""

from distillery.cli.arguments import DecodingArguments, ModelArguments, RunArguments
from distillery.cli.evaluation_arguments import EvaluationArguments, draft_problems
from distillery.cli.flags import parse
from distillery.cli.long_form_arguments import SEQUENTIAL, LongFormArguments, RecordingArguments

GROUPS = (
    ModelArguments,
    RecordingArguments,
    DecodingArguments,
    EvaluationArguments,
    LongFormArguments,
    RunArguments,
)


def check(decoding_args: DecodingArguments, args: EvaluationArguments) -> list[str]:
    """Return what is wrong with flags of several groups."""
    return draft_problems(args, decoding_args)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from distillery.audio.decoding import AudioError, Waveform, decode_audio
from distillery.audio.loudness import levels_db, silent_frames
from distillery.cli import evaluation as stages
from distillery.cli.long_form import long_form_of, with_chunk
from distillery.cli.runtime import (
    hold_folder,
    log_end,
    log_start,
    make_accelerator,
    stage_run,
    start_trackers,
)
from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.evaluation import evaluations
from distillery.evaluation.evaluations import (
    Candidate,
    Evaluation,
    Scoring,
    Transcription,
    reference_of,
)
from distillery.evaluation.hallucinations import Hallucinations
from distillery.evaluation.recordings import (
    LongFormEvaluation,
    RecordingTranscription,
    reference_segments,
)
from distillery.ingest import sources
from distillery.storage.progress import ProgressBar
from distillery.text.timestamps import Segment
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.long_form import text_of
from distillery.whisper.windows import Decoding

logger = logging.getLogger(__name__)


def main(
    model_args: ModelArguments,
    data_args: RecordingArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    long_args: LongFormArguments,
    run_args: RunArguments,
) -> None:
    """Evaluate the model on each dataset in turn, with each algorithm."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    groups = (model_args, data_args, decoding_args, args, long_args, run_args)
    run = stage_run("run_long_form_eval", groups, Path(args.output_dir), {})
    if accelerator.is_main_process and not run_args.dry_run:
        run.refuse_damaged_inputs()
        hold_folder(run)
    candidate = stages.load_candidate(
        model_args, accelerator, args.assistant_model, outline=run_args.dry_run
    )
    long_args = with_chunk(long_args, candidate.whisper)
    asked = stages.decoding_of(decoding_args, args.generation_max_length)
    scoring = stages.scoring_of(args, data_args.max_bad_fraction, verify=run_args.verify)
    specs = data_args.specs()

    plans = partial(_plans, candidate, asked, scoring, long_args)
    if run_args.dry_run:
        stages.show_forecast(accelerator, run, candidate, specs, plans)
        return
    start_trackers(accelerator, run, run_args.wandb_project)
    sets = " + ".join(map(str, specs))
    name = str(model_args.model_name_or_path)
    log_start(run, accelerator, name, model_args.compute_dtype, f"recordings of {sets}")
    transcribe = _Transcriber(accelerator, candidate.whisper, long_args, args, run_args)
    splits = stages.load_splits(specs)
    results = stages.evaluate(accelerator, run, candidate.whisper, splits, plans, transcribe)
    if accelerator.is_main_process:
        stages.report(accelerator, results)
        stages.write_page(args, run)
        made = f"metric.*.jsonl, predictions and their segments; results: {len(results)}"
        log_end(run, made, f"python score_predictions.py -o {args.output_dir}")
    accelerator.end_training()


def _plans(
    candidate: Candidate,
    asked: Decoding,
    scoring: Scoring,
    long_args: LongFormArguments,
    spec: DatasetSpec,
) -> list[Evaluation]:
    """Return one evaluation of a dataset for each algorithm."""
    plans: list[Evaluation] = []
    for algorithm in long_args.algorithms():
        planned = evaluations.plan(
            "long_form",
            spec,
            candidate,
            replace(asked, timestamps=algorithm == SEQUENTIAL or asked.timestamps),
            scoring,
            algorithm=algorithm,
            long_form=long_args.settings(algorithm),
        )
        plans.append(LongFormEvaluation(**vars(planned)))
    return plans


@dataclass(frozen=True)
class _Transcriber:
    """Transcribes datasets with one model, on all processes."""

    accelerator: Accelerator
    whisper: Whisper
    long_args: LongFormArguments
    args: EvaluationArguments
    run_args: RunArguments

    def __call__(
        self, planned: Evaluation, rows: sources.Rows
    ) -> tuple[list[Transcription], float]:
        """Return the transcriptions of all processes, and the seconds they took."""
        started = time.perf_counter()
        count, share = self.accelerator.num_processes, self.accelerator.process_index
        rows_here = (row for index, row in enumerate(rows) if index % count == share)
        recordings = _Recordings(rows_here, self.whisper.log_mel.sampling_rate)
        is_quiet = not self.accelerator.is_local_main_process
        bar = ProgressBar(desc="evaluating", unit=" recordings", disable=is_quiet)
        decode = long_form_of(
            self.long_args,
            self.whisper,
            planned.decoding,
            self.args.per_device_eval_batch_size,
            planned.identity["algorithm"],
        )
        for done, (number, segments) in enumerate(decode(recordings.waveforms()), start=1):
            recordings.note(number, segments)
            bar.update()
            if done % self.run_args.logging_steps == 0:
                logger.info("%d recordings transcribed", done)
        bar.close()
        everything = gather_object(recordings.transcriptions)
        return everything, time.perf_counter() - started


@dataclass
class _Recordings:
    """The recordings of one process, decoded one at a time and numbered."""

    rows: Iterator[dict[str, Any]]
    rate: int
    transcriptions: list[Transcription] = field(default_factory=list)
    waiting: dict[int, tuple[dict[str, Any], float, NDArray[np.bool_]]] = field(
        default_factory=dict
    )

    def waveforms(self) -> Iterator[Waveform]:
        """Yield the recordings that can be decoded; the others become transcriptions at once."""
        number = 0
        for row in self.rows:
            try:
                waveform = decode_audio(row[schema.AUDIO], self.rate)
            except AudioError as error:
                logger.warning("recording %s %s", row[schema.ID], error)
                unusable = (row[schema.ID], reference_of(row), "", 0.0, str(error))
                self.transcriptions.append(RecordingTranscription(*unusable))
                continue
            text_only = {name: row[name] for name in row if name != schema.AUDIO}
            silent = silent_frames(levels_db(waveform, self.rate))
            self.waiting[number] = (text_only, len(waveform) / self.rate, silent)
            number += 1
            yield waveform

    def note(self, number: int, segments: Sequence[Segment]) -> None:
        """Make a transcription of the segments of a recording."""
        row, duration_s, silent = self.waiting.pop(number)
        references = reference_segments(row)
        self.transcriptions.append(
            RecordingTranscription(
                row[schema.ID],
                reference_of(row),
                text_of(segments),
                duration_s,
                segments=segments,
                references=references,
                hallucinations=Hallucinations.of(segments, silent, references),
            )
        )


if __name__ == "__main__":
    main(*ARGUMENTS)
