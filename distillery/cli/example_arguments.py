"""Flags that say what training makes of its rows: texts and sound."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distillery.cli.flags import flag, repeated, within


@dataclass(frozen=True)
class ExampleArguments:
    """Training examples."""

    pack: bool = flag(
        False,
        "Let utterances share windows of the model's length, of which little is silence then: in "
        "order within a recording, all others where they fit best. Rows of a batch are windows.",
    )
    do_lower_case: bool = flag(
        False, "Learn to write small letters only. The texts that are scored stay as they are."
    )
    do_remove_punctuation: bool = flag(
        False,
        "Learn to write no punctuation; what belongs to a word or a number stays, as in it's and "
        "3.14, and so do combining marks.",
    )
    chars_to_ignore: list[str] = repeated(  # noqa: RUF009 (a field with a factory)
        "Learn to write none of these characters, such as: --chars_to_ignore , ? ! „ “"
    )
    no_speech_probability: float = flag(
        0.0,
        "Share of rows, drawn anew in each epoch, that are replaced by silence or noise, to be "
        "learnt as <|nospeech|> or as an empty text.",
    )
    audio_augmentation: str | None = flag(
        None,
        "YAML file with a list of audiomentations' transforms that change what is trained on, such "
        "as `- AddGaussianNoise: {p: 0.2}`.",
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = within(self, "no_speech_probability", 0, 1)
        path = self.audio_augmentation
        if path is not None and not Path(path).is_file():
            found.append(f"--audio_augmentation {path}: there is no such file")
        return found

    def transforms(self) -> Any:
        """Return what the file of `--audio_augmentation` says; None without one.

        Raises:
            ValueError: it is no YAML, or says nothing.
        """
        if self.audio_augmentation is None:
            return None
        try:
            said = yaml.safe_load(Path(self.audio_augmentation).read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--audio_augmentation {self.audio_augmentation}: {error}") from error
        if not said:
            raise ValueError(f"--audio_augmentation {self.audio_augmentation} lists no transforms")
        return said
