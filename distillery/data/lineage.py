"""Where a dataset comes from: the records of the stages of ours that made it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.data import hub_layout
from distillery.storage.publication import hub_ids, joined

logger = logging.getLogger(__name__)

FILTERING, LABELLING = "run_data_filtering", "run_pseudo_labelling"


@dataclass(frozen=True)
class MadeDataset:
    """A dataset that one of our stages made.

    Attributes:
        name: a folder, or an id of the Hub.
        record: the stage's.
    """

    name: str
    record: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """Name of the stage's script, without `.py`."""
        return str(self.record["stage"])

    @property
    def flags(self) -> Mapping[str, Any]:
        """The stage's flags."""
        return dict(self.record["arguments"])

    @property
    def made_of(self) -> str:
        """Names of the datasets that it was made of, joined with `+`."""
        return str(self.flags["dataset_name"])

    @property
    def language(self) -> str | None:
        """What is spoken, as the stage was told or found out."""
        return self.record.get("language") or self.flags.get("language")


def made_datasets(names: str) -> list[MadeDataset]:
    """Return all datasets of ours that lie behind some, these included, the newest first.

    Args:
        names: joined with `+`; what has no record that can be read is left out.
    """
    found: dict[str, MadeDataset] = {}
    for name in joined(names):
        _add_behind(name, found)
    return list(found.values())


def _add_behind(name: str, found: dict[str, MadeDataset]) -> None:
    """Add a dataset of ours, and all behind it; one may have the name of what it was made of."""
    if name in found:
        return
    record = _record_of(name)
    if record.get("stage") not in (FILTERING, LABELLING) or "ledger" not in record:
        return
    found[name] = made = MadeDataset(name, record)
    if made.stage == FILTERING:  # labelling reads what others made
        for parent in joined(made.made_of):
            _add_behind(parent, found)


def _record_of(name: str) -> dict[str, Any]:
    if not Path(name).exists() and not hub_ids(name):
        return {}  # a folder of another machine, by what is published of its name
    try:
        return hub_layout.read_record(name)
    except OSError as error:  # what it is for, a card, is not worth the end of a run
        logger.warning("the record of %s cannot be read: %s", name, error)
        return {}


def public_sources(names: str) -> list[str]:
    """Return the ids of the Hub among datasets and all that ours of them were made of."""
    behind = (name for made in made_datasets(names) for name in hub_ids(made.made_of))
    return list(dict.fromkeys([*hub_ids(names), *behind]))
