import gc
import signal
import subprocess
import sys

import pytest
from datasets import Dataset

from distillery.filtering.filter_shards import filter_rows


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


KILLED = """
import os, signal, time
from datasets import Dataset
from distillery.filtering.filter_shards import filter_rows

class Writer:
    def write(self, index, chunk):
        time.sleep(120 * index)
        return index

if __name__ == "__main__":
    accounts = filter_rows(Writer(), Dataset.from_dict({"id": ["a", "b"]}), 1, 2)
    next(accounts)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    # The pipe is at its end when the last process that holds it is gone.
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, timeout=90)
    assert done.returncode == -signal.SIGKILL
