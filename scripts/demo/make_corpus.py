"""Make a small Japanese speech corpus with espeak-ng, without any download.

    python scripts/demo/make_corpus.py --output_dir runs/corpus --num_train 2000 --seed 0
    python scripts/demo/make_corpus.py --output_dir /tmp/corpus --num_train 20 --num_test 5 \\
        --num_long 1

Writes FLAC files (16 kHz, mono) and one JSON-lines manifest for each set:

- `train.jsonl`: clips of one utterance, 1 to 3 s;
- `windows.jsonl`: training windows cut out of longer recordings as long-form decoding cuts them,
  all beginning in a pause: half of them last `--window_s` seconds, whatever is said when they end,
  a few with silence alone; half hold two utterances or more, none of them cut off;
- `test.jsonl`: clips of word sequences that no training utterance has;
- `long.jsonl`: such utterances joined with pauses to 20 to 40 s, with the times of each;
- `long_clips.jsonl`: the same utterances one by one, as parts of those recordings: what is lost
  against them is lost by decoding at length.

The same arguments give the same bytes. A finished corpus is left as it is.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from synthetic_speech import SAMPLE_RATE, Espeak, Recording, Speaker, Utterance, timestamp

from distillery.data.schema import (
    AUDIO,
    DURATION,
    ID,
    OFFSET,
    RECORDING_ID,
    SEGMENT_END,
    SEGMENT_START,
    SEGMENTS,
    SPEAKER_ID,
    TEXT,
)
from distillery.storage.files import write_text

TIMESTAMPED_TEXT = "timestamped_text"
LANGUAGE = "language"

MARGIN_S = 0.1  # of silence around an utterance that is cut out

RECIPE = 3  # raise it when the same arguments no longer give the same corpus
SUMMARY = "corpus.json"

# fmt: off
WORDS = (
    "ねこ", "いぬ", "とり", "さかな", "みず", "やま", "そら", "もり", "ごはん",
    "おちゃ", "りんご", "たまご", "くるま", "でんしゃ", "いえ", "えき", "あした", "よる",
    "きょう", "なつ", "ふゆ", "ともだち", "せんせい", "はな", "ゆき",
)
# fmt: on
NUM_WORDS_WEIGHTS = (1, 4, 5, 5, 5)  # single words are few: each one tested is one not trained on

MARGINS_S = (0.1, 0.4)  # silence before and after the utterance of a clip
PAUSES_S = (0.7, 1.2)  # silence between the utterances of a recording
RECORDING_S = (23.0, 40.0)  # at most: a recording ends up to 3.5 s before its draw
MIN_CLIP_S = 1.0
WINDOWS_PER_RECORDING = 12
LEADS_S = (0.05, 0.5)  # silence at the start of a window, of which decoding leaves 0.25
TAILS_S = (0.05, 0.4)  # silence at the end of a window that cuts nothing off


@dataclass
class Studio:
    """Speaks random sentences; those in `held_out` only when they are asked for."""

    espeak: Espeak
    held_out: set[tuple[str, ...]]

    def training_words(self, rng: random.Random) -> tuple[str, ...]:
        """Draw a word sequence that is not held out."""
        while (words := draw_words(rng)) in self.held_out:
            pass
        return words

    def clip(self, rng: random.Random, words: tuple[str, ...]) -> tuple[Speaker, Recording]:
        """Return one utterance of a random speaker, with some silence around it."""
        speaker = Speaker.draw(rng)
        utterance = Utterance.speak(self.espeak, speaker, words)
        before, after = rng.uniform(*MARGINS_S), rng.uniform(*MARGINS_S)
        after = max(after, MIN_CLIP_S - before - utterance.duration)
        return speaker, Recording.join([utterance], [before, after])

    def recording(
        self, rng: random.Random, sentences: Iterator[tuple[str, ...]]
    ) -> tuple[Speaker, Recording]:
        """Return a random speaker's recording of as many sentences as its length takes."""
        speaker, target = Speaker.draw(rng), rng.uniform(*RECORDING_S)
        utterances: list[Utterance] = []
        pauses = [rng.uniform(*PAUSES_S)]
        total = pauses[0]
        for words in sentences:
            utterance = Utterance.speak(self.espeak, speaker, words)
            pause = rng.uniform(*PAUSES_S)
            if utterances and total + utterance.duration + pause > target:
                break
            utterances.append(utterance)
            pauses.append(pause)
            total += utterance.duration + pause
        return speaker, Recording.join(utterances, pauses)


def draw_words(rng: random.Random) -> tuple[str, ...]:
    """Draw 1 to 5 words, none twice in a row."""
    count = rng.choices(range(1, len(NUM_WORDS_WEIGHTS) + 1), NUM_WORDS_WEIGHTS)[0]
    words = [rng.choice(WORDS)]
    while len(words) < count:
        words.append(rng.choice([word for word in WORDS if word != words[-1]]))
    return tuple(words)


def draw_distinct(rng: random.Random, count: int, taken: set[tuple[str, ...]]) -> list[Any]:
    """Draw word sequences that differ from each other and from those taken; add them to these."""
    drawn: list[tuple[str, ...]] = []
    while len(drawn) < count:
        words = draw_words(rng)
        if words not in taken:
            taken.add(words)
            drawn.append(words)
    return drawn


def make_row(name: str, speaker: Speaker, recording_id: str, duration: float) -> dict[str, Any]:
    """Return the columns that do not depend on what was said."""
    return {
        ID: name,
        AUDIO: f"audio/{name}.flac",
        TEXT: None,
        TIMESTAMPED_TEXT: None,
        SPEAKER_ID: speaker.voice,
        RECORDING_ID: recording_id,
        DURATION: round(duration, 4),
        LANGUAGE: "ja",
    }


def make_clips(
    folder: Path, studio: Studio, rng: random.Random, split: str, sentences: Iterator[Any]
) -> Iterator[dict[str, Any]]:
    """Write one clip per sentence and yield its row."""
    for index, words in enumerate(sentences):
        name = f"{split}-{index:05d}"
        speaker, clip = studio.clip(rng, words)
        write_audio(folder, name, clip.samples)
        row = make_row(name, speaker, name, clip.duration)
        yield row | {TEXT: clip.text(), TIMESTAMPED_TEXT: clip.timestamped_text()}


def make_long(
    folder: Path, studio: Studio, rng: random.Random, sentences: Iterator[Any], count: int
) -> Iterator[dict[str, Any]]:
    """Write long recordings and yield their rows, with the times of the utterances."""
    for index in range(count):
        name = f"long-{index:05d}"
        speaker, recording = studio.recording(rng, sentences)
        write_audio(folder, name, recording.samples)
        yield make_row(name, speaker, name, recording.duration) | {
            TEXT: recording.text(),
            TIMESTAMPED_TEXT: recording.timestamped_text(),
            SEGMENTS: [
                {SEGMENT_START: round(start, 3), SEGMENT_END: round(end, 3), TEXT: utterance.text}
                for utterance, start, end in recording.spans
            ],
        }


def cut_at_segments(manifest: Path) -> Iterator[dict[str, Any]]:
    """Yield the utterances of long recordings as rows, each a part of its recording's file."""
    for line in manifest.read_text("utf-8").splitlines():
        row = json.loads(line)
        for index, segment in enumerate(row[SEGMENTS]):
            start = max(0.0, segment[SEGMENT_START] - MARGIN_S)
            end = min(row[DURATION], segment[SEGMENT_END] + MARGIN_S)
            yield row | {
                ID: f"{row[ID]}-{index:02d}",
                OFFSET: round(start, 3),
                DURATION: round(end - start, 3),
                TEXT: segment[TEXT],
                TIMESTAMPED_TEXT: None,
                SEGMENTS: None,
            }


def make_windows(
    folder: Path, studio: Studio, rng: random.Random, count: int, window_s: float
) -> Iterator[dict[str, Any]]:
    """Write training windows cut out of long recordings and yield their rows."""
    held_out = {"".join(words) for words in studio.held_out}
    endless = iter(lambda: studio.training_words(rng), None)
    index = 0
    for number in itertools.count():
        speaker, recording = studio.recording(rng, endless)
        starts = [*recording.starts, recording.duration]
        rng.shuffle(starts)
        for next_start in starts[:WINDOWS_PER_RECORDING]:
            if index == count:
                return
            start, end = draw_window(rng, recording, window_s, next_start, whole=index % 2 == 1)
            if index % 2 and len(recording.between(start, end)) < 2:
                continue  # clips have one utterance each
            text = recording.complete_between(start, end)
            if text.replace("。", "") in held_out:
                continue  # two training sentences can be a test sentence
            name = f"window-{index:05d}"
            write_audio(folder, name, recording.cut(start, end - start))
            yield make_row(name, speaker, f"windows-{number:05d}", end - start) | {
                TEXT: text,
                # Silence alone is written as a segment that starts and has no end.
                TIMESTAMPED_TEXT: recording.timestamped_between(start, end) or timestamp(0.0),
            }
            index += 1


def draw_window(
    rng: random.Random, recording: Recording, window_s: float, next_start: float, whole: bool
) -> tuple[float, float]:
    """Draw a window's start and end, in seconds.

    The window begins in the silence before an utterance, or at the recording's end. A whole one
    ends behind the last utterance that fits in.
    """
    start = next_start - rng.uniform(*LEADS_S)
    end = start + window_s
    complete = recording.between(start, end - TAILS_S[0])
    if whole and complete:
        end = min(end, complete[-1][2] + rng.uniform(*TAILS_S))
    return start, end


def write_audio(folder: Path, name: str, samples: np.ndarray) -> None:
    """Write 16-bit FLAC."""
    soundfile.write(folder / "audio" / f"{name}.flac", samples, SAMPLE_RATE, subtype="PCM_16")


def write_manifest(path: Path, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Write rows as JSON lines; return their number and hours."""
    lines, seconds = [], 0.0
    for row in rows:
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        seconds += row[DURATION]
    write_text(path, "".join(lines))
    return {"rows": len(lines), "hours": round(seconds / 3600, 4)}


def make_corpus(
    folder: Path,
    num_train: int,
    num_test: int,
    num_long: int,
    num_windows: int,
    window_s: float,
    seed: int,
) -> dict[str, Any]:
    """Write all sets and return the rows and hours of each."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    held_out: set[tuple[str, ...]] = set()
    test_words = draw_distinct(rng, num_test, held_out)
    most_per_recording = int(RECORDING_S[1] / PAUSES_S[0])
    long_words = draw_distinct(rng, num_long * most_per_recording, held_out)
    studio = Studio(Espeak(), held_out)
    train_words = (studio.training_words(rng) for _ in range(num_train))
    sets = {
        "test": make_clips(folder, studio, rng, "test", iter(test_words)),
        "long": make_long(folder, studio, rng, iter(long_words), num_long),
        "train": make_clips(folder, studio, rng, "train", train_words),
        "windows": make_windows(folder, studio, rng, num_windows, window_s),
    }
    counts = {name: write_manifest(folder / f"{name}.jsonl", rows) for name, rows in sets.items()}
    long_clips = cut_at_segments(folder / "long.jsonl")
    return counts | {"long_clips": write_manifest(folder / "long_clips.jsonl", long_clips)}


def is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    """Tell whether the corpus is there already.

    Raises:
        ValueError: if the folder holds a corpus of other parameters.
    """
    summary = folder / SUMMARY
    if not summary.exists():
        return False
    found = json.loads(summary.read_text("utf-8"))["parameters"]
    if found != parameters:
        differing = ", ".join(
            f"{key} {found.get(key)} there, {value} asked for"
            for key, value in parameters.items()
            if found.get(key) != value
        )
        raise ValueError(
            f"--output_dir {folder} holds another corpus ({differing}): choose another folder, "
            "or delete this one"
        )
    return True


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--num_train", type=int, default=2000, help="training clips (2000)")
    parser.add_argument("--num_test", type=int, default=150, help="test clips (150)")
    parser.add_argument("--num_long", type=int, default=8, help="long test recordings (8)")
    parser.add_argument("--num_windows", type=int, help="training windows (as many as --num_train)")
    parser.add_argument("--window_s", type=float, default=3.0, help="their length in seconds (3)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    parsed = parser.parse_args(arguments)
    if parsed.num_windows is None:
        parsed.num_windows = parsed.num_train
    for flag in ("num_train", "num_test", "num_long", "num_windows"):
        if getattr(parsed, flag) < 0:
            parser.error(f"--{flag} must be >= 0, got {getattr(parsed, flag)}")
    if not 1.0 <= parsed.window_s <= 15.0:  # the shortest recordings last nearly 20 s
        parser.error(f"--window_s must be 1 to 15 seconds, got {parsed.window_s}")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Make the corpus unless it is there."""
    parsed = vars(parse_arguments(arguments))
    folder = parsed.pop("output_dir")
    parameters = {"recipe": RECIPE, **parsed}
    try:
        finished = is_finished(folder, parameters)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if finished:
        print(f"{folder}: the corpus is there already")
        return
    counts = make_corpus(folder, **parsed)
    summary = {"parameters": parameters, "sets": counts}
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    for name, count in counts.items():
        print(f"{folder / name}.jsonl: {count['rows']} rows, {count['hours']:.2f} hours")


if __name__ == "__main__":
    main()
