"""What the choices of a distillation do to the student's error rates, in a table.

    PYTHONPATH=. python benchmarks/quality.py --quickstart runs/quickstart -o runs/quality
    PYTHONPATH=. python benchmarks/quality.py --quickstart runs/quickstart -o runs/quality \\
        --variants "both losses" packed --seeds 0 1 --epochs 1

Teacher, labels and test sets are those of a finished quickstart, or of any folder that has them
under the same names. Each variant changes one thing in the first, whose student has the teacher's
first decoder layer and its frozen encoder, and learns from single clips by cross-entropy and KL
divergence. All students hear the same clips equally often. The reference trainer is the published
formula in a plain loop: one clip in each window, labels padded, all logits.

Stages run with the flags of users, each run in a folder of its own and on one core, as many side by
side as `--processes` says. A second start skips what is finished, and a killed one goes on.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet
from training import formula, parsed
from transformers import get_scheduler

import create_student_model
import run_distillation
import run_long_form_eval
import run_short_form_eval
from distillery.audio.decoding import decode_audio
from distillery.data import schema
from distillery.evaluation.results import read_folder
from distillery.storage.checkpoints import find_damage, sealed_folder
from distillery.storage.files import write_text
from distillery.text.labels import IGNORED
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper

FREEZE = "--freeze_encoder"
MASKED_TIME = 0.05  # of the frames that SpecAugment hides: Whisper's own configuration
SETS = {"test": "clips", "sequential": "long, sequential", "chunked": "long, chunked"}
WARMUP_SHARE = 0.1
MAX_LABELS = 64  # the published trainer pads to 128, which the small models have no positions for
RUN_RECORD = "quality.json"
LAYERS = {
    "first": ("--decoder_layers_numbers", 0),
    "last": ("--decoder_layers", 1),
    "two": ("--decoder_layers", 2),
}


@dataclass(frozen=True)
class Variant:
    """A choice: flags of the distillation beside the shared ones, and the student it begins with.

    Attributes:
        flags: of `run_distillation.py`.
        layers: of the teacher's decoder that the student has, a key of `LAYERS`.
        masks: whether the student's configuration lets SpecAugment hide something.
        windows_share: of the batch size.
        caches: whether the teacher's most probable tokens are kept, and no teacher runs.
    """

    flags: Mapping[str, Any] = field(default_factory=lambda: {FREEZE: True})
    layers: str = "first"
    masks: bool = False
    windows_share: float = 1.0
    caches: bool = False

    @property
    def student(self) -> str:
        """Name of the folder of the student to begin with."""
        return f"init-{self.layers}{'-masked' * self.masks}"


BASE, REFERENCE = "both losses", "reference trainer"
VARIANTS = {
    BASE: Variant(),
    "CE alone": Variant({FREEZE: True, "--kl_weight": 0}),
    "KL alone": Variant({FREEZE: True, "--ce_weight": 0}),
    "encoder trained": Variant({FREEZE: False}),
    "last decoder layer": Variant(layers="last"),
    "2 decoder layers": Variant(layers="two"),
    "packed": Variant({FREEZE: True, "--pack": True}),
    # As much speech in an update as in the others.
    "packed, half a batch": Variant({FREEZE: True, "--pack": True}, windows_share=0.5),
    "SpecAugment": Variant({FREEZE: True, "--apply_spec_augment": True}, masks=True),
    "teacher cached": Variant(caches=True),
    REFERENCE: Variant(),
}


def main() -> None:
    """Make all runs that are not there, and print the table."""
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    runs = [Run(name, seed, args) for seed in args.seeds for name in args.variants]
    left = [run for run in runs if not (run.folder / RUN_RECORD).exists()]
    for variant in {VARIANTS[run.name].student: VARIANTS[run.name] for run in left}.values():
        make_student(variant, args)
    with multiprocessing.get_context("spawn").Pool(args.processes, take_one_core) as pool:
        for name in pool.imap(make_run, left, chunksize=1):
            table = table_of(args)
            write_text(args.output_dir / "quality.md", table)
            print(f"{name}\n\n{table}", flush=True)
    print(table_of(args))


@dataclass(frozen=True)
class Run:
    """A variant with one seed."""

    name: str
    seed: int
    args: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        name = self.name.replace(" ", "_").replace(",", "")
        folder: Path = self.args.output_dir / f"{name}-{self.seed}"
        return folder


def take_one_core() -> None:
    """Prepare a process that makes runs."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)


def make_run(run: Run) -> str:
    """Train a student and measure it; return the run's name."""
    variant, student, args = VARIANTS[run.name], run.folder / "student", run.args
    begin_with = args.output_dir / variant.student
    if run.name == REFERENCE:
        updates = train_plainly(begin_with, student, run.seed, args)
    else:
        updates = distil(variant, begin_with, student, run.seed, args)
    evaluate(student, run.folder / "eval", args)
    rates = {
        name_of_set(result): result.figure("cer_norm")
        for result in read_folder(run.folder / "eval")
    }
    write_text(run.folder / RUN_RECORD, json.dumps({"updates": updates, "cer": rates}) + "\n")
    return run.folder.name


def make_student(variant: Variant, args: argparse.Namespace) -> None:
    """Make the student to begin with, unless it is there."""
    plain = args.output_dir / replace(variant, masks=False).student
    words = ["-m", args.quickstart / "teacher", *LAYERS[variant.layers], "-o", plain]
    start(create_student_model, words)
    folder: Path = args.output_dir / variant.student
    if variant.masks and (not folder.exists() or find_damage(folder)):
        student = checkpoint.load(str(plain))
        student.model.config.mask_time_prob = MASKED_TIME
        with sealed_folder(folder) as temporary:
            student.save(temporary)


def distil(
    variant: Variant, begin_with: Path, student: Path, seed: int, args: argparse.Namespace
) -> int:
    """Distil as users do; return the number of updates."""
    flags = {
        "-m": begin_with,
        "--teacher": args.quickstart / "teacher",
        "-d": args.quickstart / "filtered",
        "--train_split_name": "train",
        "--language": args.language,
        "--num_train_epochs": args.epochs,
        "--per_device_train_batch_size": max(1, round(args.batch_size * variant.windows_share)),
        "--learning_rate": args.learning_rate,
        "--lr_scheduler_type": "cosine",
        "--warmup_ratio": WARMUP_SHARE,
        "--save_steps": 100_000,
        "--save_total_limit": 1,
        "--seed": seed,
        "-o": student,
        **variant.flags,
    }
    if variant.caches:
        flags["--cache_teacher"] = student.parent / "cache"
    start(run_distillation, [word for pair in flags.items() for word in pair])
    return int(json.loads((student / "run.json").read_text("utf-8"))["updates"])


def evaluate(student: Path, folder: Path, args: argparse.Namespace) -> None:
    """Transcribe the test sets."""
    corpus = args.quickstart / "corpus"
    words = ["-m", student, "--language", args.language, "--generation_max_length", 64]
    words += ["-b", 64, "-o", folder]
    start(run_short_form_eval, [*words, "-d", corpus / "test.jsonl"])
    if (corpus / "long.jsonl").exists():
        chunks = ["--chunk_length_s", args.chunk_length_s, "--stride_length_s", 1]
        both = ["--algorithm", "sequential+chunked", *chunks]
        start(run_long_form_eval, [*words, "-d", corpus / "long.jsonl", *both])


def start(stage: Any, words: Sequence[Any]) -> None:
    """Run a stage in this process."""
    stage.main(*parsed(stage, words))


# --- the reference --------------------------------------------------------------------------------


def train_plainly(begin_with: Path, folder: Path, seed: int, args: argparse.Namespace) -> int:
    """Train by the published formula; return the number of updates."""
    teacher = checkpoint.load(str(args.quickstart / "teacher"))
    student = checkpoint.load(str(begin_with))
    student.model.train()
    student.model.model.encoder.requires_grad_(False)
    weights = [weight for weight in student.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, weight_decay=0.0)
    batches = list(plain_batches(student, seed, args))
    schedule = get_scheduler("cosine", optimizer, round(WARMUP_SHARE * len(batches)), len(batches))
    for rows in batches:
        samples = [decode_audio(row[schema.AUDIO], 16_000) for row in rows]
        features = student.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt")
        labels = torch.full((len(rows), MAX_LABELS), IGNORED)
        for index, row in enumerate(rows):
            ids = row[schema.LABELS][1:]
            labels[index, : len(ids)] = torch.tensor(ids)
        loss = formula(teacher, student, features.input_features, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    student.model.eval()
    with sealed_folder(folder) as temporary:
        student.save(temporary)
    return len(batches)


def plain_batches(
    student: Whisper, seed: int, args: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of shuffled rows, epoch by epoch."""
    # Not by `load_dataset`, whose cache of another folder of this name would be taken for it.
    files = sorted((args.quickstart / "filtered" / "default").glob("train-*.parquet"))
    rows = parquet.ParquetDataset(files).read([schema.AUDIO, schema.LABELS]).to_pylist()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(args.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), args.batch_size):
            yield [rows[index] for index in order[start : start + args.batch_size]]


# --- the table ------------------------------------------------------------------------------------


def name_of_set(result: Any) -> str:
    """Return what a result is about, as the table has it."""
    return SETS[result.figure("algorithm") or Path(result.dataset).stem]


def table_of(args: argparse.Namespace) -> str:
    """Return a table of all finished runs: the mean over seeds, the lowest and the highest."""
    columns = ["variant", "seeds", "updates", *(f"CER, {name}" for name in SETS.values())]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name in args.variants:
        paths = [Run(name, seed, args).folder / RUN_RECORD for seed in args.seeds]
        records = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
        if records:
            cells = [
                spread([record["cer"].get(each) for record in records]) for each in SETS.values()
            ]
            cells = [name, str(len(records)), str(records[0]["updates"]), *cells]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None]) -> str:
    """Return mean, lowest and highest."""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    return f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quickstart", type=Path, required=True, help="folder of teacher, filtered and corpus")
    add("-o", "--output_dir", type=Path, required=True, help="folder of the runs and the table")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="rows (all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each variant (0 1 2)")
    add("--epochs", type=int, default=4, help="times that every clip is heard (4)")
    add("--batch_size", type=int, default=16, help="windows in a batch (16)")
    add("--learning_rate", type=float, default=4e-3, help="highest (0.004)")
    add("--chunk_length_s", type=float, default=2.5, help="of chunked decoding (2.5)")
    add("--language", default="ja", help="(ja)")
    add("--processes", type=int, default=2, help="runs side by side, one core each (2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
