"""Texts of many lists of token ids, from the bytes that each token stands for.

Whisper's tokenizers are byte-level: a token is some bytes of UTF-8, and a character may be cut in
two by it. A whole column of ids is decoded by one look-up in Arrow, in a seventh of the time that
the tokenizer takes. The tests hold both equal.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from distillery.text.label_columns import IdLists
from distillery.text.tokens import Tokenizer

DECODER = "ByteLevel"


def _bytes_by_character() -> dict[int, int]:
    """Return which byte each character of a byte-level vocabulary stands for (as in GPT-2).

    Printable characters of Latin-1 stand for their own code; the other bytes are counted up from
    256, in their order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return dict(zip([*printable, *range(256, 512)], [*printable, *others], strict=False))


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each token of a vocabulary, none for special tokens and ids without a token.

    Attributes:
        table: binary (ids,).
    """

    table: pa.BinaryArray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenBytes":
        """Read the vocabulary of a tokenizer.

        Raises:
            ValueError: its decoder is not byte-level.
        """
        backend = tokenizer.backend_tokenizer
        if type(backend.decoder).__name__ != DECODER:
            raise ValueError(f"the tokenizer's decoder is {backend.decoder}: it is not Whisper's")
        vocabulary = backend.get_vocab(with_added_tokens=True)
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        known, table = _bytes_by_character(), [b""] * (1 + max(vocabulary.values()))
        for token, index in vocabulary.items():
            if index not in special:
                table[index] = _token_bytes(token, known)
        return cls(pa.array(table, pa.binary()))

    def texts(self, lists: IdLists) -> list[str]:
        """Return the text of each list, stripped; special tokens are left out."""
        ids = np.where(lists.ids < len(self.table), lists.ids, -1)
        chosen = self.table.take(pa.array(ids, mask=ids == -1))
        _, offsets, data = chosen.buffers()
        if data is None:
            return [""] * (len(lists.starts) - 1)
        ends = np.frombuffer(offsets, np.int32)[lists.starts].tolist()
        content = data.to_pybytes()
        return [
            content[start:end].decode("utf-8", "replace").strip() for start, end in pairwise(ends)
        ]


def _token_bytes(token: str, known: dict[int, int]) -> bytes:
    """Return the bytes of a token; one that was added may hold characters of no byte: UTF-8."""
    if all(ord(character) in known for character in token):
        return bytes(known[ord(character)] for character in token)
    return token.encode("utf-8")
