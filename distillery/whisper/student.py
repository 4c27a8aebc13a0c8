"""A student made of some of a teacher's layers."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from distillery.whisper.checkpoint import keep_generation_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CopiedLayers:
    """The layer map of a student: for each of its layers the teacher's that it was copied from.

    A student's `config.json` has it under `copied_layers`, so that it is still there after
    training.
    """

    encoder: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()


NO_LAYERS = CopiedLayers()


def spaced_layers(num_teacher_layers: int, num_student_layers: int) -> list[int]:
    """Return which teacher layer each student layer copies, maximally spaced.

    First and last are always among them (DistilBART, https://arxiv.org/abs/2010.13002); a single
    layer copies the last: it is the one that the output embedding was trained on.

    Raises:
        ValueError: the student would have no layer, or more than the teacher.
    """
    if not 1 <= num_student_layers <= num_teacher_layers:
        raise ValueError(
            f"a student of {num_student_layers} layers cannot be made from a teacher of "
            f"{num_teacher_layers}: ask for 1 to {num_teacher_layers}"
        )
    layers = np.linspace(0, num_teacher_layers - 1, num_student_layers).astype(int).tolist()
    layers[-1] = num_teacher_layers - 1
    return [int(layer) for layer in layers]


def make_student(
    teacher: WhisperForConditionalGeneration,
    encoder_layers: Sequence[int],
    decoder_layers: Sequence[int],
) -> WhisperForConditionalGeneration:
    """Build a student from the given teacher layers, in that order; all else is copied whole."""
    config = copy.deepcopy(teacher.config)
    config.encoder_layers = len(encoder_layers)
    config.decoder_layers = len(decoder_layers)
    config.num_hidden_layers = config.encoder_layers
    copied = CopiedLayers(tuple(encoder_layers), tuple(decoder_layers))
    config.copied_layers = {stack: list(layers) for stack, layers in asdict(copied).items()}
    student = WhisperForConditionalGeneration(config).to(teacher.dtype)
    student.load_state_dict(
        _student_state(teacher.state_dict(), {"encoder": encoder_layers, "decoder": decoder_layers})
    )
    student.generation_config = student_generation_config(teacher.generation_config, decoder_layers)
    return student


def copied_layers(
    student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration
) -> CopiedLayers:
    """Return the layer map of a student, also after training.

    Where its `config.json` has none, its layers are taken to be spaced as `spaced_layers` does.

    Raises:
        ValueError: the layers were not copied from a teacher like this one.
    """
    found, ours, theirs = {}, student.config, teacher.config
    known = getattr(ours, "copied_layers", None) or {}
    for stack in ("encoder", "decoder"):
        num_ours, num_theirs = (getattr(each, f"{stack}_layers") for each in (ours, theirs))
        layers = known.get(stack) or spaced_layers(num_theirs, num_ours)
        if len(layers) != num_ours or max(layers) >= num_theirs:
            raise ValueError(
                f"copied_layers in the student's config.json: {layers} of the {stack} are not "
                f"{num_ours} layers of a teacher that has {num_theirs}: name the one that it was "
                "made from"
            )
        found[stack] = tuple(layers)
    if not known:
        logger.warning("the student's config.json has no copied_layers: taken to be %s", found)
    if ours.d_model != theirs.d_model:
        raise ValueError(
            f"hidden states of width {ours.d_model} in the student and {theirs.d_model} in the "
            "teacher cannot be compared: leave out --mse_weight"
        )
    return CopiedLayers(**found)


def _student_state(
    state: dict[str, torch.Tensor], layers: dict[str, Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Pick the copied layers out of a teacher's state dict and renumber them."""
    new_index = {
        stack: {old: new for new, old in enumerate(kept)} for stack, kept in layers.items()
    }
    picked = {}
    for key, tensor in state.items():
        parts = key.split(".")  # model.<encoder|decoder>.layers.<index>.…
        if len(parts) > 3 and parts[2] == "layers":
            new = new_index[parts[1]].get(int(parts[3]))
            if new is None:
                continue
            parts[3] = str(new)
        picked[".".join(parts)] = tensor
    return picked


def student_generation_config(
    teacher: GenerationConfig, decoder_layers: Sequence[int]
) -> GenerationConfig:
    """Return the teacher's generation settings with alignment heads that the student has.

    Alignment heads are (decoder layer, head) pairs whose attention gives word timestamps. Heads of
    layers that were not copied are dropped; if none is left, the setting goes, because pointing
    at a missing layer crashes word timestamps here and faster-whisper outright.
    """
    config = copy.deepcopy(teacher)
    keep_generation_settings(config)
    heads = getattr(config, "alignment_heads", None)
    if heads is None:
        return config
    new_index = {old: new for new, old in enumerate(decoder_layers)}
    kept = [[new_index[layer], head] for layer, head in heads if layer in new_index]
    if kept:
        config.alignment_heads = kept
    else:
        del config.alignment_heads
    return config
