"""Time to decode clips, against plain soundfile and soxr, and to find speech, against silero-vad.

    PYTHONPATH=. python benchmarks/audio.py --clip ../shared/data/jfk.flac

The clip is decoded as it is, and encoded again in other formats; each pair is checked for equal
samples first, then timed in strict alternation. Speech is looked for in the clip said 60 times.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from silero_vad import get_speech_timestamps, load_silero_vad

from distillery.audio.decoding import decode_audio
from distillery.data.segmentation import VAD_PADDING_MS, VAD_RATE, speech_windows

NUM_RUNS = 21
REPEATS = 60
FORMATS = ("WAV", "FLAC", "OGG", "MP3")


def plain(content: bytes) -> np.ndarray:
    """Decode as one does without any check."""
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, VAD_RATE)


def ours(content: bytes) -> np.ndarray:
    """Decode with all checks."""
    return decode_audio({"bytes": content}, VAD_RATE, 30.0)


def median_ms(*functions: Callable[[], object]) -> list[float]:
    """Return the median times of functions that are called in turn, in milliseconds."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(NUM_RUNS):
        for function, found in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            found.append(1000 * (time.perf_counter() - started))
    return [statistics.median(found) for found in times]


def compare(name: str, content: bytes) -> None:
    """Check that both decode the same, and print both times."""
    # soundfile.read seeks first, after which an MP3 decodes differently in the last digit.
    assert np.allclose(plain(content), ours(content), atol=1e-6), "they do not agree"
    reference, own = median_ms(lambda: plain(content), lambda: ours(content))
    print(f"{name:>14}: plain {reference:6.2f} ms, ours {own:6.2f} ms, {own / reference:.2f} times")


def find_speech(samples: np.ndarray) -> None:
    """Print how fast speech is found, in seconds of audio per second."""
    model = load_silero_vad()
    audio_s = len(samples) / VAD_RATE
    speech_windows(samples[:VAD_RATE], 30.0)  # loads the network
    started = time.perf_counter()
    windows = speech_windows(samples, 30.0)
    own_s = time.perf_counter() - started
    started = time.perf_counter()
    regions = get_speech_timestamps(torch.from_numpy(samples), model, speech_pad_ms=VAD_PADDING_MS)
    reference_s = time.perf_counter() - started
    print(f"speech in {audio_s:.0f} s: {len(windows)} clips of {len(regions)} stretches of speech")
    print(f"silero-vad, frame by frame: {audio_s / reference_s:.0f} times real time")
    print(f"                      ours: {audio_s / own_s:.0f} times real time")


def main() -> None:
    """Measure decoding in each format, then the search for speech."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, required=True, help="speech, at most 30 s")
    clip = parser.parse_args().clip
    compare(clip.name, clip.read_bytes())
    samples = ours(clip.read_bytes())
    for kind in FORMATS:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, VAD_RATE, format=kind)
        compare(f"{kind}, 16 kHz", buffer.getvalue())
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-loglevel", "error", "-i", str(clip), "-f", "matroska", "pipe:1"]
        content = subprocess.run(command, check=True, capture_output=True).stdout
        [own] = median_ms(lambda: ours(content))
        print(f"{'by ffmpeg':>14}: ours {own:6.2f} ms, a process for each clip")
    find_speech(np.tile(samples, REPEATS))


if __name__ == "__main__":
    main()
