"""A million rows of labels filtered, against `evaluate` for each row.

    PYTHONPATH=.:tests python benchmarks/filtering.py --rows 1000000 --subset 1000
    PYTHONPATH=.:tests python benchmarks/filtering.py --workers 2

Runs `run_data_filtering.py` as users do, on Japanese-like sentences of which none is there twice,
stored as token ids with timestamps; audio is one byte, as filtering does not look into it. The
plain way is `evaluate`'s `Metric.compute` for each row, as the scripts of distil-whisper and
kotoba-whisper have it: the call alone, on texts that were decoded and normalised before. It is
measured on the first rows in the same run and assumed to go on at that rate. Both must keep the
same of those rows.

Ours does all that the stage does: it starts, loads the dataset, builds labels, decodes, normalises,
compares under WER and CER, writes shards, seals and report. Seconds are of the clock, and of the
CPU where other programs run beside it. Memory is the sum of the peaks of its processes: all of it,
and without the files that are mapped into it.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
from scoring import RowRate, make_pairs, seconds
from tiny import tiny_model_folder, train_tokenizer

from distillery.data import column_types, hub_layout, schema
from distillery.storage.files import write_json
from distillery.text.labels import plain_texts
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Processor

THRESHOLD = 10.0
ROWS_PER_FILE = 100_000
MIB = 1 << 20


class PeakMemory(threading.Thread):
    """Watches a process and its children; `peaks` has bytes of each, all and not of files."""

    def __init__(self, pid: int) -> None:
        """Watch from now on, until the process ends."""
        super().__init__(daemon=True)
        self.pid = pid
        self.peaks: dict[int, tuple[int, int]] = {}

    def run(self) -> None:
        """Look ten times a second."""
        while Path(f"/proc/{self.pid}").exists():
            pending = [self.pid]
            while pending:
                pid = pending.pop()
                try:
                    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                pending += map(int, children.split())
                sizes = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
                now = [1024 * int(sizes.get(name, 0)) for name in ("VmHWM", "RssAnon")]
                before = self.peaks.get(pid, (0, 0))
                self.peaks[pid] = (max(now[0], before[0]), max(now[1], before[1]))
            time.sleep(0.1)

    @property
    def total(self) -> tuple[float, float]:
        """MiB of all processes at their peaks: all of it, and without files."""
        return tuple(sum(sizes) / MIB for sizes in zip(*self.peaks.values(), strict=True))


def write_labels(folder: Path, num_rows: int, processor: Processor, teacher: Path) -> None:
    """Write the dataset as labelling would."""
    tokens, encode = processor.tokens, processor.tokenizer
    prefix = [*tokens.prefix("ja", "transcribe", True), tokens.timestamp(0)]
    pairs = make_pairs(num_rows)
    num_files = -(-num_rows // ROWS_PER_FILE)
    types = {**column_types.source_features(), **column_types.label_features(False)}
    for index in range(num_files):
        start = index * ROWS_PER_FILE
        some = pairs[start : start + ROWS_PER_FILE]
        ids = encode([text for _, text in some], add_special_tokens=False).input_ids
        rows = [
            {
                schema.ID: f"clip-{start + i:07d}",
                schema.AUDIO: {"bytes": b"-", "path": "clip.flac"},
                schema.TEXT: reference,
                schema.DURATION: 4.0,
                schema.WHISPER_TRANSCRIPT: [*prefix, *words, tokens.timestamp(4), 0],
                schema.AVG_LOGPROB: -0.3,
                schema.COMPRESSION_RATIO: 1.0,
                schema.TRUNCATED: False,
            }
            for i, ((reference, _), words) in enumerate(zip(some, ids, strict=True))
        ]
        for row in rows:
            row[schema.WHISPER_TRANSCRIPT][-1] = tokens.end_of_text
        path = hub_layout.shard_path(folder, "default", "train", index, num_files)
        path.parent.mkdir(parents=True, exist_ok=True)
        hub_layout.write_parquet(path, rows, column_types.Features(types))
    hub_layout.write_card(folder, {"default": ["train"]}, "Labels", "")
    arguments = {"model_name_or_path": str(teacher), "language": "ja", "task": "transcribe"}
    write_json(folder / "run.json", {"stage": "run_pseudo_labelling", "arguments": arguments})


def by_evaluate(folder: Path, subset: int, processor: Processor) -> tuple[float, set[str]]:
    """Return seconds for each row, and the ids of the first rows that pass."""
    path = hub_layout.shard_path(
        folder, "default", "train", 0, len(list(folder.glob("*/*.parquet")))
    )
    rows = next(pq.ParquetFile(path).iter_batches(subset)).to_pylist()
    ids = [row[schema.WHISPER_TRANSCRIPT] for row in rows]
    texts = plain_texts(ids, processor.tokens, processor.tokenizer)
    normalizer = processor.normalizer("ja", "transcribe")
    pairs = [
        (normalizer(row[schema.TEXT]), normalizer(text))
        for row, text in zip(rows, texts, strict=True)
    ]
    with tempfile.TemporaryDirectory() as cache:
        metric = RowRate(config_name="char", cache_dir=cache)
        cpu_s = time.process_time()
        taken, rates = seconds(
            lambda: [
                metric.compute(references=[reference], predictions=[text])["rate"]
                for reference, text in pairs
            ]
        )
        cpu_s = time.process_time() - cpu_s
    names = (row[schema.ID] for row in rows)
    passing = {name for name, rate in zip(names, rates, strict=True) if 100 * rate <= THRESHOLD}
    return taken / len(rows), cpu_s / len(rows), passing


def by_stage(folder: Path, output: Path, workers: int) -> tuple[float, float, PeakMemory]:
    """Return seconds and CPU seconds of the stage, from its start to its end, and its memory."""
    command = [sys.executable, "run_data_filtering.py", "-d", str(folder), "-o", str(output)]
    command += ["--cer_threshold", str(THRESHOLD), "--rows_per_shard", "10000"]
    command += ["--preprocessing_num_workers", str(workers)]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    memory = PeakMemory(process.pid)
    memory.start()
    if process.wait():
        sys.exit(f"the stage failed with {process.returncode}")
    taken = time.perf_counter() - started
    memory.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, used.ru_utime + used.ru_stime, memory


def main() -> None:
    """Make the rows, filter them both ways, and print what each takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--subset", type=int, default=1000, help="rows for evaluate")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="filtering-"))
    tokenizer = train_tokenizer([text for pair in make_pairs(2000) for text in pair], 2000)
    teacher = tiny_model_folder(root / "teacher", tokenizer=tokenizer)
    processor = checkpoint.load_processor(str(teacher))
    write_labels(root / "labels", args.rows, processor, teacher)
    their_s, their_cpu_s, passing = by_evaluate(root / "labels", args.subset, processor)
    our_s, our_cpu_s, memory = by_stage(root / "labels", root / "filtered", args.workers)
    kept = {
        name
        for path in (root / "filtered").glob("*/*.parquet")
        for name in pq.read_table(path, columns=[schema.ID])[schema.ID].to_pylist()
    }
    first = {f"clip-{i:07d}" for i in range(args.subset)}
    assert kept & first == passing, "evaluate keeps other rows"
    whole, own = memory.total
    print(f"{args.rows:,} rows, {len(kept):,} kept; {args.workers} worker(s)")
    print(f"ours: {our_s:.1f} s, {our_cpu_s:.1f} s of CPU, start and end included")
    print(f"evaluate: {1e6 * their_s:.0f} µs a row, {1e6 * their_cpu_s:.0f} µs of CPU")
    times, cpu_times = their_s * args.rows / our_s, their_cpu_s * args.rows / our_cpu_s
    print(f"times as fast: {times:.0f} by the clock, {cpu_times:.0f} by CPU")
    print(
        f"peak memory: {whole:.0f} MiB, {own:.0f} MiB without files, {len(memory.peaks)} processes"
    )
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
