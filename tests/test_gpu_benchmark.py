"""The benchmark for GPUs, which are seldom at hand, must not fail the day that one is."""

import importlib
import subprocess
import sys

from tiny import REPOSITORY


def test_every_line_of_the_benchmark_is_measured():
    words = [sys.executable, "benchmarks/gpu.py", "--tiny", "--runs", "1"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout and "no time left" not in done.stdout
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("windows with the ids")] == [
        f"windows with the ids of generate, {program}: 24 of 24 without timestamps, "
        "24 of 24 with timestamps"
        for program in ("eager", "captured")
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    measured = [row for row in cells if len(row) == 6 and row[2].isdigit()]
    assert [row[:3] for row in measured] == [
        [kind, program, "2"]
        for program in ("captured", "eager", "generate")
        for kind in ("padded", "packed")
    ]
    assert all(float(row[3].replace(",", "")) > 0 for row in measured)
    trained = [row for row in cells if len(row) == 6 and row[1] == "2"]
    programs = ["plain trainer", "ours", "ours, compiled"]
    assert [row[:2] for row in trained] == [[program, "2"] for program in programs]
    assert all(float(row[column]) > 0 for row in trained for column in (2, 4))
    assert sum(line.startswith("losses of the plain and") for line in lines) == 1
    assert "largest of 4, 2, … rows that fits: 4" in lines


def test_what_fails_is_said_and_nothing_is_begun_that_takes_too_long(capsys, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    attempt, budget = (gpu := importlib.import_module("gpu")).attempt, gpu.Budget(60)
    attempt("one", budget, lambda: 1 / 0)
    attempt("two", budget, lambda: "| two |")
    budget.longest_s = 100
    attempt("three", budget, lambda: "| three |")
    assert capsys.readouterr().out.splitlines() == [
        "| one | FAILED: ZeroDivisionError: division by zero |",
        "| two |",
        "| three | no time left |",
    ]
