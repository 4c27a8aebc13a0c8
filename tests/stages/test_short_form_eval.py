import re
import weakref

import pytest
from command_lines import parsed
from launching import kill, launch
from stage_runs import (
    english_only,
    read_manifest,
    run,
    snapshot,
    talkative_model_folder,
    write_manifest,
)
from tiny import (
    SHARED,
    tiny_model_folder,
    tiny_punctuator_folder,
    tone_manifest,
)

from distillery.cli import evaluation
from distillery.cli.runtime import load_model
from distillery.data.collators import WindowCollator
from distillery.data.specs import DatasetSpec
from distillery.evaluation import results
from distillery.ingest.sources import load
from distillery.text import labels
from distillery.text.error_rates import score
from distillery.text.normalizers import normalizer_for
from distillery.whisper import checkpoint
from distillery.whisper.pipelines.punctuation import DEFAULT_MODEL
from distillery.whisper.windows import Decoding, transcribe_windows

SCRIPT = "run_short_form_eval.py"
NUM_CLIPS = 10
TEXTS = {3: "NA", 4: "", 5: "null", 6: "。"}  # the last says nothing once it is normalised
COLUMNS = {
    *("form", "model", "model_revision", "model_fingerprint", "dataset", "config", "split"),
    *("max_rows", "dataset_fingerprint", "dtype", "attention", "decoding", "normalizer"),
    *("postprocessing", "punctuator", "chunk_length_s"),
    *("assistant_model", "assistant_fingerprint"),
    *("cer_norm", "wer_norm", "cer_raw", "wer_raw", "num_rows", "num_empty_references"),
    *("ci", "edits", "by_duration", "wer_words", "word_segmenter", "baselines"),
    *("num_bad", "num_parameters", "audio_s", "wall_s", "rtfx", "predictions"),
    *("columns", "versions", "commit"),
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
    assert row["num_parameters"] == checkpoint.load(str(model)).num_parameters
    seconds = sum(entry["duration"] for entry in read_manifest(manifest))
    assert row["audio_s"] == pytest.approx(seconds, abs=1e-3)
    assert row["rtfx"] == pytest.approx(row["audio_s"] / row["wall_s"], rel=0.01)
    assert (row["num_rows"], row["num_empty_references"], row["num_bad"]) == (NUM_CLIPS, 2, 0)


def test_predictions_and_rates_are_those_of_the_model(evaluated, model, manifest):
    loaded = checkpoint.load(str(model))
    clips = list(load(DatasetSpec(str(manifest))))
    windows = WindowCollator(loaded.log_mel)(clips)
    written = transcribe_windows(
        loaded, loaded.log_mel(windows.waveforms), Decoding("ja", "transcribe", False, 1, 24)
    )
    texts = [labels.plain_text(w.ids, loaded.tokens, loaded.tokenizer) for w in written]
    assert len(set(texts)) == NUM_CLIPS
    (row,) = metrics(evaluated)
    found = predictions(evaluated, row)
    assert [p.id for p in found] == [clip["id"] for clip in clips]
    assert [p.prediction_raw for p in found] == texts
    wanted = score([clip["text"] for clip in clips], texts, normalizer_for("ja"))
    assert {name: row[name] for name in vars(wanted)} == vars(wanted)


def test_temperature_fallback_is_told_and_does_not_depend_on_the_batch(tmp_path, flags, evaluated):
    texts = []
    for size in (2, 5):
        run(SCRIPT, *flags, "--temperature_fallback", "-b", size, "-o", tmp_path / str(size))
        (row,) = metrics(tmp_path / str(size))
        assert row["decoding"]["temperature_fallback"] is True
        texts.append([p.prediction_raw for p in predictions(tmp_path / str(size), row)])
    assert texts[0] == texts[1]
    (plain,) = metrics(evaluated)
    assert texts[0] != [p.prediction_raw for p in predictions(evaluated, plain)]


def test_texts_that_look_like_nothing_survive(evaluated, manifest):
    (row,) = metrics(evaluated)
    references = [p.reference_raw for p in predictions(evaluated, row)]
    assert references == [entry["text"] for entry in read_manifest(manifest)]
    assert {"NA", "", "null"} <= set(references)


def test_same_evaluation_is_shown_and_not_repeated(evaluated, flags, capsys):
    before = snapshot(evaluated)
    capsys.readouterr()
    run(SCRIPT, *flags, "-o", evaluated)
    told = capsys.readouterr()
    assert "was evaluated before" in told.err
    assert "| cer_norm |" in told.out
    assert "| cer_norm |" not in told.err
    assert snapshot(evaluated) == before


def test_page_shows_earlier_evaluations_and_their_audio(tmp_path, evaluated, flags, model):
    page = tmp_path / "report.html"
    before = snapshot(evaluated)
    run(SCRIPT, *flags, "-o", evaluated, "--html", page)
    assert snapshot(evaluated) == before
    text = page.read_text("utf-8")
    (row,) = metrics(evaluated)
    assert f"{model.name} on test" in text
    assert f"{row['cer_norm']:.1f}" in text
    # Of the ten references two are empty, and a random model writes none of the others.
    assert text.count("<audio") == NUM_CLIPS - 2
    run(SCRIPT, "-o", evaluated, "--html", tmp_path / "again.html")  # with no model
    assert (tmp_path / "again.html").read_text("utf-8").count("<audio") == NUM_CLIPS - 2


def test_page_is_a_file(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parsed(SCRIPT, ["-o", str(tmp_path), "--html", str(tmp_path)])
    assert f"--html {tmp_path} is a folder: name a file" in capsys.readouterr().err


def test_an_evaluation_needs_no_git(tmp_path, flags, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run(SCRIPT, *flags, "--max_samples", 2, "-o", tmp_path)
    (row,) = metrics(tmp_path)
    assert (row["num_rows"], row["commit"]) == (2, None)


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


def test_an_assistant_changes_the_speed_alone(tmp_path, flags, evaluated, model, root):
    assistant = talkative_model_folder(root / "assistant", seed=4)
    run(SCRIPT, *flags, "--assistant_model", assistant, "-o", tmp_path)
    ((row,), (wanted,)) = metrics(tmp_path), metrics(evaluated)
    assert row["assistant_model"] == str(assistant)
    assert row["assistant_fingerprint"] == checkpoint.fingerprint(str(assistant))
    assert wanted["assistant_model"] is wanted["assistant_fingerprint"] is None
    other = {"assistant_model", "assistant_fingerprint", "predictions", "wall_s", "rtfx"}
    assert [row[name] for name in COLUMNS - other] == [wanted[name] for name in COLUMNS - other]
    assert predictions(tmp_path, row) == predictions(evaluated, wanted)


def test_an_assistant_that_does_not_fit_is_refused(tmp_path, flags, capsys):
    small = tiny_model_folder(tmp_path / "small", window_s=2)
    with pytest.raises(ValueError, match=r"--assistant_model \S+small: .* takes 200 frames"):
        run(SCRIPT, *flags, "--assistant_model", small, "-o", tmp_path)
    with pytest.raises(SystemExit):
        run(SCRIPT, *flags, "--assistant_model", small, "--num_beams", 2, "-o", tmp_path)
    told = capsys.readouterr().err
    assert "--assistant_model: for greedy search; leave out --num_beams" in told


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
    kill(SCRIPT, "distillery.storage.json_lines:append_row", 1, *flags, "-o", tmp_path)
    assert metrics(tmp_path) == []
    run(SCRIPT, *flags, "-o", tmp_path)
    ((row,), (wanted,)) = metrics(tmp_path), metrics(evaluated)
    assert figures(row) == figures(wanted)


def test_english_only_model_takes_no_other_language(tmp_path, flags, manifest):
    model = english_only(talkative_model_folder(tmp_path / "model.en"))
    with pytest.raises(ValueError, match=r"'ja' was given, but the model is English-only"):
        run(SCRIPT, *flags, "-m", model, "-o", tmp_path)
    arguments = ["-m", model, "-d", manifest, "--max_samples", 2, "-o", tmp_path]
    run(SCRIPT, *arguments)
    run(SCRIPT, *arguments, "-l", "en")  # says the same
    (row,) = metrics(tmp_path, "metric.en.transcribe.jsonl")
    assert row["decoding"]["language"] is None


def test_baselines_are_evaluated_on_the_same_rows(tmp_path, flags, manifest, monkeypatch):
    other = tone_manifest(tmp_path / "other.jsonl", 3, 0.5)
    first, second = (talkative_model_folder(tmp_path / name / "model", seed=s) for name, s in PAIR)
    arguments = [*flags, "-d", f"{manifest}+{other}", "-o", tmp_path / "eval"]
    loaded = []

    def load_alone(*how):
        assert [model for model in loaded if model() is not None] == []
        model = load_model(*how)
        loaded.append(weakref.ref(model.model))
        return model

    monkeypatch.setattr(evaluation, "load_model", load_alone)
    run(SCRIPT, *arguments, "--baseline", f"{first}+{second}")
    assert len(loaded) == 3
    rows = metrics(tmp_path / "eval")
    sets = [str(manifest), str(other)]
    assert [(row["model"], row["dataset"]) for row in rows] == [
        (str(model), name) for model in (first, second, flags[1]) for name in sets
    ]
    assert [row["baselines"] for row in rows[:4]] == [[]] * 4
    for row, rivals in zip(rows[4:], (rows[0:4:2], rows[1:4:2]), strict=True):
        assert [found["predictions"] for found in row["baselines"]] == [
            rival["predictions"] for rival in rivals
        ]
        for found, rival in zip(row["baselines"], rivals, strict=True):
            assert found["num_rows"] == row["num_rows"]
            ratio, speed = row["cer_norm"] / rival["cer_norm"], row["rtfx"] / rival["rtfx"]
            assert found["error_ratio"]["cer_norm"] == pytest.approx(ratio)
            assert found["speed_ratio"] == pytest.approx(speed)


PAIR = (("a", 1), ("b", 2))


def test_an_unusable_clip_is_named_once_for_all_models(tmp_path, flags, manifest, model, capsys):
    long = tone_manifest(tmp_path / "long.jsonl", 1, 6.0)  # the window is 4 s
    (entry,) = read_manifest(long)
    too_long = {**entry, "id": "long", "audio": str(tmp_path / entry["audio"])}
    joined = write_manifest(
        manifest.parent / "one-long.jsonl", [*read_manifest(manifest)[:3], too_long]
    )
    baseline = talkative_model_folder(tmp_path / "baseline", seed=1)
    more = ["--baseline", baseline, "--max_bad_fraction", 0.5, "-o", tmp_path / "eval"]
    run(SCRIPT, *flags, "-d", joined, *more)
    assert [row["num_bad"] for row in metrics(tmp_path / "eval")] == [1, 1]
    assert capsys.readouterr().err.count("WARNING") == 1


def test_what_really_ran_is_recorded_and_batches_are_logged(tmp_path, flags, capsys):
    more = ["--attn_type", "flash_attn", "--max_samples", 4, "--logging_steps", 1]
    run(SCRIPT, *flags, *more, "-o", tmp_path)
    (row,) = metrics(tmp_path)
    assert row["attention"] == "sdpa"
    told = capsys.readouterr().err
    assert "attention flash_attn runs as sdpa" in told
    assert ": 2 clips transcribed" in told
    assert ": 4 clips transcribed" in told


def test_results_reach_the_trackers(tmp_path, flags):
    run(SCRIPT, *flags, "--max_samples", 2, "--report_to", "tensorboard", "-o", tmp_path)
    events = [path.read_bytes() for path in tmp_path.rglob("events.out.tfevents.*")]
    assert any(b"short_form/cer_norm" in event for event in events)


def test_long_clips_are_decoded_in_chunks(tmp_path, flags, manifest):
    long = tone_manifest(tmp_path / "long.jsonl", 4, 6.0)  # 6, 5.5, 5 and 4.5 s; the window is 4 s
    joined = write_manifest(
        manifest.parent / "joined.jsonl",
        [
            *read_manifest(manifest)[:3],
            *({**entry, "audio": str(tmp_path / entry["audio"])} for entry in read_manifest(long)),
        ],
    )
    arguments = [*flags, "-d", joined, "-o", tmp_path / "eval"]
    with pytest.raises(ValueError, match="4 of 7 clips cannot be used"):
        run(SCRIPT, *arguments)
    run(SCRIPT, *arguments, "--chunk-length", 3)
    (row,) = metrics(tmp_path / "eval")
    assert (row["num_rows"], row["num_bad"], row["chunk_length_s"]) == (7, 0, 3.0)
    assert row["audio_s"] > 21
    chunked = {p.id: p.prediction_raw for p in predictions(tmp_path / "eval", row)}
    assert all(chunked.values())
    with pytest.raises(ValueError, match=r"--chunk_length_s 5 is more than the .* window of 4 s"):
        run(SCRIPT, *arguments, "-c", 5)


KOTOBA = "kotoba-whisper-v1.0.ja_asr.common_voice_8_0.csv"
LARGE_V3 = "whisper-large-v3.ja_asr.jsut_basic5000.csv"
NAMES = ["-m", "kotoba-tech/kotoba-whisper-v1.0+openai/whisper-large-v3", "-d", "cv8+jsut"]


def test_published_predictions_are_scored_without_a_model(tmp_path, capsys):
    folder = SHARED / "data" / "kotoba_predictions"
    if not folder.exists():
        pytest.skip(f"{folder} is absent: the published predictions come with ../shared")
    files = f"{folder / KOTOBA}+{folder / LARGE_V3}"
    arguments = ["--predictions_file", files, *NAMES, "-l", "ja", "-o", tmp_path]
    run(SCRIPT, *arguments, "--pretty-table")
    kotoba, large = metrics(tmp_path)
    wanted = {"cer_norm": (9.4, 7.1), "wer_norm": (59.3, 59.2), "cer_raw": (15.6, 13.4)}
    for name, figures in wanted.items():
        assert (kotoba[name], large[name]) == pytest.approx(figures, abs=0.06)
    assert (kotoba["num_rows"], large["num_rows"]) == (4483, 5000)
    assert len(predictions(tmp_path, large)) == 5000
    printed = capsys.readouterr().out
    assert "| model | cv8 | jsut |" in printed
    assert "| kotoba-tech/kotoba-whisper-v1.0 | 9.4 |  |" in printed
    assert "| openai/whisper-large-v3 |  | 13.4 |" in printed
    before = snapshot(tmp_path)
    run(SCRIPT, *arguments)
    assert "was scored before" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_texts_of_a_file_that_look_like_nothing_survive(tmp_path):
    path = tmp_path / "NA.csv"
    texts = [("NA", "NA"), ("null", "null"), ("nan", "None"), ("", "x"), ("はい。", "")]
    path.write_text("reference,prediction\n" + "".join(f"{a},{b}\n" for a, b in texts), "utf-8")
    run(SCRIPT, "--predictions-file", path, "--language", "ja", "-o", tmp_path)
    (row,) = metrics(tmp_path)
    assert (row["num_rows"], row["num_empty_references"], row["model"]) == (5, 1, "NA")
    found = predictions(tmp_path, row)
    assert [(p.reference_raw, p.prediction_raw) for p in found] == texts
    # Right are all of na and null, two letters of nan, and nothing of はい.
    assert row["edits"]["cer_norm"]["hits"] == 2 + 4 + 2


def test_texts_of_a_file_are_punctuated_where_asked(tmp_path, capsys):
    path = tmp_path / "model.csv"
    path.write_text("reference,prediction\n雨です。,雨です\n寒い。,寒い。\n", "utf-8")
    words = ["--predictions_file", path, "-l", "ja", "-o", tmp_path]
    run(SCRIPT, *words)
    run(SCRIPT, *words, "-p", "rules", "--pretty-table")
    plain, marked = metrics(tmp_path)
    assert [p.prediction_raw for p in predictions(tmp_path, marked)] == ["雨です。", "寒い。"]
    assert (plain["postprocessing"], marked["postprocessing"]) == ([], ["punctuator"])
    assert (plain["cer_raw"], marked["cer_raw"]) == (pytest.approx(100 / 7), 0)
    assert "| model (punctuator) | 0.0 |" in capsys.readouterr().out


def test_tables_of_what_is_there_need_no_model(evaluated, model, capsys):
    before = snapshot(evaluated)
    capsys.readouterr()
    run(SCRIPT, "--pretty-table", "-o", evaluated)
    tables = capsys.readouterr().out
    assert tables.startswith("- CER\n\n| model | ")
    assert len(re.findall(rf"^\| {model.name} \| [\d.]+ \|$", tables, re.MULTILINE)) == 4
    assert snapshot(evaluated) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["--model_name_or_path is required", "--dataset_name is required"]),
        (["-m", "a", "--pretty-table"], ["--dataset_name is required"]),
        (
            ["--predictions_file", "none.csv", "-c", "3"],
            [
                "--predictions_file none.csv: there is no such file",
                "--language is required",
                "--chunk_length_s: for models; leave out --predictions_file",
            ],
        ),
        (
            ["--predictions_file", __file__, "-l", "ja", "-s"],
            ["--stable_ts needs the sound: leave it out with --predictions_file"],
        ),
    ],
)
def test_what_must_be_given_is_named(capsys, words, told):
    with pytest.raises(SystemExit):
        parsed(SCRIPT, words)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()[1:]] == told


def test_as_many_names_as_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("reference,prediction\na,a\n", "utf-8")
    words = ["--predictions_file", path, "-l", "ja", "-o", tmp_path, "-m", "a+b"]
    with pytest.raises(ValueError, match="names 2, but --predictions_file 1 files"):
        run(SCRIPT, *words)


def test_references_are_needed(tmp_path, flags, manifest):
    entries = [{"audio": entry["audio"]} for entry in read_manifest(manifest)[:2]]
    bare = write_manifest(manifest.parent / "bare.jsonl", entries)
    with pytest.raises(
        ValueError, match=r"--text_column_name: .* no column that .* references .*, which are audio"
    ):
        run(SCRIPT, *flags, "-d", bare, "-o", tmp_path)
