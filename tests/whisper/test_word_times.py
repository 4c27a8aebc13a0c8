import numpy as np
import pytest
import torch
from stage_runs import talkative_model_folder
from tiny import SENTENCES
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from distillery.text.timestamps import Segment
from distillery.whisper import checkpoint, word_times
from distillery.whisper.greedy import encode
from distillery.whisper.windows import Decoding
from distillery.whisper.word_times import WordTimer, alignment_heads

RATE = 16_000
DECODING = Decoding("ja", "transcribe", timestamps=True, num_beams=1, max_length=24)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(12 * RATE).astype(np.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = talkative_model_folder(tmp_path_factory.mktemp("model"), decoder_layers=2)
    return checkpoint.load(str(folder), attention="eager")


def words_of(timer, segments):
    """Return the words of the segments of one recording."""
    (words,) = timer([(NOISE, segments)])
    return words


def joined(words):
    return "".join(word.text for word in words)


@pytest.mark.parametrize("shape", [(1, 5), (2, 1), (4, 9), (12, 7)])
def test_the_way_is_that_of_transformers(shape):
    cost = np.random.default_rng(sum(shape)).standard_normal(shape)
    rows, steps = _dynamic_time_warping(cost)
    wanted = [int(steps[rows == row].min()) for row in range(shape[0])]
    assert word_times._first_steps(cost).tolist() == wanted


def test_heads_look_where_transformers_says(whisper):
    features = list(whisper.log_mel([NOISE[: 3 * RATE], NOISE[RATE : 2 * RATE]]))
    with torch.inference_mode():
        encoded = encode(whisper, features)
        ids = torch.tensor([[*whisper.tokens.prefix("ja", "transcribe", False), 5, 6, 7]] * 2)
        heads = [(0, 1), (1, 3), (1, 0)]
        found = word_times._attention(whisper.model, encoded, ids, heads).softmax(-1)
        wanted = whisper.model.model.decoder(
            input_ids=ids, encoder_hidden_states=encoded, output_attentions=True, use_cache=False
        ).cross_attentions
    for number, (layer, head) in enumerate(heads):
        torch.testing.assert_close(found[:, number], wanted[layer][:, head], rtol=0, atol=1e-5)


def looking_at(steps):
    """Stand in for the attention: each token is written while the decoder looks at a step."""

    def attention(model, encoded, ids, heads):
        scores = torch.zeros(len(ids), 1, ids.shape[1], encoded.shape[1])
        for row in range(len(ids)):
            for token, step in enumerate(steps):
                # A stretch that a median filter leaves, up to where the next token is written.
                after = steps[token + 1] if token + 1 < len(steps) else encoded.shape[1]
                scores[row, 0, 3 + token, step:after] = 9.0
        return scores

    return attention


def test_words_come_at_the_times_of_their_tokens(whisper, monkeypatch):
    text = "a bb c"  # a token for each letter and space in the tiny vocabulary
    assert len(whisper.tokenizer.encode(text, add_special_tokens=False)) == 6
    monkeypatch.setattr(word_times, "_attention", looking_at([10, 20, 30, 40, 60, 70, 90]))
    (words,) = words_of(WordTimer(whisper, DECODING, 4), [Segment(2.0, 4.0, text)])
    assert [word.text for word in words] == ["a", " bb", " c"]
    starts, ends = zip(*[(word.start, word.end) for word in words], strict=True)
    # Nothing is known of the first token but that it comes first.
    assert starts == pytest.approx((2.0, 2.4, 3.2), abs=1e-6)
    assert ends == pytest.approx((2.4, 3.2, 3.8), abs=1e-6)


def test_words_of_many_segments_join_to_their_texts_and_stay_within(whisper):
    segments = [
        Segment(0.0, 1.5, SENTENCES[0]),
        Segment(1.5, 1.5, " " + SENTENCES[1]),  # no time at all
        Segment(1.6, 3.9, ""),
        Segment(3.9, 7.9, SENTENCES[2]),  # a whole window
        Segment(7.9, 11.0, SENTENCES[3] * 20),  # more ids than there are positions
        Segment(11.5, 14.0, SENTENCES[4]),  # ends behind the recording
    ]
    found = {size: words_of(WordTimer(whisper, DECODING, size), segments) for size in (1, 3)}
    for segment, words, others in zip(segments, found[1], found[3], strict=True):
        assert joined(words) == segment.text
        assert np.allclose([w[:2] for w in words], [w[:2] for w in others], atol=0.021)
        times = [time for word in words for time in word[:2]]
        assert times == sorted(times)
        assert all(segment.start <= time <= segment.end for time in times)
    assert len({word.start for word in found[1][3]}) > 3


def test_a_language_that_is_not_named_is_detected(whisper):
    decoding = Decoding(None, "transcribe", True, 1, 24)
    (words,) = words_of(WordTimer(whisper, decoding, 1), [Segment(0.0, 3.0, SENTENCES[0])])
    assert joined(words) == SENTENCES[0]


def test_recordings_side_by_side_do_not_mix(whisper):
    other = NOISE[::-1].copy()
    recordings = [
        (NOISE, [Segment(0.0, 2.0, SENTENCES[0])]),
        (NOISE[:0], []),
        (other, [Segment(0.0, 1.0, SENTENCES[1]), Segment(5.0, 8.0, SENTENCES[2])]),
    ]
    timer = WordTimer(whisper, DECODING, 3)
    alone = [timer([recording])[0] for recording in recordings]
    for found, wanted in zip(timer(recordings), alone, strict=True):
        assert [joined(words) for words in found] == [joined(words) for words in wanted]
        for words, others in zip(found, wanted, strict=True):
            assert np.allclose([w[:2] for w in words], [w[:2] for w in others], atol=0.021)


def test_no_segments_have_no_words(whisper):
    assert words_of(WordTimer(whisper, DECODING, 1), []) == []


# The teacher of a student with 2 decoder layers had more of them.
@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ([[0, 1], [1, 3]], [(0, 1), (1, 3)]),
        ([[1, 2], [1, 4], [25, 6]], [(1, 2)]),
        ([[10, 12], [25, 6]], [(1, head) for head in range(4)]),
        (None, [(1, head) for head in range(4)]),
    ],
)
def test_heads_that_are_not_there_are_left_out(whisper, monkeypatch, caplog, named, wanted):
    monkeypatch.setattr(whisper.model.generation_config, "alignment_heads", named, raising=False)
    assert whisper.model.config.decoder_layers == 2
    assert alignment_heads(whisper.model) == wanted
    is_warned = "alignment heads are in layers that the model does not have" in caplog.text
    assert is_warned == any(layer > 1 for layer, _ in named or [])
    (words,) = words_of(WordTimer(whisper, DECODING, 1), [Segment(0.0, 3.0, SENTENCES[0])])
    assert joined(words) == SENTENCES[0]
