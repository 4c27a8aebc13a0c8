"""The published commands of three stages, as they stand, on a corpus of a few clips.

Models and datasets come from a stand-in of the Hub, and go there.
"""

import json
import re
import shlex
from itertools import islice
from pathlib import Path

import pytest
from datasets import Audio, Features, Value
from hub_server import HubServer, Repository
from launching import launch
from loopback import clip_name, tar
from seed_commands import DISTIL_WHISPER, FINE_TUNING_EVENT, HINDI, KOTOBA
from stage_runs import (
    read_manifest,
    record,
    run,
    split_rows,
    talkative_model_folder,
)
from tiny import REPOSITORY, SENTENCES, tone_manifest

from distillery.data import hub_layout
from distillery.text.labels import plain_text
from distillery.whisper import checkpoint

LABELLING, FILTERING = "run_pseudo_labelling.py", "run_data_filtering.py"
FINETUNING = "run_finetuning.py"
NUM_CLIPS = 12
# What accelerate asks of wandb; each word goes to a file.
WANDB = """
import json

def _note(*words):
    with open("wandb.jsonl", "a") as file:
        file.write(json.dumps(words) + "\\n")

class _Nothing:
    def __getattr__(self, name):
        return lambda *values, **options: None

config = _Nothing()

class _Run(_Nothing):
    def log(self, values, step=None, **options):
        _note(step, values)

def init(project=None, **options):
    _note(project)
    return _Run()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that the scripts can be started in, as in a clone."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for script in (LABELLING, FILTERING, FINETUNING, "reazonspeech_manual_dataloader.py"):
        (folder / script).symlink_to(REPOSITORY / script)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """As many positions as Whisper's: the commands ask for labels of up to 128 ids."""
    folder = tmp_path_factory.mktemp("published") / "teacher"
    return talkative_model_folder(folder, max_target_positions=448)


def publish(server: HubServer, kind: str, name: str, folder: Path) -> None:
    """Put the files of a folder into a repository of the Hub's stand-in."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    server.repositories[kind, name] = Repository(False, files, [list(files)])


def reazonspeech(model: Path, home: Path) -> list[str]:
    """Lay ReazonSpeech out as the downloader does; some texts are what a model writes.

    Returns the names of the clips that these belong to.
    """
    manifest = tone_manifest(home / "clips" / "clips.jsonl", NUM_CLIPS, 0.5)
    flags = ["-l", "ja", "--return_timestamps", "--max_label_length", 80]
    flags += ["--decode_token_ids", "False"]
    run(LABELLING, "-m", model, "-d", manifest, *flags, "-o", home / "by-hand")
    processor = checkpoint.load_processor(str(model))
    clips, lines, right = {}, [], []
    for number, row in enumerate(split_rows(home / "by-hand")):
        name, text = clip_name(0, number), SENTENCES[0]
        clips[name] = row["audio"]["bytes"]
        if not row["truncated"]:
            ids = row["whisper_transcript"]
            text = " ".join(plain_text(ids, processor.tokens, processor.tokenizer).split())
            right.append(name)
        lines.append(f"{name}\t{text}\n")
    folder = home / ".cache" / "reazon_manual_download" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.000.tar").write_bytes(tar(clips))
    (folder / "tiny.tiny.tsv").write_text("".join(lines), "utf-8")
    return right


def test_kotoba_whispers_labels_are_made_uploaded_and_filtered(here, server, teacher, tmp_path):
    publish(server, "models", "openai/whisper-large-v3", teacher)
    right = reazonspeech(teacher, tmp_path)
    env = server.environment(HOME=str(tmp_path), HF_HOME=str(tmp_path / "hf"))
    labelling = KOTOBA[LABELLING].replace("/work/", f"{here}/")  # ${PWD}
    launch(LABELLING, *shlex.split(labelling), processes=1, env=env, cwd=here)
    launch(FILTERING, *shlex.split(KOTOBA[FILTERING]), env=env, cwd=here)
    assert server.repositories["datasets", "my-org/my-dataset"].is_private
    labelled = split_rows(here / "output", config="tiny")
    assert len(labelled) == NUM_CLIPS
    assert all(isinstance(row["whisper_transcript"], list) for row in labelled)
    kept = split_rows(here / "my-dataset.wer_10.0", config="tiny")
    assert 0 < len(right) < NUM_CLIPS
    assert [row["id"] for row in kept] == right
    assert record(here / "my-dataset.wer_10.0")["language"] == "ja"


def common_voice(folder: Path, clips: Path, splits: dict[str, int], language: str = "hi") -> None:
    """Write clips of a manifest as Common Voice has them on the Hub."""
    entries = iter(read_manifest(clips))
    kinds = Features({"path": Value("string"), "audio": Audio(), "sentence": Value("string")})
    for split, num_rows in splits.items():
        path = hub_layout.shard_path(folder, language, split, 0, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "path": entry["audio"],
                "audio": {"bytes": (clips.parent / entry["audio"]).read_bytes(), "path": None},
                "sentence": "नमस्ते दुनिया",
            }
            for entry in islice(entries, num_rows)
        ]
        hub_layout.write_parquet(path, rows, kinds)
    hub_layout.write_card(folder, {language: list(splits)}, "Common Voice", "Made by a test.")


def test_common_voice_is_labelled_in_hindi(here, server, teacher, tmp_path):
    splits = {"train": 3, "validation": 2, "test": 2}
    clips = tone_manifest(tmp_path / "clips" / "clips.jsonl", sum(splits.values()), 0.5)
    common_voice(tmp_path / "corpus", clips, splits)
    publish(server, "datasets", "mozilla-foundation/common_voice_13_0", tmp_path / "corpus")
    publish(server, "models", "openai/whisper-large-v2", teacher)
    tracker = tmp_path / "tracker"
    (tracker / "wandb-0.dist-info").mkdir(parents=True)
    (tracker / "wandb-0.dist-info" / "METADATA").write_text("Name: wandb\nVersion: 0\n")
    (tracker / "wandb.py").write_text(WANDB)
    env = server.environment(HF_HOME=str(tmp_path / "hf"))
    env["PYTHONPATH"] = f"{tracker}:{REPOSITORY}"
    launch(LABELLING, *shlex.split(DISTIL_WHISPER[LABELLING]), env=env, cwd=here)
    name = "me/common_voice_13_0_hi_pseudo_labelled"
    assert server.repositories["datasets", name].is_private
    folder = here / "common_voice_13_0_hi_pseudo_labelled"
    rows = [row for split in splits for row in split_rows(folder, split, "hi")]
    assert [row["id"] for row in rows] == [entry["audio"] for entry in read_manifest(clips)]
    (project,), *logged = map(json.loads, (here / "wandb.jsonl").read_text().splitlines())
    assert project == "distil-whisper-labelling"
    assert logged[-1][1]["labelling/clips"] == sum(splits.values())


def test_a_json_file_stands_for_a_command(here, teacher, tmp_path):
    """Of the Simpler Distil-Whisper, which reads JSON lines and a folder, and uploads nothing."""
    clips = tone_manifest(tmp_path / "clips" / "clips.jsonl", 3, 0.5)
    settings = {
        **{"model_name_or_path": str(teacher), "dataset_name": str(clips), "language": "zh"},
        **{"output_dir": "./labelled", "per_device_eval_batch_size": 2},
    }
    Path("run_pseudo_labelling.json").write_text(json.dumps(settings), "utf-8")
    run(LABELLING, "./run_pseudo_labelling.json")
    assert len(split_rows(Path("labelled"))) == 3


# For a test: fewer updates of fewer clips, and a dtype that needs no GPU.
SMALLER = {
    **{"max_steps": "4", "eval_steps": "2", "save_steps": "2", "logging_steps": "1"},
    **{"warmup_steps": "1", "per_device_train_batch_size": "2", "generation_max_length": "12"},
}


def smaller(command: str) -> list[str]:
    for name, value in SMALLER.items():
        command = re.sub(rf"--{name}([ =])\S+", rf"--{name}\g<1>{value}", command)
    return shlex.split(command.replace("--fp16", "--bf16"))


@pytest.mark.parametrize(
    ("command", "language", "code", "folder"),
    [
        (FINE_TUNING_EVENT[FINETUNING], "es", "es", "."),
        (HINDI[FINETUNING], "hi", "hi", "whisper-small-hi"),
    ],
    ids=["event", "hindi"],
)
def test_a_model_is_fine_tuned_as_published(
    here, server, teacher, tmp_path, command, language, code, folder
):
    splits = {"train": 3, "validation": 2, "test": 2}
    clips = tone_manifest(tmp_path / "clips" / "clips.jsonl", sum(splits.values()), 0.5)
    common_voice(tmp_path / "corpus", clips, splits, language)
    publish(server, "datasets", "mozilla-foundation/common_voice_11_0", tmp_path / "corpus")
    publish(server, "models", "openai/whisper-small", teacher)
    env = server.environment(HF_HOME=str(tmp_path / "hf"))
    launch(FINETUNING, *smaller(command), env=env, cwd=here)
    written = record(here / folder)
    assert (written["status"], written["updates"]) == ("complete", 4)
    log = [json.loads(line) for line in (here / folder / "train_log.jsonl").open()]
    scored = [(row["step"], row["wer"]) for row in log if row["kind"].startswith("eval")]
    assert [step for step, _ in scored] == [2, 4]
    assert written["best"] == min(wer for _, wer in scored)
    model = checkpoint.load(str(here / folder))
    assert model.model.generation_config.language == code
    card = (here / folder / "README.md").read_text("utf-8")
    title = "Whisper-Small-Spanish" if folder == "." else folder
    assert f"\n# {title}\n" in card
    (name,) = (name for kind, name in server.repositories if name.startswith("me/"))
    assert "model.safetensors" in server.repositories["models", name].files
