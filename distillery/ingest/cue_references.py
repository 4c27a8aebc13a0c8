"""References of recordings that stay whole, from their subtitles: the text, and its times."""

import logging
from pathlib import Path
from typing import Any

from datasets import Features, IterableDataset, Value
from datasets.features import List

from distillery.data import schema
from distillery.data.column_types import Rows
from distillery.ingest.segmentation import is_part, read_subtitles_of
from distillery.storage.ledger import Ledger
from distillery.storage.names import printable
from distillery.text.spacing import joined
from distillery.text.subtitles import Cue

logger = logging.getLogger(__name__)

TYPES = {
    schema.TEXT: Value("string"),
    schema.SEGMENTS: List(
        {
            schema.SEGMENT_START: Value("float64"),
            schema.SEGMENT_END: Value("float64"),
            schema.TEXT: Value("string"),
        }
    ),
}
READ = (schema.ID, schema.SUBTITLES, schema.OFFSET, schema.DURATION, *TYPES)


def with_references(rows: Rows, folder: Path) -> Rows:
    """Return recordings with the cues of their subtitles as `segments`, and joined as `text`.

    What a row has of the two itself is kept. No audio is read. Cues that cannot be used are named
    in the log. A row that is a part of a file stays as it is, as the cues are the whole file's.

    Args:
        rows: recordings, of which some may name `subtitles`.
        folder: that their paths are relative to.

    Raises:
        FileNotFoundError, ValueError: as `segmentation.read_subtitles_of`; of a stream as it is
            read.
    """
    others = {k: kind for k, kind in rows.features.items() if k not in (*TYPES, schema.SUBTITLES)}
    if isinstance(rows, IterableDataset):
        return rows.map(
            lambda row: _references(row, folder, Ledger()),
            remove_columns=[schema.SUBTITLES],
            features=Features({**others, **TYPES}),
        )
    known, account = [name for name in READ if name in rows.column_names], Ledger()
    found = [_references(row, folder, account) for row in rows.select_columns(known)]
    logger.info("%d recordings stay whole; cues of their subtitles: %s", len(rows), account)
    rows = rows.select_columns(list(others))
    for name, kind in TYPES.items():  # beside the audio, which is not copied
        rows = rows.add_column(name, [each[name] for each in found], feature=kind)
    return rows


def _references(row: dict[str, Any], folder: Path, account: Ledger) -> dict[str, Any]:
    """Return text and segments of a row; its cues are added to the account."""
    own = {name: row.get(name) for name in TYPES}
    if not row.get(schema.SUBTITLES) or is_part(row):
        return own
    path = folder / row[schema.SUBTITLES]
    read = read_subtitles_of(row, path)
    account.num_in += len(read.cues) + len(read.refused)
    account.num_out += len(read.cues)
    for line, reason in read.refused:
        account.dropped[reason] += 1
        name, place = printable(row[schema.ID]), printable(f"{path.name}, line {line}")
        logger.warning("recording %s, %s: dropped: %s", name, place, reason)
    return {
        schema.TEXT: own[schema.TEXT] or joined(cue.text for cue in read.cues),
        schema.SEGMENTS: own[schema.SEGMENTS] or [_segment(cue) for cue in read.cues],
    }


def _segment(cue: Cue) -> dict[str, Any]:
    return {
        schema.SEGMENT_START: cue.start_ms / 1000,
        schema.SEGMENT_END: cue.end_ms / 1000,
        schema.TEXT: cue.text,
    }
