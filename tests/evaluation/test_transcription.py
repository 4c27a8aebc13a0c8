"""Clips in one stream: each comes out once, with its own text, and none waits for a slower one."""

import numpy as np
import pytest
from stage_runs import talkative_model_folder

from distillery.data import schema
from distillery.data.collators import PROBLEM, Windows
from distillery.evaluation.transcription import ClipTranscriber
from distillery.text.labels import plain_text
from distillery.whisper import checkpoint, decoder_batch
from distillery.whisper.postprocessing import Postprocessor
from distillery.whisper.windows import Decoding, transcribe_windows

RATE = 16_000
NUM_CLIPS = 9
DECODING = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=40)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def waves():
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((n + 1) * 4000) * 0.5**n for n in range(NUM_CLIPS)]
    return [wave.astype(np.float32) for wave in noise]


@pytest.fixture(scope="module")
def texts(whisper, waves):
    written = transcribe_windows(whisper, whisper.log_mel(waves), DECODING)
    return [plain_text(one.ids, whisper.tokens, whisper.tokenizer) for one in written]


def row(name, seconds=1.0, problem=None):
    return {schema.ID: name, schema.TEXT: f"of {name}", schema.DURATION: seconds, PROBLEM: problem}


def in_batches(waves, size):
    """Return windows, in which every second row cannot be used."""
    batches = []
    for start in range(0, len(waves), size):
        part = waves[start : start + size]
        rows = []
        for index, wave in enumerate(part, start):
            rows += [row(f"bad {index}", problem="is silent"), row(str(index), len(wave) / RATE)]
        batches.append(Windows(rows, part, {}))
    return [*batches, Windows([row("last", problem="is cut")], [], {})]


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("size", [1, 4, 20])
def test_every_clip_comes_once_with_its_own_text(whisper, waves, texts, size, num_beams):
    decoding = Decoding("ja", "transcribe", False, num_beams, 40)
    if num_beams > 1:
        written = transcribe_windows(whisper, whisper.log_mel(waves), decoding)
        texts = [plain_text(one.ids, whisper.tokens, whisper.tokenizer) for one in written]
    clips = ClipTranscriber(whisper, decoding, size, None, Postprocessor())
    found = list(clips.transcribe(in_batches(waves, size)))
    by_id = {each.id: each for each in found}
    assert len(found) == len(by_id) == 2 * NUM_CLIPS + 1
    for index, text in enumerate(texts):
        good, bad = by_id[str(index)], by_id[f"bad {index}"]
        assert (good.prediction, good.reference, good.problem) == (text, f"of {index}", None)
        assert good.duration_s == pytest.approx(len(waves[index]) / RATE)
        assert (bad.prediction, bad.duration_s, bad.problem) == ("", 0.0, "is silent")
    assert by_id["last"].problem == "is cut"


def test_clips_longer_than_a_chunk_go_between_the_others(whisper, waves, texts):
    long = np.tile(waves[0], 16)
    rows = [row("0"), row("long", len(long) / RATE), row("1")]
    clips = ClipTranscriber(whisper, DECODING, 4, 3.0, Postprocessor())
    batches = [Windows(rows, waves[:2], {"long": long}), Windows([row("2")], waves[2:3], {})]
    found = {each.id: each.prediction for each in clips.transcribe(batches)}
    assert [found[name] for name in "012"] == texts[:3]
    assert len(found["long"]) > max(map(len, texts[:3]))


def test_no_clip_waits_for_a_slower_one(whisper, waves, monkeypatch):
    """Batch by batch, each would take the passes of its longest transcript."""
    num_steps = []
    step = decoder_batch.Batch.step
    monkeypatch.setattr(
        decoder_batch.Batch, "step", lambda *args: (num_steps.append(1), step(*args))
    )

    def passes(batches):
        num_steps.clear()
        list(ClipTranscriber(whisper, DECODING, 3, None, Postprocessor()).transcribe(batches))
        return len(num_steps)

    batches = in_batches([*waves, *waves[::-1]], 3)
    assert passes(batches) < sum(passes([batch]) for batch in batches)
