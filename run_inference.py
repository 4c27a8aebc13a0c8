r"""Transcribe recordings of any length: audio in, JSON lines, text and subtitles out.

Reads   audio files, folders or tar archives of them, a manifest, or any other dataset; references
        are not needed.
Writes  `predictions.jsonl` with a row for each recording: `id`, `text`, `segments` with times,
        `words` with --word_timestamps, and the `reference` where there is one; and, as
        --output_formats has it, `txt/`, `srt/` and `vtt/` with a file for each.

    python run_inference.py -m openai/whisper-large-v3 -d recordings --language de \
        --output_formats txt,srt,vtt --word_timestamps --dtype bfloat16 -b 32 -o transcripts

On a laptop:

    python run_inference.py -m my-student -d interview.m4a --language ja -o transcripts

A recording that fits into the model's window is decoded at once, a longer one window by window: see
run_long_form_eval.py. Without --language, a multilingual model detects it in each window. A killed
run goes on behind the last whole row. Where the data has references, its output can be scored:

    python score_predictions.py --predictions_file transcripts/predictions.jsonl -l ja -o eval
"""

from distillery.cli.arguments import DecodingArguments, ModelArguments, RunArguments
from distillery.cli.evaluation_arguments import PostprocessingArguments
from distillery.cli.flags import parse
from distillery.cli.inference_arguments import InferenceArguments, check
from distillery.cli.long_form_arguments import LongFormArguments, RecordingArguments

GROUPS = (
    ModelArguments,
    RecordingArguments,
    DecodingArguments,
    PostprocessingArguments,
    InferenceArguments,
    LongFormArguments,
    RunArguments,
)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

import logging
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object

from distillery.audio.decoding import AudioError, Waveform, decode_audio
from distillery.cli import forecast
from distillery.cli.evaluation import decoding_of
from distillery.cli.long_form import long_form_of, with_chunk
from distillery.cli.runtime import (
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
from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.data.transcript_files import ALL, TEXT_FORMATS, TranscriptFiles, segment_rows
from distillery.ingest import sources
from distillery.ingest.recording_queue import RecordingQueue
from distillery.storage.json_lines import JsonRow
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable
from distillery.storage.runs import Run
from distillery.storage.shares import Share
from distillery.text.tokens import language_code
from distillery.whisper import checkpoint
from distillery.whisper.decoding import Decoding
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.transcriber import Heard, Transcriber
from distillery.whisper.word_times import WordTimer

logger = logging.getLogger(__name__)

REMEDY = "start again with --retry_quarantined: what is transcribed stays"


class Recording(NamedTuple):
    """What is known about a recording while it is transcribed."""

    id: str
    audio: str | None
    reference: str | None
    duration_s: float

    @classmethod
    def of(cls, row: Mapping[str, Any], duration_s: float) -> "Recording":
        """Keep what is written of a row; a file's path, so that its transcript is a manifest."""
        audio = row[schema.AUDIO]
        path = None if audio.get("bytes") is not None else str(Path(audio["path"]).resolve())
        return cls(row[schema.ID], path, row.get(schema.TEXT), duration_s)

    def row(self, heard: Heard, language: str | None) -> JsonRow:
        """Return the row of JSON."""
        row = {
            schema.ID: self.id,
            schema.AUDIO: self.audio,
            schema.DURATION: round(self.duration_s, 3),
            schema.LANGUAGE: language and language_code(language),
            schema.TEXT: heard.text,
            schema.REFERENCE: self.reference,
            schema.SEGMENTS: segment_rows(heard.segments),
            schema.WORDS: heard.words and segment_rows(chain.from_iterable(heard.words)),
        }
        return {name: value for name, value in row.items() if value is not None}


def main(
    model_args: ModelArguments,
    data_args: RecordingArguments,
    decoding_args: DecodingArguments,
    post_args: PostprocessingArguments,
    args: InferenceArguments,
    long_args: LongFormArguments,
    run_args: RunArguments,
) -> None:
    """Transcribe this process's share of what is left; the main process completes the folder."""
    groups = (model_args, data_args, decoding_args, post_args, args, long_args, run_args)
    accelerator = make_accelerator(run_args, args.output_dir, model_args.dtype)
    specs, model = data_args.specs(), model_args.model_name_or_path
    is_timed = decoding_args.return_timestamps or args.needs_timestamps or post_args.stable_ts
    run = stage_run(
        "run_inference",
        groups,
        Path(args.output_dir),
        {model: checkpoint.fingerprint(model), **{str(s): sources.fingerprint(s) for s in specs}},
        owned=(ALL, *TEXT_FORMATS),
        derived={"return_timestamps": is_timed},
        retried=tuple(map(str, specs)) if args.retry_quarantined else (),
    )
    files = TranscriptFiles(run.outputs, args.formats)
    asked = decoding_of(
        replace(decoding_args, return_timestamps=is_timed), args.generation_max_length
    )
    if run_args.dry_run:
        whisper = load_outline(model_args)
        with_chunk(long_args, whisper)
        lines = _forecast(run, specs, whisper, _fitted(asked, whisper), len(files.read()))
        forecast.show(accelerator, run, lines)
        return
    open_run(accelerator, run, args.overwrite_output_dir)
    if not (run.is_complete and files.is_whole()):
        start_trackers(accelerator, run, run_args.wandb_project)
        share = Share(accelerator.process_index, accelerator.num_processes)
        queue = RecordingQueue(_loaded(specs), files.read(), share)
        _log_start(accelerator, run, queue)
        with accelerator.main_process_first():
            run.outputs.grow(files.path)
        bad: list[tuple[str, str]] = []
        if queue.num_left != 0:
            whisper = load_model(model_args, accelerator)
            transcriber = _transcriber(whisper, _fitted(asked, whisper), post_args, args, long_args)
            progress = SpeechProgress(
                accelerator, "transcribing", queue.num_left, run_args.logging_steps
            )
            bad = _transcribe(transcriber, queue, files, progress)
        bad = gather_object(bad)  # all processes have ended their shares
        if accelerator.is_main_process:
            _complete(run, files, queue, bad, data_args.max_bad_fraction)
    accelerator.end_training()


def _fitted(asked: Decoding, whisper: checkpoint.Whisper) -> Decoding:
    """Return how this model decodes; without a language it detects it."""
    return asked.in_language_of(whisper).fitted_to(whisper, detect_language=True)


def _forecast(
    run: Run,
    specs: list[DatasetSpec],
    whisper: checkpoint.Whisper,
    decoding: Decoding,
    num_done: int,
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    batch_size = run.arguments["per_device_eval_batch_size"]
    return [
        *forecast.data_lines(speech),
        forecast.model_line(run.arguments["model_name_or_path"], whisper),
        forecast.windows_line(speech, whisper.log_mel.window_s),
        forecast.decoding_memory(whisper, batch_size, decoding.num_beams, decoding.max_length),
        forecast.disk_line(run.folder, None, "transcripts, which are small,"),
        ("resume", run.resume_status(f"{num_done:,} recordings are transcribed")),
    ]


def _log_start(accelerator: Accelerator, run: Run, queue: RecordingQueue) -> None:
    rows = sources.describe_splits(queue.splits)
    there = f", {len(queue.done):,} transcribed before" if queue.done else ""
    flags = run.arguments
    log_start(run, accelerator, flags["model_name_or_path"], flags["dtype"], f"{rows}{there}")


def _transcriber(
    whisper: checkpoint.Whisper,
    decoding: Decoding,
    post_args: PostprocessingArguments,
    args: InferenceArguments,
    long_args: LongFormArguments,
) -> Transcriber[Recording]:
    """Put together what transcribes a recording."""
    long_args, size = with_chunk(long_args, whisper), args.per_device_eval_batch_size
    (algorithm,) = long_args.algorithms()
    return Transcriber(
        whisper,
        decoding,
        size,
        long_form_of(long_args, whisper, decoding, size, algorithm),
        long_args.chunk_length_s or whisper.log_mel.window_s,
        Postprocessor.load(post_args.punctuator, post_args.stable_ts),
        WordTimer(whisper, decoding, size) if args.word_timestamps else None,
    )


# --- recordings -----------------------------------------------------------------------------------


def _loaded(specs: list[DatasetSpec]) -> dict[DatasetSpec, sources.Rows]:
    """Load datasets, each of which must have audio."""
    splits = {}
    for spec in specs:
        rows = sources.load(spec)
        sources.require_column(rows, spec, schema.AUDIO, "--audio_column_name")
        splits[spec] = rows
    return splits


def _transcribe(
    transcriber: Transcriber[Recording],
    queue: RecordingQueue,
    files: TranscriptFiles,
    progress: SpeechProgress,
) -> list[tuple[str, str]]:
    """Transcribe what is left to this process, and return what cannot be: ids, with why."""
    rate = transcriber.whisper.log_mel.sampling_rate
    bad: list[tuple[str, str]] = []

    def recordings() -> Iterator[tuple[Recording, Waveform]]:
        for row in queue:
            try:
                waveform = decode_audio(row[schema.AUDIO], rate)
            except AudioError as error:
                logger.warning("recording %s %s", printable(row[schema.ID]), printable(error))
                bad.append((row[schema.ID], str(error)))
                progress.advance(1, 0.0)
                continue
            yield Recording.of(row, len(waveform) / rate), waveform

    for recording, heard in transcriber(recordings()):
        files.add(recording.row(heard, transcriber.decoding.language))
        progress.advance(1, recording.duration_s)
    progress.close()
    return bad


# --- the folder, once all recordings are there ---------------------------------------------------


def _complete(
    run: Run,
    files: TranscriptFiles,
    queue: RecordingQueue,
    bad: list[tuple[str, str]],
    max_bad_fraction: float | None,
) -> None:
    """Put the rows in order, check the account, and write the record."""
    ledger = Ledger(len(queue.ids), files.complete(queue.ids))
    ledger.quarantine(schema.AUDIO, *(row_id for row_id, _ in bad))
    ledger.check(max_bad_fraction, REMEDY)
    run.finish(ledger=ledger.to_dict())
    texts = [kind for kind in files.formats if kind in TEXT_FORMATS]
    folders = "".join(f", {kind}/" for kind in texts)
    command = f"python score_predictions.py --predictions_file {shlex.quote(str(files.path))}"
    command += f" -l {run.arguments['language'] or 'LANGUAGE'}"
    command += f" -o {shlex.quote(f'{run.folder}-eval')}"
    can_be_scored = any(schema.REFERENCE in row for row in files.read().values())
    made = f"{ALL}{folders}; recordings: {ledger}"
    log_end(run, made, *([command] if can_be_scored else []))


if __name__ == "__main__":
    main(*ARGUMENTS)
