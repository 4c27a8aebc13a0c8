import pytest

from distillery.ingest import splitting
from distillery.ingest.splitting import Group, Shares, divide

SHARES = Shares(0.2, 0.1, seed=0)


def rows_of(num_speakers, rows_each=3, **more):
    return [
        {"id": f"{speaker}-{i}", "speaker_id": f"s{speaker}", "duration": 2.0, **more}
        for speaker in range(num_speakers)
        for i in range(rows_each)
    ]


def split_by_speaker(rows, shares=SHARES):
    """Return the split of each speaker; one that is in two fails."""
    found = {}
    for name, split in divide(rows, shares).items():
        for place in split.places:
            assert found.setdefault(rows[place]["speaker_id"], name) == name
    return found


def test_every_row_goes_into_one_split_and_no_speaker_into_two():
    rows = rows_of(200)
    splits = divide(rows, SHARES)
    places = [place for split in splits.values() for place in split.places]
    assert sorted(places) == list(range(600))
    assert set(split_by_speaker(rows)) == {row["speaker_id"] for row in rows}
    shares = {name: len(split.groups) / 200 for name, split in splits.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.08)
    assert splits["test"].counts() == {
        "rows": 3 * len(splits["test"].groups),
        "speakers": len(splits["test"].groups),
        "hours": pytest.approx(len(splits["test"].groups) * 6 / 3600, abs=1e-4),
    }


def test_added_rows_move_nobody():
    before = split_by_speaker(rows_of(60))
    after = split_by_speaker(rows_of(300, rows_each=2)[::-1])
    assert {name: after[name] for name in before} == before


def test_another_seed_deals_anew():
    assert split_by_speaker(rows_of(60)) != split_by_speaker(rows_of(60), Shares(0.2, 0.1, seed=1))


def test_the_split_of_a_speaker_is_for_ever():
    """A change of the rule would move speakers of datasets that were split before."""
    names = ["anna", "ben", "chie", "大輔", "s1", "s2", "s3", "s4"]
    found = [Shares(0.25, 0.25, 0).split_of(Group("speakers", name)) for name in names]
    assert found == [
        "validation",
        "train",
        "test",
        "train",
        "validation",
        "train",
        "train",
        "validation",
    ]


def test_rows_without_a_speaker_go_by_their_recording_and_else_by_their_id():
    rows = [
        *({"id": f"a{i}", "speaker_id": "", "recording_id": "tape"} for i in range(4)),
        *({"id": f"b{i}", "recording_id": None} for i in range(40)),
        *rows_of(20),
    ]
    splits = divide(rows, SHARES)
    groups = [group for split in splits.values() for group in split.groups]
    kinds = [group.kind for group in groups]
    assert {kind: kinds.count(kind) for kind in splitting.KINDS} == {
        "speakers": 20,
        "recordings": 1,
        "clips": 40,
    }
    assert [len({0, 1, 2, 3} & set(split.places)) for split in splits.values()].count(4) == 1
    assert sum(split.num_unknown for split in splits.values()) == 44


@pytest.mark.parametrize(
    ("num_speakers", "shares", "message"),
    [
        (1, SHARES, r"1 speaker cannot be shared out among train, validation, test"),
        (1, Shares(0, 0.5, 0), r"1 speaker cannot be shared out among train, test"),
        (2, SHARES, r"2 speakers cannot .*--speaker_id_column_name"),
        (5, Shares(0.001, 0.001, 0), r"none of 5 speakers falls into validation and test: raise"),
        (0, SHARES, "no rows cannot be shared out"),
    ],
)
def test_what_cannot_be_split_is_refused(num_speakers, shares, message):
    with pytest.raises(ValueError, match=message):
        divide(rows_of(num_speakers), shares)


def test_two_splits_need_no_third():
    splits = divide(rows_of(20), Shares(0, 0.3, 0))
    assert not splits["validation"].places
    assert splits["train"].places and splits["test"].places
