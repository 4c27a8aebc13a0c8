"""Time to decode clips, against plain soundfile and soxr, and to find speech, against silero-vad.

    PYTHONPATH=.:tests python benchmarks/audio.py --clip ../shared/data/jfk.flac

The clip is decoded as it is, and encoded again in other formats; each pair is checked for equal
samples first, then timed in strict alternation. What libsndfile does not know is timed against the
program `ffmpeg`, started for each clip, where there is one. Speech is looked for in the
clip repeated 60 times.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from silero_vad import get_speech_timestamps, load_silero_vad
from tiny import write_by_av

from distillery.audio.decoding import decode_audio
from distillery.ingest.speech import VAD_PADDING_MS, VAD_RATE, speech_windows

NUM_RUNS = 21
REPEATS = 60
FORMATS = ("WAV", "FLAC", "OGG", "MP3")
FFMPEG_FORMATS = {"M4A": ("aac", "ipod"), "WebM": ("libopus", "webm"), "AAC": ("aac", "adts")}


def plain(content: bytes) -> np.ndarray:
    """Decode as one does without any check."""
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, VAD_RATE)


def ours(content: bytes) -> np.ndarray:
    """Decode with all checks."""
    return decode_audio({"bytes": content}, VAD_RATE, 30.0)


def by_program(path: Path) -> np.ndarray:
    """Decode with the program ffmpeg."""
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(path)]
    command += ["-ac", "1", "-ar", str(VAD_RATE), "-f", "f32le", "pipe:1"]
    done = subprocess.run(command, check=True, capture_output=True)
    return np.frombuffer(done.stdout, np.float32)


def median_ms(*functions: Callable[[], object]) -> list[float]:
    """Return the median times of functions that are called in turn, in milliseconds."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(NUM_RUNS):
        for function, measured in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            measured.append(1000 * (time.perf_counter() - started))
    return [statistics.median(measured) for measured in times]


def compare(name: str, content: bytes) -> None:
    """Check that both decode the same, and print both times."""
    # soundfile.read seeks first, after which an MP3 decodes differently in the last digit.
    assert np.allclose(plain(content), ours(content), atol=1e-6), "they do not agree"
    plain_ms, ours_ms = median_ms(lambda: plain(content), lambda: ours(content))
    print_times(name, "plain", plain_ms, ours_ms)


def compare_with_program(name: str, samples: np.ndarray, folder: Path) -> None:
    """Encode a clip in a format that libsndfile does not know, and print both times."""
    path = folder / name
    content = write_by_av(path, samples, *FFMPEG_FORMATS[name], rate=VAD_RATE)
    started = time.perf_counter()
    ours(content)
    first_ms = 1000 * (time.perf_counter() - started)
    if shutil.which("ffmpeg") is None:
        [ours_ms] = median_ms(lambda: ours(content))
        print(f"{name:>14}: ours {ours_ms:6.2f} ms (no ffmpeg on the PATH to compare with)")
    else:
        # They resample and cut the padding in their own ways.
        assert abs(len(by_program(path)) - len(ours(content))) < VAD_RATE / 10
        print_times(name, "ffmpeg", *median_ms(lambda: by_program(path), lambda: ours(content)))
    print(f"{'':>14}  the first clip, with the helper's start where it is new: {first_ms:.0f} ms")


def print_times(name: str, reference: str, reference_ms: float, ours_ms: float) -> None:
    """Print two times and their ratio."""
    print(
        f"{name:>14}: {reference} {reference_ms:6.2f} ms, ours {ours_ms:6.2f} ms, "
        f"{ours_ms / reference_ms:.2f} times"
    )


def find_speech(samples: np.ndarray) -> None:
    """Print how fast speech is found, in seconds of audio per second."""
    model = load_silero_vad()
    audio_s = len(samples) / VAD_RATE
    speech_windows(samples[:VAD_RATE], 30.0)  # loads the network
    started = time.perf_counter()
    windows = speech_windows(samples, 30.0)
    ours_s = time.perf_counter() - started
    started = time.perf_counter()
    regions = get_speech_timestamps(torch.from_numpy(samples), model, speech_pad_ms=VAD_PADDING_MS)
    reference_s = time.perf_counter() - started
    print(f"speech in {audio_s:.0f} s: {len(windows)} clips of {len(regions)} stretches of speech")
    print(f"silero-vad, frame by frame: {audio_s / reference_s:.0f} times real time")
    print(f"                      ours: {audio_s / ours_s:.0f} times real time")


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
    with tempfile.TemporaryDirectory() as folder:
        for kind in FFMPEG_FORMATS:
            compare_with_program(kind, samples, Path(folder))
    find_speech(np.tile(samples, REPEATS))


if __name__ == "__main__":
    main()
