"""The folder that CTranslate2 and faster-whisper read.

CTranslate2's own converter turns the weights into its layers. Vocabulary and settings are ours:
what it reads off a tokenizer changes with the versions of transformers, and it copies alignment
heads that a student does not have.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distillery.audio.decoding import Waveform
from distillery.text.labels import plain_text
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.exports.readers import Reader, Transcribe
from distillery.whisper.word_times import alignment_heads

LIBRARY = "ctranslate2"
PROGRAMS = "CTranslate2 and faster-whisper"
USAGE = """```python
from faster_whisper import WhisperModel

model = WhisperModel("{folder}")
segments, _ = model.transcribe("speech.flac", language="{language}", word_timestamps=True)
for segment in segments:
    print(segment.start, segment.end, segment.text)
```"""

WINDOW_S = 30  # faster-whisper pads every window to it
MOST_IDS = 448  # faster-whisper refuses to be asked for more


def refuse(whisper: Whisper, quantization: str) -> None:
    """Raise nothing: CTranslate2 holds every Whisper model."""


def limits(whisper: Whisper) -> list[str]:
    """Return, in sentences, what faster-whisper cannot do with a model."""
    if whisper.log_mel.window_s == WINDOW_S:
        return []
    return [
        f"faster-whisper cannot run this model: it fills every window up to {WINDOW_S} s, and this "
        f"one hears {whisper.log_mel.window_s:g} s. `ctranslate2.models.Whisper` can, on log-mel "
        "features of the model's own windows."
    ]


def write(whisper: Whisper, folder: Path, quantization: str) -> None:
    """Write weights, vocabulary, settings, tokenizer and preprocessor into a folder."""
    from ctranslate2.converters import Converter
    from ctranslate2.converters.transformers import WhisperLoader

    class Loaded(Converter):  # type: ignore[misc]
        """A model that is in memory already."""

        def _load(self) -> Any:
            # A copy: to quantise, CTranslate2 scales the weights where they are.
            spec = WhisperLoader().get_model_spec(copy.deepcopy(whisper.model))
            spec.register_vocabulary(_vocabulary(whisper))
            for name, value in _settings(whisper).items():
                setattr(spec.config, name, value)
            return spec

    Loaded().convert(str(folder), quantization=quantization, force=True)
    whisper.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    whisper.feature_extractor.save_pretrained(folder)


def readers(whisper: Whisper, folder: Path, decoding: Decoding) -> Iterator[Reader]:
    """Load an export into CTranslate2 and, where it can, faster-whisper; see `Format`."""
    yield Reader("ctranslate2", _ctranslate2(whisper, folder, decoding))
    if not limits(whisper):
        yield Reader("faster-whisper", _faster_whisper(whisper, folder, decoding))


def _vocabulary(whisper: Whisper) -> list[str]:
    """Return the token of each of the model's ids; ids without one get a name.

    CTranslate2 takes a model for multilingual where a token is empty, as Whisper's last one before
    the special ones is.
    """
    by_id = {index: token for token, index in whisper.tokenizer.get_vocab().items()}
    ids = range(whisper.model.config.vocab_size)
    tokens = [by_id.get(index) or f"<|unused {index}|>" for index in ids]
    if whisper.tokens.is_multilingual:
        tokens[whisper.tokens.end_of_text - 1] = ""
    return tokens


def _settings(whisper: Whisper) -> dict[str, Any]:
    """Return what CTranslate2 keeps in its `config.json`."""
    generation = whisper.model.generation_config
    return {
        "suppress_ids": list(generation.suppress_tokens or []),
        "suppress_ids_begin": list(generation.begin_suppress_tokens or []),
        "lang_ids": sorted(whisper.tokens.languages.values()),
        "alignment_heads": [list(head) for head in alignment_heads(whisper.model)],
    }


def _ctranslate2(whisper: Whisper, folder: Path, decoding: Decoding) -> Transcribe:
    """Return a function that transcribes a clip by CTranslate2 on our features."""
    import ctranslate2

    model = ctranslate2.models.Whisper(
        str(folder), device="cpu", intra_threads=torch.get_num_threads()
    )
    prefix, most = _prefix_and_room(whisper, decoding)

    def transcribe(wave: Waveform) -> str:
        features = ctranslate2.StorageView.from_array(whisper.log_mel([wave]).numpy())
        result = model.generate(
            features,
            [prefix],
            beam_size=1,
            max_length=2 * most,
            suppress_tokens=whisper.model.generation_config.suppress_tokens or [],
        )[0]
        return plain_text([*prefix, *result.sequences_ids[0]], whisper.tokens, whisper.tokenizer)

    return transcribe


def _faster_whisper(whisper: Whisper, folder: Path, decoding: Decoding) -> Transcribe:
    """Return a function that transcribes a clip by faster-whisper, which makes its own features."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", cpu_threads=torch.get_num_threads())
    prefix, most = _prefix_and_room(whisper, decoding)

    def transcribe(wave: Waveform) -> str:
        segments, _ = model.transcribe(
            wave,
            language=decoding.language or "en",
            task=decoding.task,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            max_new_tokens=min(2 * most, MOST_IDS) - len(prefix),
            suppress_tokens=[*(whisper.model.generation_config.suppress_tokens or [])] or None,
            # Nothing is left out for how sure the model is.
            no_speech_threshold=None,
            log_prob_threshold=None,
            compression_ratio_threshold=None,
        )
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def _prefix_and_room(whisper: Whisper, decoding: Decoding) -> tuple[list[int], int]:
    """Return the decoder's prefix, and how many ids may follow.

    CTranslate2 writes at most half of the length that it is given.
    """
    prefix = whisper.tokens.prefix(decoding.language, decoding.task, timestamps=False)
    return prefix, decoding.max_length - len(prefix)
