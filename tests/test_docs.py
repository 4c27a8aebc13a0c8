"""What the documents promise is there: scripts, files, flags, modules; their commands parse."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import tables
from command_lines import SCRIPTS, commands_in, groups_of, parsed, text_of
from tiny import REPOSITORY

from distillery.cli.parser import StageParser
from distillery.cli.seed_flags import OTHER_MEANINGS, SEED_FLAGS

MORE_SCRIPTS = ("scripts/push_pipeline.py", "scripts/publish.py", "scripts/split_dataset.py")
PAGES = [str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.glob("docs/**/*.md"))]
READ_ON_GITHUB = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
PROSE = [*READ_ON_GITHUB, *PAGES]
RECIPES = [str(path.relative_to(REPOSITORY)) for path in sorted(REPOSITORY.glob("scripts/*.sh"))]
WRITTEN = {
    "results.md",
    "filter_report.md",
    "config.yaml",
    "distil.yaml",
    "merges.txt",
    "eval.yaml",  # of a benchmark on the Hub
}  # by the stages, and by others


def spellings(script: str) -> set[str]:
    """Return every way to spell a flag of a stage, with `-` for `_`."""
    parser = StageParser(groups_of(script), None)
    actions = parser._actions
    return {name.replace("_", "-") for action in actions for name in action.option_strings}


def commands_of(documents):
    return [
        pytest.param(script, words, id=f"{document}:{script}:{number}")
        for document in documents
        for number, (script, words) in enumerate(commands_in(text_of(document)))
    ]


def filled(page: str) -> str:
    """Return a page as the site shows it, its tables filled in."""
    return tables.on_page_markdown(text_of(page))


def test_the_documents_have_commands_of_every_stage():
    assert {command.values[0] for command in commands_of(PROSE)} == {*SCRIPTS}


@pytest.mark.parametrize(("script", "words"), commands_of(["README.md", *PAGES]))
def test_every_command_parses(script, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    for folder in ("filtered", "$p"):
        (tmp_path / folder).mkdir()
    (tmp_path / "filtered" / "config.yaml").write_text("dataset_name: labelled\n")
    if "--predictions_file" in words:
        for name in words[words.index("--predictions_file") + 1].split("+"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    groups = parsed(script, words)
    assert [type(group).__name__ for group in groups] == [g.__name__ for g in groups_of(script)]


@pytest.mark.parametrize(("script", "words"), commands_of([*PROSE, *RECIPES]))
def test_every_flag_of_a_command_exists(script, words):
    flags = {word.split("=")[0].replace("_", "-") for word in words if re.match("--?[a-z]", word)}
    assert flags <= spellings(script)


@pytest.mark.parametrize("document", PROSE)
def test_every_script_and_file_that_is_named_exists(document):
    names = re.findall(r"[\w./-]+\.(?:py|sh|md|txt|toml|cff|yaml|yml|j2)\b", text_of(document))
    ours = {name.removeprefix("./") for name in names if not name.startswith(("../", "/"))}
    known = {path.name for path in REPOSITORY.rglob("*") if ".venv" not in path.parts}
    assert {name for name in ours if Path(name).name not in {*known, *WRITTEN, "stage.py"}} == set()


@pytest.mark.parametrize("document", READ_ON_GITHUB)
def test_every_link_leads_to_a_heading_or_file(document):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(document)):
        path, _, anchor = target.partition("#")
        place = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text("utf-8"), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            }
            assert anchor in slugs, target


def test_every_flag_that_is_explained_exists():
    explained = {
        flag.replace("_", "-")
        for page in PROSE
        for flag in re.findall(r"`(--[a-z0-9_-]+)", text_of(page))
    }
    # Of `accelerate launch`.
    everything = {"--num-cpu-threads-per-process", "--num-processes", "--machine-rank"}
    everything |= {"--main-process-ip", "--zero-stage"}
    everything |= set().union(*(spellings(script) for script in (*SCRIPTS, *MORE_SCRIPTS)))
    assert explained
    assert explained <= everything


def test_the_readme_is_one_page():
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("script", [*SCRIPTS, *MORE_SCRIPTS])
def test_each_stage_has_a_page_with_all_of_its_flags(script):
    (page,) = [page for page in PAGES if f"<!-- flags: {script} -->" in text_of(page)]
    shown = filled(page)
    assert "<!--" not in shown
    for group in groups_of(script):
        for each in fields(group):
            (row,) = {line for line in shown.splitlines() if line.startswith(f"| `--{each.name}`")}
            assert all(f"`{alias}`" in row for alias in each.metadata["aliases"])
            assert row.count(" | ") == 2
    assert f"]({Path(page).name})" in text_of("docs/stages/index.md")


def test_every_flag_of_the_ancestors_that_differs_is_listed_with_its_answer():
    shown = filled("docs/differences.md")
    assert "<!--" not in shown
    for stage, answers in SEED_FLAGS.items():
        rows = shown.split(f"### `{stage}.py`", 1)[1].split("\n###", 1)[0]
        listed = {"no": set(), "yes": set()}
        for names, is_taken in re.findall(r"^\| (`.+`) \| (no|yes) \| \S", rows, re.MULTILINE):
            listed[is_taken] |= set(re.findall(r"`--?(\w+)`", names))
        assert listed == {"no": {*answers}, "yes": {*OTHER_MEANINGS.get(stage, {})}}


def test_the_readme_lists_every_stage():
    assert [script for script in SCRIPTS if f"| `{script}` |" not in text_of("README.md")] == []


def test_the_rooms_are_those_of_the_package():
    folders = {path.parent.name for path in REPOSITORY.glob("distillery/*/__init__.py")}
    assert len(tables.ROOMS) == len({*tables.ROOMS})
    assert {*tables.ROOMS} == folders


def test_the_design_names_every_module_of_every_room_and_what_it_holds():
    rooms = filled("docs/design.md").split("## The rooms", 1)[1]
    parts = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", rooms, re.MULTILINE | re.DOTALL))
    for room in tables.ROOMS:
        folder = REPOSITORY / "distillery" / room
        modules = {path.relative_to(folder).as_posix() for path in folder.rglob("[a-z]*.py")}
        rows = dict(re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", parts[room], re.MULTILINE))
        assert rows.keys() == modules


def test_every_recipe_is_listed():
    recipes = {Path(path).name for path in RECIPES if "\nfinish\n" in text_of(path)}
    assert recipes
    assert {name for name in recipes if name not in text_of("docs/recipes.md")} == set()


def test_every_fault_has_a_test_that_exists():
    there = {
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    page = text_of("docs/reliability.md")
    rows = [line for line in page.splitlines() if line.startswith("|") and "---" not in line]
    faults = [row for row in rows if not row.endswith("| tests |")]
    assert len(faults) > 40
    for row in faults:
        named = re.findall(r"`(test_\w+)`", row.rsplit(" | ", 1)[1])
        assert named, row
        assert [name for name in named if name not in there] == []
