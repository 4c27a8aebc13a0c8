import gc

import pytest
from datasets import Dataset

from distillery.data.filter_shards import filter_rows


class FailingWriter:
    def write(self, index, chunk):
        if index == 1:
            raise OSError("no space left")
        return index


def test_what_is_kept_from_the_collector_is_given_back_where_a_shard_fails():
    gc.unfreeze()
    accounts = filter_rows(FailingWriter(), Dataset.from_dict({"id": ["a", "b"]}), 1, 1)
    assert next(accounts) == 0
    assert gc.get_freeze_count() > 0
    with pytest.raises(OSError, match="no space"):
        next(accounts)
    assert gc.get_freeze_count() == 0


def test_what_is_kept_from_the_collector_is_given_back_where_the_rest_is_not_wanted():
    gc.unfreeze()
    accounts = filter_rows(FailingWriter(), Dataset.from_dict({"id": ["a", "b"]}), 1, 1)
    next(accounts)
    accounts.close()
    assert gc.get_freeze_count() == 0
