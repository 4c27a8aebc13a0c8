"""What tests of the pipelines share: sound, settings, and a punctuator that repeats answers."""

import numpy as np
from tiny import SAMPLE_RATE

GENERATION = {"language": "ja", "task": "transcribe", "max_new_tokens": 24}


def sound(*parts):
    """Return a recording of silence (negative) and noisy tones (positive), each so many seconds."""
    rng = np.random.default_rng(0)
    pieces = []
    for seconds in parts:
        n = round(abs(seconds) * SAMPLE_RATE)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(n) / SAMPLE_RATE)
        noise = 0.02 * rng.standard_normal(n)
        pieces.append(np.where(seconds > 0, tone + noise, 0))
    return np.concatenate(pieces).astype(np.float32)


class Parrot:
    """Stands in for a model: answers with what it was told, and notes what it was asked."""

    def __init__(self, *sentences):
        self.sentences = sentences
        self.asked = []

    def infer(self, texts):
        self.asked += texts
        return [list(self.sentences)]
