"""Ids of rows, of which each may come once."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_DIGEST_BYTES = 16  # so many that two ids never share one


class SeenIds:
    """The ids of a stream so far, at 16 bytes for each.

    Digests lie in sorted runs, each at least twice as long as the next, so that an id is looked for
    in few places and seldom moved.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._runs: list[NDArray[np.bytes_]] = []

    def add(self, ids: Sequence[str]) -> str | None:
        """Add ids; return the first of them that came before, None where all are new."""
        digests = np.array([_digest(name) for name in ids], dtype=f"S{_DIGEST_BYTES}")
        run, first = np.unique(digests, return_index=True)
        is_old = np.ones(len(ids), dtype=np.bool_)
        is_old[first] = False
        for earlier in self._runs:
            places = np.searchsorted(earlier, digests).clip(max=len(earlier) - 1)
            is_old |= earlier[places] == digests
        if is_old.any():
            return ids[int(is_old.argmax())]
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        return None


def _digest(name: str) -> bytes:
    return blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def first_repeated(ids: pa.ChunkedArray | pa.Array) -> Any:
    """Return an id of a column that is not unique; None where all are."""
    if pc.count_distinct(ids, mode="all").as_py() == len(ids):
        return None
    counts = pc.value_counts(ids)
    return next(count["values"] for count in counts.to_pylist() if count["counts"] > 1)


def file_names(audio: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the names of a column's audio files, without folders and suffixes."""
    names = pc.replace_substring_regex(pc.struct_field(audio, "path"), r"^.*/", "")
    return pc.replace_substring_regex(names, r"\.[^.]+$", "")
