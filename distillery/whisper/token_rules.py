"""Which ids a Whisper decoder may write, as masks over the logits of a batch.

The rules are those of transformers' `generate` for Whisper, applied to rows of which each may
stand at another place, with or without timestamps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distillery.text.tokens import SpecialTokens


@dataclass(frozen=True)
class Timing:
    """What the rules on timestamps need to know of each row, (rows,) each.

    Attributes:
        timed: bool: the row is written with timestamps.
        last, before: bool: whether its last id, and the one before, is a timestamp. A missing one
            counts as a timestamp.
        newest: int64: its last timestamp; the id before the first one where there is none.
    """

    timed: Tensor
    last: Tensor
    before: Tensor
    newest: Tensor

    @classmethod
    def of(cls, num_rows: int, tokens: SpecialTokens, device: torch.device) -> "Timing":
        """Return that of rows that have written nothing, without timestamps."""
        yes = torch.ones(num_rows, dtype=torch.bool, device=device)
        newest = torch.full((num_rows,), tokens.timestamp_begin - 1, device=device)
        return cls(~yes, yes.clone(), yes, newest)

    def __getitem__(self, rows: slice) -> "Timing":
        """Return that of some rows, in the same memory."""
        return Timing(self.timed[rows], self.last[rows], self.before[rows], self.newest[rows])

    def begin(self, timed: Tensor, tokens: SpecialTokens) -> None:
        """Let the rows begin anew."""
        self.timed.copy_(timed)
        self.last.fill_(True)
        self.before.fill_(True)
        self.newest.fill_(tokens.timestamp_begin - 1)

    def advance(self, ids: Tensor, tokens: SpecialTokens) -> None:
        """Take in the next id of each row."""
        is_timestamp = ids >= tokens.timestamp_begin
        self.before.copy_(self.last)
        self.last.copy_(is_timestamp)
        self.newest.copy_(torch.where(is_timestamp, ids, self.newest))


class TokenRules:
    """The rules of one model: suppressed ids, first ids, timestamps."""

    def __init__(self, model: WhisperForConditionalGeneration, tokens: SpecialTokens) -> None:
        """Read the rules from the model's generation config."""
        config, self.tokens = model.generation_config, tokens
        num_ids, device = int(model.config.vocab_size), model.device
        suppressed = config.suppress_tokens or []
        self._later = _barred(suppressed, num_ids, device)
        first = [*suppressed, *(config.begin_suppress_tokens or [])]
        self._first = _barred(first, num_ids, device)
        latest = getattr(config, "max_initial_timestamp_index", None)
        self._num_first_times = None if latest is None else int(latest) + 1
        self._times = torch.arange(num_ids - tokens.timestamp_begin, device=device)

    def first(self, logits: Tensor, timing: Timing) -> Tensor:
        """Return the scores of what may come first behind the prefix: barred ids have -inf.

        Args:
            logits: float32 (rows, ids).
            timing: of the rows.
        """
        scores = logits + self._first
        begin, timed = self.tokens.timestamp_begin, timing.timed[:, None]
        scores[:, :begin].masked_fill_(timed, -torch.inf)
        if self._num_first_times is not None:
            scores[:, begin + self._num_first_times :].masked_fill_(timed, -torch.inf)
        return scores

    def later(self, logits: Tensor, timing: Timing, any_timed: bool) -> Tensor:
        """Return the same of what may come behind it.

        Args:
            logits: float32 (rows, ids).
            timing: of the rows.
            any_timed: whether any row is written with timestamps.
        """
        scores = logits + self._later
        if any_timed:
            self._keep_time(scores, timing)
        return scores

    def _keep_time(self, scores: Tensor, timing: Timing) -> None:
        """Apply the rules on timestamps (Radford et al. 2022; transformers' logits processor)."""
        tokens, timed = self.tokens, timing.timed
        text, times = scores[:, : tokens.timestamp_begin], scores[:, tokens.timestamp_begin :]
        text[:, tokens.no_timestamps].masked_fill_(timed, -torch.inf)
        # Timestamps come in pairs: behind an end stands the next start, or the end of all.
        is_end = timing.last & ~timing.before
        text[:, : tokens.end_of_text].masked_fill_((timed & is_end)[:, None], -torch.inf)
        is_start = timing.last & timing.before
        # They do not decrease; the start may be the end before it, and nothing else repeats.
        earliest = timing.newest - tokens.timestamp_begin + (~is_end).long()
        too_early = self._times < earliest[:, None]
        times.masked_fill_((too_early | is_start[:, None]) & timed[:, None], -torch.inf)
        # Where all timestamps together are more probable than any text, it is a timestamp.
        is_time = times.logsumexp(-1) > text.amax(-1)
        text.masked_fill_((is_time & timed)[:, None], -torch.inf)


def _barred(ids: Sequence[int], num_ids: int, device: torch.device) -> Tensor:
    """Return what is added to logits: -inf for these ids, 0 for all others."""
    added = torch.zeros(num_ids, device=device)
    added[[index for index in ids if 0 <= index < num_ids]] = -torch.inf
    return added
