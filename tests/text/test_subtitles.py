import pytest

from distillery.text.subtitles import Cue, read_subtitles, srt_text, webvtt_text
from distillery.text.timestamps import Segment

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello there.

2
00:00:03,000 --> 01:02:03,004
Two lines
of text.
"""

WEBVTT = """WEBVTT - a talk

STYLE
::cue { color: red }

NOTE
written by hand,
on two lines

REGION
id:bill

intro
00:01.000 --> 00:02.500 align:start position:10%
Hello there.

00:00:03.000 --> 01:02:03.004
Two lines
of text.
"""


def cues_of(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return read_subtitles(path)


def texts_of(path, text):
    return [cue.text for cue in cues_of(path, text).cues]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.srt"


@pytest.mark.parametrize("end_of_line", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("text", "lines"), [(SRT, (2, 6)), (WEBVTT, (14, 17))])
def test_cues_of_both_formats(path, text, lines, encoding, end_of_line):
    found = cues_of(path, text.replace("\n", end_of_line), encoding)
    assert found.refused == []
    assert found.cues == [
        Cue(1000, 2500, "Hello there.", lines[0]),
        Cue(3000, 3_723_004, "Two lines of text.", lines[1]),
    ]


@pytest.mark.parametrize(
    ("timing", "start_ms", "end_ms"),
    [
        ("00:00:01,5 --> 00:00:02,25", 1500, 2250),
        ("0:0:1 --> 0:0:2", 1000, 2000),
        ("59:59.999-->100:00:00.000", 3_599_999, 360_000_000),
        ("  00:00:01.000   -->   00:00:02.000   X1:0 X2:9", 1000, 2000),
    ],
)
def test_times(path, timing, start_ms, end_ms):
    assert cues_of(path, f"1\n{timing}\nx\n").cues == [Cue(start_ms, end_ms, "x", 2)]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("<i>so</i> <b>it</b> is", "so it is"),
        ('<font color="#fff">so</font>', "so"),
        ("<v Anna>so <00:01.500><c.loud>it</c> is", "so it is"),
        (r"{\an8}so", "so"),
        ("a &lt; b &amp;&nbsp;c", "a < b & c"),
        ("a < b > c, 2 <3", "a < b > c, 2 <3"),
        ("  so \t it  ", "so it"),
        ("so\nit\nis", "so it is"),
        ("猫が\n水を飲む。\n「はい」", "猫が水を飲む。「はい」"),
        ("猫が\nABC", "猫が ABC"),
        ("안녕\n하세요", "안녕 하세요"),
        ("1984", "1984"),
    ],
)
def test_text_without_markup(path, written, text):
    assert texts_of(path, f"1\n00:01.000 --> 00:02.000\n{written}\n") == [text]


def test_an_srt_text_goes_on_behind_an_empty_line(path):
    text = "1\n00:00:01,000 --> 00:00:02,000\na\n\nb\n\n2\n00:00:03,000 --> 00:00:04,000\nc\n\n\n"
    assert texts_of(path, text) == ["a b", "c"]


def test_an_srt_without_empty_lines(path):
    text = "1\n00:00:01,000 --> 00:00:02,000\na\n2\n00:00:03,000 --> 00:00:04,000\nb\n"
    assert texts_of(path, text) == ["a", "b"]


def test_cues_come_in_the_order_of_time_and_may_overlap(path):
    text = SRT + "\n3\n00:00:00,000 --> 00:00:01,200\nFirst.\n"
    assert texts_of(path, text) == ["First.", "Hello there.", "Two lines of text."]


def test_cues_of_one_time_are_one(path):
    text = "".join(f"1\n00:01.000 --> 00:02.000\n{text}\n\n" for text in ("a", "b", "b"))
    assert texts_of(path, text) == ["a b"]


@pytest.mark.parametrize(
    ("cue", "reason"),
    [
        ("00:02.000 --> 00:01.000\nx", "ends before it starts"),
        ("00:02.000 --> 00:02.000\nx", "ends before it starts"),
        ("00:01.000 --> 00:02.000", "no text"),
        ("00:01.000 --> 00:02.000\n<i> </i>", "no text"),
        ("00:61.000 --> 00:62.000\nx", "times not understood"),
        ("one --> two\nx", "times not understood"),
        ("00:01.000 -->\nx", "times not understood"),
    ],
)
def test_a_cue_that_cannot_be_used_is_named_by_its_line(path, cue, reason):
    for begin in ("", "WEBVTT\n\n"):
        found = cues_of(path, f"{begin}1\n{cue}\n\n2\n00:03.000 --> 00:04.000\ny\n")
        assert found.refused == [(2 + begin.count("\n"), reason)]
        assert [cue.text for cue in found.cues] == ["y"]


@pytest.mark.parametrize("text", ["", "WEBVTT\n", "just\ntext\n"])
def test_a_file_without_cues_is_refused(path, text):
    with pytest.raises(ValueError, match=r"talk\.srt has no cues: is it SRT or WebVTT\?"):
        cues_of(path, text)


def test_another_encoding_is_refused_by_name(path):
    with pytest.raises(ValueError, match=r"talk\.srt is not UTF-8 .*: save it as UTF-8"):
        cues_of(path, SRT.replace("Hello", "Grüße"), "latin-1")


def test_a_file_without_end_is_no_subtitles(tmp_path):
    with (tmp_path / "a.srt").open("wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk
    with pytest.raises(ValueError, match=r"a\.srt has more than 64 MiB"):
        read_subtitles(tmp_path / "a.srt")


WRITTEN = [
    Segment(0.0, 1.2346, " Hello there. "),
    Segment(1.2346, 3.5, ""),
    Segment(3661.5, 3661.5, "no --> time & <i>no</i> markup"),
    Segment(360_000.0, 360_001.0, "ねこが\n\nみずをのむ。"),
]


@pytest.mark.parametrize(("write", "suffix"), [(srt_text, ".srt"), (webvtt_text, ".vtt")])
def test_written_cues_are_read_back(tmp_path, write, suffix):
    path = tmp_path / f"talk{suffix}"
    path.write_text(write(WRITTEN), "utf-8")
    found = read_subtitles(path)
    assert found.refused == []
    times = [(cue.start_ms, cue.end_ms) for cue in found.cues]
    assert times == [(0, 1235), (3_661_500, 3_661_501), (360_000_000, 360_001_000)]
    texts = [cue.text for cue in found.cues]
    assert texts[0] == "Hello there."
    assert texts[2] == "ねこが みずをのむ。"
    # SRT knows no escapes: an arrow would be taken for times, and a tag for one.
    escaped = "no --> time & <i>no</i> markup"
    assert texts[1] == (escaped if suffix == ".vtt" else "no → time & no markup")


def test_subtitles_look_as_players_want_them():
    segments = [Segment(0.5, 2.0, "a"), Segment(2.0, 65.04, "b")]
    assert srt_text(segments) == (
        "1\n00:00:00,500 --> 00:00:02,000\na\n\n2\n00:00:02,000 --> 00:01:05,040\nb\n"
    )
    assert webvtt_text(segments) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.000\na\n\n00:00:02.000 --> 00:01:05.040\nb\n"
    )
    assert (srt_text([]), webvtt_text([])) == ("", "WEBVTT\n")
