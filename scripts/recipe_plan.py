r"""Check the commands of a recipe, and say what they take before they are run: `DRY_RUN=1`.

`scripts/recipe.sh` calls it with a file of what it would have started. Every flag is checked by its
stage's own parser; where what a stage reads is there, its own `--dry_run` is made as well. The plan
is computed from what the recipe knows of its data, and from published speeds of one A100: labelling
by whisper-large-v3 at 60 to 146 times real time (distil-whisper's README; the Open ASR
leaderboard), and 15 clips a second that a student of it learns from (distil-whisper's README).
"""

import argparse
import ast
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from distillery.cli.flags import flags_of, parse, plus_list
from distillery.storage.files import free_bytes

LABELLING_RTFX = (146, 60)  # the faster first
CLIPS_PER_S = 15.0
LABEL_BYTES = 500  # of a row without audio, about
STUDENT_GB = 10  # a student of large-v3 as initialised, its checkpoint and the model, in float32
DOWNLOADER = "reazonspeech_manual_downloader.py"
WORD_END = "\x1f"
OUTPUTS = ("output_dir", "save_dir")


@dataclass(frozen=True)
class Command:
    """A command of a recipe: the stage of the recipe, the script, its words and their meaning."""

    stage: str
    script: str
    words: list[str]
    flags: dict[str, Any]
    inputs: list[str]

    @property
    def output(self) -> str:
        """The folder that it writes."""
        return next((self.flags[name] for name in OUTPUTS if self.flags.get(name)), "")


@dataclass(frozen=True)
class Corpus:
    """What a recipe knows of its data: hours, clips of so many seconds, bytes, the share kept.

    `gpus` is the number that its batches are meant for.
    """

    hours: float
    clip_s: float
    gigabytes: float
    parts: int
    kept: float
    gpus: int

    @property
    def num_clips(self) -> float:
        """Number of clips before the filter."""
        return self.hours * 3600 / self.clip_s


@dataclass
class Cost:
    """GPU hours, at least and at most, and gigabytes on the disk."""

    least: float = 0.0
    most: float = 0.0
    gigabytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.least + other.least, self.most + other.most, self.gigabytes + other.gigabytes
        )

    def __truediv__(self, parts: int) -> "Cost":
        return Cost(self.least / parts, self.most / parts, self.gigabytes / parts)

    def gpu_hours(self, num_gpus: int = 1) -> str:
        """Return the hours for people to read, on so many GPUs."""
        least, most = (f"{hours / num_gpus:,.0f}" for hours in (self.least, self.most))
        return least if least == most else f"{least} to {most}"

    @property
    def size(self) -> str:
        """The bytes for people to read."""
        return f"{self.gigabytes / 1000:.2f} TB"


# --- commands ------------------------------------------------------------------------------------


def read_commands(path: Path) -> list[Command]:
    """Parse every command by its stage's parser; exits where one has wrong flags."""
    lines = path.read_text("utf-8").splitlines()
    return [read_command(*line.split(WORD_END)[:-1]) for line in lines]


def read_command(stage: str, script: str, *words: str) -> Command:
    """Parse a command."""
    module = declarations(Path(script))
    sys.argv[0] = script
    groups = parse(module.GROUPS, words, check=getattr(module, "check", None))
    inputs = [
        name
        for group in groups
        for each in fields(group)
        if each.metadata.get("is_input")
        for name in plus_list(getattr(group, each.name))
    ]
    return Command(stage, script, list(words), flags_of(*groups), inputs)


def declarations(script: Path) -> ModuleType:
    """Execute the part of a stage that declares its flags: what is above its first guard."""
    tree = ast.parse(script.read_text("utf-8"), str(script))
    guard = next(i for i, node in enumerate(tree.body) if isinstance(node, ast.If))
    tree.body = tree.body[:guard]
    module = ModuleType(script.stem)
    module.__file__ = str(script.resolve())
    sys.modules[script.stem] = module  # dataclasses look their module up
    exec(compile(tree, str(script), "exec"), vars(module))
    return module


def dry_run(command: Command, made: set[str]) -> str:
    """Make the stage's own dry run if it can be made; return what there is to say.

    Args:
        command: of a recipe.
        made: folders that commands before it make.
    """
    missing = [name for name in command.inputs if not Path(name).exists()]
    awaited = [name for name in missing if name in made or Path(name).is_absolute()]
    on_hub = [name for name in missing if name not in awaited]
    if command.script == DOWNLOADER:
        on_hub = ["its server"]
    if "dry_run" not in command.flags:
        return "flags are right"
    if awaited:
        return f"flags are right; {Path(awaited[0]).name} is not there yet"
    if on_hub and os.environ.get("HF_HUB_OFFLINE") == "1":
        return f"flags are right; {on_hub[0]} is not asked, for HF_HUB_OFFLINE is set"
    done = subprocess.run([sys.executable, command.script, *command.words, "--dry_run"])
    return "checked" if done.returncode == 0 else "REFUSED: see above"


# --- what they take ------------------------------------------------------------------------------


def costs_of(commands: list[Command], corpus: Corpus) -> list[Cost]:
    """Return what each command takes; those of one script share the corpus."""
    beside = any(command.flags.get("output_format") == "labels" for command in commands)
    scripts = Counter(command.script for command in commands)
    costs = [cost(command, corpus, beside) for command in commands]
    return [each / scripts[command.script] for each, command in zip(costs, commands, strict=True)]


def cost(command: Command, corpus: Corpus, beside: bool) -> Cost:
    """Return what a script takes for all of a corpus; where it comes in parts, disk for one.

    Args:
        command: of the script.
        corpus: all of it.
        beside: labels are stored without the audio.
    """
    labels = corpus.num_clips * LABEL_BYTES / 1e9
    written = labels if beside else corpus.gigabytes
    if command.script == DOWNLOADER:
        return Cost(gigabytes=corpus.gigabytes / corpus.parts)
    if command.script == "run_pseudo_labelling.py":
        hours = [corpus.hours / rtfx for rtfx in LABELLING_RTFX]
        return Cost(*hours, written / corpus.parts + fetched(command, corpus))
    if command.script == "run_data_filtering.py":
        return Cost(gigabytes=corpus.kept * written)
    if command.script == "run_distillation.py":
        hours = num_learnt(command, corpus) / CLIPS_PER_S / 3600
        return Cost(hours, hours, STUDENT_GB)
    if command.script == "run_finetuning.py":  # no speed was published
        return Cost(gigabytes=fetched(command, corpus) + STUDENT_GB)
    return Cost()


def fetched(command: Command, corpus: Corpus) -> float:
    """Return the gigabytes of a dataset of the Hub: as fetched, and in the library's cache."""
    data = command.flags.get("dataset_name") or command.flags.get("train_dataset_name")
    is_here = any(Path(name).exists() for name in plus_list(data))
    return 0.0 if is_here or command.flags["streaming"] else 2 * corpus.gigabytes


def num_learnt(command: Command, corpus: Corpus) -> float:
    """Return how many clips a training sees."""
    flags = command.flags
    if flags["max_steps"] < 0:
        return float(flags["num_train_epochs"] * corpus.num_clips * corpus.kept)
    batch = flags["per_device_train_batch_size"] * flags["gradient_accumulation_steps"]
    return float(flags["max_steps"] * batch * corpus.gpus)


def table(commands: list[Command], costs: list[Cost], found: list[str]) -> str:
    """Return a line for each command."""
    lines, stage = [], None
    for command, each, status in zip(commands, costs, found, strict=True):
        if command.stage != stage:
            lines.append(f"  {command.stage}")
            stage = command.stage
        gpu = f"{each.gpu_hours():>12} GPU hours" if each.most else " " * 22
        disk = f"{each.size:>9}" if each.gigabytes else " " * 9
        lines.append(f"    {Path(command.script).name:34}{gpu}{disk}  {status}")
    return "\n".join(lines)


def plan(corpus: Corpus, total: Cost) -> str:
    """Return the plan as one sentence, which stands in the recipe's header too."""
    speed = "GPU hours are not known: no speed was published"
    if total.most:
        speed = f"{total.gpu_hours()} GPU hours (A100, published speeds)"
        if corpus.gpus > 1:
            speed += f", {total.gpu_hours(corpus.gpus)} h on {corpus.gpus}"
    return f"Plan: {corpus.hours:,g} h of speech; {total.size} of disk; {speed}."


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", type=Path, help="what scripts/recipe.sh noted")
    parser.add_argument("--name", required=True, help="of the recipe")
    parser.add_argument("--folder", type=Path, required=True, help="that the recipe writes to")
    parser.add_argument("--hours", type=float, default=0.0, help="of speech; none: not computed")
    parser.add_argument("--clip_s", type=float, default=6.0, help="mean length of a clip (6)")
    parser.add_argument("--gigabytes", type=float, default=0.0, help="of the audio as stored")
    parser.add_argument("--parts", type=int, default=1, help="worked on one after the other (1)")
    parser.add_argument("--kept", type=float, default=1.0, help="share that passes the filter (1)")
    parser.add_argument("--gpus", type=int, default=1, help="that batches are meant for (1)")
    return parser.parse_args()


def main() -> int:
    """Print the plan; return 1 where a stage refuses its command."""
    args = vars(parse_arguments())
    path, name, folder = (args.pop(key) for key in ("commands", "name", "folder"))
    corpus, commands = Corpus(**args), read_commands(path)
    made: set[str] = set()
    found = []
    for command in commands:
        found.append(dry_run(command, made))
        made.add(command.output)
    costs = costs_of(commands, corpus) if corpus.hours else []
    print(f"{name}, dry run: nothing is written")
    print(table(commands, costs or [Cost()] * len(commands), found))
    if costs:
        print(plan(corpus, sum(costs, Cost())))
        print(f"{free_bytes(folder) / 1e12:.2f} TB are free for {folder}")
    return int(any(status.startswith("REFUSED") for status in found))


if __name__ == "__main__":
    sys.exit(main())
