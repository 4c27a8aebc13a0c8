"""A manifest of a million rows: time and memory to the first row, and to a pass over all ids.

    PYTHONPATH=. python benchmarks/manifests.py --rows 1000000

Ours (`distillery.ingest.sources.load`) against plain `datasets.load_dataset("json" or "csv")` on
the same files, streamed and map-style, each in a fresh process with an empty cache. Ours does more:
it finds the audio's folders, checks that ids are unique, and gives columns the contract's names.
Seconds are of the clock, and of this process's CPU where other programs run beside it; memory is
the growth of the process's peak over what imports take.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KINDS = ("jsonl", "csv")
HEADINGS = ("first row: s", "CPU s", "MiB", "all ids: s", "CPU s", "MiB")


def write(folder: Path, num_rows: int) -> None:
    """Write the same rows as JSON lines and as CSV; there is no audio, as nothing is decoded."""
    with (
        (folder / "m.jsonl").open("w", encoding="utf-8") as lines,
        (folder / "m.csv").open("w", encoding="utf-8") as table,
    ):
        table.write("id,audio,text,speaker_id,duration\n")
        for i in range(num_rows):
            row = {
                "id": f"clip-{i:07d}",
                "audio": f"clips/{i // 1000:04d}/clip-{i:07d}.flac",
                "text": f"what was said in clip number {i}, and not in another one",
                "speaker_id": f"speaker-{i % 500}",
                "duration": 1 + i % 29 + 0.25,
            }
            lines.write(json.dumps(row) + "\n")
            table.write(",".join(f'"{v}"' if k == "text" else str(v) for k, v in row.items()))
            table.write("\n")


def load_plain(path: Path, streaming: bool, cache: str) -> Any:
    """Load as one does without this toolkit."""
    from datasets import load_dataset

    kind = "csv" if path.suffix == ".csv" else "json"
    return load_dataset(
        kind, data_files=str(path), split="train", streaming=streaming, cache_dir=cache
    )


def load_ours(path: Path, streaming: bool, cache: str) -> Any:
    """Load as a stage does."""
    from distillery.data.specs import DatasetSpec
    from distillery.ingest.sources import load

    return load(DatasetSpec(str(path), streaming=streaming, cache_dir=cache))


def ids_of(rows: Any, streaming: bool) -> Iterable[str]:
    """Return the ids, one by one."""
    return (row["id"] for row in rows) if streaming else rows["id"]


def measure(ours: bool, path: Path, streaming: bool, num_rows: int, queue: Any) -> None:
    """Send seconds, CPU seconds and MiB to the first row, then to the end of a pass over ids."""
    # Both sides start with what every stage imports.
    import datasets
    import torch  # noqa: F401

    from distillery.ingest import sources  # noqa: F401

    datasets.disable_progress_bars()
    load = load_ours if ours else load_plain
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter(), time.process_time()

    def spent() -> tuple[float, float, float]:
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (
            time.perf_counter() - started[0],
            time.process_time() - started[1],
            (now - peak) / 1024,
        )

    with tempfile.TemporaryDirectory() as cache:
        rows = load(path, streaming, cache)
        first = next(iter(rows))
        assert first["id"] == "clip-0000000"
        to_first = spent()
        assert sum(1 for _ in ids_of(rows, streaming)) == num_rows
        queue.put((*to_first, *spent()))


def in_a_fresh_process(*args: Any) -> tuple[float, ...]:
    """Return what `measure` sends."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(*args, queue))
    process.start()
    result: tuple[float, ...] = queue.get()
    process.join()
    return result


def main() -> None:
    """Measure all kinds, ours and plain in turn, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the manifest")
    parser.add_argument("--runs", type=int, default=1, help="runs of each, for the median")
    args = parser.parse_args()
    print("| manifest | read | by | " + " | ".join(HEADINGS) + " |")
    print("| :--- | :--- | :--- |" + " ---: |" * len(HEADINGS))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.rows)
        for kind in KINDS:
            path = Path(folder) / f"m.{kind}"
            for streaming in (True, False):
                measured: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
                for _ in range(args.runs):
                    for ours, runs in measured.items():
                        runs.append(in_a_fresh_process(ours, path, streaming, args.rows))
                for ours, runs in measured.items():
                    cells = [
                        f"{statistics.median(values):.1f}" for values in zip(*runs, strict=True)
                    ]
                    way = "streamed" if streaming else "map-style"
                    print(
                        f"| {kind} | {way} | {'ours' if ours else 'plain'} | "
                        + " | ".join(cells)
                        + " |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
