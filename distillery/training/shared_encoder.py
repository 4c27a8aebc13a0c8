"""One copy in memory of the encoder that a frozen student has in common with its teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from distillery.training.step import Teacher
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper, with_weights


@dataclass(frozen=True)
class SharingWhisper(Whisper):
    """A student that computes with its teacher's encoder, and is saved with its own.

    encoder_weights: its own, by their names in the model, in the computer's memory.
    """

    encoder_weights: Mapping[str, Tensor]

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder, with the encoder as it was loaded."""
        weights = {**self.model.state_dict(), **self.encoder_weights}
        plain = with_weights(self.model, weights)
        checkpoint.save(plain, self.tokenizer, self.feature_extractor, folder)


def share_encoder(student: Whisper, teacher: Teacher) -> Whisper:
    """Let a student's encoder be its teacher's in memory, which has it in the computation's dtype.

    Args:
        student: its encoder is frozen, and a copy of the teacher's; its model is changed.
        teacher: on the same device.

    Returns:
        The student, which is saved as it was.
    """
    own, theirs = student.model.model.encoder, teacher.model.model.encoder
    weights = own.state_dict()
    own.load_state_dict(theirs.state_dict(), assign=True)
    if student.model.proj_out.weight.dtype == teacher.model.dtype:
        return student  # they are the same numbers
    kept = {f"model.encoder.{name}": weight.cpu() for name, weight in weights.items()}
    return SharingWhisper(**vars(student), encoder_weights=kept)
