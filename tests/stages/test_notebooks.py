"""The notebook of one's own data over tiny clips; that of the quickstart is in its own test."""

import nbformat
import pytest
from command_lines import commands_in, text_of
from notebook_runs import executed
from stage_runs import record, talkative_model_folder
from tiny import REPOSITORY, tone_manifest

NUM_CLIPS = 8
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [c for c in notebook.cells if c.cell_type == "code" and c.outputs]
    assert path.name in text_of("README.md") or f"notebooks/{path.name}" in "".join(
        text_of(f"docs/{page}.md") for page in ("quickstart", "own-data")
    )


def test_the_notebook_runs_the_commands_of_the_page():
    notebook = nbformat.read(REPOSITORY / "notebooks" / "own_data.ipynb", as_version=4)
    shell = "\n".join(cell.source for cell in notebook.cells if cell.source.startswith("%%bash"))
    there = {script for script, _ in commands_in(text_of("docs/own-data.md"))}
    assert {script for script, _ in commands_in(shell)} == there


def test_ones_own_data_from_clips_to_a_model_with_its_figures(tmp_path):
    values = {
        "WORK": tmp_path / "work",
        "DATA": tone_manifest(tmp_path / "speech.jsonl", NUM_CLIPS),
        "TEST": tone_manifest(tmp_path / "test.jsonl", 2),
        "TEACHER": talkative_model_folder(tmp_path / "teacher", max_target_positions=448),
        "LANGUAGE": "de",
        # A teacher with random weights is never right.
        "FILTER": "--wer_threshold 1000000",
        "LABEL_BATCH": 4,
        "TRAIN_BATCH": 2,
        "MAX_STEPS": 2,
    }
    printed = "".join(executed("own_data.ipynb", values))
    assert "labelled: 8 labelled clips" in printed
    assert record(tmp_path / "work" / "student")["status"] == "complete"
    card = (tmp_path / "work" / "student" / "README.md").read_text("utf-8")
    assert "## Evaluation" in card
    assert "model-index" in card
