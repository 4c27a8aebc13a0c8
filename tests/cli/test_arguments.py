import subprocess
import sys
from dataclasses import fields

import command_lines
import pytest
import tiny
from command_lines import SCRIPTS, complaints, groups_of
from launching import environment

from distillery.cli.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.evaluation_arguments import PostprocessingArguments
from distillery.cli.flags import parse, plus_list
from distillery.cli.parser import StageParser
from distillery.cli.train_data_arguments import TrainDataArguments
from distillery.cli.training_arguments import TrainingArguments
from distillery.data.specs import DatasetSpec
from distillery.whisper.pipelines.punctuation import DEFAULT_MODEL


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_long_flag_and_alias_takes_hyphens_and_underscores(script):
    parser = StageParser(groups_of(script), None)
    spellings = parser._option_string_actions
    long = {spelling[2:]: action for spelling, action in spellings.items() if spelling[1] == "-"}
    assert long
    for name, action in long.items():
        for typed in (name.replace("_", "-"), name.replace("-", "_")):
            known, value = parser.known_spelling(f"--{typed}=a-b_c=d").split("=", 1)
            assert spellings[known] is action
            assert value == "a-b_c=d"


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
        (
            ModelArguments,
            "-m a --dtype int8",
            "--dtype must be one of auto, float32, float16, bfloat16",
        ),
        (ModelArguments, "-m a -a flash", "--attn_type must be one of eager, sdpa"),
        (DecodingArguments, "-l klingon", "--language: Whisper has no language 'klingon'"),
        (DecodingArguments, "-t sing", "--task must be one of transcribe, translate"),
        (DecodingArguments, "-l en,ja", "--language takes one value, got 'en,ja': run the stage"),
        (DecodingArguments, "-t transcribe,translate", "--task takes one value, got 'transcribe,"),
        (OutputArguments, "-o a --private_dataset False", "False: to publish, give --hub_public"),
        (OutputArguments, "-o a --hub_private_repo --hub_public", "give one of them"),
        (DecodingArguments, "--num_beams 0", "--generation_num_beams must be >= 1"),
        (RunArguments, "--seed -1", "--seed must be >= 0"),
        (TrainDataArguments, "-d a+b --train_dataset_samples 1+x", "--train_dataset_samples"),
        (TrainDataArguments, "-d a+b --train_dataset_samples 1+0", "above 0, got 0"),
        (
            TrainDataArguments,
            "-d a --eval_dataset_name b --eval_dataset_samples 0",
            "eval_dataset_s",
        ),
        (TrainDataArguments, "-d a --eval_dataset_name b+c+d --eval_dataset_samples 1+2", "are 3"),
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
        DatasetSpec("a", "x", "train", text_column="t", max_rows=3, max_bad_fraction=None),
        DatasetSpec("b", "x", "test", text_column="u", max_rows=3, max_bad_fraction=None),
    ]


def test_training_sets_have_weights_and_evaluation_sets_their_own_columns():
    words = "-d a+b --train_dataset_samples 10+5.5 --text_column_name t --eval_dataset_name e"
    (args,) = parse((TrainDataArguments,), [*words.split(), "--eval_text_column_name", "u"])
    assert [spec.samples for spec in args.train_specs()] == [10.0, 5.5]
    assert [spec.text_column for spec in args.train_specs()] == ["t", "t"]
    assert args.eval_specs() == [DatasetSpec("e", text_column="u", max_bad_fraction=None)]
    assert parse((TrainDataArguments,), ["-d", "a"])[0].eval_specs() == []


def test_a_path_may_hold_a_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c++").mkdir()
    assert plus_list("c++") == ["c++"]
    assert plus_list("a+b") == ["a", "b"]
    assert plus_list(None) == plus_list("") == []
    (args,) = parse((DataArguments,), ["-d", str(tmp_path / "c++")])
    assert [spec.name for spec in args.specs()] == [str(tmp_path / "c++")]


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
    ("words", "punctuator", "stable_ts", "told"),
    [
        ([], None, False, []),
        (["-p"], DEFAULT_MODEL, False, ["punctuator"]),
        (["-p", "rules", "-s"], "rules", True, ["punctuator", "stable-ts"]),
        (["--punctuator", "-s"], DEFAULT_MODEL, True, ["punctuator", "stable-ts"]),
        (["--punctuator", "a/b", "--stable-ts"], "a/b", True, ["punctuator", "stable-ts"]),
        (["--stable_ts"], None, True, ["stable-ts"]),
        (["--stable_ts", "False"], None, False, []),
    ],
)
def test_postprocessing(words, punctuator, stable_ts, told):
    (found,) = parse((PostprocessingArguments,), words)
    assert found == PostprocessingArguments(punctuator, stable_ts)
    assert found.identity() == {"postprocessing": told, "punctuator": punctuator}


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


HEAVY = {"torch", "transformers", "datasets", "accelerate", "pandas", "pyarrow", "scipy"}


def parses_first(script):
    """Tell whether a stage parses its flags before it imports what is heavy."""
    return "ARGUMENTS = parse(" in command_lines.text_of(script)


@pytest.mark.parametrize("script", filter(parses_first, SCRIPTS))
def test_help_imports_nothing_heavy(script):
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(tiny.REPOSITORY / script)!r}, run_name='__main__')\n"
        "except SystemExit as stopped:\n"
        "    assert stopped.code == 0\n"
        "    sys.stderr.write(' '.join(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert "usage: " in done.stdout
    assert "yaml" in done.stderr.split()
    assert not HEAVY & set(done.stderr.split())


def test_help_has_a_heading_for_each_group_and_required_flags_first(capsys):
    with pytest.raises(SystemExit):
        parse((ModelArguments, TrainingArguments), ["--help"])
    out = capsys.readouterr().out
    assert out.index("required:") < out.index("--model_name_or_path") < out.index("Model:")
    assert out.index("Model:") < out.index("--dtype") < out.index("Training: updates")
    assert "None" not in out
    assert "(default: auto)" in out
    after = out[out.index("--no_do_train") :]
    assert after.split()[1:6] == ["The", "same", "as", "--do_train", "False."]
