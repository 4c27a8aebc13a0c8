import pytest
import torch
from pipeline_parts import sound
from stage_runs import talkative_model_folder

from distillery.text.labels import plain_text
from distillery.whisper import checkpoint
from distillery.whisper.pipelines.recognition import AUDIO, RecognitionPipeline
from distillery.whisper.postprocessing import Postprocessor, chunks_of
from distillery.whisper.windows import Decoding, transcribe_windows


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"))))


def written(loaded, wave, timestamps, max_length=28):
    log_mel = loaded.log_mel
    features = log_mel.pad(log_mel.real_frames(wave))[None]
    decoding = Decoding("ja", "transcribe", timestamps, 1, max_length)
    return transcribe_windows(loaded, features, decoding)[0].ids


def every_letter(texts):
    """A punctuator that leaves no letter out."""
    return ["".join(f"{letter}。" for letter in text) for text in texts]


def sequence(loaded, *parts):
    """Return ids of a prefix with timestamps, then of texts and times (seconds)."""
    tokens = loaded.tokens
    ids = tokens.prefix("ja", "transcribe", True)
    for part in parts:
        if isinstance(part, str):
            ids += loaded.tokenizer.encode(part, add_special_tokens=False)
        else:
            ids.append(tokens.timestamp(part))
    return ids


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ((0.0, "ねこ", 1.0, 1.0, "いぬ", 2.5), [((0.0, 1.0), "ねこ"), ((1.0, 2.5), "いぬ")]),
        ((0.5, "ねこ", 1.0, 1.4, "いぬ"), [((0.5, 1.0), "ねこ"), ((1.4, None), "いぬ")]),
        (("ねこ",), [((None, None), "ねこ")]),
    ],
)
def test_chunks_lie_between_timestamps(loaded, parts, wanted):
    found = chunks_of(loaded, sequence(loaded, *parts))
    assert [(chunk["timestamp"], chunk["text"]) for chunk in found] == wanted


def test_without_steps_the_text_is_the_plain_one(loaded):
    ids = sequence(loaded, 0.0, "ねこです", 1.0)
    assert Postprocessor()(loaded, ids, None) == plain_text(ids, loaded.tokens, loaded.tokenizer)


def test_each_chunk_is_punctuated(loaded):
    ids = sequence(loaded, 0.0, "ねこです", 1.0, 1.0, "いぬです", 2.0)
    assert Postprocessor.load("rules", False)(loaded, ids, None) == "ねこです。いぬです。"
    bare = loaded.tokens.prefix("ja", "transcribe", False)
    bare += loaded.tokenizer.encode("ねこです", add_special_tokens=False)
    assert Postprocessor.load("rules", False)(loaded, bare, None) == "ねこです。"


def test_evaluation_scores_what_the_pipeline_writes(loaded, stable_ts):
    wave = sound(-0.5, 2.5, -0.5)
    ids = written(loaded, wave, True)
    pipeline = RecognitionPipeline(
        model=loaded.model, tokenizer=loaded.tokenizer, feature_extractor=loaded.feature_extractor
    )
    # Given the same ids: with timestamps, a pipeline decodes a window again from the last one.
    audio = {"raw": wave, "sampling_rate": loaded.log_mel.sampling_rate}
    outputs = [{"tokens": torch.tensor([ids]), "is_last": True, AUDIO: audio}]
    found = pipeline.postprocess(outputs, punctuator=every_letter, return_timestamps=True)
    evaluated = Postprocessor(every_letter, True)(loaded, ids, wave)
    assert evaluated == found["text"].strip()
    assert len(evaluated) > len(plain_text(ids, loaded.tokens, loaded.tokenizer))
