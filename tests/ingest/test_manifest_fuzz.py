"""Manifests with odd values in every field: nothing ends the reading, and all rows are counted."""

import json
import logging
import random
import re

import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from distillery.audio.log_mel import LogMel
from distillery.data.collators import WindowCollator
from distillery.data.specs import DatasetSpec
from distillery.ingest.sources import load

NUM_ROWS = 60
LOG_MEL = LogMel(WhisperFeatureExtractor(feature_size=4, chunk_length=1))
ACCOUNT = re.compile(
    r"(\d+) in = (\d+) out \+ (\d+) dropped(?: \(.*?\))? \+ (\d+) quarantined", re.DOTALL
)
LONG = "x" * 5000
ODD = [
    *(None, "", " ", True, 0, -1, 3.5, 2**63, 10**30, 1e308, float("nan"), float("inf"), "nan"),
    *("-inf", "soon", "1e400", "\ud800", "a\0b", "\x1b[2J", "zwei\nZeilen", LONG, f"{LONG}/{LONG}"),
    *("../a.wav", "/", ".", "a.wav/", [], [1, "x"], {}, {"a": {"b": [None]}}, [[[[]]]]),
]
RAW = ["9" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, "[" * 40 + "]" * 40]
FIELDS = ["id", "audio", "text", "speaker_id", "offset", "duration", "note", "subtitles"]


def row_of(draw, index):
    row = {"id": f"c{index}", "audio": "a.wav", "text": "ねこ", "speaker_id": "anna", "note": 1}
    if draw.random() < 0.3:
        row |= {"offset": 0.1 * draw.random(), "duration": 0.2}
    return row


def odd_value(draw, name, index):
    value = draw.choice(ODD)
    if name == "id" and isinstance(value, str) and value:
        return f"{value}{index}"  # two of one id are an error of their own
    if name == "subtitles" and isinstance(value, str) and value:
        return 5  # the name of a file that is not there is an error of its own
    return value


def json_line(row, raw):
    line = json.dumps(row)
    if raw is not None:
        name, value = raw
        line = f'{line[:-1]}, "{name}": {value}}}'
    return line.encode()


def json_manifest(draw):
    lines = []
    for index in range(NUM_ROWS):
        row, raw = row_of(draw, index), None
        if index > 3 and draw.random() < 0.3:
            name = draw.choice(FIELDS)
            row[name] = odd_value(draw, name, index)
            if draw.random() < 0.2:
                raw = draw.choice(FIELDS), draw.choice(RAW)
        if index > 3 and draw.random() < 0.05:
            row[draw.choice(["\ud800", LONG, "late", ""])] = 1
        line = json_line(row, raw)
        if index > 3 and draw.random() < 0.05:
            line = draw.choice([line[:-3], b"\xff" + line, b"[]", b"5", line + b"}", b"nonsense"])
        lines.append(line)
    return b"\n".join(lines)


def table(draw, delimiter):
    lines = [delimiter.join(["id", "audio", "text", "offset", "duration"]).encode()]
    for index in range(NUM_ROWS):
        fields = [f"c{index}", "a.wav", "ねこ", "", "0.5"]
        if index > 3 and draw.random() < 0.3:
            column = draw.randrange(5)
            value = str(draw.choice(ODD))
            fields[column] = f"{value}{index}" if value and column == 0 else value
        if index > 3 and draw.random() < 0.1:
            fields += ["more"] * draw.randrange(3)
        line = delimiter.join('"{}"'.format(field.replace('"', '""')) for field in fields)
        content = line.encode("utf-8", "surrogatepass")
        lines.append(content.replace("ね".encode(), b"\xff") if draw.random() < 0.1 else content)
    return b"\n".join(lines)


def manifest(draw, kind):
    return json_manifest(draw) if kind == "jsonl" else table(draw, "," if kind == "csv" else "\t")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    soundfile.write(folder / "a.wav", [0.1] * 8000, 16_000)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("seed", range(8))
def test_all_rows_are_accounted_for(folder, kind, seed, streaming, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    path = folder / f"{seed}.{kind}"
    path.write_bytes(manifest(random.Random(f"{seed} {kind}"), kind))
    spec = DatasetSpec(
        str(path), streaming=streaming, max_bad_fraction=1.0, cache_dir=str(tmp_path)
    )
    rows = list(load(spec))
    collated = WindowCollator(LOG_MEL)(rows)
    assert len(collated.rows) == len(rows)
    accounts = {
        name: [int(number) for number in ACCOUNT.search(record.getMessage()).groups()]
        for record in caplog.records
        if ACCOUNT.search(record.getMessage())
        for name in [record.name.rpartition(".")[2]]
    }
    num_in, num_out, dropped, quarantined = accounts["manifest_rows"]
    assert num_in == NUM_ROWS
    assert num_in == num_out + dropped + quarantined
    assert quarantined > 0
    if not streaming:  # of what is cut out of a stream, rows that are left out are only named
        cut = accounts.get("segmentation", [num_out, len(rows), 0, num_out - len(rows)])
        assert cut[0] == num_out == cut[1] + cut[2] + cut[3]
        assert len(rows) == cut[1]
