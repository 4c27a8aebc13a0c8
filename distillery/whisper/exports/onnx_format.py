"""ONNX: a graph of the encoder and two of the decoder, named as Hugging Face's optimum names them.

`encoder_model.onnx` turns log-mel features into states. `decoder_model.onnx` reads a prefix and
makes the keys and values of every layer; `decoder_with_past_model.onnx` reads one more id and adds
its own to them. Which ids may come, and when to stop, is for the program that runs them: `readers`
has a greedy search.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.audio.decoding import Waveform
from distillery.text.labels import plain_text
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.exports.formats import FLOAT16, INT8
from distillery.whisper.exports.readers import Reader, Transcribe
from distillery.whisper.token_rules import Timing, TokenRules

LIBRARY = "onnx"
PROGRAMS = "onnxruntime, as three graphs named as optimum names them"
USAGE = """```python
import onnxruntime

encoder = onnxruntime.InferenceSession("{folder}/encoder_model.onnx")
(states,) = encoder.run(None, {{"input_features": features}})  # log-mel, (clips, mels, frames)
```

`decoder_model.onnx` takes `input_ids`, the decoder's prefix, and `encoder_hidden_states`;
`decoder_with_past_model.onnx` takes one more id, and what was returned as `present.*` as
`past_key_values.*`. A greedy search over them is in `distillery/whisper/exports/onnx_format.py`."""

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"
MOST_BYTES = 1.8e9  # of weights in one file, which holds 2 GB; those of larger ones lie beside it
LOGITS, PAST = "logits", "past_key_values"
PARTS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")  # of a layer's cache


# The numbers that a graph takes, as onnxruntime names them.
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

Run = Callable[[Mapping[str, Any]], dict[str, Any]]


def refuse(whisper: Whisper, quantization: str) -> None:
    """Raise nothing: graphs hold every Whisper model."""


def limits(whisper: Whisper) -> list[str]:
    """Return no sentence: the graphs do what the model does."""
    return []


def write(whisper: Whisper, folder: Path, quantization: str) -> None:
    """Write the graphs, settings, tokenizer and preprocessor into a folder."""
    model = whisper.model
    if quantization == FLOAT16:
        _write_graphs(copy.deepcopy(model).half(), folder)
    elif quantization == INT8:
        _write_int8(copy.deepcopy(model), folder)
    else:
        _write_graphs(model, folder)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    whisper.tokenizer.save_pretrained(folder)
    whisper.feature_extractor.save_pretrained(folder)


def readers(whisper: Whisper, folder: Path, decoding: Decoding) -> Iterator[Reader]:
    """Load an export into onnxruntime; arguments as in `Format`."""
    yield Reader("onnxruntime", _greedy_search(whisper, folder, decoding))


# --- the graphs -----------------------------------------------------------------------------------


class EncoderGraph(nn.Module):
    """From log-mel features, (batch, mels, frames), to states, (batch, positions, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        """Return the states."""
        return self.encoder(input_features).last_hidden_state  # type: ignore[no-any-return]


class DecoderGraph(nn.Module):
    """The decoder over keys and values, (batch, heads, positions, width) each, that it is given.

    They are in the order of `PARTS`, layer by layer.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.proj_out = model.model.decoder, model.proj_out

    def run(
        self, ids: Tensor, positions: Tensor, past: Sequence[Tensor], heard: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return logits, (batch, ids, vocabulary), and the decoder's own keys and values.

        Args:
            ids: int64 (batch, ids).
            positions: int64 (ids,), of the ids.
            past: keys and values of the ids before, layer by layer; of none where these are first.
            heard: of the encoder's states.
        """
        hidden = self.decoder.embed_tokens(ids) + self.decoder.embed_positions.weight[positions]
        present: list[Tensor] = []
        for index, layer in enumerate(self.decoder.layers):
            pair = slice(2 * index, 2 * index + 2)
            normed, attention = layer.self_attn_layer_norm(hidden), layer.self_attn
            own = _keys_and_values(attention, normed)
            if past:
                own = [torch.cat(both, dim=2) for both in zip(past[pair], own, strict=True)]
            present += own
            hidden = hidden + _attend(attention, normed, own, is_causal=not past)
            normed = layer.encoder_attn_layer_norm(hidden)
            hidden = hidden + _attend(layer.encoder_attn, normed, heard[pair])
            normed = layer.final_layer_norm(hidden)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(normed)))
        return self.proj_out(self.decoder.layer_norm(hidden)), present


class FirstGraph(DecoderGraph):
    """Reads a prefix: returns logits and all keys and values."""

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> list[Tensor]:
        """Read ids, (batch, ids), and states, (batch, positions, width)."""
        heard: list[Tensor] = []
        for layer in self.decoder.layers:
            heard += _keys_and_values(layer.encoder_attn, encoder_hidden_states)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        logits, present = self.run(input_ids, positions, (), heard)
        return [logits, *_by_layer(present, heard)]


class NextGraph(DecoderGraph):
    """Reads one more id: returns logits and the decoder's own keys and values."""

    def forward(self, input_ids: Tensor, *cache: Tensor) -> list[Tensor]:
        """Read ids, (batch, 1), and keys and values in the order of `PARTS`."""
        layers = range(0, len(cache), len(PARTS))
        past = [part for start in layers for part in cache[start : start + 2]]
        heard = [part for start in layers for part in cache[start + 2 : start + 4]]
        position = torch.arange(input_ids.shape[1], device=input_ids.device) + past[0].shape[2]
        logits, present = self.run(input_ids, position, past, heard)
        return [logits, *present]


def _by_layer(own: Sequence[Tensor], heard: Sequence[Tensor]) -> list[Tensor]:
    """Return keys and values, given in pairs, in the order of `PARTS`."""
    starts = range(0, len(own), 2)
    return [part for i in starts for part in (*own[i : i + 2], *heard[i : i + 2])]


def _keys_and_values(attention: Any, states: Tensor) -> list[Tensor]:
    return [_split(attention, project(states)) for project in (attention.k_proj, attention.v_proj)]


def _split(attention: Any, projected: Tensor) -> Tensor:
    """Split the last dimension by head: (batch, heads, positions, width)."""
    heads = attention.num_heads, attention.head_dim
    return projected.view(*projected.shape[:-1], *heads).transpose(1, 2)


def _attend(
    attention: Any, hidden: Tensor, cached: Sequence[Tensor], is_causal: bool = False
) -> Tensor:
    # Scaled before the product, as in transformers: the order of roundings stays the same.
    queries = _split(attention, attention.q_proj(hidden) * attention.scaling)
    keys, values = cached
    heard = functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=is_causal, scale=1.0
    )
    return attention.out_proj(heard.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


# --- writing --------------------------------------------------------------------------------------


@torch.inference_mode()
def _write_graphs(model: Any, folder: Path) -> None:
    """Trace the three graphs over two clips, so that no size of 1 is taken for a constant."""
    config = model.config
    encoder, first, following = EncoderGraph(model), FirstGraph(model), NextGraph(model)
    shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
    features = torch.zeros(shape, dtype=model.dtype)
    states = encoder(features)
    ids = torch.full((2, 4), config.decoder_start_token_id)
    cache = first(ids, states)[1:]
    parts = [f"{index}.{part}" for index in range(config.decoder_layers) for part in PARTS]
    own = [part for part in parts if "decoder" in part]
    batch, prefix, past = {0: "batch"}, {0: "batch", 1: "ids"}, {0: "batch", 2: "past"}

    inputs = {"input_features": (features, batch)}
    _trace(encoder, folder / f"{ENCODER}.onnx", inputs, ["last_hidden_state"])
    inputs = {"input_ids": (ids, prefix), "encoder_hidden_states": (states, batch)}
    _trace(first, folder / f"{FIRST}.onnx", inputs, [LOGITS, *_named("present", parts)])
    inputs = {"input_ids": (ids[:, :1], batch)} | {
        name: (tensor, past if part in own else batch)
        for name, part, tensor in zip(_named(PAST, parts), parts, cache, strict=True)
    }
    _trace(following, folder / f"{NEXT}.onnx", inputs, [LOGITS, *_named("present", own)])


def _named(kind: str, parts: Sequence[str]) -> list[str]:
    return [f"{kind}.{part}" for part in parts]


def _trace(
    graph: nn.Module,
    path: Path,
    inputs: Mapping[str, tuple[Tensor, Mapping[int, str]]],
    outputs: Sequence[str],
) -> None:
    """Write a graph.

    Args:
        graph: of the model.
        path: of its file.
        inputs: example and names of the dimensions that vary, by name.
        outputs: their names.
    """
    num_bytes = sum(weight.numel() * weight.element_size() for weight in graph.parameters())
    tensors, sizes = zip(*inputs.values(), strict=True)
    if isinstance(graph, NextGraph):  # whose other arguments are one tuple
        sizes = (sizes[0], sizes[1:])
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # of each package that it can do without
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own workings
        torch.onnx.export(
            graph.eval(),
            tensors,
            path,
            input_names=[*inputs],
            output_names=outputs,
            dynamic_shapes=sizes,
            external_data=num_bytes > MOST_BYTES,
            dynamo=True,
            verbose=False,
        )


def _write_int8(model: Any, folder: Path) -> None:
    """Write graphs with embeddings, and the weights of matrix products, in 8 bits per column."""
    from onnxruntime.quantization import quantize_dynamic

    # Shared with the embeddings, the output layer would be made float32 again for every id.
    model.proj_out.weight = nn.Parameter(model.proj_out.weight.detach().clone())
    with TemporaryDirectory(dir=folder) as exact:
        _write_graphs(model, Path(exact))
        for path in sorted(Path(exact).glob("*.onnx")):
            with _silence():
                quantize_dynamic(
                    path,
                    folder / path.name,
                    op_types_to_quantize=["MatMul", "Gather"],
                    per_channel=True,
                    use_external_data_format=Path(f"{path}.data").exists(),
                )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back advice to simplify a graph first, which the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# --- reading --------------------------------------------------------------------------------------


def _greedy_search(whisper: Whisper, folder: Path, decoding: Decoding) -> Transcribe:
    """Return a function that transcribes a clip by the three graphs, greedily."""
    encoder, first, following = (_session(folder, name) for name in (ENCODER, FIRST, NEXT))
    rules, tokens = TokenRules(whisper.model, whisper.tokens), whisper.tokens
    untimed = Timing.of(1, tokens, torch.device("cpu"))
    prefix = tokens.prefix(decoding.language, decoding.task, timestamps=False)

    def transcribe(wave: Waveform) -> str:
        features = {"input_features": whisper.log_mel([wave]).numpy()}
        states = encoder(features)["last_hidden_state"]
        ids, cache = [*prefix], first({"input_ids": [prefix], "encoder_hidden_states": states})
        scores = rules.first(_last(cache), untimed)
        while True:
            ids.append(int(scores.argmax()))
            if ids[-1] == tokens.end_of_text or len(ids) >= decoding.max_length:
                return plain_text(ids, tokens, whisper.tokenizer)
            past = {name.replace("present", PAST): cache[name] for name in cache if name != LOGITS}
            cache |= following({"input_ids": [[ids[-1]]], **past})
            scores = rules.later(_last(cache), untimed, any_timed=False)

    return transcribe


def _last(outputs: Mapping[str, Any]) -> Tensor:
    """Return the logits behind the last id, float32 (1, vocabulary)."""
    return torch.from_numpy(outputs[LOGITS][:, -1]).float()


def _session(folder: Path, name: str) -> Run:
    """Load a graph; the function that is returned runs it on arrays by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
    kinds = {each.name: KINDS[each.type] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {key: np.asarray(value, kinds[key]) for key, value in inputs.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))

    return run
