"""Stages that are killed at random moments leave what undisturbed ones leave.

These are short campaigns of `benchmarks/kills.py`, which runs the long ones.
"""

import pytest
from tiny import load_script

kills = load_script("benchmarks/kills.py")


@pytest.mark.parametrize(
    ("stage", "num_processes", "size"),
    [("labelling", 2, 9), ("drawing", 1, 9), ("filtering", 1, 9), ("evaluation", 1, 6)],
)
def test_random_kills_lose_double_and_change_nothing(tmp_path, stage, num_processes, size):
    report = kills.campaign(stage, tmp_path, num_processes, num_kills=10, size=size, seed=0)
    assert report.phases.total() >= 10
    assert report.different == []


def test_a_file_that_is_lost_changed_or_left_is_a_difference(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    wanted = kills.contents(tmp_path)
    assert kills.differences(kills.contents(tmp_path), wanted) == []
    (tmp_path / "results.jsonl").write_text("{}\n{}\n")
    (tmp_path / "half").touch()
    (tmp_path / ".half.tmp").touch()
    assert kills.differences(kills.contents(tmp_path), wanted) == [
        "half: left",
        "results.jsonl: changed",
    ]
    assert kills.differences({}, wanted) == ["results.jsonl: missing"]
