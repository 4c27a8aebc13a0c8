"""The design's rules about who may import and name what, read from the source."""

import ast
import re

import pytest
from tiny import REPOSITORY

from distillery import schema

LAYERS = {
    "core": "schema tokens labels segments normalizers metrics filters vocabulary order bootstrap "
    "provenance audio subtitles loudness timestamps hallucinations",
    "torch": "losses student collators optim features whisper transcription distillation long_form "
    "speculation speed pipelines postprocessing",
    "io": "data archives filetrees manifests layouts examples segmentation shards checkpointing "
    "hub results reazonspeech downloads comparison tables report",
    "app": "flags arguments runtime forecast training evaluation",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}
RANKS = {layer: rank for rank, layer in enumerate(LAYERS)}

MODULES = sorted(p for p in (REPOSITORY / "distillery").glob("*.py") if p.stem != "__init__")
TOP = sorted(REPOSITORY.glob("*.py"))
SCRIPTS = TOP + sorted((REPOSITORY / "scripts").rglob("*.py"))
SCRIPT_NAMES = {path.stem for path in SCRIPTS} | {"scripts"}

# A model card's header is plain data; nothing of the Hub is asked.
ALLOWED = {("whisper", "huggingface_hub", "ModelCardData")}

COLUMNS = {value for name, value in vars(schema).items() if name.isupper() and type(value) is str}
# Words that happen to be the name of something else: reasons in a ledger (`FilterReason`, a clip
# that cannot be used), a key of the pipeline's answer, the best metric in a run's record.
HOMONYMS = {
    "filters": {"truncated"},
    "run_pseudo_labelling": {"audio"},
    "run_data_filtering": {"audio"},
    "training": {"best"},
    "postprocessing": {"text"},
    "layouts": {"text"},
    "segmentation": {"start", "end", "segments"},
}
SPECIAL_TOKEN = re.compile(r"<\|[a-z.0-9]+\|>")
CHECKPOINT_FOLDER = re.compile(r"checkpoint-(\d|\*|\{|$)|^best$")


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path):
    """Yield (module, name) of everything that a file imports, wherever it does."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def siblings_of(path):
    """Return the modules of the package that a file imports."""
    found = set()
    for module, name in imports_of(path):
        if module == "distillery":
            found.add(name)
        elif module.startswith("distillery."):
            found.add(module.split(".")[1])
    return found


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


def test_every_module_has_one_layer():
    assert len(LAYER_OF) == sum(len(names.split()) for names in LAYERS.values())
    assert {path.stem for path in MODULES} <= set(LAYER_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_from_its_own_layer_or_lower_ones(path):
    own = RANKS[LAYER_OF[path.stem]]
    wrong = {name for name in siblings_of(path) if RANKS[LAYER_OF[name]] > own}
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_lower_layers_know_no_launcher_command_line_or_hub(path):
    layer = LAYER_OF[path.stem]
    refused = {
        "core": {"argparse", "accelerate", "huggingface_hub", "torch"},
        "torch": {"argparse", "accelerate", "huggingface_hub"},
    }.get(layer, set())
    wrong = {
        (module, name)
        for module, name in imports_of(path)
        if module.split(".")[0] in refused and (path.stem, module, name) not in ALLOWED
    }
    assert not wrong


def test_only_the_runtime_builds_an_accelerator():
    builders = {
        path.stem
        for path in MODULES + SCRIPTS
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Accelerator"
    }
    assert builders == {"runtime"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_package_imports_no_script(path):
    assert not {module for module, _ in imports_of(path) if module.split(".")[0] in SCRIPT_NAMES}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_no_script(path):
    assert not {module for module, _ in imports_of(path) if module.split(".")[0] in SCRIPT_NAMES}


@pytest.mark.parametrize("path", MODULES + TOP, ids=lambda path: path.stem)
def test_columns_are_named_in_the_schema_alone(path):
    if path.stem != "schema":
        assert not [(line, text) for line, text in strings_of(path) if text in COLUMNS]


@pytest.mark.parametrize("path", MODULES + TOP, ids=lambda path: path.stem)
def test_special_tokens_are_written_in_their_modules_alone(path):
    if path.stem not in ("tokens", "vocabulary"):
        found = [(line, text) for line, text in strings_of(path) if SPECIAL_TOKEN.search(text)]
        assert not found


@pytest.mark.parametrize("path", MODULES + TOP, ids=lambda path: path.stem)
def test_checkpoint_folders_are_named_in_checkpointing_alone(path):
    if path.stem != "checkpointing":
        found = [(line, t) for line, t in strings_of(path) if CHECKPOINT_FOLDER.search(t)]
        assert not found


def test_the_rules_can_fail(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(
        '"""Reads `labels`, <|endoftext|> and checkpoint-1."""\n'
        "def f():\n"
        "    from distillery.arguments import parse\n"
        "    from distillery import hub\n"
        '    raise ValueError("labels")\n'
        'x = row["labels"], "<|endoftext|>", f"checkpoint-{1}"\n'
        'y = flag(None, "labels")\n'
    )
    assert siblings_of(path) == {"arguments", "hub"}
    assert [text for _, text in strings_of(path)] == ["<|endoftext|>", "checkpoint-", "labels"]
    assert SPECIAL_TOKEN.search("<|0.00|>")
    assert CHECKPOINT_FOLDER.search("checkpoint-")
    assert "condition_on_prev" in COLUMNS
