"""The file that whisper.cpp reads.

One file of little-endian numbers: a magic number, eleven settings, the mel filters, the vocabulary
as bytes, and the tensors under openai/whisper's names. The layout is read off whisper.cpp 1.8
(`whisper_model_load`), as is what it cannot do.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from distillery.text.token_bytes import TokenBytes
from distillery.text.tokens import TRANSLATE
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.exports.formats import FLOAT16, INT8
from distillery.whisper.exports.readers import Reader

LIBRARY = "whisper.cpp"
PROGRAMS = "whisper.cpp"
USAGE = """```bash
whisper-cli --model {folder}/ggml-model.bin --language {language} --file speech.wav
```

```python
from pywhispercpp.model import Model

model = Model("{folder}/ggml-model.bin", language="{language}")
for segment in model.transcribe("speech.wav"):  # 16 kHz, 16 bits
    print(segment.t0 / 100, segment.t1 / 100, segment.text)
```"""

FILE = "ggml-model.bin"
MAGIC = 0x67676D6C

# Numbers of whisper.cpp for the kind of a file (8-bit blocks carry the version of their layout) and
# for the kind of a tensor.
FILE_KINDS = {FLOAT16: 1, INT8: 2007}
TENSOR_FLOAT32, TENSOR_FLOAT16, TENSOR_INT8 = 0, 1, 8
BLOCK = 32  # weights that share a scale

# whisper.cpp finds the special ids by the size of the vocabulary.
VOCABULARIES = {51864: "English-only", 51865: "multilingual", 51866: "multilingual, large-v3"}
NEWEST_VOCABULARY = 51866
WINDOW_POSITIONS = 1500  # of 30 s

# Parts of the names of weights: transformers' and openai/whisper's.
NAMES = {
    "layers": "blocks",
    "self_attn": "attn",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn": "cross_attn",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
    "embed_tokens": "token_embedding",
}
WHOLE_NAMES = {
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "encoder.layer_norm.weight": "encoder.ln_post.weight",
    "encoder.layer_norm.bias": "encoder.ln_post.bias",
    "decoder.layer_norm.weight": "decoder.ln.weight",
    "decoder.layer_norm.bias": "decoder.ln.bias",
}


def refuse(whisper: Whisper, quantization: str) -> None:
    """Raise ValueError if whisper.cpp cannot hold a model."""
    config = whisper.model.config
    problems = []
    if config.vocab_size not in VOCABULARIES:
        sizes = ", ".join(map(str, VOCABULARIES))
        problems.append(f"a vocabulary of {config.vocab_size} ids, and not of {sizes}")
    elif whisper.tokens.is_multilingual != (config.vocab_size != 51864):
        problems.append("a vocabulary whose size says the opposite of whether it is multilingual")
    for stack in ("encoder", "decoder"):
        wide = getattr(config, f"{stack}_ffn_dim")
        if wide != 4 * config.d_model:
            problems.append(f"{stack}_ffn_dim {wide}, and not 4 times d_model {config.d_model}")
    if quantization == INT8 and config.d_model % BLOCK:
        problems.append(f"d_model {config.d_model}, of which int8 needs a multiple of {BLOCK}")
    if not config.tie_word_embeddings:
        problems.append("an output layer of its own, and not the embeddings")
    if problems:
        raise ValueError(
            f"--format ggml: whisper.cpp cannot hold this model: it has {'; '.join(problems)}. "
            "Another --format can"
        )


def limits(whisper: Whisper) -> list[str]:
    """Return, in sentences, what whisper.cpp cannot do with a model."""
    config, sentences = whisper.model.config, []
    if config.max_source_positions != WINDOW_POSITIONS:
        sentences.append(
            f"whisper.cpp goes through longer recordings in steps of 30 s, but this model hears "
            f"{whisper.log_mel.window_s:g} s: give it clips of at most that length, and turn flash "
            "attention off (`--no-flash-attn`), which attends to positions that are not there."
        )
    if config.decoder_layers == 2 and config.vocab_size != NEWEST_VOCABULARY:
        sentences.append(
            "whisper.cpp writes no timestamps with this model: it takes two decoder layers for a "
            "sign of the first distilled models, which had none."
        )
    return sentences


def write(whisper: Whisper, folder: Path, quantization: str) -> None:
    """Write the file into a folder that is there."""
    with (folder / FILE).open("wb") as file:
        _write_settings(file, whisper, quantization)
        _write_filters(file, whisper)
        _write_vocabulary(file, whisper)
        for name, weight in whisper.model.model.state_dict().items():
            _write_tensor(file, _openai_name(name), weight.float().numpy(), quantization)


def readers(whisper: Whisper, folder: Path, decoding: Decoding) -> Iterator[Reader]:
    """Load an export into whisper.cpp; arguments as in `Format`."""
    from pywhispercpp.model import Model

    num_prefix = len(whisper.tokens.prefix(decoding.language, decoding.task, False))
    model = Model(
        str(folder / FILE),
        redirect_whispercpp_logs_to=None,
        # It would pad the keys to a multiple of 256 with zeros, and attend to them.
        context_params={"use_gpu": False, "flash_attn": False},
        n_threads=torch.get_num_threads(),
        language=decoding.language or "en",
        translate=decoding.task == TRANSLATE,
        no_timestamps=True,
        single_segment=True,
        suppress_nst=bool(whisper.model.generation_config.suppress_tokens),
        temperature=0.0,
        temperature_inc=0.0,  # no second try
        no_speech_thold=2.0,  # nothing is left out
        greedy={"best_of": 1},
        max_tokens=decoding.max_length - num_prefix - 1,  # and the one that it stops at
        print_progress=False,
        print_realtime=False,
    )
    yield Reader("whisper.cpp", lambda wave: " ".join(s.text for s in model.transcribe(wave)))


def _write_settings(file: BinaryIO, whisper: Whisper, quantization: str) -> None:
    config = whisper.model.config
    settings = (
        config.vocab_size,
        config.max_source_positions,
        config.d_model,
        config.encoder_attention_heads,
        config.encoder_layers,
        config.max_target_positions,
        config.d_model,
        config.decoder_attention_heads,
        config.decoder_layers,
        config.num_mel_bins,
        FILE_KINDS[quantization],
    )
    file.write(struct.pack(f"<I{len(settings)}i", MAGIC, *settings))


def _write_filters(file: BinaryIO, whisper: Whisper) -> None:
    """Write the mel filters, (mel bins, frequencies)."""
    filters = np.ascontiguousarray(whisper.feature_extractor.mel_filters.T, "<f4")
    file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())


def _write_vocabulary(file: BinaryIO, whisper: Whisper) -> None:
    """Write the bytes of each id before the special ones, which whisper.cpp names itself."""
    tokens = TokenBytes.of(whisper.tokenizer).table[: whisper.tokens.end_of_text].to_pylist()
    file.write(struct.pack("<i", len(tokens)))
    for token in tokens:
        file.write(struct.pack("<I", len(token)) + token)


def _openai_name(name: str) -> str:
    """Return openai/whisper's name of a weight."""
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def _write_tensor(file: BinaryIO, name: str, weight: np.ndarray, quantization: str) -> None:
    """Write a weight behind its number of dimensions, its kind, its shape and its name."""
    if "conv" in name and weight.ndim == 1:
        weight = weight[:, None]  # a bias is added to (channels, time)
    kind = _tensor_kind(name, weight, quantization)
    header = struct.pack("<3i", weight.ndim, len(name), kind)
    shape = struct.pack(f"<{weight.ndim}i", *reversed(weight.shape))
    file.write(header + shape + name.encode() + _stored(weight, kind))


def _tensor_kind(name: str, weight: np.ndarray, quantization: str) -> int:
    """Return how whisper.cpp expects a weight: positions, norms and biases are always float32."""
    if weight.ndim == 1 or name.endswith(("positional_embedding", ".bias")):
        return TENSOR_FLOAT32
    return TENSOR_INT8 if quantization == INT8 and weight.ndim == 2 else TENSOR_FLOAT16


def _stored(weight: np.ndarray, kind: int) -> bytes:
    if kind == TENSOR_INT8:
        return _blocks(weight)
    return weight.astype("<f4" if kind == TENSOR_FLOAT32 else "<f2").tobytes()


def _blocks(weight: np.ndarray) -> bytes:
    """Return blocks of 32 weights as whisper.cpp's Q8_0: a float16 scale, then 32 of int8."""
    rows = weight.reshape(-1, BLOCK).astype(np.float32)
    scales = np.abs(rows).max(axis=1, keepdims=True) / 127
    rounded = np.round(np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0))
    packed = np.empty(len(rows), np.dtype([("scale", "<f2"), ("weights", "i1", BLOCK)]))
    packed["scale"], packed["weights"] = scales[:, 0], rounded
    return packed.tobytes()
