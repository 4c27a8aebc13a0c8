"""What holds for every test: no network, one thread, and none of the user's caches."""

import os
import shutil
import socket
import sys
import tempfile

import pytest

# Set before torch and the Hugging Face libraries are imported, which read them once; programs that
# a test starts inherit them.
CACHE = tempfile.mkdtemp(prefix="distillery-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=CACHE,
    HF_DATASETS_CACHE=f"{CACHE}/datasets",
    HF_MODULES_CACHE=f"{CACHE}/modules",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    # Accelerate imports DeepSpeed to save a model, which would else say that it finds no GPU.
    DS_ACCELERATOR="cpu",
)

LOOPBACK = ("127.", "::1", "localhost")


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """Fail a test that opens a connection to anything but this machine."""

    def guard(connect):
        def guarded(self, address, *rest):
            is_local = self.family == socket.AF_UNIX or str(address[0]).startswith(LOOPBACK)
            assert is_local, f"a test tried to connect to {address}"
            return connect(self, address, *rest)

        return guarded

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))


@pytest.fixture(autouse=True)
def one_thread():
    """Take back the threads that a stage gave this process: a fork of it would wait for them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def stable_ts(tmp_path, monkeypatch):
    """Make stable-ts importable where no torchaudio fits the installed torch.

    It imports torchaudio at its top, but uses it only to resample and to save. Returns a folder
    for the PYTHONPATH of programs that a test starts.
    """
    folder = tmp_path / "without-torchaudio"
    folder.mkdir()
    (folder / "torchaudio.py").write_text("", "utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    yield folder
    sys.modules.pop("torchaudio", None)
