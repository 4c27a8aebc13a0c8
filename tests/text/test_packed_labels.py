import random

import pytest
from tiny import tiny_tokenizer

from distillery.text.labels import LabelRule
from distillery.text.packed_labels import Span, packed_body, packed_label, split_label
from distillery.text.tokens import SpecialTokens

TOKENIZER = tiny_tokenizer()
TOKENS = SpecialTokens.from_tokenizer(TOKENIZER, True)


def said(*parts):
    """Return ids: a float is a timestamp, an int a token."""
    return [TOKENS.timestamp(part) if isinstance(part, float) else part for part in parts]


TWO = [Span(0.0, 2.5), Span(2.7, 5.0)]


@pytest.mark.parametrize(
    ("written", "parts", "ambiguous", "num_crossing"),
    [
        # One passage in each part.
        (said(0.2, 7, 2.4, 2.9, 8, 4.8), [said(0.2, 7, 2.4), said(0.2, 8, 2.1)], (), 0),
        # Two in the first, none in the second, and silence that begins.
        (said(0.2, 7, 1.0, 1.0, 8, 2.0, 3.0), [said(0.2, 7, 1.0, 1.0, 8, 2.0), []], (), 0),
        # A passage that ends a little behind its part is of that part alone, bounded by it.
        (said(0.2, 7, 2.8, 2.8, 8, 4.8), [said(0.2, 7, 2.5), said(0.1, 8, 2.1)], (), 0),
        # And so is one that begins a little before it.
        (said(2.4, 8, 4.8), [[], said(0.0, 8, 2.1)], (), 0),
        # One passage for both parts: all goes to the one in which its middle lies.
        (said(0.2, 7, 8, 4.8), [said(0.2, 7, 8, 2.5), []], (0, 1), 1),
        (said(1.5, 7, 8, 5.0), [[], said(0.0, 7, 8, 2.3)], (0, 1), 1),
        # Cut off: it counts where it starts.
        (said(0.2, 7, 1.0, 3.0, 8), [said(0.2, 7, 1.0), said(0.3, 8)], (), 0),
        (said(0.2, 7), [said(0.2, 7), []], (0, 1), 1),
        # Nothing is said, or no times.
        ([], [[], []], (), 0),
        (said(0.0), [[], []], (), 0),
        ([7, 8], [None, None], (0, 1), 0),
    ],
)
def test_passages_go_to_the_part_of_their_middle(written, parts, ambiguous, num_crossing):
    split = split_label(written, TWO, TOKENS)
    assert split.parts == parts
    assert split.ambiguous == frozenset(ambiguous)
    assert split.num_crossing == num_crossing


@pytest.mark.parametrize("written", [[], [7, 8], said(0.0), said(0.3, 7, 1.0, 1.2, 8)])
def test_a_lone_part_has_what_was_written_for_its_window(written):
    span = Span(0.0, 1.5)
    assert split_label(written, [span], TOKENS).parts == [written]
    assert packed_label([(written, span)], TOKENS) == written


def drawn(rng: random.Random, has_pauses: bool) -> list[tuple[list[int], Span]]:
    """Draw parts whose passages lie inside them, with the times that models write."""
    parts, start = [], 0
    while start < 1200:  # steps of 0.02 s
        length = rng.randint(40, 400)
        cuts = sorted(rng.sample(range(length + 1), 2 * rng.randint(0, 3)))
        ids = []
        for first, last in zip(cuts[::2], cuts[1::2], strict=True):
            words = [rng.randint(0, 250) for _ in range(rng.randint(1, 4))]
            ids += [TOKENS.timestamp_begin + first, *words, TOKENS.timestamp_begin + last]
        # The real length of a part is any number of samples.
        duration = length / 50 - rng.uniform(0, 0.009)
        parts.append((ids, Span(start / 50, start / 50 + duration)))
        start += length + (10 if has_pauses else 0)
    return parts


@pytest.mark.parametrize("has_pauses", [False, True])
@pytest.mark.parametrize("seed", range(50))
def test_packed_and_split_again_labels_are_the_same(seed, has_pauses):
    parts = drawn(random.Random(seed), has_pauses)
    split = split_label(packed_label(parts, TOKENS), [span for _, span in parts], TOKENS)
    assert split.parts == [ids for ids, _ in parts]
    assert (split.ambiguous, split.num_crossing) == (frozenset(), 0)


def test_times_are_those_of_the_window():
    parts = [(said(0.1, 7, 1.0), Span(0.0, 1.2)), (said(0.0, 8, 0.5), Span(1.4, 2.0))]
    assert packed_label(parts, TOKENS) == said(0.1, 7, 1.0, 1.4, 8, 1.9)


def test_a_part_without_times_leaves_none_in_the_window():
    parts = [(said(0.1, 7, 1.0), Span(0.0, 1.2)), ([8, 9], Span(1.4, 2.0))]
    assert packed_label(parts, TOKENS) == [7, 8, 9]


def test_a_part_without_words_leaves_the_times_of_others():
    silent = Span(1.4, 2.0)
    for nothing in ([], said(0.0)):
        parts = [(said(0.1, 7, 1.0), Span(0.0, 1.2)), (nothing, silent)]
        assert packed_label(parts, TOKENS) == said(0.1, 7, 1.0)
        assert packed_label([(nothing, silent), (nothing, silent)], TOKENS) == []


def test_what_a_clip_cuts_off_ends_with_it_unless_the_window_does_too():
    parts = [(said(0.1, 7), Span(0.0, 1.2)), (said(0.2, 8), Span(1.4, 2.0))]
    assert packed_label(parts, TOKENS) == said(0.1, 7, 1.2, 1.6, 8)


def test_words_of_two_parts_get_the_space_of_their_script():
    rule = LabelRule(TOKENS, TOKENIZER, "ja", "transcribe", 448, 1.0, 0.0, 0)
    spans = [Span(0.0, 1.0), Span(1.2, 2.0), Span(2.2, 3.0)]

    def written(*texts):
        return TOKENIZER.decode(packed_body(list(zip(texts, spans, strict=False)), rule))

    assert written("ねこ。", "いぬ") == "ねこ。いぬ"
    assert written("a cat", "", "a dog") == "a cat a dog"
    ids = TOKENIZER.encode(" a dog", add_special_tokens=False)
    assert written("a cat", ids) == "a cat a dog"
    timed = packed_body(
        [("<|0.10|>ねこ<|0.80|>", spans[0]), ("<|0.00|>いぬ<|0.50|>", spans[1])], rule
    )
    assert TOKENIZER.decode(timed, decode_with_timestamps=True) == (
        "<|0.10|>ねこ<|0.80|><|1.20|>いぬ<|1.70|>"
    )
