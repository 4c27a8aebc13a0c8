import json

import pytest

from distillery.data.transcript_files import TranscriptFiles, segment_rows, segments_of
from distillery.storage.outputs import Outputs
from distillery.text.subtitles import read_subtitles
from distillery.text.timestamps import Segment

SEGMENTS = [Segment(0.5, 1.25, " Ein Satz,"), Segment(1.25, 2.0, " und noch einer.")]


def row_of(row_id, text="Ein Satz, und noch einer."):
    return {"id": row_id, "text": text, "segments": segment_rows(SEGMENTS)}


@pytest.fixture
def files(tmp_path):
    files = TranscriptFiles(Outputs(tmp_path / "out"), ["jsonl", "txt", "srt", "vtt"])
    files.outputs.grow(files.path)
    return files


def test_segments_come_back():
    assert segments_of(segment_rows(SEGMENTS)) == SEGMENTS


def test_each_recording_has_its_files(files):
    for row_id in ("b", "a/../c"):
        files.add(row_of(row_id))
    assert files.path_of("b", "txt").read_text("utf-8") == "Ein Satz, und noch einer.\n"
    for kind in ("srt", "vtt"):
        (named,) = (files.outputs.folder / kind).glob("a_*")
        cues = read_subtitles(named).cues
        assert [(c.start_ms, c.end_ms, c.text) for c in cues] == [
            (500, 1250, "Ein Satz,"),
            (1250, 2000, "und noch einer."),
        ]
    assert list(files.read()) == ["b", "a/../c"]
    assert files.is_whole()


def test_completing_puts_rows_in_order_and_makes_what_is_missing(files, caplog):
    for row_id in ("c", "a", "gone", "b"):
        files.add(row_of(row_id, text=row_id))
    files.path_of("a", "srt").unlink()
    assert not files.is_whole()
    assert files.complete(["a", "b", "never", "c"]) == 3
    rows = [json.loads(line) for line in files.path.read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c", "gone"]
    assert "1 rows of recordings that are gone stay" in caplog.text
    assert files.path_of("a", "srt").exists()
    assert files.is_whole()
    before = files.path.stat().st_ino
    assert files.complete(["a", "b", "c"]) == 3
    assert files.path.stat().st_ino == before  # nothing to write


def test_a_torn_row_is_not_there_and_is_made_again(files):
    files.add(row_of("a"))
    with files.path.open("ab") as file:
        file.write(b'{"id": "b", "text": "Ein')
    assert list(files.read()) == ["a"]
    files.add(row_of("b"))
    assert list(files.read()) == ["a", "b"]
    assert files.complete(["a", "b"]) == 2
    assert sorted(path.name for path in files.outputs.folder.glob("pred*")) == ["predictions.jsonl"]


def test_a_file_of_the_users_is_not_written_over(files):
    files.path_of("a", "txt").parent.mkdir(parents=True)
    files.path_of("a", "txt").write_text("mine")
    with pytest.raises(ValueError, match="did not leave it there"):
        files.add(row_of("a"))
    assert list(files.read()) == []


def test_without_any_row_there_is_an_empty_file(files):
    assert not files.is_whole()
    assert files.complete(["a"]) == 0
    assert files.path.read_bytes() == b""
    assert files.is_whole()
