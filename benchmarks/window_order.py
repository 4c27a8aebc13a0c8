"""What it would save to decode windows in the order of their expected length.

    PYTHONPATH=. python benchmarks/window_order.py

Counts passes of the decoder, as `GreedyDecoder` makes them: a window that ends leaves the batch,
and others begin together, in one pass, once a quarter of the rows is free. Transcripts have
log-normal lengths. Windows are taken as they come, or sorted four batches ahead: by the
length of the transcript, or by what the length of the speech says of it, which is off by 20 % (one
standard deviation). Row-steps are the same. A test compares the count with the decoder's own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillery.whisper.greedy import FREE_PARTS

LOOK_AHEAD = 4  # batches
ERROR = 0.2  # of the logarithm of an expected length
KINDS = {"clips": (18, 0.35), "packed windows": (85, 0.1), "packed, lengths vary": (85, 0.35)}


def main() -> None:
    """Print the passes in each order."""
    print(
        "| windows | number | batch | as they come | by true length | by expected length | least |"
    )
    print(f"|---|{6 * '---:|'}")
    for kind, (mean, spread) in KINDS.items():
        for count in (256, 4096):
            rng = np.random.default_rng(0)
            lengths = np.maximum(1, np.round(mean * rng.lognormal(0, spread, count))).astype(int)
            expected = lengths * rng.lognormal(0, ERROR, count)
            for batch_size in (8, 16, 64):
                base = num_passes(lengths.tolist(), batch_size)
                cells = [kind, count, batch_size, base]
                for by in (lengths, expected):
                    order = sorted_ahead(by, LOOK_AHEAD * batch_size)
                    passes = num_passes(lengths[order].tolist(), batch_size)
                    cells.append(f"{passes} ({passes / base - 1:+.1%})")
                cells.append(-(-int(lengths.sum()) // batch_size))
                print(f"| {' | '.join(map(str, cells))} |")


def num_passes(lengths: Sequence[int], batch_size: int) -> int:
    """Return the passes of the decoder over windows that write so many ids each."""
    left: list[int] = []  # ids that each row of the batch has still to write
    num_taken = passes = 0
    while num_taken < len(lengths) or left:
        num_free = batch_size - len(left)
        room = num_free if num_free * FREE_PARTS >= batch_size else 0
        begun = lengths[num_taken : num_taken + room]
        num_taken += len(begun)
        left = [*left, *(n - 1 for n in begun)] if begun else [n - 1 for n in left]
        left = [n for n in left if n]
        passes += 1
    return passes


def sorted_ahead(lengths: NDArray[np.float64], size: int) -> list[int]:
    """Return places, so many at a time from the longest to the shortest."""
    order: list[int] = []
    for start in range(0, len(lengths), size):
        part = np.arange(start, min(start + size, len(lengths)))
        order += part[np.argsort(-lengths[part], kind="stable")].tolist()
    return order


if __name__ == "__main__":
    main()
