import numpy as np
import pytest

from distillery.audio.loudness import levels_db, next_sound, quietest, silent_frames, silent_share

RATE = 16_000


def levels(*parts):
    """Return samples of constant levels: (seconds, amplitude) each."""
    return np.concatenate([np.full(round(s * RATE), a, np.float32) for s, a in parts])


def test_levels_are_decibels_below_full_scale():
    found = levels_db(levels((0.02, 1.0), (0.02, 0.1), (0.02, 0.0), (0.01, 1.0)), RATE)
    assert found == pytest.approx([0.0, -20.0, -70.0])
    assert levels_db(levels((0.001, 1.0)), RATE) == pytest.approx([0.0])


def test_silence_is_35_db_below_the_loud_frames():
    samples = levels((1.0, 0.5), (1.0, 0.5 * 10 ** (-34 / 20)), (1.0, 0.5 * 10 ** (-36 / 20)))
    silent = silent_frames(levels_db(samples, RATE))
    assert silent.tolist() == [False] * 100 + [True] * 50


def test_a_recording_of_nothing_is_silence():
    assert silent_frames(levels_db(levels((1.0, 0.0)), RATE)).all()
    assert not silent_frames(levels_db(levels((1.0, 0.01)), RATE)).any()


@pytest.mark.parametrize(
    ("samples", "start", "expected"),
    [
        (levels((1.0, 0.0), (1.0, 0.5)), 0.0, 0.75),
        (levels((25.0, 0.0), (1.0, 0.5)), 0.0, 24.75),
        (levels((1.0, 0.0), (1.0, 0.5)), 0.95, 0.95),  # never back
        (levels((1.0, 0.0), (1.0, 0.5)), 1.5, 1.5),
        (levels((1.0, 0.5), (2.0, 0.0)), 1.0, 3.0),  # the end
        (levels((1.0, 0.0002), (1.0, 0.5)), 0.0, 0.75),
        (levels((1.0, 0.001), (1.0, 0.5)), 0.0, 0.0),  # quiet, but no digital silence
        (levels((1.0, 0.5)), 1.0, 1.0),
    ],
)
def test_digital_silence_is_skipped_up_to_a_quarter_of_a_second(samples, start, expected):
    found = next_sound(samples, RATE, round(start * RATE))
    assert found / RATE == pytest.approx(expected, abs=0.0201)


def test_silent_share_of_a_span():
    silent = silent_frames(levels_db(levels((1.0, 0.5), (1.0, 0.0)), RATE))
    assert silent_share(silent, 0.0, 1.0) == 0.0
    assert silent_share(silent, 1.0, 2.0) == 1.0
    assert silent_share(silent, 0.5, 1.5) == 0.5
    assert silent_share(silent, 1.5, 9.0) == 1.0  # behind the recording
    assert silent_share(silent, 0.3, 0.3) == 0.0  # one frame at least


@pytest.mark.parametrize(
    ("samples", "first", "last", "expected"),
    [
        # A pause of 0.4 s: its latest place with silence 0.1 s around it.
        (levels((1.0, 0.5), (0.4, 0.0), (1.0, 0.5)), 0.5, 2.0, 1.3),
        # The pause lasts longer than the range.
        (levels((1.0, 0.5), (2.0, 0.0), (1.0, 0.5)), 0.5, 2.0, 2.0),
        # No silence: the quieter part.
        (levels((1.0, 0.5), (0.5, 0.1), (1.0, 0.5)), 0.5, 2.0, 1.4),
        # About as quiet everywhere: the latest.
        (levels((3.0, 0.5)), 0.5, 2.0, 2.0),
        (levels((3.0, 0.5)), 1.0, 1.0, 1.0),
        # At the recording's ends nothing more is heard.
        (levels((1.0, 0.5)), 0.0, 1.0, 1.0),
    ],
)
def test_quietest_place(samples, first, last, expected):
    found = quietest(samples, RATE, round(first * RATE), round(last * RATE))
    assert found / RATE == pytest.approx(expected, abs=0.02)
