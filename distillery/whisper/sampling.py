"""Drawing ids at random, in a way that nothing beside the row can change."""

from zlib import crc32

import torch
from torch import Tensor

_BITS_32 = 0xFFFFFFFF


def seed_of(content: str | bytes) -> int:
    """Return the seed of what an id, or samples, stand for: from 0 to 2**32 - 1."""
    # An id may be a file's name, which need not be UTF-8.
    return crc32(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )


def drawn(scores: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Return scores of which the best is drawn from the softmax at a temperature.

    Gumbel noise is added to what is divided by the temperature. The noise is a pure function of
    seed, position and id (a counter-based generator, as in Salmon et al., SC 2011): the same on
    every device, whatever is drawn beside it. A row at temperature 0 stays as it is.

    Args:
        scores: float32 (rows, ids).
        temperatures: float32 (rows,).
        seeds: int64 (rows,), from 0 to 2**32 - 1.
        positions: int64 (rows,), where the ids will stand.
    """
    ids = torch.arange(scores.shape[-1], device=scores.device)
    places = _mixed(positions ^ _mixed(seeds))
    uniform = (_mixed(ids ^ places[:, None]).double() + 0.5) * 2.0**-32
    noise = uniform.log_().neg_().log_().neg_()
    warm = temperatures[:, None]
    return torch.where(warm > 0, scores / warm.clamp(min=1e-3) + noise, scores.double())


def _mixed(numbers: Tensor) -> Tensor:
    """Mix the bits of 32-bit numbers, int64, by products and shifts; each result is unique."""
    numbers = numbers ^ (numbers >> 16)
    for factor, shift in ((0x7FEB352D, 15), (0x31848BAB, 14), (0x2C1B3C6D, 16)):
        numbers = (numbers * factor) & _BITS_32
        numbers = numbers ^ (numbers >> shift)
    return numbers
