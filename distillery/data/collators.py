"""From rows of a dataset to the tensors of one batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distillery.audio.background import background
from distillery.audio.decoding import AudioError, TooLongError, Waveform, decode_audio
from distillery.audio.log_mel import LogMel
from distillery.data import schema
from distillery.data.clip_states import clip_state
from distillery.text.labels import IGNORED, decoder_inputs_and_targets
from distillery.text.tokens import SpecialTokens


@dataclass(frozen=True)
class Batch:
    """One micro-batch for training or evaluation.

    input_features: float32 (batch, mels, frames), or None where they are to be made of `waveforms`,
    float32 (batch, samples of the longest), zero behind the end of each. decoder_input_ids: int64
    (batch, tokens); targets: int64 (batch, tokens), `IGNORED` where nothing is learnt. `ids` names
    the rows in it, `bad` the rows that cannot be used, with the reason, `dropped` those that are
    not wanted. Without rows, tensors are None. `references` are the reference texts, "" where a row
    has none. `num_without_speech` counts rows whose sound was replaced by one without speech,
    `num_clips` the clips that the rows are made of, those that cannot be used among them.
    `speech_s` is the length of the clips in the rows, in seconds, and `num_inputs` how many decoder
    inputs are not padding. `cached` is what the rows bring along under `CACHED`, None for one that
    brings nothing.
    `kl_weights`: float32 (batch,), on the CPU: how much each row follows a teacher; None where all
    do alike.
    """

    ids: list[str]
    references: list[str]
    bad: list[tuple[str, str]]
    input_features: Tensor | None
    decoder_input_ids: Tensor | None
    targets: Tensor | None
    dropped: list[tuple[str, str]] = field(default_factory=list)
    num_without_speech: int = 0
    num_clips: int = 0
    speech_s: float = 0.0
    num_inputs: int = 0
    waveforms: Tensor | None = None
    cached: list[Any] = field(default_factory=list)
    kl_weights: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of targets that count."""
        return 0 if self.targets is None else int((self.targets != IGNORED).sum())

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU fetches from faster; `DataLoader` calls this."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **pinned)


# Of a row that is trained on: the seed of its sound, and whether that is to be without speech.
SOUND_SEED, NO_SPEECH = "sound_seed", "no_speech"
CACHED = "cached"  # of a row whose teacher has run, or will run, before the training
DATASET = "dataset_number"  # of a row, where several datasets are mixed
PROBLEM = "problem"
BAD_PARTS = "bad_parts"  # of a window: id and problem of each clip that is not in it
REASON, TOO_SHORT, TOO_LONG = "reason", "too_short", "too_long"


@dataclass(frozen=True)
class DurationLimits:
    """Durations of the clips that are wanted, in seconds: a limit still passes, None is none."""

    min_s: float | None = None
    max_s: float | None = None

    def fault(self, duration_s: float) -> tuple[str, str] | None:
        """Return the reason why a clip is not wanted, and its problem; None if it is wanted."""
        if self.min_s is not None and duration_s < self.min_s:
            return TOO_SHORT, f"lasts {duration_s:.2f} s, shorter than {self.min_s:g} s"
        if self.max_s is not None and duration_s > self.max_s:
            return TOO_LONG, f"lasts {duration_s:.2f} s, longer than {self.max_s:g} s"
        return None


class _Unwanted(Exception):
    """A clip is shorter or longer than what is wanted."""


ANY_DURATION = DurationLimits()


@dataclass(frozen=True)
class SpeechCollator:
    """Decode, transform and pad rows that hold audio (or stored features) and labels.

    Labels are padded to the longest of the batch and never to a maximum. A clip that cannot be used
    is reported in the batch and left out, and so is one outside of `limits`. `augment` changes the
    sound of what is trained on, from a seed. Without `makes_features`, clips are only decoded, for
    a GPU to transform; not so in a batch with stored features. `kl_weights` says how much the rows
    of each dataset follow a teacher, where they differ in that.
    """

    log_mel: LogMel
    tokens: SpecialTokens
    limits: DurationLimits = ANY_DURATION
    augment: Callable[[Waveform, int, int], Waveform] | None = None
    makes_features: bool = True
    kl_weights: tuple[float, ...] = ()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Turn rows with `id`, `labels`, and `audio` or `input_features` into a batch."""
        good, sounds, bad, dropped = [], [], [], []
        speech_s = 0.0
        makes_features = self.makes_features or any(
            _stored_features(row) is not None for row in rows
        )
        for row in rows:
            bad += row.get(BAD_PARTS, ())
            try:
                sound, seconds = self._frames(row) if makes_features else self._samples(row)
            except _Unwanted as fault:
                dropped.append((row[schema.ID], str(fault)))
            except AudioError as error:
                bad.append((row[schema.ID], str(error)))
            else:
                good.append(row)
                sounds.append(self.log_mel.pad(sound) if makes_features else sound)
                speech_s += seconds
        num_clips = sum(len(row.get(schema.SEGMENT_IDS) or (0,)) for row in good)
        num_clips += len(bad) + len(dropped)
        if not good:
            return Batch([], [], bad, None, None, None, dropped, num_clips=num_clips)
        pairs = [decoder_inputs_and_targets(row[schema.LABELS], self.tokens) for row in good]
        inputs = [torch.tensor(pair[0]) for pair in pairs]
        targets = [torch.tensor(pair[1]) for pair in pairs]
        return Batch(
            [row[schema.ID] for row in good],
            [row.get(schema.TEXT) or "" for row in good],
            bad,
            torch.stack(sounds) if makes_features else None,
            pad_sequence(inputs, batch_first=True, padding_value=self.tokens.end_of_text),
            pad_sequence(targets, batch_first=True, padding_value=IGNORED),
            dropped,
            sum(bool(row.get(NO_SPEECH)) for row in good),
            num_clips,
            speech_s,
            sum(map(len, inputs)),
            None if makes_features else pad_sequence(sounds, batch_first=True),
            cached=[row.get(CACHED) for row in good],
            kl_weights=self._kl_weights(good),
        )

    def _kl_weights(self, rows: Sequence[Mapping[str, Any]]) -> Tensor | None:
        if not self.kl_weights:
            return None
        return torch.tensor([self.kl_weights[row[DATASET]] for row in rows])

    def _frames(self, row: Mapping[str, Any]) -> tuple[Tensor, float]:
        """Return features, float32 (mels, frames), and how many seconds of speech they hold."""
        stored = _stored_features(row)
        if stored is not None:
            if self.augment is not None:
                raise ValueError(
                    f"row {row[schema.ID]} holds features, and no sound that --audio_augmentation "
                    "could change: leave it out"
                )
            frames = self._fitting(stored)
            return frames, frames.shape[1] / self.log_mel.num_frames * self.log_mel.window_s
        samples, seconds = self._samples(row)
        return self.log_mel.real_frames(samples.numpy()), seconds

    def _samples(self, row: Mapping[str, Any]) -> tuple[Tensor, float]:
        """Return samples, float32 (samples,), and how many seconds of speech they hold."""
        if row.get(PROBLEM):
            raise AudioError(row[PROBLEM])
        wave = self._wave(row)
        seconds = len(wave) / self.log_mel.sampling_rate
        if row.get(NO_SPEECH):
            seconds = 0.0
        elif row.get(schema.SEGMENT_DURATIONS) is not None:
            seconds = sum(row[schema.SEGMENT_DURATIONS])  # without the pauses between the parts
        return torch.from_numpy(wave[: self.log_mel.window_samples]), seconds

    def _wave(self, row: Mapping[str, Any]) -> Waveform:
        sampling_rate = self.log_mel.sampling_rate
        if row.get(NO_SPEECH):
            return background(row[SOUND_SEED], sampling_rate, self.log_mel.window_s)
        try:
            wave = decode_audio(row[schema.AUDIO], sampling_rate, self.log_mel.window_s)
        except TooLongError as error:
            if self.limits.max_s is not None:
                raise _Unwanted(str(error)) from error
            raise
        is_packed = row.get(schema.SEGMENT_IDS) is not None  # of clips that were judged before
        if not is_packed and (fault := self.limits.fault(len(wave) / sampling_rate)):
            raise _Unwanted(fault[1])
        return wave if self.augment is None else self._augmented(wave, row[SOUND_SEED])

    def _augmented(self, wave: Waveform, seed: int) -> Waveform:
        """Return a changed copy; one that would be longer than the window stays as it was."""
        assert self.augment is not None
        changed = self.augment(wave, self.log_mel.sampling_rate, seed)
        longest = round(self.log_mel.window_s * self.log_mel.sampling_rate)
        return changed if 0 < len(changed) <= longest else wave

    def _fitting(self, values: Any) -> Tensor:
        """Return stored features as float32 (mels, frames); they are bytes, or numbers."""
        if len(values) and isinstance(values[0], bytes):
            values = [np.frombuffer(frames, np.float16) for frames in values]
        stored = np.asarray(values, dtype=np.float32)
        mels, most = self.log_mel.num_mels, self.log_mel.num_frames
        if stored.ndim != 2 or stored.shape[0] != mels or not 1 <= stored.shape[1] <= most:
            raise AudioError(
                f"has stored features of shape {stored.shape}, made for another model: this one "
                f"takes {mels} mel bins and at most {most} frames"
            )
        return torch.from_numpy(stored)


def _stored_features(row: Mapping[str, Any]) -> Any:
    """Return a row's stored features; None where it has none, or another sound in their place."""
    return None if row.get(NO_SPEECH) else row.get(schema.INPUT_FEATURES)


@dataclass(frozen=True)
class Windows:
    """Clips to be transcribed.

    `rows` are all rows as `decode_clip` returns them. `long` holds the clips, by id, that are to be
    decoded in chunks. `waveforms`, float32 (samples,), belong to all other rows without a problem,
    in that order; features are made of them where the model is.
    """

    rows: list[dict[str, Any]]
    waveforms: list[Waveform]
    long: dict[str, Waveform]


IS_DROPPED = "is_dropped"
CLIP_STATE = "clip_state"


def decode_clip(
    row: Mapping[str, Any],
    sampling_rate: int,
    longest_s: float | None,
    limits: DurationLimits = ANY_DURATION,
) -> tuple[dict[str, Any], Waveform | None]:
    """Decode a row's clip.

    Args:
        row: with `audio`.
        sampling_rate: of the samples.
        longest_s: what is longer cannot be used; None takes any length.
        limits: what is outside is dropped; `max_s` is no more than `longest_s`.

    Returns:
        The row without its audio, with its `CLIP_STATE`, its real duration, and with `PROBLEM`
        saying why the clip is not taken, else None; then `REASON` is what it is counted as, among
        the dropped ones if it `IS_DROPPED`. And the samples, float32 (samples,), of a clip that is
        taken.
    """
    slim = {name: value for name, value in row.items() if name != schema.AUDIO}
    slim[CLIP_STATE] = clip_state(row[schema.AUDIO])  # before it is read
    try:
        wave = decode_audio(row[schema.AUDIO], sampling_rate, longest_s)
    except AudioError as error:
        is_long = isinstance(error, TooLongError)
        reason = TOO_LONG if is_long else schema.AUDIO
        is_dropped = is_long and limits.max_s is not None
        return {**slim, PROBLEM: str(error), REASON: reason, IS_DROPPED: is_dropped}, None
    slim[schema.DURATION] = len(wave) / sampling_rate
    if fault := limits.fault(slim[schema.DURATION]):
        return {**slim, REASON: fault[0], PROBLEM: fault[1], IS_DROPPED: True}, None
    return {**slim, PROBLEM: None}, wave


@dataclass(frozen=True)
class WindowCollator:
    """Decode clips of at most one window of a model each; no row is ever left out.

    With `chunk_length_s`, clips may be of any length; those that are longer are set apart.
    """

    log_mel: LogMel
    chunk_length_s: float | None = None
    limits: DurationLimits = ANY_DURATION

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Windows:
        """Turn rows with `audio` into windows."""
        windows = Windows([], [], {})
        longest_s = self.log_mel.window_s if self.chunk_length_s is None else None
        for row in rows:
            slim, wave = decode_clip(row, self.log_mel.sampling_rate, longest_s, self.limits)
            windows.rows.append(slim)
            if wave is None:
                continue
            if self.chunk_length_s is not None and slim[schema.DURATION] > self.chunk_length_s:
                windows.long[row[schema.ID]] = wave
            else:
                windows.waveforms.append(wave)
        return windows
