import pytest
from datasets import Dataset

from distillery.data.specs import DatasetSpec
from distillery.ingest.recording_queue import RecordingQueue
from distillery.storage.shares import Share


def rows_of(*ids):
    return Dataset.from_dict({"id": list(ids), "text": [f"text of {i}" for i in ids]})


def splits(streaming):
    sets = {DatasetSpec("one"): rows_of("a", "b", "c"), DatasetSpec("two"): rows_of("d", "e")}
    if streaming:
        sets[DatasetSpec("two")] = sets[DatasetSpec("two")].to_iterable_dataset()
    return sets


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_left_is_dealt_out_once(streaming):
    queues = [RecordingQueue(splits(streaming), {"b"}, Share(n, 2)) for n in range(2)]
    dealt = [[row["id"] for row in queue] for queue in queues]
    assert sorted(dealt[0] + dealt[1]) == ["a", "c", "d", "e"]
    assert {len(share) for share in dealt} == {2}
    for queue, share in zip(queues, dealt, strict=True):
        assert list(queue.ids) == ["a", "b", "c", "d", "e"]
        assert queue.num_left == (None if streaming else len(share))


def test_one_id_in_two_datasets_is_refused():
    sets = {DatasetSpec("one"): rows_of("a"), DatasetSpec("two"): rows_of("a")}
    with pytest.raises(ValueError, match="two datasets have a recording 'a': run the stage once"):
        RecordingQueue(sets, ())
