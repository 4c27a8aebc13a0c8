"""Folders and archives of audio, in plain, LibriSpeech and Common Voice layouts."""

import logging
import tarfile

import pytest
import tiny
from corpora import pack, spread
from datasets import Dataset, IterableDataset

from distillery.audio.decoding import decode_audio
from distillery.data import hub_layout
from distillery.data.specs import DatasetSpec, broadcast_specs
from distillery.ingest import folders, sources

PLAIN = {
    "a.wav": b"sound a",
    "deep/b.flac": b"sound b",
    "a.txt": "\ufeffwas gesagt wurde\r\n".encode(),
    "deep/b.txt": "もう一つ".encode(),
}
LIBRISPEECH = {
    "LibriSpeech/README.TXT": b"about",
    "LibriSpeech/dev-clean/84/121/84-121-0000.flac": b"d0",
    "LibriSpeech/dev-clean/84/121/84-121-0001.flac": b"d1",
    "LibriSpeech/dev-clean/84/121/84-121.trans.txt": b"84-121-0000 GO ON\n84-121-0001 DO\n",
    "LibriSpeech/dev-clean/90/7/90-7-0000.flac": b"d2",
    "LibriSpeech/dev-clean/90/7/90-7.trans.txt": b"90-7-0000 STOP\n",
    "LibriSpeech/train-clean-100/19/198/19-198-0000.flac": b"t0",
    "LibriSpeech/train-clean-100/19/198/19-198.trans.txt": b"19-198-0000 NORTHANGER\n",
}
HEADER = "client_id\tpath\tsentence\tup_votes\n"
COMMON_VOICE = {
    "cv/de/clips/c1.mp3": b"1",
    "cv/de/clips/c2.mp3": b"2",
    "cv/de/clips/c3.mp3": b"3",
    "cv/de/validated.tsv": f'{HEADER}anna\tc1.mp3\t"Ja", sagte er\t2\nben\tc2\tNein.\t2\n'.encode(),
    "cv/de/dev.tsv": f"{HEADER}ben\tc2.mp3\tNein.\t2\n".encode(),
    "cv/ga-IE/clips/g1.mp3": b"4",
    "cv/ga-IE/validated.tsv": f"{HEADER}\tg1.mp3\tTá\t2\n".encode(),
    "cv/ga-IE/reported.tsv": b"sentence\treason\n",
}
KINDS = ["folder", "tar", "tar.gz"]
EVERYWHERE = pytest.mark.parametrize("kind", KINDS)


def source(tmp_path, kind, files):
    if kind == "folder":
        return spread(tmp_path / "corpus", files)
    return pack(tmp_path / f"corpus.{kind}", files)


def loaded(path, **fields):
    return sources.load(DatasetSpec(str(path), **fields))


def contents(rows):
    """Return the rows with their audio's content in place of where it is."""
    return [{**row, "audio": hub_layout.embed_audio(row)["bytes"]} for row in rows]


def account_of(caplog):
    (record,) = [r for r in caplog.records if r.name == folders.__name__]
    return record.levelno, record.getMessage().split(": ", 1)[1]


# --- every layout, in a folder and in archives ---------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@EVERYWHERE
def test_audio_with_texts_of_the_same_name(tmp_path, kind, streaming, caplog):
    caplog.set_level(logging.INFO)
    rows = loaded(source(tmp_path, kind, PLAIN), streaming=streaming)
    assert isinstance(rows, IterableDataset if streaming else Dataset)
    assert contents(rows) == [
        {"id": "a", "audio": b"sound a", "text": "was gesagt wurde"},
        {"id": "deep/b", "audio": b"sound b", "text": "もう一つ"},
    ]
    assert account_of(caplog) == (
        logging.INFO,
        "texts: 2 in = 2 out + 0 dropped + 0 quarantined; "
        "clips: 2 in = 2 out + 0 dropped + 0 quarantined",
    )


@pytest.mark.parametrize("streaming", [False, True])
@EVERYWHERE
def test_librispeech(tmp_path, kind, streaming):
    path = source(tmp_path, kind, LIBRISPEECH)
    rows = loaded(path, split="dev-clean", streaming=streaming)
    assert contents(rows) == [
        {
            "id": f"{speaker}-{chapter}-{number}",
            "audio": audio,
            "text": text,
            "speaker_id": speaker,
            "recording_id": chapter,
        }
        for speaker, chapter, number, audio, text in [
            ("84", "121", "0000", b"d0", "GO ON"),
            ("84", "121", "0001", b"d1", "DO"),
            ("90", "7", "0000", b"d2", "STOP"),
        ]
    ]
    spec = DatasetSpec(str(path), split="dev-clean", streaming=streaming)
    assert sources.with_split(spec, rows).split == "dev_clean"


@pytest.mark.parametrize("streaming", [False, True])
@EVERYWHERE
def test_common_voice(tmp_path, kind, streaming):
    path = source(tmp_path, kind, COMMON_VOICE)
    rows = loaded(path, config="de", streaming=streaming)
    assert contents(rows) == [
        {"id": "c1", "audio": b"1", "text": '"Ja", sagte er', "speaker_id": "anna"},
        {"id": "c2", "audio": b"2", "text": "Nein.", "speaker_id": "ben"},
    ]
    spec = DatasetSpec(str(path), config="de", streaming=streaming)
    assert sources.with_split(spec, rows).split == "validated"
    rows = loaded(path, config="de", split="validation", streaming=streaming)
    assert [row["id"] for row in rows] == ["c2"]


# --- splits and configurations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        (LIBRISPEECH, {}, "several splits: name one of dev-clean, train-clean-100"),
        (LIBRISPEECH, {"split": "test"}, "no split 'test': dev-clean, train-clean-100"),
        (COMMON_VOICE, {}, "several configurations: name one of de, ga-IE"),
        (COMMON_VOICE, {"config": "fr"}, "no configuration 'fr': de, ga-IE"),
        (COMMON_VOICE, {"config": "de", "split": "test"}, "no split 'test': dev, validated"),
    ],
)
def test_a_choice_is_listed(tmp_path, files, fields, message):
    with pytest.raises(ValueError, match=message):
        loaded(source(tmp_path, "folder", files), **fields)


@pytest.mark.parametrize("given", [None, "train"])
def test_the_folder_of_one_split_is_that_split(tmp_path, given):
    folder = source(tmp_path, "folder", LIBRISPEECH) / "LibriSpeech" / "train-clean-100"
    rows = loaded(folder, split=given)
    assert rows["id"][0] == "19-198-0000"
    assert sources.with_split(DatasetSpec(str(folder), split=given), rows).split == (
        given or "train_clean_100"
    )


def test_an_archive_of_one_split_needs_no_flag(tmp_path):
    files = {name: content for name, content in LIBRISPEECH.items() if "dev-clean" not in name}
    rows = loaded(source(tmp_path, "tar.gz", files))
    assert [row["id"] for row in rows] == ["19-198-0000"]
    assert str(rows.split) == "train_clean_100"


def test_the_folder_of_one_language_takes_any_configuration(tmp_path):
    folder = source(tmp_path, "folder", COMMON_VOICE) / "cv" / "de"
    assert list(loaded(folder, config="german")["id"]) == ["c1", "c2"]


def test_the_only_table_is_taken(tmp_path):
    files = {k: v for k, v in COMMON_VOICE.items() if k != "cv/de/validated.tsv"}
    assert list(loaded(source(tmp_path, "folder", files), config="de")["id"]) == ["c2"]


def test_several_sources_are_joined(tmp_path):
    names = [str(source(tmp_path, kind, PLAIN)) for kind in KINDS]
    specs = broadcast_specs({"name": names}, streaming=True)
    assert [row["id"] for spec in specs for row in sources.load(spec)] == ["a", "deep/b"] * 3


# --- one file, audio alone, clips of one name ----------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_one_audio_file_is_a_folder_of_one(tmp_path, streaming):
    spread(tmp_path, PLAIN)
    rows = loaded(tmp_path / "a.wav", streaming=streaming)
    assert contents(rows) == [{"id": "a", "audio": b"sound a", "text": "was gesagt wurde"}]


@EVERYWHERE
def test_audio_alone_has_no_column_of_texts(tmp_path, kind, caplog):
    caplog.set_level(logging.INFO)
    rows = loaded(source(tmp_path, kind, {"a.wav": b"a", "b.mp3": b"b"}))
    assert rows.column_names in (["audio", "id"], ["id", "audio"])
    assert list(rows["id"]) == ["a", "b"]
    level, account = account_of(caplog)
    assert level == logging.INFO
    assert account.endswith(
        "; clips: 2 in = 2 out + 0 dropped + 0 quarantined, 2 of them without a text [a.wav, b.mp3]"
    )
    with pytest.raises(ValueError, match="--text_column_name"):
        sources.require_column(rows, DatasetSpec("x"), "text", "--text_column_name")


@pytest.mark.parametrize(
    "files",
    [
        {"d/a.wav": b"1", "d/a.mp3": b"2"},
        {
            "s/1/2/1-2-3.flac": b"1",
            "s/1/2/1-2-3.wav": b"1",
            "s/1/2/1-2.trans.txt": b"1-2-3 X",
        },
    ],
)
def test_two_clips_of_one_name_are_refused(tmp_path, files):
    first, second = sorted(name for name in files if "trans" not in name)
    with pytest.raises(ValueError, match=f"{first} and {second} would both have the id"):
        loaded(source(tmp_path, "folder", files))


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("tar", {"readme.md": b"x"}, "has no rows: no audio file"),
        ("folder", {**PLAIN, "list.csv": b"audio,text\n"}, "name .*list.csv as the dataset"),
        (
            "folder",
            {"validated.tsv": b"client_id\tfile\tsentence\n", "clips/a.mp3": b"1"},
            r"validated.tsv has no column 'path'",
        ),
    ],
)
def test_what_cannot_be_a_dataset_is_named(tmp_path, kind, files, message):
    with pytest.raises(ValueError, match=message):
        loaded(source(tmp_path, kind, files))


def test_a_notice_beside_a_clip_is_no_manifest(tmp_path):
    files = {**PLAIN, "a.json": b"{}", "deep/list.csv": b"x"}
    assert len(loaded(source(tmp_path, "folder", files))) == 2


@pytest.mark.parametrize("name", ["gone.tar", "gone.tar.gz", "gone.wav", "no/gone.tgz"])
def test_a_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"dataset {name}: there is no such file"):
        loaded(name)


def test_audio_beside_parquet_is_no_layout(tmp_path):
    spread(tmp_path, {"a.wav": b"1", "train.parquet": b"2"})
    assert not folders.is_layout(tmp_path)


# --- the account ---------------------------------------------------------------------------------


def test_texts_that_cannot_be_used_are_counted(tmp_path, caplog):
    files = {
        **{f"{name}.wav": b"1" for name in ("good", "empty", "sjis", "none")},
        "good.txt": b"yes",
        "empty.txt": b" \n",
        "sjis.txt": "日本".encode("shift-jis"),
        "lonely.txt": b"nobody said it",
        "cover.jpg": b"x",
    }
    rows = loaded(source(tmp_path, "folder", files))
    assert {row["id"]: row["text"] for row in rows} == {
        **{"empty": None, "good": "yes", "none": None, "sjis": None},
    }
    assert account_of(caplog) == (
        logging.WARNING,
        "texts: 4 in = 1 out + 0 dropped + 3 quarantined (empty: 1 [empty.txt], "
        "not UTF-8: 1 [sjis.txt], without audio: 1 [lonely.txt]); "
        "clips: 5 in = 4 out + 1 dropped (neither audio nor text: 1 [cover.jpg]) + 0 quarantined, "
        "3 of them without a text [empty.wav, none.wav, sjis.wav]",
    )


def test_odd_lines_of_librispeech_are_counted(tmp_path, caplog):
    lines = b"\xef\xbb\xbf1-2-0 YES\r\n\n1-2-1 \xff\n1-2-2\n1-2-0 AGAIN\n1-2-9 GONE\n1-2-3 A\tB"
    files = {
        **{f"s/1/2/1-2-{n}.flac": b"1" for n in range(4)},
        "s/1/2/1-2.trans.txt": lines,
        "s/stray.flac": b"1",
    }
    rows = loaded(source(tmp_path, "folder", files))
    assert list(rows["text"]) == ["YES", None, None, "A\tB"]
    level, account = account_of(caplog)
    assert level == logging.WARNING
    at = "s/1/2/1-2.trans.txt"
    assert account == (
        "texts: 7 in = 2 out + 0 dropped + 5 quarantined "
        f"(blank: 1 [{at}:2], not UTF-8: 1 [{at}:3], no text: 1 [{at}:4], "
        f"duplicate: 1 [{at}:5], without audio: 1 [s/1/2/1-2-9]); "
        "clips: 5 in = 4 out + 1 dropped (of other splits: 1) + 0 quarantined, "
        "2 of them without a text [s/1/2/1-2-1.flac, s/1/2/1-2-2.flac]"
    )


def test_odd_lines_of_common_voice_are_counted(tmp_path, caplog):
    lines = [
        b"\xef\xbb\xbfclient_id\tpath\tsentence\r",
        b"s\tc0.mp3\tgood\r",
        b"",
        b"s\tc1.mp3",
        b"s\tc1.mp3\tone\ttoo many",
        b"s\tc1.mp3\t\xff",
        b"s\tc0.mp3\tagain",
        b"s\tgone.mp3\tno clip",
        b"s\t../../c1.mp3\toutside",
        b"s\tc2.mp3\t",
    ]
    files = {f"clips/c{n}.mp3": b"1" for n in range(4)}
    rows = loaded(source(tmp_path, "tar", {**files, "train.tsv": b"\n".join(lines)}))
    assert [(row["id"], row["text"]) for row in rows] == [("c0", "good"), ("c2", None)]
    assert account_of(caplog) == (
        logging.WARNING,
        "texts: 9 in = 1 out + 0 dropped + 8 quarantined "
        "(without audio: 2 [train.tsv:8, train.tsv:9], blank: 1 [train.tsv:3], "
        "2 instead of 3 columns: 1 [train.tsv:4], 4 instead of 3 columns: 1 [train.tsv:5], "
        "not UTF-8: 1 [train.tsv:6], duplicate: 1 [train.tsv:7], empty: 1 [train.tsv:10]); "
        "clips: 4 in = 2 out + 2 dropped (of other splits: 2) + 0 quarantined, "
        "1 of them without a text [train.tsv:10]",
    )


# --- archives from outside -----------------------------------------------------------------------


def odd_members():
    kinds = {
        "../../outside.wav": tarfile.REGTYPE,
        "/absolute.wav": tarfile.REGTYPE,
        "link.wav": tarfile.SYMTYPE,
        "hard.wav": tarfile.LNKTYPE,
        "device.wav": tarfile.CHRTYPE,
        "a.wav": tarfile.REGTYPE,
    }
    for name, kind in kinds.items():
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        yield member


@pytest.mark.parametrize("name", ["corpus.tar", "corpus.tar.gz"])
def test_refused_members_are_counted_and_nothing_is_extracted(tmp_path, name, caplog):
    path = pack(tmp_path / name, {**PLAIN, "._a.wav": b"of macOS"}, odd_members())
    rows = loaded(path, streaming=True)
    assert [row["id"] for row in rows] == ["a", "deep/b"]
    _, account = account_of(caplog)
    assert account.endswith(
        "; clips: 8 in = 2 out + 0 dropped + 6 quarantined "
        "(unsafe name: 2 [../../outside.wav, /absolute.wav], link: 2 [link.wav, hard.wav], "
        "special file: 1 [device.wav], duplicate member: 1 [a.wav])"
    )
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["corpus.tar", "corpus.tar.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.999])
def test_a_cut_archive_is_refused(tmp_path, name, kept):
    path = pack(tmp_path / name, {**PLAIN, "c.wav": bytes(range(256)) * 40})
    content = path.read_bytes()
    end = len(content.rstrip(b"\0")) if name.endswith("tar") else len(content)
    path.write_bytes(content[: int(kept * end)])
    with pytest.raises(ValueError, match=r"corpus\.tar.*not a whole tar archive"):
        loaded(path)


def test_flipped_bits_of_a_compressed_archive_are_found(tmp_path):
    path = pack(tmp_path / "corpus.tar.gz", PLAIN)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole tar archive"):
        loaded(path)


def test_a_changed_archive_does_not_get_the_cache_of_the_old_one(tmp_path):
    cache = str(tmp_path / "cache")
    path = pack(tmp_path / "c.tar", {"a.wav": b"old"})
    assert contents(loaded(path, cache_dir=cache)) == [{"id": "a", "audio": b"old"}]
    pack(path, {"a.wav": b"new", "b.wav": b"1"})
    assert contents(loaded(path, cache_dir=cache))[0] == {"id": "a", "audio": b"new"}


def test_an_archive_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = pack(tmp_path / "c.tar", {"a.wav": b"1", "b.wav": b"2"})
    rows = loaded(path, streaming=True)
    pack(path, {"a.wav": b"1"})
    with pytest.raises(ValueError, match="changed while it was read"):
        list(rows)


def test_rows_of_a_folder_hold_paths_that_decode(tmp_path):
    tiny.tone_manifest(tmp_path / "m.jsonl", 2, 0.1, suffix=".wav").unlink()
    for row in loaded(tmp_path):
        assert row["audio"]["bytes"] is None
        assert len(decode_audio(row["audio"], 16_000)) > 1000


def test_few_large_clips_of_an_archive_are_held_at_once(tmp_path, monkeypatch):
    sizes = []
    write = Dataset.from_generator
    monkeypatch.setattr(
        folders.Dataset,
        "from_generator",
        lambda *args, **named: sizes.append(named["writer_batch_size"]) or write(*args, **named),
    )
    small = {f"{index}.wav": b"sound" for index in range(3)}
    for name, files in [("a.tar", small), ("b.tar", {**small, "long.wav": bytes(100 << 20)})]:
        load = sources.load(DatasetSpec(str(pack(tmp_path / name, files))))
        assert len(load) == len(files)
    assert sizes == [20, 2]
