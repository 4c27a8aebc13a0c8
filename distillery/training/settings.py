"""What a training run is told, as plain values; nothing heavy is imported here."""

import math
from dataclasses import dataclass, replace

from distillery.text.cleaning import NO_CLEANING, TextCleaning
from distillery.training.order import BatchPlan


@dataclass(frozen=True)
class LabelSettings:
    """Which rows are learnt from, and what their labels are.

    Attributes:
        timestamp_probability: share of rows with timestamps that keep them.
        condition_on_prev_probability: share of rows that see the window before them.
        max_label_length: ids; rows with more are left out, as are those that the model has no
            positions for.
        wer_threshold: percent; pseudo-labelled rows further from their reference are left out.
        seed: of what is drawn for a row, and of the rows' order.
        min_duration_s, max_duration_s: shorter and longer clips are left out.
        cleaning: of the texts.
        pack: whether utterances share windows of the model's length.
        no_speech_probability: share of rows that are learnt as windows without speech.
    """

    timestamp_probability: float
    condition_on_prev_probability: float
    max_label_length: int
    wer_threshold: float | None
    seed: int
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    cleaning: TextCleaning = NO_CLEANING
    pack: bool = False
    no_speech_probability: float = 0.0

    def for_evaluation(self) -> "LabelSettings":
        """Return the settings of rows that are not learnt from: they stay as they are."""
        return replace(
            self,
            cleaning=NO_CLEANING,
            no_speech_probability=0.0,
            condition_on_prev_probability=0.0,
        )


@dataclass(frozen=True)
class Length:
    """How long a run trains: `max_steps` updates, or where that is None `num_epochs`."""

    max_steps: int | None
    num_epochs: float

    def count(self, plan: BatchPlan, rows_per_epoch: int | None) -> tuple[int, int]:
        """Return how many rows a run trains on in all, and in how many updates.

        Args:
            plan: how a global batch is cut.
            rows_per_epoch: None for a stream, which does not say how long it is.

        Raises:
            ValueError: nothing says how many updates there are.
        """
        if self.max_steps is not None:
            return self.max_steps * plan.global_size, self.max_steps
        if rows_per_epoch is None:
            raise ValueError("--streaming needs --max_steps: a stream does not say how long it is")
        num_rows = math.ceil(self.num_epochs * rows_per_epoch)
        return num_rows, math.ceil(num_rows / plan.global_size)


@dataclass(frozen=True)
class Frozen:
    """Parts of a model that are not trained.

    Attributes:
        encoder: all of it.
        feature_encoder: the two convolutions that the encoder begins with.
        decoder: all of it but the token embeddings, which are the output's weights too.
        embed_positions: the decoder's embeddings of positions.
    """

    encoder: bool = False
    feature_encoder: bool = False
    decoder: bool = False
    embed_positions: bool = False


ADAMW, ADAMW_8BIT = "adamw_torch", "adamw_8bit"
# By the names that transformers has for them.
OPTIMIZERS = {
    "adamw_torch": ADAMW,
    "adamw_torch_fused": ADAMW,  # so it is wherever there is a GPU
    "adamw_8bit": ADAMW_8BIT,
    "adamw_bnb_8bit": ADAMW_8BIT,
}


@dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule.

    Attributes:
        learning_rate: the highest.
        schedule: as transformers names it.
        warmup_steps: updates over which the learning rate rises from 0.
        weight_decay: of matrices.
        betas: AdamW's decay rates.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them as they are.
        epsilon: AdamW's.
        warmup_ratio: share of all updates that `warmup_steps` are, where those are 0.
        optimizer: `ADAMW` or `ADAMW_8BIT`.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    max_grad_norm: float
    epsilon: float = 1e-8
    warmup_ratio: float = 0.0
    optimizer: str = ADAMW

    def num_warmup_updates(self, num_updates: int) -> int:
        """Return over how many of a run's updates the learning rate rises."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * num_updates)


@dataclass(frozen=True)
class Evaluation:
    """How a model is evaluated while it is trained.

    Attributes:
        every: updates between two evaluations; None evaluates after the last alone.
        batch_size: rows at once in one process.
        metric: `loss`, `wer` or `cer`; the model with the lowest mean over all sets, each with its
            weight, is kept.
        transcribe: transcribe the rows too, and score them.
        timestamps, num_beams, max_length, temperature_fallback: of these transcripts, as in
            `Decoding`.
        patience: evaluations in a row without a better model, after which training ends; None goes
            on to the last update.
        ends_with_best: the best model is the result, not the last.
    """

    every: int | None
    batch_size: int
    metric: str
    transcribe: bool
    timestamps: bool
    num_beams: int
    max_length: int
    temperature_fallback: bool = False
    patience: int | None = None
    ends_with_best: bool = False
