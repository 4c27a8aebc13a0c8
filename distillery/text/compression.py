"""How well a text compresses: a sign of repetition."""

import zlib


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes `text`: UTF-8 bytes over compressed bytes.

    Whisper takes more than 2.4 for a sign of repetition (Radford et al. 2022, section 4.5).
    """
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))
