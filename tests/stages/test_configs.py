"""Every stage's configuration file and dry run: what is written, repeated, foretold, left alone."""

import shutil

import pytest
from launching import launch
from stage_runs import (
    read_manifest,
    record,
    run,
    snapshot,
    split_rows,
    talkative_model_folder,
    write_manifest,
)
from tiny import load_script, tone_manifest
from training_runs import assert_same_run, training_log, weights

from distillery.cli.flags import parse
from distillery.evaluation import results
from distillery.storage.files import read_json, write_json

LABELLING, FILTERING = "run_pseudo_labelling.py", "run_data_filtering.py"
STUDENT = "create_student_model.py"
DISTILLATION, FINETUNING = "run_distillation.py", "run_finetuning.py"
SHORT, LONG = "run_short_form_eval.py", "run_long_form_eval.py"

TRAINING = "--language ja --max_steps 2 --save_steps 1 --logging_steps 1"
COMMANDS = {  # in the order in which they hand each other their output
    LABELLING: "-m teacher -d clips.jsonl --language ja --return_timestamps --max_label_length 20 "
    "--decode_token_ids False -o labelled",
    FILTERING: "-d labelled --keep_truncated -o filtered",
    STUDENT: "-m teacher --decoder_layers 1 -o student",
    DISTILLATION: "-m student --teacher teacher -d filtered --freeze_encoder "
    f"{TRAINING} -o distilled",
    FINETUNING: f"-m student -d clips.jsonl {TRAINING} -o finetuned",
    SHORT: "-m student -d clips.jsonl --language ja --generation_max_length 20 -o short",
    LONG: "-m student -d clips.jsonl --language ja --generation_max_length 20 -o long",
}


def words_of(script):
    return COMMANDS[script].split()


def folder_of(script, root):
    return root / words_of(script)[-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Run the stages one after the other in a folder, each behind a dry run of its own."""
    root = tmp_path_factory.mktemp("stages")
    talkative_model_folder(root / "teacher")
    tone_manifest(root / "clips.jsonl", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for script, words in COMMANDS.items():
            before = snapshot(root)
            run(script, *words.split(), "--dry_run")
            assert snapshot(root) == before, script
            run(script, *words.split())
    return root


@pytest.fixture
def inside(root, monkeypatch):
    """Stand in the folder that the commands are about."""
    monkeypatch.chdir(root)
    return root


def foretold(capsys, script, *more):
    """Return what a dry run says, by subject."""
    run(script, *words_of(script), *more, "--dry_run")
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{script.removesuffix('.py')}, dry run: nothing is written"
    return dict(line.split(maxsplit=1) for line in lines)


@pytest.mark.parametrize("script", COMMANDS)
def test_the_configuration_beside_the_output_is_the_command(inside, script):
    groups = load_script(script).GROUPS
    path = folder_of(script, inside) / "config.yaml"
    assert parse(groups, [str(path)]) == parse(groups, words_of(script))
    assert f"run of {script}." in path.read_text("utf-8")


# --- runs from a configuration -------------------------------------------------------------------


def assert_same_results(script, one, other):
    if script in (LABELLING, FILTERING):
        assert split_rows(one) == split_rows(other)
    elif script == STUDENT:
        assert weights(one).keys() == weights(other).keys()
        assert all((weights(one)[name] == weights(other)[name]).all() for name in weights(one))
    elif script in (DISTILLATION, FINETUNING):
        assert_same_run(one, other)
    else:
        names = "cer_norm", "wer_raw", "num_rows", "decoding", "dataset_fingerprint"
        found = [results.read_rows(f / "metric.ja.transcribe.jsonl")[-1] for f in (one, other)]
        assert [found[0][name] for name in names] == [found[1][name] for name in names]


@pytest.mark.parametrize("script", [s for s in COMMANDS if s not in (FINETUNING, STUDENT)])
def test_a_configuration_repeats_the_run(inside, script, tmp_path):
    folder = folder_of(script, inside)
    run(script, "--output_dir", tmp_path / "again", folder / "config.yaml")
    assert_same_results(script, tmp_path / "again", folder)


@pytest.mark.parametrize("script", [FINETUNING, STUDENT])
def test_a_configuration_repeats_the_run_as_users_start_it(inside, script, tmp_path):
    folder = folder_of(script, inside)
    config = (folder / "config.yaml").read_text("utf-8")
    for name in ("teacher", "student", "clips.jsonl"):  # this time from another place
        config = config.replace(f": {name}\n", f": {inside / name}\n")
    (tmp_path / "mine.yaml").write_text(config, "utf-8")
    flags = ["--output_dir", tmp_path / "again", "--save_config", tmp_path / "saved.yaml"]
    launch(script, tmp_path / "mine.yaml", *flags)
    assert_same_results(script, tmp_path / "again", folder)
    groups = load_script(script).GROUPS
    saved = [parse(groups, [str(tmp_path / name)]) for name in ("saved.yaml", "again/config.yaml")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("script", COMMANDS)
def test_a_second_start_by_the_configuration_does_nothing(inside, script):
    before = snapshot(inside)
    run(script, folder_of(script, inside) / "config.yaml")
    assert snapshot(inside) == before


def test_an_evaluations_folder_has_the_newest_runs_configuration(inside, tmp_path):
    for script in (SHORT, LONG):
        shutil.copytree(folder_of(script, inside), tmp_path / "eval", dirs_exist_ok=True)
        run(script, *words_of(script)[:-1], tmp_path / "eval", "--max_samples", 2)
        config = (tmp_path / "eval" / "config.yaml").read_text("utf-8")
        assert f"run of {script}." in config
        assert "\nmax_samples: 2\n" in config


def test_a_run_that_goes_on_leaves_the_flags_that_it_went_on_with(inside, tmp_path):
    again = shutil.copytree(folder_of(DISTILLATION, inside), tmp_path / "again")
    write_json(again / "run.json", {**record(again), "status": "started"})
    run(DISTILLATION, again / "config.yaml", "-o", again, "--save_total_limit", 1)
    assert "\nsave_total_limit: 1\n" in (again / "config.yaml").read_text("utf-8")


# --- dry runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", COMMANDS)
def test_a_dry_run_of_a_complete_run_says_so_and_writes_nothing(inside, script, capsys):
    before = snapshot(inside)
    resume = foretold(capsys, script)["resume"]
    if script in (SHORT, LONG):
        assert resume == "1 of 1 evaluations were made before"
    else:
        assert resume == "complete: nothing to do"
    assert snapshot(inside) == before


@pytest.mark.parametrize("script", COMMANDS)
def test_a_dry_run_into_a_new_folder(inside, script, tmp_path, capsys):
    told = foretold(capsys, script, "-o", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    if script != STUDENT:
        assert "12 rows, 0.2 min of audio" in told["data"]
    assert "are free" in told["disk"]
    if script not in (SHORT, LONG):
        assert told["resume"] == "nothing is there of an earlier run"


@pytest.mark.parametrize("script", [s for s in COMMANDS if s != FILTERING])
def test_a_dry_run_reads_no_weights(inside, script, tmp_path, capsys, monkeypatch):
    for name in ("teacher", "student"):
        shutil.copytree(inside / name, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
    shutil.copytree(inside / "filtered", tmp_path / "filtered")
    for path in inside.glob("clips*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "M parameters" in foretold(capsys, script, "-o", "new")["model"]


def test_a_dry_run_tells_what_a_killed_labelling_has_done(inside, tmp_path, capsys, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    monkeypatch.setattr(load_script(LABELLING), "_finish", killed)
    with pytest.raises(Killed):
        run(LABELLING, *words_of(LABELLING), "-o", tmp_path / "labelled")
    told = foretold(capsys, LABELLING, "-o", tmp_path / "labelled")
    assert told["resume"] == "goes on with the run that is there: 12 rows are labelled"
    assert told["steps"] == "1 batches of 16 per process; processes: 1"


def test_a_dry_run_tells_from_which_checkpoint_training_goes_on(inside, tmp_path, capsys):
    again = shutil.copytree(folder_of(FINETUNING, inside), tmp_path / "again")
    write_json(again / "run.json", {**read_json(again / "run.json"), "status": "started"})
    shutil.rmtree(again / "checkpoint-2")
    resume = "goes on with the run that is there: from checkpoint-1"
    assert foretold(capsys, FINETUNING, "-o", again)["resume"] == resume
    told = foretold(capsys, FINETUNING, "-o", again, "--overwrite_output_dir")
    assert told["resume"] == "--overwrite_output_dir would throw away the run that is there"
    assert len(training_log(again)) == 2


@pytest.mark.parametrize("script", [LABELLING, FILTERING, DISTILLATION, FINETUNING])
def test_a_dry_run_is_refused_where_the_run_would_be(inside, script):
    with pytest.raises(ValueError, match="--seed: 42 then, 7 now"):
        run(script, *words_of(script), "--seed", 7, "--dry_run")


def test_a_dry_run_refuses_what_cannot_be_learnt_or_told_apart(inside, tmp_path):
    rows = [
        {"id": row["id"], "audio": row["audio"]} for row in read_manifest(inside / "clips.jsonl")
    ]
    write_manifest(inside / "bare.jsonl", rows)
    with pytest.raises(ValueError, match=r"--text_column_name: dataset bare\.jsonl has no column"):
        run(FINETUNING, *words_of(FINETUNING), "-d", "bare.jsonl", "-o", tmp_path, "--dry_run")
    for script, name in ((LABELLING, "clips.jsonl"), (FILTERING, "labelled")):
        words = [*words_of(script), "-d", f"{name}+{name}", "-o", tmp_path, "--dry_run"]
        with pytest.raises(ValueError, match="two datasets would both be written as split 'train'"):
            run(script, *words)


def test_a_wrong_dataset_is_told_before_any_model(inside, tmp_path):
    for more in ([], ["--dry_run"]):
        with pytest.raises(FileNotFoundError, match=r"dataset gone\.jsonl: there is no such file"):
            run(FILTERING, "-d", "gone.jsonl", "-o", tmp_path, "--overwrite_output_dir", *more)


def test_a_dry_run_finds_what_does_not_fit_the_model(inside):
    with pytest.raises(ValueError, match="--max_label_length 4000 is more than"):
        run(LABELLING, *words_of(LABELLING), "--max_label_length", 4000, "--dry_run")
    with pytest.raises(ValueError, match="a student of 9 layers"):
        run(STUDENT, "-m", "teacher", "--decoder_layers", 9, "-o", "new", "--dry_run")
    with pytest.raises(ValueError, match="no column 'spoken'"):
        run(SHORT, *words_of(SHORT), "--audio_column_name", "spoken", "--dry_run")


def test_a_forecast_of_disk_is_what_is_written(inside, capsys, tmp_path):
    told = foretold(capsys, DISTILLATION, "-o", tmp_path / "new")["disk"]
    folder = folder_of(DISTILLATION, inside)
    files = [*folder.rglob("model.safetensors"), *folder.rglob("optimizer.pt")]
    written = sum(path.stat().st_size for path in files)
    kind = {"kB": 1e3, "MB": 1e6}
    amount, unit = told.split()[1:3]
    assert float(amount) * kind[unit] == pytest.approx(written, rel=0.05)
