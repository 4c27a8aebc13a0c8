"""How long stages take to begin on many rows: labelling that goes on, and training.

    PYTHONPATH=.:tests:benchmarks:scripts/demo python benchmarks/startup.py --rows 10000 1000000

The rows are a manifest of JSON lines, and the same as Parquet with 60 bytes of "audio" each.
Labelling goes on where all shards but the last are sealed, and is measured from its first line to
its first clip, imports left out. Beside it stands `datasets.load_dataset` on the same manifest, up
to its first row. Training is measured from where it loads rows, whose transcripts have 30 ids, to
where it knows which of them it can learn from; beside it, judging them one by one, as streams do.
Each has a process of its own; seconds are of the clock and of that process's CPU, memory is the
process's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS_PER_FILE = 100_000
ROWS_PER_SHARD = 1000
WORKED, ID = ".labels/default/train", "clip-%08d"


def write_rows(folder: Path, num_rows: int) -> None:
    """Write the manifest, and the Parquet files of labelled rows."""
    import pyarrow as pa
    from datasets import Features, Value

    from distillery.data import column_types, hub_layout

    (folder / "clips").mkdir()
    with (folder / "rows.jsonl").open("w") as lines:
        for i in range(num_rows):
            row = {"id": ID % i, "audio": f"clips/{ID % i}.flac", "text": "what was said", "n": i}
            lines.write(json.dumps(row) + "\n")
    types = {"id": Value("string"), "audio": column_types.AUDIO_TYPE, "text": Value("string")}
    features = Features({**types, "whisper_transcript": column_types.TOKEN_IDS})
    count = -(-num_rows // ROWS_PER_FILE)
    for index in range(count):
        numbers = range(index * ROWS_PER_FILE, min((index + 1) * ROWS_PER_FILE, num_rows))
        rows = {
            "id": [ID % i for i in numbers],
            "audio": [{"bytes": b"x" * 60, "path": f"{ID % i}.flac"} for i in numbers],
            "text": ["what was said"] * len(numbers),
            "whisper_transcript": [list(range(100, 130))] * len(numbers),
        }
        path = hub_layout.shard_path(folder / "parquet", "default", "train", index, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(rows, schema=features.arrow_schema)
        hub_layout.write_tables(path, [table], features)
    hub_layout.write_card(folder / "parquet", {"default": ["train"]}, "Rows", "")


def seal_all_but_last(output: Path, num_rows: int) -> None:
    """Leave what a run leaves that has labelled everything but its last shard."""
    from distillery.storage.ledger import Ledger
    from distillery.storage.outputs import Outputs, Written
    from distillery.storage.shards import seal_path

    folder, content = output / WORKED, b"x" * 1000
    folder.mkdir(parents=True)
    listed = {}
    for index in range(-(-num_rows // ROWS_PER_SHARD) - 1):
        path = folder / f"{index:05d}.parquet"
        path.write_bytes(content)
        listed[path] = written = Written.of(path, spare=True)
        ledger = Ledger(num_in=ROWS_PER_SHARD, num_out=ROWS_PER_SHARD).to_dict()
        seal = {"size": written.size, "sha256": written.sha256, "ledger": ledger, "notes": {}}
        seal_path(path).write_text(json.dumps(seal))
        listed[seal_path(path)] = Written.of(seal_path(path), spare=True)
    Outputs(output).add(listed)


# --- what is measured, each in a process of its own -----------------------------------------------


def clock() -> Callable[[], None]:
    """Return what ends the process, and prints the seconds since now and its memory."""
    started, cpu = time.perf_counter(), time.process_time()

    def end() -> None:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        figures = (
            time.perf_counter() - started,
            time.process_time() - cpu,
            int(peak.split()[1]) / 1024,
        )
        print(json.dumps(figures), flush=True)
        os._exit(0)

    return end


def labelling(folder: Path, source: str) -> None:
    """Label up to the first clip."""
    from stage_runs import load_script, run

    from distillery.labelling.labeller import Labeller

    output = folder / f"labelled-{source}"
    flags = ["-m", folder / "teacher", "-d", folder / source, "-l", "ja", "-o", output]
    flags += ["--max_label_length", 16, "--rows_per_shard", ROWS_PER_SHARD]
    load_script("run_pseudo_labelling.py")
    end = clock()

    def label(_labeller: Labeller, clips: Any) -> None:
        next(iter(clips))
        end()

    Labeller.label = label  # type: ignore[method-assign, assignment]
    run("run_pseudo_labelling.py", *flags)


def plain(folder: Path, source: str) -> None:
    """Load the manifest as one does without this toolkit, up to its first row."""
    from datasets import load_dataset

    end = clock()
    with tempfile.TemporaryDirectory() as cache:
        load_dataset("json", data_files=str(folder / source), split="train", cache_dir=cache)[0]
    end()


def training(folder: Path, source: str) -> None:
    """Load the rows to learn from."""
    from distillery.data.specs import DatasetSpec
    from distillery.training.examples import usable_rows

    rule, limits = _rule(folder)
    end = clock()
    usable_rows(DatasetSpec(str(folder / source)), rule, limits, 16_000)
    end()


def one_by_one(folder: Path, source: str) -> None:
    """Judge the same rows one after the other."""
    from distillery.data.specs import DatasetSpec
    from distillery.ingest import sources
    from distillery.training import examples

    rule, limits = _rule(folder)
    end = clock()
    rows = sources.load(DatasetSpec(str(folder / source)))
    for row in rows.select_columns(["id", "text", "whisper_transcript"]):
        examples.unusable_reason(row, rule, limits)
    end()


def _rule(folder: Path) -> tuple[Any, Any]:
    from distillery.filtering.filters import TranscriptFilter
    from distillery.text.labels import LabelRule
    from distillery.whisper import checkpoint

    processor = checkpoint.load_processor(str(folder / "teacher"))
    rule = LabelRule(processor.tokens, processor.tokenizer, "ja", "transcribe", 64, 0.5, 0.5, 0)
    return rule, TranscriptFilter(normalizer=processor.normalizer("ja", "transcribe"))


MEASURED = (
    (labelling, "rows.jsonl"),
    (plain, "rows.jsonl"),
    (labelling, "parquet"),
    (training, "parquet"),
    (one_by_one, "parquet"),
)


def measure(what: Callable[[Path, str], None], folder: Path, source: str) -> str:
    """Run one of the above in a process of its own; return its figures."""
    command = [sys.executable, __file__, "--child", what.__name__, str(folder), source]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return f"{seconds:.1f} s | {cpu:.1f} s | {peak:,.0f} MiB"


def measure_all(folder: Path, num_rows: int) -> None:
    """Make the rows, and print a line for each measurement."""
    from tiny import tiny_model_folder

    tiny_model_folder(folder / "teacher")
    write_rows(folder, num_rows)
    for what, source in MEASURED:
        output = folder / f"labelled-{source}"
        if what is labelling:
            measure(what, folder, source)  # leaves a run to go on with
            seal_all_but_last(output, num_rows)
        print(f"| {num_rows:,} | {what.__name__}, {source} | {measure(what, folder, source)} |")


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, folder, source = args.child
        next(what for what, _ in MEASURED if what.__name__ == name)(Path(folder), source)
        return
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            measure_all(Path(folder), num_rows)


if __name__ == "__main__":
    main()
