import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_tokenizer

from distillery.text import label_columns, labels
from distillery.text.label_columns import IdLists, labels_of
from distillery.text.labels import LabelRule, num_text_labels
from distillery.text.tokens import SpecialTokens

LENGTH = 24  # of the longest sequence


@pytest.fixture(scope="module")
def rule():
    tokenizer = tiny_tokenizer()
    tokens = SpecialTokens.from_tokenizer(tokenizer, is_multilingual=True)
    return LabelRule(tokens, tokenizer, "ja", "transcribe", LENGTH - 1, 0.5, 0.5, 0)


def random_lists(tokens, num, seed):
    """Lists with everything that a transcript may hold, at any place, and empty ones."""
    draw = random.Random(seed)
    times = [tokens.timestamp_begin, tokens.timestamp(1), tokens.timestamp(2)]
    control = sorted(tokens.control_ids)
    lists = []
    for _ in range(num):
        words = [draw.randrange(256) for _ in range(draw.choice((0, 1, 5, 20, 40)))]
        for kinds in (times, control, [tokens.start_of_transcript]):
            for _ in range(draw.choice((0, 0, 1, 2))):
                words.insert(draw.randint(0, len(words)), draw.choice(kinds))
        lists.append(words)
    return lists


def id_lists(lists):
    return IdLists.of(pa.array(lists, pa.list_(pa.int32())))


def as_lists(columns):
    return [part.tolist() for part in columns.split()]


def test_lists_of_a_column_that_is_a_part_of_one_with_nulls():
    parts = [[[9, 9], [1]], [None, [2, 3], []]]
    column = pa.chunked_array([pa.array(part, pa.list_(pa.int32())) for part in parts])
    lists = IdLists.of(column.slice(1))
    assert as_lists(lists) == [[1], [], [2, 3], []]
    assert lists.rows.tolist() == [0, 2, 2]
    assert lists.places.tolist() == [0, 0, 1]
    assert lists.count(lists.ids > 1).tolist() == [0, 0, 2, 0]
    assert as_lists(IdLists.of(column.slice(0, 0))) == []


@pytest.mark.parametrize(
    ("column", "lists"),
    [
        (pa.nulls(2), [[], []]),
        (pa.array([[1, 2], None], pa.list_(pa.int64())), [[1, 2], []]),
        (pa.array([[], [3]], pa.large_list(pa.int32())), [[], [3]]),
    ],
)
def test_columns_of_other_types(column, lists):
    assert as_lists(IdLists.of(column)) == lists


@pytest.mark.parametrize("name", ["text_ids", "without_timestamps"])
def test_rules_for_many_are_those_for_one(rule, name):
    lists = random_lists(rule.tokens, 300, seed=1)
    found = getattr(label_columns, name)(id_lists(lists), rule.tokens)
    assert as_lists(found) == [getattr(labels, name)(ids, rule.tokens) for ids in lists]


@pytest.mark.parametrize("max_label_length", [None, 16, 8])
@pytest.mark.parametrize("english_only", [False, True])
def test_labels_of_many_rows_are_those_of_each(rule, max_label_length, english_only):
    if english_only:
        tokens = SpecialTokens.from_tokenizer(rule.tokenizer, is_multilingual=False)
        rule = replace(rule, tokens=tokens, language=None)
    rule = replace(rule, max_label_length=max_label_length)
    transcripts, previous = (random_lists(rule.tokens, 400, seed) for seed in (2, 3))
    previous[::5] = [None] * len(previous[::5])
    truncated = np.arange(400) % 7 == 0
    names = [f"row-{i}" for i in range(400)]
    expected = [
        rule(*row, truncated=bool(cut))
        for *row, cut in zip(names, transcripts, previous, truncated, strict=True)
    ]
    found, num_text = labels_of(rule, names, id_lists(transcripts), id_lists(previous), truncated)
    assert as_lists(found) == expected
    assert num_text.tolist() == [num_text_labels(row, rule.tokens) for row in expected]
    prompted = [row for row in expected if row[0] == rule.tokens.start_of_prev]
    assert 20 < len(prompted) < 380  # both kinds are among them


def test_no_rows_have_no_labels(rule):
    found, num_text = labels_of(rule, [], id_lists([]), id_lists([]), np.zeros(0, bool))
    assert as_lists(found) == num_text.tolist() == []
