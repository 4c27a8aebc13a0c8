"""What tests of exports share: clips, and what the original and the programs write for them."""

from pathlib import Path

import numpy as np

from distillery.audio.decoding import Waveform
from distillery.text.labels import plain_text
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.exports.readers import Format
from distillery.whisper.windows import transcribe_windows

MAX_LENGTH = 24


def clips_of(count: int) -> list[Waveform]:
    """Return seeded tones in noise of 1 to 2 s."""
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(count):
        time_s = np.arange(rng.integers(16_000, 32_000)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_s)
        clips.append((tone + 0.02 * rng.standard_normal(len(tone))).astype(np.float32))
    return clips


def decoding_of(whisper: Whisper) -> Decoding:
    """Return greedy decoding of Japanese; of what an English-only model speaks."""
    language = "ja" if whisper.tokens.is_multilingual else None
    return Decoding(language, "transcribe", timestamps=False, num_beams=1, max_length=MAX_LENGTH)


def original_texts(whisper: Whisper, clips: list[Waveform]) -> list[str]:
    """Return what our decoder writes."""
    transcripts = transcribe_windows(whisper, whisper.log_mel(clips), decoding_of(whisper))
    return [plain_text(each.ids, whisper.tokens, whisper.tokenizer) for each in transcripts]


def read_by(
    target: Format, whisper: Whisper, folder: Path, clips: list[Waveform]
) -> dict[str, list[str]]:
    """Return what each program writes with an export."""
    readers = target.readers(whisper, folder, decoding_of(whisper))
    return {reader.program: [reader.transcribe(clip) for clip in clips] for reader in readers}
