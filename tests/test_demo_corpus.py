import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from tiny import REPOSITORY, load_script
from transformers import GenerationConfig

from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.whisper import checkpoint

ARGUMENTS = ["--num_train", "14", "--num_test", "6", "--num_long", "2", "--num_windows", "18"]
SETS = ("train", "windows", "test", "long", "dev", "dev_long")


def make_corpus(folder, *more):
    """Run the script in a process of its own: espeak-ng's state is part of the result."""
    command = [sys.executable, "scripts/demo/make_corpus.py", "--output_dir", folder, *ARGUMENTS]
    return subprocess.run(
        [*command, *more],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    run = make_corpus(folder)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def rows(corpus):
    return {
        name: [json.loads(line) for line in (corpus / f"{name}.jsonl").open(encoding="utf-8")]
        for name in SETS
    }


def times(text):
    return [float(value) for value in re.findall(r"<\|([\d.]+)\|>", text)]


def plain(text):
    return text.replace("。", "")


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_runs_give_the_same_bytes(corpus, tmp_path):
    assert make_corpus(tmp_path).returncode == 0
    assert digests(tmp_path) == digests(corpus)


def test_finished_corpus_is_left_alone_and_another_is_refused(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    again = make_corpus(corpus)
    assert again.returncode == 0
    assert "already" in again.stdout
    other = make_corpus(corpus, "--seed", "1")
    assert other.returncode != 0
    assert "seed 0 there, 1 asked for" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_sets_have_the_rows_asked_for(corpus, rows):
    assert {name: len(found) for name, found in rows.items()} == {
        "train": 14,
        "windows": 18,
        "test": 6,
        "long": 2,
        "dev": 6,
        "dev_long": 2,
    }
    summary = json.loads((corpus / "corpus.json").read_text())
    assert summary["sets"]["train"]["rows"] == 14
    ids = [row["id"] for found in rows.values() for row in found]
    assert len(set(ids)) == len(ids)


def test_audio_is_what_the_manifest_says(corpus, rows):
    for found in rows.values():
        for row in found:
            info = soundfile.info(corpus / row["audio"])
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
            assert info.duration == pytest.approx(row["duration"], abs=1e-3)
            assert row["language"] == "ja"
    assert all(1.0 <= row["duration"] <= 3.0 for row in rows["train"] + rows["test"])
    assert all(20.0 <= row["duration"] <= 40.0 for row in rows["long"] + rows["dev_long"])
    lengths = [row["duration"] for row in rows["windows"]]
    assert all(1.0 <= length <= 3.0 for length in lengths)
    assert sum(length == 3.0 for length in lengths) >= 9
    assert sum(length < 3.0 for length in lengths) >= 3


def sentences(rows, *sets):
    found = [row for name in sets for row in rows[name]]
    return [plain(part["text"]) for row in found for part in row.get("segments") or [row]]


def test_no_sentence_is_in_two_sets(rows):
    trained = {plain(row["text"]) for row in rows["train"] + rows["windows"]}
    tested = sentences(rows, "test", "long")
    developed_on = sentences(rows, "dev", "dev_long")
    assert len(tested) > 20 and len(developed_on) > 20
    assert len({*tested, *developed_on}) == len(tested) + len(developed_on)
    assert not trained & {*tested, *developed_on}


def test_the_development_set_is_drawn_on_its_own(corpus, rows):
    def speakers(name):
        clips = [soundfile.read(corpus / row["audio"])[0] for row in rows[name]]
        return {(row["speaker_id"], max(clip)) for row, clip in zip(rows[name], clips, strict=True)}

    assert not speakers("dev") & speakers("test")
    assert not speakers("dev_long") & speakers("long")


def test_texts_are_kana_with_some_full_stops(rows):
    texts = [row["text"] for row in rows["train"] + rows["test"]]
    assert all(re.fullmatch(r"[ぁ-ん]+。?", text) for text in texts)
    assert 0 < sum(text.endswith("。") for text in texts) < len(texts)


def test_timestamps_enclose_the_speech(corpus, rows):
    for row in rows["train"] + rows["test"]:
        start, end = times(row["timestamped_text"])
        assert re.sub(r"<\|.*?\|>", "", row["timestamped_text"]) == row["text"]
        samples, _ = soundfile.read(corpus / row["audio"])
        loud = np.flatnonzero(np.abs(samples) > 1e-3) / 16000
        assert start == pytest.approx(loud[0], abs=0.021)
        assert end == pytest.approx(loud[-1], abs=0.021)


def test_long_segments_are_speech_between_pauses(corpus, rows):
    for row in rows["long"]:
        samples, _ = soundfile.read(corpus / row["audio"])
        parts = row["segments"]
        assert row["text"] == "".join(part["text"] for part in parts)
        for part, following in pairwise(parts):
            assert 0.699 <= following["start"] - part["end"] <= 1.201
            first, last = int(part["start"] * 16000), int(part["end"] * 16000)
            assert np.abs(samples[first:last]).max() > 0.2
            assert not samples[last + 32 : int(following["start"] * 16000) - 32].any()


def test_long_clips_are_the_utterances_of_the_recordings(corpus, rows):
    parts = [(row["id"], part) for row in rows["long"] for part in row["segments"]]
    clips = sources.load(DatasetSpec(str(corpus / "long_clips.jsonl")))
    assert [clip["recording_id"] for clip in clips] == [name for name, _ in parts]
    assert [clip["text"] for clip in clips] == [part["text"] for _, part in parts]
    for clip, (_, part) in zip(clips, parts, strict=True):
        assert clip["duration"] == pytest.approx(part["end"] - part["start"] + 0.2, abs=0.11)
        assert np.abs(soundfile.read(io.BytesIO(clip["audio"]["bytes"]))[0]).max() > 0.2


def test_windows_start_in_silence_and_end_as_whisper_was_trained(corpus, rows):
    cut_off = 0
    for row in rows["windows"]:
        marks = times(row["timestamped_text"])
        assert marks == sorted(marks)
        samples, _ = soundfile.read(corpus / row["audio"])
        assert not samples[16 : max(16, int(marks[0] * 16000) - 320)].any()
        assert re.sub(r"<\|.*?\|>", "", row["timestamped_text"]) == row["text"]
        if row["timestamped_text"] == "<|0.00|>":
            assert not samples.any()
        elif len(marks) % 2:
            cut_off += 1
            assert row["timestamped_text"].endswith(f"<|{marks[-1]:.2f}|>")
            assert np.abs(samples[int(marks[-1] * 16000) :]).max() > 1e-3
        else:
            assert not samples[int(marks[-1] * 16000) + 320 :].any()
    assert cut_off


def two_utterances():
    script = load_script("scripts/demo/make_corpus.py")
    silence = np.zeros(16000, np.float32)
    two = script.Utterance(("ねこ", "いぬ"), True, silence)
    one = script.Utterance(("とり",), False, silence)
    return script.Recording.join([two, one], [0.5, 0.5, 0.5])  # at 0.5 and at 2.0 s


def test_window_keeps_the_utterances_that_are_wholly_inside():
    recording = two_utterances()
    assert recording.timestamped_between(0.4, 2.5) == "<|0.10|>ねこいぬ。<|1.10|><|1.60|>"
    assert recording.complete_between(0.4, 2.5) == "ねこいぬ。"


@pytest.mark.parametrize("seed", range(20))
def test_windows_begin_in_silence_and_whole_ones_end_there(seed):
    script, rng = load_script("scripts/demo/make_corpus.py"), random.Random(seed)
    recording = two_utterances()
    start, end = script.draw_window(rng, recording, 2.7, 0.5, whole=False)
    assert 0.0 <= start < 0.5
    assert end - start == pytest.approx(2.7)
    start, end = script.draw_window(rng, recording, 2.7, 0.5, whole=True)
    if start >= 0.35:  # both fit
        assert 3.0 < end <= start + 2.7
    else:
        assert 1.5 < end < 2.0
    assert script.draw_window(rng, recording, 2.7, 3.5, whole=True)[0] >= 3.0  # silence alone


def test_every_other_window_holds_two_whole_utterances(rows):
    for row in rows["windows"][1::2]:
        marks = times(row["timestamped_text"])
        assert len(marks) >= 4 and len(marks) % 2 == 0
        assert marks[-1] < row["duration"]


@pytest.mark.parametrize(
    ("flag", "value"), [("--num_train", "-1"), ("--window_s", "0.5"), ("--num_long", "-2")]
)
def test_wrong_numbers_are_refused(flag, value, capsys, tmp_path):
    script = load_script("scripts/demo/make_corpus.py")
    with pytest.raises(SystemExit):
        script.main(["--output_dir", str(tmp_path), flag, value])
    assert f"{flag} must be" in capsys.readouterr().err


def test_teacher_is_a_whole_checkpoint_that_generates(corpus, tmp_path):
    script = load_script("scripts/demo/make_teacher.py")
    script.main(["--corpus", str(corpus), "--output_dir", str(tmp_path), "--d_model", "32"])
    loaded = checkpoint.load(str(tmp_path))
    settings = GenerationConfig.from_pretrained(tmp_path)  # fact: some vanish on a wrong save
    assert settings.is_multilingual
    assert settings.lang_to_id["<|ja|>"] == loaded.tokens.languages["ja"]
    assert settings.no_timestamps_token_id == loaded.tokens.no_timestamps
    assert settings.max_length == loaded.model.config.max_target_positions == 96
    features = torch.randn(1, 80, 300, generator=torch.Generator().manual_seed(0))
    for timestamps in (True, False):
        ids = loaded.model.generate(
            features, language="ja", task="transcribe", return_timestamps=timestamps
        )
        assert ids.shape[0] == 1
        assert (ids[0, 0] >= loaded.tokens.timestamp_begin) or not timestamps


def test_teacher_is_the_same_every_time(corpus, tmp_path):
    script = load_script("scripts/demo/make_teacher.py")
    for name in ("a", "b"):
        script.main(["--corpus", str(corpus), "--output_dir", str(tmp_path / name)])
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_teacher_without_a_corpus_is_refused(tmp_path):
    script = load_script("scripts/demo/make_teacher.py")
    with pytest.raises(SystemExit, match=r"make_corpus\.py first"):
        script.main(["--corpus", str(tmp_path), "--output_dir", str(tmp_path / "out")])
