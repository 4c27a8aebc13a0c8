"""Rows of Parquet in random order, as training reads them, against an Arrow file in a cache.

    PYTHONPATH=.:tests python benchmarks/random_access.py --clips 1000

Clips are noise of 3 to 9 s as FLAC. Parquet is written with the row groups that stages write, with
the 100 rows of many datasets on the Hub, and as one group. Milliseconds of CPU, per row: read
alone, and read and decoded; those of Arrow files (`save_to_disk`) are the reference.
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
from distillery.data import column_types, hub_layout
from distillery.data.parquet_rows import ParquetFiles, ParquetRows

RATE = 16_000
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
    pq.write_table(table, folder / "one.parquet")
    return {"Arrow file": load_from_disk(str(folder / "arrow"))} | {
        name: ParquetRows.of(ParquetFiles.of([str(folder / f"{file}.parquet")]))
        for name, file in (
            ("Parquet, 1 MiB a row group", "ours"),
            ("Parquet, 100 rows a row group", "hundred"),
            ("Parquet, one row group", "one"),
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


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=100, help="rows that are read in random order")
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


if __name__ == "__main__":
    main()
