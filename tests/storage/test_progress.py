import logging

from distillery.storage.progress import ProgressBar


def lines(caplog, total, *steps):
    with caplog.at_level(logging.INFO, "distillery.storage.progress"):
        bar = ProgressBar(total=total, desc="training", unit=" updates", mininterval=0)
        for step in steps:
            bar.update(step)
        bar.close()
        bar.close()
    return [record.getMessage() for record in caplog.records]


def test_the_end_is_one_line_without_a_bar(caplog):
    (line,) = lines(caplog, 30, 10, 20)
    assert line.startswith("training: 30 of 30 updates, ")
    assert line.endswith(" updates/s, 00:00 left")
    assert "█" not in line


def test_without_a_total_the_time_is_what_passed(caplog):
    (line,) = lines(caplog, None, 3)
    assert line.startswith("training: 3 updates in 00:00, ")


def test_nothing_done_is_no_line(caplog):
    assert lines(caplog, 30) == []
