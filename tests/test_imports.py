"""The design's rules about who may import and name what, read from the folders and the source.

storage, text, audio <- data <- ingest <- filtering <- whisper <- labelling | training | evaluation
<- cli <- scripts
"""

import ast
import re

import pytest
from tiny import REPOSITORY

from distillery.data import schema

# Rooms that stand side by side do not import each other.
FLOORS = (
    {"storage", "text", "audio"},
    {"data"},
    {"ingest"},
    {"filtering"},
    {"whisper"},
    {"labelling", "training", "evaluation"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

PACKAGE = REPOSITORY / "distillery"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
STAGES = sorted(REPOSITORY.glob("*.py"))
SCRIPTS = STAGES + sorted((REPOSITORY / "scripts").rglob("*.py"))
SCRIPT_NAMES = {path.stem for path in SCRIPTS} | {"scripts"}

COLUMNS = {value for name, value in vars(schema).items() if name.isupper() and type(value) is str}
COLUMNS -= {schema.LANGUAGE, schema.TASK}  # flags and arguments of transformers have these names
# Words that happen to be the name of something else: reasons in a ledger (`FilterReason`, a clip
# that cannot be used), a key of the pipeline's answer, the best metric in a run's record.
HOMONYMS = {
    "seed_flags": {"duration"},
    "filters": {"truncated"},
    "labelling_arguments": {"labels"},
    "run_pseudo_labelling": {"audio", "labels"},
    "run_data_filtering": {"audio"},
    "resume": {"best"},
    "postprocessing": {"text"},
    "folders": {"text"},
    "onnx_format": {"input_features"},  # of transformers' encoder
    "segmentation": {"segments"},
    "speech": {"start", "end"},
    "card_results": {"id"},  # of a benchmark, as the Hub has it
}
SPECIAL_TOKEN = re.compile(r"<\|[a-z.0-9]+\|>")
CHECKPOINT_FOLDER = re.compile(r"checkpoint-(\d|\*|\{|$)|^best$")


def name_of(path):
    return str(path.relative_to(REPOSITORY)).removesuffix(".py").replace("/", ".")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0]


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path):
    """Yield (module, name) of everything that a file imports, wherever it does."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A pipeline's modules are copied beside a model, and find each other there.
            assert node.level == 0 or path.parent.name == "pipelines", f"{path}: relative import"
            if node.level == 0:
                yield from ((node.module, alias.name) for alias in node.names)


def rooms_imported_by(path):
    """Return the rooms of the package that a file imports from."""
    rooms = set()
    for module, name in imports_of(path):
        if module == "distillery":
            rooms.add(name)
        elif module.startswith("distillery."):
            rooms.add(module.split(".")[1])
    return rooms


def strings_of(path):
    """Return (line, text) of the strings in a file that are data: no docstrings, no help texts."""
    tree = parsed(path)
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            prose.add(node.value)
        elif isinstance(node, ast.Raise):
            prose.update(ast.walk(node))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("flag", "required"):
            prose.update(child for arg in node.args[-2:] for child in ast.walk(arg))
    return sorted(
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose
        if node.value not in HOMONYMS.get(path.stem, ())
    )


def test_every_module_is_in_a_room_and_every_room_has_a_floor():
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert {room_of(path) for path in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_from_its_own_room_or_lower_floors(path):
    room = room_of(path)
    wrong = {
        other for other in rooms_imported_by(path) - {room} if FLOOR_OF[other] >= FLOOR_OF[room]
    }
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_storage_and_text_know_no_torch(path):
    packages = {module.split(".")[0] for module, _ in imports_of(path)}
    if room_of(path) in ("storage", "text"):
        assert not packages & {"torch", "accelerate"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_cli_knows_the_command_line(path):
    if room_of(path) != "cli":
        assert not {module for module, _ in imports_of(path) if module.split(".")[0] == "argparse"}
        assert not {name for name in names_in(path) if name.endswith("Arguments")}
        assert "HfArgumentParser" not in names_in(path)


def names_in(path):
    """Return all names that a file's code uses, imports or defines."""
    tree = parsed(path)
    return (
        {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        | {name for _, name in imports_of(path) if name}
    )


def test_only_the_runtime_builds_an_accelerator():
    builders = {
        path.stem
        for path in MODULES + SCRIPTS
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Accelerator"
    }
    assert builders == {"runtime"}


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_nothing_imports_a_script(path):
    imported = {module.split(".")[0] for module, _ in imports_of(path)}
    beside = {script.stem for script in path.parent.glob("*.py") if not has_guard(script)}
    assert not imported & (SCRIPT_NAMES - beside)


def has_guard(path):
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODULES + STAGES, ids=name_of)
def test_columns_are_named_in_the_schema_alone(path):
    # The pipelines speak transformers' own words, which are copied beside a model.
    if path.stem != "schema" and path.parent.name != "pipelines":
        assert not [(line, text) for line, text in strings_of(path) if text in COLUMNS]


@pytest.mark.parametrize("path", MODULES + STAGES, ids=name_of)
def test_special_tokens_are_written_in_their_module_alone(path):
    if path.stem != "tokens":
        assert not [text for _, text in strings_of(path) if SPECIAL_TOKEN.search(text)]


@pytest.mark.parametrize("path", MODULES + STAGES, ids=name_of)
def test_checkpoint_folders_are_named_in_checkpoints_alone(path):
    if path.stem != "checkpoints":
        assert not [text for _, text in strings_of(path) if CHECKPOINT_FOLDER.search(text)]


def test_the_rules_can_fail(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(
        '"""Reads `labels`, <|endoftext|> and checkpoint-1."""\n'
        "def f(args: FilterArguments):\n"
        "    from distillery.cli.arguments import parse\n"
        "    from distillery import training\n"
        '    raise ValueError("labels")\n'
        'x = row["labels"], "<|endoftext|>", f"checkpoint-{1}"\n'
        'y = flag(None, "labels")\n'
    )
    assert rooms_imported_by(path) == {"cli", "training"}
    assert "FilterArguments" in names_in(path)
    assert [text for _, text in strings_of(path)] == ["<|endoftext|>", "checkpoint-", "labels"]
    assert SPECIAL_TOKEN.search("<|0.00|>")
    assert CHECKPOINT_FOLDER.search("checkpoint-")
    assert "condition_on_prev" in COLUMNS
