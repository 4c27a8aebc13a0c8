"""The clips that cannot be used: when they are too many for a run to succeed."""

from distillery.storage.ledger import USUAL_BAD_FRACTION, Ledger

REMEDY = "start again with --retry_quarantined"
MANY_BAD = 100  # with fewer bad clips a run goes on to its end, and names them all
FAR_PAST = 10  # times the share that is allowed, where the number of rows is not known


class BadClips:
    """Ends a run that cannot succeed any more, long before its last clip."""

    def __init__(
        self, max_bad_fraction: float | None, num_rows: int | None, remedy: str = REMEDY
    ) -> None:
        """Begin to count.

        Args:
            max_bad_fraction: share of the clips that may be unusable; see `ledger.most_bad`.
            num_rows: of all splits; None where a stream does not say.
            remedy: what to do once they are mended.
        """
        self._max_bad_fraction, self._num_rows = max_bad_fraction, num_rows
        self._remedy, self._ledger = remedy, Ledger()

    def add(self, shard: Ledger | None) -> None:
        """Count the clips of a shard that was written; None is no shard.

        Raises:
            ValueError: so many are bad that the run will fail, even if all others are good; where
                the number of rows is not known, that `FAR_PAST` times as many are bad as may be.
        """
        self._ledger += shard or Ledger()
        bad = self._ledger.quarantined
        if shard is None or bad.total() < MANY_BAD:
            return
        if self._num_rows is None:
            allowed = self._max_bad_fraction
            share = USUAL_BAD_FRACTION if allowed is None else allowed
            self._ledger.check(FAR_PAST * share, self._remedy)
        else:
            expected = Ledger(self._num_rows, self._num_rows - bad.total(), quarantined=bad)
            expected.check(self._max_bad_fraction, self._remedy)
