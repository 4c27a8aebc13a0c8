import logging
from types import SimpleNamespace

import pytest

from distillery.cli import speech_progress
from distillery.cli.speech_progress import SpeechProgress


class Launch:
    """As much of an accelerator as progress needs; it keeps what the trackers get."""

    is_local_main_process = True

    def __init__(self):
        self.tracked = []

    def log(self, values, step):
        self.tracked.append((step, values))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(speech_progress.time, "monotonic", lambda: clock.now)
    return clock


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == speech_progress.__name__]


def test_every_few_batches_there_is_a_line_and_the_trackers_know(clock, caplog):
    caplog.set_level(logging.INFO)
    launch = Launch()
    progress = SpeechProgress(launch, "labelling", 1100, 2)
    progress.skip(100)  # by an earlier run: no part of the speed
    for _ in range(5):
        clock.now += 36.0
        progress.advance(100, 360.0)
    progress.close()
    assert lines(caplog) == [
        "labelling: 300 of 1,100 clips, 0.20 h of audio, RTFx 10.0, 0:04:48 left",
        "labelling: 500 of 1,100 clips, 0.40 h of audio, RTFx 10.0, 0:03:36 left",
        "labelling: 600 of 1,100 clips, 0.50 h of audio, RTFx 10.0, 0:03:00 left",
    ]
    assert [step for step, _ in launch.tracked] == [300, 500, 600]
    _, figures = launch.tracked[0]
    assert figures == pytest.approx(
        {"labelling/clips": 300, "labelling/audio_hours": 0.2, "labelling/rtfx": 10.0}
    )


def test_of_a_stream_nothing_is_said_about_the_rest(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = SpeechProgress(Launch(), "labelling", None, 1)
    clock.now += 2.0
    progress.advance(4, 8.0)
    progress.close()
    assert lines(caplog) == ["labelling: 4 clips, 0.00 h of audio, RTFx 4.0"]


def test_where_all_was_done_before_there_is_no_line(clock, caplog):
    caplog.set_level(logging.INFO)
    launch = Launch()
    progress = SpeechProgress(launch, "labelling", 10, 1)
    progress.skip(10)
    progress.close()
    assert lines(caplog) == launch.tracked == []
