r"""Label a dataset on a Ray cluster: each share of the shards is a task.

    pip install 'whisper-distillery[ray]'
    python scripts/launch/ray_labelling.py --num_shards 64 --num_gpus 1 -- \
        -m openai/whisper-large-v3 -d my_speech.jsonl -l ja --return_timestamps -o /shared/labelled

What follows `--` is the command line of `run_pseudo_labelling.py`. The output folder must be on a
disk that all machines see, and paths must be absolute. A task whose worker dies is tried again, and
goes on where it was; the last one completes the dataset.
"""

import argparse
import runpy
import sys
from pathlib import Path

import ray

REPOSITORY = Path(__file__).resolve().parents[2]
STAGE = REPOSITORY / "run_pseudo_labelling.py"


def label(arguments: list[str], index: int, count: int) -> int:
    """Label one share in this worker; return its number."""
    sys.path.insert(0, str(REPOSITORY))
    sys.argv = [STAGE.name, *arguments, "--shard_index", str(index), "--num_shards", str(count)]
    runpy.run_path(str(STAGE), run_name="__main__")
    return index


def main() -> None:
    """Label all shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", help="of the cluster; default: the local one, or a new one")
    parser.add_argument("--num_shards", type=int, required=True, help="number of tasks")
    parser.add_argument("--num_gpus", type=float, default=0, help="GPUs of each task")
    parser.add_argument("--num_cpus", type=float, default=1, help="cores of each task")
    parser.add_argument("--max_retries", type=int, default=10, help="of a task whose worker dies")
    parser.add_argument("arguments", nargs="+", help="command line of run_pseudo_labelling.py")
    flags = parser.parse_args()
    ray.init(address=flags.address)
    # A worker makes one share and ends: a stage expects a process of its own.
    task = ray.remote(
        num_cpus=flags.num_cpus,
        num_gpus=flags.num_gpus,
        max_retries=flags.max_retries,
        max_calls=1,
    )(label)
    waiting = [task.remote(flags.arguments, i, flags.num_shards) for i in range(flags.num_shards)]
    while waiting:
        ended, waiting = ray.wait(waiting)
        for index in ray.get(ended):
            print(f"share {index} of {flags.num_shards} is labelled")


if __name__ == "__main__":
    main()
