"""What a corpus takes on the disk on its way to a student: with its audio in each dataset, or once.

    PYTHONPATH=.:tests:scripts/demo python benchmarks/stored_audio.py --clips 300

Labels, filters and trains for one update, in both ways, from a manifest of FLAC files and from the
same clips as a dataset in Parquet. The speech is the quickstart's, the teacher has random weights,
and every clip gets 24 ids. Bytes are those of all files in a folder; the cache is that of the
datasets library. Both students must be equal, bit for bit.
"""

import argparse
import tempfile
from pathlib import Path

import make_corpus
import make_teacher
import torch
from safetensors.torch import load_file
from stage_runs import run

from distillery.data import column_types, hub_layout, schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources

WAYS = "dataset", "labels"
PARTS = "source", "labelled", "filtered", "cache"


def num_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_speech(folder: Path, num_clips: int) -> tuple[Path, Path]:
    """Make the speech and an untrained teacher; return the manifest and the teacher."""
    corpus, teacher = folder / "corpus", folder / "teacher"
    sizes = ["--num_train", str(num_clips), "--num_test", "1", "--num_long", "1"]
    make_corpus.main(["--output_dir", str(corpus), *sizes, "--num_windows", "0"])
    make_teacher.main(["--corpus", str(corpus), "--output_dir", str(teacher)])
    return corpus / "train.jsonl", teacher


def as_parquet(manifest: Path, folder: Path) -> Path:
    """Write the clips of a manifest as a dataset in the Hub's layout."""
    rows = sources.load(DatasetSpec(str(manifest)))
    path = hub_layout.shard_path(folder, hub_layout.DEFAULT_CONFIG, "train", 0, 1)
    path.parent.mkdir(parents=True)
    clips = ({**row, schema.AUDIO: hub_layout.embed_audio(row)} for row in rows)
    hub_layout.write_parquet(path, clips, column_types.source_features())
    hub_layout.write_card(folder, {hub_layout.DEFAULT_CONFIG: ["train"]}, "Clips", "")
    return folder


def chain(source: Path, teacher: Path, way: str, folder: Path) -> None:
    """Run the stages in one way, with a cache of its own."""
    here = ["--language", "ja", "--dataset_cache_dir", folder / "cache"]
    labelling = ["--max_label_length", 24, "-b", 8, "--output_format", way]
    labelled, filtered = folder / "labelled", folder / "filtered"
    run("run_pseudo_labelling.py", "-m", teacher, "-d", source, *here, *labelling, "-o", labelled)
    run("run_data_filtering.py", "-d", labelled, *here, "--keep_truncated", "-o", filtered)
    training = ["--max_steps", 1, "--per_device_train_batch_size", 8, "-o", folder / "student"]
    run("run_finetuning.py", "-m", teacher, "-d", filtered, *here, *training)


def assert_equal(student: Path, other: Path) -> None:
    """Fail unless two students have the same weights."""
    weights = [load_file(folder / "model.safetensors") for folder in (student, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def main() -> None:
    """Measure, and print one row for each source and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=300, help="number of clips (300)")
    num_clips = parser.parse_args().clips
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest, teacher = make_speech(folder, num_clips)
        files = [manifest, *manifest.parent.glob("audio/train-*")]
        parquet = as_parquet(manifest, folder / "parquet")
        print("| source |", " | ".join(("way", *PARTS, "all")), "|")
        for kind, source, size in (
            ("manifest of FLAC", manifest, sum(path.stat().st_size for path in files)),
            ("Parquet", parquet, num_bytes(parquet)),
        ):
            places = [folder / f"{kind}-{way}" for way in WAYS]
            for way, place in zip(WAYS, places, strict=True):
                chain(source, teacher, way, place)
                sizes = [size, *(num_bytes(place / name) for name in PARTS[1:])]
                numbers = " | ".join(f"{number / 1e6:.2f}" for number in (*sizes, sum(sizes)))
                print(f"| {kind} | {way} | {numbers} |", flush=True)
            assert_equal(*(place / "student" for place in places))


if __name__ == "__main__":
    main()
