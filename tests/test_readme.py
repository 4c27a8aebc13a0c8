"""What the documents promise is there: scripts, files, flags."""

import re
import shlex
from pathlib import Path

import pytest
from tiny import REPOSITORY, load_script

STAGES = [
    "reazonspeech_manual_downloader.py",
    "create_student_model.py",
    "run_data_filtering.py",
    "run_distillation.py",
    "run_finetuning.py",
    "run_long_form_eval.py",
    "run_pseudo_labelling.py",
    "run_short_form_eval.py",
    "run_speed_eval.py",
]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.glob("scripts/*.sh"))),
]


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text("utf-8")


def spellings(script: str) -> set[str]:
    """Return every way to spell a flag of a stage."""
    from distillery.cli.parser import StageParser

    parser = StageParser(load_script(script).GROUPS, None)
    return {spelling for action in parser._actions for spelling in action.option_strings}


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Return the stage commands in a text: the script, and its words."""
    joined = text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        match = re.search(r"(?:python|accelerate launch|launch)\s+(\w+\.py)\b(.*)", line)
        if match and match[1] in STAGES:
            found.append((match[1], shlex.split(match[2].split("`")[0], comments=True)))
    return found


ALL_COMMANDS = [
    pytest.param(script, words, id=f"{document}:{script}:{number}")
    for document in DOCUMENTS
    for number, (script, words) in enumerate(commands_in(text_of(document)))
]


def test_the_documents_have_commands_of_every_stage():
    assert {parameters.values[0] for parameters in ALL_COMMANDS} >= {*STAGES}


@pytest.mark.parametrize(("script", "words"), ALL_COMMANDS)
def test_every_flag_of_a_command_exists(script, words):
    flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert flags <= spellings(script)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_script_and_file_that_is_named_exists(document):
    names = re.findall(r"[\w./-]+\.(?:py|sh|md|txt|toml|cff)\b", text_of(document))
    ours = {name.removeprefix("./") for name in names if not name.startswith(("../", "/"))}
    known = {path.name for path in REPOSITORY.rglob("*") if ".venv" not in path.parts}
    written = "results.md"  # by the quickstart
    assert {name for name in ours if Path(name).name not in {*known, written}} == set()


def test_every_flag_that_the_readme_explains_exists():
    found = re.findall(r"`(--[a-z_-]+)", text_of("README.md"))
    explained = {flag.replace("_", "-") for flag in found}
    everything = set().union(*(spellings(script) for script in STAGES))
    assert explained
    assert explained <= everything


def test_the_file_tree_names_every_module():
    tree = text_of("README.md").split("## What is where", 1)[1]
    modules = {path.name for path in (REPOSITORY / "distillery").glob("[a-z]*.py")}
    assert {name for name in modules if name not in tree} == set()


def test_every_module_and_recipe_is_listed():
    recipes = {path.name for path in (REPOSITORY / "scripts").glob("*_v*.sh")}
    assert {name for name in recipes if name not in text_of("README.md")} == set()
