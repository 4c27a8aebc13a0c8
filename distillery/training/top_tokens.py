"""A teacher's distribution cut to its most probable tokens, and the divergence from it.

Of a distribution t over the vocabulary, the tokens S that are most probable are kept one by one,
all others as one outcome of probability r, the rest of t. The student's distribution q is summed up
in the same way, to R outside of S:

    KL' = sum over S of t_i (log t_i - log q_i)  +  r (log r - log R)

By the log-sum inequality it is never more than the divergence of the whole distributions, and equal
to it where S is the vocabulary. Its gradient by the logits z / temperature of the student is
q_i - t_i in S, and q_j - r q_j / R outside of it: what the whole distribution says of each token
there is shared out among them as the student does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

NUM_TOP = 32
LOG_ZERO = -1e4  # its exponential is 0, and differences of it are finite

# A position as it is kept, in 130 bytes.
POSITION = np.dtype([("ids", "<u2", NUM_TOP), ("log_probs", "<f2", NUM_TOP), ("log_rest", "<f2")])
MOST_TOKENS = 2**16  # that an id has bits for

Positions = NDArray[np.void]


@dataclass(frozen=True)
class TopTokens:
    """Most probable tokens at several positions, and what is left of each distribution.

    ids: int64 (positions, k); log_probs: float (positions, k), logarithms of their probabilities at
    the temperature of the loss; log_rest: float (positions,), of what all others have together.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor

    @classmethod
    def of(cls, logits: Tensor, temperature: float, num_top: int = NUM_TOP) -> "TopTokens":
        """Cut distributions to their most probable tokens.

        logits: float32 (positions, vocabulary).
        """
        log_t = functional.log_softmax(logits / temperature, dim=-1)
        log_probs, ids = log_t.topk(num_top)
        return cls(ids, log_probs, log_t.scatter(1, ids, LOG_ZERO).logsumexp(1))

    def __getitem__(self, span: slice) -> "TopTokens":
        """Return a span of the positions."""
        return TopTokens(self.ids[span], self.log_probs[span], self.log_rest[span])

    def divergence(self, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence of a student, (positions,), and its gradient by z / temperature.

        Probabilities that were rounded to 16 bits are made to add up to 1 again.

        Args:
            log_q: float32 (positions, vocabulary), the student's log-probabilities at the same
                temperature.

        Returns:
            The divergences, and their gradient in the shape of `log_q`.
        """
        kept = torch.cat([self.log_probs, self.log_rest[:, None]], 1).clamp(min=LOG_ZERO)
        log_t = functional.log_softmax(kept.float(), dim=-1)
        t = log_t.exp()
        outside = log_q.scatter(1, self.ids, LOG_ZERO)
        log_rest = outside.logsumexp(1, keepdim=True)
        ours = torch.cat([log_q.gather(1, self.ids), log_rest], 1)
        gradient = log_q.exp() - t[:, -1:] * (outside - log_rest).exp()
        gradient.scatter_add_(1, self.ids, -t[:, :-1])
        return (t * (log_t - ours)).sum(1), gradient

    def to_positions(self) -> Positions:
        """Round to what is kept: 16 bits for an id, and for a logarithm."""
        positions = np.empty(len(self.ids), POSITION)
        for name in POSITION.names or ():
            positions[name] = getattr(self, name).cpu().numpy()
        return positions

    @classmethod
    def from_positions(cls, rows: Sequence[Positions], device: torch.device) -> "TopTokens":
        """Return what was kept of several rows, one behind the other."""
        kept = np.concatenate(rows)
        return cls(
            torch.from_numpy(kept["ids"].astype(np.int64)).to(device),
            torch.from_numpy(kept["log_probs"].astype(np.float32)).to(device),
            torch.from_numpy(kept["log_rest"].astype(np.float32)).to(device),
        )
