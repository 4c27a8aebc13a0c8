import io
import itertools
import logging
import sys
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from stage_runs import write_manifest
from tiny import SHARED, spoken

from distillery.audio.decoding import AudioError, decode_audio
from distillery.data.specs import DatasetSpec
from distillery.ingest import segmentation, speech
from distillery.ingest.sources import fingerprint, load
from distillery.ingest.speech import speech_windows

RATE = 16_000


@pytest.fixture(autouse=True)
def counted(monkeypatch, caplog, tmp_path_factory):
    """Give each test a cache of its own; return the recordings that it decodes, in order."""
    monkeypatch.setattr(segmentation, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    caplog.set_level(logging.INFO)
    decoded = []
    decode = segmentation.decode_at_own_rate

    def counting(audio):
        decoded.append(audio)
        return decode(audio)

    monkeypatch.setattr(segmentation, "decode_at_own_rate", counting)
    return decoded


def ramp(seconds, rate=RATE):
    """Return 16-bit samples of which each second has its own."""
    return (np.arange(round(seconds * rate)) % 60_000 - 30_000).astype(np.int16)


def recording(path, seconds=10, rate=RATE):
    soundfile.write(path, ramp(seconds, rate), rate, subtype="PCM_16")
    return path.name


def srt(path, *cues):
    """Write subtitles: (start, end, text) in seconds."""
    blocks = [f"00:00:{s:06.3f} --> 00:00:{e:06.3f}\n{text}\n" for s, e, text in cues]
    path.write_text("WEBVTT\n\n" + "\n".join(blocks), "utf-8")
    return path.name


def clips_of(folder, rows, **fields):
    manifest = write_manifest(folder / "m.jsonl", rows)
    return load(DatasetSpec(str(manifest), **fields))


def samples_of(clip):
    return soundfile.read(io.BytesIO(clip["audio"]["bytes"]), dtype="int16")


@pytest.fixture
def talk(tmp_path):
    """One recording of 10 s with three cues, and one without subtitles."""
    cues = [(1, 2.5, "one"), (2, 3.001, "two"), (8, 12, "three")]
    return [
        {
            "id": "talk",
            "audio": recording(tmp_path / "talk.wav"),
            "subtitles": srt(tmp_path / "talk.vtt", *cues),
            "speaker_id": "anna",
        },
        {"id": "short", "audio": recording(tmp_path / "short.wav", 1), "text": "whole"},
    ]


# --- subtitles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_recording_is_cut_at_its_cues(tmp_path, talk, streaming):
    clips = list(clips_of(tmp_path, talk, streaming=streaming))
    assert [(clip["id"], clip["text"]) for clip in clips] == [
        ("talk-00001.000-00002.500", "one"),
        ("talk-00002.000-00003.001", "two"),
        ("talk-00008.000-00010.000", "three"),  # the recording ends before the cue
        ("short", "whole"),
    ]
    assert [clip["recording_id"] for clip in clips] == ["talk"] * 3 + [None]
    assert [clip["speaker_id"] for clip in clips] == ["anna"] * 3 + [None]
    assert [(clip["start_s"], clip["end_s"]) for clip in clips] == [
        (1, 2.5),
        (2, 3.001),
        (8, 10),
        (None, None),
    ]
    assert [clip["duration"] for clip in clips[:3]] == pytest.approx([1.5, 1.001, 2])
    for clip in clips[:3]:
        samples, rate = samples_of(clip)
        place = slice(int(clip["start_s"] * RATE), int(clip["end_s"] * RATE))
        assert rate == RATE
        np.testing.assert_array_equal(samples, ramp(10)[place])
    assert clips[3]["audio"] == {"bytes": None, "path": str(tmp_path / "short.wav")}
    assert "subtitles" not in clips[0]


def test_each_recording_is_decoded_once(tmp_path, talk, counted):
    clips_of(tmp_path, talk)
    assert [audio["path"] for audio in counted] == [str(tmp_path / "talk.wav")]


def test_clips_keep_the_rate_and_a_recording_id_that_is_there(tmp_path, talk):
    talk[0] |= {"recording_id": "tape", "audio": recording(tmp_path / "cd.wav", 10, 44_100)}
    clip = clips_of(tmp_path, talk)[0]
    assert clip["recording_id"] == "tape"
    samples, rate = samples_of(clip)
    assert rate == 44_100
    np.testing.assert_array_equal(samples, ramp(10, 44_100)[44_100:110_250])


def test_cues_that_cannot_be_used_are_counted_and_named(tmp_path, talk, caplog):
    cues = [(1, 2, "x"), (3, 2, "x"), (3, 4, ""), (10, 11, "x"), (1, 7, "x"), (0.5, 6.5, "x")]
    srt(tmp_path / "talk.vtt", *cues)
    clips = clips_of(tmp_path, talk, segment_max_s=5)
    assert clips["id"][:] == ["talk-00001.000-00002.000", "short"]
    assert "recording talk, talk.vtt, line 12: dropped: begins after the recording" in caplog.text
    assert "recording talk, talk.vtt, line 6: dropped: ends before it starts" in caplog.text
    assert (
        "2 recordings, 2 clips, of which 1.0 s were cut out; pieces of recordings: 7 in = 2 out + "
        "5 dropped (longer than a clip may be: 2, ends before it starts: 1, no text: 1, begins "
        "after the recording: 1) + 0 quarantined" in caplog.text
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_subtitles_beside_a_recording_are_found_by_their_name(tmp_path, talk, caplog, streaming):
    (tmp_path / "short.txt").write_text("whole")
    srt(tmp_path / "orphan.srt", (0, 1, "x"))
    rows = list(load(DatasetSpec(str(tmp_path), streaming=streaming)))
    assert [row["text"] for row in rows] == ["whole", "one", "two", "three"]
    assert [row["recording_id"] for row in rows] == [None, "talk", "talk", "talk"]
    assert "texts: 3 in = 2 out" in caplog.text
    assert "1 quarantined (without audio: 1 [orphan.srt]); clips: 2 in = 2 out" in caplog.text
    one = load(DatasetSpec(str(tmp_path / "talk.wav"), streaming=streaming))
    assert list(one) == [row for row in rows if row["recording_id"] == "talk"]
    assert len(list(load(DatasetSpec(str(tmp_path), segment="none", streaming=streaming)))) == 2


def test_subtitles_in_an_archive_are_named(tmp_path, talk, caplog):
    with tarfile.open(tmp_path / "talks.tar", "w") as archive:
        for name in ("talk.wav", "talk.vtt"):
            archive.add(tmp_path / name, name)
    assert load(DatasetSpec(str(tmp_path / "talks.tar")))["id"][:] == ["talk"]
    assert "subtitles in an archive: extract it to use them" in caplog.text


def test_the_fingerprint_of_a_folder_covers_subtitles(tmp_path, talk):
    before = fingerprint(DatasetSpec(str(tmp_path)))
    srt(tmp_path / "talk.vtt", (1, 2.5, "eno"), (2, 3.001, "two"), (8, 12, "three"))
    assert fingerprint(DatasetSpec(str(tmp_path))) != before


@pytest.mark.parametrize("streaming", [False, True])
def test_recordings_may_stay_whole_with_their_cues_as_references(
    tmp_path, talk, counted, streaming
):
    srt(tmp_path / "talk.vtt", (2, 3, "two"), (1, 2.5, "one"), (4, 3, "x"))
    whole, short = clips_of(tmp_path, talk, segment="none", streaming=streaming)
    assert (whole["id"], whole["text"]) == ("talk", "one two")
    assert whole["segments"] == [
        {"start": 1.0, "end": 2.5, "text": "one"},
        {"start": 2.0, "end": 3.0, "text": "two"},
    ]
    assert whole["audio"]["path"] == str(tmp_path / "talk.wav")
    assert "subtitles" not in whole
    assert (short["id"], short["segments"]) == ("short", None)
    assert not counted


def test_cues_of_whole_recordings_that_cannot_be_used_are_counted_and_named(tmp_path, talk, caplog):
    srt(tmp_path / "talk.vtt", (1, 2, "one"), (4, 3, "x"), (5, 6, ""))
    clips_of(tmp_path, talk, segment="none")
    assert "recording talk, talk.vtt, line 6: dropped: ends before it starts" in caplog.text
    assert (
        "2 recordings stay whole; cues of their subtitles: 3 in = 1 out + 2 dropped (ends before "
        "it starts: 1, no text: 1) + 0 quarantined" in caplog.text
    )


def test_a_whole_recording_keeps_the_reference_that_its_row_has(tmp_path, talk):
    own = {"text": "as printed", "segments": [{"start": 0.0, "end": 9.0, "text": "as printed"}]}
    (row,) = clips_of(tmp_path, [{**talk[0], **own}], segment="none")
    assert {name: row[name] for name in own} == own


def test_the_cues_of_a_file_are_no_reference_of_its_parts(tmp_path, talk):
    parts = [
        {**talk[0], "id": f"p{i}", "offset": 2 * i, "duration": 2, "text": None} for i in (0, 1)
    ]
    rows = clips_of(tmp_path, parts, segment="none")
    assert rows["id"][:] == ["p0", "p1"]
    assert rows["text"][:] == [None, None]


@pytest.mark.parametrize("streaming", [False, True])
def test_no_more_is_cut_than_asked_for(tmp_path, talk, counted, streaming):
    second = {**talk[0], "id": "second", "audio": recording(tmp_path / "second.wav")}
    rows = clips_of(tmp_path, [talk[0], second], max_rows=2, streaming=streaming)
    assert [row["text"] for row in rows] == ["one", "two"]
    assert len(counted) == 1


def test_a_recording_that_cannot_be_decoded_is_left_to_the_stage(tmp_path, talk, caplog):
    (tmp_path / "talk.wav").write_bytes(b"no audio")
    clips = clips_of(tmp_path, talk)
    assert clips["id"][:] == ["talk", "short"]
    assert clips[0]["audio"]["path"] == str(tmp_path / "talk.wav")
    assert "recording talk cannot be decoded" in caplog.text


def test_what_can_be_decoded_later_is_cut_then(tmp_path, talk, monkeypatch):
    def failing(audio):
        raise AudioError("cannot be decoded: FFmpeg: not done after 600 s")

    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "decode_at_own_rate", failing)
        assert clips_of(tmp_path, talk)["id"][:] == ["talk", "short"]
    assert len(clips_of(tmp_path, talk)) == 4


def test_the_split_keeps_its_name(tmp_path, talk):
    rows = load(DatasetSpec(str(tmp_path), split="dev"))
    assert str(rows.split) == "dev"


@pytest.mark.parametrize("segment", ["cues", "none"])
def test_missing_subtitles_are_an_error(tmp_path, talk, segment):
    (tmp_path / "talk.vtt").unlink()
    with pytest.raises(FileNotFoundError, match=r"recording talk: its subtitles .*talk\.vtt are"):
        clips_of(tmp_path, talk, segment=segment)


def test_two_recordings_of_one_id_are_refused(tmp_path, talk):
    with pytest.raises(ValueError, match="'talk' occurs more than once"):
        clips_of(tmp_path, [talk[0], talk[0]])


# --- the cache -----------------------------------------------------------------------------------


def test_a_second_run_takes_the_clips_of_the_first(tmp_path, talk, counted, caplog):
    first = list(clips_of(tmp_path, talk))
    caplog.clear()
    assert list(clips_of(tmp_path, talk)) == first
    assert len(counted) == 1
    assert "2 recordings, 4 clips, of which 4.5 s were cut out" in caplog.text


def test_changed_content_is_cut_again(tmp_path, talk, counted):
    clips_of(tmp_path, talk)
    srt(tmp_path / "talk.vtt", (1, 2, "other"))
    assert clips_of(tmp_path, talk)[0]["text"] == "other"
    recording(tmp_path / "talk.wav", 9)
    clips_of(tmp_path, talk)
    clips_of(tmp_path, talk, segment_max_s=20)
    assert len(counted) == 4
    clips_of(tmp_path, [{**talk[0], "speaker_id": "bert"}, talk[1]])
    assert len(counted) == 5


def test_a_killed_run_leaves_nothing_that_is_taken_for_clips(tmp_path, talk, monkeypatch):
    second = {**talk[0], "id": "second"}
    encode = segmentation.encode_flac
    count = iter(range(100))

    def failing(*args):
        if next(count) == 4:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(segmentation, "encode_flac", failing)
    with pytest.raises(KeyboardInterrupt):
        clips_of(tmp_path, [talk[0], second])
    clips = clips_of(tmp_path, [talk[0], second])
    assert len(set(clips["id"][:])) == len(clips) == 6
    assert next(count) == 8  # 3 clips, of the second recording 1 that counted not, and 3


def test_clips_without_their_account_are_cut_again(tmp_path, talk, counted):
    """As a kill between the two leaves them."""
    first = list(clips_of(tmp_path, talk))
    for path in segmentation.HF_DATASETS_CACHE.glob("segments/*.json"):
        path.unlink()
    assert list(clips_of(tmp_path, talk)) == first
    assert len(counted) == 2


def test_a_hundred_files_hold_any_number_of_recordings(tmp_path, talk, monkeypatch):
    monkeypatch.setattr(segmentation, "MOST_CACHE_FILES", 2)
    rows = [{**talk[index % 2], "id": f"r{index}"} for index in range(5)]
    clips = clips_of(tmp_path, rows)
    assert [clip["id"].split("-")[0] for clip in clips] == [
        *["r0"] * 3, "r1", *["r2"] * 3, "r3", *["r4"] * 3
    ]  # fmt: skip
    assert len(list(segmentation.HF_DATASETS_CACHE.glob("segments/*.arrow"))) == 2


def test_the_fingerprint_of_a_dataset_covers_how_it_is_cut(tmp_path, talk):
    manifest = str(write_manifest(tmp_path / "m.jsonl", talk))
    specs = [
        DatasetSpec(manifest),
        DatasetSpec(manifest, segment="vad"),
        DatasetSpec(manifest, segment="none"),
        DatasetSpec(manifest, segment_max_s=20),
    ]
    assert len({fingerprint(spec) for spec in specs}) == 4


# --- rows that are parts of files ----------------------------------------------------------------


def parts_of(name, *places):
    return [
        {"audio": name, "offset": offset, "duration": duration, "text": f"from {offset}"}
        for offset, duration in places
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_offsets_as_in_nemo_manifests(tmp_path, counted, streaming):
    name = recording(tmp_path / "tape.wav")
    rows = parts_of(name, (0, 2.5), (2.5, 1.25), (9, 5), (10, 1))
    clips = list(clips_of(tmp_path, rows, streaming=streaming))
    assert [clip["text"] for clip in clips] == ["from 0", "from 2.5", "from 9"]
    assert [clip["id"] for clip in clips] == [f"row-00000000{index}" for index in range(3)]
    assert {clip["recording_id"] for clip in clips} == {"tape.wav"}
    assert (clips[1]["start_s"], clips[1]["end_s"]) == (2.5, 3.75)
    np.testing.assert_array_equal(samples_of(clips[1])[0], ramp(10)[40_000:60_000])
    assert [clip["duration"] for clip in clips] == [2.5, 1.25, 1]
    assert len(counted) == 1
    assert "offset" not in clips[0]


def test_files_that_are_one_clip_each_are_left_as_they_are(tmp_path, counted):
    rows = parts_of(recording(tmp_path / "a.wav"), (0, 10), (0.0, 9.95))
    assert all(row["audio"]["bytes"] is None for row in clips_of(tmp_path, rows))
    assert not counted
    rows += parts_of(recording(tmp_path / "b.wav"), (1, 2))
    found = clips_of(tmp_path, rows)
    assert [row["audio"]["bytes"] is None for row in found] == [True, True, False]


@pytest.mark.parametrize("name", ["offset", "duration"])
def test_an_offset_that_is_no_number_is_named(tmp_path, name):
    row = {"audio": recording(tmp_path / "a.wav"), "id": "x", "offset": "1", "duration": "2"}
    assert len(clips_of(tmp_path, [row])) == 1
    with pytest.raises(ValueError, match=f"line 1: column '{name}' is 'soon', not a number of sec"):
        clips_of(tmp_path, [{**row, name: "soon"}])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["offset", "duration"])
@pytest.mark.parametrize("value", ["soon", "nan", "-1", "inf"])
def test_a_part_without_usable_times_is_left_out_of_any_dataset(
    tmp_path, name, value, streaming, caplog
):
    audio = {"bytes": None, "path": str(tmp_path / recording(tmp_path / "a.wav"))}
    row = {"id": "x", "audio": audio, "offset": "1", "duration": "2"}
    (tmp_path / "rows").mkdir()
    rows = Dataset.from_list([row, {**row, "id": "y", name: value}])
    rows.to_parquet(tmp_path / "rows" / "train.parquet")
    (clip,) = load(DatasetSpec(str(tmp_path / "rows"), streaming=streaming))
    assert clip["id"] == "x"
    assert f"recording y: left out: offset or duration is '{value}', not a number" in caplog.text


# --- speech --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talking():
    """Three sentences; the pause before the last is too long to be part of a clip."""
    samples, spans = spoken(1, 1, 5, 2)
    return samples, [(1000 * start, 1000 * end) for start, end in spans]


def test_speech_is_found_and_neighbours_are_joined(talking):
    samples, spans = talking
    wanted = [(spans[0][0], spans[1][1]), spans[2]]  # the pause of 5 s is too long
    for found, said in zip(speech_windows(samples, 30.0), wanted, strict=True):
        assert found == pytest.approx(said, abs=400)


def test_no_window_is_longer_than_asked_for(talking):
    samples, spans = talking
    found = speech_windows(samples, 4.0)
    for window, said in zip(found, spans, strict=True):
        assert window == pytest.approx(said, abs=400)
    for max_s in (0.5, 1, 2, 3):
        found = speech_windows(samples, max_s)
        assert all(max_s * 250 <= end - start <= max_s * 1000 for start, end in found if max_s < 2)
        assert max(end - start for start, end in found) <= max_s * 1000
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
        # Nothing of the speech is lost where it is cut.
        assert sum(end - start for start, end in found) >= sum(e - s for s, e in spans) - 600


def test_speech_without_a_pause_is_cut_where_it_is_quietest(monkeypatch):
    loud = np.random.default_rng(0).standard_normal(100 * RATE).astype(np.float32)
    for place in (5, 25, 45, 70):  # that at 5 s is in the first half of what fits
        loud[int((place - 0.1) * RATE) : int((place + 0.1) * RATE)] *= 0.1
    whole = [(0, len(loud))]
    monkeypatch.setattr(speech, "speech_finder", lambda: lambda samples: whole)
    ends = [end for _, end in speech_windows(loud, 30.0)]
    assert ends == pytest.approx([25_000, 45_000, 70_000, 100_000], abs=20)


@pytest.mark.parametrize("streaming", [False, True])
def test_recordings_without_cues_are_cut_at_pauses(tmp_path, talk, talking, streaming, caplog):
    soundfile.write(tmp_path / "long.flac", talking[0], RATE)
    silence = np.zeros(8 * RATE)
    soundfile.write(tmp_path / "silence.flac", silence, RATE)
    rows = [
        *talk,
        {"id": "long", "audio": "long.flac", "text": "of all"},
        {"id": "silence", "audio": "silence.flac"},
    ]
    clips = list(clips_of(tmp_path, rows, segment="vad", segment_max_s=7, streaming=streaming))
    assert [clip["recording_id"] for clip in clips] == [*["talk"] * 3, None, "long", "long"]
    assert [clip["text"] for clip in clips[3:]] == ["whole", None, None]
    for clip in clips[4:]:
        wave = decode_audio(clip["audio"], RATE, 7.0)
        assert len(wave) / RATE == pytest.approx(clip["end_s"] - clip["start_s"], abs=1e-3)
        assert clip["id"] == f"long-{clip['start_s']:09.3f}-{clip['end_s']:09.3f}"
    assert "recording silence, 8.0 s: dropped: no speech" in caplog.text
    assert "recording long: its text cannot be divided" in caplog.text
    if not streaming:
        assert "7 in = 6 out + 1 dropped (no speech: 1) + 0 quarantined" in caplog.text


def test_real_speech():
    path = SHARED / "data" / "jfk.flac"
    if not path.exists():
        pytest.skip("../shared absent")
    samples = decode_audio({"path": str(path)}, RATE)
    [window] = speech_windows(samples, 30.0)
    assert window == pytest.approx((200, 10_800), abs=200)
    assert [len(speech_windows(samples, max_s)) for max_s in (5.0, 3.0)] == [3, 4]


@pytest.mark.parametrize("rate", [11_025, 16_000, 22_050, 44_100, 48_000])
def test_a_clip_of_exactly_one_window_fits_into_it(tmp_path, rate):
    cues = [(start, start + 3, "x") for start in (0.001, 0.333, 1.777, 2.999)]
    row = {
        "audio": recording(tmp_path / "a.wav", 10, rate),
        "subtitles": srt(tmp_path / "a.vtt", *cues),
    }
    for clip in clips_of(tmp_path, [row], segment_max_s=3):
        decode_audio(clip["audio"], RATE, 3.0)


def test_without_silero_vad_the_message_says_what_to_install(tmp_path, talk, monkeypatch):
    speech.speech_finder.cache_clear()
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ValueError, match=r"--segment vad needs silero-vad.*: pip install 'silero"):
        clips_of(tmp_path, talk, segment="vad")


def test_loading_the_network_leaves_the_number_of_threads_alone(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    speech.speech_finder.cache_clear()
    speech.speech_finder()
    assert set_to[-1] == 3
