"""A model that is evaluated, with all that tells its results from those of others."""

from dataclasses import dataclass
from typing import Any

from distillery.whisper.checkpoint import Whisper


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated.

    Attributes:
        whisper: the model; for a dry run its outline.
        name: the whole path of a folder, or a Hub id.
        fingerprint: see `checkpoint.fingerprint`.
        revision: branch, tag or commit on the Hub.
        dtype: what it computes in.
        attention: the implementation that runs, by transformers' name.
        assistant, assistant_fingerprint: of the model that drafts for it, where there is one.
    """

    whisper: Whisper
    name: str
    fingerprint: str | None
    revision: str | None
    dtype: str
    attention: str
    assistant: str | None = None
    assistant_fingerprint: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return the items of a result that say which model it is about."""
        return {
            "model": self.name,
            "model_revision": self.revision,
            "model_fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "attention": self.attention,
            "assistant_model": self.assistant,
            "assistant_fingerprint": self.assistant_fingerprint,
        }
