"""Shards of a labelled split: labels joined with the rows they belong to, and sealed.

Each shard is a file of the dataset from the start, so that finishing a dataset is only a matter of
names. Audio is embedded when the shard is written, or stays where the source is.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.parquet as pq
from datasets import Features

from distillery.data import column_types, hub_layout, schema
from distillery.data.clip_states import refuse_changed
from distillery.data.collators import CLIP_STATE, IS_DROPPED, PROBLEM, REASON
from distillery.data.hub_layout import SplitFiles
from distillery.data.packed_windows import WindowPacking, fill_of_rows, whole_windows, with_audio
from distillery.data.packing import Fill
from distillery.labelling.clips import ShardQueue
from distillery.labelling.transcripts import Transcripts
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable
from distillery.storage.shards import Seal, read_seal, seal_path, write_sealed
from distillery.text import labels
from distillery.text.error_rates import Totals

logger = logging.getLogger(__name__)

EDITS, WINDOWS, NUM_EMPTY = "edits", "windows", "num_empty"  # notes in a seal: see `Account`
MANY_EMPTY = 0.02  # of the transcripts: more are a sign of a wrong flag
IDS = "ids"  # a digest of the ids of its rows

Row: TypeAlias = Mapping[str, Any]


def dataset_features(
    source: Mapping[str, Any] | None,
    decode_token_ids: bool,
    prompts_vary: bool = False,
    temperatures_vary: bool = False,
    with_audio: bool = True,
) -> Features:
    """Return the columns of the dataset: the contract's, and whatever else the source has.

    Args:
        source: columns of the source.
        decode_token_ids, prompts_vary, temperatures_vary: as in `column_types.label_features`.
        with_audio: False leaves the audio to the source.
    """
    added = column_types.label_features(decode_token_ids, prompts_vary, temperatures_vary)
    ours = {**column_types.source_features(), **added}
    more = {name: kind for name, kind in (source or {}).items() if name not in ours}
    columns = {**ours, **more}
    return Features({name: columns[name] for name in columns if with_audio or name != schema.AUDIO})


@dataclass(frozen=True)
class Account:
    """What became of a split.

    Attributes:
        ledger: of its clips.
        edits: between references and transcripts; None where there are no references.
        windows: how full they are; None where clips are not packed.
        num_empty: rows that the teacher wrote nothing of.
    """

    ledger: Ledger
    edits: Totals | None
    windows: Fill | None
    num_empty: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of the labelled split: clips, or windows of them."""
        return self.ledger.num_out if self.windows is None else self.windows.num_windows


def warn_of_empty_transcripts(accounts: Collection[Account]) -> None:
    """Log that many transcripts of a dataset are empty, and what is likely to be wrong."""
    num_empty = sum(account.num_empty for account in accounts)
    num_rows = sum(account.num_rows for account in accounts)
    if num_empty > MANY_EMPTY * num_rows:
        logger.warning(
            "%d of %d transcripts are empty: listen to some of these clips. If they hold speech, "
            "--language or --task is likely to be wrong, or the sampling rate in their headers",
            *(num_empty, num_rows),
        )


@dataclass(frozen=True)
class ShardWriter:
    """Makes the files of one split.

    Attributes:
        files: of the split.
        features: columns of the dataset; without `audio`, labels lie beside their source.
        transcripts: what is made of the teacher's ids.
        packing: how clips share windows; None where each has its own.
        verify: shards that are there are compared with their checksums, and not only by size.
    """

    files: SplitFiles
    features: Features
    transcripts: Transcripts
    packing: WindowPacking | None = None
    verify: bool = False

    @property
    def _with_audio(self) -> bool:
        return schema.AUDIO in self.features

    def account_of(self, shard: int) -> Ledger | None:
        """Return the account of a shard that is whole; None where it is to be made (again)."""
        return self._account_of(shard, self.verify)

    def is_whole(self, shard: int) -> bool:
        """Tell whether a shard is there: a seal alone may be of a file that is made again."""
        return self._account_of(shard, verify=False) is not None

    def unseal_quarantined(self) -> None:
        """Let the shards be made again that hold clips which could not be used.

        To be called before any process begins: a shard that keeps its seal counts as made.
        """
        seals = [seal_path(path) for path in self.files.all_sealed()]
        bad = [path for path in seals if Seal.read(path).ledger.quarantined]
        self.files.outputs.remove(bad)

    def _account_of(self, shard: int, verify: bool) -> Ledger | None:
        path = self.files.sealed(shard)
        return read_seal(path, None if path.exists() else self.files.found(shard), verify)

    def refuse_other_rows(self, shard: int, chunk: Any) -> None:
        """Raise ValueError if a sealed shard was made of other rows than its chunk has now."""
        if Seal.read(seal_path(self.files.sealed(shard))).notes[IDS] != _digest_of_ids(chunk):
            raise ValueError(
                f"shard {shard} was made of other rows than the dataset has now: "
                "--retry_quarantined wants the same rows, in which only audio was mended; start "
                "over with --overwrite_output_dir"
            )

    def account(self) -> Account:
        """Return the account of the whole split."""
        seals = [Seal.read(seal_path(path)) for path in self.files.all_sealed()]
        edits = [Totals.from_dict(seal.notes[EDITS]) for seal in seals if EDITS in seal.notes]
        windows = [Fill(**seal.notes[WINDOWS]) for seal in seals if WINDOWS in seal.notes]
        return Account(
            sum((seal.ledger for seal in seals), Ledger()),
            sum(edits[1:], edits[0]) if edits else None,
            sum(windows[1:], windows[0]) if windows else None,
            sum(seal.notes.get(NUM_EMPTY, 0) for seal in seals),
        )

    def publish(self) -> None:
        """Give all shards their names in the dataset, and count what lies in them.

        Raises:
            AssertionError: there are not as many rows as were labelled.
        """
        account = self.account()
        num_rows = hub_layout.num_rows(self.files.publish())
        if num_rows != account.num_rows:
            raise AssertionError(
                f"{num_rows} rows lie in the files, {account.num_rows} were labelled"
            )

    def num_clips(self, row: Row) -> int:
        """Return how many clips a labelled row stands for: those of a window, or one."""
        return 1 if self.packing is None else len(row[schema.SEGMENT_IDS])

    def write(
        self, shard: int, chunk: Sequence[Row], labelled: Sequence[Row], before: Row | None
    ) -> Ledger:
        """Write and seal a shard.

        Args:
            shard: its number.
            chunk: its rows, with audio.
            labelled: the same rows, or windows of them, without audio; each with its `PROBLEM`, or
                with the ids, `avg_logprob` and `truncated` of its transcript.
            before: the labelled row before the first, where it is the window before it.

        Raises:
            AssertionError: rows were lost: a fault of this software.
            ValueError: a clip is no longer what was labelled.
        """
        usable = [row for row in labelled if not row[PROBLEM]]
        ledger = Ledger(num_in=len(chunk), num_out=sum(map(self.num_clips, usable)))
        for row in labelled:
            if row.get(IS_DROPPED):
                ledger.dropped[row[REASON]] += self.num_clips(row)
            elif row[PROBLEM]:
                ledger.quarantined[row[REASON]] += self.num_clips(row)
                # Other processes than the main one are heard only from this level on.
                logger.error("clip %s %s", printable(row[schema.ID]), printable(row[PROBLEM]))
        complete = self._with_context(labelled, before)
        rows = (
            self._joined(chunk, complete) if self.packing is None else self._packed(chunk, complete)
        )
        self.files.withdraw(shard)
        write = partial(self._write_rows, rows=rows, count=len(usable))
        path = self.files.sealed(shard)
        notes = {IDS: _digest_of_ids(chunk), **self._notes(usable)}
        write_sealed(self.files.outputs, path, ledger, write, notes)
        return ledger

    def _notes(self, labelled: Sequence[Row]) -> dict[str, Any]:
        """Return what else the seal says of usable rows."""
        edits = self.transcripts.edits(labelled)
        notes: dict[str, Any] = {NUM_EMPTY: sum(map(self.transcripts.is_empty, labelled))}
        if edits:
            notes[EDITS] = asdict(edits)
        if self.packing is not None:
            notes[WINDOWS] = asdict(fill_of_rows(labelled, self.packing.log_mel.window_s))
        return notes

    def _with_context(self, labelled: Sequence[Row], before: Row | None) -> list[Row]:
        """Return the rows with the columns of the contract; what is unusable stays as it is."""
        rows = [before, *labelled] if before else list(labelled)
        windows = [
            (
                row.get(schema.RECORDING_ID),
                row.get(schema.SPEAKER_ID),
                None if row[PROBLEM] else self.transcripts.text_ids(row),
            )
            for row in rows
        ]
        contexts = labels.previous_windows(iter(windows))
        complete = [
            row if row[PROBLEM] else self.transcripts.columns(row, context)
            for row, context in zip(rows, contexts, strict=True)
        ]
        return complete[1:] if before else complete

    def _joined(self, chunk: Sequence[Row], labelled: Sequence[Row]) -> Iterator[Row]:
        """Join rows and labels, which must be of the same ids."""
        for row, label in zip(chunk, labelled, strict=True):
            if row[schema.ID] != label[schema.ID]:
                raise AssertionError(f"the label of {label[schema.ID]!r} is at {row[schema.ID]!r}")
            if not label[PROBLEM]:
                refuse_changed(row[schema.ID], row[schema.AUDIO], label[CLIP_STATE])
                audio = hub_layout.embed_audio(row) if self._with_audio else None
                yield {**row, **label, schema.AUDIO: audio}

    def _packed(self, chunk: Sequence[Row], labelled: Sequence[Row]) -> Iterator[Row]:
        assert self.packing is not None
        windows = [row for row in labelled if not row[PROBLEM]]
        if self._with_audio:
            return with_audio(chunk, windows, self.packing.log_mel.sampling_rate)
        return (window for window, _ in whole_windows(chunk, windows))  # in the same order

    def _write_rows(self, path: Path, rows: Iterator[Row], count: int) -> None:
        hub_layout.write_parquet(path, rows, self.features)
        written = pq.read_metadata(path).num_rows
        if written != count:
            raise AssertionError(f"{path}: {written} rows were written, {count} were labelled")


def _digest_of_ids(chunk: Any) -> str:
    """Return what other ids, or another order of them, have another one of."""
    ids = [row[schema.ID] for row in chunk] if isinstance(chunk, list) else chunk[schema.ID]
    return blake2b("\0".join(ids).encode(errors="surrogatepass"), digest_size=16).hexdigest()


class ShardAssembly:
    """Gathers labelled rows, which may come in any order, and writes each shard that is whole."""

    def __init__(self, writer: ShardWriter, queue: ShardQueue) -> None:
        """Begin without a row.

        Args:
            writer: of the split.
            queue: that the clips come from; what it keeps of a written shard is removed.
        """
        self._writer, self._queue = writer, queue
        self._labelled: dict[int, dict[int, Row]] = {}
        self._before: dict[int, Row] = {}

    def add(self, shard: int, position: int, row: Row) -> Ledger | None:
        """Take a labelled row; return the account of its shard if that is whole now.

        The window before the first may come out last.

        Args:
            shard: number of the shard.
            position: of the row, or of the window, in it; below 0 for the row before its first.
            row: as `ShardWriter.write` takes it.
        """
        labelled = self._labelled.setdefault(shard, {})
        if position < 0:
            self._before[shard] = row
        else:
            labelled[position] = row
        chunk = self._queue.chunks[shard]
        num_clips = sum(map(self._writer.num_clips, labelled.values()))
        lacks_context = shard in self._queue.followers and shard not in self._before
        if num_clips < len(chunk) or lacks_context:
            return None
        del self._queue.chunks[shard], self._labelled[shard]
        self._queue.followers.discard(shard)
        in_order = [labelled[place] for place in sorted(labelled)]
        return self._writer.write(shard, chunk, in_order, self._before.pop(shard, None))
