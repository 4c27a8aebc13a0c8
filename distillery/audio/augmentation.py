"""Changed copies of recordings, to be trained on, by the package `audiomentations`."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from distillery.audio.decoding import Waveform

NESTED = "transforms"  # of OneOf, SomeOf and Compose


@dataclass(frozen=True)
class Augmentation:
    """A chain of audiomentations' transforms, each with its own probability."""

    transform: Callable[..., Any]

    def __call__(self, wave: Waveform, sampling_rate: int, seed: int) -> Waveform:
        """Return a changed copy, float32 (samples,); the same seed gives the same one.

        The transforms draw from Python's and NumPy's global generators, which are left as they
        were.
        """
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            changed = self.transform(samples=wave.copy(), sample_rate=sampling_rate)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
        return np.asarray(changed, np.float32)


def augmentation(settings: Sequence[Any]) -> Augmentation:
    """Build a chain of transforms.

    Args:
        settings: of each transform, in order, a mapping of its name in audiomentations to its
            arguments, such as `{"AddGaussianNoise": {"p": 0.5}}`; `OneOf`, `SomeOf` and `Compose`
            have others in their `transforms`.

    Raises:
        ModuleNotFoundError: audiomentations is not installed.
        ValueError: there is no such transform, or it takes no such arguments.
    """
    try:
        import audiomentations
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; --audio_augmentation needs it: pip install audiomentations (the extra "
            "'augmentation' of this project)"
        ) from error
    return Augmentation(audiomentations.Compose(_transforms(settings, audiomentations)))


def _transforms(settings: Any, library: ModuleType) -> list[Any]:
    if not isinstance(settings, Sequence) or isinstance(settings, str) or not settings:
        raise ValueError(f"--audio_augmentation: a list of transforms is needed, got {settings!r}")
    return [_transform(each, library) for each in settings]


def _transform(setting: Any, library: ModuleType) -> Any:
    if not isinstance(setting, Mapping) or len(setting) != 1:
        raise ValueError(
            "--audio_augmentation: each transform is its name and its arguments, such as "
            f"`AddGaussianNoise: {{p: 0.5}}`; got {setting!r}"
        )
    ((name, arguments),) = setting.items()
    kind = getattr(library, str(name), None)
    if not isinstance(kind, type):
        raise ValueError(f"--audio_augmentation: audiomentations has no transform {name!r}")
    arguments = dict(arguments or {})
    if NESTED in arguments:
        arguments[NESTED] = _transforms(arguments[NESTED], library)
    try:
        return kind(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"--audio_augmentation: {name}: {error}") from error
