"""One training step of a student: which parts of teacher and student run, and once."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from distillery.training.losses import LossSums, LossWeights, distillation_loss
from distillery.whisper.checkpoint import have_same_weights


@dataclass(frozen=True)
class Lesson:
    """What a teacher says about one batch.

    decoder_states: float (batch, tokens, width), its last decoder states for the batch's decoder
    inputs; head: its output embedding, (vocabulary, width); encoder_states: float (batch,
    positions, width) if the student has the same encoder and may use them, else None.
    """

    decoder_states: Tensor
    head: Tensor
    encoder_states: Tensor | None


class Teacher:
    """A frozen teacher that is given exactly what the student's decoder is given.

    Handing it labels instead would show it padding in place of the student's prompt, and would
    compute a cross-entropy that nobody uses.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, student: WhisperForConditionalGeneration
    ) -> None:
        """Freeze the teacher and find out whether a frozen student encoder is a copy of its own.

        Raises:
            ValueError: teacher and student do not fit each other.
        """
        _check_fit(model, student)
        self.model = model.eval().requires_grad_(False)
        frozen = not any(p.requires_grad for p in student.model.encoder.parameters())
        self.shares_encoder = frozen and have_same_weights(
            model.model.encoder, student.model.encoder
        )

    @torch.no_grad()
    def __call__(self, input_features: Tensor, decoder_input_ids: Tensor) -> Lesson:
        """Run encoder and decoder.

        input_features: float (batch, mels, frames); decoder_input_ids: int64 (batch, tokens).
        """
        encoder, decoder = self.model.model.encoder, self.model.model.decoder
        states = encoder(input_features.to(self.model.dtype)).last_hidden_state
        hidden = decoder(
            input_ids=decoder_input_ids, encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        return Lesson(hidden, self.model.proj_out.weight, states if self.shares_encoder else None)


def _check_fit(
    teacher: WhisperForConditionalGeneration, student: WhisperForConditionalGeneration
) -> None:
    """Raise ValueError unless both take the same features and speak the same tokens."""
    for name in ("vocab_size", "num_mel_bins", "max_source_positions", "decoder_start_token_id"):
        wanted, found = getattr(teacher.config, name), getattr(student.config, name)
        if wanted != found:
            raise ValueError(
                f"teacher and student do not fit: {name} is {wanted} in the teacher and {found} in "
                "the student; make the student with create_student_model.py from this teacher"
            )
    if teacher.config.max_target_positions < student.config.max_target_positions:
        raise ValueError(
            "teacher and student do not fit: the student has "
            f"{student.config.max_target_positions} decoder positions, the teacher only "
            f"{teacher.config.max_target_positions}"
        )


class StudentStep(nn.Module):
    """A student and its loss in one module.

    Distributed training and mixed precision wrap a module's `forward`; everything that needs a
    gradient therefore happens in it.
    """

    def __init__(self, student: WhisperForConditionalGeneration, weights: LossWeights) -> None:
        """Keep the student and the weights of its loss."""
        super().__init__()
        self.student = student
        self.weights = weights

    def forward(
        self,
        input_features: Tensor,
        decoder_input_ids: Tensor,
        targets: Tensor,
        lesson: Lesson | None = None,
    ) -> LossSums:
        """Return the summed loss of a batch; without a lesson it is the cross-entropy.

        Args:
            input_features: float (batch, mels, frames).
            decoder_input_ids: int64 (batch, tokens).
            targets: int64 (batch, tokens), `IGNORED` where nothing is learnt.
            lesson: what the teacher says about the same batch.
        """
        model, head = self.student.model, self.student.proj_out.weight
        states = lesson.encoder_states if lesson is not None else None
        if states is None:
            states = model.encoder(input_features).last_hidden_state
        hidden = model.decoder(
            input_ids=decoder_input_ids, encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        if lesson is None:
            return distillation_loss(hidden, head, targets, self.weights)
        return distillation_loss(
            hidden, head, targets, self.weights, lesson.decoder_states, lesson.head
        )
