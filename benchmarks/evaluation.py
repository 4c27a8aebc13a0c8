"""Evaluation with windows as one stream, against batch by batch, in the same run.

    PYTHONPATH=. python benchmarks/evaluation.py --tokenizer ../shared/data/whisper_tokenizer

Runs `run_short_form_eval.py` on noise of 2 to 12 s, and `run_long_form_eval.py` on recordings of
it, with both algorithms. The reference is the same stages with what they did before: a batch of
windows is decoded, to the end of its longest transcript, and then the next. The model has random
weights, which never end by themselves: lengths of transcripts are log-normal, by the window, and
the same in both programs. Sequential decoding follows the timestamps that random weights write.

Transcripts are checked to be equal. Programs run in turn; medians are printed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import torch
from decoding import TINY, tiny_whisper
from torch import Tensor

import run_long_form_eval as long_stage
import run_short_form_eval as short_stage
from distillery.cli.flags import parse
from distillery.evaluation import transcription
from distillery.whisper import long_form
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoder_cache import CachedDecoder
from distillery.whisper.decoding import Decoding
from distillery.whisper.greedy import GreedyDecoder, Window

RATE = 16_000
SHAPES = {
    "tiny": TINY,
    "toy": {
        **{"d_model": 192, "encoder_layers": 4, "decoder_layers": 4, "max_source_positions": 150},
        **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
        **{"encoder_ffn_dim": 768, "decoder_ffn_dim": 768},
    },
}
BATCHES, STREAM = "batch by batch", "one stream"
STAGES = SHORT, *_ = "short_form", "chunked", "sequential"
SPREAD = 0.35  # of the logarithm of a transcript's length


@dataclass
class Turn:
    """One run of a stage: seconds by the clock and of the processor, and passes of the decoder."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    passes: int = 0
    row_steps: int = 0


def main() -> None:
    """Check that transcripts agree, then print each program's speed."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whisper = tiny_whisper(args.tokenizer, SHAPES[args.shape])
        whisper.save(folder / "model")
        clips = make_sounds(
            folder / "clips.jsonl", args.clips, 2, min(12, whisper.log_mel.window_s)
        )
        talks = make_sounds(folder / "talks.jsonl", args.recordings, 60, 120)
        print(f"| stage | program | {' | '.join(vars(Turn()))} | times |\n|---|---|{5 * '---:|'}")
        for stage in args.stages:
            script = short_stage if stage == SHORT else long_stage
            words = ["-m", folder / "model", "-d", clips if stage == SHORT else talks]
            words += [] if stage == SHORT else ["--algorithm", stage]
            words += ["-l", "en", "-b", args.batch_size]
            num_ids = args.ids if stage == SHORT else args.long_ids
            turns: dict[str, list[Turn]] = {BATCHES: [], STREAM: []}
            for number in range(args.runs):
                texts = []
                for program, own in turns.items():
                    out = folder / f"{stage} {program} {number}"
                    own.append(run(script, [*words, "-o", out], program, num_ids))
                    texts.append(sorted(p.read_text() for p in out.glob("predictions/*.csv")))
                    print(f"{stage}, {program}: {own[-1]}", file=sys.stderr, flush=True)
                assert texts[0] == texts[1] != [], "transcripts differ"
            report(stage, turns)


def run(script: ModuleType, words: list[Any], program: str, num_ids: int) -> Turn:
    """Run a stage; only the transcription itself counts."""
    turn = Turn()
    own = script._Transcriber
    name = "transcribe" if script is short_stage else "__call__"
    method = getattr(own, name)

    def timed(*values: Any) -> Any:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        found = method(*values)
        turn.wall_s, turn.cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return found

    setattr(own, name, timed)
    try:
        with counted(turn), decoded(program, num_ids):
            script.main(*parse(script.GROUPS, [str(word) for word in words], check=script.check))
    finally:
        setattr(own, name, method)
    return turn


@contextmanager
def decoded(program: str, num_ids: int) -> Iterator[None]:
    """Let stages decode windows of forced lengths, as a stream or batch by batch."""

    def stream(
        whisper: Whisper, windows: Iterable[Window[Any]], _: Decoding, batch_size: int
    ) -> Iterator[Any]:
        source = map(partial(forced, whisper, num_ids), windows)
        if program == STREAM:
            yield from GreedyDecoder[Any](whisper, batch_size).transcribe(source)
        else:
            while batch := list(islice(source, batch_size)):
                yield from GreedyDecoder[Any](whisper, len(batch)).transcribe(batch)

    originals = {module: module.transcribe_stream for module in (transcription, long_form)}
    for module in originals:
        module.transcribe_stream = stream
    try:
        yield
    finally:
        for module, original in originals.items():
            module.transcribe_stream = original


def forced(whisper: Whisper, num_ids: int, window: Window[Any]) -> Window[Any]:
    """Return a window of which so many ids are written, on average: log-normal, by its seed."""
    how, rng = window.decoding, np.random.default_rng(window.seed)
    prefix = whisper.tokens.prefix(how.language, how.task, how.timestamps)
    count = max(1, round(num_ids * rng.lognormal(0, SPREAD)))
    return replace(
        window, decoding=replace(how, max_length=len(prefix) + len(window.prompt) + count)
    )


@contextmanager
def counted(turn: Turn) -> Iterator[None]:
    """Count the passes of the decoder, and the ids that it is fed."""
    original = CachedDecoder.states

    def states(self: CachedDecoder, ids: Tensor, *values: Any) -> Tensor:
        turn.passes += 1
        turn.row_steps += ids.numel()
        return original(self, ids, *values)

    CachedDecoder.states = states  # type: ignore[method-assign]
    try:
        yield
    finally:
        CachedDecoder.states = original  # type: ignore[method-assign]


def make_sounds(manifest: Path, count: int, shortest_s: float, longest_s: float) -> Path:
    """Write noise, as FLAC, and a manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        path = manifest.parent / f"{manifest.stem}-{index:04d}.flac"
        noise = rng.standard_normal(int(RATE * rng.uniform(shortest_s, longest_s)))
        soundfile.write(path, 0.05 * noise, RATE)
        rows.append(json.dumps({"id": path.stem, "audio": path.name, "text": "some text"}))
    manifest.write_text("\n".join(rows), "utf-8")
    return manifest


def report(stage: str, turns: Mapping[str, Sequence[Turn]]) -> None:
    """Print a line for each program."""
    for program, own in turns.items():
        figures = [statistics.median(getattr(t, name) for t in own) for name in vars(Turn())]
        pairs = zip(turns[BATCHES], own, strict=True)
        ratio = statistics.median(base.cpu_s / each.cpu_s for base, each in pairs)
        cells = (stage, program, *(f"{figure:.4g}" for figure in figures), f"{ratio:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or Hub id of Whisper's tokenizer")
    add("--shape", choices=SHAPES, default="tiny", help="of the model (tiny)")
    add("--stages", nargs="+", choices=STAGES, default=STAGES, help="what is run (all)")
    add("--clips", type=int, default=64, help="clips (64)")
    add("--recordings", type=int, default=4, help="recordings of 1 to 2 minutes (4)")
    add("--ids", type=int, default=18, help="ids of a clip, on average (18)")
    add("--long_ids", type=int, default=80, help="ids of a long recording's window (80)")
    add("--batch_size", type=int, default=16, help="windows side by side (16)")
    add("--runs", type=int, default=3, help="turns (3)")
    add("--threads", type=int, default=1, help="cores used (1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
