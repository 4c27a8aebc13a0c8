import subprocess

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


def test_the_commit_of_the_code(tmp_path, monkeypatch):
    package = tmp_path / "distillery" / "storage"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_commit() is None
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = code_commit()
    assert len(commit) == 12
    (package / "provenance.py").write_text("2")
    assert code_commit() == f"{commit}+changes"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_commit() is None
