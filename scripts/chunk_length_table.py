"""Print the results of `chunk_length_sweep.sh`, and the best chunk length for each model and set.

    python scripts/chunk_length_table.py eval/chunk_length_sweep

The best has the lowest CER where words are not spaced, else the lowest WER; of equals, the faster.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from distillery.evaluation.results import markdown_table, read_rows

CHUNK_LENGTH, STRIDE = "chunk_length_s", "stride_length_s"
WHO = ("model", "dataset", "split", STRIDE)
COLUMNS = ["model", "dataset", STRIDE, CHUNK_LENGTH, "cer_norm", "wer_norm", "num_loops", "rtfx"]


def main(arguments: list[str] | None = None) -> None:
    """Print a table of the chunked evaluations in a folder, and which length is best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("eval_dir", type=Path, help="folder of the evaluations")
    folder = parser.parse_args(arguments).eval_dir
    rows = chunked_rows(folder)
    if not rows:
        sys.exit(f"error: {folder} holds no chunked evaluation: run chunk_length_sweep.sh first")
    print(markdown_table(rows, COLUMNS))
    for best in best_rows(rows):
        print(
            f"best for {best['model']} on {best['dataset']}: --{CHUNK_LENGTH} "
            f"{best[CHUNK_LENGTH]:g} ({metric(best)} {best[metric(best)]:.1f})"
        )


def chunked_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the newest row of every chunked evaluation, by model, set and length."""
    newest = {}
    for path in sorted(folder.glob("metric.*.jsonl")):
        for row in read_rows(path):
            if row.get("algorithm") == "chunked":
                row = {**row, **row["long_form"]}
                newest[(path.name, *(row[name] for name in (*WHO, CHUNK_LENGTH)))] = row
    return sorted(newest.values(), key=lambda row: (_who(row), row[CHUNK_LENGTH]))


def best_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best row of each model on each set, with each stride."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_who(row), []).append(row)
    return [
        min(group, key=lambda row: (row[metric(row)], -row["rtfx"])) for group in groups.values()
    ]


def metric(row: dict[str, Any]) -> str:
    """Return the name of the rate that counts for a row's language."""
    return "cer_norm" if "no-spaces" in row["normalizer"] else "wer_norm"


def _who(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in WHO)


if __name__ == "__main__":
    main()
