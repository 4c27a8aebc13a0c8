import json
import subprocess
import sys
from dataclasses import dataclass

import command_lines
import pytest
import yaml
from launching import environment

from distillery.cli.config_files import config_text
from distillery.cli.flags import flag, flags_of, missing, parse, repeated, required
from distillery.storage.files import write_text


@dataclass(frozen=True)
class Cake:
    """A small group of flags."""

    flour_kind: str = required("What it is made of.", "-f")
    num_eggs: int = flag(2, "How many eggs.", "--eggs")
    sugar: float | None = flag(None, "Grams.")
    is_vegan: bool = flag(False, "Without eggs.")
    do_bake: bool = flag(True, "Bake it.")

    def problems(self):
        found = []
        if self.num_eggs < 0:
            found.append(f"--num_eggs must be >= 0, got {self.num_eggs}")
        return found


@dataclass(frozen=True)
class Oven:
    """Another."""

    heat: int = flag(180, "Degrees.")


def cake(*words):
    return parse((Cake,), words)[0]


def complaints(capsys, *words, groups=(Cake, Oven), check=None):
    return command_lines.complaints(capsys, *words, groups=groups, check=check)


def test_defaults_and_values():
    assert cake("-f", "rye") == Cake("rye", 2, None, False, True)
    words = ["--flour_kind", "rye", "--eggs=3", "--sugar", "1.5", "--is_vegan"]
    assert cake(*words) == Cake("rye", 3, 1.5, True)


def test_hyphens_and_underscores_are_the_same():
    assert cake("--flour-kind", "rye", "--num-eggs", "3") == cake(
        "--flour_kind", "rye", "--num_eggs", "3"
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], False),
        (["--is_vegan"], True),
        (["--is-vegan"], True),
        (["--is_vegan", "True"], True),
        (["--is_vegan", "False"], False),
        (["--is_vegan", "false"], False),
        (["--is_vegan=1"], True),
    ],
)
def test_switches(words, wanted):
    assert cake("-f", "rye", *words).is_vegan is wanted


@pytest.mark.parametrize("words", [["--do_bake", "False"], ["--no_do_bake"], ["--no-do-bake"]])
def test_a_switch_that_is_on_can_be_turned_off(words):
    assert cake("-f", "rye", *words).do_bake is False


def test_all_problems_are_reported_together_as_typed(capsys):
    words = ["--num-eggs", "-1", "--sugar", "sweet", "--is_vegn", "--heet", "3", "--heat=x"]
    found = complaints(capsys, *words)
    assert found == [
        "--sugar: invalid float value: 'sweet'",
        "--heat: invalid int value: 'x'",
        "unknown flag --is_vegn (did you mean --is_vegan?)",
        "unknown flag --heet (did you mean --heat?)",
        "--flour_kind is required",
        "--num_eggs must be >= 0, got -1",
    ]


def test_a_missing_flag_is_named(capsys):
    assert complaints(capsys) == ["--flour_kind is required"]


@dataclass(frozen=True)
class BoughtCake(Cake):
    """A cake whose flour need not be known."""

    flour_kind: str | None = flag(None, "What it is made of.", "-f")


@dataclass(frozen=True)
class Shop:
    """A group that changes what must be given."""

    buy: bool = flag(False, "Buy a cake.")


def test_a_rule_across_groups_may_demand_a_flag(capsys):
    def check(shop: Shop, cake: BoughtCake):
        assert isinstance(cake, BoughtCake)
        assert isinstance(shop, Shop)
        return [] if shop.buy else missing(cake, "flour_kind")

    groups = (BoughtCake, Shop)
    wanted = ["--num_eggs must be >= 0, got -1", "--flour_kind is required"]
    assert complaints(capsys, "--num_eggs", "-1", groups=groups, check=check) == wanted
    assert parse(groups, ["--buy"], check=check)[0].flour_kind is None
    assert parse(groups, ["-f", "rye"], check=check)[0].flour_kind == "rye"


def test_values_are_left_as_typed():
    assert cake("--flour_kind", "a-b_c", "--num-eggs=2") == Cake("a-b_c", 2)


STAGE = """
from dataclasses import dataclass
from distillery.cli.flags import flag, parse
from distillery.text.normalizers import normalizer_for

@dataclass(frozen=True)
class Cake:
    fault: str = flag("", "?")

def main(cake):
    if cake.fault == "own":
        raise FileNotFoundError("there is no cake")
    if cake.fault == "package":
        normalizer_for("ja", variant="odd")
    if cake.fault == "disk":
        with open("/dev/full", "w") as file:
            file.write("cream")
    if cake.fault == "memory":
        raise MemoryError
    {}["bug"]

if __name__ == "__main__":
    main(*parse((Cake,)))
"""


@pytest.mark.parametrize(
    ("fault", "shown", "where"),
    [
        ("own", "stage.py: there is no cake\n", False),
        ("package", "odd", False),
        ("disk", "No space left on device: make room on the disk of --output_dir", False),
        ("memory", "out of memory: start again with a smaller --per_device_eval_batch_size", False),
        ("", "KeyError", True),
    ],
)
def test_an_error_of_ours_is_shown_as_its_message(tmp_path, fault, shown, where):
    (tmp_path / "stage.py").write_text(STAGE)
    command = [sys.executable, str(tmp_path / "stage.py"), "--fault", fault]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert shown in done.stderr
    assert ("Traceback" in done.stderr) is where
    if not where:
        told = subprocess.run(
            command, capture_output=True, text=True, env=environment({"DISTILLERY_TRACEBACK": "1"})
        )
        assert "Traceback" in told.stderr


def test_an_unknown_flag_without_a_neighbour(capsys):
    assert complaints(capsys, "-f", "rye", "--zzzzzz") == ["unknown flag --zzzzzz"]
    assert complaints(capsys, "-f", "rye", "loose") == ["unknown flag loose"]


def test_no_flag_may_be_shortened(capsys):
    (line,) = complaints(capsys, "-f", "rye", "--num_egg", "3")
    assert line.startswith("unknown flag --num_egg ")


def test_a_flag_without_its_value_is_named(capsys):
    assert complaints(capsys, "-f") == ["argument --flour_kind/-f: expected one argument"]


# --- configuration files -------------------------------------------------------------------------

CONFIG = {"flour_kind": "rye", "num_eggs": 5, "is_vegan": True, "do_bake": False, "sugar": None}


def config_file(tmp_path, name, config=None):
    path = tmp_path / name
    path.write_text(json.dumps(CONFIG if config is None else config))  # JSON is YAML, too
    return str(path)


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config.yml"])
def test_a_file_gives_values_and_flags_override_them(tmp_path, name):
    path = config_file(tmp_path, name)
    assert cake(path) == Cake("rye", 5, None, True, False)
    words = [path, "--num_eggs", "1", "--is_vegan", "False", "--do_bake"]
    assert cake(*words) == Cake("rye", 1, None, False, True)


def test_yaml_as_people_write_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("flour_kind: rye  # dark\nsugar: 1e-4\nis_vegan: yes\n")
    assert cake(str(path)) == Cake("rye", 2, 1e-4, True)


def test_null_in_a_file_means_the_default(tmp_path):
    config = {"flour_kind": "rye", "num_eggs": None, "do_bake": None}
    assert cake(config_file(tmp_path, "c.json", config)) == Cake("rye")


def test_wrong_values_in_a_file_are_reported_with_all_others(tmp_path, capsys):
    config = {"num_eggs": "many", "sugar": [1], "flower_kind": "rye", "do_bake": "perhaps"}
    path = config_file(tmp_path, "c.json", config)
    found = complaints(capsys, path, "--heet", "3")
    assert found[:3] == [
        f"{path}: num_eggs: invalid int value: 'many'",
        f"{path}: sugar must be one value, got ['1']",
        f"{path}: unknown key 'flower_kind' (did you mean flour_kind?)",
    ]
    assert found[3].startswith(f"{path}: do_bake: must be True or False, got 'perhaps'")
    assert found[4:] == [
        "unknown flag --heet (did you mean --heat?)",
        "--flour_kind is required",
    ]


@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"num_eggs": true}', "num_eggs: invalid int value: "),
        ('{"num_eggs": 2.5}', "num_eggs: invalid int value: '2.5'"),
        ('{"num_eggs": {"a": 1}}', "num_eggs must be one value, got {'a': '1'}"),
        ('{"num_eggs": 2, "num_eggs": 3}', "cannot be read as a configuration: num_eggs is given"),
        ('{"help": "x"}', "unknown key 'help'"),
        ('{"save_config": "x.yaml"}', "unknown key 'save_config'"),
        ('{"--num_eggs": 2}', "unknown key '--num_eggs' (did you mean num_eggs?)"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path, capsys, name, text, complaint):
    (tmp_path / name).write_text(text)
    (line,) = complaints(capsys, str(tmp_path / name), "-f", "rye")
    assert line.startswith(f"{tmp_path / name}: {complaint}")


def test_json_has_text_in_quotes(tmp_path, capsys):
    path = config_file(tmp_path, "c.json", {"flour_kind": False})
    assert complaints(capsys, path, "-f", "rye") == [
        f"{path}: flour_kind must be text, got False: quote it"
    ]
    assert cake(config_file(tmp_path, "d.json", {"flour_kind": 7})).flour_kind == "7"


@pytest.mark.parametrize("text", ["0_50", "no", "1e3", "0x10", "2026-11-20", "12:30", "[a]", "a+b"])
def test_a_yaml_file_has_values_as_they_are_typed(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"flour_kind: {text!r}\n" if text == "[a]" else f"flour_kind: {text}\n")
    assert cake(str(path)) == cake("-f", text)


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_a_yaml_file_may_leave_a_value_out(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"flour_kind: 'null'\nnum_eggs: {text}\n")
    assert cake(str(path)) == Cake("null")


@pytest.mark.parametrize(
    "words",
    [
        "{} -f rye --num_eggs 1",
        "-f rye {} --num_eggs 1",
        "-f rye --num_eggs 1 {}",
        "--flour_kind=rye {} --num_eggs=1",
        "--is_vegan {} -f rye --num_eggs 1",
        "-f rye --num_eggs 1 --no_do_bake {}",
    ],
)
def test_the_file_may_stand_anywhere(tmp_path, words):
    path = config_file(tmp_path, "c.json")
    assert cake(*words.format(path).split()) == Cake("rye", 1, None, True, False)


def test_the_value_of_a_flag_is_no_configuration(tmp_path, capsys):
    path = config_file(tmp_path, "c.json")
    assert cake("-f", path) == Cake(path)
    assert cake(f"--flour_kind={path}") == Cake(path)
    assert cake("-f", "rye", "--num_eggs", "3", path).num_eggs == 3
    found = complaints(capsys, "--flower", path)
    assert found[0].startswith("unknown flag --flower")
    assert complaints(capsys, path, path) == [f"unknown flag {path}"]


@dataclass(frozen=True)
class Mirrors:
    """Flags that may be given several times."""

    url: list[str] = repeated("Where it is.", "-u")  # noqa: RUF009 (a field with a factory)


def test_a_repeated_flag_collects_its_values_and_replaces_a_files(tmp_path):
    def urls(*words):
        return parse((Mirrors,), words)[0].url

    assert urls() == []
    assert urls("-u", "a", "--url", "b", "c") == ["a", "b", "c"]
    path = config_file(tmp_path, "c.yaml", {"url": ["a", "b"]})
    assert urls(path) == ["a", "b"]
    assert urls(path, "-u", "c", "-u", "d") == ["c", "d"]
    assert urls(config_file(tmp_path, "d.yaml", {"url": "a"})) == ["a"]


@pytest.mark.parametrize("text", ["{", "[1]", "", "\x00"])
@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
def test_a_file_that_is_no_configuration(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    found = complaints(capsys, str(tmp_path / name), "-f", "rye")
    assert len(found) >= 1
    assert found[0].startswith(f"{tmp_path / name}: ")


def test_a_file_that_is_not_there(tmp_path, capsys):
    (line,) = complaints(capsys, str(tmp_path / "c.yaml"), "-f", "rye")
    assert "c.yaml: cannot be read as a configuration" in line


def test_the_flags_of_groups_in_one_mapping():
    assert flags_of(Cake("rye"), Oven()) == {
        "flour_kind": "rye",
        "num_eggs": 2,
        "sugar": None,
        "is_vegan": False,
        "do_bake": True,
        "heat": 180,
    }


# --- saved configurations ------------------------------------------------------------------------


@dataclass(frozen=True)
class Rehearsal:
    """A flag that says that nothing is done."""

    dry_run: bool = flag(False, "Do nothing.")


def test_a_saved_configuration_has_every_flag_and_its_explanation(tmp_path, monkeypatch):
    monkeypatch.setattr("distillery.cli.config_files.code_commit", lambda: "abc")
    monkeypatch.setattr(
        "distillery.cli.config_files.versions", lambda: {"python": "3.11", "torch": "2"}
    )
    write_text(
        tmp_path / "x.yaml",
        config_text("bake.py", (Cake("no", 3), Mirrors(["a"]), Rehearsal(True)), "x.yaml"),
    )
    assert (
        (tmp_path / "x.yaml").read_text()
        == """\
# Every flag of a run of bake.py. To repeat it, or to change it:
#     python bake.py x.yaml [--flag value …]
# Made with commit abc; python 3.11, torch 2

## A small group of flags.

# What it is made of.
flour_kind: 'no'

# How many eggs.
num_eggs: 3

# Grams.
sugar: null

# Without eggs.
is_vegan: false

# Bake it.
do_bake: true

## Flags that may be given several times.

# Where it is.
url:
- a

## A flag that says that nothing is done.
"""
    )


NASTY = [
    "no",
    "0_50",
    "null",
    "",
    "1e3",
    " a",
    "a: b # c",
    "é\u2028\n'\"",
    "- x",
    "~",
    "{}",
    "a" * 300,
]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("sugar", [1e-05, 1e22, 0.1, 3.0, None])
def test_a_saved_configuration_gives_the_same_flags(tmp_path, text, sugar):
    wanted = Cake(text, 3, sugar, True, False), Mirrors([text, "b"])
    write_text(tmp_path / "x.yaml", config_text("bake.py", wanted))
    assert parse((Cake, Mirrors), [str(tmp_path / "x.yaml")]) == wanted
    standard = yaml.safe_load((tmp_path / "x.yaml").read_text("utf-8"))  # other readers agree
    assert standard == flags_of(*wanted)


def test_a_command_line_is_saved_where_nothing_is_wrong_with_it(tmp_path, capsys):
    path = tmp_path / "new" / "x.yaml"
    words = ["-f", "rye", "--dry_run", "--save_config", str(path)]
    wanted = parse((Cake, Rehearsal), words)
    assert wanted == (Cake("rye"), Rehearsal(True))
    assert parse((Cake, Rehearsal), [str(path)]) == (Cake("rye"), Rehearsal(False))
    path.unlink()
    complaints(capsys, *words[2:], groups=(Cake, Rehearsal))
    assert not path.exists()
    assert complaints(capsys, "-f", "rye", "--save_config", "x.json") == [
        "--save_config x.json: name a file that ends in .yaml"
    ]


def test_only_the_first_process_of_a_launch_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    cake("-f", "rye", "--save_config", str(tmp_path / "x.yaml"))
    assert list(tmp_path.iterdir()) == []
