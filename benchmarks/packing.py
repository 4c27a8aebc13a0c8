"""Fill of packed windows, and the time to pack, against the plain loop of distil-whisper's stage.

    PYTHONPATH=. python benchmarks/packing.py

Lengths of utterances are drawn; nothing is heard. The plain loop joins neighbours end to end as
long as they fit, over all utterances at once; ours packs chunks of rows, as labelling seals them.
It is checked that `in_order` without pauses and chunks makes the same windows.
"""

import time
from collections.abc import Callable

import numpy as np

from distillery.data.packing import PAUSE_S, Fill, Layout, Utterance, best_fit, fill, in_order

RATE, WINDOW_S, COUNT = 16_000, 30, 40_000
CHUNKS = (250, 1000, COUNT)
LENGTHS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "about 6 s": lambda rng: np.clip(rng.lognormal(np.log(5.2), 0.5, COUNT), 0.5, 30),
    "2 to 10 s": lambda rng: rng.uniform(2, 10, COUNT),
    "about 13 s": lambda rng: np.clip(rng.normal(13, 3.5, COUNT), 2, 30),
    "5 to 25 s": lambda rng: rng.uniform(5, 25, COUNT),
}


def plain(lengths: list[int]) -> list[int]:
    """Return the lengths of windows that neighbours are joined to as long as they fit."""
    windows = lengths[:1]
    for length in lengths[1:]:
        if windows[-1] + length <= WINDOW_S * RATE:
            windows[-1] += length
        else:
            windows.append(length)
    return windows


def in_chunks(pack: Callable, utterances: list[Utterance], size: int, pause_s: float) -> Fill:
    """Return how full windows are where each chunk is packed for itself."""
    layout = Layout(RATE, WINDOW_S * RATE, pause_s)
    chunks = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    return sum((fill(pack(chunk, layout), layout) for chunk in chunks), Fill())


def main() -> None:
    """Print a table for each draw of lengths."""
    for name, draw in LENGTHS.items():
        step = RATE // 50
        lengths = (np.ceil(draw(np.random.default_rng(0)) * RATE / step) * step).astype(int)
        utterances = [Utterance(i, int(length)) for i, length in enumerate(lengths)]
        reference = len(plain(lengths.tolist()))
        assert in_chunks(in_order, utterances, COUNT, 0.0).num_windows == reference
        print(f"{name}: one in each {lengths.mean() / RATE / WINDOW_S:.3f}, ", end="")
        print(f"plain loop {lengths.sum() / RATE / WINDOW_S / reference:.3f}")
        for pack in (in_order, best_fit):
            for pause_s in (0.0, PAUSE_S):
                started = time.perf_counter()
                fills = [in_chunks(pack, utterances, size, pause_s).share for size in CHUNKS]
                each_us = (time.perf_counter() - started) / len(CHUNKS) / COUNT * 1e6
                shares = ", ".join(
                    f"{share:.3f} in {size}" for share, size in zip(fills, CHUNKS, strict=True)
                )
                print(f"  {pack.__name__}, pause {pause_s:g} s: {shares}; {each_us:.1f} us each")


if __name__ == "__main__":
    main()
