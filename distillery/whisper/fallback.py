"""When a window is decoded again, at the next temperature, because its transcript looks bad.

Whisper's own rules (Radford et al. 2022, section 4.5, https://arxiv.org/abs/2212.04356), with one
draw at each temperature. All of it is done only where `Decoding.temperature_fallback` says so.
"""

from dataclasses import replace
from itertools import takewhile

from distillery.text.compression import compression_ratio
from distillery.text.labels import plain_text
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding, Transcript

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_PROBABILITY = 0.6  # above it, a window with an unsure transcript is silence


def next_temperature(whisper: Whisper, decoding: Decoding, transcript: Transcript) -> float | None:
    """Return at which temperature a window is decoded again; None where its transcript is kept."""
    higher = [each for each in TEMPERATURES if each > transcript.temperature]
    if not (decoding.temperature_fallback and higher) or _is_silence(transcript):
        return None
    return higher[0] if _looks_bad(whisper, transcript) else None


def kept(whisper: Whisper, decoding: Decoding, transcript: Transcript) -> Transcript:
    """Return what is kept of a window's last transcript: of silence, no text."""
    if not (decoding.temperature_fallback and _is_silence(transcript)):
        return transcript
    tokens, end = whisper.tokens, whisper.tokens.end_of_text
    prefix = takewhile(lambda i: i in tokens.control_ids and i != end, transcript.ids)
    return replace(transcript, ids=[*prefix, end], truncated=False)


def _is_unsure(transcript: Transcript) -> bool:
    return transcript.avg_logprob < MIN_AVG_LOGPROB


def _is_silence(transcript: Transcript) -> bool:
    """Tell whether `<|nospeech|>` is likely and what is written is not."""
    silence = transcript.no_speech_prob
    return _is_unsure(transcript) and silence is not None and silence > NO_SPEECH_PROBABILITY


def _looks_bad(whisper: Whisper, transcript: Transcript) -> bool:
    """Tell whether a transcript is improbable, or repeats itself."""
    if _is_unsure(transcript):
        return True
    text = plain_text(transcript.ids, whisper.tokens, whisper.tokenizer)
    return compression_ratio(text) > MAX_COMPRESSION_RATIO
