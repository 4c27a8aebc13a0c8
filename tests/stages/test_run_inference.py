"""Transcripts of recordings, as users make them."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from corpora import pack
from launching import kill, launch
from stage_runs import record, run, snapshot, talkative_model_folder, wrap
from tiny import SAMPLE_RATE, SENTENCES, spoken

from distillery.audio.decoding import decode_audio
from distillery.data.transcript_files import segments_of
from distillery.evaluation import results
from distillery.storage.json_lines import read_rows
from distillery.text.subtitles import read_subtitles
from distillery.whisper.pipelines.silence import fit_to_silence

SCRIPT = "run_inference.py"
WINDOW_S = 4
SHORT_S = {"a": 1.0, "deep/b": 2.5, "deep/c": 4.0}
IDS = ["a", "talk", "deep/b", "deep/c"]  # as the files of a folder are listed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("inference")


@pytest.fixture(scope="module")
def model(root):
    return talkative_model_folder(root / "model", seed=1, decoder_layers=2)


@pytest.fixture(scope="module")
def speech(root):
    """A folder of recordings: short ones, some with a text, and a talk that espeak-ng holds."""
    folder = root / "speech"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (name, seconds) in enumerate(SHORT_S.items()):
        time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        tone = 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * time_s)
        noise = 0.02 * rng.standard_normal(len(time_s))
        soundfile.write(folder / f"{name}.flac", tone + noise, SAMPLE_RATE)
        (folder / f"{name}.txt").write_text(SENTENCES[number], "utf-8")
    soundfile.write(folder / "talk.wav", spoken(0.5, 1.0, 1.0, 0.5)[0], SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def flags(model):
    return ["-m", model, "-l", "ja", "--generation_max_length", 24, "-b", 2]


@pytest.fixture(scope="module")
def everything(flags, speech):
    """The flags of a run that writes all there is."""
    return [*flags, "-d", speech, "--word_timestamps", "--output_formats", "txt,srt,vtt"]


@pytest.fixture(scope="module")
def transcripts(root, everything):
    launch(SCRIPT, *everything, "-o", root / "transcripts")
    return root / "transcripts"


def rows_in(folder):
    return {row["id"]: row for row in read_rows(folder / "predictions.jsonl")}


def texts(folder):
    return {row_id: row["text"] for row_id, row in rows_in(folder).items()}


# --- what is written ------------------------------------------------------------------------------


def test_every_recording_has_a_row_in_the_order_of_the_data(transcripts, speech):
    rows = rows_in(transcripts)
    assert list(rows) == IDS
    assert len(set(texts(transcripts).values())) == len(IDS)
    for row_id, row in rows.items():
        assert row["text"] == "".join(s["text"] for s in row["segments"]).strip()
        assert row["language"] == "ja"
        samples, rate = soundfile.read(row["audio"])
        assert row["duration"] == pytest.approx(len(samples) / rate, abs=1e-3)
        spans = [(s["start"], s["end"]) for s in row["segments"]]
        assert all(0 <= start <= end <= row["duration"] for start, end in spans)
        reference = (speech / f"{row_id}.txt").read_text("utf-8") if row_id != "talk" else None
        assert row.get("reference") == reference
    assert len(rows["talk"]["segments"]) > 1
    assert rows["talk"]["duration"] > 2 * WINDOW_S


def test_words_lie_in_their_segments_and_join_to_the_text(transcripts):
    for row in rows_in(transcripts).values():
        assert "".join(word["text"] for word in row["words"]).strip() == row["text"]
        assert len(row["words"]) >= len([s for s in row["segments"] if s["text"].strip()])
        starts = [word["start"] for word in row["words"]]
        assert starts == sorted(starts)
        assert row["words"][-1]["end"] <= row["duration"]
    assert sum(len(row["words"]) for row in rows_in(transcripts).values()) > 20


def test_text_and_subtitles_say_the_same(transcripts):
    for row_id, row in rows_in(transcripts).items():
        name = row_id.replace("/", "_")
        (path,) = (transcripts / "txt").glob(f"{name}*")
        assert path.read_text("utf-8") == row["text"] + "\n"
        spoken_segments = [s for s in segments_of(row["segments"]) if s.text.strip()]
        for kind in ("srt", "vtt"):
            (path,) = (transcripts / kind).glob(f"{name}*")
            found = read_subtitles(path)
            assert found.refused == []
            assert len(found.cues) <= len(spoken_segments)  # those of the same time are one
            starts = {round(s.start * 1000) for s in spoken_segments}
            assert {cue.start_ms for cue in found.cues} == starts
            joined = "".join("".join(cue.text.split()) for cue in found.cues)
            assert set(joined) == set("".join(row["text"].split()))


def test_the_record_lists_every_file_and_accounts_for_every_recording(transcripts):
    found = record(transcripts)
    assert (found["stage"], found["status"]) == ("run_inference", "complete")
    assert (found["ledger"]["in"], found["ledger"]["out"]) == (4, 4)
    assert len([name for name in found["files"] if name.startswith("srt/")]) == 4
    assert {"predictions.jsonl", "config.yaml"} < set(found["files"])
    assert not [path for path in transcripts.rglob("*.lock") if path.name != ".lock"]


def test_a_second_start_does_nothing(transcripts, everything, capsys):
    before = snapshot(transcripts)
    run(SCRIPT, *everything, "-o", transcripts)
    assert "complete: nothing to do" in capsys.readouterr().err
    assert snapshot(transcripts) == before


def test_short_ones_are_what_short_form_evaluation_writes(tmp_path, flags, speech):
    shutil.copytree(speech, tmp_path / "speech", ignore=shutil.ignore_patterns("talk*"))
    run(SCRIPT, *flags, "-d", tmp_path / "speech", "-o", tmp_path / "out")
    run("run_short_form_eval.py", *flags, "-d", tmp_path / "speech", "-o", tmp_path / "eval")
    (path,) = (tmp_path / "eval" / "predictions").glob("*.csv")
    found = {p.id: p.prediction_raw for p in results.read_predictions(path)}
    assert texts(tmp_path / "out") == found


@pytest.mark.parametrize("algorithm", [[], ["--chunk_length_s", 3, "--return_timestamps"]])
def test_long_ones_are_what_long_form_evaluation_writes(tmp_path, flags, speech, algorithm):
    (tmp_path / "talk.txt").write_text("a", "utf-8")
    shutil.copy(speech / "talk.wav", tmp_path)
    words = [*flags, "-d", tmp_path / "talk.wav", *algorithm]
    run(SCRIPT, *words, "-o", tmp_path / "out")
    entry = {"id": "talk", "audio": "talk.wav", "text": "a"}
    (tmp_path / "talk.jsonl").write_text(json.dumps(entry), "utf-8")
    evaluated = [*flags, "-d", tmp_path / "talk.jsonl", *algorithm, "-o", tmp_path / "eval"]
    run("run_long_form_eval.py", *evaluated)
    (path,) = (tmp_path / "eval" / "predictions").glob("*.segments.jsonl")
    (wanted,) = read_rows(path)
    found = rows_in(tmp_path / "out")["talk"]["segments"]
    assert [{**s, "text": s["text"].strip()} for s in found] == wanted["segments"]


def test_the_output_is_scored_as_it_is(tmp_path, transcripts, flags, speech):
    scored = ["--predictions_file", transcripts / "predictions.jsonl", "-l", "ja"]
    run("score_predictions.py", *scored, "-o", tmp_path)
    (row,) = results.read_rows(tmp_path / "metric.ja.transcribe.jsonl")
    assert row["num_rows"] + row["num_empty_references"] >= 4
    assert row["num_empty_references"] == 1  # the talk has none
    (path,) = (tmp_path / "predictions").glob("*.csv")
    found = {p.id: (p.reference_raw, p.prediction_raw) for p in results.read_predictions(path)}
    assert found["deep/b"] == (SENTENCES[1], texts(transcripts)["deep/b"])


def test_the_output_is_a_manifest(tmp_path, transcripts, flags):
    words = [*flags, "-d", transcripts / "predictions.jsonl", "--text_column_name", "text"]
    run(SCRIPT, *words, "--return_timestamps", "-o", tmp_path)
    assert texts(tmp_path) == texts(transcripts)


# --- inputs ---------------------------------------------------------------------------------------


def test_files_archives_manifests_and_streams_are_read(tmp_path, flags, speech, transcripts):
    files = {p.relative_to(speech).as_posix(): p.read_bytes() for p in speech.rglob("*.*")}
    archive = pack(tmp_path / "speech.tar.gz", files)
    manifest = tmp_path / "speech.jsonl"
    entries = [{"id": n.split(".")[0], "audio": str(speech / n)} for n in files if ".txt" not in n]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    timed = [*flags, "--return_timestamps"]
    cases = {
        "archive": ["-d", archive],
        "stream": ["-d", archive, "--streaming"],
        "manifest": ["-d", manifest],
        "files": ["-d", f"{speech / 'a.flac'}+{speech / 'talk.wav'}"],
    }
    wanted = texts(transcripts)
    for name, words in cases.items():
        run(SCRIPT, *timed, *words, "-o", tmp_path / name)
        found = texts(tmp_path / name)
        assert found == {row_id: wanted[row_id] for row_id in found}
        assert set(found) == ({"a", "talk"} if name == "files" else {*IDS})
    assert "audio" not in rows_in(tmp_path / "archive")["a"]  # it is no file


def test_subtitles_beside_the_audio_do_not_cut_it(tmp_path, flags, speech):
    shutil.copy(speech / "a.flac", tmp_path / "a.flac")
    cue = "1\n00:00:00,000 --> 00:00:00,500\nねこ\n"
    (tmp_path / "a.srt").write_text(cue, "utf-8")
    run(SCRIPT, *flags, "-d", tmp_path, "-o", tmp_path.with_name("whole"))
    (row,) = rows_in(tmp_path.with_name("whole")).values()
    assert (row["id"], row["reference"]) == ("a", "ねこ")


# --- kills, faults, changes -----------------------------------------------------------------------


def count_of(monkeypatch, target):
    """Count the calls of a function from now on."""
    calls = []

    def counting(original):
        def counted(*values, **named):
            calls.append(values)
            return original(*values, **named)

        return counted

    original = wrap(target, counting)
    module, path = target.split(":")
    monkeypatch.setattr(f"{module}.{path}", original)  # puts the original back at the end
    wrap(target, counting)
    return calls


def test_a_killed_run_goes_on_behind_the_last_whole_row(
    tmp_path, everything, transcripts, monkeypatch
):
    kill(SCRIPT, "distillery.storage.json_lines:append_row", 3, *everything, "-o", tmp_path)
    left = rows_in(tmp_path)
    assert len(left) == 2
    with (tmp_path / "predictions.jsonl").open("ab") as file:
        file.write(b'{"id": "talk", "text": "\xe3\x81')  # torn, within a character
    decoded = count_of(monkeypatch, "distillery.data.transcript_files:TranscriptFiles.add")
    run(SCRIPT, *everything, "-o", tmp_path)
    assert {files_and_row[1]["id"] for files_and_row in decoded} == {*IDS} - {*left}
    assert rows_in(tmp_path) == rows_in(transcripts)
    ours, theirs = (
        {p.relative_to(f): p.read_bytes() for f in [folder] for p in f.glob("*/*.*")}
        for folder in (tmp_path, transcripts)
    )
    assert ours == theirs
    assert record(tmp_path)["ledger"] == record(transcripts)["ledger"]


def test_two_processes_write_what_one_writes(tmp_path, everything, transcripts):
    launch(SCRIPT, *everything, "-o", tmp_path, processes=2)
    assert list(rows_in(tmp_path)) == IDS
    assert texts(tmp_path) == texts(transcripts)
    assert record(tmp_path)["ledger"] == record(transcripts)["ledger"]


def test_bad_files_are_named_and_left_out_and_tried_again_once_mended(
    tmp_path, flags, speech, transcripts, capsys
):
    folder, out = shutil.copytree(speech, tmp_path / "speech"), tmp_path / "out"
    (folder / "a.flac").write_bytes(b"no audio")
    words = [*flags, "-d", folder, "--return_timestamps", "-o", out]
    with pytest.raises(ValueError, match=r"1 of 4 rows cannot be used \(audio: 1 \[a\]\)"):
        run(SCRIPT, *words, "--max_bad_fraction", 0.1)
    assert "recording a cannot be decoded" in capsys.readouterr().err
    assert list(rows_in(out)) == IDS[1:]  # nothing that was made is lost
    run(SCRIPT, *words, "--max_bad_fraction", 0.5)
    assert record(out)["ledger"]["places"] == {"audio": ["a"]}
    run(SCRIPT, *words)
    assert "quarantined rows: 1, which --retry_quarantined tries again" in capsys.readouterr().err
    shutil.copy(speech / "a.flac", folder)
    with pytest.raises(ValueError, match="its content has changed"):
        run(SCRIPT, *words)
    run(SCRIPT, *words, "--retry_quarantined")
    assert texts(out) == texts(transcripts)
    assert record(out)["ledger"]["quarantined"] == {}


def test_recordings_that_were_added_are_transcribed(tmp_path, flags, speech, transcripts, capsys):
    folder = tmp_path / "speech"
    folder.mkdir()
    shutil.copy(speech / "talk.wav", folder)
    words = [*flags, "-d", folder, "--return_timestamps", "-o", tmp_path / "out"]
    run(SCRIPT, *words)
    assert "score_predictions.py" not in capsys.readouterr().err  # there is no reference
    for name in ("a.flac", "a.txt"):
        shutil.copy(speech / name, folder)
    run(SCRIPT, *words, "--retry_quarantined")
    wanted = texts(transcripts)
    assert texts(tmp_path / "out") == {row_id: wanted[row_id] for row_id in ("a", "talk")}
    assert "next: python score_predictions.py" in capsys.readouterr().err
    before = snapshot(tmp_path / "out")
    run(SCRIPT, *words)
    assert snapshot(tmp_path / "out") == before


def test_formats_can_be_added_and_lost_files_are_made_again(
    tmp_path, everything, transcripts, monkeypatch
):
    out = shutil.copytree(transcripts, tmp_path / "out")
    loads = count_of(monkeypatch, "distillery.whisper.checkpoint:load")
    (out / "srt" / "a.srt").unlink()
    shutil.rmtree(out / "vtt")
    run(SCRIPT, *everything, "-o", out)
    for kind in ("srt", "vtt"):
        for path in (transcripts / kind).iterdir():
            assert (out / kind / path.name).read_bytes() == path.read_bytes()
    assert loads == []  # no model was needed
    (out / "predictions.jsonl").unlink()
    run(SCRIPT, *everything, "-o", out)
    assert rows_in(out) == rows_in(transcripts)
    assert record(out)["status"] == "complete"


def test_timestamps_cannot_come_later(tmp_path, flags, speech):
    words = [*flags, "-d", speech / "a.flac", "-o", tmp_path]
    run(SCRIPT, *words, "--output_formats", "txt")
    with pytest.raises(ValueError, match="--return_timestamps: False then, True now"):
        run(SCRIPT, *words, "--output_formats", "txt,srt")


# --- settings -------------------------------------------------------------------------------------


def test_a_student_with_its_teachers_alignment_heads_has_words(tmp_path, model, flags, speech):
    student = shutil.copytree(model, tmp_path / "student")
    path = student / "generation_config.json"
    heads = {"alignment_heads": [[10, 12], [13, 17], [25, 6]]}  # of 32 layers; here are 2
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **heads}), "utf-8")
    words = ["-d", speech / "talk.wav", "--word_timestamps", "-o", tmp_path / "out"]
    run(SCRIPT, *flags, *words, "-m", student)
    row = rows_in(tmp_path / "out")["talk"]
    assert "".join(word["text"] for word in row["words"]).strip() == row["text"]
    assert max(word["end"] for word in row["words"]) > WINDOW_S


def test_transcripts_are_punctuated_and_fitted_to_the_sound(
    tmp_path, flags, speech, transcripts, stable_ts, monkeypatch
):
    monkeypatch.setattr(
        "distillery.whisper.pipelines.punctuation.punctuate_by_rules",
        lambda chunks: [f"{text}。" for text in chunks],
    )
    words = ["-d", speech / "talk.wav", "-p", "rules", "-s", "--word_timestamps", "-o", tmp_path]
    run(SCRIPT, *flags, *words)
    row, plain = rows_in(tmp_path)["talk"], rows_in(transcripts)["talk"]
    assert [s["text"] for s in row["segments"]] == [f"{s['text']}。" for s in plain["segments"]]
    waveform = decode_audio({"bytes": None, "path": row["audio"]}, SAMPLE_RATE)
    chunks = [{"timestamp": (s["start"], s["end"]), "text": s["text"]} for s in plain["segments"]]
    fitted = [chunk["timestamp"] for chunk in fit_to_silence(chunks, waveform, SAMPLE_RATE)]
    times = [(s["start"], s["end"]) for s in row["segments"]]
    assert np.allclose(times, fitted, rtol=0, atol=2e-3)
    assert fitted != [chunk["timestamp"] for chunk in chunks]
    assert "".join(word["text"] for word in row["words"]).strip() == row["text"]


def test_a_language_that_nobody_names_is_detected(tmp_path, model, flags, speech):
    plain = shutil.copytree(model, tmp_path / "model")
    path = plain / "generation_config.json"
    settings = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**settings, "language": None}), "utf-8")
    words = [flag for flag in flags if flag not in ("-l", "ja")]
    run(
        SCRIPT,
        *words,
        "-m",
        plain,
        "-d",
        speech / "talk.wav",
        "--word_timestamps",
        "-o",
        tmp_path / "out",
    )
    row = rows_in(tmp_path / "out")["talk"]
    assert "language" not in row  # it may differ from window to window
    assert row["text"]
    assert row["words"]


def test_a_dry_run_reads_no_weights_and_writes_nothing(tmp_path, model, everything, capsys):
    shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    run(SCRIPT, *everything, "-m", tmp_path / "model", "-o", tmp_path / "out", "--dry_run")
    told = capsys.readouterr().out
    assert "4 rows" in told
    assert "M parameters, 2 + 2 layers" in told
    assert "nothing is there of an earlier run" in told
    assert not (tmp_path / "out").exists()


def test_its_configuration_repeats_the_run(tmp_path, transcripts):
    run(SCRIPT, transcripts / "config.yaml", "-o", tmp_path)
    assert rows_in(tmp_path) == rows_in(transcripts)


def test_wrong_flags_are_reported_together(capsys):
    words = ["-m", "m", "-d", "d", "-o", "o", "--output_formats", "srt,doc", "-b", "0"]
    with pytest.raises(SystemExit):
        run(SCRIPT, *words, "--algorithm", "sequential+chunked")
    told = capsys.readouterr().err
    assert "--output_formats must be of jsonl, txt, srt, vtt; got 'doc'" in told
    assert "--per_device_eval_batch_size must be >= 1, got 0" in told
    assert "--algorithm sequential+chunked: choose one" in told
