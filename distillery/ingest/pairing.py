"""The account of texts and clips that are paired by name."""

from dataclasses import dataclass, field
from typing import Any

from distillery.storage.ledger import Ledger, listed_places


@dataclass
class Pairing:
    """The account of the texts and of the clips of one source.

    Attributes:
        texts: files or lines with a text; out are those that have their clip.
        clips: the files beside them; out are those that become rows.
        without_text: clips that become rows without a text, for a teacher to label.
    """

    texts: Ledger = field(default_factory=Ledger)
    clips: Ledger = field(default_factory=Ledger)
    without_text: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all of it could be used, and all rows have a text, or none has."""
        is_mixed = bool(self.without_text and self.texts.num_out)
        return not (is_mixed or self.texts.quarantined or self.clips.quarantined)

    def to_dict(self) -> dict[str, Any]:
        """Return the account for a JSON file."""
        return {"texts": self.texts.to_dict(), "clips": self.clips.to_dict()}

    def __str__(self) -> str:
        rest = ""
        if self.without_text:
            rest = f", {len(self.without_text)} of them without a text"
            rest += listed_places(self.without_text)
        return f"texts: {self.texts}; clips: {self.clips}{rest}"
