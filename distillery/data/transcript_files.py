"""Transcripts of recordings in a folder: a file of JSON lines for all, and texts for each."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.data import schema
from distillery.storage import json_lines
from distillery.storage.json_lines import JsonRow
from distillery.storage.names import file_name
from distillery.storage.outputs import Outputs
from distillery.text.subtitles import srt_text, webvtt_text
from distillery.text.timestamps import Segment

logger = logging.getLogger(__name__)

TXT, SRT, VTT = TEXT_FORMATS = ("txt", "srt", "vtt")  # of each recording

ALL = "predictions.jsonl"


def segment_rows(segments: Iterable[Segment]) -> list[JsonRow]:
    """Return segments as they are written as JSON."""
    return [
        {
            schema.SEGMENT_START: round(segment.start, 3),
            schema.SEGMENT_END: round(segment.end, 3),
            schema.TEXT: segment.text,
        }
        for segment in segments
    ]


def segments_of(rows: Iterable[Mapping[str, Any]]) -> list[Segment]:
    """Return the segments that `segment_rows` wrote."""
    return [
        Segment(row[schema.SEGMENT_START], row[schema.SEGMENT_END], row[schema.TEXT])
        for row in rows
    ]


def transcript_text(kind: str, row: Mapping[str, Any]) -> str:
    """Return a transcript as the text of a file: `txt`, `srt` or `vtt`."""
    if kind == TXT:
        return f"{row[schema.TEXT]}\n"
    return {SRT: srt_text, VTT: webvtt_text}[kind](segments_of(row[schema.SEGMENTS]))


@dataclass(frozen=True)
class TranscriptFiles:
    """The transcripts in a folder.

    `predictions.jsonl` has a row for each recording: `id`, `text` and `segments` at least. It grows
    row by row, by any number of processes. A folder for each other format has a file for each
    recording, which is there before its row is. Ids become names that are safe (`file_name`).
    """

    outputs: Outputs
    formats: Sequence[str]

    @property
    def path(self) -> Path:
        """Return the file for all."""
        return self.outputs.folder / ALL

    def path_of(self, row_id: str, kind: str) -> Path:
        """Return the file of one recording in one format."""
        return self.outputs.folder / kind / f"{file_name(row_id)}.{kind}"

    def read(self) -> dict[str, JsonRow]:
        """Return the rows that are there, by id; one that was cut short by a kill is not.

        Raises:
            ValueError: a line is no row.
        """
        return {row[schema.ID]: row for row in json_lines.read_rows(self.path)}

    def add(self, row: JsonRow) -> None:
        """Write a recording's files, and then its row."""
        self._write_texts(row, [kind for kind in self.formats if kind in TEXT_FORMATS])
        json_lines.append_row(self.path, row)

    def is_whole(self) -> bool:
        """Tell whether the file for all is there, and the files of every recording in it."""
        return self.path.exists() and not any(self._missing(row_id) for row_id in self.read())

    def complete(self, ids: Iterable[str]) -> int:
        """Write what is missing, put the rows into an order, and return how many of these ids are.

        No process may be adding rows any more. Rows of other ids stay, behind these.
        """
        rows = self.read()
        named = [row_id for row_id in ids if row_id in rows]
        ordered = {row_id: rows[row_id] for row_id in (*named, *rows)}
        if len(ordered) > len(named):
            num_others = len(ordered) - len(named)
            logger.warning("%s: %d rows of recordings that are gone stay", self.path, num_others)
        for row_id, row in rows.items():
            self._write_texts(row, self._missing(row_id))
        if list(ordered) != list(rows) or not self.path.exists():
            with self.outputs.replacing(self.path) as temporary:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in ordered.values())
                temporary.write_text("".join(lines), encoding="utf-8")
        for suffix in ("lock", "torn"):  # what was torn is written again
            Path(f"{self.path}.{suffix}").unlink(missing_ok=True)
        return len(named)

    def _missing(self, row_id: str) -> list[str]:
        kinds = [kind for kind in self.formats if kind in TEXT_FORMATS]
        return [kind for kind in kinds if not self.path_of(row_id, kind).exists()]

    def _write_texts(self, row: JsonRow, kinds: Iterable[str]) -> None:
        for kind in kinds:
            with self.outputs.replacing(self.path_of(row[schema.ID], kind)) as temporary:
                temporary.write_text(transcript_text(kind, row), encoding="utf-8")
