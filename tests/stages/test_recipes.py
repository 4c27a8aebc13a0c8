"""The recipes, from start to end at SCALE=tiny, and their plans at full scale."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hub_server import HubServer
from launching import shell, shell_environment, wait_until
from stage_runs import record, split_rows
from tiny import REPOSITORY, load_script

from distillery.evaluation.results import read_folder

SCRIPTS = sorted((REPOSITORY / "scripts").rglob("*.sh"))
RECIPES = sorted(path.stem for path in SCRIPTS if "\nfinish\n" in path.read_text("utf-8"))
NUM_CLIPS = 24
STARTS_WITHIN_S = 400


def variables(tiny: Path, **more: str) -> dict[str, str]:
    """Return what starts a recipe at its tiny scale, with what it makes and shares in a folder."""
    return {"SCALE": "tiny", "TINY": str(tiny), **more}


def run(recipe: str, tiny: Path, **more: str) -> str:
    """Run a tiny recipe to its end; return what it printed."""
    done = shell(f"scripts/{recipe}.sh", **variables(tiny, **more))
    assert done.returncode == 0, done.stdout
    assert "is done:" in done.stdout
    return done.stdout


def plan(recipe: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Make the dry run of a recipe at full scale, without the Hub."""
    return shell(f"scripts/{recipe}.sh", DRY_RUN="1", WORK=str(folder / "work" / "it"), **more)


def results(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics that a recipe left."""
    (metrics,) = (folder / "eval").glob("metric.*.jsonl")
    return [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]


# --- scripts and plans ---------------------------------------------------------------------------


def test_scripts_are_clean():
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)
    command = ["shellcheck", "--external-sources", "--severity", "warning", *SCRIPTS]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=shell_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_recipe_for_each_released_model():
    assert set(RECIPES) == {
        *("distil_whisper_large_v2_hi", "distil_whisper_large_v3", "whisper_finetune_event"),
        *(f"kotoba_whisper_v{version}" for version in ("1.0", "1.1", "2.0", "2.1")),
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_checks_all_stages_writes_nothing_and_stands_in_the_header(recipe, tmp_path):
    done = plan(recipe, tmp_path)
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.iterdir())
    source = (REPOSITORY / "scripts" / f"{recipe}.sh").read_text("utf-8")
    header = " ".join(re.sub(r"^#", "", line).strip() for line in source.splitlines())
    stages = re.findall(r'if stage (\d+) "(.*)"', source)
    for number, title in stages:
        if not title.startswith("make kotoba"):  # a recipe of its own
            assert f"stage {number}: {title}\n" in done.stdout
    planned = re.findall(r"^Plan: .*", done.stdout, re.MULTILINE)
    if "make_base" in source:
        assert f"kotoba-whisper-v{recipe[-3]}.0, dry run" in done.stdout
    else:
        assert len(planned) == 1 and planned[0] in header


def test_a_plan_is_that_of_the_stages_that_are_wanted(tmp_path):
    done = plan("kotoba_whisper_v1.0", tmp_path, STAGE="2", STOP_STAGE="2")
    assert re.findall(r"\w+\.py", done.stdout) == ["create_student_model.py"]


def test_a_model_that_is_named_is_not_made(tmp_path):
    done = plan("kotoba_whisper_v1.1", tmp_path, MODEL="me/kotoba-whisper-v1.0")
    assert done.returncode == 0, done.stdout
    scripts = ["push_pipeline.py", *["run_short_form_eval.py"] * 4, "publish.py"]
    assert re.findall(r"\w+\.py", done.stdout) == scripts


def test_a_plan_is_computed_from_published_speeds():
    script = load_script("scripts/recipe_plan.py")
    corpus = script.Corpus(
        hours=146 * 60, clip_s=5, gigabytes=600, parts=10, kept=0.5, gpus=8
    )  # 6,307,200 clips
    flags = {"dataset_name": __file__, "streaming": False, "output_format": "dataset"}
    training = {"max_steps": 900, "per_device_train_batch_size": 30}
    training["gradient_accumulation_steps"] = 2
    epochs = {"max_steps": -1, "num_train_epochs": 5}
    commands = [
        script.Command("", name, [], each, [])
        for name, each in [
            (script.DOWNLOADER, {}),
            ("run_pseudo_labelling.py", flags),
            ("run_data_filtering.py", {}),
            ("run_distillation.py", training),
            ("run_short_form_eval.py", {}),
        ]
    ]
    costs = [(each.least, each.most, each.gigabytes) for each in script.costs_of(commands, corpus)]
    assert costs == [(0, 0, 60), (60, 146, 60), (0, 0, 300), (8, 8, 10), (0, 0, 0)]
    assert script.num_learnt(commands[3], corpus) == 900 * 30 * 2 * 8
    commands[3].flags.update(epochs)
    assert script.num_learnt(commands[3], corpus) == 5 * 146 * 60 * 720 / 2
    commands[1].flags.update(dataset_name="on/the-hub", output_format="labels")
    commands.append(script.Command("", "run_pseudo_labelling.py", [], commands[1].flags, []))
    shares = script.costs_of(commands, corpus)
    labels = 6_307_200 * 500 / 1e9
    assert [shares[1].least, shares[1].gigabytes] == [30, pytest.approx((1200 + labels / 10) / 2)]
    assert shares[1] == shares[5]


def test_a_plan_refuses_wrong_flags_of_any_stage(tmp_path):
    more = {"run_distillation_flags": "--temprature 3"}
    done = plan("kotoba_whisper_v2.0", tmp_path, **more)
    assert done.returncode != 0
    assert "unknown flag --temprature (did you mean --temperature?)" in done.stdout


def test_a_scale_that_is_none_is_refused():
    done = shell("scripts/kotoba_whisper_v1.0.sh", SCALE="small")
    assert done.returncode == 2
    assert "SCALE must be full or tiny, got 'small'" in done.stdout


# --- from start to end ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the folder of all tiny recipes, which share its corpus and teacher."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def first(tiny, hub):
    """Run kotoba-whisper-v1.0, published to the Hub's stand-in; return its folder.

    It is killed while it labels the second part, and v1.1, which wants it, lets it go on.
    """
    folder, more = tiny / "kotoba-whisper-v1.0", hub.environment(HF_ORG="me")
    kill_when(lambda: any((folder / "labelled_2_4").rglob("*.seal.json")), tiny, **more)
    printed = run("kotoba_whisper_v1.1", tiny, STOP_STAGE="1", **more)
    assert "kotoba-whisper-v1.0 is done:" in printed
    assert "labelled_0_2:" not in printed, "a part that was filtered is labelled again"
    return folder


def kill_when(is_so: Callable[[], bool], tiny: Path, **more: str) -> None:
    """Start kotoba-whisper-v1.0, and kill all of its processes as soon as something is so."""
    recipe = subprocess.Popen(
        ["bash", "scripts/kotoba_whisper_v1.0.sh"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=shell_environment(**variables(tiny, **more)),
        start_new_session=True,
    )
    try:
        wait_until(lambda: is_so() or recipe.poll() is not None, STARTS_WITHIN_S)
    finally:
        os.killpg(recipe.pid, signal.SIGKILL)
    assert recipe.wait() == -signal.SIGKILL


def test_reazonspeech_becomes_a_published_student(first, hub):
    parts = [split_rows(first / f"labelled_{part}.wer_10.0") for part in ("0_2", "2_4")]
    assert [len(kept) for kept in parts] == [NUM_CLIPS // 2] * 2
    kept = list(chain(*parts))
    assert all(row["text"] and row["labels"] and row["audio"]["bytes"] for row in kept)
    assert len({row["audio"]["bytes"] for row in kept}) == NUM_CLIPS, "a clip is there twice"
    # The disk holds no part twice: archives and labels of a part go when it is filtered.
    assert not list(first.rglob("*.tar"))
    assert not [path for path in first.glob("labelled_*") if "wer" not in path.name]
    filtering = record(first / "labelled_0_2.wer_10.0")["arguments"]
    assert (filtering["normalizer"], filtering["strict_limits"]) == ("kotoba", True)
    assert record(first / "model")["arguments"]["num_train_epochs"] == 8
    assert [row["num_rows"] for row in results(first)] == [6]
    repository = hub.repositories["models", "me/kotoba-whisper-v1.0"]
    assert repository.is_private and "model.safetensors" in repository.files
    (result,) = results(first)
    card = repository.files["README.md"].decode()
    assert f"{result['cer_norm']:.1f}" in card.partition("## ")[2]


def test_a_plan_makes_the_dry_runs_of_stages_whose_inputs_are_there(first, tiny, tmp_path):
    more = {"DRY_RUN": "1", "STAGE": "2", "STOP_STAGE": "3", "WORK": str(tmp_path / "work")}
    done = shell("scripts/kotoba_whisper_v1.0.sh", **variables(tiny, **more))
    assert done.returncode == 0, done.stdout
    assert "create_student_model, dry run: nothing is written" in done.stdout
    assert re.search(r"create_student_model\.py +checked", done.stdout)
    assert re.search(r"run_distillation\.py .* init is not there yet", done.stdout)
    assert not (tmp_path / "work").exists()


def test_a_pipeline_is_added_to_the_model_that_its_own_recipe_made(first, tiny, hub, stable_ts):
    more = hub.environment(HF_ORG="me", PYTHONPATH=f"{stable_ts}:{REPOSITORY}")
    assert "kotoba-whisper-v1.0, stage" not in run("kotoba_whisper_v1.1", tiny, **more)
    folder = tiny / "kotoba-whisper-v1.1"
    assert "custom_pipelines" in json.loads((folder / "model/config.json").read_text("utf-8"))
    weights = [path / "model" / "model.safetensors" for path in (folder, first)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    variants = [row["postprocessing"] for row in results(folder)]
    assert variants == [[], ["punctuator"], ["stable-ts"], ["punctuator", "stable-ts"]]
    assert "recognition.py" in hub.files("me/kotoba-whisper-v1.1")


def test_the_second_generation_begins_with_its_own_base(first, tiny, stable_ts):
    run("kotoba_whisper_v2.1", tiny, PYTHONPATH=f"{stable_ts}:{REPOSITORY}")
    base, folder = tiny / "kotoba-whisper-v2.0", tiny / "kotoba-whisper-v2.1"
    assert [row["num_rows"] for row in results(base)] == [6]
    weights = [path / "model" / "model.safetensors" for path in (folder, base, first)]
    # At this scale both generations learn from the same clips.
    assert weights[0].read_bytes() == weights[1].read_bytes() == weights[2].read_bytes()
    variants = [row["postprocessing"] for row in results(folder)]
    assert variants == [[], ["punctuator"], ["stable-ts"], ["punctuator", "stable-ts"]]


def test_common_voice_becomes_a_student_for_hindi(tiny):
    run("distil_whisper_large_v2_hi", tiny)
    folder = tiny / "distil-large-v2-hi"
    splits = [split_rows(folder / "labelled", name, "hi") for name in ("train", "validation")]
    assert [len(rows) for rows in splits] == [20, 4]
    assert record(folder / "model")["arguments"]["wer_threshold"] == 10
    assert [row["num_rows"] for row in results(folder)] == [6, 6]
    assert (folder / "model" / "best").is_dir()


def test_talks_become_a_student_in_packed_windows(tiny):
    run("distil_whisper_large_v3", tiny)
    folder = tiny / "distil-large-v3"
    windows = split_rows(folder / "kept" / "talks")
    assert sum(len(row["segment_ids"]) for row in windows) == NUM_CLIPS
    assert max(len(row["segment_ids"]) for row in windows) > 1
    assert any(row["condition_on_prev"] for row in windows)
    assert not any("audio" in row for row in windows)
    forms = [(each.form, each.figure("algorithm")) for each in read_folder(folder / "eval")]
    longs = [("long_form", "sequential"), ("long_form", "chunked")]
    assert forms == [("short_form", None), *longs]


def test_a_model_is_fine_tuned_as_at_the_event(tiny):
    run("whisper_finetune_event", tiny)
    folder = tiny / "whisper-small-finetuned"
    specs = record(folder / "model")["arguments"]
    assert (specs["train_split_name"], specs["max_steps"]) == ("train+validation", 6)
    assert len(results(folder)) == 2  # its baseline, and itself
