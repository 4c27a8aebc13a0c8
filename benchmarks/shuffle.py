"""Loss curves of a training whose rows are shuffled fully, and within pools of large row groups.

    PYTHONPATH=.:tests:scripts/demo python benchmarks/shuffle.py

The quickstart's speech lies in Parquet with row groups of 40 clips, as it was made, or by size with
`--sorted`, so that neighbours are alike; `run_finetuning.py` trains the quickstart's untrained
teacher on it. Once each row may come anywhere in an epoch; then row groups count as large, and a
pool is four of them: 160 clips, 5 batches. Both ways are run for each seed. Printed are the mean
training loss of each sixth of the updates, and the loss on other clips at the end.
"""

import argparse
import json
import tempfile
from pathlib import Path

import make_corpus
import make_teacher
import pyarrow as pa
import pyarrow.parquet as pq
from stage_runs import run

from distillery.data import column_types, hub_layout, parquet_rows, regions
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.training import order

GROUP_ROWS, POOL_GROUPS, PARTS, BATCH = 40, 4, 6, 32
WAYS = {"all rows": 1 << 60, f"{POOL_GROUPS} row groups at a time": 0}  # what a large group is


def make_speech(folder: Path, num_clips: int, is_sorted: bool) -> tuple[Path, Path, Path]:
    """Make the speech and an untrained model; return training data, other clips and the model."""
    corpus, model, data = folder / "corpus", folder / "model", folder / "data"
    sizes = ["--num_train", str(num_clips), "--num_test", "100", "--num_long", "1"]
    make_corpus.main(["--output_dir", str(corpus), *sizes, "--num_windows", "0"])
    make_teacher.main(["--corpus", str(corpus), "--output_dir", str(model)])
    write_parquet(corpus / "train.jsonl", data, is_sorted)
    return data, corpus / "test.jsonl", model


def write_parquet(manifest: Path, folder: Path, is_sorted: bool) -> None:
    """Write the clips of a manifest, by size or as they come, and take note of row groups."""
    rows = sources.load(DatasetSpec(str(manifest)))
    clips = [{**row, "audio": hub_layout.embed_audio(row)} for row in rows]
    if is_sorted:
        clips.sort(key=lambda clip: len(clip["audio"]["bytes"]))
    path = hub_layout.shard_path(folder, hub_layout.DEFAULT_CONFIG, "train", 0, 1)
    path.parent.mkdir(parents=True)
    features = column_types.source_features()
    slim = [{name: clip.get(name) for name in features} for clip in clips]
    table = pa.Table.from_pylist(slim, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    hub_layout.write_card(folder, {hub_layout.DEFAULT_CONFIG: ["train"]}, "Clips", "")
    regions.REGION_BYTES = 1  # each row group is one
    order.POOL_BYTES = POOL_GROUPS * path.stat().st_size // (len(clips) // GROUP_ROWS)


def train(model: Path, data: Path, test: Path, steps: int, seed: int, output: Path) -> list[float]:
    """Return the training loss of each sixth of the updates, and the loss on other clips."""
    words = ["-m", model, "-d", data, "--language", "ja", "--max_steps", steps, "--seed", seed]
    words += ["--per_device_train_batch_size", BATCH, "--learning_rate", 2e-3, "--pack", False]
    words += ["--warmup_steps", 30, "--do_eval", "--eval_dataset_name", test, "--save_steps", steps]
    run("run_finetuning.py", *words, "--logging_steps", steps // PARTS, "-o", output)
    lines = map(json.loads, (output / "train_log.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line][1:]  # without the first update's


def main() -> None:
    """Train, and print a row for each way and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sorted", action="store_true", help="neighbours are of like size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, test, model = make_speech(folder, args.clips, args.sorted)
        print(
            "| seed | shuffled are |", " | ".join(f"part {i + 1}" for i in range(PARTS)), "| test |"
        )
        for seed in range(args.seeds):
            for number, (way, large) in enumerate(WAYS.items()):
                parquet_rows.LARGE_GROUP_BYTES = large
                output = folder / f"{seed}-{number}"
                losses = train(model, data, test, args.steps, seed, output)
                print(
                    f"| {seed} | {way} |", " | ".join(f"{x:.3f}" for x in losses), "|", flush=True
                )


if __name__ == "__main__":
    main()
