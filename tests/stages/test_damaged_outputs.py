"""Damaged files are named, and they alone are made again; files of the user's stay."""

import json
import shutil

import pytest
from stage_runs import (
    read_manifest,
    record,
    run,
    snapshot,
    split_rows,
    talkative_model_folder,
    write_manifest,
)
from tiny import tone_manifest
from training_runs import FINETUNING, manifest, model_folder

from distillery.labelling.labeller import Labeller
from distillery.storage.runs import Run

LABELLING, FILTERING = "run_pseudo_labelling.py", "run_data_filtering.py"
INIT = "create_student_model.py"
SHORT_FORM, LONG_FORM = "run_short_form_eval.py", "run_long_form_eval.py"
PIPELINE = "scripts/push_pipeline.py"
SPEED = "run_speed_eval.py"
NUM_CLIPS, PER_SHARD = 6, 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed(before, folder):
    after = snapshot(folder)
    return sorted(name for name in after if after[name] != before.get(name))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A labelled and a filtered dataset, and the commands that made them."""
    root = tmp_path_factory.mktemp("damaged")
    teacher = talkative_model_folder(root / "teacher")
    clips = tone_manifest(root / "clips" / "clips.jsonl", NUM_CLIPS)
    label = ["-m", teacher, "-l", "ja", "--max_label_length", 20, "-b", 2, "-d", clips]
    label += ["--rows_per_shard", PER_SHARD]
    run(LABELLING, *label, "-o", root / "labelled")
    filter_ = ["-d", root / "labelled", "--rows_per_shard", PER_SHARD, "--keep_truncated"]
    run(FILTERING, *filter_, "-o", root / "filtered")
    return {LABELLING: (root / "labelled", label), FILTERING: (root / "filtered", filter_)}


@pytest.fixture
def made(pipeline, tmp_path):
    """Return a function that copies what a stage made, and gives the command."""

    def copy(script):
        folder, flags = pipeline[script]
        out = tmp_path / folder.name
        shutil.copytree(folder, out, symlinks=True)
        return out, [*flags, "-o", out]

    return copy


@pytest.fixture
def labelled_ids(monkeypatch):
    """The ids of the clips that the teacher is asked for, as it is asked."""
    ids, label = [], Labeller.label

    def watched(self, batches):
        for clip in label(self, batches):
            ids.append(clip.row["id"])
            yield clip

    monkeypatch.setattr(Labeller, "label", watched)
    return ids


def assert_same_rows(rows, others):
    """In other batches, the last digits of a log-probability may differ."""
    for row, other in zip(rows, others, strict=True):
        if "avg_logprob" in row:
            assert row.pop("avg_logprob") == pytest.approx(other["avg_logprob"], abs=1e-4)
            other = {name: value for name, value in other.items() if name != "avg_logprob"}
        assert row == other


# --- datasets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [LABELLING, FILTERING])
@pytest.mark.parametrize(("damage", "flags"), [(cut, []), (flip, ["--verify"])])
def test_one_damaged_file_of_a_dataset_is_made_again_alone(
    made, script, damage, flags, labelled_ids, capsys
):
    folder, command = made(script)
    rows = split_rows(folder)
    name = f"default/train-00001-of-0000{NUM_CLIPS // PER_SHARD}.parquet"
    before = snapshot(folder)
    damage(folder / name)
    capsys.readouterr()
    run(script, *command, *flags)
    assert f"{name} is damaged: " in capsys.readouterr().err
    again = set(changed(before, folder))
    assert {path for path in again if path.endswith(".parquet")} == {name}
    assert_same_rows(split_rows(folder), rows)
    # Of the row before the first only the transcript is needed, for a prompt.
    assert labelled_ids in ([], [row["id"] for row in rows[2:4]])
    assert bool(labelled_ids) == (script == LABELLING)
    before = snapshot(folder)
    run(script, *command, "--verify")
    assert "complete: nothing to do" in capsys.readouterr().err
    assert snapshot(folder) == before


@pytest.mark.parametrize(("damage", "flags"), [(cut, []), (flip, ["--verify"])])
def test_a_damaged_dataset_is_not_filtered(made, tmp_path, damage, flags):
    folder, _ = made(LABELLING)
    name = "default/train-00002-of-00003.parquet"
    damage(folder / name)
    with pytest.raises(ValueError, match=f"{name} is damaged: .* run_pseudo_labelling.py again"):
        run(FILTERING, "-d", folder, *flags, "-o", tmp_path / "filtered")
    assert not (tmp_path / "filtered" / "default").exists()


def test_without_the_accounts_of_its_shards_a_dataset_is_labelled_anew(made, labelled_ids):
    folder, command = made(LABELLING)
    rows = split_rows(folder)
    shutil.rmtree(folder / ".labels")
    (folder / "default" / "train-00001-of-00003.parquet").unlink()
    run(LABELLING, *command)
    assert labelled_ids == [row["id"] for row in rows]
    assert_same_rows(split_rows(folder), rows)


def test_a_card_that_the_user_wrote_stays_when_a_file_is_made_again(made):
    folder, command = made(LABELLING)
    (folder / "README.md").write_text("my own words")
    cut(folder / "default" / "train-00000-of-00003.parquet")
    run(LABELLING, *command)
    assert (folder / "README.md").read_text() == "my own words"
    assert record(folder)["status"] == "complete"


@pytest.mark.parametrize("script", [LABELLING, FILTERING])
def test_starting_over_keeps_what_the_user_put_into_the_folder(made, script):
    folder, command = made(script)
    mine = ["notes.md", "proj/data.parquet", "default/mine.parquet", "checkpoint-1/model.bin"]
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    listed = set(record(folder)["files"])
    assert listed == {name for name in snapshot(folder) if name not in mine} - {"run.json"}
    run(script, *command, "--overwrite_output_dir", "--seed", 7)
    assert all((folder / name).read_text() == "mine" for name in mine)
    (folder / "README.md").write_text("my own words")
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r"holds README.md: not, or no longer, what this stage"):
        run(script, *command, "--overwrite_output_dir")
    assert snapshot(folder) == before


# --- quarantined rows ----------------------------------------------------------------------------


def test_quarantined_rows_are_labelled_once_they_are_mended(pipeline, tmp_path, capsys):
    whole, flags = pipeline[LABELLING]
    clips = tmp_path / "clips"
    shutil.copytree(flags[flags.index("-d") + 1].parent, clips)
    entries = read_manifest(clips / "clips.jsonl")
    bad = [clips / entries[place]["audio"] for place in (1, 2)]
    good = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(b"no sound" * 99)
    flags = [*flags, "-d", clips / "clips.jsonl", "-o", tmp_path / "out"]
    with pytest.raises(ValueError, match="mend them and start again with --retry_quarantined"):
        run(LABELLING, *flags)
    flags += ["--max_bad_fraction", 0.5]
    run(LABELLING, *flags)
    ids = [entry["id"] for entry in entries]
    assert [row["id"] for row in split_rows(tmp_path / "out")] == [ids[0], *ids[3:]]

    capsys.readouterr()
    run(LABELLING, *flags)
    said = capsys.readouterr().err
    assert "complete: nothing to do; quarantined rows: 2, which --retry_quarantined tries" in said
    bad[0].write_bytes(good[0])
    before = snapshot(tmp_path / "out")
    run(LABELLING, *flags, "--retry_quarantined")
    assert record(tmp_path / "out")["ledger"]["quarantined"] == {"audio": 1}
    # Both bad clips are in the first two files, which are made again; all others stay.
    again = [name for name in changed(before, tmp_path / "out") if name.endswith(".parquet")]
    assert again == [f"default/train-0000{shard}-of-00003.parquet" for shard in range(2)]
    bad[1].write_bytes(good[1])
    run(LABELLING, *flags, "--retry_quarantined")
    assert_same_rows(split_rows(tmp_path / "out"), split_rows(whole))
    assert record(tmp_path / "out")["ledger"] == record(whole)["ledger"]
    before = snapshot(tmp_path / "out")
    run(LABELLING, *flags, "--retry_quarantined")
    assert snapshot(tmp_path / "out") == before


def test_rows_that_came_since_are_not_taken_for_mended_ones(pipeline, tmp_path):
    _, flags = pipeline[LABELLING]
    clips = tmp_path / "clips"
    shutil.copytree(flags[flags.index("-d") + 1].parent, clips)
    entries = read_manifest(clips / "clips.jsonl")
    (clips / entries[0]["audio"]).write_bytes(b"no sound" * 99)
    flags = [*flags, "--max_bad_fraction", 0.5, "-d", clips / "clips.jsonl", "-o", tmp_path / "out"]
    run(LABELLING, *flags)
    write_manifest(clips / "clips.jsonl", [*entries[1:], entries[0]])
    with pytest.raises(ValueError, match="--retry_quarantined wants the same rows"):
        run(LABELLING, *flags, "--retry_quarantined")


# --- models --------------------------------------------------------------------------------------


def test_a_damaged_model_is_saved_again_from_its_checkpoint(tmp_path, capsys):
    rows, model = manifest(tmp_path / "rows.jsonl"), model_folder(tmp_path / "model", 2)
    out = tmp_path / "out"
    flags = ["-m", model, "-d", rows, "--language", "ja", "--max_steps", 2, "--save_steps", 1]
    flags += ["--per_device_train_batch_size", 4, "-o", out]
    run(FINETUNING, *flags)
    listed = set(record(out)["files"])
    assert listed == set(snapshot(out)) - {"run.json"}
    weights, log = (out / "model.safetensors").read_bytes(), (out / "train_log.jsonl").read_bytes()
    before = snapshot(out)
    cut(out / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged.*run_finetuning.py again"):
        run(INIT, "-m", out, "-o", tmp_path / "init", "--decoder_layers", 1)
    capsys.readouterr()
    run(FINETUNING, *flags)
    said = capsys.readouterr().err
    assert "model.safetensors is damaged" in said and "going on from" in said
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "train_log.jsonl").read_bytes() == log
    assert not [name for name in changed(before, out) if name.startswith("checkpoint")]
    assert set(record(out)["files"]) == listed

    (out / "checkpoint-2" / "notes.txt").write_text("mine")
    for name in ("notes.txt", "my.safetensors"):
        (out / name).write_text("mine")
    with pytest.raises(ValueError, match=r"holds checkpoint-2/notes.txt: not, or no longer"):
        run(FINETUNING, *flags, "--overwrite_output_dir")
    (out / "checkpoint-2" / "notes.txt").unlink()
    run(FINETUNING, *flags, "--overwrite_output_dir")
    assert (out / "my.safetensors").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_of_the_users_is_not_trained_over(tmp_path, name):
    rows, model = manifest(tmp_path / "rows.jsonl"), model_folder(tmp_path / "model", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    flags = ["-m", model, "-d", rows, "--language", "ja", "--max_steps", 1]
    with pytest.raises(ValueError, match=f"holds {name}, which this stage would write"):
        run(FINETUNING, *flags, "-o", tmp_path / "out")
    assert snapshot(tmp_path / "out").keys() == {name}


@pytest.mark.parametrize(("damage", "flags"), [(cut, []), (flip, ["--verify"])])
def test_a_damaged_student_is_made_again(tmp_path, damage, flags, capsys):
    model, out = model_folder(tmp_path / "model", 2), tmp_path / "student"
    command = ["-m", model, "--decoder_layers", 1, "-o", out]
    run(INIT, *command)
    weights = (out / "model.safetensors").read_bytes()
    assert set(record(out)["files"]) == set(snapshot(out)) - {"run.json", "manifest.json"}
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("my own words")
    damage(out / "model.safetensors")
    capsys.readouterr()
    run(INIT, *command, *flags)
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "README.md").read_text() == "my own words"
    run(INIT, *command, "--verify")
    assert "complete: nothing to do" in capsys.readouterr().err


def test_a_damaged_pipeline_is_saved_again(tmp_path, capsys):
    model, out = model_folder(tmp_path / "model", 2), tmp_path / "pipeline"
    command = ["-m", model, "-o", out]
    run(PIPELINE, *command)
    assert set(record(out)["files"]) == set(snapshot(out)) - {"run.json", "manifest.json"}
    code = (out / "recognition.py").read_bytes()
    (out / "notes.txt").write_text("mine")
    cut(out / "recognition.py")
    run(PIPELINE, *command)
    assert "recognition.py is damaged" in capsys.readouterr().err
    assert (out / "recognition.py").read_bytes() == code
    (out / "README.md").write_text("my own words")
    with pytest.raises(ValueError, match=r"holds README.md: not, or no longer"):
        run(PIPELINE, *command, "--overwrite_output_dir")
    assert (out / "README.md").read_text() == "my own words"
    assert (out / "notes.txt").read_text() == "mine"


# --- evaluations ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder that short-form and long-form evaluations share, and the flags of the first."""
    root = tmp_path_factory.mktemp("evaluated")
    model = talkative_model_folder(root / "model")
    clips = tone_manifest(root / "clips" / "clips.jsonl", 3)
    flags = ["-m", model, "-d", clips, "-l", "ja", "-b", 2, "--generation_max_length", 20]
    run(SHORT_FORM, *flags, "-o", root / "eval", "--html", root / "eval" / "page.html")
    run(LONG_FORM, *flags, "-o", root / "eval", "--algorithm", "chunked")
    return root / "eval", flags


def test_evaluations_share_a_folder_and_list_their_files(evaluated):
    folder, _ = evaluated
    files = {name for name in snapshot(folder) if not name.endswith(".lock")}
    assert set(record(folder)["files"]) == files - {"run.json"}
    kinds = {name.split(".")[-1] for name in files}
    assert kinds == {"csv", "html", "json", "jsonl", "txt", "yaml"}


def test_what_a_killed_evaluation_wrote_is_listed_by_the_next_start(
    evaluated, tmp_path, monkeypatch
):
    def killed(_run):
        raise KeyboardInterrupt

    arguments = [*evaluated[1], "-o", tmp_path / "eval"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "share", killed)
        run(SHORT_FORM, *arguments)
    before = snapshot(tmp_path / "eval")
    assert not (tmp_path / "eval" / "run.json").exists()
    run(SHORT_FORM, *arguments)
    files = set(record(tmp_path / "eval")["files"])
    assert any(name.startswith("predictions/") for name in files) and "config.yaml" in files
    again = {name for name in changed(before, tmp_path / "eval") if not name.startswith(".written")}
    assert again == {"run.json"}
    before = snapshot(tmp_path / "eval")
    run(SHORT_FORM, *arguments)
    assert snapshot(tmp_path / "eval") == before


@pytest.mark.parametrize(("damage", "flags"), [(cut, []), (flip, ["--verify"])])
def test_damaged_predictions_are_made_again(evaluated, tmp_path, damage, flags, capsys):
    shutil.copytree(evaluated[0], tmp_path / "eval")
    folder, command = tmp_path / "eval", [*evaluated[1], "-o", tmp_path / "eval"]
    (path,) = (each for each in folder.glob("predictions/*.csv") if short_form(each))
    content, before = path.read_bytes(), snapshot(folder)
    damage(path)
    capsys.readouterr()
    run(SHORT_FORM, *command, *flags)
    assert f"{path.name} is damaged" in capsys.readouterr().err
    assert path.read_bytes() == content
    others = [name for name in changed(before, folder) if name.startswith("predictions/")]
    assert {name.split(".")[-1] for name in others} == {"csv", "json", "txt"}
    before = snapshot(folder)
    run(SHORT_FORM, *command, "--verify")
    assert "was evaluated before" in capsys.readouterr().err
    assert snapshot(folder) == before


def short_form(path):
    return json.loads(path.with_suffix(".json").read_text())["form"] == "short_form"


def test_an_evaluation_does_not_overwrite_what_is_not_of_one(evaluated, tmp_path):
    flags = evaluated[1]
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"config.yaml is about to be written, and this run did"):
        run(SHORT_FORM, *flags, "-o", tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "mine"
    student = tmp_path / "student"
    run(INIT, "-m", flags[1], "--decoder_layers", 1, "-o", student)
    before = snapshot(student)
    with pytest.raises(ValueError, match="holds a run of create_student_model; name another"):
        run(SHORT_FORM, *flags, "-o", student)
    assert snapshot(student) == before


@pytest.mark.parametrize("script", [SHORT_FORM, LONG_FORM, SPEED])
def test_a_damaged_model_is_not_evaluated(script, tmp_path):
    model, student = model_folder(tmp_path / "model", 2), tmp_path / "student"
    run(INIT, "-m", model, "--decoder_layers", 1, "-o", student)
    cut(student / "model.safetensors")
    clips = tone_manifest(tmp_path / "clips" / "clips.jsonl", 1)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged.*create_student_model.py"):
        run(script, "-m", student, "-d", clips, "-l", "ja", "-o", tmp_path / "eval")


def test_figures_of_speed_are_listed(tmp_path):
    model = model_folder(tmp_path / "model", 2)
    flags = ["-m", model, "-l", "ja", "--lengths_s", 1, "--num_runs", 3, "--max_batch_size", 1]
    run(SPEED, *flags, "--generation_max_length", 8, "-o", tmp_path / "speed")
    files = {name for name in snapshot(tmp_path / "speed") if not name.endswith(".lock")}
    assert set(record(tmp_path / "speed")["files"]) == files - {"run.json"}
    assert {"speed.csv", "speed.jsonl", "config.yaml"} <= files
