"""The quickstart at a reduced size: the same script, a few steps."""

import json
from pathlib import Path

import pytest
from launching import shell
from notebook_runs import executed

SMALL = {
    "NUM_TRAIN": "12",
    "NUM_WINDOWS": "12",
    "NUM_TEST": "3",
    "NUM_LONG": "1",
    "TEACHER_STEPS": "2",
    "STUDENT_STEPS": "2",
    # After two steps the teacher never stops by itself, and is never right.
    "FILTER": "--keep_truncated",
}
FIGURES = {"cer_norm", "wer_norm", "cer_raw", "wer_raw", "num_parameters", "rtfx"}


def quickstart(folder: Path) -> str:
    """Run the script with this Python; return what it printed."""
    done = shell("scripts/quickstart.sh", **SMALL, OUTPUT_DIR=str(folder))
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, quickstart(folder)


def test_a_row_for_each_model_and_set(first):
    folder, printed = first
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
    found = [(row["role"], row["test_set"]) for row in rows]
    short = ["short_form, test", "short_form, long_clips"]
    both = [*short, "long_form, sequential", "long_form, chunked"]
    sets = {"teacher": both, "student_init": short, "student": both}
    assert found == [(role, test_set) for role in sets for test_set in sets[role]]
    assert all(row.keys() == {"model", "role", "test_set", *FIGURES} for row in rows)
    sizes = {row["role"]: row["num_parameters"] for row in rows}
    assert sizes["teacher"] > sizes["student_init"] == sizes["student"]
    assert all(row["rtfx"] > 0 and row["cer_raw"] >= 0 for row in rows)
    table = (folder / "results.md").read_text("utf-8")
    assert table.strip() in printed
    assert table.count("\n") == 2 + len(rows)
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_sets_are_refused():
    done = shell("scripts/quickstart.sh", EVALUATE_ON="train")
    assert done.returncode == 2
    assert "EVALUATE_ON must be test or dev, got train" in done.stdout


def test_a_second_start_by_the_notebook_skips_what_is_finished(first):
    folder, _ = first
    models = sorted(folder.glob("*/model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in [*models, *folder.rglob("*.parquet")]}
    assert len(models) == 4
    printed = executed("quickstart.ipynb", {**SMALL, "OUTPUT_DIR": folder})
    again = "".join(printed)
    assert "said:  " in printed[-1] and "heard: " in printed[-1]
    assert "# student" in again  # its card
    # Teacher, labels, filter, student, distillation.
    assert again.count("is complete: nothing to do") == 5
    assert again.count("was evaluated before") == 10
    assert {path: path.stat().st_mtime_ns for path in before} == before
