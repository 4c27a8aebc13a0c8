import json
from dataclasses import dataclass, fields

import pytest
import tiny

from distillery.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
    TrainDataArguments,
    TrainingArguments,
    flag,
    flags_of,
    parse,
    plus_list,
    required,
)
from distillery.data import DatasetSpec

SCRIPTS = (
    "run_pseudo_labelling.py",
    "run_data_filtering.py",
    "create_student_model.py",
    "run_distillation.py",
    "run_finetuning.py",
    "run_short_form_eval.py",
    "run_long_form_eval.py",
)


def groups_of(path):
    script = tiny.load_script(path)
    return getattr(script, "GROUPS", None) or (script.StudentArguments,)


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


def complaints(capsys, *words, groups=(Cake, Oven)):
    """Return the lines below the first that a wrong command line prints."""
    with pytest.raises(SystemExit) as stopped:
        parse(groups, words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = err.splitlines()
    assert first.endswith("wrong arguments (--help explains them all):")
    return [line.strip() for line in lines]


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


def test_an_unknown_flag_without_a_neighbour(capsys):
    assert complaints(capsys, "-f", "rye", "--zzzzzz") == ["unknown flag --zzzzzz"]
    assert complaints(capsys, "-f", "rye", "loose") == ["unknown flag loose"]


def test_no_flag_may_be_shortened(capsys):
    (line,) = complaints(capsys, "-f", "rye", "--num_egg", "3")
    assert line.startswith("unknown flag --num_egg ")


def test_a_flag_without_its_value_is_named(capsys):
    assert complaints(capsys, "-f") == [
        "argument --flour_kind/--flour-kind/-f: expected one argument"
    ]


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
    assert found[0] == "--num_eggs/--num-eggs/--eggs: invalid int value: 'many'"
    assert found[1] == f"{path}: sugar must be one value, got [1]"
    assert found[2] == f"{path}: unknown key 'flower_kind' (did you mean flour_kind?)"
    assert found[3].startswith("--do_bake/--do-bake: ")
    assert found[4:] == [
        "unknown flag --heet (did you mean --heat?)",
        "--flour_kind is required",
    ]


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


# --- the stages' own flags -----------------------------------------------------------------------


def test_one_letter_flags():
    words = "-m whisper -d corpus -l ja -t translate -b 4 -o out -a flash_attn_2"
    groups = groups_of("run_pseudo_labelling.py")
    model, data, decoding, own, output, _ = parse(groups, words.split())
    assert (model.model_name_or_path, model.attn_type) == ("whisper", "flash_attn_2")
    assert data.dataset_name == "corpus"
    assert (decoding.language, decoding.task) == ("ja", "translate")
    assert own.per_device_eval_batch_size == 4
    assert output.output_dir == "out"


@pytest.mark.parametrize(
    ("words", "wanted"), [([], False), (["--streaming"], True), (["--streaming", "False"], False)]
)
def test_streaming(words, wanted):
    assert parse((DataArguments,), ["-d", "x", *words])[0].streaming is wanted


@pytest.mark.parametrize(
    ("group", "words", "problem"),
    [
        (DataArguments, "-d a+b --dataset_split_name x+y+z", "--dataset_name names 2"),
        (DataArguments, "-d a --max_samples 0", "--max_samples must be >= 1, got 0"),
        (DataArguments, "-d a --max_bad_fraction 2", "between 0 and 1, got 2.0"),
        (ModelArguments, "-m a --dtype int8", "--dtype must be one of float32, float16, bfloat16"),
        (ModelArguments, "-m a -a flash", "--attn_type must be one of eager, sdpa"),
        (DecodingArguments, "-l klingon", "--language: Whisper has no language 'klingon'"),
        (DecodingArguments, "-t sing", "--task must be one of transcribe, translate"),
        (DecodingArguments, "--num_beams 0", "--generation_num_beams must be >= 1"),
        (RunArguments, "--seed -1", "--seed must be >= 0"),
        (TrainDataArguments, "-d a+b --train_dataset_samples 1+x", "--train_dataset_samples"),
        (TrainDataArguments, "-d a+b --train_dataset_samples 1+0", "above 0, got 0"),
        (TrainDataArguments, "-d a --eval_dataset_name a+b+c --eval_split_name x+y", "there are 3"),
        (TrainingArguments, "--max_steps 0", "--max_steps must be >= 1, or -1"),
        (TrainingArguments, "--metric_for_best_model cer", "needs --predict_with_generate"),
        (TrainingArguments, "--metric_for_best_model f1", "loss, wer, cer"),
        (TrainingArguments, "--timestamp_probability 1.5", "between 0 and 1"),
        (TrainingArguments, "--save_total_limit 0", "--save_total_limit must be >= 1"),
    ],
)
def test_wrong_values_are_named(capsys, group, words, problem):
    (line,) = complaints(capsys, *words.split(), groups=(group,))
    assert problem in line


def test_the_output_cannot_be_a_file(tmp_path, capsys):
    (tmp_path / "x").write_text("")
    (line,) = complaints(capsys, "-o", str(tmp_path / "x"), groups=(OutputArguments,))
    assert line.endswith("is a file: name a folder")


def test_datasets_are_joined_with_plus():
    words = "-d a+b --dataset_config_name x --dataset_split_name train+test --max_samples 3"
    (args,) = parse((DataArguments,), [*words.split(), "--text_column_name", "t+u"])
    assert args.specs() == [
        DatasetSpec("a", "x", "train", text_column="t", max_rows=3),
        DatasetSpec("b", "x", "test", text_column="u", max_rows=3),
    ]


def test_training_sets_have_weights_and_evaluation_sets_their_own_columns():
    words = "-d a+b --train_dataset_samples 10+5.5 --text_column_name t --eval_dataset_name e"
    (args,) = parse((TrainDataArguments,), [*words.split(), "--eval_text_column_name", "u"])
    assert [spec.samples for spec in args.train_specs()] == [10.0, 5.5]
    assert [spec.text_column for spec in args.train_specs()] == ["t", "t"]
    assert args.eval_specs() == [DatasetSpec("e", text_column="u")]
    assert parse((TrainDataArguments,), ["-d", "a"])[0].eval_specs() == []


def test_a_path_may_hold_a_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c++").mkdir()
    assert plus_list("c++") == ["c++"]
    assert plus_list("a+b") == ["a", "b"]
    assert plus_list(None) == plus_list("") == []
    (args,) = parse((DataArguments,), ["-d", str(tmp_path / "c++")])
    assert [spec.name for spec in args.specs()] == [str(tmp_path / "c++")]


def test_the_flags_of_groups_in_one_mapping():
    assert flags_of(Cake("rye"), Oven()) == {
        "flour_kind": "rye",
        "num_eggs": 2,
        "sugar": None,
        "is_vegan": False,
        "do_bake": True,
        "heat": 180,
    }


@pytest.mark.parametrize("path", SCRIPTS)
def test_help_explains_every_flag(path, capsys):
    groups = groups_of(path)
    with pytest.raises(SystemExit) as stopped:
        parse(groups, ["--help"], description=tiny.load_script(path).__doc__)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert tiny.load_script(path).__doc__.strip() in out
    shown = "".join(out.split())
    for group in groups:
        for each in fields(group):
            assert len(each.metadata["help"]) > 10, each.name
            assert f"--{each.name}" in shown
            assert "".join(each.metadata["help"].split()) in shown


@pytest.mark.parametrize(
    ("group", "words"), [(DataArguments, ["-d", "a"]), (TrainDataArguments, ["-d", "a"])]
)
def test_how_recordings_are_cut(capsys, group, words):
    (data,) = parse((group,), [*words, "--segment", "vad", "--segment_max_s", "20"])
    specs = data.specs() if group is DataArguments else data.train_specs()
    assert [(spec.segment, spec.segment_max_s) for spec in specs] == [("vad", 20.0)]
    wrong = [*words, "--segment", "loudness", "--segment_max_s", "0"]
    assert complaints(capsys, *wrong, groups=(group,)) == [
        "--segment must be one of none, cues, vad; got 'loudness'",
        "--segment_max_s must be >= 1, got 0.0",
    ]
