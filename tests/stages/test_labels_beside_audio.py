"""Audio that is stored once: labels beside their source, from labelling to training."""

import re

import pytest
from stage_runs import (
    loaded,
    read_manifest,
    record,
    run,
    split_rows,
    talkative_model_folder,
    write_manifest,
)
from tiny import tone_manifest
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    assert_same_run,
    run_in_child,
    student_folder,
    training_log,
)

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import label_folders
from distillery.storage.publication import published_files

LABELLING, FILTERING = "run_pseudo_labelling.py", "run_data_filtering.py"
NUM_CLIPS = 24
HOW = {"clips": ("--concatenate_audio", "False"), "windows": ()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("beside")


@pytest.fixture(scope="module")
def teacher(root):
    return talkative_model_folder(root / "teacher")


@pytest.fixture(scope="module")
def student(root, teacher):
    return student_folder(root / "student", teacher)


@pytest.fixture(scope="module")
def speech(root):
    """Clips of at most half a second, three of each recording; one file is no audio."""
    path = tone_manifest(root / "speech" / "speech.jsonl", NUM_CLIPS, 0.5)
    rows = [
        {**row, "recording_id": f"recording-{index // 3}", "speaker_id": None}
        for index, row in enumerate(read_manifest(path))
    ]
    (path.parent / "noise.flac").write_bytes(b"no sound at all")
    bad = {"id": "noise", "audio": "noise.flac", "text": "い", "recording_id": "recording-1"}
    return write_manifest(path, [*rows[:5], bad, *rows[5:]])


@pytest.fixture(scope="module", params=HOW)
def folders(request, root, teacher, speech):
    """Return what was labelled with its audio, and without."""
    flags = ["-m", teacher, "-d", speech, "-l", "ja", "--return_timestamps", "-b", 2]
    flags += ["--max_label_length", 16, "--decode_token_ids", False, "--rows_per_shard", 8]
    flags += ["--max_bad_fraction", 0.5, *HOW[request.param]]
    full, beside = (root / f"{request.param}-{name}" for name in ("full", "beside"))
    run(LABELLING, *flags, "-o", full)
    run(LABELLING, *flags, "-o", beside, "--output_format", "labels")
    return full, beside


@pytest.fixture(scope="module")
def filtered(folders):
    """Return what passes a filter of each."""
    longest = sorted(row[schema.DURATION] for row in split_rows(folders[0]))[-2]
    flags = ["--max_duration_in_seconds", longest - 1e-3, "--keep_truncated", "--keep_rejected"]
    for folder in folders:
        run(FILTERING, "-d", folder, "-o", f"{folder}-filtered", "--rows_per_shard", 5, *flags)
    return [folder.with_name(f"{folder.name}-filtered") for folder in folders]


@pytest.fixture
def train(teacher, student, tmp_path):
    """Distil a dataset and return the output folder."""

    always = ["-m", student, "--teacher", teacher, "--language", "ja", "--max_steps", 3]
    always += ["--logging_steps", 1, "--per_device_train_batch_size", 2]
    always += ["--timestamp_probability", 0.5]

    def train(to, *flags):
        run(DISTILLATION, *always, "-o", tmp_path / to, *flags)
        return tmp_path / to

    train.flags = always
    return train


def without_audio(folder):
    return [
        {name: value for name, value in row.items() if name != schema.AUDIO}
        for row in split_rows(folder)
    ]


def test_labels_are_the_same_rows_without_audio(folders, speech):
    full, beside = folders
    assert without_audio(full) == split_rows(beside)
    assert loaded(beside)["train"].column_names == list(split_rows(beside)[0])
    assert record(full)["ledger"] == record(beside)["ledger"]
    assert schema.AUDIO in split_rows(full)[0] and "sources" not in record(full)
    (source,) = record(beside)["sources"]
    assert (source["config"], source["split"]) == ("default", "train")
    assert source["spec"]["name"] == str(speech)
    card = (beside / "README.md").read_text("utf-8")
    assert "rows are those of `speech.jsonl` with the same `id`" in card
    assert not list(beside.rglob("*.flac"))


def test_a_student_of_labels_is_that_of_the_dataset(folders, speech, train, tmp_path):
    full, beside = folders
    wanted = train("full", "-d", full)
    assert_same_run(train("found", "-d", beside), wanted)
    assert_same_run(train("named", "-d", speech, "--labels_dir", beside), wanted)
    workers = ["--dataloader_num_workers", 1]
    assert_same_run(train("workers", "-d", beside, *workers), wanted)
    assert "unlabelled" not in record(wanted)["ledger"]["dropped"]
    assert record(tmp_path / "found")["ledger"]["dropped"]["unlabelled"] == 1  # the bad clip


def test_a_killed_training_goes_on_with_labels(folders, train, tmp_path):
    _, beside = folders
    flags = ["-d", beside, "--save_steps", 1]
    wanted = train("whole", *flags)
    command = [*train.flags, "-o", tmp_path / "killed", *flags]
    saving = "distillery.training.resume:save_checkpoint"
    assert run_in_child(DISTILLATION, saving, 2, KILL, *command) == -KILL
    assert len(training_log(tmp_path / "killed")) < 3
    assert_same_run(train("killed", *flags), wanted)


def test_fine_tuning_and_evaluation_take_labels_too(folders, speech, teacher, tmp_path):
    full, beside = folders
    flags = ["-m", teacher, "--language", "ja", "--max_steps", 2, "--do_eval"]
    flags += ["--per_device_train_batch_size", 2, "--logging_steps", 1]
    run(FINETUNING, *flags, "-d", full, "--eval_dataset_name", full, "-o", tmp_path / "full")
    beside_flags = ["-d", speech, "--labels_dir", beside, "--eval_dataset_name", beside]
    run(FINETUNING, *flags, *beside_flags, "-o", tmp_path / "beside")
    logs = [
        re.sub("full|beside", "", str(training_log(tmp_path / name, "")))
        for name in ("full", "beside")
    ]
    assert logs[0] == logs[1]


def test_a_damaged_file_of_labels_is_named(folders, train):
    _, beside = folders
    path = next(beside.glob("default/*.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            train("damaged", "-d", beside)
    finally:
        path.write_bytes(content)


def test_other_labels_are_not_gone_on_with(folders, speech, train, tmp_path):
    _, beside = folders
    train("run", "-d", speech, "--labels_dir", beside)
    with pytest.raises(ValueError, match=r"--labels_dir: .* then, None now"):
        train("run", "-d", speech)


def test_a_dry_run_tells_of_the_labels(folders, speech, train, capsys, tmp_path):
    _, beside = folders
    train("dry", "-d", speech, "--labels_dir", beside, "--dry_run")
    assert f"{beside} default train: {len(split_rows(beside))} rows" in capsys.readouterr().out


def test_a_dry_run_forecasts_labels_without_audio(folders, teacher, speech, capsys, tmp_path):
    flags = ["-m", teacher, "-d", speech, "-l", "ja", "--max_label_length", 16, "--dry_run"]
    run(LABELLING, *flags, "-o", tmp_path / "labels", "--output_format", "labels")
    # Of 25 clips 500 bytes each.
    assert f"about 12.50 kB for labels in {tmp_path}" in capsys.readouterr().out
    run(FILTERING, "-d", folders[1], "-o", tmp_path / "filtered", "--dry_run")
    wanted = f"about {len(split_rows(folders[1])) / 2:.2f} kB for labels if all rows pass"
    assert wanted in capsys.readouterr().out
    run(FILTERING, "-d", folders[0], "-o", tmp_path / "filtered", "--dry_run")
    assert "kB for audio and labels if all rows pass" in capsys.readouterr().out


def test_labels_are_not_labelled_again(folders, teacher, tmp_path):
    flags = ["-m", teacher, "-d", folders[1], "-l", "ja", "-o", tmp_path / "again"]
    flags += ["--max_label_length", 16]
    with pytest.raises(ValueError, match="has no column 'audio'"):
        run(LABELLING, *flags)


def test_filtered_labels_are_the_same_rows_and_pass_their_source_on(folders, filtered):
    full, beside = filtered
    assert without_audio(full) == split_rows(beside)
    assert record(full)["ledger"] == record(beside)["ledger"]
    assert record(beside)["ledger"]["dropped"]["too_long"]
    assert record(beside)["sources"] == record(folders[1])["sources"]
    assert "sources" not in record(full)
    assert "rows are those of `speech.jsonl`" in (beside / "README.md").read_text("utf-8")
    assert without_audio(full / "rejected") == split_rows(beside / "rejected")


def test_a_student_of_filtered_labels_is_that_of_the_filtered_dataset(filtered, speech, train):
    full, beside = filtered
    wanted = train("full", "-d", full)
    assert_same_run(train("found", "-d", beside), wanted)
    assert_same_run(train("named", "-d", speech, "--labels_dir", beside), wanted)


def test_published_labels_tell_no_folder_and_find_their_source_if_it_is_named(
    folders, speech, train, tmp_path
):
    """Who fetches them from the Hub has the source elsewhere."""
    for name, content in published_files(folders[1], "labels").items():
        path = tmp_path / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert str(speech.parent) not in (tmp_path / "labels" / "run.json").read_text("utf-8")
    with pytest.raises(ValueError, match=r"labels of speech\.jsonl, which is not here: name the"):
        train("lost", "-d", tmp_path / "labels")
    named = train("named", "-d", speech, "--labels_dir", tmp_path / "labels")
    assert_same_run(named, train("own", "-d", folders[1]))


def test_labels_of_a_stream_without_ids_are_refused(teacher, speech, tmp_path):
    """Read whole, the rows have the names of their files, and not numbers."""
    rows = [{"audio": row["audio"], "code": row["id"]} for row in read_manifest(speech)[:3]]
    path = write_manifest(speech.with_name("nameless.jsonl"), rows)
    flags = ["-m", teacher, "-d", path, "-l", "ja", "--max_label_length", 16, "--streaming"]
    flags += ["--output_format", "labels"]
    with pytest.raises(ValueError, match=r"have no ids, .* name a column with --id_column_name"):
        run(LABELLING, *flags, "-o", tmp_path / "refused")
    named = tmp_path / "named"
    run(LABELLING, *flags, "-o", named, "--id_column_name", "code")
    assert len(label_folders.load(DatasetSpec(str(named)), 16_000)) == 3


def test_features_are_not_made_of_labels(folders, tmp_path):
    with pytest.raises(ValueError, match=r"--vectorize: .* has no column 'audio'"):
        run(FILTERING, "-d", folders[1], "-o", tmp_path / "features", "--vectorize")
