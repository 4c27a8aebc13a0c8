"""Whether a clip's audio is still what it was: of a file size and time, of bytes their hash."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

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


def refuse_changed(name: str, audio: Mapping[str, Any] | None, state: str) -> None:
    """Raise ValueError if a clip's audio is no longer in a state that it was in before."""
    if clip_state(audio) != state:
        raise ValueError(
            f"the audio of clip {name!r} has changed while it was labelled: give the command "
            "again, and its shard is labelled anew"
        )
