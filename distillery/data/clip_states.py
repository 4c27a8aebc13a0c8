"""Whether a clip's audio is still what it was: of a file size and time, of bytes their hash."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from distillery.data import schema

ABSENT = "absent"


def clip_state(audio: Mapping[str, Any] | None) -> str:
    """Return a text that is another one once the audio has changed."""
    content = (audio or {}).get("bytes")
    if content is not None:
        return f"{len(content)} bytes, {blake2b(content, digest_size=8).hexdigest()}"
    try:
        state = Path((audio or {})["path"] or "\0").stat()
    except (KeyError, TypeError, OSError, ValueError):  # it is not there, or its name is none
        return ABSENT
    return f"{state.st_size} bytes of {state.st_mtime_ns} ns"


def changed_clips(chunk: Any, states: Mapping[str, str | None]) -> list[str]:
    """Return the ids of clips whose audio is no longer in the state that is given by their id.

    Bytes that a map-style dataset holds are not read: they are checked when they are copied.

    Args:
        chunk: a map-style dataset, or a list of rows.
        states: what `clip_state` returned before.
    """
    audio_by_id = _files(chunk) if isinstance(chunk, Dataset) else _sources(chunk)
    return [name for name, audio in audio_by_id if states.get(name) != clip_state(audio)]


def _sources(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((row[schema.ID], row[schema.AUDIO]) for row in rows)


def _files(rows: Dataset) -> Iterator[tuple[str, Any]]:
    """Yield (id, audio) of the rows that name a file."""
    table = rows.select_columns([schema.ID, schema.AUDIO]).with_format("arrow")[:]
    audio = table[schema.AUDIO]
    named = pc.is_null(pc.struct_field(audio, "bytes"))
    ids = table[schema.ID].filter(named).to_pylist()
    paths = pc.struct_field(audio, "path").filter(named).to_pylist()
    return ((name, {"bytes": None, "path": path}) for name, path in zip(ids, paths, strict=True))
