"""The commands of docs/inputs.md for each kind of input, over data made with the names it uses."""

import io
import json

import pytest
import soundfile
from command_lines import commands_in, parsed, text_of
from corpora import pack, spread
from datasets import Dataset, DatasetDict
from loopback import clip_name, flac, tar
from stage_runs import record, run, split_rows, talkative_model_folder
from tiny import REPOSITORY

from distillery.data import hub_layout, schema
from distillery.ingest import reazonspeech, sources

SCRIPT = "run_pseudo_labelling.py"
SECTION = text_of("docs/inputs.md").split("## A command for each kind", 1)[1].split("```")[1]
COMMANDS = [words for _, words in commands_in(SECTION)]
JOINED = next(words for words in COMMANDS if "labelled/joined" in words)
FIRST = next(words for words in COMMANDS if "labelled/jsonl" in words)


def make_sources(root):
    """Write every source that the page's section names, and a teacher."""
    talkative_model_folder(root / "teacher")
    lines = [
        {"id": f"a{i}", "audio": f"clips/a{i}.flac", "text": "was gesagt wurde"} for i in range(3)
    ]
    nemo = {"audio_filepath": "clips/a0.flac", "duration": 0.1, "text": "wort"}
    libri = "LibriSpeech/{0}/{1}/7/{1}-7"
    tables = {
        name: "client_id\tpath\tsentence\n" + "".join(f"s\tc{i}.mp3\tSatz.\n" for i in rows)
        for name, rows in {"validated": [0, 1, 2], "train": [0, 1], "dev": [2]}.items()
    }
    files = {
        **{f"clips/a{i}.flac": flac(i) for i in range(3)},
        "speech.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "speech.csv": b"audio,words\nclips/a0.flac,wort\n",
        "nemo_manifest.json": json.dumps(nemo).encode(),
        "recordings/monday/greeting.flac": flac(3),
        "recordings/monday/greeting.txt": b"guten morgen",
        "recordings/noise.flac": flac(4),
        **{
            libri.format(split, speaker) + suffix: content
            for split, speaker in [("dev-clean", 84), ("train-clean-100", 19)]
            for suffix, content in [
                ("-0000.flac", flac(speaker)),
                (".trans.txt", f"{speaker}-7-0000 GO ON".encode()),
            ]
        },
        **{f"cv-corpus/de/clips/c{i}.mp3": flac(10 + i) for i in range(3)},
        **{f"cv-corpus/de/{name}.tsv": table.encode() for name, table in tables.items()},
        "cv-corpus/ga-IE/clips/c0.mp3": flac(20),
        "cv-corpus/ga-IE/validated.tsv": "client_id\tpath\tsentence\ns\tc0.mp3\tTá.\n".encode(),
    }
    spread(root, files)
    for name, start in {
        "recordings.tar.gz": "recordings/",
        "dev-clean.tar.gz": "LibriSpeech/dev-clean/",
        "cv-corpus.tar": "cv-corpus/",
    }.items():
        pack(root / name, {path: files[path] for path in files if path.startswith(start)})
    row = {schema.ID: "s0", schema.AUDIO: {"bytes": flac(30), "path": "s0.flac"}}
    DatasetDict({"test": Dataset.from_list([row])}).save_to_disk(root / "saved")
    make_reazonspeech(root)


def make_reazonspeech(home):
    folder = home / reazonspeech.default_folder("tiny").relative_to(home)
    folder.mkdir(parents=True)
    reazonspeech.archive_path(folder, "tiny", 0).write_bytes(tar({clip_name(0, 0): flac(40)}))
    reazonspeech.transcripts_path(folder, "tiny").write_text(f"{clip_name(0, 0)}\tはい\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stand where the page's commands are typed: the sources are there, and the scripts."""
    root = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(root))
        patch.chdir(root)
        make_sources(root)
        name = "reazonspeech_manual_dataloader.py"
        (root / name).symlink_to(REPOSITORY / name)
        run(SCRIPT, *FIRST, "--max_label_length", 16)
        yield root


def test_the_section_has_a_command_for_each_kind(root):
    assert len(COMMANDS) == SECTION.count("python ") == 14


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_each_command_reads_rows_that_decode(root, words, streaming):
    groups = parsed(SCRIPT, [*words, "--streaming", str(streaming)])
    (data_args,) = [group for group in groups if hasattr(group, "specs")]
    specs = data_args.specs()
    named = [sources.with_split(spec, sources.load(spec)) for spec in specs]
    hub_layout.refuse_same_split_twice(named)
    for spec in specs:
        sources.fingerprint(spec)
        rows = list(sources.load(spec))
        assert rows
        for row in rows:
            audio = hub_layout.embed_audio(row)
            assert audio["bytes"].startswith(b"fLaC")
            assert soundfile.info(io.BytesIO(audio["bytes"])).frames == 1600


def test_several_kinds_are_labelled_in_one_run(root):
    run(SCRIPT, *JOINED, "--concatenate_audio", "False", "--max_label_length", 16)
    assert record(root / "labelled" / "joined")["ledger"] == {
        **{"in": 7, "out": 7, "dropped": {}, "quarantined": {}},
    }
    found = {
        config: [
            (row["id"], row["text"])
            for row in split_rows(root / "labelled/joined", "train", config)
        ]
        for config in ("manifest", "folder", "de")
    }
    assert found == {
        "manifest": [(f"a{i}", "was gesagt wurde") for i in range(3)],
        "folder": [("noise", None), ("monday/greeting", "guten morgen")],
        "de": [("c0", "Satz."), ("c1", "Satz.")],
    }
