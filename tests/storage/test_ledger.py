import pytest

from distillery.storage.ledger import Ledger


@pytest.mark.parametrize("written", [6, 8])
def test_rows_are_counted_in_the_files(written):
    ledger = Ledger(num_in=9, num_out=7)
    ledger.quarantine("audio", "a", "b")
    ledger.check(1.0)
    ledger.check_written(7)
    with pytest.raises(AssertionError, match=f"{written} rows lie in the files, but .* 7 out"):
        ledger.check_written(written)
