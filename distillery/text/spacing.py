"""Spaces between texts that are put together."""

import re
from collections.abc import Iterable


def joined(texts: Iterable[str]) -> str:
    """Join texts by a space, or directly where the script has no spaces; empty ones are skipped."""
    whole = ""
    for text in filter(None, texts):
        whole += (" " if needs_space(whole, text) else "") + text
    return whole


def needs_space(before: str, after: str) -> bool:
    """Tell whether a space belongs between two texts."""
    if not (before and after) or before[-1].isspace() or after[0].isspace():
        return False
    return not (is_unspaced(before[-1]) and is_unspaced(after[0]))


def is_unspaced(character: str) -> bool:
    """Tell whether a character belongs to Chinese or Japanese, their punctuation included."""
    return bool(re.match(r"[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff9f]", character))
