import pytest
from launching import kill, launch
from stage_runs import (
    english_only,
    read_manifest,
    run,
    snapshot,
    talkative_model_folder,
    write_manifest,
)
from tiny import tiny_punctuator_folder, tone_manifest

from distillery import labels, results, whisper
from distillery.collators import WindowCollator
from distillery.data import DatasetSpec, load
from distillery.metrics import score
from distillery.normalizers import normalizer_for
from distillery.pipelines.punctuation import DEFAULT_MODEL
from distillery.transcription import Decoding, transcribe_windows

SCRIPT = "run_short_form_eval.py"
NUM_CLIPS = 10
TEXTS = {3: "NA", 4: "", 5: "null", 6: "。"}  # the last says nothing once it is normalised
COLUMNS = {
    *("form", "model", "model_revision", "model_fingerprint", "dataset", "config", "split"),
    *("max_rows", "dataset_fingerprint", "dtype", "attention", "decoding", "normalizer"),
    *("postprocessing", "punctuator"),
    *("cer_norm", "wer_norm", "cer_raw", "wer_raw", "num_rows", "num_empty_references"),
    *("num_bad", "num_parameters", "audio_s", "wall_s", "rtfx", "predictions"),
    *("versions", "commit"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("short-form")


@pytest.fixture(scope="module")
def model(root):
    return talkative_model_folder(root / "model")


@pytest.fixture(scope="module")
def manifest(root):
    path = tone_manifest(root / "clips" / "test.jsonl", NUM_CLIPS)
    entries = read_manifest(path)
    for place, text in TEXTS.items():
        entries[place]["text"] = text
    return write_manifest(path, entries)


@pytest.fixture(scope="module")
def flags(model, manifest):
    return [*("-m", model, "-d", manifest, "-l", "ja"), *("--generation_max_length", 24, "-b", 2)]


@pytest.fixture(scope="module")
def evaluated(root, flags):
    run(SCRIPT, *flags, "-o", root / "eval")
    return root / "eval"


def metrics(folder, name="metric.ja.transcribe.jsonl"):
    return results.read_rows(folder / name)


def predictions(folder, row):
    return results.read_predictions(folder / row["predictions"])


def figures(row):
    """All that must not depend on how the work was shared out."""
    return {name: row[name] for name in COLUMNS - {"wall_s", "rtfx"}}


def test_the_row_says_what_was_measured_and_how(evaluated, model, manifest):
    (row,) = metrics(evaluated)
    assert set(row) == COLUMNS
    assert (row["form"], row["model"], row["dataset"]) == ("short_form", str(model), str(manifest))
    assert row["decoding"] == {
        "language": "ja",
        "task": "transcribe",
        "timestamps": False,
        "num_beams": 1,
        "max_length": 24,
    }
    assert row["num_parameters"] == whisper.load(str(model)).num_parameters
    seconds = sum(entry["duration"] for entry in read_manifest(manifest))
    assert row["audio_s"] == pytest.approx(seconds, abs=1e-3)
    assert row["rtfx"] == pytest.approx(row["audio_s"] / row["wall_s"], rel=0.01)
    assert (row["num_rows"], row["num_empty_references"], row["num_bad"]) == (NUM_CLIPS, 2, 0)


def test_predictions_and_rates_are_those_of_the_model(evaluated, model, manifest):
    loaded = whisper.load(str(model))
    clips = list(load(DatasetSpec(str(manifest))))
    windows = WindowCollator(loaded.log_mel)(clips)
    written = transcribe_windows(
        loaded, windows.features, Decoding("ja", "transcribe", False, 1, 24)
    )
    texts = [labels.plain_text(w.ids, loaded.tokens, loaded.tokenizer) for w in written]
    assert len(set(texts)) == NUM_CLIPS
    (row,) = metrics(evaluated)
    found = predictions(evaluated, row)
    assert [p.id for p in found] == [clip["id"] for clip in clips]
    assert [p.prediction_raw for p in found] == texts
    wanted = score([clip["text"] for clip in clips], texts, normalizer_for("ja"))
    assert {name: row[name] for name in vars(wanted)} == vars(wanted)


def test_texts_that_look_like_nothing_survive(evaluated, manifest):
    (row,) = metrics(evaluated)
    references = [p.reference_raw for p in predictions(evaluated, row)]
    assert references == [entry["text"] for entry in read_manifest(manifest)]
    assert {"NA", "", "null"} <= set(references)


def test_same_evaluation_is_shown_and_not_repeated(evaluated, flags, capsys):
    before = snapshot(evaluated)
    capsys.readouterr()
    run(SCRIPT, *flags, "-o", evaluated)
    told = capsys.readouterr().err
    assert "was evaluated before" in told
    assert "| cer_norm |" in told
    assert snapshot(evaluated) == before


def test_lost_predictions_are_made_again(tmp_path, flags):
    run(SCRIPT, *flags, "-o", tmp_path)
    (row,) = metrics(tmp_path)
    (tmp_path / row["predictions"]).unlink()
    run(SCRIPT, *flags, "-o", tmp_path)
    assert len(metrics(tmp_path)) == 2
    assert len(predictions(tmp_path, row)) == NUM_CLIPS


def test_trained_on_models_and_namesakes_are_evaluated_each(tmp_path, flags):
    own = tmp_path / "a" / "model"
    talkative_model_folder(own)
    arguments = [*flags, "-o", tmp_path / "eval"]
    run(SCRIPT, *arguments, "-m", own)
    talkative_model_folder(own, seed=2)  # trained again, under the same path
    run(SCRIPT, *arguments, "-m", own)
    namesake = talkative_model_folder(tmp_path / "b" / "model", seed=1)
    run(SCRIPT, *arguments, "-m", namesake)

    rows = metrics(tmp_path / "eval")
    assert [row["model"] for row in rows] == [str(own), str(own), str(namesake)]
    assert len({row["predictions"] for row in rows}) == 3
    texts = [[p.prediction_raw for p in predictions(tmp_path / "eval", row)] for row in rows]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_other_decoding_is_another_evaluation(tmp_path, flags):
    run(SCRIPT, *flags, "--max_samples", 4, "-o", tmp_path)
    run(SCRIPT, *flags, "--max_samples", 4, "--num_beams", 2, "-o", tmp_path)
    rows = metrics(tmp_path)
    assert [row["decoding"]["num_beams"] for row in rows] == [1, 2]
    assert rows[0]["predictions"] != rows[1]["predictions"]


def test_postprocessing_changes_what_is_scored_and_is_told(tmp_path, flags, stable_ts):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    punctuator = tiny_punctuator_folder(tmp_path / "p", dict.fromkeys(letters, "。"), letters)
    runs = {
        "plain": ["--return_timestamps"],
        "stable": ["-s"],
        "both": ["-p", punctuator, "--stable-ts"],
        "rules": ["-p", "rules"],
    }
    for name, words in runs.items():
        run(SCRIPT, *flags, *words, "-o", tmp_path / name)
    rows = {name: metrics(tmp_path / name)[0] for name in runs}
    assert [row["postprocessing"] for row in rows.values()] == [
        [],
        ["stable-ts"],
        ["punctuator", "stable-ts"],
        ["punctuator"],
    ]
    assert [row["punctuator"] for row in rows.values()] == [None, None, str(punctuator), "rules"]
    timed = [row["decoding"]["timestamps"] for row in rows.values()]
    assert timed == [True, True, True, False]
    texts = {
        name: [p.prediction_raw for p in predictions(tmp_path / name, rows[name])] for name in runs
    }
    # Times alone change no text; marks change the raw text and nothing else.
    assert texts["stable"] == texts["plain"]
    assert [text.replace("。", "") for text in texts["both"]] == texts["plain"]
    assert texts["both"] != texts["plain"]
    assert rows["both"]["cer_norm"] == rows["plain"]["cer_norm"]
    assert rows["both"]["cer_raw"] != rows["plain"]["cer_raw"]


def test_missing_punctuator_is_named_before_the_model_is_loaded(tmp_path, flags):
    with pytest.raises(OSError, match=rf"the punctuator '{DEFAULT_MODEL}' has no sp.model here"):
        run(SCRIPT, *flags, "-m", tmp_path / "no-model", "-o", tmp_path, "-p")


def test_streaming_equals_reading_from_disk(tmp_path, flags, evaluated):
    run(SCRIPT, *flags, "--streaming", "-o", tmp_path)
    ((row,), (wanted,)) = metrics(tmp_path), metrics(evaluated)
    assert figures(row) == figures(wanted)
    assert predictions(tmp_path, row) == predictions(evaluated, wanted)


def test_two_processes_measure_what_one_measures(tmp_path, flags, evaluated):
    launch(SCRIPT, *flags, "-o", tmp_path, processes=2)
    ((row,), (wanted,)) = metrics(tmp_path), metrics(evaluated)
    assert figures(row) == figures(wanted)
    # Each took every other batch of two; the file is in the order of the ids all the same.
    assert predictions(tmp_path, row) == predictions(evaluated, wanted)
    numbers = [int(p.id[-4:]) for p in predictions(tmp_path, row)]
    assert numbers == sorted(numbers)


def test_several_datasets_make_several_rows(tmp_path, flags, manifest):
    other = tone_manifest(tmp_path / "other.jsonl", 3, 0.5)
    run(SCRIPT, *flags, "-d", f"{manifest}+{other}", "-o", tmp_path)
    rows = metrics(tmp_path)
    assert [(row["dataset"], row["num_rows"]) for row in rows] == [
        (str(manifest), NUM_CLIPS),
        (str(other), 3),
    ]


def test_bad_clip_is_named_and_counted(tmp_path, flags, manifest, capsys):
    (manifest.parent / "noise.flac").write_bytes(b"no sound at all" * 100)
    entries = [*read_manifest(manifest)[:3], {"id": "bad", "audio": "noise.flac", "text": "a"}]
    broken = write_manifest(manifest.parent / "broken.jsonl", entries)
    arguments = [*flags, "-d", broken, "-o", tmp_path]
    with pytest.raises(
        ValueError, match=r"1 of 4 clips cannot be used; .*--max_bad_fraction 0.001"
    ):
        run(SCRIPT, *arguments)
    assert "clip bad cannot be decoded" in capsys.readouterr().err
    assert metrics(tmp_path) == []
    run(SCRIPT, *arguments, "--max_bad_fraction", 0.3)
    (row,) = metrics(tmp_path)
    assert (row["num_rows"], row["num_bad"]) == (3, 1)


def test_kill_before_the_row_is_whole_leaves_none(tmp_path, flags, evaluated):
    kill(SCRIPT, "distillery.results:append_row", 1, *flags, "-o", tmp_path)
    assert metrics(tmp_path) == []
    run(SCRIPT, *flags, "-o", tmp_path)
    ((row,), (wanted,)) = metrics(tmp_path), metrics(evaluated)
    assert figures(row) == figures(wanted)


def test_english_only_model_takes_no_language(tmp_path, flags, manifest):
    model = english_only(talkative_model_folder(tmp_path / "model.en"))
    with pytest.raises(ValueError, match=r"'ja' was given, but the model is English-only"):
        run(SCRIPT, *flags, "-m", model, "-o", tmp_path)
    run(SCRIPT, "-m", model, "-d", manifest, "--max_samples", 2, "-o", tmp_path)
    (row,) = metrics(tmp_path, "metric.en.transcribe.jsonl")
    assert row["decoding"]["language"] is None


def test_references_are_needed(tmp_path, flags, manifest):
    entries = [{"audio": entry["audio"]} for entry in read_manifest(manifest)[:2]]
    bare = write_manifest(manifest.parent / "bare.jsonl", entries)
    with pytest.raises(ValueError, match=r"--text_column_name: .* no column 'text'; its columns"):
        run(SCRIPT, *flags, "-d", bare, "-o", tmp_path)
