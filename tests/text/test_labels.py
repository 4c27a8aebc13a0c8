from dataclasses import replace

import pytest
from tiny import tiny_tokenizer

from distillery.text.labels import (
    IGNORED,
    LabelRule,
    decoder_inputs_and_targets,
    has_timestamps,
    num_text_labels,
    plain_text,
    plain_texts,
    previous_windows,
    text_ids,
    without_timestamps,
)
from distillery.text.tokens import SpecialTokens

# Of the tiny tokenizer.
EOT, SOT, JA, TRANSCRIBE, PREV, NO_TIMESTAMPS, BEGIN, T1, T2 = (
    *(300, 301, 309, 402, 404, 406),
    *(407, 457, 507),  # <|0.00|>, <|1.00|>, <|2.00|>
)
PREFIX = [SOT, JA, TRANSCRIBE]
PLAIN_PREFIX = [*PREFIX, NO_TIMESTAMPS]
_ = IGNORED


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)


@pytest.fixture(scope="module")
def rule(tokens, tokenizer):
    """A rule that keeps every timestamp and every prompt."""
    return LabelRule(tokens, tokenizer, "ja", "transcribe", 96, 1.0, 1.0, 0)


def check(labels, tokens, expected, inputs, targets):
    assert labels == expected
    assert decoder_inputs_and_targets(labels, tokens) == (inputs, targets)


def test_plain(rule, tokens):
    check(
        rule("a", [SOT, JA, TRANSCRIBE, NO_TIMESTAMPS, 10, 11, EOT]),
        tokens,
        [301, 309, 402, 406, 10, 11, 300],
        [301, 309, 402, 406, 10, 11],
        [309, 402, 406, 10, 11, 300],
    )


def test_timestamps(rule, tokens):
    check(
        rule("a", [*PREFIX, BEGIN, 10, 11, T1, T1, 12, T2, EOT]),
        tokens,
        [301, 309, 402, 407, 10, 11, 457, 457, 12, 507, 300],
        [301, 309, 402, 407, 10, 11, 457, 457, 12, 507],
        [309, 402, 407, 10, 11, 457, 457, 12, 507, 300],
    )


def test_timestamps_that_are_not_kept(rule, tokens):
    rule = replace(rule, timestamp_probability=0.0)
    check(
        rule("a", [*PREFIX, BEGIN, 10, 11, T1, EOT], [BEGIN, 7, T2]),
        tokens,
        [404, 7, 301, 309, 402, 406, 10, 11, 300],
        [404, 7, 301, 309, 402, 406, 10, 11],
        [_, _, 309, 402, 406, 10, 11, 300],
    )


def test_prompt_with_timestamps(rule, tokens):
    check(
        rule("a", [*PREFIX, BEGIN, 10, T1, EOT], [BEGIN, 7, 8, T2]),
        tokens,
        [404, 407, 7, 8, 507, 301, 309, 402, 407, 10, 457, 300],
        [404, 407, 7, 8, 507, 301, 309, 402, 407, 10, 457],
        [_, _, _, _, _, 309, 402, 407, 10, 457, 300],
    )


def test_prompt_of_a_row_without_timestamps_has_none(rule, tokens):
    check(
        rule("a", [*PLAIN_PREFIX, 10, EOT], [BEGIN, 7, 8, T2]),
        tokens,
        [404, 7, 8, 301, 309, 402, 406, 10, 300],
        [404, 7, 8, 301, 309, 402, 406, 10],
        [_, _, _, 309, 402, 406, 10, 300],
    )


def test_prompt_of_nothing_but_timestamps_is_no_prompt(rule):
    assert rule("a", [*PLAIN_PREFIX, 10, EOT], [BEGIN, T2]) == [*PLAIN_PREFIX, 10, EOT]


@pytest.mark.parametrize("previous", [None, []])
def test_no_prompt(rule, previous):
    assert rule("a", [*PLAIN_PREFIX, 10, EOT], previous) == [*PLAIN_PREFIX, 10, EOT]


def test_prompt_that_is_not_drawn(rule):
    rule = replace(rule, condition_on_prev_probability=0.0)
    assert rule("a", [*PREFIX, BEGIN, 10, T1], [BEGIN, 7, T2]) == [*PREFIX, BEGIN, 10, T1, EOT]


def test_truncated_transcript_gets_no_end(rule, tokens):
    check(
        rule("a", [*PREFIX, BEGIN, 10, 11], truncated=True),
        tokens,
        [301, 309, 402, 407, 10, 11],
        [301, 309, 402, 407, 10],
        [309, 402, 407, 10, 11],
    )


def test_empty_transcript(rule, tokens):
    check(
        rule("a", [*PLAIN_PREFIX, EOT]),
        tokens,
        [301, 309, 402, 406, 300],
        [301, 309, 402, 406],
        [309, 402, 406, 300],
    )


def test_prompt_loses_its_beginning_at_half_of_the_positions(rule, tokens):
    rule = replace(rule, max_positions=12)
    check(
        rule("a", [*PLAIN_PREFIX, 10], list(range(100, 110))),
        tokens,
        [404, 105, 106, 107, 108, 109, 301, 309, 402, 406, 10, 300],
        [404, 105, 106, 107, 108, 109, 301, 309, 402, 406, 10],
        [_, _, _, _, _, _, 309, 402, 406, 10, 300],
    )


@pytest.mark.parametrize(
    ("num_words", "prompt"),
    [
        (3, [106, 107, 108, 109]),
        (6, [109]),  # 12 decoder inputs: <|startofprev|> 109 prefix(4) words(6)
        (7, []),  # <|startofprev|> alone would be of no use
        (20, []),  # the text is never shortened
    ],
)
def test_prompt_gives_way_to_the_text(rule, num_words, prompt):
    rule = replace(rule, max_positions=12)
    words = list(range(10, 10 + num_words))
    labels = rule("a", words, list(range(100, 110)))
    assert labels == [*([PREV, *prompt] if prompt else []), *PLAIN_PREFIX, *words, EOT]


def test_a_whole_sequence_keeps_to_the_maximum_label_length(rule):
    previous, words = list(range(100, 150)), [10, 11, 12]
    whole = rule("a", words, previous)
    for longest in range(9, len(whole) + 1):
        labels = replace(rule, max_label_length=longest)("a", words, previous)
        assert len(labels) <= longest
        assert labels[-8:] == whole[-8:] == [*PLAIN_PREFIX, *words, EOT]  # never the text
    # Two ids of prompt are left beside <|startofprev|>, and half of the length at most.
    assert replace(rule, max_label_length=11)("a", words, previous)[:3] == [PREV, 148, 149]
    assert len(replace(rule, max_label_length=40)("a", words, previous)) == 8 + 20
    assert rule("a", words, previous) == replace(rule, max_label_length=97)("a", words, previous)


def test_prompt_fills_the_positions_exactly(rule, tokens):
    rule = replace(rule, max_positions=12)
    inputs, _targets = decoder_inputs_and_targets(rule("a", [10, 11, 12], [9] * 50), tokens)
    assert len(inputs) == 12


@pytest.mark.parametrize(
    "transcript",
    [
        [10],
        [SOT, 10],
        [*PLAIN_PREFIX, 10, EOT],
        [*PREFIX, 10, EOT, EOT, EOT],
        [PREV, 5, 6, *PLAIN_PREFIX, 10, EOT],
        [SOT, SOT, JA, TRANSCRIBE, NO_TIMESTAMPS, 10],
    ],
)
@pytest.mark.parametrize(
    "previous", [[7], [*PLAIN_PREFIX, 7, EOT], [PREV, 7], [PREV, 5, *PREFIX, 7, EOT]]
)
def test_nothing_special_is_ever_doubled(rule, transcript, previous):
    assert rule("a", transcript, previous) == [PREV, 7, *PLAIN_PREFIX, 10, EOT]


def test_string_transcripts(rule, tokenizer):
    words = tokenizer.encode("ねこ", add_special_tokens=False)
    assert rule("a", "ねこ") == [*PLAIN_PREFIX, *words, EOT]
    assert rule("a", "<|0.00|>ねこ<|1.00|>") == [*PREFIX, BEGIN, *words, T1, EOT]
    whole = "<|startoftranscript|><|ja|><|transcribe|><|0.00|>ねこ<|1.00|><|endoftext|>"
    assert rule("a", whole) == [*PREFIX, BEGIN, *words, T1, EOT]


@pytest.mark.parametrize(
    "listed",
    ["[301, 309, 402, 406, 10, 11, 300]", "[301 309 402 406 10\n 11 300]", " [10,11,300] "],
)
def test_ids_that_are_listed_as_text(rule, listed):
    assert rule("a", listed) == [*PLAIN_PREFIX, 10, 11, EOT]


@pytest.mark.parametrize("spoken", ["[10, 11]", "[301, 10, x]", "[]", "[ねこ]", "301, 10", "[301"])
def test_text_in_brackets_is_speech(rule, tokenizer, spoken):
    words = tokenizer.encode(spoken, add_special_tokens=False)
    assert rule("a", spoken) == [*PLAIN_PREFIX, *words, EOT]


def test_texts_of_many_are_those_of_each(tokens, tokenizer):
    words = tokenizer.encode("ねこがみずをのむ。", add_special_tokens=False)
    sequences = [
        [*PREFIX, BEGIN, *words, T1, EOT],
        [PREV, *words, *PLAIN_PREFIX, *words[:3], EOT],
        words[:4],  # the last character may be cut in the middle of its bytes
        [*PLAIN_PREFIX, EOT],
        [],
    ]
    texts = plain_texts(sequences, tokens, tokenizer)
    assert texts[0] == "ねこがみずをのむ。"
    assert texts == [plain_text(ids, tokens, tokenizer) for ids in sequences]
    for ids, text in zip(sequences, texts, strict=True):
        body = without_timestamps(text_ids(ids, tokens), tokens)
        assert text == tokenizer.decode(body, skip_special_tokens=True).strip()


def test_english_only_labels(tokenizer):
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=False)
    rule = LabelRule(tokens, tokenizer, None, "transcribe", 96, 1.0, 1.0, 0)
    assert rule("a", [SOT, NO_TIMESTAMPS, 10, EOT]) == [SOT, NO_TIMESTAMPS, 10, EOT]
    assert rule("a", [SOT, BEGIN, 10, T1, EOT]) == [SOT, BEGIN, 10, T1, EOT]


def drawn(rule, ids, epoch=0):
    """Tell for each id whether its timestamps and its prompt were kept."""
    rows = {i: rule(i, [BEGIN, 10, T1], [7], epoch=epoch) for i in ids}
    return {i: (NO_TIMESTAMPS not in row, PREV in row) for i, row in rows.items()}


IDS = [f"row-{i}" for i in range(4000)]


def test_draws_have_the_asked_probability_and_are_independent(rule):
    rule = replace(rule, timestamp_probability=0.5, condition_on_prev_probability=0.2)
    found = list(drawn(rule, IDS).values())
    shares = {pair: found.count(pair) / len(found) for pair in set(found)}
    expected = {(True, True): 0.1, (True, False): 0.4, (False, True): 0.1, (False, False): 0.4}
    assert shares == pytest.approx(expected, abs=0.03)


def test_draws_depend_on_seed_epoch_and_id_alone(rule):
    rule = replace(rule, timestamp_probability=0.5, condition_on_prev_probability=0.5)
    once = drawn(rule, IDS[:200])
    assert drawn(rule, reversed(IDS[:200])) == once
    assert drawn(rule, IDS[:200], epoch=1) != once
    assert drawn(replace(rule, seed=1), IDS[:200]) != once
    other = drawn(rule, [f"other-{i}" for i in range(200)])
    assert list(other.values()) != list(once.values())


def test_num_text_labels(tokens):
    assert num_text_labels([PREV, 7, 8, *PLAIN_PREFIX, 10, EOT], tokens) == 6
    assert num_text_labels([*PLAIN_PREFIX, 10, EOT], tokens) == 6


def test_labels_without_a_start_are_refused(tokens):
    with pytest.raises(ValueError, match=r"without <\|startoftranscript\|>"):
        decoder_inputs_and_targets([EOT, 10, 11], tokens)


@pytest.mark.parametrize(
    ("sequence", "ids"),
    [
        ([], []),
        ([*PLAIN_PREFIX, 10, EOT], [10]),
        ([PREV, 5, *PREFIX, BEGIN, 10, T1, EOT], [BEGIN, 10, T1]),
        ([10, 11], [10, 11]),
        ([PREV, 10], [10]),
    ],
)
def test_text_ids(tokens, sequence, ids):
    assert text_ids(sequence, tokens) == ids


def test_timestamp_helpers(tokens):
    assert without_timestamps([BEGIN, 10, T1], tokens) == [10]
    assert has_timestamps([10, T1], tokens)
    assert not has_timestamps([NO_TIMESTAMPS, 10], tokens)


@pytest.mark.parametrize("text", ["ねこがみずをのむ。", "Well , it 's 3 . 5 !", "今天天氣很好。"])
def test_plain_text_is_the_text(tokens, tokenizer, text):
    words = tokenizer.encode(text, add_special_tokens=False)
    sequence = [PREV, 10, *PREFIX, BEGIN, *words, T1, EOT]
    assert plain_text(sequence, tokens, tokenizer) == text


def test_previous_windows():
    rows = [
        ("r1", "a", [1]),
        ("r1", "a", [2]),  # same recording and speaker
        ("r1", "b", [3]),  # another speaker
        ("r2", "b", [4]),  # another recording
        ("r2", "b", None),
        ("r2", "b", [6]),  # nothing known of the window before
        ("r2", None, [7]),
        ("r2", None, [8]),  # the recording is enough
        (None, "c", [9]),
        (None, "c", [10]),  # the speaker is enough
        (None, None, [11]),
        (None, None, [12]),  # two unknowns are not the same
        ("r1", "a", [13]),  # not next to the other windows of r1
    ]
    expected = [None, [1], None, None, [4], None, None, [7], None, [9], None, None, None]
    assert list(previous_windows(iter(rows))) == expected


def test_previous_windows_of_nothing():
    assert list(previous_windows(iter([]))) == []


# --- windows without speech -----------------------------------------------------------------------


def test_a_share_of_rows_is_without_speech_and_drawn_anew_in_each_epoch(rule, tokens):
    some = replace(rule, no_speech_probability=0.25)
    drawn = [[some.without_speech(f"row {i}", epoch) for i in range(400)] for epoch in (0, 1)]
    for labels in drawn:
        assert 70 <= sum(each is not None for each in labels) <= 130
    assert drawn[0] != drawn[1]
    assert drawn[0] == [some.without_speech(f"row {i}", 0) for i in range(400)]
    said = [tokens.start_of_transcript, tokens.no_speech, tokens.end_of_text]
    empty = [*tokens.prefix("ja", "transcribe", False), tokens.end_of_text]
    found = [each for labels in drawn for each in labels if each is not None]
    assert all(each in (said, empty) for each in found)
    assert len(found) / 3 < found.count(said) < len(found) * 2 / 3
    assert rule.without_speech("row 1", 0) is None


def test_a_vocabulary_without_no_speech_is_refused(rule, tokens):
    with pytest.raises(ValueError, match="--no_speech_probability: the tokenizer has neither"):
        replace(rule, tokens=replace(tokens, no_speech=None), no_speech_probability=0.1)
