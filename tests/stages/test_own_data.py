"""The commands of the pages on one's own data, run as they stand over tiny clips.

Names of models and files are those of the pages: a folder is called as the Hub's model, so that the
stages find a tiny teacher under its name. Only sizes are added behind a command's own flags.
"""

import re
import shutil

import pytest
from accelerate.state import AcceleratorState
from command_lines import commands_in, text_of
from stage_runs import read_manifest, record, run, talkative_model_folder
from tiny import tone_manifest

TEACHER = "openai/whisper-large-v3"
PAGE = text_of("docs/own-data.md")
README = text_of("README.md").split("## Your own data", 1)[1].split("\n## ", 1)[0]
NUM_CLIPS = 8
# A teacher with random weights never stops by itself and is never right.
SMALL = {
    "run_pseudo_labelling.py": ["--max_label_length", 16],
    "run_data_filtering.py": ["--wer_threshold", 1e6, "--keep_truncated"],
    "create_student_model.py": [],
    "run_distillation.py": ["--max_steps", 2, "--per_device_train_batch_size", 4],
    "run_short_form_eval.py": ["--generation_max_length", 16],
}


def shell_blocks(text):
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Stand where the commands are typed: the teacher, the clips and the manifests are there."""
    monkeypatch.chdir(tmp_path)
    talkative_model_folder(tmp_path / TEACHER)
    tone_manifest(tmp_path / "speech.jsonl", NUM_CLIPS)
    tone_manifest(tmp_path / "test.jsonl", 2)
    (tmp_path / "clips").mkdir()
    shutil.copy(tmp_path / "test-0000.flac", tmp_path / "clips" / "a1.flac")
    yield tmp_path
    new_process()


def new_process():
    """Forget what the accelerator of the last command was like; users start one process each."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("text", [PAGE, README], ids=["docs/own-data.md", "README.md"])
def test_the_commands_run_one_after_the_other(text, workplace, capsys):
    shell = shell_blocks(text)
    commands = commands_in(shell)
    assert len(commands) == shell.count("python ")
    assert {script for script, _ in commands} == SMALL.keys()
    for script, words in commands:
        new_process()
        run(script, *words, *SMALL[script])
    assert record(workplace / "filtered")["ledger"]["out"] == NUM_CLIPS
    assert record(workplace / "student")["status"] == "complete"
    rows = read_manifest(workplace / "eval" / "metric.de.transcribe.jsonl")
    assert {row["num_rows"] for row in rows} == {2}
    assert rows[-1]["model"].endswith("student")
    for code in python_blocks(text):
        capsys.readouterr()
        exec(code, {})
        assert capsys.readouterr().out.strip()
