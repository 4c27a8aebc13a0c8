import json

import pytest
from command_lines import commands_in, parsed

from distillery.whisper.model_card import base_model, header, usage


def made(folder, **arguments):
    """Write the record of a stage that made a model."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"arguments": arguments}), "utf-8")
    return str(folder)


def test_a_model_goes_back_to_one_of_the_hub(tmp_path):
    teacher = made(tmp_path / "teacher", model_name_or_path="openai/whisper-small")
    init = made(tmp_path / "init", teacher_checkpoint=teacher)
    flags = {"model_name_or_path": init, "teacher_model_name_or_path": teacher}
    student = made(tmp_path / "student", **flags)
    assert base_model(student) == base_model(init) == "openai/whisper-small"
    assert base_model("openai/whisper-tiny") == "openai/whisper-tiny"


def test_a_model_from_nowhere_has_no_base(tmp_path):
    (tmp_path / "random").mkdir()
    assert base_model(str(tmp_path / "random")) is None
    round_and_round = made(tmp_path / "round", model_name_or_path=str(tmp_path / "round"))
    assert base_model(round_and_round) is None
    assert header(str(tmp_path / "random")) == {}


@pytest.mark.parametrize("language", ["ja", "japanese", None])
def test_the_way_to_use_a_model_names_its_language(language):
    text = usage("student", language)
    assert text.count('"ja"') == (2 if language else 0)
    assert text.count(" -l ja") == (3 if language else 0)


def test_it_is_converted_by_the_stage_that_converts():
    exports = commands_in(usage("me/student", "ja"))
    assert [script for script, _ in exports] == ["export_model.py"] * 2
    for (script, words), kind in zip(exports, ("ctranslate2", "ggml"), strict=True):
        args, *_ = parsed(script, words)
        assert (args.format, args.model_name_or_path, args.language) == (kind, "me/student", "ja")
        assert f"{words[-1]}/{args.quantizations[0]}" in usage("me/student", "ja")
