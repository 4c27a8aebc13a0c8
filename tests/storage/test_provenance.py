import os
import subprocess
from pathlib import Path

import pytest
import torch

from distillery.storage import provenance
from distillery.storage.provenance import code_commit, versions


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert set(found) >= {"python", "torch", "transformers", "datasets", "accelerate"}


def git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone of one file that is the code."""
    module = tmp_path / "distillery" / "storage" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_commit() is None
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_commit_of_the_code(repository):
    commit = code_commit()
    assert len(commit) == 12
    Path(provenance.__file__).write_text("2")
    assert code_commit() == f"{commit}+changes"


def test_looking_at_the_code_does_not_lock_it(repository):
    """A stage that is killed while git writes its index leaves a clone that takes no commit."""
    index = repository / ".git" / "index"
    os.utime(provenance.__file__, (0, 0))  # the index is out of date
    before = index.stat()
    assert len(code_commit()) == 12
    after = index.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_commit() is None
