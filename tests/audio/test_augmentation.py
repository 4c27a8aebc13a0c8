"""Changed copies of recordings, by the real package."""

import random
import sys

import numpy as np
import pytest
import yaml
from tiny import REPOSITORY

from distillery.audio.augmentation import augmentation

RATE = 16_000
WAVE = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
ALWAYS = [
    {"TimeStretch": {"min_rate": 0.9, "max_rate": 1.1, "p": 1.0, "leave_length_unchanged": False}},
    {"Gain": {"min_gain_db": -6, "max_gain_db": 6, "p": 0.5}},
    {
        "OneOf": {
            "transforms": [
                {"AddGaussianNoise": {"min_amplitude": 0.005, "max_amplitude": 0.015, "p": 1.0}},
                {"PitchShift": {"min_semitones": -4, "max_semitones": 4, "p": 1.0}},
            ],
            "p": 1.0,
        }
    },
]


@pytest.fixture(scope="module")
def augment():
    pytest.importorskip("audiomentations")
    return augmentation(ALWAYS)


def test_the_example_is_a_chain():
    pytest.importorskip("audiomentations")
    example = yaml.safe_load((REPOSITORY / "scripts" / "augmentation.yaml").read_text("utf-8"))
    kinds = [type(each).__name__ for each in augmentation(example).transform.transforms]
    assert kinds == ["TimeStretch", "Gain", "OneOf"]


def test_the_seed_alone_decides(augment):
    before = WAVE.copy()
    first = augment(WAVE, RATE, 2**63 + 7)
    random.random()
    np.random.random(3)
    assert np.array_equal(augment(WAVE, RATE, 2**63 + 7), first)
    others = [augment(WAVE, RATE, seed) for seed in range(6)]
    assert len({len(other) for other in others}) > 1
    assert not any(np.array_equal(other, first) for other in others)
    assert first.dtype == np.float32
    assert np.array_equal(WAVE, before)


def test_the_generators_of_training_stay_as_they_were(augment):
    random.seed(1)
    np.random.seed(1)
    wanted = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    augment(WAVE, RATE, 3)
    assert (random.random(), np.random.random()) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"Gain": {}}, "a list of transforms is needed"),
        ([], "a list of transforms is needed"),
        (["Gain"], "each transform is its name and its arguments"),
        ([{"Gain": {}, "p": 1}], "each transform is its name and its arguments"),
        ([{"Gane": {}}], "audiomentations has no transform 'Gane'"),
        ([{"Gain": {"loudness": 3}}], "Gain: .*loudness"),
        ([{"OneOf": {"transforms": [{"Gane": None}]}}], "audiomentations has no transform 'Gane'"),
    ],
)
def test_settings_that_are_none_are_named(settings, message):
    pytest.importorskip("audiomentations")
    with pytest.raises(ValueError, match=f"--audio_augmentation: {message}"):
        augmentation(settings)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    with pytest.raises(ModuleNotFoundError, match="pip install audiomentations"):
        augmentation(ALWAYS)
