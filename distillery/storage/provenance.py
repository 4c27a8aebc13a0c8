"""Which code and which libraries made a result."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "jiwer", "soundfile")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **libraries}


def code_commit() -> str | None:
    """Return the commit of this code, with `+changes` if the tree differs; None outside git."""
    try:
        commit = _git("describe", "--always", "--abbrev=12")
        # Not `describe --dirty`, which writes the index: killed then, it would leave it locked.
        changes = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
