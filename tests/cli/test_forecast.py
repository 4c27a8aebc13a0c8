import logging
import shutil

import pytest
import tiny
from corpora import pack
from datasets import Features, Value
from stage_runs import read_manifest, write_manifest

from distillery.cli import forecast, training_forecast
from distillery.cli.forecast import disk_line, hours, size, survey
from distillery.cli.training_arguments import TrainingArguments
from distillery.data import column_types, hub_layout, schema
from distillery.data.specs import DatasetSpec
from distillery.ingest import segmentation, sources
from distillery.storage.runs import Run
from distillery.training.sharding import DEEPSPEED, FSDP2
from distillery.whisper import checkpoint

BUILDER = """
import datasets
class Builder(datasets.GeneratorBasedBuilder):
    def _info(self):
        audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        return datasets.DatasetInfo(features=datasets.Features({"audio": audio}))
    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator("train")]
    def _generate_examples(self):
        yield 0, {"audio": {"bytes": open("%s", "rb").read(), "path": "x"}}
"""


def look(name, **fields):
    return survey(DatasetSpec(str(name), **fields), schema.AUDIO, "--audio_column_name")


@pytest.fixture
def clips(tmp_path):
    return tiny.tone_manifest(tmp_path / "clips.jsonl", 40)


def without(path, *names):
    """Take columns out of a manifest."""
    rows = [{k: v for k, v in row.items() if k not in names} for row in read_manifest(path)]
    return write_manifest(path, rows)


def parquet_folder(folder, num_files, rows_per_file, columns=(schema.DURATION,)):
    """Write a dataset in Hub layout whose clips are four bytes and no sound."""
    features = Features(
        {schema.ID: Value("string"), schema.AUDIO: column_types.AUDIO_TYPE}
        | {name: Value("float32") for name in columns}
    )
    (folder / "default").mkdir(parents=True)
    for index in range(num_files):
        rows = [
            {"id": f"{index}-{i}", "audio": {"bytes": b"none", "path": None}, "duration": i + 1.0}
            for i in range(rows_per_file)
        ]
        path = hub_layout.shard_path(folder, "default", "train", index, num_files)
        hub_layout.write_parquet(path, rows, features)
    hub_layout.write_card(folder, {"default": ["train"]}, "Title", "Body")
    return folder


# --- data ----------------------------------------------------------------------------------------


def test_durations_that_are_given_are_added_up(clips):
    found = look(clips)
    wanted = sum(row["duration"] for row in read_manifest(clips))
    assert (found.num_rows, found.is_estimate, found.bad) == (40, False, [])
    assert found.audio_s == pytest.approx(wanted)
    assert str(found) == f"{clips} default train: 40 rows, 0.6 min of audio"
    assert look(clips, max_rows=4).audio_s == pytest.approx(
        1 + 11 / 12 + 10 / 12 + 9 / 12, abs=0.01
    )


def test_without_durations_hours_are_an_estimate_and_called_one(clips):
    wanted = look(clips)
    found = look(without(clips, schema.DURATION))
    assert found.is_estimate
    assert found.audio_s == pytest.approx(wanted.audio_s, rel=0.01)
    assert str(found).endswith("0.6 min of audio, an estimate by the first 16 rows")
    sizes = [path.stat().st_size for path in clips.parent.glob("*.flac")]
    assert found.num_bytes == pytest.approx(sum(sizes), rel=0.05)


def test_clips_that_cannot_be_used_are_counted_and_named(clips):
    (clips.parent / "clips-0003.flac").write_bytes(b"")
    found = look(without(clips, schema.DURATION))
    assert len(found.bad) == 1
    assert "; 1 of the first 16 cannot be used: clips-0003 " in str(found)


def test_long_recordings_are_not_all_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "FIRST_SECONDS", 2.5)
    found = look(without(tiny.tone_manifest(tmp_path / "long.jsonl", 8), schema.DURATION))
    assert found.num_first == 3
    assert str(found).endswith("an estimate by the first 3 rows")


def test_a_folder_is_counted_by_its_files_and_not_copied(tmp_path):
    folder = parquet_folder(tmp_path / "set", 2, 30)
    before = sorted(tmp_path.rglob("*"))
    cache = tmp_path / "cache"
    found = look(folder, cache_dir=str(cache))
    assert (found.num_rows, found.audio_s, found.is_estimate) == (60, 2 * 465.0, False)
    assert found.num_bytes == 60 * 4
    assert (found.spec.config, found.spec.split) == ("default", "train")
    assert "15.5 min of audio" in str(found)
    assert "cache, if" not in str(found)
    assert look(folder, max_rows=31).audio_s == 465.0 + 1.0
    assert look(folder, split="train[:10]").num_rows == 60
    assert sorted(tmp_path.rglob("*")) == before
    plain = look(parquet_folder(tmp_path / "plain", 1, 5, columns=()), max_rows=3)
    assert (plain.num_rows, plain.audio_s, len(plain.bad)) == (3, None, 3)


def test_a_stream_does_not_say_how_long_it_is(clips, tmp_path):
    (tmp_path / "builder.py").write_text(BUILDER % (tmp_path / "clips-0000.flac"))
    found = look(tmp_path / "builder.py")
    assert (found.num_rows, found.audio_s, found.num_bytes) == (None, None, None)
    told = ": unknown rows (a stream does not say), unknown hours of audio; all of it into the"
    assert told in str(found)
    assert forecast.total_rows([found, look(clips)]) is None
    assert forecast.total_bytes([found, look(clips)]) is None
    assert forecast.windows_line([found], 30.0) == ("steps", "unknown windows")
    assert forecast.batches(None, 4, 2)[1] == "unknown batches of 4 per process; processes: 2"


def test_recordings_are_not_all_cut(clips, tmp_path, monkeypatch):
    rows = [{**row, "offset": 0.1, "duration": 0.2} for row in read_manifest(clips)]
    write_manifest(clips, rows)
    monkeypatch.setattr(forecast, "FIRST_ROWS", 2)
    decoded = []
    decode = segmentation.decode_at_own_rate
    monkeypatch.setattr(
        segmentation, "decode_at_own_rate", lambda *a, **k: decoded.append(a) or decode(*a, **k)
    )
    found = look(clips)
    assert (found.num_rows, found.is_copied, found.bad) == (None, True, [])
    assert 0 < len(decoded) < 10


def test_recordings_are_not_counted_as_clips(clips, tmp_path):
    recordings = parquet_folder(tmp_path / "set", 1, 5)
    assert (look(recordings).num_rows, look(recordings, segment="vad").num_rows) == (5, None)
    stored = parquet_folder(tmp_path / "cut", 1, 5, (schema.DURATION, schema.START))
    assert look(stored).num_rows == 5
    name = pack(tmp_path / "a.tar", {"a.flac": (tmp_path / "clips-0000.flac").read_bytes()})
    sources.load(DatasetSpec(str(name)))  # the library's cache now says how many there are
    assert (look(name).num_rows, look(name, segment="vad").num_rows) == (1, None)


def test_an_archive_is_not_copied(clips, tmp_path):
    pack(tmp_path / "clips.tar", {p.name: p.read_bytes() for p in sorted(tmp_path.glob("*.flac"))})
    found = look(tmp_path / "clips.tar")
    assert (found.num_rows, found.is_copied, found.bad) == (40, True, [])


def test_what_is_missing_is_named(tmp_path, clips):
    with pytest.raises(FileNotFoundError, match="no such file"):
        look(tmp_path / "other.jsonl")
    with pytest.raises(ValueError, match="--text_column_name: dataset"):
        survey(DatasetSpec(str(without(clips, schema.TEXT))), schema.TEXT, "--text_column_name")


def test_totals_over_several_datasets(clips):
    one, two = look(clips), look(clips, max_rows=10)
    assert forecast.total_rows([one, two]) == 50
    assert forecast.total_bytes([one, two]) == one.num_bytes + two.num_bytes
    assert forecast.batches(50, 16, 2)[1] == "2 batches of 16 per process; processes: 2"
    assert forecast.windows_line([one, two], 4.0)[1] == "at least 50 windows of 4 s"
    assert forecast.windows_line([two], 0.5)[1] == "at least 18 windows of 0.5 s"


# --- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.tiny_model_folder(tmp_path_factory.mktemp("model") / "m")


def test_an_outline_is_as_large_as_the_model_and_has_its_settings(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    outline, model = checkpoint.load_outline(str(bare)), checkpoint.load(str(folder))
    assert outline.num_parameters == model.num_parameters
    assert outline.num_bytes == pytest.approx(
        (folder / "model.safetensors").stat().st_size, rel=0.05
    )
    assert checkpoint.load_outline(str(bare), "bfloat16").num_bytes * 2 == (outline.num_bytes)
    assert vars(outline.model.generation_config) == vars(model.model.generation_config)
    assert outline.tokens == model.tokens


def test_keys_and_values_of_a_batch(folder):
    outline = checkpoint.load_outline(str(folder), "bfloat16")
    config = outline.model.config
    told = forecast.decoding_memory(outline, 3, 2, 50)[1]
    numbers = 2 * 4 * 32 * (config.max_source_positions + 50) * 3 * 2
    assert f"{size(2 * numbers)} keys and values" in told


def num_trained(outline):
    """Return how many numbers are trained: all but the encoder's positions, which are sines."""
    return outline.num_parameters - outline.model.model.encoder.embed_positions.weight.numel()


def memory_of(folder, teacher=None, **flags):
    outline = checkpoint.load_outline(str(folder))
    return training_forecast.training_memory(outline, teacher, TrainingArguments(**flags))


def test_training_takes_weights_gradients_and_two_means(folder):
    outline = checkpoint.load_outline(str(folder))
    config, count = outline.model.config, outline.num_parameters
    told = memory_of(folder, per_device_train_batch_size=2, max_label_length=40)
    inputs = 4 * 2 * 32 * (2 * config.max_source_positions + 4 * 40)
    trained = num_trained(outline)
    parts = [count * 4, trained * 4, trained * 8, inputs]
    assert told.startswith(f"{size(sum(parts))} at least: ")
    names = "weights (float32)", "gradients", "AdamW", "inputs of the trained layers"
    for part, name in zip(parts, names, strict=True):
        assert f"{size(part)} {name}" in told
    assert "teacher" not in told
    assert f"{size(count * 4)} teacher" in memory_of(folder, outline)


def test_an_encoder_that_is_shared_with_the_teacher_is_held_once(folder):
    outline = checkpoint.load_outline(str(folder))
    encoder = sum(p.numel() for p in outline.model.model.encoder.parameters())
    own = f"{size((outline.num_parameters - encoder) * 4)} weights (float32)"
    assert own in memory_of(folder, outline, freeze_encoder=True)
    assert own not in memory_of(folder, outline)
    assert own not in memory_of(folder, freeze_encoder=True)


def test_processes_that_share_a_model_hold_a_part_each(folder):
    outline = checkpoint.load_outline(str(folder))
    spread = [
        training_forecast.training_memory(outline, None, TrainingArguments(), by, 4)
        for by in (FSDP2, DEEPSPEED)
    ]
    trained = num_trained(outline)
    assert f"{size(outline.num_parameters)} weights (float32)" in spread[0]
    assert f"{size(trained)} gradients + {size(trained * 2)} AdamW" in spread[0]
    assert f"{size(outline.num_parameters * 4)} weights (float32)" in spread[1]
    assert f"{size(trained)} gradients + {size(trained * 3)} AdamW" in spread[1]


def test_a_frozen_encoder_has_no_gradients(folder):
    outline = checkpoint.load_outline(str(folder))
    frozen = sum(p.numel() for p in outline.model.model.encoder.parameters())
    told = memory_of(folder, freeze_encoder=True)
    assert f"{size((outline.num_parameters - frozen) * 4)} gradients" in told
    assert f"{size((outline.num_parameters - frozen) * 8)} AdamW" in told


@pytest.mark.parametrize(
    ("flags", "num_updates", "checkpoints", "models"),
    [
        ({"save_steps": 10}, 95, 10, 1),
        ({"save_steps": 10, "save_total_limit": 2}, 95, 3, 1),
        ({"save_steps": 100, "save_total_limit": 2, "do_eval": True}, 95, 1, 2),
    ],
)
def test_disk_for_checkpoints(folder, flags, num_updates, checkpoints, models):
    outline = checkpoint.load_outline(str(folder))
    needed = training_forecast.checkpoint_bytes(outline, TrainingArguments(**flags), num_updates)
    count = outline.num_parameters
    wanted = checkpoints * (count * 4 + num_trained(outline) * 8) + models * count * 4
    assert needed == wanted


# --- disk, and how things are said ---------------------------------------------------------------


def test_disk_that_is_too_small_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "free_bytes", lambda folder: 1_500_000_000)
    place = tmp_path / "not" / "there"
    told = disk_line(place, 2e9, "labels")[1]
    assert told == f"about 2.00 GB for labels in {place}; 1.50 GB are free; THAT IS NOT ENOUGH"
    assert disk_line(place, 1e9, "labels")[1].endswith("1.50 GB are free")
    assert disk_line(place, None, "labels")[1].startswith("unknown for labels")


def test_amounts_for_people():
    assert [size(n) for n in (0, 999, 2.5e6, 1e9, 3.2e12)] == [
        "0.00 kB",
        "1.00 kB",
        "2.50 MB",
        "1.00 GB",
        "3.20 TB",
    ]
    assert [hours(s) for s in (30, 3599, 3600, 36e6)] == [
        "0.5 min",
        "60.0 min",
        "1.0 h",
        "10,000.0 h",
    ]


@pytest.mark.parametrize(
    ("flags", "hub"),
    [
        ({}, "nothing is uploaded"),
        ({"push_to_hub": True}, "will be uploaded as out, private; logged in as me"),
        (
            {"hub_model_id": "my-org/x", "push_to_hub": True, "hub_public": True},
            "will be uploaded as my-org/x, public; logged in as me",
        ),
    ],
)
def test_a_forecast_as_text(tmp_path, flags, hub, monkeypatch):
    monkeypatch.setattr("distillery.cli.hub.check", lambda run: (flags and "me") or None)
    run = Run(tmp_path / "out", "run_x", flags, {})
    assert forecast.text_of(run, [("data", "one"), ("memory", "two")]) == (
        f"run_x, dry run: nothing is written\n  data    one\n  memory  two\n  hub     {hub}\n"
    )


def test_a_dataset_is_described_once_in_the_log(clips, caplog):
    caplog.set_level("INFO")
    look(clips)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages))
    logging.getLogger("distillery").info("heard again")
    assert "heard again" in caplog.text
