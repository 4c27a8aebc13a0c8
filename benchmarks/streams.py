"""How long training on a stream takes to go on, and how much of it is read for that.

    PYTHONPATH=.:tests:benchmarks:scripts/demo python benchmarks/streams.py --rows 5000 20000 40000

The rows are Parquet as our stages write it, and a tar archive, with 8 kB of "audio" each. A run is
at four fifths of them, in batches of 32. Measured is from opening the dataset to the first batch
of the resumed run, which must be that of the run that goes on. Beside it stands what a stream takes
without a place: all rows are read and judged from the start, and a block of 1,000 is shuffled. Each
is measured three times, in alternation; the median counts, of the clock and of the process's CPU.
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from datasets import Value, load_dataset
from hub_clips import rows_of

from distillery.data import column_types, hub_layout
from distillery.data.specs import DatasetSpec
from distillery.filtering.filters import TranscriptFilter
from distillery.ingest import sources
from distillery.text.labels import LabelRule
from distillery.text.normalizers import normalizer_for
from distillery.text.tokens import SpecialTokens
from distillery.training.examples import unusable_reason
from distillery.training.order import BatchPlan
from distillery.training.shard_cycles import Stream
from distillery.training.streams import StreamedRows

AUDIO_BYTES, ROWS_PER_FILE, BLOCK, ROUNDS = 8000, 10_000, 1000, 3
PLAN = BatchPlan(32, 1, 1)


def write_parquet(folder: Path, num_rows: int) -> Path:
    """Write rows as our stages do."""
    count = -(-num_rows // ROWS_PER_FILE)
    noise = np.random.default_rng(0).bytes(AUDIO_BYTES)
    for index in range(count):
        numbers = range(index * ROWS_PER_FILE, min((index + 1) * ROWS_PER_FILE, num_rows))
        (row,) = rows_of([0])
        rows = [
            {**row, "id": f"clip-{i:08d}", "audio": {"bytes": noise, "path": None}} for i in numbers
        ]
        path = hub_layout.shard_path(folder, "default", "train", index, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        hub_layout.write_parquet(path, rows, column_types.source_features())
    hub_layout.write_card(folder, {"default": ["train"]}, "Rows", "")
    return folder


def write_archive(path: Path, num_rows: int) -> Path:
    """Write an archive of clips with texts."""
    noise = np.random.default_rng(0).bytes(AUDIO_BYTES)
    with tarfile.open(path, "w") as archive:
        for i in range(num_rows):
            for suffix, content in ((".flac", noise), (".txt", "ねこ".encode())):
                member = tarfile.TarInfo(f"clip-{i:08d}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def read_from_start(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows as they stand: Parquet by the library, an archive by our own loader."""
    if path.is_dir():
        stored = {"bytes": Value("binary"), "path": Value("string")}
        rows = load_dataset(str(path), streaming=True, split="train")
        yield from rows.cast_column("audio", stored)
    else:
        yield from sources.load(DatasetSpec(str(path), streaming=True))


def first_batch_from_start(path: Path, num_done: int, judge: Any) -> list[str]:
    """Return the ids of the first batch behind so many rows, all of which are read."""
    usable = (row for row in read_from_start(path) if judge(row) is None)
    block = list(islice(usable, num_done, num_done + BLOCK))
    order = np.random.default_rng(0).permutation(len(block))
    return [block[i]["id"] for i in order[: PLAN.per_device]]


def opened(path: Path, rule: LabelRule, limits: TranscriptFilter) -> StreamedRows:
    """Open a dataset as training does."""
    return StreamedRows([Stream.of(DatasetSpec(str(path), streaming=True))], None, rule, limits)


def first_batch_at_place(
    path: Path, update: int, places: list[Any], rule: LabelRule, limits: TranscriptFilter
) -> list[str]:
    """Return the ids of the first batch of a resumed run."""
    rows = opened(path, rule, limits)
    rows.go_on(places)
    return ids(next(rows.batches(PLAN, update, 0)))


def ids(batch: Any) -> list[str]:
    """Return the ids of a batch of rows."""
    return [row["id"] for _, (row,) in batch]


def measure(path: Path, num_rows: int) -> None:
    """Print the seconds of both ways, and their ratio."""
    tokenizer = tiny.tiny_tokenizer()
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    rule = LabelRule(tokens, tokenizer, "ja", "transcribe", 64, 0.5, 0.5, 0)
    limits = TranscriptFilter(normalizer=normalizer_for("ja"), max_label_length=64)
    update = num_rows * 4 // 5 // PLAN.global_size
    run = opened(path, rule, limits)
    batches = run.batches(PLAN, 0, 0)
    start_s = time.process_time()
    next(islice(batches, update, update), None)
    through_s = time.process_time() - start_s
    places = run.places(PLAN, update)
    wanted = ids(next(batches))
    seconds: dict[str, list[tuple[float, float]]] = {"from the start": [], "at its place": []}
    ways = {
        "from the start": partial(
            first_batch_from_start,
            path,
            update * PLAN.global_size,
            partial(unusable_reason, rule=rule, limits=limits),
        ),
        "at its place": partial(first_batch_at_place, path, update, places, rule, limits),
    }
    for _ in range(ROUNDS):
        for name, way in ways.items():
            clock_s, cpu_s = time.perf_counter(), time.process_time()
            found = way()
            seconds[name].append((time.perf_counter() - clock_s, time.process_time() - cpu_s))
            assert name == "from the start" or found == wanted
    before, after = (np.median(each, axis=0) for each in seconds.values())
    ratios = before / after
    done = update * PLAN.global_size
    print(
        f"{path.name}, after {done:,} of {num_rows:,} rows: {before[0]:.2f} s from the start "
        f"(CPU {before[1]:.2f} s), {after[0]:.2f} s at its place (CPU {after[1]:.2f} s), "
        f"{ratios[0]:.1f} and {ratios[1]:.1f} times less; "
        f"{done / through_s:,.0f} rows a CPU second before it",
        flush=True,
    )


def main() -> None:
    """Measure for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    for num_rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as folder:
            measure(write_archive(Path(folder) / "clips.tar", num_rows), num_rows)
            measure(write_parquet(Path(folder) / "parquet", num_rows), num_rows)


if __name__ == "__main__":
    main()
