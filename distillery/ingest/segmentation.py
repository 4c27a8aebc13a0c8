"""Long recordings to clips of at most one window: at the cues of subtitles, or at pauses.

A recording with subtitles becomes one clip for each cue, with the cue's text. One without is cut
where nobody speaks, which the network Silero VAD finds. A row of a manifest that is a part of a
file (NeMo's `offset` and `duration`) is cut out of it. Every recording is decoded once, and held in
memory while it is cut: an hour at 44.1 kHz takes 0.6 GB, and 0.2 GB more where pauses are looked
for. Clips are stored as FLAC, because a part of a compressed file cannot be kept as it is.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow.compute as compute
import soxr
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from datasets.config import HF_DATASETS_CACHE
from filelock import FileLock

from distillery.audio.decoding import AudioError, Waveform, decode_at_own_rate, encode_flac
from distillery.data import column_types, schema
from distillery.data.column_types import MapStyleRows, Rows, read_columns
from distillery.data.specs import NONE, VAD
from distillery.ingest.file_trees import is_file
from distillery.ingest.speech import VAD_RATE, speech_finder, speech_windows
from distillery.storage.files import read_json, replacing, write_json
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable
from distillery.storage.progress import ProgressBar
from distillery.text import subtitles

logger = logging.getLogger(__name__)

ROUNDING_MS = 100  # a manifest's duration may differ so much from that of the file it names
MOST_CACHE_FILES = 100
FORMAT = 2  # of the cache: clips that an older version of this module cut are not taken

Row: TypeAlias = dict[str, Any]


class Piece(NamedTuple):
    """A part of a recording in milliseconds, and what is said in it, where that is known."""

    start_ms: int
    end_ms: int
    text: str | None

    def id_in(self, recording_id: str) -> str:
        """Return a name for the piece that no other piece of the recording has."""
        return f"{recording_id}-{self.start_ms / 1000:09.3f}-{self.end_ms / 1000:09.3f}"


@dataclass(frozen=True)
class Segmentation:
    """How recordings are cut.

    `mode` is one of `MODES`: "none" leaves recordings whole, "cues" cuts where there are any, "vad"
    cuts recordings without them too. No clip is longer than `max_s` seconds. Paths of subtitles are
    relative to `folder`.
    """

    mode: str
    max_s: float
    folder: Path

    def applies(self, rows: Rows) -> bool:
        """Tell whether any row may have to be cut."""
        has_cues = self.mode != NONE and schema.SUBTITLES in rows.column_names
        return self.mode == VAD or has_cues or _has_parts(rows)


def cut(
    rows: Rows,
    cuts: Segmentation,
    cache_dir: str | None = None,
    max_clips: int | None = None,
) -> Rows:
    """Cut recordings into clips, which follow each other in the order of the recording.

    A clip's id is the recording's with the clip's times, and `recording_id` (where the row has
    none), `start_s` and `end_s` say where it comes from. A row that needs no cutting stays as
    it is, its audio untouched, and so does a recording that cannot be decoded: the stage that
    decodes it says why.

    Args:
        rows: recordings, with the columns of the contract.
        cuts: what to cut, and where.
        cache_dir: folder for clips of rows that are not streamed, else the library's cache. Clips
            that an earlier run cut from the same content are taken from there.
        max_clips: the most clips to return; None for all.

    Raises:
        FileNotFoundError: subtitles that a row names are not there.
        ValueError: subtitles that cannot be read, or a missing `silero-vad`.
    """
    if cuts.mode == VAD:
        speech_finder()  # fails at once where it is missing
    features = _clip_features(rows.features)
    if not isinstance(rows, IterableDataset):
        return _cut_into_cache(rows, features, cuts, cache_dir, max_clips)
    cutter = _Cutter(cuts)
    clips = rows.map(
        lambda batch: _cut_batch(cutter, batch, features),
        batched=True,
        batch_size=1,
        remove_columns=list(rows.column_names),
        features=features,
    )
    return clips if max_clips is None else clips.take(max_clips)


def _has_parts(rows: Rows) -> bool:
    """Tell whether there are rows that are parts of files: an offset and a duration."""
    if not {schema.OFFSET, schema.DURATION} <= set(rows.column_names):
        return False
    if isinstance(rows, IterableDataset):
        return True
    # NeMo writes a zero for every file that is one clip.
    offsets = read_columns(rows, schema.OFFSET)[schema.OFFSET]
    return any(offset not in (None, "", "0", "0.0", 0) for offset in offsets.unique().to_pylist())


def _clip_features(source: Features) -> Features:
    """Return the types of clips: the contract's, the times, and the source's other columns."""
    kept = {k: v for k, v in source.items() if k not in (schema.SUBTITLES, schema.OFFSET)}
    known = {name: column_types.SOURCE_TYPES[name] for name in (schema.TEXT, schema.RECORDING_ID)}
    known[schema.DURATION] = column_types.SOURCE_TYPES[schema.DURATION]
    # A plain struct: the library's Audio needs torchcodec to write what is encoded already.
    known[schema.AUDIO] = {"bytes": Value("binary"), "path": Value("string")}
    return Features({**kept, **known, schema.START: Value("float64"), schema.END: Value("float64")})


def _cut_batch(
    cutter: "_Cutter", batch: Mapping[str, list[Any]], features: Features
) -> dict[str, list[Any]]:
    clips = list(cutter.clips({name: values[0] for name, values in batch.items()}))
    return {name: [clip.get(name) for clip in clips] for name in features}


# --- rows that are not streamed: clips in the cache ----------------------------------------------


def _cut_into_cache(
    rows: MapStyleRows,
    features: Features,
    cuts: Segmentation,
    cache_dir: str | None,
    max_clips: int | None,
) -> Dataset:
    """Cut a few recordings at a time, each lot into a file that a later run finds again."""
    folder = Path(cache_dir or HF_DATASETS_CACHE) / "segments"
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // MOST_CACHE_FILES)
    parts: list[Dataset] = []
    cutter, account = _Cutter(cuts), Ledger()
    for start in ProgressBar(range(0, len(rows), size), desc="cutting", unit=" files", leave=False):
        lot = rows.select(range(start, min(start + size, len(rows))))
        path = folder / f"{_content_checksum(lot, cuts)}.arrow"
        with FileLock(f"{path}.lock"):  # the first process of a launch cuts, the others wait
            if not _is_cut(path):
                _write_clips(path, lot, features, cutter)
        parts.append(Dataset.from_file(str(path)))
        account += Ledger.from_dict(read_json(_account_path(path))["account"])
        if max_clips is not None and sum(map(len, parts)) >= max_clips:
            break
    clips = concatenate_datasets(parts, split=rows.split)
    clips = clips if max_clips is None else clips.take(max_clips)
    _report(clips, min(start + size, len(rows)), account)
    return clips


def _report(clips: Dataset, num_recordings: int, account: Ledger) -> None:
    times = clips.select_columns([schema.START, schema.END]).with_format("arrow")[:]
    kept_s = compute.sum(compute.subtract(times[schema.END], times[schema.START])).as_py() or 0.0
    logger.info(
        "%d recordings, %d clips, of which %.1f s were cut out; pieces of recordings: %s",
        num_recordings,
        len(clips),
        kept_s,
        account,
    )


def _write_clips(path: Path, lot: MapStyleRows, features: Features, cutter: "_Cutter") -> None:
    """Cut a lot into a file of the datasets library, and then write the account beside it."""
    cutter.account, cutter.undecoded = Ledger(), []
    with replacing(path) as temporary:
        writer = ArrowWriter(features=features, path=str(temporary), writer_batch_size=100)
        for clip in (clip for row in lot for clip in cutter.clips(row)):
            writer.write({name: clip.get(name) for name in features})
        writer.finalize()
    account = {"account": cutter.account.to_dict(), "undecoded": cutter.undecoded}
    write_json(_account_path(path), account)


def _is_cut(path: Path) -> bool:
    """Tell whether a lot was cut whole; recordings that failed to decode are tried again."""
    is_whole = path.exists() and _account_path(path).exists()
    return is_whole and not read_json(_account_path(path))["undecoded"]


def _account_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _content_checksum(lot: MapStyleRows, cuts: Segmentation) -> str:
    """Return a checksum of what determines the clips; of files, path, size and time."""
    digest = hashlib.sha256(f"{FORMAT} {cuts} {lot.features}".encode())
    for row in lot:
        audio = row.pop(schema.AUDIO) or {}
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        digest.update(audio.get("bytes") or b"")
        for name in (audio.get("path"), cuts.folder / (row.get(schema.SUBTITLES) or "")):
            path = Path(name or "")
            state = path.stat() if is_file(path) else None
            digest.update(f"{path} {state and (state.st_size, state.st_mtime_ns)}".encode())
    return digest.hexdigest()[:32]


# --- one recording -------------------------------------------------------------------------------


@dataclass
class _Cutter:
    """Cuts recordings one after the other, and counts the pieces: cues, parts, speech, rows."""

    cuts: Segmentation
    account: Ledger = field(default_factory=Ledger)
    undecoded: list[str] = field(default_factory=list)  # ids of recordings
    _last: tuple[Any, tuple[Waveform, int]] | None = None

    def clips(self, row: Row) -> Iterator[Row]:
        """Yield a row's clips; the row itself where there is nothing to cut."""
        find = self._finder(row)
        if find is None:
            yield self._whole(row)
            return
        try:
            samples, rate = self._decoded(row)
        except AudioError as error:
            logger.warning("recording %s %s", printable(row[schema.ID]), printable(error))
            self.undecoded.append(row[schema.ID])
            yield self._whole(row)
            return
        pieces = find(row, samples, rate)
        if pieces is None:
            yield self._whole(row)
            return
        for piece in pieces:
            self.account.num_out += 1
            yield self._clip(row, samples, rate, piece)

    def _finder(self, row: Row) -> Callable[[Row, Waveform, int], list[Piece] | None] | None:
        if is_part(row):
            return self._part
        if row.get(schema.SUBTITLES) and self.cuts.mode != NONE:
            return self._cues
        return self._speech if self.cuts.mode == VAD else None

    def _whole(self, row: Row) -> Row:
        self.account.num_in += 1
        self.account.num_out += 1
        try:
            duration = column_types.seconds(row.get(schema.DURATION))
        except ValueError:  # who decodes the clip finds its length
            duration = None
        return {**row, schema.DURATION: duration}

    def _decoded(self, row: Row) -> tuple[Waveform, int]:
        """Decode a recording, unless it is that of the row before."""
        key = row[schema.AUDIO]
        if self._last is None or self._last[0] != key:
            self._last = (key, decode_at_own_rate(key))
        return self._last[1]

    def _drop(self, row: Row, reason: str, where: str) -> None:
        self.account.dropped[reason] += 1
        name, place = printable(row[schema.ID]), printable(where)
        logger.warning("recording %s, %s: dropped: %s", name, place, reason)

    def _cues(self, row: Row, samples: Waveform, rate: int) -> list[Piece]:
        """Return the cues of the recording's subtitles that can be used."""
        path = self.cuts.folder / row[schema.SUBTITLES]
        read = read_subtitles_of(row, path)
        self.account.num_in += len(read.cues) + len(read.refused)
        for line, reason in read.refused:
            self._drop(row, reason, f"{path.name}, line {line}")
        lasts_ms = len(samples) * 1000 // rate
        kept = []
        for cue in read.cues:
            if cue.start_ms >= lasts_ms:
                self._drop(row, "begins after the recording", f"{path.name}, line {cue.line}")
            elif cue.end_ms - cue.start_ms > self.cuts.max_s * 1000:
                self._drop(row, "longer than a clip may be", f"{path.name}, line {cue.line}")
            else:
                kept.append(Piece(cue.start_ms, min(cue.end_ms, lasts_ms), cue.text))
        return kept

    def _part(self, row: Row, samples: Waveform, rate: int) -> list[Piece] | None:
        """Return the part of a file that a row names; None where it is all of the file."""
        try:
            start_s, lasts_s = (
                column_types.seconds(row[name]) or 0.0 for name in (schema.OFFSET, schema.DURATION)
            )
        except ValueError as error:
            self.account.num_in += 1
            self.account.quarantine("no number of seconds", row[schema.ID])
            logger.warning(
                "recording %s: left out: offset or duration is %s", row[schema.ID], error
            )
            return []
        start_ms = round(start_s * 1000)
        end_ms = start_ms + round(lasts_s * 1000)
        lasts_ms = len(samples) * 1000 // rate
        if start_ms == 0 and end_ms >= lasts_ms - ROUNDING_MS:
            return None
        self.account.num_in += 1
        if not 0 <= start_ms < min(end_ms, lasts_ms):
            self._drop(row, "not in the recording", f"{start_ms / 1000:g}-{end_ms / 1000:g} s")
            return []
        return [Piece(start_ms, min(end_ms, lasts_ms), row.get(schema.TEXT))]

    def _speech(self, row: Row, samples: Waveform, rate: int) -> list[Piece] | None:
        """Return the pieces with speech; None for a recording that fits into one clip."""
        if len(samples) <= self.cuts.max_s * rate:
            return None
        windows = speech_windows(soxr.resample(samples, rate, VAD_RATE), self.cuts.max_s)
        self.account.num_in += max(1, len(windows))
        if not windows:
            self._drop(row, "no speech", f"{len(samples) / rate:.1f} s")
        if row.get(schema.TEXT):
            logger.warning("recording %s: its text cannot be divided among clips", row[schema.ID])
        return [Piece(start_ms, end_ms, None) for start_ms, end_ms in windows]

    def _clip(self, row: Row, samples: Waveform, rate: int, piece: Piece) -> Row:
        has_id = is_part(row)  # then the row's id is the clip's already
        # Rounded down at both ends: a clip of exactly one window stays one at every rate.
        inside = samples[piece.start_ms * rate // 1000 : piece.end_ms * rate // 1000]
        return {
            **row,
            schema.ID: row[schema.ID] if has_id else piece.id_in(row[schema.ID]),
            schema.AUDIO: {"bytes": encode_flac(inside, rate), "path": None},
            schema.TEXT: piece.text,
            schema.RECORDING_ID: row.get(schema.RECORDING_ID)
            or (self._file_name(row) if has_id else row[schema.ID]),
            schema.DURATION: (piece.end_ms - piece.start_ms) / 1000,
            schema.START: piece.start_ms / 1000,
            schema.END: piece.end_ms / 1000,
        }

    def _file_name(self, row: Row) -> str:
        """Return the name of a row's recording, relative to the folder of the manifest."""
        path = Path(row[schema.AUDIO].get("path") or row[schema.ID])
        folder = self.cuts.folder.resolve()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path.name)


def read_subtitles_of(row: Row, path: Path) -> subtitles.Subtitles:
    """Read the subtitles that a row names, or raise as `read_subtitles` does."""
    if not is_file(path):
        raise FileNotFoundError(
            f"recording {row[schema.ID]}: its subtitles {path} are not there: correct the manifest"
        )
    return subtitles.read_subtitles(path)


def is_part(row: Row) -> bool:
    """Tell whether a row is a part of its file, by its offset and duration."""
    return all(row.get(name) not in (None, "") for name in (schema.OFFSET, schema.DURATION))
