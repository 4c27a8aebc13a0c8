"""What the documents promise is there: scripts, files, flags."""

import re
from pathlib import Path

import pytest
from command_lines import SCRIPTS, commands_in, groups_of, text_of
from tiny import REPOSITORY

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.glob("scripts/*.sh"))),
]


def spellings(script: str) -> set[str]:
    """Return every way to spell a flag of a stage."""
    from distillery.cli.parser import StageParser

    parser = StageParser(groups_of(script), None)
    declared = {spelling for action in parser._actions for spelling in action.option_strings}
    return declared | {"--" + spelling[2:].replace("_", "-") for spelling in declared}


ALL_COMMANDS = [
    pytest.param(script, words, id=f"{document}:{script}:{number}")
    for document in DOCUMENTS
    for number, (script, words) in enumerate(commands_in(text_of(document)))
]


def test_the_documents_have_commands_of_every_stage():
    assert {parameters.values[0] for parameters in ALL_COMMANDS} >= {*SCRIPTS}


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
    everything = set().union(*(spellings(script) for script in SCRIPTS))
    assert explained
    assert explained <= everything


def test_the_file_tree_names_every_module():
    tree = text_of("README.md").split("## What is where", 1)[1]
    modules = {path.name for path in (REPOSITORY / "distillery").glob("[a-z]*.py")}
    assert {name for name in modules if name not in tree} == set()


def test_every_module_and_recipe_is_listed():
    recipes = {path.name for path in (REPOSITORY / "scripts").glob("*_v*.sh")}
    assert {name for name in recipes if name not in text_of("README.md")} == set()
