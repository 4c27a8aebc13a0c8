"""Shards of a labelled split: labels joined with the rows they belong to, and sealed.

Each shard is a file of the dataset from the start, so that finishing a dataset is only a matter of
names. Audio is embedded when the shard is written, and must be what was labelled.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features

from distillery.data import column_types, hub_layout, schema
from distillery.data.collators import PROBLEM
from distillery.data.hub_layout import SplitFiles
from distillery.storage.ledger import Ledger
from distillery.storage.shards import Seal, read_seal, seal_path, write_sealed
from distillery.text import labels
from distillery.text.compression import compression_ratio
from distillery.text.error_rates import Totals, count_pairs
from distillery.text.normalizers import Normalizer, raw_text
from distillery.text.tokens import TRANSCRIBE, SpecialTokens, Tokenizer

logger = logging.getLogger(__name__)

EDITS = "edits"  # in a shard's seal: what its transcripts make of the references


def dataset_features(
    source: Mapping[str, Any] | None, decode_token_ids: bool, prompts_vary: bool = False
) -> Features:
    """Return the columns of the dataset: the contract's, and whatever else the source has."""
    labels = column_types.label_features(decode_token_ids, prompts_vary)
    ours = {**column_types.source_features(), **labels}
    more = {name: kind for name, kind in (source or {}).items() if name not in ours}
    return Features({**ours, **more})


@dataclass(frozen=True)
class ShardWriter:
    """Makes the files of one split.

    Attributes:
        files: of the split.
        features: columns of the dataset.
        tokens, tokenizer: of the teacher.
        decode_token_ids: store text, with Whisper's timestamps, instead of token ids.
        normalizer_of: for a language and a task, to score transcripts against the references.
        retry_quarantined: shards with clips that could not be used are made again.
        verify: shards that are there are compared with their checksums, and not only by size.
    """

    files: SplitFiles
    features: Features
    tokens: SpecialTokens
    tokenizer: Tokenizer
    decode_token_ids: bool
    normalizer_of: Callable[[str | None, str], Normalizer]
    retry_quarantined: bool = False
    verify: bool = False

    def account_of(self, shard: int) -> Ledger | None:
        """Return the account of a shard that is whole; None where it is to be made (again)."""
        path = self.files.sealed(shard)
        ledger = read_seal(path, None if path.exists() else self.files.found(shard), self.verify)
        is_wanted = ledger is None or (self.retry_quarantined and ledger.quarantined)
        return None if is_wanted else ledger

    def num_sealed(self) -> int:
        """Return how many shards have been sealed, by all processes."""
        return len(self.files.all_sealed())

    def write(
        self,
        shard: int,
        chunk: Sequence[Mapping[str, Any]],
        labelled: Sequence[Mapping[str, Any]],
        before: Mapping[str, Any] | None,
    ) -> Ledger:
        """Write and seal a shard.

        Args:
            shard: its number.
            chunk: its rows, with audio.
            labelled: the same rows without audio, each with its `PROBLEM`, or with the ids,
                `avg_logprob` and `truncated` of its transcript.
            before: the labelled row before the first, where it is the window before it.

        Raises:
            ValueError: an audio file is no longer what was labelled.
        """
        usable = [row for row in labelled if not row[PROBLEM]]
        for row in labelled:
            if row[PROBLEM]:
                # Other processes than the main one are heard only from this level on.
                logger.error("clip %s %s", row[schema.ID], row[PROBLEM])
        ledger = Ledger(num_in=len(labelled), num_out=len(usable))
        if len(usable) < len(labelled):
            ledger.quarantined[schema.AUDIO] = len(labelled) - len(usable)
        edits = self._edits(usable)
        self.files.withdraw(shard)
        write_sealed(
            self.files.outputs,
            self.files.sealed(shard),
            ledger,
            partial(self._write_rows, rows=self._rows(chunk, labelled, before), count=len(usable)),
            {EDITS: asdict(edits)} if edits else {},
        )
        return ledger

    def account(self) -> tuple[Ledger, Totals | None]:
        """Return the account of the whole split, and its edits where it has references."""
        seals = [Seal.read(seal_path(path)) for path in self.files.all_sealed()]
        edits = [Totals.from_dict(seal.notes[EDITS]) for seal in seals if EDITS in seal.notes]
        ledger = sum((seal.ledger for seal in seals), Ledger())
        return ledger, sum(edits[1:], edits[0]) if edits else None

    def _write_rows(self, path: Path, rows: Iterator[Mapping[str, Any]], count: int) -> None:
        hub_layout.write_parquet(path, rows, self.features)
        written = pq.read_metadata(path).num_rows
        if written != count:
            raise AssertionError(f"{path}: {written} rows were written, {count} were labelled")

    def _rows(
        self,
        chunk: Sequence[Mapping[str, Any]],
        labelled: Sequence[Mapping[str, Any]],
        before: Mapping[str, Any] | None,
    ) -> Iterator[dict[str, Any]]:
        """Join rows and labels, which must be of the same ids."""
        windows = [
            (row.get(schema.RECORDING_ID), row.get(schema.SPEAKER_ID), self._text_ids(row))
            for row in ([before] if before else []) + list(labelled)
        ]
        contexts = list(labels.previous_windows(iter(windows)))[1 if before else 0 :]
        for row, label, context in zip(chunk, labelled, contexts, strict=True):
            if row[schema.ID] != label[schema.ID]:
                raise AssertionError(f"the label of {label[schema.ID]!r} is at {row[schema.ID]!r}")
            if label[PROBLEM]:
                continue
            text = self._text(label)
            ids = label[schema.WHISPER_TRANSCRIPT]
            yield {
                **row,
                **label,
                schema.WHISPER_TRANSCRIPT: text if self.decode_token_ids else ids,
                schema.CONDITION_ON_PREV: context,
                schema.COMPRESSION_RATIO: compression_ratio(raw_text(text)),
                schema.AUDIO: hub_layout.embed_audio(row),
            }

    def _text_ids(self, row: Mapping[str, Any]) -> list[int] | None:
        """Return what the teacher wrote for a row; None where the clip could not be used."""
        if row[PROBLEM]:
            return None
        return labels.text_ids(row[schema.WHISPER_TRANSCRIPT], self.tokens)

    def _text(self, label: Mapping[str, Any]) -> str:
        ids = labels.text_ids(label[schema.WHISPER_TRANSCRIPT], self.tokens)
        return self.tokenizer.decode(ids, decode_with_timestamps=True)

    def _edits(self, labelled: Sequence[Mapping[str, Any]]) -> Totals | None:
        """Count the edits of the rows that have a reference in the language of their transcript."""
        pairs: dict[str | None, list[tuple[str, str]]] = {}
        for row in labelled:
            if row.get(schema.TEXT) and row[schema.TASK] == TRANSCRIBE:
                text = labels.plain_text(
                    row[schema.WHISPER_TRANSCRIPT], self.tokens, self.tokenizer
                )
                pairs.setdefault(row[schema.LANGUAGE], []).append(
                    (raw_text(row[schema.TEXT]), text)
                )
        edits = None
        for language, texts in pairs.items():
            normalizer = self.normalizer_of(language, TRANSCRIBE)
            if any(normalizer(reference) for reference, _ in texts):
                totals = count_pairs(texts, normalizer).totals()
                edits = totals if edits is None else edits + totals
        return edits


class ShardAssembly:
    """Gathers labelled rows, which may come in any order, and writes each shard that is whole."""

    def __init__(self, writer: ShardWriter, chunks: dict[int, Any]) -> None:
        """Begin without a row.

        Args:
            writer: of the split.
            chunks: the rows of each shard that was begun; those of a written shard are removed.
        """
        self._writer, self._chunks = writer, chunks
        self._labelled: dict[int, dict[int, Mapping[str, Any]]] = {}
        self._before: dict[int, Mapping[str, Any]] = {}

    def add(self, shard: int, position: int, row: Mapping[str, Any]) -> Ledger | None:
        """Take a labelled row; return the account of its shard if that is whole now.

        Args:
            shard: number of the shard.
            position: of the row in it; below 0 for the row before its first.
            row: as `ShardWriter.write` takes it.
        """
        labelled = self._labelled.setdefault(shard, {})
        if position < 0:
            self._before[shard] = row
        else:
            labelled[position] = row
        if len(labelled) < len(self._chunks[shard]):
            return None
        chunk, rows = self._chunks.pop(shard), self._labelled.pop(shard)
        in_order = [rows[position] for position in range(len(chunk))]
        return self._writer.write(shard, chunk, in_order, self._before.pop(shard, None))
