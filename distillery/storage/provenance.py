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
    root = Path(__file__).resolve().parents[2]
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
