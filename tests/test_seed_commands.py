"""The commands of the two projects that this one grew out of, flag by flag.

The lists are theirs, with their placeholders filled in; each must parse to what it says.
"""

import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import tiny
from command_lines import SCRIPTS, complaints, groups_of, parsed
from seed_commands import (
    DISTIL_WHISPER,
    FINE_TUNING_EVENT,
    HINDI,
    KOTOBA,
    KOTOBA_EVALUATION,
    LOCAL_FILES,
)
from transformers import Seq2SeqTrainingArguments

from distillery.cli.flags import flags_of
from distillery.cli.parser import StageParser
from distillery.cli.seed_flags import OTHER_MEANINGS, SEED_FLAGS

ALIASES = {
    "-d": "dataset_name",
    "-m": "model_name_or_path",
    "-l": "language",
    "-t": "task",
    "-b": "per_device_eval_batch_size",
    "-c": "chunk_length_s",
    "-a": "attn_type",
    "-o": "output_dir",
    "--dataset-split": "dataset_split_name",
    "--dataset-config": "dataset_config_name",
    "--column-audio": "audio_column_name",
    "--column-text": "text_column_name",
    "--pretty-table": "pretty_table",
    "--save_dir": "save_dir",
    "--evaluation_strategy": "eval_strategy",
}
# What training has for them; the other stages have them by these names.
TRAINING_ALIASES = {
    "dataset_name": "train_dataset_name",
    "dataset_config_name": "train_dataset_config_name",
}

COMMANDS = [
    (script, text.split())
    for commands in (
        *(KOTOBA, KOTOBA_EVALUATION, DISTIL_WHISPER, LOCAL_FILES),
        *(FINE_TUNING_EVENT, HINDI),
    )
    for script, text in commands.items()
]


def pairs_of(words):
    """Yield (flag, value) as typed; a switch has the value True."""
    for index, word in enumerate(words):
        if "=" in word:
            yield word.split("=")
        elif word.startswith("-"):
            value = words[index + 1] if index + 1 < len(words) else "-"
            yield word, True if value.startswith("-") else value


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_every_flag_means_what_it_says(script, words):
    flags = flags_of(*parsed(script, words))
    for typed, wanted in pairs_of(words):
        name = ALIASES.get(typed, typed.removeprefix("--"))
        found = flags[name if name in flags else TRAINING_ALIASES[name]]
        if isinstance(found, bool):
            assert found is (wanted not in ("False",)), typed
        else:
            assert str(found) == wanted or float(found) == float(wanted), typed


def spellings(script):
    return StageParser(groups_of(script), None)._option_string_actions


# Of their scripts for labelling and filtering, the bilingual ones too: all that were once refused,
# ignored or read otherwise here.
THEIRS = {
    "run_pseudo_labelling": """
        concatenate_audio max_duration_in_seconds preprocessing_only preprocessing_batch_size
        private_dataset overwrite_cache config_name tokenizer_name feature_extractor_name
        processor_name use_fast_tokenizer subfolder token hub_token gradient_accumulation_steps
        num_chunks text_column_name language task preprocessing_num_workers logging_steps report_to
        wandb_project dtype return_timestamps max_label_length""",
    "run_data_filtering": """
        split model skip_filtering skip_logmel is_english_model preprocessing_batch_size
        task_filtering language_filtering text_column_prediction text_column_label logging_steps
        report_to dataloader_num_workers wer_threshold max_label_length min_duration_in_seconds
        max_duration_in_seconds""",
}
OF_ONE_MEANING = {"split", "model"}  # other spellings of ours


@pytest.mark.parametrize("stage", THEIRS)
def test_every_flag_of_theirs_is_taken_or_answered_and_listed(stage):
    taken = {name.lstrip("-").replace("-", "_") for name in spellings(f"{stage}.py")}
    for name in THEIRS[stage].split():
        assert (name in SEED_FLAGS[stage]) != (name in taken), name
        assert name in SEED_FLAGS[stage].keys() | OTHER_MEANINGS[stage].keys() | OF_ONE_MEANING


# All flags of their other scripts, whatever they mean here.
EVALUATION = """
    dataset_name model_name_or_path subfolder model_variant cache_dir assistant_model_name_or_path
    dtype use_pipeline chunk_length_s return_timestamps language task attn_implementation batch_size
    num_beams temperature_fallback logprob_threshold no_speech_threshold condition_on_prev_tokens
    compression_ratio_threshold samples_per_dataset dataset_config_name dataset_split_name
    dataset_cache_dir overwrite_cache preprocessing_num_workers audio_column_name text_column_name
    generation_max_length log_predictions preprocessing_only wandb_project wandb_name wandb_dir
    wandb_job_type save_code_to_wandb streaming max_eval_samples seed use_fast_tokenizer prompt_text
    precise_tok_generation num_batches only_short_form only_long_form"""
TRAINING = """
    model_name_or_path config_name tokenizer_name feature_extractor_name cache_dir
    use_fast_tokenizer model_revision subfolder token attn_implementation attn_type
    train_dataset_name train_dataset_config_name train_dataset_samples eval_dataset_name
    eval_dataset_config_name dataset_cache_dir overwrite_cache preprocessing_num_workers
    preprocessing_batch_size max_train_samples max_eval_samples audio_column_name text_column_name
    eval_text_column_name max_duration_in_seconds min_duration_in_seconds max_label_length
    pad_target_to_multiple_of preprocessing_only train_split_name eval_split_name streaming
    wer_threshold use_pseudo_labels timestamp_probability condition_on_prev_probability
    return_timestamps language task wandb_project wandb_name wandb_dir freeze_encoder freeze_decoder
    freeze_embed_positions dtype save_best_total_limit resume_from_checkpoint adam_epsilon
    dataloader_prefetch_factor dataloader_pin_memory fp16 bf16 optim warmup_ratio
    dataset_name_1 dataset_config_name_2 dataset_kl_1 dataset_task_2"""
ALL_OF_THEIRS = {
    "reazonspeech_manual_downloader": "t target p pool s start_que e end_que health_check",
    "create_student_model": """teacher_checkpoint subfolder encoder_layers decoder_layers
        decoder_layers_numbers save_dir push_to_hub cache_dir""",
    "run_distillation": f"{TRAINING} teacher_model_name_or_path temperature kl_weight",
    "run_finetuning": TRAINING,
    "run_short_form_eval": f"""{EVALUATION} m model d dataset dataset_split dataset_config a attn
        l language t task column_audio column_text b batch c chunk_length o output_dir p punctuator
        s stable_ts translation_model pretty_table max_samples_per_split config_name tokenizer_name
        feature_extractor_name processor_name model_revision token attn_type max_label_length""",
    "run_long_form_eval": EVALUATION,
    "run_speed_eval": """m model a attn t task o output l language n n_trial d duration s
        sampling_rate translation_model pretty_table""",
}
# Those of them that `../shared/seed_flags.md` found to be read otherwise here, or ignored.
READ_OTHERWISE = {
    "run_distillation": "preprocessing_num_workers train_dataset_samples eval_steps streaming",
    "run_short_form_eval": """preprocessing_num_workers dtype chunk_length return_timestamps
        generation_max_length""",
    "run_long_form_eval": """dataloader_num_workers preprocessing_num_workers temperature_fallback
        return_timestamps generation_max_length""",
    "run_speed_eval": "d",
}


def test_every_stage_of_the_seeds_has_a_table_of_their_flags():
    assert SEED_FLAGS.keys() == THEIRS.keys() | ALL_OF_THEIRS.keys()
    assert {f"{stage}.py" for stage in SEED_FLAGS} <= set(SCRIPTS)


@pytest.mark.parametrize("stage", ALL_OF_THEIRS)
def test_every_flag_of_their_other_scripts_is_taken_or_answered(stage):
    taken = {name.lstrip("-").replace("-", "_") for name in spellings(f"{stage}.py")}
    names = ALL_OF_THEIRS[stage].split()
    assert [n for n in names if (n in taken) == (n in SEED_FLAGS[stage])] == []
    assert {*READ_OTHERWISE.get(stage, "").split()} <= OTHER_MEANINGS[stage].keys()


@pytest.mark.parametrize("stage", ["run_distillation", "run_finetuning"])
def test_every_setting_of_the_trainer_is_taken_or_answered(stage):
    taken = {name.lstrip("-").replace("-", "_") for name in spellings(f"{stage}.py")}
    settings = {each.name for each in fields(Seq2SeqTrainingArguments)}
    assert settings - taken - SEED_FLAGS[stage].keys() == set()


@pytest.mark.parametrize("stage", SEED_FLAGS)
def test_every_flag_that_is_not_taken_gets_its_sentence(capsys, monkeypatch, stage):
    monkeypatch.setattr("sys.argv", [f"{stage}.py"])
    names = SEED_FLAGS[stage]
    if not names:
        return
    typed = [f"{'--' if len(name) > 1 else '-'}{name}" for name in names]
    told = complaints(capsys, *typed, groups=groups_of(f"{stage}.py"))
    answers = [line for line in told if line.startswith("unknown flag ")]
    assert answers == [
        f"unknown flag {flag}: {answer}" for flag, answer in zip(typed, names.values(), strict=True)
    ]


@pytest.mark.parametrize("stage", OTHER_MEANINGS)
def test_every_flag_of_another_meaning_exists(stage):
    known = spellings(f"{stage}.py")
    known = {name.replace("-", "_") for name in known}
    for name, here in OTHER_MEANINGS[stage].items():
        typed = f"__{name}" if len(name) > 1 else f"_{name}"
        told = {flag.replace("-", "_") for flag in re.findall(r"--[a-z_]+", here)}
        assert {typed, *told} <= known, name


@pytest.mark.parametrize("stage", SEED_FLAGS)
def test_no_flag_that_exists_is_explained_away(stage):
    known = spellings(f"{stage}.py")
    names = {name.lstrip("-").replace("-", "_") for name in known}
    assert not names & SEED_FLAGS[stage].keys()
    for name, advice in SEED_FLAGS[stage].items():
        assert set(re.findall(r"--[a-z_]+", advice)) <= known.keys(), name
        assert all((tiny.REPOSITORY / s).is_file() for s in re.findall(r"\w+\.py", advice)), name


@pytest.mark.parametrize(
    "name", ["--assistant_model_name_or_path", "--assistant-model-name-or-path"]
)
def test_a_flag_of_the_seeds_gets_its_replacement(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setattr("sys.argv", ["./run_long_form_eval.py"])
    groups = groups_of("run_long_form_eval.py")
    words = ["-m", "a", "-d", "b", name, "c"]
    assert complaints(capsys, *words, groups=groups) == [
        f"unknown flag {name}: use --assistant_model"
    ]
    (tmp_path / "c.yaml").write_text("assistant_model_name_or_path: c\n")
    assert complaints(capsys, *words[:4], str(tmp_path / "c.yaml"), groups=groups) == [
        f"{tmp_path / 'c.yaml'}: unknown key 'assistant_model_name_or_path': use --assistant_model"
    ]


def test_joined_datasets_are_what_the_command_meant():
    words = DISTIL_WHISPER["run_distillation.py"].split()
    train_data = parsed("run_distillation.py", words)[2]
    found = [(str(s), s.text_column, s.samples) for s in train_data.train_specs()]
    assert found == [
        ("../cv_13_0_hi_pseudo_labelled hi train", "sentence", 10.0),
        ("../cv_13_0_hi_pseudo_labelled hi validation", "sentence", 5.0),
    ]
    (evaluated,) = train_data.eval_specs()
    assert str(evaluated) == "../cv_13_0_hi_pseudo_labelled hi test"
    words = DISTIL_WHISPER["run_pseudo_labelling.py"].split()
    labelled = parsed("run_pseudo_labelling.py", words)[1]
    assert [spec.split for spec in labelled.specs()] == ["train", "validation", "test"]


def test_a_configuration_file_does_for_a_whole_command(tmp_path):
    words = KOTOBA["create_student_model.py"].split()
    text = "".join(f"{name.removeprefix('--')}: {value}\n" for name, value in pairs_of(words))
    (tmp_path / "create_student_model.yaml").write_text(text)
    file = str(tmp_path / "create_student_model.yaml")
    assert parsed("create_student_model.py", [file]) == parsed("create_student_model.py", words)


EXAMPLES = sorted((tiny.REPOSITORY / "scripts" / "configs").glob("*.yaml"))


def test_every_stage_has_an_example_configuration():
    assert {path.stem for path in EXAMPLES} == {Path(script).stem for script in SCRIPTS}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_configuration_fits_its_stage(path):
    script = f"{path.stem}.py"
    parsed(script, [str(path)])
    assert f"{script} {path.relative_to(tiny.REPOSITORY)}\n" in path.read_text("utf-8")


def test_an_example_may_join_datasets_over_several_lines():
    (path,) = (path for path in EXAMPLES if path.stem == "run_short_form_eval")
    names = [s.name for s in parsed(f"{path.stem}.py", [str(path)])[1].specs()]
    sets = "common_voice_8_0", "jsut_basic5000", "reazonspeech_test"
    assert names == [f"japanese-asr/ja_asr.{name}" for name in sets]


# Where an example says that it is kotoba-whisper's, it is: but for what the recipes change too.
KOTOBA_CONFIGS = [s for s in KOTOBA if s not in ("run_short_form_eval.py",)]
OWN_CHOICES = {
    "dataset_config_name", "dataset_name", "hub_model_id", "id_column_name", "output_dir",
    "overwrite_output_dir", "per_device_eval_batch_size", "push_to_hub", "save_dir",
    "dataloader_num_workers", "preprocessing_num_workers", "wandb_project", "logging_steps",
    "model_name_or_path", "train_dataset_name", "train_dataset_config_name", "dataset_dir_suffix",
    "dtype",
}  # fmt: skip


# What kotoba-whisper's filter does without being told, and ours with these flags.
TOLD = {
    "run_data_filtering.py": {
        "normalizer": "kotoba",
        "strict_limits": True,
        "min_duration_in_seconds": 0.0,
        "max_duration_in_seconds": 30.0,
    }
}


@pytest.mark.parametrize("script", KOTOBA_CONFIGS)
def test_an_example_has_the_published_settings(script):
    path = tiny.REPOSITORY / "scripts" / "configs" / Path(script).with_suffix(".yaml")
    example = flags_of(*parsed(script, [str(path)]))
    published = {**flags_of(*parsed(script, KOTOBA[script].split())), **TOLD.get(script, {})}
    differ = {name for name in example if example[name] != published[name]}
    assert differ <= OWN_CHOICES


# The recipes: what they choose beside that, and what is told that goes without saying there.
RECIPES = {
    "kotoba_whisper_v1.0": KOTOBA,
    "kotoba_whisper_v2.0": KOTOBA,
    "distil_whisper_large_v2_hi": DISTIL_WHISPER,
}
CHOICES_OF_RECIPES = {
    *OWN_CHOICES,
    *("streaming", "eval_dataset_name", "report_to"),
    "language",  # distil-whisper's command leaves it to the model's configuration
}
TOLD_BY_RECIPES = {
    **TOLD,
    "run_pseudo_labelling.py": {"concatenate_audio": False},
}


def commands_of(recipe, folder, monkeypatch):
    """Return what a recipe would start, by script: its dry run notes it for the plan."""
    (folder / "python").write_text(f'#!/usr/bin/env bash\ncp "$2" {folder}/noted\n')
    (folder / "python").chmod(0o755)
    for name, value in {"VENV": "", "DRY_RUN": "1", "WORK": str(folder / "work")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    subprocess.run(["bash", f"scripts/{recipe}.sh"], cwd=tiny.REPOSITORY, check=True)
    end = tiny.load_script("scripts/recipe_plan.py").WORD_END
    lines = (folder / "noted").read_text("utf-8").splitlines()
    commands = [line.split(end)[1:-1] for line in lines]
    return {script: words for script, *words in commands}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_published_settings(recipe, tmp_path, monkeypatch):
    commands = commands_of(recipe, tmp_path, monkeypatch)
    compared = RECIPES[recipe].keys() & commands.keys() - {"run_short_form_eval.py"}
    assert "run_pseudo_labelling.py" in compared and "run_distillation.py" in compared
    for script in compared:
        published = flags_of(*parsed(script, RECIPES[recipe][script].split()))
        published |= TOLD_BY_RECIPES.get(script, {})
        started = flags_of(*parsed(script, commands[script]))
        differ = {name for name in started if started[name] != published[name]}
        assert differ <= CHOICES_OF_RECIPES, script
