"""Tiny models and manifests that tests make for themselves."""

import importlib.util
import json
import sys
from fractions import Fraction
from itertools import islice, product
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import soundfile
from tokenizers import pre_tokenizers
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from distillery.data.schema import AUDIO, DURATION, ID, SPEAKER_ID, TEXT
from distillery.whisper import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
SAMPLE_RATE = 16_000

SENTENCES = (
    "ねこがみずをのむ。",
    "いぬとさかな",
    "あしたはともだちとでんしゃでうみへいく。",
    "せんせい、おはよう。",
    "りんごとたまごをたべる",
)


SPOKEN = (
    "this is the first sentence that somebody says",
    "and here comes another one after a pause",
    "that was all for today",
)


def load_script(path: str) -> ModuleType:
    """Import a script by its path in the repository."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


# The demo makes tokenizers from scratch, and so do tests.
vocabulary = load_script("scripts/demo/vocabulary.py")
train_tokenizer = vocabulary.train_tokenizer


def tiny_tokenizer(vocab_size: int = 300) -> WhisperTokenizer:
    """Return a Whisper tokenizer trained on a few Japanese sentences."""
    return train_tokenizer(SENTENCES, vocab_size)


def whisper_sized_tokenizer(num_tokens: int = 50257, num_languages: int = 99) -> WhisperTokenizer:
    """Return a tokenizer with as many ids as Whisper's: bytes, and pairs of bytes.

    50257 ids before the special ones are those of a multilingual model, 50256 of an English-only
    one; from large-v3 on there are 100 languages.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(letters, letters), num_tokens - len(letters)))
    tokens = [*letters, *map("".join, merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    return vocabulary.build_tokenizer(vocab, merges, num_languages=num_languages)


def tiny_model_folder(
    path: Path,
    *,
    encoder_layers: int = 2,
    decoder_layers: int = 4,
    d_model: int = 32,
    window_s: int = 4,
    max_target_positions: int = 96,
    feed_forward_ratio: int = 3,
    seed: int = 0,
    tokenizer: WhisperTokenizer | None = None,
) -> Path:
    """Save a Whisper checkpoint with random weights and return its folder."""
    tokenizer = tokenizer or tiny_tokenizer()
    script = load_script("scripts/demo/make_teacher.py")
    layers = encoder_layers, decoder_layers
    size = script.Size(
        *layers,
        d_model,
        window_s,
        max_target_positions=max_target_positions,
        feed_forward_ratio=feed_forward_ratio,
    )
    model = script.new_model(tokenizer, size, init_std=0.02, seed=seed)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=window_s)
    checkpoint.save(model, tokenizer, extractor, path)
    return Path(path)


def tone_manifest(
    path: Path, n: int, seconds: float = 1.0, *, num_speakers: int = 2, suffix: str = ".flac"
) -> Path:
    """Write n clips of seeded tones in noise, and a manifest of them; return the manifest.

    Clips differ in length: `seconds`, and up to a quarter less.
    """
    path = Path(path)
    rng = np.random.default_rng(0)
    rows = []
    for index in range(n):
        num_samples = round(seconds * SAMPLE_RATE * (1 - 0.25 * (index % 4) / 3))
        time_s = np.arange(num_samples) / SAMPLE_RATE
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_s)
        samples = tone + 0.02 * rng.standard_normal(num_samples)
        name = f"{path.stem}-{index:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path.parent / f"{name}{suffix}", samples, SAMPLE_RATE)
        rows.append(
            {
                ID: name,
                AUDIO: f"{name}{suffix}",
                TEXT: SENTENCES[index % len(SENTENCES)],
                SPEAKER_ID: f"speaker-{index % num_speakers}",
                DURATION: num_samples / SAMPLE_RATE,
            }
        )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def tiny_punctuator_folder(path: Path, marks: dict[str, str], alphabet: str) -> Path:
    """Save a model of the package `punctuators` that writes a mark behind each of some letters.

    Args:
        path: the folder.
        marks: mark by letter.
        alphabet: every letter that the model knows.
    """
    import onnx
    import sentencepiece
    from onnx import TensorProto, helper, numpy_helper

    path.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*alphabet]),
        model_prefix=str(path / "sp"),
        model_type="char",
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **{"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3},
    )
    pieces = sentencepiece.SentencePieceProcessor(str(path / "sp.model"))
    letters = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    labels = ["<NULL>", *sorted(set(marks.values()))]
    tables = {
        "pre_preds": np.zeros(len(letters), np.int64),
        "post_preds": np.array([labels.index(marks.get(x, "<NULL>")) for x in letters]),
        "cap_preds": np.zeros((len(letters), 16), np.int64),
        "seg_preds": np.zeros(len(letters), np.int64),
    }
    graph = helper.make_graph(
        [helper.make_node("Gather", [f"{n}_table", "input_ids"], [n]) for n in tables],
        "punctuator",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info(n, TensorProto.INT64, None) for n in tables],
        [numpy_helper.from_array(table, f"{n}_table") for n, table in tables.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path / "model.onnx")
    config = {"max_length": 32, "pre_labels": ["<NULL>"], "post_labels": labels, "languages": []}
    (path / "config.yaml").write_text(json.dumps(config), "utf-8")
    return path


def broken_torchcodec(folder: Path, module: str, error: str) -> Path:
    """Write a package `torchcodec` of which one module raises; return what goes on the path."""
    package = folder / "torchcodec"
    package.mkdir()
    for name in ("__init__", "decoders", "encoders"):
        (package / f"{name}.py").write_text(f"raise {error}\n" if name == module else "")
    return folder


def write_by_av(
    path: Path, samples: np.ndarray, codec: str, container: str, rate: int = SAMPLE_RATE, **options
) -> bytes:
    """Encode float samples, (frames,) or (frames, channels), as FFmpeg's `codec` in `container`.

    `options` are the container's. Returns the file's content.
    """
    channels = np.ascontiguousarray(np.atleast_2d(samples.T), np.float32)
    layout = "mono" if len(channels) == 1 else "stereo"
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, bit_rate=64_000)
        frame = av.AudioFrame.from_ndarray(channels, "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        sizes = av.AudioResampler(stream.format, layout, rate, stream.frame_size or 1024)
        for part in (*sizes.resample(frame), *sizes.resample(None)):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path.read_bytes()


def broken_av(folder: Path, behaviour: str) -> Path:
    """Write a package `av` whose `open` does something; return what goes on the PYTHONPATH."""
    (folder / "av.py").write_text(
        "import os, sys, time\n"
        "class FFmpegError(Exception):\n    pass\n"
        f"def open(*args, **options):\n    {behaviour}\n"
    )
    return folder


def spoken(*pauses_s: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Let espeak-ng say `SPOKEN`, with a pause before each sentence and one at the end.

    Returns the samples, and (start, end) of each sentence in seconds.
    """
    espeak = load_script("scripts/demo/make_corpus.py").Espeak()
    parts, spans, position = [], [], 0.0
    for sentence, pause_s in zip(SPOKEN, pauses_s, strict=False):
        said = 0.5 * espeak.say(sentence.split(), "en", 150, 50)
        parts += [np.zeros(round(pause_s * SAMPLE_RATE)), said]
        start = position + pause_s
        position = start + len(said) / SAMPLE_RATE
        spans.append((start, position))
    samples = np.concatenate([*parts, np.zeros(round(pauses_s[-1] * SAMPLE_RATE))])
    noise = np.random.default_rng(0).standard_normal(len(samples))
    return (samples + 1e-4 * noise).astype(np.float32), spans
