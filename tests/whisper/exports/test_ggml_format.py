import struct

import numpy as np
import pytest
from exported import clips_of, original_texts, read_by
from stage_runs import english_only, talkative_model_folder
from tiny import tiny_model_folder, whisper_sized_tokenizer

from distillery.whisper import checkpoint
from distillery.whisper.exports import ggml_format

SIZES = {"english": (50256, 99), "multilingual": (50257, 99), "large-v3": (50257, 100)}


def model_like(folder, kind, **size):
    """Return a talkative student with Whisper's ids, positions and inner width."""
    whisper_size = {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "max_target_positions": 448,
        "feed_forward_ratio": 4,
        "tokenizer": whisper_sized_tokenizer(*SIZES[kind]),
    }
    talkative_model_folder(folder, **{**whisper_size, **size})
    return checkpoint.load(str(english_only(folder) if kind == "english" else folder))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return model_like(tmp_path_factory.mktemp("ggml") / "model", "multilingual", window_s=30)


def test_whisper_cpp_writes_what_the_original_does(whisper, tmp_path):
    ggml_format.write(whisper, tmp_path, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["ggml-model.bin"]
    (limit,) = ggml_format.limits(whisper)
    assert "writes no timestamps with this model" in limit  # two decoder layers, and 51865 ids
    texts = original_texts(whisper, clips_of(3))
    assert len(set(texts)) == 3
    assert read_by(ggml_format, whisper, tmp_path, clips_of(3)) == {"whisper.cpp": texts}


@pytest.mark.parametrize("kind", ["english", "large-v3"])
def test_other_vocabularies_and_shorter_windows(tmp_path, kind):
    whisper = model_like(tmp_path / "model", kind, window_s=4)
    ggml_format.write(whisper, tmp_path, "float16")
    texts = original_texts(whisper, clips_of(2))
    assert read_by(ggml_format, whisper, tmp_path, clips_of(2)) == {"whisper.cpp": texts}
    limit, *others = ggml_format.limits(whisper)
    assert len(others) == (kind == "english")
    assert "in steps of 30 s, but this model hears 4 s" in limit


def test_weights_in_8_bits_are_smaller_and_run(whisper, tmp_path):
    sizes = {}
    for quantization in ("float16", "int8"):
        ggml_format.write(whisper, tmp_path, quantization)
        sizes[quantization] = (tmp_path / "ggml-model.bin").stat().st_size
    assert sizes["int8"] < 0.8 * sizes["float16"]
    (texts,) = read_by(ggml_format, whisper, tmp_path, clips_of(2)).values()
    assert len(texts) == 2 and all(texts)


def test_blocks_hold_what_32_weights_are_about():
    weights = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    weights[1, :32] = 0
    packed = ggml_format._blocks(weights)
    assert len(packed) == 6 * (2 + 32)
    rows = [struct.unpack_from("<e32b", packed, start) for start in range(0, len(packed), 34)]
    again = np.array([[scale * value for value in values] for scale, *values in rows])
    steps = np.array([scale for scale, *_ in rows])[:, None]
    assert (np.abs(again - weights.reshape(6, 32)) <= 0.51 * steps + 1e-3 * np.abs(again)).all()
    assert not again[2].any()


def test_what_whisper_cpp_cannot_hold_is_refused_in_one_sentence(tmp_path):
    small = checkpoint.load_outline(str(tiny_model_folder(tmp_path / "model", d_model=24)))
    with pytest.raises(ValueError, match=r"whisper\.cpp cannot hold this model") as refused:
        ggml_format.refuse(small, "int8")
    for part in (
        f"a vocabulary of {small.model.config.vocab_size} ids, and not of 51864, 51865, 51866",
        "encoder_ffn_dim 72, and not 4 times d_model 24",
        "decoder_ffn_dim 72",
        "d_model 24, of which int8 needs a multiple of 32",
    ):
        assert part in str(refused.value)
    with pytest.raises(ValueError) as refused:
        ggml_format.refuse(small, "float16")
    assert "multiple of 32" not in str(refused.value)


def test_a_size_that_belies_the_languages_is_refused(tmp_path):
    # whisper.cpp would take its ids for those of a multilingual model.
    folder = tiny_model_folder(
        tmp_path, feed_forward_ratio=4, d_model=16, tokenizer=whisper_sized_tokenizer()
    )
    whisper = checkpoint.load_outline(str(english_only(folder)))
    with pytest.raises(ValueError, match="says the opposite of whether it is multilingual"):
        ggml_format.refuse(whisper, "float16")
