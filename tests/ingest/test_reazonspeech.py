import io
import random
import tarfile

import pytest
import soundfile
from corpora import member_header
from loopback import clip_name, flac, tar

from distillery.ingest import reazonspeech
from distillery.ingest.downloads import read_checksum, set_aside, write_checksum
from distillery.ingest.reazonspeech import (
    ELSEWHERE,
    check_transcripts,
    examine,
    missing_archives,
    pair_folder,
    read_clips,
    read_spans,
    read_transcripts,
    scan_archive,
    transcript_spans,
    undecodable_clips,
)
from distillery.storage.files import DamagedFileError

CLIPS = {clip_name(0, number): flac(number, 400 + 100 * number) for number in range(5)}
WHOLE = tar(CLIPS)
ODD_LINES = (
    b"\xef\xbb\xbf000/a.flac\tfirst, after a byte order mark\n"  # 1
    b"000/b.flac\tends as on Windows\r\n"  # 2
    b"\n"  # 3
    b"   \r\n"  # 4
    b"000/c.flac\n"  # 5
    b"000/d.flac\ttwo\ttexts\n"  # 6
    b"000/a.flac\tsaid again\n"  # 7
    b"000/e.flac\t\x93\xfa\x96{\n"  # 8: Shift JIS
    b"000/f.flac\t \n"  # 9
    b"\ttext without a name\n"  # 10
    b"./000/g.flac\t\xe3\x81\xaf\xe3\x81\x84\xe2\x80\xa8\x0bsecond half\n"  # 11: U+2028, \v
    b"001/h.flac\tof another archive\n"  # 12
    b"000/i.flac\tone\ttext\ttoo many\n"  # 13
    b"000/j.flac\twithout an end of line"  # 14
)
ODD_TEXTS = {
    "000/a.flac": "first, after a byte order mark",
    "000/b.flac": "ends as on Windows",
    "000/g.flac": "はい\u2028\x0bsecond half",
    "001/h.flac": "of another archive",
    "000/j.flac": "without an end of line",
}
ODD_REJECTED = {
    "blank": [3, 4],
    "1 column": [5],
    "3 columns": [6],
    "4 columns": [13],
    "duplicate": [7],
    "not UTF-8": [8],
    "empty column": [9, 10],
}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "tiny.000.tar"
    path.write_bytes(WHOLE)
    return path


def places(numbers):
    """Return the places of lines of the file of odd lines."""
    return {reason: [f"tiny.tiny.tsv:{n}" for n in lines] for reason, lines in numbers.items()}


@pytest.fixture
def odd(tmp_path):
    path = tmp_path / "tiny.tiny.tsv"
    path.write_bytes(ODD_LINES)
    return path


def test_every_odd_line_is_read_or_named(odd):
    texts, ledger = read_transcripts(odd)
    assert texts == ODD_TEXTS
    assert (ledger.num_in, ledger.num_out, ledger.dropped.total()) == (14, 5, 0)
    assert ledger.places == places(ODD_REJECTED)
    assert ledger.quarantined.total() == 9
    assert ledger.balances


def test_lines_about_other_archives_are_counted_apart(odd):
    texts, ledger = read_transcripts(odd, {"000"})
    assert texts == {name: text for name, text in ODD_TEXTS.items() if name != "001/h.flac"}
    # Line 10 is about no folder at all, so about none of these.
    assert (ledger.num_in, ledger.num_out, ledger.dropped) == (14, 4, {ELSEWHERE: 2})
    assert ledger.places == places({**ODD_REJECTED, "empty column": [9]})
    assert ledger.balances


def test_spans_give_the_same_texts_as_the_whole_file(odd):
    spans = transcript_spans(odd, {"000", "001", "fff"})
    assert read_spans(odd, spans["001"]) == {"001/h.flac": "of another archive"}
    assert read_spans(odd, spans["000"]) == read_transcripts(odd, {"000"})[0]
    assert spans["fff"] == []


def test_a_sorted_file_has_one_span_per_archive(tmp_path):
    path = tmp_path / "small.tsv"
    lines = [f"{clip_name(index, number)}\tは{number}\n" for index in range(3) for number in (1, 2)]
    path.write_text("".join(lines), encoding="utf-8")
    size = path.stat().st_size // 3
    expected = {"000": [(0, size)], "002": [(2 * size, 3 * size)]}
    assert transcript_spans(path, {"000", "002"}) == expected


@pytest.mark.parametrize("content", [b"", b"<html>\n<body>Log in</body></html>\n", b"\n" * 200])
def test_what_is_no_transcript_file_is_refused(tmp_path, content):
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(DamagedFileError, match="not a transcript file"):
        check_transcripts(tmp_path / "x.tsv")


def test_clips_and_texts_are_paired_by_name(tmp_path, archive):
    names = list(CLIPS)
    lines = [f"{name}\tはい\n" for name in [*names[1:], "000/gone.flac", "001/other.flac"]]
    (tmp_path / "x.tsv").write_text("".join(lines) + "broken\n", encoding="utf-8")
    pairing, scans = pair_folder(tmp_path / "x.tsv", [archive])
    assert scans[archive].names == tuple(names)
    assert pairing.to_dict() == {
        "texts": {
            "in": 7,
            "out": 4,
            "dropped": {ELSEWHERE: 1},
            "quarantined": {"1 column": 1, "without audio": 1},
            "places": {"1 column": ["x.tsv:7"], "without audio": ["000/gone.flac"]},
        },
        "clips": {
            "in": 5,
            "out": 4,
            "dropped": {},
            "quarantined": {"without text": 1},
            "places": {"without text": [names[0]]},
        },
    }
    assert pairing.texts.balances and pairing.clips.balances
    assert not pairing.is_clean
    assert str(pairing) == (
        "texts: 7 in = 4 out + 1 dropped (of other archives: 1) + 2 quarantined "
        "(1 column: 1 [x.tsv:7], without audio: 1 [000/gone.flac]); "
        f"clips: 5 in = 4 out + 0 dropped + 1 quarantined (without text: 1 [{names[0]}])"
    )


def test_a_clip_in_two_archives_is_an_error(tmp_path, archive):
    (tmp_path / "tiny.001.tar").write_bytes(WHOLE)
    (tmp_path / "x.tsv").write_text("000/a.flac\tx\n")
    with pytest.raises(ValueError, match=r"in two archives, .*000\.tar and .*001\.tar"):
        pair_folder(tmp_path / "x.tsv", [archive, tmp_path / "tiny.001.tar"])


def test_a_whole_archive_is_read_in_order(archive):
    assert list(read_clips(archive)) == list(CLIPS.items())
    assert scan_archive(archive).directories == {"000"}
    assert undecodable_clips(archive) == {}


def test_every_cut_is_found_and_no_whole_archive_is_accused(archive):
    end = max(i for i, byte in enumerate(WHOLE) if byte) + 1
    needed = -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE
    cuts = {*range(0, len(WHOLE), 512), *range(1, len(WHOLE), 997), needed - 1, needed}
    for cut in sorted(cuts):
        archive.write_bytes(WHOLE[:cut])
        if cut >= needed and cut % tarfile.BLOCKSIZE == 0:
            assert len(scan_archive(archive).names) == 5
        else:
            with pytest.raises(DamagedFileError, match="not a whole tar archive"):
                scan_archive(archive)


def test_a_cut_between_two_members_would_pass_for_whole(archive):
    """Show that the end marker is what catches this fault: tarfile itself sees nothing wrong."""
    with tarfile.open(archive) as whole:
        second = whole.getmembers()[2].offset
    archive.write_bytes(WHOLE[:second])
    with tarfile.open(archive) as cut:
        assert len(cut.getmembers()) == 2
    with pytest.raises(DamagedFileError, match="cut after byte"):
        scan_archive(archive)


def test_flipped_bits_are_found_or_harmless(archive):
    chooser = random.Random(7)
    samples = [
        soundfile.read(io.BytesIO(clip), dtype="int16")[0].tolist() for clip in CLIPS.values()
    ]
    num_found = 0
    for _ in range(200):
        flipped = bytearray(WHOLE)
        flipped[chooser.randrange(len(WHOLE))] ^= 1 << chooser.randrange(8)
        archive.write_bytes(flipped)
        try:
            found = bool(undecodable_clips(archive)) or not scan_archive(archive)
        except DamagedFileError:
            found = True
        num_found += found
        if not found:
            clips = dict(read_clips(archive))
            assert list(clips) == list(CLIPS)
            read = [
                soundfile.read(io.BytesIO(c), dtype="int16")[0].tolist() for c in clips.values()
            ]
            assert read == samples
    assert num_found > 20


def test_a_flipped_sample_is_found_by_decoding(archive):
    name, clip = next(iter(CLIPS.items()))
    flipped = bytearray(WHOLE)
    flipped[WHOLE.index(clip) + len(clip) // 2] ^= 4
    archive.write_bytes(flipped)
    assert scan_archive(archive).names == tuple(CLIPS)
    assert list(undecodable_clips(archive)) == [name]


@pytest.mark.parametrize("content", [b"", b"<html>Log in</html>" * 200, b"\x1f\x8b" + b"\0" * 3000])
def test_what_is_no_archive_is_refused(archive, content):
    archive.write_bytes(content)
    with pytest.raises(DamagedFileError, match="not a whole tar archive"):
        scan_archive(archive)


def test_clips_without_samples_or_end_do_not_pass_for_decoded(archive):
    clips = {"000/none.flac": flac(1, 0), "000/half.flac": flac(1)[:1500], "000/no.flac": b""}
    archive.write_bytes(tar({**clips, "000/good.flac": flac(2)}))
    assert set(undecodable_clips(archive)) == set(clips)


def test_a_clip_that_is_too_large_is_refused(archive):
    num_bytes = reazonspeech.MAX_CLIP_BYTES + 512
    with archive.open("wb") as file:
        file.write(member_header("000/hours.flac", size=num_bytes))
        file.truncate(512 + num_bytes)  # takes no space on the disk
        file.seek(512 + num_bytes)
        file.write(WHOLE)
    scan = scan_archive(archive)
    assert scan.names == tuple(CLIPS)
    assert scan.rejected == {"too large": ["000/hours.flac"]}


def test_a_check_records_a_sum_and_then_holds_the_file_to_it(archive):
    examine(archive)
    assert read_checksum(archive) is not None
    flipped = bytearray(WHOLE)
    flipped[-1] ^= 1
    archive.write_bytes(flipped)
    with pytest.raises(DamagedFileError, match="differs from its SHA-256 checksum"):
        examine(archive)


def test_a_clip_that_came_broken_twice_is_left_to_the_stages(archive):
    broken = WHOLE.replace(CLIPS[clip_name(0, 1)][-40:], bytes(40))
    for is_first in (True, False):
        archive.write_bytes(broken)
        write_checksum(archive, reazonspeech.sha256(archive))
        if is_first:
            with pytest.raises(
                DamagedFileError, match=f"1 clips do not decode, such as {clip_name(0, 1)}"
            ):
                examine(archive, deep=True)
            set_aside(archive)
        else:
            examine(archive, deep=True)


def test_missing_archives_go_by_the_folders_name(tmp_path):
    folder = tmp_path / "small_3_5"
    folder.mkdir()
    (folder / "small.004.tar").touch()
    assert missing_archives(folder, "small") == [folder / "small.003.tar"]
    assert len(missing_archives(tmp_path / "all", "all")) == 4095
    assert missing_archives(tmp_path / "mine", "small") == []
