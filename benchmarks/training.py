"""The distillation stage, as its users start it, against a plain trainer of the published formula.

    PYTHONPATH=. python benchmarks/training.py --tokenizer ../shared/data/whisper_tokenizer

Teacher and student have whisper-tiny's shape with 4 + 4 and 4 + 2 layers and random weights; the
encoder is frozen and the same in both. The clips are noise of about 6 s, stored as FLAC, and their
labels random ids, `--ids_per_s` a second. The plain trainer reads clips with soundfile, uses
transformers' feature extractor, runs the encoder once for both models, pads labels to 128, computes
all logits of both as distil-whisper's trainer does, and is measured from its first batch to its
last update; it saves nothing. The stage sees the same clips once, unpacked and packed
(`--pack True`), and is measured from its first batch to its end, with its checkpoint, checksums and
files. Loading models and rows is told apart.

Losses are checked to be equal where nothing is packed. All programs run in turn, each in a
process of its own; medians are printed, by the clock and by the processor's seconds. Memory is the
growth of its peak after the models are loaded, less 12 bytes for each trained weight: its gradient
and AdamW's two means.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from decoding import tiny_whisper
from labelling import RATE, make_clips, num_ids, processor_s
from torch.nn import functional

import create_student_model
import run_distillation
from distillery.cli import training
from distillery.cli.flags import parse
from distillery.data import schema
from distillery.text.labels import IGNORED
from distillery.text.tokens import SpecialTokens
from distillery.training.losses import LossWeights
from distillery.training.order import Order
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.memory import peak_memory

LANGUAGE, LEARNING_RATE, MAX_LABELS = "en", 1e-4, 128
REFERENCE, UNPACKED, PACKED = "plain trainer", "stage", "stage, packed"
TOLERANCE = 1e-5
ADAMW_BYTES = 12  # of a trained weight: gradient and two means, float32
CPU = torch.device("cpu")


@dataclass
class Turn:
    """One run of a program: seconds by the clock and of the processor, bytes, and its losses."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    start_s: float = 0.0
    memory: float = 0.0
    losses: Sequence[float] = ()

    @contextmanager
    def measured(self, num_trained: int) -> Iterator[None]:
        """Measure what is done inside, by a program that trains so many weights."""
        wall_s, cpu_s, peak = time.perf_counter(), processor_s(), peak_memory(CPU) or 0
        yield
        self.wall_s, self.cpu_s = time.perf_counter() - wall_s, processor_s() - cpu_s
        self.memory = (peak_memory(CPU) or 0) - peak - ADAMW_BYTES * num_trained


def main() -> None:
    """Check that losses agree, then print each program's speed."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder / "clips.jsonl", args)
        tiny_whisper(args.tokenizer).save(folder / "teacher")
        words = ["-m", folder / "teacher", "--decoder_layers", 2, "-o", folder / "student"]
        create_student_model.main(*parsed(create_student_model, words))
        turns: dict[str, list[Turn]] = {}
        for number in range(args.runs):
            for program, turn in one_turn(rows, args, folder, folder / str(number)).items():
                turns.setdefault(program, []).append(turn)
    report(turns, sum(row[schema.DURATION] for row in rows))


def one_turn(
    rows: list[dict[str, Any]], args: argparse.Namespace, models: Path, folder: Path
) -> dict[str, Turn]:
    """Run every program once, and check the losses of the two that can be compared."""
    turns = {REFERENCE: in_own_process(train_plainly, args, rows, args, models)}
    common = [*("-m", models / "student", "--teacher", models / "teacher")]
    common += ["-d", models / "clips.jsonl", "--language", LANGUAGE, "--freeze_encoder"]
    common += ["--per_device_train_batch_size", args.batch_size, "--num_train_epochs", 1]
    common += ["--logging_steps", 1, "--learning_rate", LEARNING_RATE, "--max_grad_norm", 1e9]
    common += ["--lr_scheduler_type", "constant", "--timestamp_probability", 0, "--seed", 0]
    for program, pack in ((UNPACKED, False), (PACKED, True)):
        words = [*common, "--pack", pack, "-o", folder / program]
        turns[program] = in_own_process(run_stage, args, words)
    for program, turn in turns.items():
        print(f"{program}: {turn}", file=sys.stderr, flush=True)
    pairs = zip(turns[REFERENCE].losses, turns[UNPACKED].losses, strict=True)
    worst = max(abs(plain - ours) / plain for plain, ours in pairs)
    print(f"losses of {len(turns[UNPACKED].losses)} updates differ by {worst:.1e}", file=sys.stderr)
    assert worst < TOLERANCE, "the stage and the plain trainer have different losses"
    return turns


def in_own_process(program: Callable[..., Turn], args: argparse.Namespace, *values: Any) -> Turn:
    """Run a program in a process that has done nothing else, whose peak of memory is its own."""
    begin = torch.set_num_threads, (args.threads,)
    with ProcessPoolExecutor(1, get_context("spawn"), *begin) as process:
        return process.submit(program, *values).result()


# --- the plain trainer ----------------------------------------------------------------------------


def train_plainly(rows: list[dict[str, Any]], args: argparse.Namespace, models: Path) -> Turn:
    """Train one epoch by the published formula, in the stage's order of rows."""
    teacher = checkpoint.load(str(models / "teacher"))
    student = checkpoint.load(str(models / "student"))
    student.model.train()
    student.model.model.encoder.requires_grad_(False)
    trained = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    order = [row for row, _ in Order((len(rows),), None, 0)[0 : len(rows)]]
    turn, losses = Turn(), []
    with turn.measured(num_weights(trained)):
        for start in range(0, len(rows), args.batch_size):
            batch = [rows[index] for index in order[start : start + args.batch_size]]
            loss = plain_loss(teacher, student, batch, models)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    turn.losses = losses
    return turn


def num_weights(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Return how many weights are trained."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def plain_loss(
    teacher: Whisper, student: Whisper, batch: list[dict[str, Any]], folder: Path
) -> torch.Tensor:
    """Return CE and KL of a batch of clips and what was heard in them."""
    samples = [soundfile.read(folder / row[schema.AUDIO], dtype="float32")[0] for row in batch]
    features = student.feature_extractor(samples, sampling_rate=RATE, return_tensors="pt")
    return formula(teacher, student, features.input_features, padded_labels(batch, student.tokens))


def formula(
    teacher: Whisper, student: Whisper, features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return CE and KL of a batch as distil-whisper's trainer has them.

    Both models make logits and a cross-entropy of all positions; the divergence is masked where
    labels are padding.

    Args:
        teacher: frozen.
        student: with the teacher's encoder, frozen too.
        features: float (batch, mels, frames).
        labels: int64 (batch, tokens) without the start of the transcript, padded with `IGNORED`.
    """
    with torch.no_grad():
        encoded = student.model.model.encoder(features)
        theirs = teacher.model(encoder_outputs=encoded, labels=labels, use_cache=False).logits
    outputs = student.model(encoder_outputs=encoded, labels=labels, use_cache=False)
    weights = LossWeights()
    divergence = functional.kl_div(
        (outputs.logits / weights.temperature).log_softmax(-1),
        (theirs / weights.temperature).softmax(-1),
        reduction="none",
    )
    counts = labels >= 0
    divergence = (divergence * counts[..., None]).sum() / counts.sum()
    return weights.ce * outputs.loss + weights.kl * weights.temperature**2 * divergence


def padded_labels(batch: Sequence[Mapping[str, Any]], tokens: SpecialTokens) -> torch.Tensor:
    """Return labels without the start of the transcript, (rows, `MAX_LABELS`)."""
    prefix = tokens.prefix(LANGUAGE, "transcribe", False)
    labels = torch.full((len(batch), MAX_LABELS), IGNORED)
    for index, row in enumerate(batch):
        ids = [*prefix[1:], *row[schema.WHISPER_TRANSCRIPT], tokens.end_of_text]
        labels[index, : len(ids)] = torch.tensor(ids)
    return labels


# --- the stage ------------------------------------------------------------------------------------


def run_stage(words: list[Any]) -> Turn:
    """Distil by the stage; what comes before its first batch is told apart."""
    turn, begin, measuring = Turn(), training.begin_session, ExitStack()
    started = time.perf_counter()

    def begun(evaluator: Any, *values: Any) -> Any:
        session = begin(evaluator, *values)
        turn.start_s = time.perf_counter() - started
        student = evaluator.learner.student.model
        measuring.enter_context(turn.measured(num_weights(student.parameters())))
        return session

    training.begin_session = begun
    with measuring:
        run_distillation.main(*parsed(run_distillation, words))
    lines = (Path(words[-1]) / "train_log.jsonl").read_text("utf-8").splitlines()
    turn.losses = [json.loads(line)["loss"] for line in lines if '"train"' in line]
    return turn


def parsed(stage: Any, words: Sequence[Any]) -> Any:
    """Return a stage's groups of flags."""
    check = getattr(stage, "check", None)
    return parse(stage.GROUPS, [str(word) for word in words], **({"check": check} if check else {}))


# --- data and report ------------------------------------------------------------------------------


def make_rows(manifest: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Write noise and a manifest of it with random transcripts of text ids; return its rows."""
    clips, rng = make_clips(manifest, args.clips), np.random.default_rng(1)
    rows = [
        {
            schema.ID: name,
            schema.AUDIO: clips.files[name].name,
            schema.DURATION: seconds,
            schema.WHISPER_TRANSCRIPT: rng.integers(
                300, 50_000, num_ids(seconds, args.ids_per_s)
            ).tolist(),
        }
        for name, seconds in clips.seconds.items()
    ]
    manifest.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return rows


def report(turns: Mapping[str, Sequence[Turn]], speech_s: float) -> None:
    """Print a table, and what the stage did before the first batch."""
    start_s = statistics.median(turn.start_s for turn in turns[UNPACKED])
    print(f"{speech_s:.0f} s of speech, {len(turns[REFERENCE])} turns; audio seconds per second")
    print(f"start of the stage, not counted: {start_s:.1f} s\n")
    columns = ("by the clock", "times", "of the processor", "times", "memory", "share", "updates")
    print(f"| program | {' | '.join(columns)} |\n|---|{len(columns) * '---:|'}")
    for name, own in turns.items():
        cells = [name]
        for clock in ("wall_s", "cpu_s"):
            speed = speech_s / statistics.median(getattr(turn, clock) for turn in own)
            pairs = zip(turns[REFERENCE], own, strict=True)
            ratio = statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)
            cells += [f"{speed:.1f}", f"{ratio:.2f}"]
        memory, plain = (
            statistics.median(turn.memory for turn in turns[program])
            for program in (name, REFERENCE)
        )
        cells += [f"{memory / 2**20:.0f} MiB", f"{memory / plain:.2f}", str(len(own[0].losses))]
        print(f"| {' | '.join(cells)} |")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder or Hub id of Whisper's tokenizer")
    add("--clips", type=int, default=320, help="clips to train on (320)")
    add("--ids_per_s", type=float, default=3, help="ids for a second of speech (3)")
    add("--batch_size", type=int, default=8, help="windows in a batch (8)")
    add("--runs", type=int, default=3, help="turns (3)")
    add("--threads", type=int, default=2, help="cores used (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
