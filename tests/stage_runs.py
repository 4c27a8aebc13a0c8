"""What stage tests share: a teacher that says something, runs of stages, and what they left."""

import importlib
import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from command_lines import parsed
from datasets import load_dataset
from tiny import load_script, tiny_model_folder

from distillery.storage.ownership import LOCK
from distillery.whisper import checkpoint


def talkative_model_folder(path: Path, seed: int = 3, **size: Any) -> Path:
    """Save a random model whose transcripts differ from clip to clip; some end, some are cut.

    Weights of the usual size would say the same to any sound, and an error in which label belongs
    to which clip would not show. `size` is that of `tiny_model_folder`.
    """
    tiny_model_folder(path, **size)
    model = checkpoint.load(str(path))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        embeddings = model.model.model.decoder.embed_tokens.weight
        embeddings[model.tokens.end_of_text] *= 2
        embeddings[model.tokens.timestamp_begin :] *= 0.5  # most of the vocabulary, but no text
    specials = range(model.tokens.start_of_transcript, model.tokens.no_timestamps)
    model.model.generation_config.suppress_tokens = list(specials)
    checkpoint.save(model.model, model.tokenizer, model.feature_extractor, path)
    return Path(path)


def english_only(folder: Path) -> Path:
    """Turn a checkpoint into one that takes no language."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8"))
    for name in ("lang_to_id", "task_to_id"):
        del settings[name]
    path.write_text(json.dumps({**settings, "is_multilingual": False}), "utf-8")
    return folder


def run(script: str, *args: object) -> None:
    """Run a stage to its end in this process."""
    load_script(script).main(*parsed(script, [str(arg) for arg in args]))


def run_and_die(script: str, target: str, call: str, *args: str) -> None:
    """Run a stage in this process, and SIGKILL it when it is about to call a function again.

    Args:
        script: path in the repository.
        target: the function, as `module:name`.
        call: number of the last call, from 1.
        args: the stage's command line.
    """
    load_script(script)
    count = itertools.count(1)

    def deadly(*values: Any, **named: Any) -> Any:
        if next(count) == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*values, **named)

    original = wrap(target, lambda _: deadly)
    run(script, *args)


def wrap(target: str, wrapper: Callable[[Any], Any]) -> Any:
    """Put what a wrapper makes of a function in its place; return the function.

    Args:
        target: the function, as `module:name`, where the name may be `Class.method`; or
            `script:name` of a script that is loaded.
        wrapper: takes the function.
    """
    module, path = target.split(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    if outer:
        owner = attrgetter(".".join(outer))(owner)
    original = getattr(owner, name)
    setattr(owner, name, wrapper(original))
    return original


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of each file: equal where nothing was written.

    A lock says nothing: in this process it is let go only when Python forgets the run.
    """
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(LOCK)
    }


def split_rows(folder: Path, split: str = "train", config: str = "default") -> list[dict[str, Any]]:
    """Return the rows of a split of a dataset in Hub layout, in order."""
    files = sorted((folder / config).glob(f"{split}-*-of-*.parquet"))
    assert files, f"{folder} has no files of {config}/{split}"
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def assert_same_labels(folder: Path, other: Path, split: str = "train") -> None:
    """Fail unless two labelled datasets have the same rows, in order.

    Windows are decoded beside others, so the last digits of a log-probability may differ.
    """
    rows, others = ([dict(row) for row in split_rows(each, split)] for each in (folder, other))
    logprobs = [[row.pop("avg_logprob") for row in each] for each in (rows, others)]
    assert rows == others
    assert np.allclose(*logprobs, rtol=0, atol=1e-4)


def loaded(folder: Path, *names: str, **options: Any) -> Any:
    """Load a dataset as a user does; the library's own cache mixes up folders of one name."""
    cache = tempfile.mkdtemp(dir=os.environ.get("HF_HOME"))
    return load_dataset(str(folder), *names, cache_dir=cache, **options)


def record(folder: Path) -> dict[str, Any]:
    """Return a run's record."""
    return dict(json.loads((folder / "run.json").read_text("utf-8")))


def tracked_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run gave TensorBoard: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars: dict[str, list[tuple[int, float]]] = {}
    for path in folder.rglob("events.*"):
        events = EventAccumulator(str(path)).Reload()
        for name in events.Tags()["scalars"]:
            scalars.setdefault(name, []).extend((e.step, e.value) for e in events.Scalars(name))
    return scalars


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a manifest."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_manifest(path: Path, entries: list[dict[str, Any]]) -> Path:
    """Write a manifest beside the audio it names."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    path.write_text(text, "utf-8")
    return path


if __name__ == "__main__":
    run_and_die(*sys.argv[1:])
