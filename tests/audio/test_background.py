import numpy as np
import pytest

from distillery.audio.background import LEVELS_DB, background

RATE = 16_000


def test_a_seed_gives_one_sound():
    assert np.array_equal(background(5, RATE, 4.0), background(5, RATE, 4.0))
    assert not np.array_equal(background(5, RATE, 4.0)[:100], background(6, RATE, 4.0)[:100])


def test_sounds_are_of_many_lengths_and_levels_and_some_are_silent():
    waves = [background(seed, RATE, 2.0) for seed in range(200)]
    assert {wave.dtype for wave in waves} == {np.dtype(np.float32)}
    lengths = [len(wave) / RATE for wave in waves]
    assert 0.5 <= min(lengths) < 0.6 and 1.9 < max(lengths) <= 2.0
    levels = [20 * np.log10(np.sqrt(np.mean(wave**2))) for wave in waves if wave.any()]
    assert 160 <= len(levels) < 200
    assert LEVELS_DB[0] - 0.1 < min(levels) < -75 and -30 < max(levels) < LEVELS_DB[1] + 0.1
    assert max(abs(wave).max() for wave in waves) <= 1


def test_noises_are_of_many_colours():
    def share_below_1_khz(wave):
        power = abs(np.fft.rfft(wave)) ** 2
        return power[: len(power) // 8].sum() / power.sum()

    waves = [background(seed, RATE, 2.0) for seed in range(50)]
    shares = [share_below_1_khz(wave) for wave in waves if wave.any()]
    assert min(shares) < 0.2 and max(shares) > 0.9  # white has 1/8 there


@pytest.mark.parametrize("longest_s", [0.2, 1.0])
def test_no_sound_is_longer_than_it_may_be(longest_s):
    assert all(0 < len(background(seed, RATE, longest_s)) <= longest_s * RATE for seed in range(50))
