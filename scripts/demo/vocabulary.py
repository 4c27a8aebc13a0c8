"""Whisper-format tokenizers, built without any download.

A Whisper vocabulary is a byte-level BPE, then the special tokens, then 1,501 timestamps, always in
the same order: released models, CTranslate2 and `transformers` rely on the positions.
"""

import base64
import json
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers.models.whisper.tokenization_whisper import LANGUAGES, WhisperTokenizer

from distillery.text.tokens import TIMESTAMP_STEP_S, TRANSCRIBE, TRANSLATE

END_OF_TEXT = "<|endoftext|>"
START_OF_TRANSCRIPT = "<|startoftranscript|>"
START_OF_LM = "<|startoflm|>"
START_OF_PREV = "<|startofprev|>"
NO_SPEECH = "<|nospeech|>"
NO_TIMESTAMPS = "<|notimestamps|>"

NUM_LANGUAGES = 99  # 100, with Cantonese, from large-v3 on
NUM_TIMESTAMPS = 1501
MAX_INITIAL_TIMESTAMP_S = 1.0  # Whisper's own limit on the first timestamp of a window


def language_tokens(num_languages: int = NUM_LANGUAGES) -> list[str]:
    """Return the language tokens in Whisper's order, `<|en|>` first.

    Raises:
        ValueError: if Whisper has no such number of languages.
    """
    if not 1 <= num_languages <= len(LANGUAGES):
        raise ValueError(
            f"num_languages must be 1 to {len(LANGUAGES)} (99 up to large-v2, 100 for large-v3), "
            f"got {num_languages}"
        )
    return [f"<|{code}|>" for code in list(LANGUAGES)[:num_languages]]


def control_tokens(num_languages: int = NUM_LANGUAGES) -> list[str]:
    """Return the special tokens that are no timestamps, in Whisper's order."""
    return [
        END_OF_TEXT,
        START_OF_TRANSCRIPT,
        *language_tokens(num_languages),
        f"<|{TRANSLATE}|>",
        f"<|{TRANSCRIBE}|>",
        START_OF_LM,
        START_OF_PREV,
        NO_SPEECH,
        NO_TIMESTAMPS,
    ]


def timestamp_tokens() -> list[str]:
    """Return `<|0.00|>` to `<|30.00|>`, in steps of 0.02 s."""
    return [f"<|{i * TIMESTAMP_STEP_S:.2f}|>" for i in range(NUM_TIMESTAMPS)]


def special_tokens(num_languages: int = NUM_LANGUAGES) -> list[str]:
    """Return all tokens that follow the BPE vocabulary, in Whisper's order."""
    return [*control_tokens(num_languages), *timestamp_tokens()]


def build_tokenizer(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    num_languages: int = NUM_LANGUAGES,
    spellings: dict[str, str] | None = None,
) -> WhisperTokenizer:
    """Build a Whisper tokenizer on top of a byte-level BPE.

    Args:
        vocab: byte-level token to id; the ids must be 0 to len(vocab) - 1.
        merges: pairs of tokens, the most frequent first.
        num_languages: 99, or 100 for the vocabulary of large-v3.
        spellings: British to American spellings for English normalisation; none by default.

    Raises:
        ValueError: if the ids have gaps, since the special tokens would then land elsewhere.
    """
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"vocab must use each id from 0 to {len(vocab) - 1} exactly once")
    tokenizer = WhisperTokenizer(
        vocab=vocab,
        merges=merges,
        pad_token=END_OF_TEXT,
        extra_special_tokens=control_tokens(num_languages)[1:],
        clean_up_tokenization_spaces=False,
    )
    # Timestamps are added but not "special": Whisper's decoding tells them apart by that.
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False, special=False) for t in timestamp_tokens()]
    )
    # Without a mapping, `tokenizer.normalize` crashes and save_vocabulary leaves out the file.
    tokenizer.english_spelling_normalizer = dict(spellings or {})
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, num_languages: int = NUM_LANGUAGES
) -> WhisperTokenizer:
    """Train a byte-level BPE on texts and build a Whisper tokenizer on it.

    Every Unicode text can be encoded: all 256 bytes are in the vocabulary. The same texts give the
    same tokenizer.

    Args:
        texts: the transcripts.
        vocab_size: BPE tokens, special tokens not counted, at least 256. Fewer come out if the
            texts have fewer pairs to merge.
        num_languages: 99, or 100 for the vocabulary of large-v3.

    Raises:
        ValueError: if `vocab_size` cannot hold the 256 bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet):
        raise ValueError(f"vocab_size must be at least {len(alphabet)} (all bytes): {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges = [(left, right) for left, right in trained["merges"]]
    return build_tokenizer(trained["vocab"], merges, num_languages=num_languages)


def tokenizer_from_tiktoken(
    path: str | Path,
    *,
    num_languages: int = NUM_LANGUAGES,
    spellings: dict[str, str] | None = None,
) -> WhisperTokenizer:
    """Build a Whisper tokenizer from a tiktoken rank file such as `multilingual.tiktoken`.

    Args:
        path: lines of a base64 token, a space, and its rank.
        num_languages: 99, or 100 for the vocabulary of large-v3.
        spellings: as in `build_tokenizer`.

    Raises:
        ValueError: if a line is not such a pair.
    """
    ranks = _read_ranks(Path(path))
    names = _byte_names()
    vocab = {_name(token, names): rank for token, rank in ranks.items()}
    merges = [
        (_name(left, names), _name(right, names))
        for left, right in (_split(token, ranks) for token in ranks if len(token) > 1)
    ]
    return build_tokenizer(vocab, merges, num_languages=num_languages, spellings=spellings)


def openai_tokenizer(num_languages: int = NUM_LANGUAGES) -> WhisperTokenizer:
    """Build OpenAI's multilingual tokenizer from the files in the `openai-whisper` package.

    Raises:
        FileNotFoundError: if the package is not installed; its code is not imported.
    """
    package = find_spec("whisper")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package openai-whisper is missing: pip install openai-whisper")
    folder = Path(package.origin).parent
    spellings = json.loads((folder / "normalizers" / "english.json").read_text("utf-8"))
    return tokenizer_from_tiktoken(
        folder / "assets" / "multilingual.tiktoken",
        num_languages=num_languages,
        spellings=spellings,
    )


def generation_settings(tokenizer: WhisperTokenizer) -> dict[str, Any]:
    """Return the token ids that a multilingual model's generation config needs.

    Lengths are left to the caller: they depend on the model, not on its vocabulary.
    """
    added = tokenizer.get_added_vocab()
    end = added[END_OF_TEXT]
    languages = [t for t in language_tokens(len(LANGUAGES)) if t in added]
    space = tokenizer.encode(" ", add_special_tokens=False)
    return {
        "is_multilingual": True,
        "lang_to_id": {token: added[token] for token in languages},
        "task_to_id": {task: added[f"<|{task}|>"] for task in (TRANSCRIBE, TRANSLATE)},
        "no_timestamps_token_id": added[NO_TIMESTAMPS],
        "prev_sot_token_id": added[START_OF_PREV],
        "decoder_start_token_id": added[START_OF_TRANSCRIPT],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "suppress_tokens": [],
        # As OpenAI decodes: a transcript starts neither blank nor empty.
        "begin_suppress_tokens": [*space, end],
        "max_initial_timestamp_index": round(MAX_INITIAL_TIMESTAMP_S / TIMESTAMP_STEP_S),
        "return_timestamps": False,
    }


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Read token bytes and ranks, in the order of the ranks."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_text("ascii").splitlines(), start=1):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise ValueError(f"{path}, line {number}: expected a base64 token and a rank: {line!r}")
        ranks[base64.b64decode(fields[0])] = int(fields[1])
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _byte_names() -> list[str]:
    """Return the visible character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 bytes stand for themselves, the others for the code points from 256 on (the
    convention of GPT-2).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    names, next_free = [], 256
    for byte in range(256):
        names.append(chr(byte if byte in printable else next_free))
        next_free += byte not in printable
    return names


def _name(token: bytes, names: list[str]) -> str:
    return "".join(names[byte] for byte in token)


def _split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens whose merge made `token`: BPE over its bytes with lower ranks only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = pairs.index(min(pairs))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]
