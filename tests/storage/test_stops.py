"""Signals become requests, and a process ends with its launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import REPOSITORY

from distillery.storage import stops
from distillery.storage.stops import stop_request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request(number):
    before = signal.getsignal(number)
    with stop_request() as request:
        assert not request.is_set
        os.kill(os.getpid(), number)
        assert request.is_set
    assert signal.getsignal(number) is before


def test_signals_are_themselves_again_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyError), stop_request():
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_one_ctrl_c_that_arrives_twice_is_one(monkeypatch):
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.is_set
    monkeypatch.setattr(stops, "SAME_CTRL_C_S", 0.0)
    with pytest.raises(KeyboardInterrupt), stop_request():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)


CHILD = """
import os, sys, time
from distillery.storage.stops import end_with_launcher, stop_request
with stop_request() as request:
    end_with_launcher()
    print(os.getpid(), flush=True)
    start = time.monotonic()
    while not request.is_set and time.monotonic() - start < 20:
        time.sleep(0.05)
open(sys.argv[1], "w").write("stopped" if request.is_set else "outlived")
"""
LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]).wait()"


@pytest.mark.parametrize("launched", [True, False])
def test_a_process_ends_with_its_launcher_and_without_one_goes_on(tmp_path, launched):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop(stops.LAUNCHED, None)
    if launched:
        environment[stops.LAUNCHED] = "no"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, CHILD, tmp_path / "outcome"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    try:
        deadline = time.monotonic() + (15 if launched else 2)
        while not (tmp_path / "outcome").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "outcome").exists() == launched
        if launched:
            assert (tmp_path / "outcome").read_text() == "stopped"
        else:
            os.kill(child, 0)  # it is there
    finally:
        if not (tmp_path / "outcome").exists():
            os.kill(child, signal.SIGKILL)
        launcher.stdout.close()
