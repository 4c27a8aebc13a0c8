import numpy as np
import pytest
from datasets import Dataset
from transformers import WhisperFeatureExtractor

from distillery.audio.decoding import encode_flac
from distillery.audio.log_mel import LogMel
from distillery.data import schema
from distillery.labelling.clips import CONTEXT, Clip, ShardQueue, batches
from distillery.storage.shares import WHOLE, Share

# Seven clips in shards of three: a pair straddles each of the two borders.
PLACES = [("a", "x"), ("a", "x"), ("a", "y"), ("a", "y"), (None, None), (None, None), (None, None)]


def dataset(places=PLACES):
    tone = encode_flac(np.full(800, 0.1, np.float32), 16_000)
    columns = {
        schema.ID: [str(index) for index in range(len(places))],
        schema.AUDIO: [{"bytes": tone, "path": None}] * len(places),
        schema.RECORDING_ID: [recording for recording, _ in places],
        schema.SPEAKER_ID: [speaker for _, speaker in places],
    }
    return Dataset.from_dict(columns)


def queue_of(rows, share=WHOLE, done=()):
    return ShardQueue(rows, 3, share, lambda shard, chunk: shard in done)


def ids(clips, rows):
    """Return shard, position and id of each clip."""
    return [
        (shard, position, str(row) if isinstance(row, int) else row[schema.ID])
        for shard, position, row in clips
    ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_shards_in_order_with_the_window_before_where_it_is_one(is_stream):
    rows = dataset().to_iterable_dataset() if is_stream else dataset()
    queue = queue_of(rows)
    assert ids(queue, rows) == [
        *((0, 0, "0"), (0, 1, "1"), (0, 2, "2")),
        *((1, CONTEXT, "2"), (1, 0, "3"), (1, 1, "4"), (1, 2, "5")),
        (2, 0, "6"),  # nothing is known of where this clip and the one before come from
    ]
    assert queue.num_shards == 3
    assert {shard: len(chunk) for shard, chunk in queue.chunks.items()} == {0: 3, 1: 3, 2: 1}


@pytest.mark.parametrize("is_stream", [False, True])
def test_only_what_is_left_of_a_share(is_stream):
    rows = dataset().to_iterable_dataset() if is_stream else dataset()
    queue = queue_of(rows, Share(0, 2), done={0})
    assert ids(queue, rows) == [(2, 0, "6")]
    assert queue.num_shards == 3


def test_rows_of_finished_shards_are_not_selected(monkeypatch):
    """Selecting takes milliseconds: 20,000 finished shards would keep a start waiting."""
    rows, selected = dataset(), []
    select = Dataset.select

    def selecting(self, indices, *values):
        selected.append(list(indices))
        return select(self, indices, *values)

    monkeypatch.setattr(Dataset, "select", selecting)
    assert len(list(queue_of(rows, done={0, 2}))) == 4
    assert selected == [[3, 4, 5]]


def test_shares_have_every_shard_once():
    count = 7
    shares = [Share(index, count) for index in range(count)]
    assert [sum(share.has(shard) for share in shares) for shard in range(40)] == [1] * 40
    parts = [share.split(index, 3) for share in shares for index in range(3)]
    assert [sum(part.has(shard) for part in parts) for shard in range(80)] == [1] * 80
    with pytest.raises(ValueError, match="share 2 of 2: count from 0 to 1"):
        Share(2, 2)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("is_stream", [False, True])
def test_batches_run_over_the_borders_of_shards(tmp_path, num_workers, is_stream):
    rows = dataset().to_iterable_dataset() if is_stream else dataset()
    log_mel = LogMel(WhisperFeatureExtractor(feature_size=16, chunk_length=1))
    loaded = list(batches(queue_of(rows), log_mel, 5, num_workers))
    assert [clips for clips, _ in loaded] == [
        [(0, 0), (0, 1), (0, 2), (1, CONTEXT), (1, 0)],
        [(1, 1), (1, 2), (2, 0)],
    ]
    assert [[row[schema.ID] for row in windows.rows] for _, windows in loaded] == [
        list("01223"),
        list("456"),
    ]
    assert [len(windows.waveforms) for _, windows in loaded] == [5, 3]
    assert isinstance(Clip(0, 0, 1).row, int)
