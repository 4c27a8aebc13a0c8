"""Print the results of `chunk_length_sweep.sh`, and the best chunk length for each model and set.

    python scripts/chunk_length_table.py eval/chunk_length_sweep

The best has the lowest CER where words are not spaced, else the lowest WER; of equals, the faster.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from distillery.evaluation.results import Result, read_results
from distillery.evaluation.tables import folder_names, markdown_table

CHUNK_LENGTH, STRIDE = "chunk_length_s", "stride_length_s"
FIGURES = ("cer_norm", "wer_norm", "num_loops", "rtfx")
COLUMNS = ["model", "dataset", STRIDE, CHUNK_LENGTH, *FIGURES]


def main(arguments: list[str] | None = None) -> None:
    """Print a table of the chunked evaluations in a folder, and which length is best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("eval_dir", type=Path, help="folder of the evaluations")
    folder = parser.parse_args(arguments).eval_dir
    results = chunked_results(folder)
    if not results:
        sys.exit(f"error: {folder} holds no chunked evaluation: run chunk_length_sweep.sh first")
    names = folder_names(result.model for result in results)
    print(markdown_table([_line(result, names[result.model]) for result in results], COLUMNS))
    for best in best_results(results):
        rate = best.main_rate
        print(
            f"best for {names[best.model]} on {best.dataset}: --{CHUNK_LENGTH} "
            f"{_setting(best, CHUNK_LENGTH):g} ({rate} {best.figure(rate):.1f})"
        )


def chunked_results(folder: Path) -> list[Result]:
    """Return the newest result of every chunked evaluation, by model, set and length."""
    newest = {}
    for path in sorted(folder.glob("metric.*.jsonl")):
        for result in read_results(path):
            if result.figure("algorithm") == "chunked":
                newest[(path.name, *_series(result), _setting(result, CHUNK_LENGTH))] = result
    return sorted(newest.values(), key=lambda r: (_series(r), _setting(r, CHUNK_LENGTH)))


def best_results(results: list[Result]) -> list[Result]:
    """Return the best result of each model on each set, with each stride."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(_series(result), []).append(result)
    return [
        min(group, key=lambda result: (result.figure(result.main_rate), -(result.rtfx or 0)))
        for group in groups.values()
    ]


def _setting(result: Result, name: str) -> Any:
    return result.more["long_form"][name]


def _series(result: Result) -> tuple[str, ...]:
    """Return what the results of a sweep have in common."""
    parts = (result.model, result.dataset, result.split, _setting(result, STRIDE))
    return tuple(map(str, parts))


def _line(result: Result, name: str) -> dict[str, Any]:
    settings = {each: _setting(result, each) for each in (STRIDE, CHUNK_LENGTH)}
    figures = {each: result.figure(each) for each in FIGURES}
    return {"model": name, "dataset": result.dataset, **settings, **figures}


if __name__ == "__main__":
    main()
