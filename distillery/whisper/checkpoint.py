"""Loading and saving Whisper checkpoints so that every other program can read them."""

import copy
import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from distillery.audio.log_mel import LogMel
from distillery.text.normalizers import Normalizer, normalizer_for
from distillery.text.tokens import TRANSCRIBE, SpecialTokens
from distillery.whisper.compute import ATTENTIONS

logger = logging.getLogger(__name__)

# Patterns of the files of a checkpoint that decide what the model writes.
DECIDING_FILES = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
)

# Patterns of the files that a checkpoint is written as.
OWN_FILES = (*DECIDING_FILES[1:], "model*.safetensors*", "README.md")


@dataclass(frozen=True)
class Processor:
    """A checkpoint but for its weights: tokenizer, features, and number of decoder positions."""

    tokenizer: WhisperTokenizer
    feature_extractor: WhisperFeatureExtractor
    tokens: SpecialTokens
    log_mel: LogMel
    max_label_length: int

    def normalizer(self, language: str | None, task: str, variant: str = "auto") -> Normalizer:
        """Return the normaliser for what the model writes.

        That is English where the model knows no other language, and where it translates.

        Args:
            language: what is spoken.
            task: `transcribe` or `translate`.
            variant: as in `normalizer_for`.
        """
        foreign = self.tokens.is_multilingual and task == TRANSCRIBE
        return normalizer_for(
            language if foreign else "en",
            english_spelling=self.tokenizer.english_spelling_normalizer,
            variant=variant,
        )


@dataclass(frozen=True)
class Whisper(Processor):
    """A Whisper checkpoint: the model and its processor."""

    model: WhisperForConditionalGeneration

    @property
    def num_parameters(self) -> int:
        """Number of the model's parameters, tied weights counted once."""
        return int(self.model.num_parameters())

    @property
    def num_bytes(self) -> int:
        """Bytes of the model's weights, tied ones counted once."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def attention(self) -> str:
        """The implementation of attention that really runs, as transformers names it."""
        return str(self.model.config._attn_implementation)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder, as the function `save` does."""
        save(self.model, self.tokenizer, self.feature_extractor, folder)

    def save_for_resuming(self, folder: str | Path) -> None:
        """Write what training needs to go on: the same, unless a part alone is trained."""
        self.save(folder)


def load_processor(
    name_or_path: str, revision: str | None = None, cache_dir: str | None = None
) -> Processor:
    """Load all of a checkpoint but its weights; arguments and errors as for `load`."""
    source = {"revision": revision or "main", "cache_dir": cache_dir}
    check_model_type(name_or_path, source)
    config = WhisperConfig.from_pretrained(name_or_path, **source)
    generation = generation_config(name_or_path, source)
    tokenizer = WhisperTokenizer.from_pretrained(name_or_path, **source)
    extractor = WhisperFeatureExtractor.from_pretrained(name_or_path, **source)
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual(generation, config))
    processor = Processor(
        tokenizer, extractor, tokens, LogMel(extractor), int(config.max_target_positions)
    )
    _check_shapes(name_or_path, config, processor)
    return processor


def load(
    name_or_path: str,
    dtype: str = "float32",
    attention: str = "sdpa",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Whisper:
    """Load a checkpoint from a folder or the Hub, from safetensors only.

    Args:
        name_or_path: a folder or a Hub id.
        dtype: of the weights; one of `compute.DTYPES`.
        attention: a key of `compute.ATTENTIONS`.
        revision: branch, tag or commit on the Hub.
        cache_dir: where the Hub's files are kept.

    Raises:
        OSError: the checkpoint is not there, or has no safetensors weights.
        ValueError: it is no Whisper checkpoint, or its parts do not fit each other.
    """
    processor = load_processor(name_or_path, revision, cache_dir)
    model, loading = WhisperForConditionalGeneration.from_pretrained(
        name_or_path,
        output_loading_info=True,
        dtype=getattr(torch, dtype),
        attn_implementation=ATTENTIONS[attention],
        use_safetensors=True,
        revision=revision or "main",
        cache_dir=cache_dir,
    )
    if loading["missing_keys"]:  # transformers only warns, and makes them up
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(
            f"{name_or_path}: {len(loading['missing_keys'])} weights are missing: {missing} …"
        )
    whisper = Whisper(**vars(processor), model=model)
    if whisper.attention != attention:
        logger.info("%s: attention %s runs as %s", name_or_path, attention, whisper.attention)
    return whisper


def full_name(name_or_path: str) -> str:
    """Return a name that tells models apart: the whole path of a folder, or the Hub id."""
    return str(Path(name_or_path).resolve()) if Path(name_or_path).exists() else name_or_path


def load_outline(
    name_or_path: str,
    dtype: str = "float32",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Whisper:
    """Load a checkpoint without its weights: the model has shapes only, for a dry run.

    Arguments and errors are those of `load`.
    """
    processor = load_processor(name_or_path, revision, cache_dir)
    source = {"revision": revision or "main", "cache_dir": cache_dir}
    config = WhisperConfig.from_pretrained(name_or_path, **source)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config).to(getattr(torch, dtype))
    model.generation_config = generation_config(name_or_path, source)
    return Whisper(**vars(processor), model=model)


def generation_config(name_or_path: str, source: dict[str, str | None]) -> GenerationConfig:
    """Return a checkpoint's settings of generation, or those of none where it has none.

    Args:
        name_or_path: a folder or a Hub id.
        source: more arguments of `from_pretrained`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return GenerationConfig.from_pretrained(name_or_path, **source)
    except OSError as error:
        path = Path(name_or_path) / "generation_config.json"
        if path.exists():
            raise ValueError(f"{path} is damaged: {error}") from error
        return GenerationConfig()  # the file is optional


def fingerprint(name_or_path: str) -> str | None:
    """Return a checksum that changes when a local model is trained again; None for a Hub id.

    It covers names, sizes and times of the files that decide what the model writes: weights,
    settings, tokenizer and preprocessor.
    """
    folder = Path(name_or_path)
    if not folder.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(path for kind in DECIDING_FILES for path in folder.glob(kind)):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def is_multilingual(generation: GenerationConfig, config: WhisperConfig) -> bool:
    """Tell whether the decoder's prefix names a language.

    The generation config says so; where an old one does not, the vocabulary's size does, as in
    openai/whisper: English-only models have 51,864 tokens.
    """
    stated = getattr(generation, "is_multilingual", None)
    return bool(config.vocab_size != 51864 if stated is None else stated)


def check_model_type(name: str, source: dict[str, str | None]) -> None:
    """Raise FileNotFoundError or ValueError unless a folder or a Hub id has a Whisper's config."""
    try:
        config = WhisperConfig.get_config_dict(name, **source)[0]
    except OSError as error:  # without a connection it does not say what was asked for
        place = "" if Path(name).exists() else "it is no folder here; of the Hub: "
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"model {name} cannot be read: {place}{reason}") from error
    if config.get("model_type") != "whisper":
        raise ValueError(
            f"{name}: not a Whisper checkpoint; its model_type is {config.get('model_type')}"
        )


def _check_shapes(name: str, config: WhisperConfig, processor: Processor) -> None:
    frames, mels = 2 * config.max_source_positions, config.num_mel_bins
    log_mel, num_tokens = processor.log_mel, len(processor.tokenizer)
    if log_mel.num_frames != frames:
        raise ValueError(
            f"{name}: the feature extractor makes {log_mel.num_frames} frames, but the encoder "
            f"takes exactly {frames}; save a preprocessor with chunk_length {frames // 100}"
        )
    if log_mel.num_mels != mels:
        raise ValueError(
            f"{name}: the feature extractor makes {log_mel.num_mels} mel bins, "
            f"but the model takes {mels}"
        )
    if num_tokens > config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {num_tokens} tokens, the model only {config.vocab_size}"
        )


def check_finite(model: WhisperForConditionalGeneration, name: str) -> None:
    """Raise ValueError if any weight is NaN or infinite, naming the first such tensor."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.abs().max())):
            raise ValueError(f"{name}: weight {key} holds NaN or infinite values")


def have_same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two modules have equal weights of the same names, in the dtype of the first.

    Of outlines, which have no weights, only the shapes are compared.
    """
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        weight.shape == theirs[name].shape
        and (weight.is_meta or torch.equal(weight, theirs[name].to(weight)))
        for name, weight in ours.items()
    )


def with_weights(
    model: WhisperForConditionalGeneration, weights: Mapping[str, Tensor]
) -> WhisperForConditionalGeneration:
    """Return a plain model with a model's settings, and with the given weights, not copied."""
    with torch.device("meta"):
        plain = WhisperForConditionalGeneration(model.config)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def save(
    model: WhisperForConditionalGeneration,
    tokenizer: WhisperTokenizer,
    extractor: WhisperFeatureExtractor,
    folder: str | Path,
) -> None:
    """Write a checkpoint folder with every file that other programs ask for.

    Transformers 5 alone leaves out `vocab.json`, `merges.txt` and `normalizer.json` (without which
    English normalisation fails after a reload) and `preprocessor_config.json` (which CTranslate2
    and faster-whisper read).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keep_generation_settings(model.generation_config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))
    extractor.save_pretrained(folder)


def write_card(
    folder: Path,
    description: str,
    title: str | None = None,
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a model card.

    Args:
        folder: the checkpoint's folder.
        description: Markdown.
        title: the model's name, where the folder does not have it yet.
        header: more of the header, as `model_card.header` returns it.
    """
    data = ModelCardData(
        **(header or {}),
        pipeline_tag="automatic-speech-recognition",
        library_name="transformers",
        tags=["whisper"],
    )
    title = title or folder.resolve().name
    text = f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{description}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def keep_generation_settings(config: GenerationConfig) -> None:
    """Stop transformers from throwing Whisper's generation settings away on the next load.

    A generation config that is marked as derived from the model config is derived again when it is
    loaded, and `lang_to_id`, `task_to_id` and the rest are gone.
    """
    config._from_model_config = False
