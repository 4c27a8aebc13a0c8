import numpy as np
import pytest
import soundfile
from child_memory import peak_mib
from command_lines import parsed
from launching import launch
from stage_runs import read_manifest, run, snapshot, talkative_model_folder, write_manifest
from tiny import SAMPLE_RATE, SENTENCES

from distillery.evaluation import results
from distillery.evaluation.recordings import RecordingTranscription, timestamp_figures
from distillery.text.timestamps import Segment

SCRIPT = "run_long_form_eval.py"
CHUNKED = ["--chunk_length_s", 2]
BOTH = ["--algorithm", "sequential+chunked", *CHUNKED]
DURATIONS_S = (9.0, 1.5, 6.3)  # the model's window is 4 s
SEGMENTS = [{"start": 0.5, "end": 1.5, "text": "ねこ"}, {"start": 2.0, "end": 5.0, "text": "いぬ"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("long-form")


@pytest.fixture(scope="module")
def model(root):
    return talkative_model_folder(root / "model", seed=1)


@pytest.fixture(scope="module")
def manifest(root):
    rng = np.random.default_rng(0)
    entries = []
    for index, duration_s in enumerate(DURATIONS_S):
        time_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
        sweep = 0.3 * np.sin(2 * np.pi * (200 + 150 * time_s * (index + 1)) * time_s)
        samples = sweep + 0.02 * rng.standard_normal(len(time_s))
        soundfile.write(root / f"talk-{index}.flac", samples, SAMPLE_RATE)
        name = f"talk-{index}"
        entry = {"id": name, "audio": f"{name}.flac", "text": SENTENCES[index]}
        entries.append({**entry, "segments": SEGMENTS if duration_s > 5 else None})
    return write_manifest(root / "talks.jsonl", entries)


@pytest.fixture(scope="module")
def flags(model, manifest):
    return [*("-m", model, "-d", manifest, "-l", "ja"), *("--generation_max_length", 24, "-b", 2)]


@pytest.fixture(scope="module")
def evaluated(root, flags):
    """Both algorithms, in one run."""
    run(SCRIPT, *flags, *BOTH, "-o", root / "eval")
    return root / "eval"


def test_recordings_with_subtitles_are_evaluated_whole(root, model, manifest, tmp_path, capsys):
    folder = tmp_path / "podcasts_with_srt"
    folder.mkdir()
    for name in ("talk-0", "talk-2"):
        (folder / f"{name}.flac").write_bytes((root / f"{name}.flac").read_bytes())
        cues = ("1\n00:00:00,500 --> 00:00:01,500\nねこ", "2\n00:00:02,000 --> 00:00:05,000\nいぬ")
        (folder / f"{name}.srt").write_text("\n\n".join(cues), "utf-8")
    words = ("-m", model, "-d", folder, "-l", "ja", "--generation_max_length", 24, "-b", 2)
    run(SCRIPT, *words, "-o", tmp_path / "eval", "--dry_run")
    assert "2 rows" in capsys.readouterr().out
    run(SCRIPT, *words, "-o", tmp_path / "eval")
    (row,) = metrics(tmp_path / "eval")
    found = results.read_predictions(tmp_path / "eval" / row["predictions"])
    assert {each.id: each.reference_raw for each in found} == dict.fromkeys(
        ("talk-0", "talk-2"), "ねこいぬ"
    )
    assert (row["num_rows_with_times"], row["num_reference_segments"]) == (2, 4)
    assert row["audio_s"] == pytest.approx(DURATIONS_S[0] + DURATIONS_S[2], abs=1e-3)
    run(SCRIPT, *words, "--segment", "cues", "-o", tmp_path / "clips")
    assert metrics(tmp_path / "clips")[0]["num_rows"] == 4


def metrics(folder):
    return results.read_rows(folder / "metric.ja.transcribe.jsonl")


def texts(folder, row):
    found = results.read_predictions(folder / row["predictions"])
    return {prediction.id: prediction.prediction_raw for prediction in found}


def test_sequential_and_chunked_are_two_evaluations(evaluated):
    rows = metrics(evaluated)
    assert [row["form"] for row in rows] == ["long_form"] * 2
    assert [row["algorithm"] for row in rows] == ["sequential", "chunked"]
    assert [row["decoding"]["timestamps"] for row in rows] == [True, False]
    assert rows[1]["long_form"] == {"chunk_length_s": 2.0, "stride_length_s": None}
    for row in rows:
        assert row["num_rows"] == len(DURATIONS_S)
        assert row["audio_s"] == pytest.approx(sum(DURATIONS_S), abs=1e-3)
        assert set(texts(evaluated, row)) == {"talk-0", "talk-1", "talk-2"}
        assert all(texts(evaluated, row).values())
    assert texts(evaluated, rows[0]) != texts(evaluated, rows[1])


def test_loops_silence_and_timestamps_are_in_the_row(evaluated):
    sequential, chunked = metrics(evaluated)
    assert sequential["num_rows_with_times"] == 2
    assert sequential["num_reference_segments"] == 4
    assert 0 <= sequential["timestamp_overlap"] <= sequential["timestamp_coverage"] <= 100
    assert "timestamp_overlap" not in chunked  # decoded without
    for row in (sequential, chunked):
        assert row["num_segments_in_silence"] == 0  # the recordings are loud throughout
        assert row["max_compression_ratio"] > 0
        path = (evaluated / row["predictions"]).with_suffix(".segments.jsonl")
        found = read_manifest(path)
        assert [one["id"] for one in found] == ["talk-0", "talk-1", "talk-2"]
        assert sum(one["num_loops"] for one in found) == row["num_loops"]
        for one, duration_s in zip(found, DURATIONS_S, strict=True):
            assert all(0 <= s["start"] <= s["end"] <= duration_s for s in one["segments"])
            joined = "".join(s["text"] for s in one["segments"])
            whole = texts(evaluated, row)[one["id"]]
            assert "".join(joined.split()) == "".join(whole.split())


def test_times_are_read_from_whispers_markup(tmp_path, flags, root):
    marked = f"<|0.00|>{SENTENCES[1]}<|1.00|>"
    entry = {"id": "talk-1", "audio": "talk-1.flac", "text": marked}
    manifest = write_manifest(root / "marked.jsonl", [entry])
    run(SCRIPT, *flags, "-d", manifest, *BOTH, "--return_timestamps", "-o", tmp_path)
    for row in metrics(tmp_path):
        assert (row["num_rows_with_times"], row["num_reference_segments"]) == (1, 1)
        (prediction,) = results.read_predictions(tmp_path / row["predictions"])
        assert prediction.reference_raw == SENTENCES[1]


def test_same_evaluations_are_not_repeated(tmp_path, evaluated, flags, capsys):
    before = snapshot(evaluated)
    run(SCRIPT, *flags, "-o", evaluated)  # each is also the default of its flags
    run(SCRIPT, *flags, *CHUNKED, "-o", evaluated, "--html", tmp_path / "report.html")
    assert capsys.readouterr().err.count("was evaluated before") == 2
    assert snapshot(evaluated) == before
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count('<details class="result"') == 2


def test_an_assistant_changes_no_text(tmp_path, flags, evaluated, root):
    assistant = talkative_model_folder(root / "assistant", seed=4)
    run(SCRIPT, *flags, *BOTH, "--assistant_model", assistant, "-o", tmp_path)
    rows, wanted = metrics(tmp_path), metrics(evaluated)
    assert [row["assistant_model"] for row in rows] == [str(assistant)] * 2
    assert [texts(tmp_path, row) for row in rows] == [texts(evaluated, row) for row in wanted]


def test_streaming_equals_reading_from_disk(tmp_path, flags, evaluated):
    run(SCRIPT, *flags, "--streaming", "-o", tmp_path)
    (row,) = metrics(tmp_path)
    assert texts(tmp_path, row) == texts(evaluated, metrics(evaluated)[0])


def test_two_processes_measure_what_one_measures(tmp_path, flags, evaluated):
    launch(SCRIPT, *flags, *CHUNKED, "-o", tmp_path, processes=2)
    (row,), wanted = metrics(tmp_path), metrics(evaluated)[1]
    assert texts(tmp_path, row) == texts(evaluated, wanted)
    assert list(texts(tmp_path, row)) == ["talk-0", "talk-1", "talk-2"]  # whoever heard them
    for name in ("cer_norm", "wer_norm", "cer_raw", "wer_raw", "num_rows", "audio_s"):
        assert row[name] == wanted[name]


@pytest.mark.parametrize(
    ("name", "group"),
    [("condition_on_prev_tokens", "long_form"), ("temperature_fallback", "decoding")],
)
def test_other_sequential_settings_run(tmp_path, flags, name, group):
    run(SCRIPT, *flags, f"--{name}", "--max_samples", 1, "-o", tmp_path)
    (row,) = metrics(tmp_path)
    assert row[group][name] is True
    assert texts(tmp_path, row)["talk-0"]


def test_bad_recording_is_named_and_counted(tmp_path, flags, root, capsys):
    (root / "noise.flac").write_bytes(b"no sound at all" * 100)
    entries = [
        {"id": "good", "audio": "talk-1.flac", "text": SENTENCES[1]},
        {"id": "bad", "audio": "noise.flac", "text": SENTENCES[0]},
    ]
    broken = write_manifest(root / "broken.jsonl", entries)
    with pytest.raises(ValueError, match="1 of 2 clips cannot be used"):
        run(SCRIPT, *flags, "-d", broken, "-o", tmp_path)
    assert "recording bad cannot be decoded" in capsys.readouterr().err
    assert metrics(tmp_path) == []
    run(SCRIPT, *flags, "-d", broken, "--max_bad_fraction", 0.5, "-o", tmp_path)
    (row,) = metrics(tmp_path)
    assert (row["num_rows"], row["num_bad"]) == (1, 1)


def test_chunk_beyond_the_window_is_refused(tmp_path, flags):
    with pytest.raises(ValueError, match=r"--chunk_length_s 30 is more than the .* window of 4 s"):
        run(SCRIPT, *flags, "--chunk_length_s", 30, "-o", tmp_path)


def problems(capsys, *argv):
    with pytest.raises(SystemExit):
        parsed(SCRIPT, ["-m", "m", "-d", "d", *argv])
    return capsys.readouterr().err


def test_flags_that_contradict_each_other_are_all_reported(capsys):
    told = problems(
        capsys, "--chunk_length_s", "2", "--condition_on_prev_tokens", "--num_beams", "0"
    )
    assert "--condition_on_prev_tokens belongs to sequential decoding" in told
    assert "--generation_num_beams must be >= 1, got 0" in told
    told = problems(capsys, "--stride_length_s", "-1", "--chunk_length_s", "0")
    assert "--stride_length_s must be >= 0" in told
    assert "--chunk_length_s must be > 0" in told
    assert "--stride_length_s needs chunked decoding" in problems(
        capsys, "--algorithm", "sequential", "--stride_length_s", "1"
    )
    assert "got 'beams'" in problems(capsys, "--algorithm", "sequential+beams")
    assert "names one twice" in problems(capsys, "--algorithm", "chunked+chunked")


def test_a_stride_of_half_a_chunk_is_refused(tmp_path, flags):
    with pytest.raises(ValueError, match=r"--stride_length_s 1 must be less than half of a chunk"):
        run(SCRIPT, *flags, *CHUNKED, "--stride_length_s", 1, "-o", tmp_path)


def test_references_without_any_time_are_not_compared():
    references = [Segment(1.0, 1.0, "a")]
    recording = RecordingTranscription("1", "a", "a", 1.0, references=references)
    assert timestamp_figures([recording]) == {}


EVALUATE = f"""
import sys
from stage_runs import run
run("{SCRIPT}", *sys.argv[1:])
"""


def test_hours_of_silence_take_little_more_memory_than_a_second(tmp_path, model):
    peaks = {}
    for name, minutes in [("short", 1), ("long", 240)]:
        path = tmp_path / f"{name}.flac"
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, format="FLAC") as file:
            for _ in range(minutes):
                file.write(np.zeros(60 * SAMPLE_RATE, np.int16))
        manifest = write_manifest(
            tmp_path / f"{name}.jsonl", [{"id": "a", "audio": path.name, "text": "ねこ"}]
        )
        flags = ["-m", model, "-d", manifest, "-l", "ja", *BOTH, "-o", tmp_path / name]
        peaks[name] = peak_mib(EVALUATE, *flags)
    # Four hours are 879 MiB of samples; the levels of their frames, in float64, are 6.
    assert peaks["long"] < peaks["short"] + 100
