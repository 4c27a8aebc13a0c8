import numpy as np
import pytest

from distillery.evaluation.export_comparison import (
    Transcribed,
    compare,
    comparison_table,
    transcribe_all,
)
from distillery.text.normalizers import normalizer_for

JAPANESE = normalizer_for("ja")
NAMED = {"program": "whisper.cpp", "weights": "int8", "megabytes": 1.5}


def test_an_export_is_scored_against_the_original_and_the_references():
    original = Transcribed(["あいうえお。", "かきくけこ", ""], 2.0)
    export = Transcribed(["あいうえお。", "かきくけさ", ""], 0.5)
    found = compare(export, original, ["あいうえお", "", "まだ"], JAPANESE, NAMED)
    assert (found.identical, found.num_clips, found.speed) == (2, 3, 4.0)
    assert found.cer_to_original == pytest.approx(100 / 11)  # the mark counts, and the wrong one
    assert found.cer == pytest.approx(200 / 7)  # two of the seven characters are not there
    assert compare(export, original, ["", "", ""], JAPANESE, NAMED).cer is None


def test_the_table_has_a_line_for_each_program():
    original = Transcribed(["ねこ"], 1.0)
    found = compare(original, original, [""], JAPANESE, NAMED)
    title, _, line = comparison_table([found]).splitlines()
    assert title.startswith("| program | weights | MB | identical texts | CER to original | CER |")
    assert line == "| whisper.cpp | int8 | 1.50 | 1 of 1 | 0.00 |  | 1.00 | 1.00 |"


def test_clips_are_transcribed_in_order_and_in_some_time():
    clips = [np.full(count, 0.1, np.float32) for count in (3, 1, 2)]
    found = transcribe_all(lambda clip: str(len(clip)), clips)
    assert found.texts == ["3", "1", "2"]
    assert found.seconds >= 0
