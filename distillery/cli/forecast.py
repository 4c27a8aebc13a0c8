"""What a run would do and take, told before it is made: `--dry_run`.

Only the first rows of the data and the configurations of the models are read, and nothing is
written. What cannot be known without more is called unknown; what is guessed from the first rows is
called an estimate.
"""

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator
from datasets import IterableDataset

from distillery.audio.decoding import AudioError, decode_audio
from distillery.cli.hub import upload_forecast
from distillery.data import schema
from distillery.data.column_types import read_columns
from distillery.data.specs import DatasetSpec
from distillery.ingest import hub_datasets, sources
from distillery.ingest.archives import is_archive
from distillery.storage.files import free_bytes
from distillery.storage.runs import Run
from distillery.storage.shards import read_seal
from distillery.whisper import checkpoint

FIRST_ROWS = 16
FIRST_SECONDS = 1800.0  # no more is decoded, however long recordings are
SAMPLING_RATE = 16_000
LABEL_BYTES = 500  # of a row without audio in Parquet, about: some 50 ids, a text, and scores

Line = tuple[str, str]  # a subject, and what is said about it


def show(accelerator: Accelerator, run: Run, lines: Iterable[Line]) -> None:
    """Print a forecast on the main process, and end the launch."""
    if accelerator.is_main_process:
        sys.stdout.write(text_of(run, lines))
        sys.stdout.flush()
    accelerator.end_training()


def text_of(run: Run, lines: Iterable[Line]) -> str:
    """Return a forecast as a text; what would leave the machine is its last line."""
    lines = [*lines, ("hub", upload_forecast(run))]
    table = "".join(f"  {subject:<7} {text}\n" for subject, text in lines)
    return f"{run.stage}, dry run: nothing is written\n{table}"


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speech:
    """What is known about a dataset that was not read whole.

    Attributes:
        spec: the dataset, with its configuration and split.
        num_rows: None where only reading would tell.
        audio_s: seconds in all rows; None with `num_rows`, or where no clip can be decoded.
        has_audio: whether rows hold audio; else they are labels, which lie beside it.
        num_bytes: of the audio as it is stored, or of labels alone.
        is_estimate: `audio_s` goes by the first rows.
        is_copied: all rows would be copied, or cut, into the datasets library's cache first.
        num_first: rows that were looked at.
        bad: why some of those cannot be used.
        column_names: of the rows.
    """

    spec: DatasetSpec
    num_rows: int | None
    audio_s: float | None
    has_audio: bool
    num_bytes: float | None
    is_estimate: bool
    is_copied: bool
    num_first: int
    bad: list[str]
    column_names: Sequence[str] = ()

    def __str__(self) -> str:
        parts = [f"{self.spec}: {_rows(self.num_rows)}, {self._hours()}"]
        if self.is_copied:
            amount = "all of it" if self.num_bytes is None else size(self.num_bytes)
            parts.append(f"{amount} into the datasets library's cache, if it is not there yet")
        if self.bad:
            parts.append(
                f"{len(self.bad)} of the first {self.num_first} cannot be used: {self.bad[0]}"
            )
        return "; ".join(parts)

    def _hours(self) -> str:
        if self.audio_s is None:
            return "unknown hours of audio"
        estimate = f", an estimate by the first {self.num_first} rows" if self.is_estimate else ""
        return f"{hours(self.audio_s)} of audio{estimate}"


def survey(spec: DatasetSpec, column: str, flag: str, *instead: str) -> Speech:
    """Look at a dataset's first rows, and at what its files say about the others.

    Args:
        spec: the dataset; of a part such as `train[:10]`, the whole split is described.
        column: that the stage cannot do without.
        flag: that names this column.
        instead: columns any of which will do in its place.

    Raises:
        FileNotFoundError, ValueError: the dataset cannot be loaded, has no rows or no such column.
    """
    split = spec.split.partition("[")[0] if spec.split else None
    with TemporaryDirectory() as cache:
        streamed = replace(spec, split=split, streaming=True, cache_dir=cache)
        rows, is_copied = _open(streamed)
        if not set(instead) & set(rows.column_names):
            sources.require_column(rows, spec, column, flag)
        first = list(islice(rows, FIRST_ROWS))
        if not first:
            raise ValueError(f"dataset {spec} has no rows")
        num_rows, all_s = _of_all_rows(rows, streamed)
    seconds, bad = _seconds(first)
    stored_s, num_bytes = _total(all_s), None
    audio_s = stored_s
    if num_rows is not None:
        num_bytes = fmean(map(_num_bytes, first)) * num_rows
        if audio_s is None and seconds:
            audio_s = fmean(seconds) * num_rows
    return Speech(
        spec=sources.with_split(spec, rows),
        num_rows=num_rows,
        audio_s=audio_s,
        has_audio=schema.AUDIO in rows.column_names,
        num_bytes=num_bytes,
        is_estimate=stored_s is None,
        is_copied=is_copied and not spec.streaming,
        num_first=len(seconds) + len(bad),
        bad=bad,
        column_names=rows.column_names,
    )


def _open(spec: DatasetSpec) -> tuple[sources.Rows, bool]:
    """Open a streamed dataset, and tell whether a run would copy, or cut, all of it first."""
    rows = sources.load(spec)
    if _is_copied_first(spec) or _is_cut(rows, spec):
        return rows, True
    with _silence():  # what there is to say was logged when the stream was opened
        return sources.load(replace(spec, streaming=False)), False


@contextmanager
def _silence() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _is_copied_first(spec: DatasetSpec) -> bool:
    """Tell whether the datasets library would copy all rows into its cache before the first one."""
    path = Path(spec.name)
    return not path.exists() or path.suffix == ".py" or is_archive(path)


def _is_cut(rows: sources.Rows, spec: DatasetSpec) -> bool:
    """Tell whether clips are cut while rows are read, and were not stored so."""
    if schema.START not in rows.column_names:
        return False
    if not Path(spec.name).is_dir():
        return True
    return schema.START not in hub_datasets.load(replace(spec, streaming=False)).column_names


def _of_all_rows(rows: sources.Rows, spec: DatasetSpec) -> tuple[int | None, Any]:
    """Return the number of rows, and their column of durations; None for what is unknown."""
    if not isinstance(rows, IterableDataset):
        known = schema.DURATION in rows.column_names
        all_s = read_columns(rows, schema.DURATION)[schema.DURATION].to_pylist() if known else None
        return len(rows), all_s
    if schema.START in rows.column_names:
        return None, None  # recordings are counted there, not clips
    split = (rows.info.splits or {}).get(str(rows.split))
    count = split.num_examples if split else None
    return count and min(count, spec.max_rows or count), None


def _total(all_s: Sequence[float | None] | None) -> float | None:
    known = [float(s) for s in all_s or () if s is not None]
    return sum(known) if known and all_s and len(known) == len(all_s) else None


def _seconds(rows: Iterable[dict[str, Any]]) -> tuple[list[float], list[str]]:
    """Return the lengths of clips, and why others cannot be used."""
    found: list[float] = []
    bad: list[str] = []
    for row in rows:
        if sum(found) > FIRST_SECONDS:
            break
        try:
            given = row.get(schema.DURATION)
            if schema.AUDIO in row:
                wave = decode_audio(row[schema.AUDIO], SAMPLING_RATE)
                given = len(wave) / SAMPLING_RATE
            if given is not None:
                found.append(float(given))
        except AudioError as error:
            bad.append(f"{row[schema.ID]} {error}")
    return found, bad


def _num_bytes(row: dict[str, Any]) -> int:
    if schema.AUDIO not in row:
        return LABEL_BYTES
    audio = row[schema.AUDIO] or {}
    if audio.get("bytes") is not None:
        return len(audio["bytes"])
    path = Path(audio.get("path") or "")
    return path.stat().st_size if path.is_file() else 0


def data_lines(speech: Iterable[Speech]) -> list[Line]:
    """Return a line for each dataset."""
    return [("data", str(one)) for one in speech]


def total_rows(speech: Iterable[Speech]) -> int | None:
    """Return the number of all rows, or None where one dataset does not say."""
    counts = [one.num_rows for one in speech]
    return None if None in counts else sum(count or 0 for count in counts)


def total_bytes(speech: Iterable[Speech]) -> float | None:
    """Return the size of all audio, or None where one dataset does not say."""
    sizes = [one.num_bytes for one in speech]
    return None if None in sizes else sum(size or 0 for size in sizes)


def label_bytes(speech: Iterable[Speech]) -> float | None:
    """Return what the rows would take without audio, or None where one dataset does not say."""
    count = total_rows(speech)
    return None if count is None else float(count * LABEL_BYTES)


def batches(num_rows: int | None, batch_size: int, num_processes: int) -> Line:
    """Say how many batches each process has to decode."""
    count = (
        "unknown" if num_rows is None else f"{math.ceil(num_rows / batch_size / num_processes):,}"
    )
    return "steps", f"{count} batches of {batch_size} per process; processes: {num_processes}"


def windows_line(speech: Sequence[Speech], window_s: float) -> Line:
    """Say how many windows there are to decode, a clip being one and a recording several."""
    if any(one.num_rows is None or one.audio_s is None for one in speech):
        return "steps", "unknown windows"
    count = sum(max(one.num_rows or 0, math.ceil((one.audio_s or 0) / window_s)) for one in speech)
    return "steps", f"at least {count:,} windows of {window_s:g} s"


def sealed_rows(folder: Path, pattern: str) -> int:
    """Return how many rows of the input lie in whole shards of an unfinished run."""
    seals = [read_seal(path) for path in folder.glob(pattern)]
    return sum(seal.num_in for seal in seals if seal is not None)


# --- models ---------------------------------------------------------------------------------------


def model_line(name: str, model: checkpoint.Whisper) -> Line:
    """Say how large a model is."""
    config = model.model.config
    return "model", (
        f"{name}: {model.num_parameters / 1e6:,.1f} M parameters, {config.encoder_layers} + "
        f"{config.decoder_layers} layers"
    )


def decoding_memory(
    model: checkpoint.Whisper, batch_size: int, num_beams: int, num_ids: int
) -> Line:
    """Say what decoding takes at its longest: weights, and the decoder's keys and values."""
    config, itemsize = model.model.config, model.model.dtype.itemsize
    positions = config.max_source_positions + num_ids
    cache = 2 * config.decoder_layers * config.d_model * positions * itemsize
    cache *= batch_size * num_beams
    return "memory", (
        f"{size(model.num_bytes + cache)} at least: {size(model.num_bytes)} weights + "
        f"{size(cache)} keys and values; leaves out what a layer holds while it computes, and the "
        "libraries"
    )


# --- disk, and how things are said ----------------------------------------------------------------


def disk_line(folder: Path, needed: float | None, what: str) -> Line:
    """Say what would be written, and whether the disk has room for it."""
    free = free_bytes(folder)
    amount = "unknown" if needed is None else f"about {size(needed)}"
    short = "; THAT IS NOT ENOUGH" if needed is not None and needed > free else ""
    return "disk", f"{amount} for {what} in {folder}; {size(free)} are free{short}"


def _rows(count: int | None) -> str:
    return "unknown rows (a stream does not say)" if count is None else f"{count:,} rows"


def hours(seconds: float) -> str:
    """Return a duration for people to read."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def size(num: float) -> str:
    """Return a number of bytes for people to read, in powers of 1000."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num >= scale:
            return f"{num / scale:.2f} {unit}"
    return f"{num / 1e3:.2f} kB"
