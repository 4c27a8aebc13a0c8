"""Memory of a child process, as the system counts it."""

import os
import subprocess
import sys
from pathlib import Path

from tiny import REPOSITORY

# Not ru_maxrss: a child inherits that from its parent's.
_REPORT = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(code: str, *args: object) -> float:
    """Return the most memory, in MiB, that a Python program held at once; fail where it fails.

    Args:
        code: of the program, which prints nothing.
        args: its arguments.
    """
    paths = [str(REPOSITORY), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", code + _REPORT, *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout.split()[-2]) / 1024
