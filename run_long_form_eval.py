"""Measure a Whisper model on recordings that are longer than its window.

Reads   any datasets with audio and references, joined with `+`. The times of the references are
        scored where they are there: as a column `segments` (start, end and text of each), or as
        Whisper's timestamps in the text.
Writes  one row per dataset and algorithm in `metric.<language>.<task>.jsonl`; its predictions as
        CSV; and beside these, in `.segments.jsonl`, the segments of each recording with their times
        and what was counted in them: loops, and text in silence.

Two algorithms: sequential (OpenAI's: each window begins where the timestamps of the one before
end), which needs a model that was trained with timestamps; and, with `--chunk_length_s`, chunked
(Distil-Whisper's: chunks are decoded in a batch). `--algorithm sequential+chunked` measures both.

    accelerate launch run_long_form_eval.py -m openai/whisper-large-v2 \
        -d distil-whisper/tedlium-long-form --dataset_config_name all \
        --dataset_split_name validation --text_column_name text --chunk_length_s 30 \
        --language en --return_timestamps --dtype bfloat16 -b 64 -o eval

On a laptop:

    accelerate launch run_long_form_eval.py -m my-student -d my_talks.jsonl --language ja -o eval
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm.auto import tqdm

from distillery.audio.decoding import AudioError, Waveform, decode_audio
from distillery.audio.loudness import levels_db, silent_frames
from distillery.cli.arguments import DataArguments, DecodingArguments, ModelArguments, RunArguments
from distillery.cli.evaluation_arguments import EvaluationArguments, draft_problems
from distillery.cli.flags import at_least, flag, parse
from distillery.cli.runtime import make_accelerator, stage_run
from distillery.data import schema, sources
from distillery.data.specs import DatasetSpec
from distillery.evaluation import evaluations
from distillery.evaluation.evaluations import Evaluation, Heard
from distillery.evaluation.hallucinations import Hallucinations
from distillery.storage.files import replacing
from distillery.text.timestamps import Segment, score_timestamps, segments_of_markup
from distillery.whisper import checkpoint
from distillery.whisper.long_form import (
    TEMPERATURES,
    Found,
    text_of,
    transcribe_in_chunks,
    transcribe_sequentially,
)

logger = logging.getLogger(__name__)

SEQUENTIAL, CHUNKED = "sequential", "chunked"


@dataclass(frozen=True)
class LongFormArguments:
    """How long recordings are decoded."""

    algorithm: str | None = flag(
        None,
        f"How to decode: {SEQUENTIAL}, {CHUNKED}, or both joined with '+'; default: {CHUNKED} with "
        f"--chunk_length_s, else {SEQUENTIAL}.",
    )
    chunk_length_s: float | None = flag(
        None, "Chunked: most seconds of a chunk; default: the model's window."
    )
    stride_length_s: float | None = flag(
        None,
        "Chunked: two neighbouring chunks are cut apart in the quietest place of twice so many "
        "seconds; default: a sixth of a chunk.",
    )
    condition_on_prev_tokens: bool = flag(
        False, "Sequential: show the decoder what it wrote before in the recording."
    )
    temperature_fallback: bool = flag(
        False, "Sequential: decode a window again, by sampling, where the result looks bad."
    )

    def algorithms(self) -> list[str]:
        """Return the names of the algorithms to run."""
        if self.algorithm is None:
            return [SEQUENTIAL if self.chunk_length_s is None else CHUNKED]
        return self.algorithm.split("+")

    def settings(self, algorithm: str) -> dict[str, Any]:
        """Return the settings that an algorithm looks at."""
        names = {
            SEQUENTIAL: ("condition_on_prev_tokens", "temperature_fallback"),
            CHUNKED: ("chunk_length_s", "stride_length_s"),
        }
        return {name: getattr(self, name) for name in names[algorithm]}

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        asked = self.algorithms()
        unknown = [name for name in asked if name not in (SEQUENTIAL, CHUNKED)]
        found = [
            f"--algorithm must be of {SEQUENTIAL}, {CHUNKED}; got {name!r}" for name in unknown
        ]
        if len(set(asked)) < len(asked):
            found.append(f"--algorithm names one twice: {self.algorithm}")
        if self.chunk_length_s is not None and self.chunk_length_s <= 0:
            found.append(f"--chunk_length_s must be > 0, got {self.chunk_length_s}")
        if CHUNKED not in asked:
            found += [
                f"--{name} needs chunked decoding: give --chunk_length_s or --algorithm {CHUNKED}"
                for name in ("chunk_length_s", "stride_length_s")
                if getattr(self, name) is not None
            ]
        if SEQUENTIAL not in asked:
            found += [
                f"--{name} belongs to sequential decoding: add --algorithm {SEQUENTIAL}+{CHUNKED}, "
                "or leave it out"
                for name in ("condition_on_prev_tokens", "temperature_fallback")
                if getattr(self, name)
            ]
        return [*found, *at_least(self, "stride_length_s", 0)]


GROUPS = (
    ModelArguments,
    DataArguments,
    DecodingArguments,
    EvaluationArguments,
    LongFormArguments,
    RunArguments,
)


def check(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    evaluation_args: EvaluationArguments,
    *others: Any,
) -> list[str]:
    """Return what is wrong with flags of several groups."""
    return draft_problems(evaluation_args, decoding_args)


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    long_args: LongFormArguments,
    run_args: RunArguments,
) -> None:
    """Evaluate the model on each dataset in turn, with each algorithm."""
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    groups = (model_args, data_args, decoding_args, args, long_args, run_args)
    run = stage_run("run_long_form_eval", groups, Path(args.output_dir), {})
    model = evaluations.load_with_assistant(model_args, args, run_args, accelerator)
    long_args = _with_chunk(long_args, model)

    def plans(spec: DatasetSpec) -> list[Evaluation]:
        return [
            _plan(algorithm, spec, model, model_args, decoding_args, args, long_args)
            for algorithm in long_args.algorithms()
        ]

    evaluations.evaluate_each(
        accelerator,
        run,
        model,
        data_args,
        run_args,
        plans,
        lambda one, rows: _transcribe(
            rows, _transcriber(one, model, long_args, args), model, accelerator
        ),
    )
    if accelerator.is_main_process and not run_args.dry_run:
        evaluations.write_page(args)


def _with_chunk(args: LongFormArguments, model: checkpoint.Whisper) -> LongFormArguments:
    """Fill in the length of chunks, and check it and their stride."""
    if CHUNKED not in args.algorithms():
        return args
    evaluations.check_chunk(args.chunk_length_s, model)
    chunk_s = args.chunk_length_s or model.log_mel.window_s
    if args.stride_length_s is not None and 2 * args.stride_length_s >= chunk_s:
        raise ValueError(
            f"--stride_length_s {args.stride_length_s:g} must be less than half of a chunk of "
            f"{chunk_s:g} s"
        )
    return replace(args, algorithm="+".join(args.algorithms()), chunk_length_s=chunk_s)


@dataclass(frozen=True)
class HeardRecording(Heard):
    """A recording after decoding.

    `segments` are what was written, `references` what was said, with times where they are known.
    """

    segments: Sequence[Segment] = ()
    references: Sequence[Segment] | None = None
    hallucinations: Hallucinations | None = None


@dataclass(frozen=True)
class LongFormEvaluation(Evaluation):
    """One model on one split with one algorithm."""

    def more_figures(self, good: Sequence[Heard]) -> dict[str, Any]:
        """Score timestamps, add up hallucinations, and write both out for each recording."""
        recordings = [one for one in good if isinstance(one, HeardRecording)]
        with replacing(self.predictions_path.with_suffix(".segments.jsonl")) as temporary:
            lines = (json.dumps(_details(one), ensure_ascii=False) + "\n" for one in recordings)
            temporary.write_text("".join(lines), encoding="utf-8")
        counts = [one.hallucinations for one in recordings if one.hallucinations is not None]
        return {**_timestamp_figures(self, recordings), **asdict(reduce(add, counts))}


def _timestamp_figures(
    one: Evaluation, recordings: Sequence[HeardRecording]
) -> dict[str, int | float | None]:
    """Return the scores of the timestamps, where both sides have some."""
    timed = [heard for heard in recordings if any(s.duration > 0 for s in heard.references or ())]
    if not timed or not one.decoding.timestamps:
        return {}
    scores = score_timestamps(
        [heard.references or () for heard in timed], [heard.segments for heard in timed]
    )
    return {"num_rows_with_times": len(timed), **asdict(scores)}


def _details(heard: HeardRecording) -> dict[str, Any]:
    """Return what the file beside the predictions has for a recording."""
    segments = [
        {
            schema.SEGMENT_START: round(segment.start, 3),
            schema.SEGMENT_END: round(segment.end, 3),
            schema.TEXT: segment.text.strip(),
        }
        for segment in heard.segments
    ]
    counts = asdict(heard.hallucinations) if heard.hallucinations else {}
    return {schema.ID: heard.id, **counts, schema.SEGMENTS: segments}


def _plan(
    algorithm: str,
    spec: DatasetSpec,
    model: checkpoint.Whisper,
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    long_args: LongFormArguments,
) -> LongFormEvaluation:
    timestamps = algorithm == SEQUENTIAL or decoding_args.return_timestamps
    planned = evaluations.plan(
        "long_form",
        spec,
        model,
        model_args,
        replace(decoding_args, return_timestamps=timestamps),
        args,
        algorithm=algorithm,
        long_form=long_args.settings(algorithm),
    )
    return LongFormEvaluation(**vars(planned))


def _transcriber(
    one: Evaluation,
    model: checkpoint.Whisper,
    long_args: LongFormArguments,
    args: EvaluationArguments,
) -> Callable[[Iterable[Waveform]], Found]:
    """Return the algorithm of an evaluation, as a function of recordings."""
    batch_size = args.per_device_eval_batch_size
    if one.identity["algorithm"] == CHUNKED:
        return lambda waveforms: transcribe_in_chunks(
            model,
            waveforms,
            one.decoding,
            batch_size,
            chunk_length_s=long_args.chunk_length_s or model.log_mel.window_s,
            stride_length_s=long_args.stride_length_s,
        )
    return lambda waveforms: transcribe_sequentially(
        model,
        waveforms,
        one.decoding,
        batch_size,
        condition_on_prev_tokens=long_args.condition_on_prev_tokens,
        temperatures=TEMPERATURES if long_args.temperature_fallback else TEMPERATURES[:1],
    )


@dataclass
class _Recordings:
    """The recordings of one process: decoded as they are asked for, and told apart by number."""

    rows: Iterator[dict[str, Any]]
    rate: int
    heard: list[Heard] = field(default_factory=list)
    waiting: dict[int, tuple[dict[str, Any], float, NDArray[np.bool_]]] = field(
        default_factory=dict
    )

    def waveforms(self) -> Iterator[Waveform]:
        """Yield the recordings that can be decoded; note the others."""
        number = 0
        for row in self.rows:
            try:
                waveform = decode_audio(row[schema.AUDIO], self.rate)
            except AudioError as error:
                logger.warning("recording %s %s", row[schema.ID], error)
                reference = evaluations.reference_of(row)
                self.heard.append(HeardRecording(row[schema.ID], reference, "", 0.0, str(error)))
                continue
            text_only = {name: row[name] for name in row if name != schema.AUDIO}
            silent = silent_frames(levels_db(waveform, self.rate))
            self.waiting[number] = (text_only, len(waveform) / self.rate, silent)
            number += 1
            yield waveform

    def note(self, number: int, segments: Sequence[Segment]) -> None:
        """Note what was heard in a recording."""
        row, duration_s, silent = self.waiting.pop(number)
        references = _reference_segments(row)
        self.heard.append(
            HeardRecording(
                row[schema.ID],
                evaluations.reference_of(row),
                text_of(segments),
                duration_s,
                segments=segments,
                references=references,
                hallucinations=Hallucinations.of(segments, silent, references),
            )
        )


def _reference_segments(row: dict[str, Any]) -> list[Segment] | None:
    """Return the segments of a reference with their times; None where it has no times."""
    if row.get(schema.SEGMENTS) is None:
        return segments_of_markup(row.get(schema.TEXT) or "") or None
    return [
        Segment(
            float(one[schema.SEGMENT_START]),
            float(one[schema.SEGMENT_END]),
            str(one.get(schema.TEXT) or ""),
        )
        for one in row[schema.SEGMENTS]
    ]


def _transcribe(
    rows: sources.Rows,
    transcribe: Callable[[Iterable[Waveform]], Found],
    model: checkpoint.Whisper,
    accelerator: Accelerator,
) -> tuple[list[Heard], float]:
    """Transcribe recordings on all processes; return all rows, and the seconds it took."""
    started = time.perf_counter()
    count, mine = accelerator.num_processes, accelerator.process_index
    own = (row for index, row in enumerate(rows) if index % count == mine)
    recordings = _Recordings(own, model.log_mel.sampling_rate)
    bar = tqdm(desc="evaluating", unit=" recordings", disable=not accelerator.is_local_main_process)
    for number, segments in transcribe(recordings.waveforms()):
        recordings.note(number, segments)
        bar.update()
    bar.close()
    everything = gather_object(recordings.heard)
    return everything, time.perf_counter() - started


if __name__ == "__main__":
    main(*parse(GROUPS, description=__doc__, check=check))
