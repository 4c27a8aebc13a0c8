"""Rows of Parquet in random order, as training reads them, against an Arrow file in a cache.

    PYTHONPATH=.:tests python benchmarks/random_access.py --clips 1000

Clips are noise of 3 to 9 s as FLAC. Parquet is written with the row groups that stages write, with
the 100 rows of many datasets on the Hub, and as ten groups. Milliseconds of CPU, per row: read
alone, and read and decoded; those of Arrow files (`save_to_disk`) are the reference.

Then all rows are read in the order of training by regions (`--pool_mib` at a time; training takes
512): by one process, and by one of four workers, which gets every fourth batch of 16. Beside it
stands what is read of the disk's files for each byte of the rows that are asked for. Packed, that
is windows of about five utterances of no recording, laid out by region and without regard to them.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Dataset, Features, Value, load_from_disk

from distillery.audio.decoding import decode_audio
from distillery.data import column_types, hub_layout, regions
from distillery.data.parquet_rows import ParquetFiles, ParquetRows
from distillery.data.regions import Regions
from distillery.training import order as order_module
from distillery.training.order import BatchPlan, Order

RATE = 16_000
BATCHES = BatchPlan(16, 1, 1)
FEATURES = Features({"id": Value("string"), "audio": column_types.AUDIO_TYPE})


def clips(count: int) -> pa.Table:
    """Return clips of noise."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        buffer = io.BytesIO()
        noise = 0.05 * rng.standard_normal(round(RATE * rng.uniform(3, 9)))
        soundfile.write(buffer, noise, RATE, format="FLAC")
        rows.append({"id": f"{number}", "audio": {"bytes": buffer.getvalue(), "path": None}})
    return pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)


def datasets_of(table: pa.Table, folder: Path) -> dict[str, Any]:
    """Write the clips in all ways; return the rows of each."""
    Dataset(table).save_to_disk(str(folder / "arrow"))
    hub_layout.write_tables(folder / "ours.parquet", [table], FEATURES)
    pq.write_table(table, folder / "hundred.parquet", row_group_size=100)
    pq.write_table(table, folder / "ten.parquet", row_group_size=-(-len(table) // 10))
    return {"Arrow file": load_from_disk(str(folder / "arrow"))} | {
        name: ParquetRows.of(ParquetFiles.of([str(folder / f"{file}.parquet")]))
        for name, file in (
            ("Parquet, 1 MiB a row group", "ours"),
            ("Parquet, 100 rows a row group", "hundred"),
            ("Parquet, ten row groups", "ten"),
        )
    }


def ms_per_row(rows: Any, order: Sequence[int], decode: bool) -> float:
    """Return the milliseconds of CPU that a row takes."""
    start = time.process_time()
    for number in order:
        audio = rows[number]["audio"]
        if decode:
            decode_audio(audio, RATE)
    return (time.process_time() - start) / len(order) * 1e3


# --- by region ------------------------------------------------------------------------------------


def batches_of(rows: ParquetRows, num_workers: int) -> list[list[int]]:
    """Return the batches of one worker in an epoch of training."""
    order = Order((len(rows),), None, 0, None, (rows.regions(),))
    keys = BATCHES.micro_batches(order, range(-(-len(rows) // 16)), len(rows), 0)
    return [[row for row, _ in batch] for batch in keys][::num_workers]


def windows_of(rows: ParquetRows, laid_by: Regions | None) -> list[list[int]]:
    """Return the rows of windows of five: of one region each, or of any."""
    shuffled = np.random.default_rng(0).permutation(len(rows))
    blocks = [shuffled]
    if laid_by is not None:
        of_rows = laid_by.of_rows[shuffled]
        blocks = [shuffled[of_rows == region] for region in range(len(laid_by.num_bytes))]
    return [block[i : i + 5].tolist() for block in blocks for i in range(0, len(block), 5)]


def by_region(
    rows: ParquetRows, batches: Sequence[Sequence[int]], pool: int
) -> tuple[float, float]:
    """Return the milliseconds of CPU of a row, and the bytes read for each byte that is used."""
    found, read = rows.regions(), 0
    assert found is not None
    kept = rows.keeping(2 * pool)
    count = ParquetFiles._read

    def counted(*args: Any) -> Any:
        nonlocal read
        for table in count(*args):
            read += table.nbytes
            yield table

    ParquetFiles._read = counted  # type: ignore[method-assign, assignment]
    start, used, num_rows = time.process_time(), 0, 0
    for batch in batches:
        for number in batch:
            used += len(kept[number]["audio"]["bytes"])
            num_rows += 1
    ParquetFiles._read = count  # type: ignore[method-assign]
    return (time.process_time() - start) / num_rows * 1e3, read / used


def measure_by_region(name: str, rows: ParquetRows, pool: int) -> None:
    """Print a line for rows in large row groups."""
    found, figures = rows.regions(), []
    if found is None:
        return
    for batches in (batches_of(rows, 1), batches_of(rows, 4)):
        figures += by_region(rows, batches, pool)
    for laid_by in (found, None):
        windows = windows_of(rows, laid_by)
        first = found.select(np.array([window[0] for window in windows]))
        order = Order((len(windows),), None, 0, None, (first,))
        turns = [windows[turn] for turn, _ in order[0 : len(windows)]]
        figures += by_region(rows, turns, pool)
    cells = (
        f"{ms:.2f} ms, {share:.1f}" for ms, share in zip(figures[::2], figures[1::2], strict=True)
    )
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100, help="rows that are read in random order")
    parser.add_argument("--pool_mib", type=int, default=64, help="shuffled at a time, by region")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = clips(args.clips)
        found = datasets_of(table, Path(folder))
        shuffled = np.random.default_rng(1).permutation(len(table))[: args.rows].tolist()
        print(f"{table.nbytes / 1e6:.0f} MB\n| | random, read | and decoded | in order, read |")
        for name, rows in found.items():
            assert all(rows[i]["id"] == str(i) for i in shuffled[:5])
            figures = [ms_per_row(rows, shuffled, decode) for decode in (False, True)]
            figures.append(ms_per_row(rows, range(len(table)), False))
            print(f"| {name} |", " | ".join(f"{figure:.2f} ms" for figure in figures), "|")
        order_module.POOL_BYTES = pool = args.pool_mib << 20
        regions.REGION_BYTES = pool // 16
        print("| by region | one process | one of four workers | packed | packed at random |")
        for name, rows in found.items():
            if isinstance(rows, ParquetRows):
                measure_by_region(name, rows, pool)


if __name__ == "__main__":
    main()
