"""Make a small Japanese speech corpus with espeak-ng, without any download.

    python scripts/demo/make_corpus.py --output_dir runs/corpus --num_train 2000 --seed 0
    python scripts/demo/make_corpus.py --output_dir /tmp/corpus --num_train 20 --num_test 5 \\
        --num_long 1

Writes FLAC files (16 kHz, mono) and one JSON-lines manifest for each set:

- `train.jsonl`: clips of one utterance, 1 to 3 s;
- `windows.jsonl`: training windows cut out of longer recordings as long-form decoding cuts them,
  all beginning in a pause: half of them last `--window_s` seconds, whatever is said when they end,
  a few with silence alone; half hold two utterances or more, none of them cut off;
- `test.jsonl`: clips of word sequences that no other set has;
- `long.jsonl`: such utterances joined with pauses to 20 to 40 s, with the times of each;
- `long_clips.jsonl`: the same utterances one by one, as parts of those recordings: what is lost
  against them is lost by decoding at length;
- `dev.jsonl`, `dev_long.jsonl`, `dev_long_clips.jsonl`: as large as these three, with sentences and
  speakers of their own. What is tuned is tuned on them.

The same arguments give the same bytes. A finished corpus is left as it is.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import sys
import zlib
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

RECIPE = 4  # raise it when the same arguments no longer give the same corpus
SUMMARY = "corpus.json"

# fmt: off
WORDS = (
    "ねこ", "いぬ", "とり", "さかな", "みず", "やま", "そら", "もり", "ごはん",
    "おちゃ", "りんご", "たまご", "くるま", "でんしゃ", "いえ", "えき", "あした", "よる",
    "きょう", "なつ", "ふゆ", "ともだち", "せんせい", "はな", "ゆき",
)
# fmt: on
NUM_WORDS_WEIGHTS = (1, 4, 5, 5, 5)  # single words are few: each one tested is one not trained on

TRAIN, WINDOWS, TEST, LONG, DEV, DEV_LONG = "train", "windows", "test", "long", "dev", "dev_long"
NUM_SHARES = 64  # of all sentences; each set has some, and the training sets have the others
HELD_OUT = (TEST, DEV) * 2 + (LONG, DEV_LONG) * 4

MARGINS_S = (0.1, 0.4)  # silence before and after the utterance of a clip
PAUSES_S = (0.7, 1.2)  # silence between the utterances of a recording
RECORDING_S = (23.0, 40.0)  # at most: a recording ends up to 3.5 s before its draw
MIN_CLIP_S = 1.0
WINDOWS_PER_RECORDING = 12
LEADS_S = (0.05, 0.5)  # silence at the start of a window, of which decoding leaves 0.25
TAILS_S = (0.05, 0.4)  # silence at the end of a window that cuts nothing off


@dataclass
class Studio:
    """Speaks random sentences of one set."""

    espeak: Espeak
    rng: random.Random
    set_name: str

    def sentences(self) -> Iterator[tuple[str, ...]]:
        """Yield sentences without end; of a set that is held out, none twice."""
        said: set[tuple[str, ...]] = set()
        while True:
            words = draw_words(self.rng)
            if set_of("".join(words)) == self.set_name and words not in said:
                if self.set_name != TRAIN:
                    said.add(words)
                yield words

    def clip(self, words: tuple[str, ...]) -> tuple[Speaker, Recording]:
        """Return one utterance of a random speaker, with some silence around it."""
        speaker = Speaker.draw(self.rng)
        utterance = Utterance.speak(self.espeak, speaker, words)
        before, after = self.rng.uniform(*MARGINS_S), self.rng.uniform(*MARGINS_S)
        after = max(after, MIN_CLIP_S - before - utterance.duration)
        return speaker, Recording.join([utterance], [before, after])

    def recording(self, sentences: Iterator[tuple[str, ...]]) -> tuple[Speaker, Recording]:
        """Return a random speaker's recording of as many sentences as its length takes."""
        rng = self.rng
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


def set_of(text: str) -> str:
    """Return the set that a sentence belongs to, which follows from its letters alone."""
    share = zlib.crc32(text.encode()) % NUM_SHARES
    return HELD_OUT[share] if share < len(HELD_OUT) else TRAIN


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


def make_clips(folder: Path, studio: Studio, count: int) -> Iterator[dict[str, Any]]:
    """Write clips of one sentence each and yield their rows."""
    for index, words in enumerate(itertools.islice(studio.sentences(), count)):
        name = f"{studio.set_name}-{index:05d}"
        speaker, clip = studio.clip(words)
        write_audio(folder, name, clip.samples)
        row = make_row(name, speaker, name, clip.duration)
        yield row | {TEXT: clip.text(), TIMESTAMPED_TEXT: clip.timestamped_text()}


def make_long(folder: Path, studio: Studio, count: int) -> Iterator[dict[str, Any]]:
    """Write long recordings and yield their rows, with the times of the utterances."""
    sentences = studio.sentences()
    for index in range(count):
        name = f"{studio.set_name}-{index:05d}"
        speaker, recording = studio.recording(sentences)
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
    folder: Path, studio: Studio, count: int, window_s: float
) -> Iterator[dict[str, Any]]:
    """Write training windows cut out of long recordings and yield their rows."""
    rng, sentences = studio.rng, studio.sentences()
    index = 0
    for number in itertools.count():
        speaker, recording = studio.recording(sentences)
        starts = [*recording.starts, recording.duration]
        rng.shuffle(starts)
        for next_start in starts[:WINDOWS_PER_RECORDING]:
            if index == count:
                return
            start, end = draw_window(rng, recording, window_s, next_start, whole=index % 2 == 1)
            if index % 2 and len(recording.between(start, end)) < 2:
                continue  # clips have one utterance each
            text = recording.complete_between(start, end)
            if set_of(text.replace("。", "")) != TRAIN:
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


def make_set(
    name: str, count: int, folder: Path, window_s: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Write one set, and the parts of its recordings; return the rows and hours of each.

    This is the work of a process of its own: what espeak-ng says depends on what it said before.
    """
    is_training = name in (TRAIN, WINDOWS)
    studio = Studio(Espeak(), random.Random(f"{seed} {name}"), TRAIN if is_training else name)
    manifest = folder / f"{name}.jsonl"
    if name == WINDOWS:
        return {name: write_manifest(manifest, make_windows(folder, studio, count, window_s))}
    if name not in (LONG, DEV_LONG):
        return {name: write_manifest(manifest, make_clips(folder, studio, count))}
    whole = write_manifest(manifest, make_long(folder, studio, count))
    parts = write_manifest(folder / f"{name}_clips.jsonl", cut_at_segments(manifest))
    return {name: whole, f"{name}_clips": parts}


def make_corpus(
    folder: Path,
    num_train: int,
    num_test: int,
    num_long: int,
    num_windows: int,
    window_s: float,
    seed: int,
) -> dict[str, Any]:
    """Write all sets, as many at once as there are processors; return rows and hours of each."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    sizes = {
        WINDOWS: num_windows,
        TRAIN: num_train,
        LONG: num_long,
        DEV_LONG: num_long,
        TEST: num_test,
        DEV: num_test,
    }
    work = [(name, count, folder, window_s, seed) for name, count in sizes.items()]
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        made = pool.starmap(make_set, work, chunksize=1)
    return {name: counts for sets in made for name, counts in sets.items()}


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
    parser.add_argument("--num_long", type=int, default=40, help="long test recordings (40)")
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
