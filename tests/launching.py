"""Starts a stage script as its users do, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tiny import REPOSITORY

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
TIMEOUT_S = 240
SCRIPT_TIMEOUT_S = 1800  # of several stages, on a machine that others use too


def launch(
    script: str,
    *args: object,
    processes: int = 0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository to its end; its output is `.stdout`, errors and log included.

    Args:
        script: path in the repository.
        args: its command line.
        processes: 0 starts it by plain `python`, which is the fastest; 1 and 2 start so many by
            `accelerate launch`.
        check: fail, with what it printed, where it exits with an error.
        env: more environment variables.
        cwd: where it is started.
    """
    done = subprocess.run(
        command(script, *args, processes=processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=environment(env),
        timeout=TIMEOUT_S,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script of the repository with this Python; its output is `.stdout`, log included.

    Args:
        script: path in the repository.
        variables: of its environment.
    """
    return subprocess.run(
        ["bash", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=shell_environment(**variables),
        timeout=SCRIPT_TIMEOUT_S,
    )


def shell_environment(**variables: str) -> dict[str, str]:
    """Return the variables that a started shell script sees: no environment of its own is made."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment({"VENV": "", "PATH": path, **variables})


def kill(script: str, target: str, call: int, *args: object) -> None:
    """Run a script in a process that gets SIGKILL when it is about to call a function again.

    Args:
        script: path in the repository.
        target: the function, as `module:name`.
        call: number of the last call, from 1.
        args: the script's command line.
    """
    done = launch("tests/stage_runs.py", script, target, call, *args, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout


def command(script: str, *args: object, processes: int = 0) -> list[str]:
    """Return the command that starts a script in so many processes."""
    return [sys.executable, *_launcher(processes), script, *map(str, args)]


def launch_on_two_machines(script: str, *args: object) -> list[str]:
    """Run a script by two launchers, each of one process, that meet as two machines do.

    Returns:
        What each printed; one that failed fails the test.
    """
    flags = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    flags += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    start = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    launchers = [
        subprocess.Popen(
            [*start, "--machine_rank", str(rank), script, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env=environment(),
        )
        for rank in range(2)
    ]
    printed = [launcher.communicate(timeout=TIMEOUT_S)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "".join(printed)
    return printed


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that a started script sees: no network, and the repository's package."""
    return {**os.environ, **OFFLINE, "PYTHONPATH": str(REPOSITORY), **(more or {})}


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    """Wait for something to come true; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def _launcher(processes: int) -> list[str]:
    if processes == 0:
        return []
    flags = ["--num_processes", str(processes), "--num_machines", "1"]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:
        flags += ["--multi_gpu", "--main_process_port", str(free_port())]
    return ["-m", "accelerate.commands.launch", *flags]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
