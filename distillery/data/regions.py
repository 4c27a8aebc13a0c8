"""Regions of files: neighbouring rows that are read together, as one alone costs nearly as much."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

REGION_BYTES = 64 << 20  # of neighbouring row groups that are one region


@dataclass(frozen=True, eq=False)
class Regions:
    """Where rows lie.

    Attributes:
        of_rows: int32 (rows,), the number of each row's region.
        num_bytes: int64 (regions,), what is read of each, decompressed.
    """

    of_rows: NDArray[np.int32]
    num_bytes: NDArray[np.int64]

    @classmethod
    def of(cls, files: Iterable[Iterable[tuple[int, int]]]) -> "Regions":
        """Join neighbouring row groups of a file as long as they have `REGION_BYTES` at most.

        Args:
            files: for each, the numbers of rows and bytes of its row groups.
        """
        num_rows: list[int] = []
        num_bytes: list[int] = []
        for groups in files:
            left = 0
            for rows, size in groups:
                if size > left:
                    num_rows.append(0)
                    num_bytes.append(0)
                    left = REGION_BYTES
                num_rows[-1] += rows
                num_bytes[-1] += size
                left -= size
        numbers = np.arange(len(num_rows), dtype=np.int32)
        return cls(np.repeat(numbers, num_rows), np.array(num_bytes, np.int64))

    def select(self, rows: "NDArray[np.integer]") -> "Regions":
        """Return the regions of some rows."""
        return replace(self, of_rows=self.of_rows[rows])
