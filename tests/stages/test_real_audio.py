"""The whole chain over real recordings, with a model of whisper-tiny's shape and its tokenizer.

The weights are random, so that nothing is downloaded: transcripts are nonsense that never stops,
and are kept all the same. On another machine the same commands take `openai/whisper-tiny`.
"""

import json
import math

import numpy as np
import pytest
import torch
import vocabulary
from stage_runs import loaded, record, run, split_rows
from tiny import SHARED
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from distillery.evaluation import results
from distillery.whisper import checkpoint

RECORDINGS = SHARED / "data" / "common_voice_zh_tw"
MANIFEST = RECORDINGS / "demo_jsonl_dataset.jsonl"
TOKENIZER = SHARED / "data" / "whisper_tokenizer"
NUM_CLIPS = 8

pytestmark = pytest.mark.skipif(
    not MANIFEST.exists(), reason=f"{SHARED} is absent: the eight MP3s are not in this repository"
)


def real_tokenizer():
    if TOKENIZER.exists():
        return WhisperTokenizer.from_pretrained(TOKENIZER)
    return vocabulary.openai_tokenizer()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def teacher(root):
    """Save a random model of whisper-tiny's shape, which is the default of WhisperConfig."""
    tokenizer = real_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(WhisperConfig())
    model.generation_config = GenerationConfig(
        max_length=model.config.max_target_positions, **vocabulary.generation_settings(tokenizer)
    )
    checkpoint.save(model, tokenizer, WhisperFeatureExtractor(), root / "teacher")
    return root / "teacher"


@pytest.fixture(scope="module")
def chain(root, teacher):
    """Run every stage once, with the flags that docs/inputs.md gives."""
    manifest = ["--dataset_name", MANIFEST, "--audio_column_name", "path", "--language", "zh"]
    run(
        "run_pseudo_labelling.py",
        *("--model_name_or_path", teacher, *manifest),
        *("--return_timestamps", "--decode_token_ids", "False", "--max_label_length", 24),
        *("--output_dir", root / "labelled"),
    )
    run(
        "run_data_filtering.py",
        *("--dataset_name", root / "labelled", "--keep_truncated"),
        *("--output_dir", root / "filtered"),
    )
    run(
        "create_student_model.py",
        *("--teacher_checkpoint", teacher, "--decoder_layers", 2),
        *("--save_dir", root / "student-init"),
    )
    run(
        "run_distillation.py",
        *("--model_name_or_path", root / "student-init"),
        *("--teacher_model_name_or_path", teacher),
        *("--train_dataset_name", root / "filtered", "--language", "zh", "--freeze_encoder"),
        *("--max_steps", 2, "--per_device_train_batch_size", 4, "--learning_rate", 1e-4),
        *("--logging_steps", 1, "--output_dir", root / "student"),
    )
    run(
        "run_short_form_eval.py",
        *("--model_name_or_path", root / "student", *manifest),
        *("--generation_max_length", 24, "--output_dir", root / "eval"),
    )
    return root


def entries():
    return [json.loads(line) for line in MANIFEST.read_text("utf-8").splitlines()]


def test_the_model_is_that_of_whisper_tiny(teacher):
    model = checkpoint.load(str(teacher))
    config = model.model.config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (384, 4, 4)
    assert (config.num_mel_bins, config.max_source_positions) == (80, 1500)
    assert len(model.tokenizer) == config.vocab_size == 51865
    assert model.num_parameters == 37_760_640
    # As OpenAI numbers them.
    assert model.tokens.start_of_transcript == 50258
    assert model.tokens.languages["zh"] == 50260
    assert model.tokens.timestamp_begin == 50364


def test_every_recording_is_labelled_and_kept_as_it_is(chain):
    rows = split_rows(chain / "labelled")
    assert len(rows) == NUM_CLIPS
    for row, entry in zip(rows, entries(), strict=True):
        name = entry["path"].rsplit("/", 1)[-1]
        assert row["audio"]["path"] == name
        assert row["audio"]["bytes"] == (RECORDINGS / "audios" / name).read_bytes()
        assert row["text"] == entry["text"]
        assert 1 < row["duration"] < 10
        assert row["whisper_transcript"][:3] == [50258, 50260, 50359]
        assert row["whisper_transcript"][3] >= 50364  # a timestamp
        assert row["truncated"] and len(row["whisper_transcript"]) == 24
    assert record(chain / "labelled")["ledger"]["out"] == NUM_CLIPS


def test_every_row_gets_labels(chain):
    rows = loaded(chain / "filtered", split="train")
    assert len(rows) == NUM_CLIPS
    for labels in rows["labels"]:
        assert labels[:3] == [50258, 50260, 50359]
        assert labels[-1] != 50257, "a transcript that was cut must not teach to stop"
    assert any(labels[3] == 50363 for labels in rows["labels"])  # <|notimestamps|>


def test_the_student_learns_and_its_encoder_does_not(chain, teacher):
    lines = (chain / "student" / "train_log.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    before, after, frozen = (
        checkpoint.load(str(folder)).model.state_dict()
        for folder in (chain / "student-init", chain / "student", teacher)
    )
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved
    assert not {key for key in moved if key.startswith("model.encoder.")}
    assert all(torch.equal(after[key], frozen[key]) for key in after if "model.encoder." in key)


def test_the_student_is_evaluated_on_every_recording(chain):
    (row,) = results.read_rows(chain / "eval" / "metric.zh.transcribe.jsonl")
    assert (row["num_rows"], row["num_empty_references"], row["num_bad"]) == (NUM_CLIPS, 0, 0)
    assert np.isfinite([row["cer_norm"], row["wer_norm"], row["cer_raw"], row["wer_raw"]]).all()
    found = results.read_predictions(chain / "eval" / row["predictions"])
    assert [p.reference_raw for p in found] == [entry["text"] for entry in entries()]
