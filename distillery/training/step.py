"""One training step of a student: which parts of teacher and student run, and once."""

import logging
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from distillery.data.collators import Batch
from distillery.text.labels import IGNORED
from distillery.text.tokens import TRANSCRIBE, Prompt
from distillery.training.layer_states import (
    LayerStates,
    compared_with,
    copied_from,
    mean_squared_errors,
    recorded,
)
from distillery.training.losses import LossSums, LossWeights, distillation_loss
from distillery.training.settings import Frozen
from distillery.training.stacks import Stacks, allow_compiling
from distillery.training.top_tokens import TopTokens
from distillery.whisper.checkpoint import Whisper, have_same_weights
from distillery.whisper.student import NO_LAYERS, CopiedLayers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher's stacks put out for one batch.

    decoder_states: float (batch, tokens, width), its last decoder states for the batch's decoder
    inputs, or None where no row follows it; head: its output embedding, (vocabulary, width);
    encoder_states: float (batch, positions, width) if the student has the same encoder and may use
    them, else None; layers: the states behind single layers, where the student's are compared with
    them; kl_weights: as in `Batch`. Of a teacher that ran earlier there are the most probable
    tokens that were kept, in place of decoder_states.
    """

    decoder_states: Tensor | TopTokens | None
    head: Tensor | None
    encoder_states: Tensor | None
    layers: LayerStates | None = None
    kl_weights: Tensor | None = None


class Teacher:
    """A frozen teacher that is given exactly what the student's decoder is given.

    Handing it labels instead would show it padding in place of the student's prompt, and would
    compute a cross-entropy that nobody uses.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        student: WhisperForConditionalGeneration,
        copied: CopiedLayers = NO_LAYERS,
    ) -> None:
        """Freeze the teacher and find out whether a frozen student encoder is a copy of its own.

        Args:
            model: the teacher.
            student: that follows it.
            copied: layers whose states the student's are compared with.

        Raises:
            ValueError: teacher and student do not fit each other.
        """
        _check_fit(model, student)
        self.model = model.eval().requires_grad_(False)
        self.stacks = Stacks(model)
        frozen = not any(p.requires_grad for p in student.model.encoder.parameters())
        self.shares_encoder = frozen and have_same_weights(
            model.model.encoder, student.model.encoder
        )
        self.compared = copied_from(model, copied)

    @torch.no_grad()
    def __call__(
        self, input_features: Tensor, decoder_input_ids: Tensor, kl_weights: Tensor | None = None
    ) -> TeacherOutputs:
        """Run encoder and decoder, as far as they are needed.

        input_features: float (batch, mels, frames); decoder_input_ids: int64 (batch, tokens);
        kl_weights: as in `Batch`: where all are 0, the decoder has nothing to say.
        """
        is_followed = kl_weights is None or bool(kl_weights.any()) or any(self.compared)
        states = hidden = None
        with recorded(*self.compared) as layers:
            if is_followed or self.shares_encoder:
                states = self.stacks.encode(input_features.to(self.model.dtype))
            if states is not None and is_followed:
                hidden = self.stacks.decode(decoder_input_ids, states)
        shared = states if self.shares_encoder else None
        return TeacherOutputs(hidden, self.model.proj_out.weight, shared, layers, kl_weights)


def _check_fit(
    teacher: WhisperForConditionalGeneration, student: WhisperForConditionalGeneration
) -> None:
    """Raise ValueError unless both take the same features and speak the same tokens."""
    for name in ("vocab_size", "num_mel_bins", "max_source_positions", "decoder_start_token_id"):
        theirs, ours = getattr(teacher.config, name), getattr(student.config, name)
        if theirs != ours:
            raise ValueError(
                f"teacher and student do not fit: {name} is {theirs} in the teacher and {ours} in "
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

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        weights: LossWeights,
        masks_input: bool = False,
    ) -> None:
        """Keep the student and the weights of its loss.

        Args:
            student: to be trained.
            weights: of the loss.
            masks_input: SpecAugment hides parts of what the student hears, while it is trained, as
                its `config.json` says: see `wants_masks`. The teacher hears all of it.
        """
        super().__init__()
        self.student = student
        self.stacks = Stacks(student)
        self.weights = weights
        self.masks_input = masks_input

    def forward(
        self,
        input_features: Tensor,
        decoder_input_ids: Tensor,
        targets: Tensor,
        teacher: TeacherOutputs | None = None,
    ) -> LossSums:
        """Return the summed loss of a batch; without a teacher it is the cross-entropy.

        In an evaluation the temperature is 1, as distil-whisper has it.

        Args:
            input_features: float (batch, mels, frames).
            decoder_input_ids: int64 (batch, tokens).
            targets: int64 (batch, tokens), `IGNORED` where nothing is learnt.
            teacher: its outputs for the same batch.
        """
        model, head = self.student.model, self.student.proj_out.weight
        masks = self.masks_input and self.training
        states = teacher.encoder_states if teacher is not None and not masks else None
        theirs = teacher.layers if teacher is not None and self.weights.mse else None
        with recorded(*compared_with(self.student, theirs)) as ours:
            if states is None:
                # Masks are drawn by NumPy, which is seeded for each update, and laid in place.
                masked = model._mask_input_features(input_features.clone()) if masks else None
                heard = input_features if masked is None else masked
                states = self.stacks.encode(heard)
            hidden = self.stacks.decode(decoder_input_ids, states)
        weights = self.weights if self.training else replace(self.weights, temperature=1.0)
        if teacher is None:
            return distillation_loss(hidden, head, targets, weights)
        if teacher.decoder_states is None:  # CE weighs as much as beside a KL
            plain = distillation_loss(hidden, head, targets, weights)
            return plain._replace(total=weights.ce * plain.total)
        if teacher.kl_weights is not None:
            weights = replace(weights, kl=teacher.kl_weights)
        losses = distillation_loss(
            hidden, head, targets, weights, teacher.decoder_states, teacher.head
        )
        if theirs is None:
            return losses
        return losses.plus_mse(mean_squared_errors(ours, theirs, targets), weights.mse)


@dataclass(frozen=True)
class Learner:
    """A student with its loss, and the teacher that it follows; None for plain fine-tuning."""

    student: Whisper
    step: StudentStep
    teacher: Teacher | None

    def notes(self) -> list[str]:
        """Return what a user should know of the work that an update is."""
        notes = []
        if self.step.masks_input:
            notes.append("SpecAugment masks what the student hears, and not what its teacher hears")
        if self.teacher is None:
            return notes
        if not self.teacher.shares_encoder:
            encoder = self.student.model.model.encoder
            is_trained = any(p.requires_grad for p in encoder.parameters())
            why = "is trained (not so with --freeze_encoder)" if is_trained else "has other weights"
            notes.append(
                f"the teacher's encoder cannot serve the student, whose own {why}: two encoders run"
            )
        elif self.step.masks_input:
            notes.append("so the encoder that both share runs twice in each update")
        return notes

    def compile(self, num_rows: int) -> None:
        """Compile the layers of teacher and student for batches of so many rows.

        Raises:
            ValueError: there is no compiler on this machine.
        """
        allow_compiling(self.student.model.device)
        self.step.stacks.compile(num_rows)
        if self.teacher is not None:
            self.teacher.stacks.compile(num_rows)

    def losses(self, batch: Batch, step: Callable[..., LossSums]) -> LossSums:
        """Return the summed losses of a batch.

        Args:
            batch: of rows, or of none.
            step: the learner's own, wrapped for several processes or for mixed precision; the
                teacher has its dtype and runs as it is.
        """
        features, inputs, targets = self.tensors(batch)
        return step(features, inputs, targets, self._teacher_outputs(batch, features, inputs))

    def _teacher_outputs(
        self, batch: Batch, features: Tensor, inputs: Tensor
    ) -> TeacherOutputs | None:
        """Return what the teacher says of a batch, or what a cache has kept of that."""
        if not batch.cached or batch.cached[0] is None:
            if self.teacher is None:
                return None
            return self.teacher(features, inputs, batch.kl_weights)
        assert batch.targets is not None
        counts = (batch.targets != IGNORED).sum(1).tolist()
        for row_id, kept, count in zip(batch.ids, batch.cached, counts, strict=True):
            if len(kept) != count:
                raise ValueError(
                    f"--cache_teacher has nothing of row {row_id}, whose clip could not be used "
                    "when the cache was made: name another folder"
                )
        kept_tokens = TopTokens.from_positions(batch.cached, features.device)
        return TeacherOutputs(kept_tokens, None, None, kl_weights=batch.kl_weights)

    def tensors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, decoder inputs and targets on the student's device.

        A process whose batch is empty takes part with a target that does not count: the others
        wait for its gradients.
        """
        device = self.student.model.device
        batch = self.with_features(batch)
        if batch.input_features is None:
            log_mel = self.student.log_mel
            shape = (1, log_mel.num_mels, log_mel.num_frames)
            start = torch.tensor([[self.student.tokens.start_of_transcript]], device=device)
            return torch.zeros(shape, device=device), start, torch.full_like(start, IGNORED)
        assert batch.decoder_input_ids is not None and batch.targets is not None
        return (
            batch.input_features,
            batch.decoder_input_ids.to(device, non_blocking=True),
            batch.targets.to(device, non_blocking=True),
        )

    def with_features(self, batch: Batch) -> Batch:
        """Return a batch with its features on the student's device, made there of its waveforms."""
        device = self.student.model.device
        features = batch.input_features
        if batch.waveforms is not None:
            waveforms = batch.waveforms.to(device, non_blocking=True)
            features = self.student.log_mel.of_batch(waveforms)
        elif features is not None:
            features = features.to(device, non_blocking=True)
        return replace(batch, input_features=features, waveforms=None)


def set_prompt(student: Whisper, prompts: Collection[Prompt]) -> None:
    """Let the student write the language that it is trained on, where it is run without any.

    One that is trained on several languages has none by default, and detects what is spoken; of
    several tasks, it transcribes by default.

    Args:
        student: whose settings are changed.
        prompts: of all rows, as far as they are known; a language is None where it is not.

    Raises:
        ValueError: a language and the student do not fit each other.
    """
    tokens, settings = student.tokens, student.model.generation_config
    for prompt in prompts:
        if prompt.language is not None:
            tokens.prefix(*prompt, timestamps=True)
    if tokens.is_multilingual:
        languages = {prompt.normalized().language for prompt in prompts}
        tasks = {prompt.task for prompt in prompts}
        settings.language = languages.pop() if len(languages) == 1 else None
        settings.task = tasks.pop() if len(tasks) == 1 else TRANSCRIBE


def refuse_layerdrop(student: Whisper, num_processes: int) -> None:
    """Raise ValueError if layers are to be dropped while several processes share the gradients.

    Each process drops other layers, and all would wait for ever for the gradients of those.
    """
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        share = getattr(student.model.config, name)
        if num_processes > 1 and share > 0:
            raise ValueError(
                f"{name} is {share:g} in the config.json of the student: {num_processes} processes "
                "cannot train a model that drops layers; set it to 0, or train in one process"
            )


def wants_masks(student: Whisper, asked: bool | None) -> bool:
    """Tell whether SpecAugment masks what a student hears; where it is asked for, switch it on.

    Args:
        student: as it is trained; its `config.json` says how much is masked.
        asked: as the flag has it; None does what `apply_spec_augment` in `config.json` says where
            the encoder is trained, and nothing where it is frozen.

    Raises:
        ValueError: it is asked for, and the configuration masks nothing.
    """
    config = student.model.config
    if asked is None:
        is_trained = any(p.requires_grad for p in student.model.model.encoder.parameters())
        if config.apply_spec_augment and not is_trained:
            logger.warning(
                "apply_spec_augment in the student's config.json does nothing, as its encoder is "
                "frozen: --apply_spec_augment applies it all the same"
            )
        return bool(config.apply_spec_augment) and is_trained
    if asked and not (config.mask_time_prob > 0 or config.mask_feature_prob > 0):
        raise ValueError(
            "--apply_spec_augment: mask_time_prob and mask_feature_prob are 0 in the student's "
            "config.json; set one of them there"
        )
    if asked:
        config.apply_spec_augment = True
    return asked


def freeze(model: WhisperForConditionalGeneration, frozen: Frozen) -> None:
    """Freeze parts of a model, as distil-whisper and transformers' examples do.

    Raises:
        ValueError: nothing is left to be trained.
    """
    encoder, decoder = model.model.encoder, model.model.decoder
    if frozen.encoder:
        encoder.requires_grad_(False)
    if frozen.feature_encoder:
        encoder.conv1.requires_grad_(False)
        encoder.conv2.requires_grad_(False)
    if frozen.decoder:
        head_is_trained = model.proj_out.weight.requires_grad
        decoder.requires_grad_(False)
        model.proj_out.weight.requires_grad_(head_is_trained)
    if frozen.embed_positions:
        decoder.embed_positions.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing is left to be trained: leave out some --freeze_… flag")


def make_trainable(student: Whisper, frozen: Frozen, gradient_checkpointing: bool) -> None:
    """Freeze parts of a student, and let it compute activations twice, where that is asked for."""
    freeze(student.model, frozen)
    if gradient_checkpointing:
        with warnings.catch_warnings():
            # Newer versions of transformers have another name for it, which older ones lack.
            warnings.simplefilter("ignore", FutureWarning)
            student.model.gradient_checkpointing_enable({"use_reentrant": False})
        encoder = student.model.model.encoder
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            for layer in encoder.layers:  # nothing of it is needed by the backward pass
                layer.gradient_checkpointing = False
