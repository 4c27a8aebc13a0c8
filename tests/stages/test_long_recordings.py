"""The commands of docs/inputs.md for long recordings, over made-up ones and with a tiny model."""

import io
import shlex
import shutil

import numpy as np
import pytest
import soundfile
from command_lines import text_of
from stage_runs import record, run, split_rows, talkative_model_folder, write_manifest
from tiny import SPOKEN, spoken, write_by_av

from distillery.text import labels
from distillery.whisper import checkpoint

RATE = 16_000
WINDOW_S = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("long")


@pytest.fixture(scope="module")
def teacher(root):
    return talkative_model_folder(root / "teacher")


@pytest.fixture(scope="module")
def talking():
    return spoken(1, 1, 1, 1)


def page_command(dataset):
    """Return the script and the words of the page's command that reads a dataset."""
    text = text_of("docs/inputs.md").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if f"--dataset_name {dataset} " in line]
    assert len(lines) == 1
    return shlex.split(lines[0])[1:]


def run_page(dataset, folder, teacher, *more):
    """Run such a command in a folder, with another model."""
    script, *words = page_command(dataset)
    here = {"openai/whisper-large-v3": teacher, dataset: folder / dataset}
    output = folder / words[words.index("--output_dir") + 1]
    words = [here.get(word, output if word == output.name else word) for word in words]
    run(script, *words, "--max_label_length", 24, *more)
    return output


def test_a_talk_with_subtitles(root, teacher, talking):
    samples, spans = talking
    write_by_av(root / "talk.m4a", samples, "aac", "ipod", RATE)
    (root / "talk.srt").write_text(
        "".join(
            f"1\n00:00:{start:06.3f} --> 00:00:{end:06.3f}\n{text}\n\n"
            for (start, end), text in zip(spans, SPOKEN, strict=True)
        )
    )
    write_manifest(
        root / "talks.jsonl", [{"id": "talk", "audio": "talk.m4a", "subtitles": "talk.srt"}]
    )
    labelled = run_page("talks.jsonl", root, teacher, "--concatenate_audio", "False")
    rows = split_rows(labelled)
    assert [row["text"] for row in rows] == list(SPOKEN)
    assert [(row["start_s"], row["end_s"]) for row in rows] == [
        (round(start, 3), round(end, 3)) for start, end in spans
    ]
    assert rows[0]["id"] == f"talk-{rows[0]['start_s']:09.3f}-{rows[0]['end_s']:09.3f}"
    assert {row["recording_id"] for row in rows} == {"talk"}
    for row, (start, end) in zip(rows, spans, strict=True):
        assert row["duration"] == pytest.approx(end - start, abs=2e-3)
        heard, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        said = samples[round(row["start_s"] * RATE) :]
        assert rate == RATE
        assert np.corrcoef(heard[:20_000], said[:20_000])[0, 1] > 0.9
    assert record(labelled)["ledger"]["out"] == 3


def test_recordings_without_subtitles(root, teacher, talking):
    samples, spans = talking
    soundfile.write(root / "podcast.ogg", np.stack([samples, samples], 1), RATE)
    entry = {"id": "p/1", "audio": "podcast.ogg", "speaker_id": "anna"}
    write_manifest(root / "podcasts.jsonl", [entry])
    more = ("--segment_max_s", WINDOW_S, "--rows_per_shard", 2, "--concatenate_audio", "False")
    labelled = run_page("podcasts.jsonl", root, teacher, *more)
    rows = split_rows(labelled)
    for row, (start, end) in zip(rows, spans, strict=True):
        assert (row["start_s"], row["end_s"]) == pytest.approx((start, end), abs=0.4)
        assert row["speaker_id"] == "anna"
        assert row["text"] is None
    tokens = checkpoint.load_processor(str(teacher)).tokens
    texts = [labels.text_ids(row["whisper_transcript"], tokens) for row in rows]
    assert [row["condition_on_prev"] for row in rows] == [None, *texts[:-1]]

    # A run from a stream writes the same.
    shutil.rmtree(labelled)
    streamed = run_page("podcasts.jsonl", root, teacher, *more, "--streaming")
    assert split_rows(streamed) == rows
