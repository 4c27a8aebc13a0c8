import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stage_runs import talkative_model_folder
from tiny import SENTENCES, tiny_model_folder
from vocabulary import train_tokenizer

from distillery.whisper import checkpoint, fallback
from distillery.whisper.speculation import with_draft
from distillery.whisper.windows import Decoding, transcribe_windows

RATE = 16_000
GREEDY = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=24)


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("main"))))


@pytest.fixture(scope="module")
def windows(main):
    random = np.random.default_rng(0)
    waves = [(0.1 * random.standard_normal((n + 1) * 4000)).astype(np.float32) for n in range(10)]
    return main.log_mel(waves)


def changed(original, scale, part="decoder"):
    """Return a copy of a model whose weights in a part differ a little."""
    other = replace(original, model=copy.deepcopy(original.model))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in getattr(other.model.model, part).parameters():
            weight.add_(scale * weight.std() * torch.randn(weight.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def student(main):
    """A student with the main model's encoder, which often drafts what the main model writes."""
    return changed(main, 0.02)


@pytest.fixture(scope="module")
def stranger(main):
    """A model with an encoder of its own."""
    return changed(changed(main, 0.02), 0.02, "encoder")


def ids(transcripts):
    return [one.ids for one in transcripts]


def calls_of(module):
    calls = []
    module.register_forward_hook(lambda *values: calls.append(1))
    return calls


@pytest.mark.parametrize("assistant", ["student", "stranger"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_drafts_change_nothing_that_is_written(main, windows, assistant, timestamps, request):
    drafting = with_draft(main, request.getfixturevalue(assistant))
    decoding = replace(GREEDY, timestamps=timestamps)
    wanted = transcribe_windows(main, windows, decoding)
    found = transcribe_windows(drafting, windows, decoding)
    assert ids(found) == ids(wanted)
    assert timestamps or {one.truncated for one in wanted} == {True, False}  # both endings
    assert len({tuple(one.ids) for one in wanted}) > len(windows) / 2
    assert [one.avg_logprob for one in found] == pytest.approx(
        [one.avg_logprob for one in wanted], abs=1e-4
    )


def test_a_draft_may_not_begin_as_no_transcript_may(main, student, windows):
    """Transformers forgets the suppressed first ids where there is a draft."""
    first = {one.ids[4] for one in transcribe_windows(main, windows, GREEDY)}
    barred = replace(main, model=copy.deepcopy(main.model))
    barred.model.generation_config.begin_suppress_tokens = sorted(first)
    wanted = ids(transcribe_windows(barred, windows, GREEDY))
    assert not {one[4] for one in wanted} & first
    assert ids(transcribe_windows(with_draft(barred, student), windows, GREEDY)) == wanted


def test_one_encoder_serves_both_where_they_are_equal(main, student, windows):
    own, other = copy.deepcopy(main.model), copy.deepcopy(student.model)
    drafting = with_draft(replace(main, model=own), replace(student, model=other))
    encoded, not_encoded = calls_of(own.model.encoder), calls_of(other.model.encoder)
    checked, drafted = calls_of(own.model.decoder), calls_of(other.model.decoder)
    found = transcribe_windows(drafting, windows, GREEDY)
    assert (len(encoded), len(not_encoded)) == (len(windows), 0)
    num_passes = len(checked) - len(windows)  # one of each window is for the log-probabilities
    assert 0 < num_passes < sum(len(one.ids) - 4 for one in found)
    assert len(drafted) > num_passes


def test_another_encoder_hears_for_itself(main, stranger, windows):
    own, other = copy.deepcopy(main.model), copy.deepcopy(stranger.model)
    drafting = with_draft(replace(main, model=own), replace(stranger, model=other))
    encoded, also_encoded = calls_of(own.model.encoder), calls_of(other.model.encoder)
    transcribe_windows(drafting, windows[:3], GREEDY)
    assert (len(encoded), len(also_encoded)) == (3, 3)


def test_nobody_drafts_behind_a_prompt(main, student, windows):
    drafting = with_draft(main, replace(student, model=copy.deepcopy(student.model)))
    drafted = calls_of(drafting.draft.decoder)
    prompts = [[main.tokens.start_of_prev, 50 + n] for n in range(3)]
    found = [
        ids(transcribe_windows(model, windows[:3], GREEDY, prompts=prompts))
        for model in (main, drafting)
    ]
    assert found[0] == found[1]
    assert not drafted


def test_nobody_drafts_what_is_drawn(main, student, windows, monkeypatch):
    """The first try of each window is drafted, all others are those without a draft."""
    monkeypatch.setattr(fallback, "MIN_AVG_LOGPROB", 0.0)  # nothing is good enough
    drafting = with_draft(main, replace(student, model=copy.deepcopy(student.model)))
    warm = replace(GREEDY, temperature_fallback=True)
    found = [transcribe_windows(model, windows[:3], warm) for model in (main, drafting)]
    assert ids(found[0]) == ids(found[1])
    assert {one.temperature for one in found[1]} == {1.0}


def test_what_does_not_fit_is_said_at_once(main, tmp_path):
    tokenizer = train_tokenizer(SENTENCES, 280)
    folder = tiny_model_folder(tmp_path / "small", window_s=2, tokenizer=tokenizer)
    other = replace(checkpoint.load(str(folder)), max_label_length=50)
    with pytest.raises(ValueError) as error:
        with_draft(main, other)
    sizes = [loaded.model.config.vocab_size for loaded in (other, main)]
    assert str(error.value) == (
        f"it does not fit the main model: its vocabulary has {sizes[0]} tokens, not {sizes[1]}; "
        "it takes 200 frames in a window, not 400; its decoder has 50 positions, fewer than 96"
    )


def test_same_size_of_vocabulary_is_not_enough(main, tmp_path):
    tokenizer = train_tokenizer([text[::-1] for text in SENTENCES], 300)
    folder = tiny_model_folder(tmp_path / "other", tokenizer=tokenizer)
    other = checkpoint.load(str(folder))
    assert other.model.config.vocab_size == main.model.config.vocab_size
    with pytest.raises(ValueError, match="its tokenizer gives the tokens other ids"):
        with_draft(main, other)
