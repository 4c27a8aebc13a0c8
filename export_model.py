r"""Write a Whisper model in the format of another program, and compare the two on sample clips.

Reads   a Whisper checkpoint; any dataset with audio, for the comparison.
Writes  a folder for each quantisation with every file that the program needs, loads it back, and a
        card with the comparison: texts, error rates, time, size.

    python export_model.py --format ctranslate2 -m my-org/my-student --language ja \
        --quantization float16+int8 -d my_test.jsonl --max_samples 100 -o my-student-ctranslate2

On a laptop, of one recording that is no longer than 30 s:

    python export_model.py --format ggml -m openai/whisper-tiny -l en -d speech.wav -o tiny-ggml

The formats: `ctranslate2` for CTranslate2 and faster-whisper, `ggml` for whisper.cpp, `onnx` for
onnxruntime. The original is decoded greedily by our own decoder, the export greedily by each of its
programs, all in float32 or less on the CPU, clip by clip, with the same number of threads.
"""

from dataclasses import dataclass

from distillery.cli.arguments import DataArguments, OutputArguments, known_language
from distillery.cli.flags import (
    DRY_RUN,
    VERIFY,
    at_least,
    flag,
    one_of,
    parse,
    plus_list,
    required,
)
from distillery.text.tokens import TASKS
from distillery.whisper.exports.formats import FORMATS, QUANTIZATIONS, missing_packages


@dataclass(frozen=True)
class ExportArguments:
    """Model, format and decoding."""

    model_name_or_path: str = required(
        "Whisper checkpoint: Hub id or folder.", "-m", "--model", is_input=True
    )
    format: str = required(f"Format to write: {', '.join(FORMATS)}.")
    quantization: str | None = flag(
        None,
        "How weights are stored, several joined with '+': float32, float16, int8; default: float32,"
        " for ggml float16 (it has no float32).",
    )
    model_revision: str | None = flag(None, "Branch, tag or commit of the model on the Hub.")
    cache_dir: str | None = flag(None, "Folder for files fetched from the Hub.", resumable=True)
    language: str | None = flag(
        None, "Language spoken, as a code or an English name; none for an .en model.", "-l"
    )
    task: str = flag("transcribe", f"What to write: {' or '.join(TASKS)}.", "-t")
    generation_max_length: int = flag(
        225, "Most ids of the transcript of one window.", "--max_label_length"
    )
    verify: bool = flag(False, VERIFY, resumable=True)
    dry_run: bool = flag(False, DRY_RUN, resumable=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [
            *one_of(self, "format", FORMATS),
            *known_language(self.language),
            *one_of(self, "task", TASKS),
            *at_least(self, "generation_max_length", 8),
        ]
        return problems if self.format not in FORMATS else [*problems, *self._format_problems()]

    def _format_problems(self) -> list[str]:
        known = QUANTIZATIONS[self.format]
        wrong = [name for name in self.quantizations if name not in known]
        missing = missing_packages(self.format)
        told = f"--quantization of {self.format} must be of {', '.join(known)}"
        return [
            *[f"{told}; got {name!r}" for name in wrong],
            *([self._packages_hint(missing)] if missing else []),
        ]

    def _packages_hint(self, missing: list[str]) -> str:
        return (
            f"--format {self.format} needs packages that are not installed: pip install "
            f"{' '.join(missing)} (the extra '{self.format}' of this project)"
        )

    @property
    def quantizations(self) -> list[str]:
        """The quantisations to write."""
        return plus_list(self.quantization) or [QUANTIZATIONS[self.format][0]]


@dataclass(frozen=True, kw_only=True)
class SampleArguments(DataArguments):
    """Clips to compare on."""

    max_samples: int | None = flag(
        16, "Compare on at most so many rows of each split.", "--max_samples_per_split"
    )


GROUPS = (ExportArguments, SampleArguments, OutputArguments)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCardData

from distillery.audio.decoding import Waveform
from distillery.cli import forecast
from distillery.cli.runtime import (
    end_stage,
    log_end,
    log_start,
    open_run,
    set_up_logging,
    stage_run,
)
from distillery.data import schema
from distillery.data.collators import PROBLEM, REASON, decode_clip
from distillery.data.specs import DatasetSpec
from distillery.evaluation.evaluations import reference_of
from distillery.evaluation.export_comparison import (
    ORIGINAL,
    Comparison,
    Transcribed,
    compare,
    comparison_table,
    transcribe_all,
)
from distillery.ingest import sources
from distillery.storage.checkpoints import MANIFEST, find_damage, sealed_folder
from distillery.storage.files import read_json, write_json
from distillery.storage.ledger import Ledger
from distillery.storage.outputs import Written
from distillery.storage.publication import CARD, public_names
from distillery.storage.runs import Run
from distillery.text.labels import plain_text
from distillery.text.tokens import language_code
from distillery.whisper import checkpoint, model_card
from distillery.whisper.decoding import Decoding
from distillery.whisper.exports import ctranslate_format, ggml_format, onnx_format
from distillery.whisper.exports.formats import CTRANSLATE2, GGML, ONNX, bytes_per_weight
from distillery.whisper.exports.readers import Format, Reader
from distillery.whisper.windows import transcribe_windows

logger = logging.getLogger(__name__)

MODULES: dict[str, Format] = {
    CTRANSLATE2: ctranslate_format,
    GGML: ggml_format,
    ONNX: onnx_format,
}
OURS = "our own decoder"
TRANSCRIPTS = ".transcripts"  # of the sample clips: hidden, so that they are never uploaded


class Samples(NamedTuple):
    """Clips, float32 (samples,) each, with their references, and the account of all rows."""

    clips: list[Waveform]
    references: list[str]
    ledger: Ledger


def main(args: ExportArguments, data_args: SampleArguments, output_args: OutputArguments) -> None:
    """Write each quantisation, read it back, and leave the comparison with the original."""
    set_up_logging()
    specs, name = data_args.specs(), args.model_name_or_path
    run = stage_run(
        "export_model",
        (args, data_args, output_args),
        Path(output_args.output_dir),
        {name: checkpoint.fingerprint(name), **{str(s): sources.fingerprint(s) for s in specs}},
        owned=(CARD, TRANSCRIPTS, *args.quantizations),
    )
    load = checkpoint.load_outline if args.dry_run else checkpoint.load
    load = partial(load, name, "float32", revision=args.model_revision, cache_dir=args.cache_dir)
    if args.dry_run:
        sys.stdout.write(forecast.text_of(run, _forecast(args, run, specs, load())))
        return
    open_run(None, run, output_args.overwrite_output_dir)
    if not run.is_complete:
        whisper = load()
        decoding, limits = _check(args, whisper)
        samples = _read_samples(specs, whisper, data_args.max_bad_fraction)
        clips = f"{len(samples.clips)} clips of {' + '.join(map(str, specs))}"
        log_start(run, None, name, "float32", f"as {args.format}, compared on {clips}")
        comparisons = _export(args, run, whisper, decoding, samples)
        language = decoding.language or "en"  # which English-only models have no token for
        _leave(args, run, language, comparisons, limits, samples.ledger)
    end_stage(run)


def _check(args: ExportArguments, whisper: checkpoint.Whisper) -> tuple[Decoding, list[str]]:
    """Return how to decode, and what the format's programs cannot do with the model.

    Raises:
        ValueError: the format cannot hold the model, or it does not know the language.
    """
    for quantization in args.quantizations:
        MODULES[args.format].refuse(whisper, quantization)
    length = args.generation_max_length
    asked = Decoding(args.language, args.task, timestamps=False, num_beams=1, max_length=length)
    limits = MODULES[args.format].limits(whisper)
    for limit in limits:
        logger.warning("%s", limit)
    decoding = asked.in_language_of(whisper).fitted_to(whisper)
    # By its code: the programs know no names.
    code = decoding.language and language_code(decoding.language)
    return replace(decoding, language=code), limits


def _forecast(
    args: ExportArguments, run: Run, specs: Sequence[DatasetSpec], outline: checkpoint.Whisper
) -> list[forecast.Line]:
    """Say what this run would do and take."""
    _check(args, outline)
    speech = [forecast.survey(spec, schema.AUDIO, "--audio_column_name") for spec in specs]
    weights = sum(map(bytes_per_weight, args.quantizations))
    return [
        *forecast.data_lines(speech),
        forecast.model_line(args.model_name_or_path, outline),
        ("write", f"{args.format} in {', '.join(args.quantizations)}"),
        ("memory", f"{forecast.size(2 * outline.num_bytes)} for the original and its export"),
        forecast.disk_line(run.folder, outline.num_parameters * weights, "the exports"),
        ("resume", run.resume_status("whole exports and their transcripts are kept")),
    ]


def _read_samples(
    specs: Iterable[DatasetSpec], whisper: checkpoint.Whisper, max_bad_fraction: float | None
) -> Samples:
    """Decode the sample clips, each of at most one window.

    Raises:
        ValueError: too many cannot be used.
    """
    samples = Samples([], [], Ledger())
    for spec in specs:
        rows = sources.load(spec)
        sources.require_column(rows, spec, schema.AUDIO, "--audio_column_name")
        for row in rows:
            samples.ledger.num_in += 1
            slim, clip = decode_clip(row, whisper.log_mel.sampling_rate, whisper.log_mel.window_s)
            if clip is None:
                logger.warning("clip %s %s", row[schema.ID], slim[PROBLEM])
                samples.ledger.quarantine(slim[REASON], str(row[schema.ID]))
                continue
            samples.ledger.num_out += 1
            samples.clips.append(clip)
            samples.references.append(reference_of(slim))
    samples.ledger.check(max_bad_fraction, "start again")
    if not samples.clips:
        raise ValueError(f"--dataset_name: there is no clip to compare on: {samples.ledger}")
    return samples


def _export(
    args: ExportArguments,
    run: Run,
    whisper: checkpoint.Whisper,
    decoding: Decoding,
    samples: Samples,
) -> list[Comparison]:
    """Write each quantisation, and let the format's programs decode the samples with it."""
    target = MODULES[args.format]
    normalizer = whisper.normalizer(decoding.language, decoding.task)

    def original() -> list[Reader]:
        return [Reader(OURS, partial(_transcribe, whisper, decoding))]

    before = _transcripts(run, ORIGINAL, original, samples)[OURS]
    named = {"program": ORIGINAL, "weights": "float32", "megabytes": whisper.num_bytes / 1e6}
    comparisons = [compare(before, before, samples.references, normalizer, named)]
    for quantization in args.quantizations:
        folder = run.folder / quantization
        _write_folder(run, folder, partial(target.write, whisper, quantization=quantization))
        readers = partial(target.readers, whisper, folder, decoding)
        size = sum(path.stat().st_size for path in _files(folder)) / 1e6
        for program, after in _transcripts(run, quantization, readers, samples).items():
            named = {"program": program, "weights": quantization, "megabytes": size}
            comparisons.append(compare(after, before, samples.references, normalizer, named))
    return comparisons


def _transcribe(whisper: checkpoint.Whisper, decoding: Decoding, clip: Waveform) -> str:
    """Return the original's text of a clip."""
    (transcript,) = transcribe_windows(whisper, whisper.log_mel([clip]), decoding)
    return plain_text(transcript.ids, whisper.tokens, whisper.tokenizer)


def _write_folder(run: Run, folder: Path, write: Callable[[Path], None]) -> None:
    """Write an export, whole or not at all, unless it is there from a run that was killed."""
    if find_damage(folder) is not None:
        with sealed_folder(folder, run.outputs) as temporary:
            write(temporary)
        logger.info("%s is written", folder)
    # As files that a finished run cannot do without.
    run.outputs.add({path: Written.of(path) for path in _files(folder)})


def _files(folder: Path) -> list[Path]:
    """Return the files of a whole export."""
    return [folder / name for name in (MANIFEST, *read_json(folder / MANIFEST))]


def _transcripts(
    run: Run, name: str, readers: Callable[[], Iterable[Reader]], samples: Samples
) -> dict[str, Transcribed]:
    """Return what each program writes for the samples, kept for when this run is killed."""
    path = run.folder / TRANSCRIPTS / f"{name}.json"
    if path.exists():
        kept = read_json(path)
        return {program: Transcribed(**transcribed) for program, transcribed in kept.items()}
    transcribed = {}
    for program, transcribe in readers():
        transcribed[program] = transcribe_all(transcribe, samples.clips)
        seconds = transcribed[program].seconds
        logger.info("%s by %s: %d clips in %.1f s", name, program, len(samples.clips), seconds)
    with run.outputs.replacing(path) as temporary:
        write_json(temporary, {program: asdict(each) for program, each in transcribed.items()})
    return transcribed


def _leave(
    args: ExportArguments,
    run: Run,
    language: str,
    comparisons: Sequence[Comparison],
    limits: Sequence[str],
    ledger: Ledger,
) -> None:
    """Print the comparison, and leave it in the card and in the record."""
    table = comparison_table(comparisons)
    sys.stdout.write(table)
    run.outputs.write_text(run.folder / CARD, _card(args, run, language, table, limits))
    run.finish(
        ledger=ledger.to_dict(),
        comparison=[asdict(each) for each in comparisons],
        limits=list(limits),
    )
    log_end(run, f"{args.format} in {', '.join(args.quantizations)}; README.md compares them")


def _card(args: ExportArguments, run: Run, language: str, table: str, limits: Sequence[str]) -> str:
    """Return the card: what it is, how to run it, and the comparison."""
    target, name = MODULES[args.format], args.model_name_or_path
    header = ModelCardData(
        **model_card.header(name, language, run.arguments["license"]),
        pipeline_tag="automatic-speech-recognition",
        library_name=target.LIBRARY,
        tags=["whisper"],
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {run.folder.resolve().name}",
        f"`{public_names(name)}` for {target.PROGRAMS}. Each folder is one way to store the "
        f"weights: {', '.join(args.quantizations)}.",
        *limits,
        target.USAGE.format(folder=args.quantizations[0], language=language),
        "## Beside the original",
        table.rstrip(),
        "CER is the character error rate in percent: where the original's texts are the "
        "references, and against the references after normalisation. Seconds are for all clips, "
        "one by one on a CPU, the faster of two times; speed is in times the original's.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main(*ARGUMENTS)
