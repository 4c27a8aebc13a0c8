"""Ids of rows, of which each may come once."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
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
