"""The labelling stage, as its users start it, against a plain loop of `generate`, in the same run.

    PYTHONPATH=. python benchmarks/labelling.py --tokenizer ../shared/data/whisper_tokenizer

The clips are noise of about 6 s, stored as FLAC. The teacher has whisper-tiny's shape and random
weights, which never end by themselves: every window is given as many ids as its speech would have,
`--ids_per_s` a second, in all programs. The loop reads clips with soundfile, uses transformers'
feature extractor and calls `generate` with `--batch_size` clips at a time, in windows of their own;
it writes nothing. The stage labels the same clips twice, in windows of their own and packed, and
does all that it always does: checks, checksums, seals, files. What comes before the first clip
(loading the model and the rows) is told apart, and not counted: the loop's model is loaded too.

Unpacked ids are checked to be equal. All programs run in turn; medians are printed, by the clock
and by the processor's seconds: beside other work, the second say more.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
from decoding import tiny_whisper
from torch import Tensor
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

import run_pseudo_labelling as stage
from distillery.cli.flags import parse
from distillery.data import schema
from distillery.labelling.labeller import Prompts
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_cache import CachedDecoder
from distillery.whisper.decoding import Decoding
from distillery.whisper.greedy import encode

RATE = 16_000
LANGUAGE = "en"
REFERENCE, UNPACKED, PACKED, ENCODER = "generate", "stage", "stage, packed", "encoder alone"
PACKING = ("--packing", "best_fit")


@dataclass
class Turn:
    """One run of a program: seconds by the clock and of the processor, and what the model did."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    start_s: float = 0.0
    num_windows: int = 0
    row_steps: int = 0


@dataclass
class Clips:
    """What is labelled: a manifest, and its files with their lengths in seconds."""

    manifest: Path
    files: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Check that ids agree, then print each program's speed."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        clips = make_clips(Path(folder) / "clips.jsonl", args.clips)
        teacher = Path(folder) / "teacher"
        tiny_whisper(args.tokenizer).save(teacher)
        whisper = checkpoint.load(str(teacher))
        whisper.model.eval()
        force_lengths(args.ids_per_s)
        turns: dict[str, list[Turn]] = {}
        for number in range(args.runs):
            for name, turn in one_turn(whisper, teacher, clips, args, Path(folder) / str(number)):
                turns.setdefault(name, []).append(turn)
                print(f"turn {number + 1}, {name}: {turn}", file=sys.stderr, flush=True)
    report(turns, sum(clips.seconds.values()), whisper.log_mel.window_s)


def one_turn(
    whisper: Whisper, teacher: Path, clips: Clips, args: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, Turn]]:
    """Run every program once, and check what the two that can be compared wrote."""
    with measured() as turn:
        wanted = generate(whisper, clips, args.batch_size, args.ids_per_s)
    yield REFERENCE, turn
    for name, more in ((UNPACKED, ()), (PACKED, PACKING)):
        with measured() as turn:
            run_stage(turn, teacher, clips, folder / name, args.stage_batch_size, *more)
        yield name, turn
    num_packed = turn.num_windows
    found = labels(folder / UNPACKED)
    assert found == wanted, "the stage and `generate` wrote different ids"
    features = torch.zeros(num_packed, whisper.log_mel.num_mels, whisper.log_mel.num_frames)
    with measured() as turn, torch.inference_mode():
        for batch in features.split(args.batch_size):
            encode(whisper, list(batch))
    yield ENCODER, turn


def generate(
    whisper: Whisper, clips: Clips, batch_size: int, ids_per_s: float
) -> dict[str, list[int]]:
    """Return ids by clip, by a loop over batches of transformers' `generate`."""
    written, names = {}, list(clips.files)
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        samples = [soundfile.read(clips.files[name], dtype="float32")[0] for name in batch]
        features = whisper.feature_extractor(samples, sampling_rate=RATE, return_tensors="pt")
        lengths = [num_ids(clips.seconds[name], ids_per_s) for name in batch]
        rows = whisper.model.generate(
            features.input_features,
            language=LANGUAGE,
            task="transcribe",
            max_new_tokens=max(lengths),
            force_unique_generate_call=True,
        ).tolist()
        prefix = len(rows[0]) - max(lengths)
        for name, row, length in zip(batch, rows, lengths, strict=True):
            written[name] = row[: prefix + length]
    return written


def run_stage(
    turn: Turn, teacher: Path, clips: Clips, folder: Path, batch_size: int, *more: str
) -> None:
    """Label the clips by the stage; the turn then holds what came before the first one apart."""
    words = ["-m", teacher, "-d", clips.manifest, "-o", folder, "-b", batch_size]
    words += ["--language", LANGUAGE, "--decode_token_ids", "False", *more]
    groups = parse(stage.GROUPS, [str(word) for word in words], check=stage.check)
    label = stage._label

    def labels_now(*values: Any) -> None:
        turn.start_s = time.perf_counter() - started
        turn.wall_s, turn.cpu_s = time.perf_counter(), processor_s()
        label(*values)

    stage._label = labels_now
    started = time.perf_counter()
    try:
        stage.main(*groups)
    finally:
        stage._label = label


@contextmanager
def measured() -> Iterator[Turn]:
    """Take the time of what is done within, and count what the model does there."""
    turn = Turn(time.perf_counter(), processor_s())
    with counted(turn):
        yield turn
    turn.wall_s = time.perf_counter() - turn.wall_s
    turn.cpu_s = processor_s() - turn.cpu_s


def processor_s() -> float:
    """Return the processor's seconds so far, of this process and of children that ended."""
    return sum(os.times()[:4])


@contextmanager
def counted(turn: Turn) -> Iterator[None]:
    """Count windows that are encoded, and ids that decoders are fed: transformers', and our own."""

    def encoded(features: Tensor) -> None:
        turn.num_windows += len(features)

    def fed(ids: Tensor) -> None:
        turn.row_steps += ids.numel()

    with (
        watched(WhisperEncoder, "forward", "input_features", encoded),
        watched(WhisperDecoder, "forward", "input_ids", fed),
        watched(CachedDecoder, "states", "ids", fed),
    ):
        yield


@contextmanager
def watched(
    owner: type, method: str, argument: str, see: Callable[[Tensor], None]
) -> Iterator[None]:
    """Show the first argument of a method's calls to a function."""
    original = getattr(owner, method)

    def seen(self: Any, *values: Any, **named: Any) -> Any:
        see(values[0] if values else named[argument])
        return original(self, *values, **named)

    setattr(owner, method, seen)
    try:
        yield
    finally:
        setattr(owner, method, original)


def force_lengths(ids_per_s: float) -> None:
    """Let the stage ask for as many ids of each window as its speech would have."""
    decoding_of = Prompts.decoding_of

    def forced(self: Prompts, row: Mapping[str, Any]) -> Decoding:
        decoding = decoding_of(self, row)
        speech_s = sum(row.get(schema.SEGMENT_DURATIONS) or [row[schema.DURATION]])
        prefix = self.tokens.prefix(decoding.language, decoding.task, decoding.timestamps)
        return replace(decoding, max_length=len(prefix) + num_ids(speech_s, ids_per_s))

    Prompts.decoding_of = forced  # type: ignore[method-assign]


def num_ids(seconds: float, ids_per_s: float) -> int:
    """Return how many ids so many seconds of speech have."""
    return max(1, round(seconds * ids_per_s))


def labels(folder: Path) -> dict[str, list[int]]:
    """Return the ids of a labelled dataset by the ids of its rows."""
    return {
        row[schema.ID]: row[schema.WHISPER_TRANSCRIPT]
        for path in folder.glob("*/*.parquet")
        for row in pq.read_table(path).to_pylist()
    }


def make_clips(manifest: Path, count: int) -> Clips:
    """Write noise of 2 to 12 s, log-normal about 6 s, as FLAC, and a manifest."""
    rng = np.random.default_rng(0)
    files, seconds, rows = {}, {}, []
    for index in range(count):
        num_samples = int(RATE * np.clip(rng.lognormal(np.log(5.8), 0.35), 2, 12))
        name, path = f"clip-{index:04d}", manifest.parent / f"clip-{index:04d}.flac"
        soundfile.write(path, 0.05 * rng.standard_normal(num_samples), RATE)
        files[name], seconds[name] = path, num_samples / RATE
        rows.append(json.dumps({schema.ID: name, schema.AUDIO: path.name}))
    manifest.write_text("\n".join(rows), "utf-8")
    return Clips(manifest, files, seconds)


def report(turns: Mapping[str, Sequence[Turn]], speech_s: float, window_s: float) -> None:
    """Print a table, and what the stage did before the first clip."""
    windows_packed = turns[PACKED][0].num_windows
    start_s = statistics.median(turn.start_s for turn in turns[UNPACKED])
    print(f"{speech_s:.0f} s of speech, {len(turns[REFERENCE])} turns; audio seconds per second")
    print(f"start of the stage, not counted: {start_s:.1f} s\n")
    columns = ("by the clock", "times", "of the processor", "times")
    columns += ("windows", "row-steps", "fill", "encoder's share")
    print(f"| program | {' | '.join(columns)} |\n|---|{len(columns) * '---:|'}")
    for name, own in turns.items():
        cells = [name]
        for clock in ("wall_s", "cpu_s"):
            speed = speech_s / statistics.median(getattr(turn, clock) for turn in own)
            pairs = zip(turns[REFERENCE], own, strict=True)
            ratio = statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)
            cells += [f"{speed:.1f}", f"{ratio:.2f}"]
        each = statistics.median(turn.cpu_s for turn in turns[ENCODER]) / windows_packed
        floor = each * own[0].num_windows / statistics.median(turn.cpu_s for turn in own)
        fill = speech_s / (own[0].num_windows * window_s)
        cells += [own[0].num_windows, own[0].row_steps, f"{fill:.2f}", f"{floor:.0%}"]
        print(f"| {' | '.join(map(str, cells))} |")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or Hub id of Whisper's tokenizer")
    add("--clips", type=int, default=96, help="clips to label (96)")
    add("--ids_per_s", type=float, default=3, help="ids for a second of speech (3)")
    add("--batch_size", type=int, default=8, help="clips at once in the loop of `generate` (8)")
    add("--stage_batch_size", type=int, default=16, help="windows at once in the stage (16)")
    add("--runs", type=int, default=3, help="turns (3)")
    add("--threads", type=int, default=2, help="cores used (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
