"""Which recordings are decoded how, by stubs that write the number of the recording."""

import numpy as np
import pytest

from distillery.text.timestamps import Segment
from distillery.whisper import transcriber as module
from distillery.whisper.transcriber import Transcriber

RATE, WINDOW_S = 100, 3.0


class Stub:
    class log_mel:
        sampling_rate, window_s = RATE, WINDOW_S


def recordings(*seconds):
    """Yield recordings of so many seconds, each with samples of its own."""
    return [(n, np.full(round(s * RATE), n, np.float32)) for n, s in enumerate(seconds)]


@pytest.fixture
def runs(monkeypatch):
    """Lists what each algorithm was given: (name, numbers of the recordings)."""
    found = []

    def algorithm(name):
        def transcribe(*given, **_):
            *_, waveforms = [each for each in given if each is not None]
            found.append((name, []))
            for number, waveform in enumerate(waveforms):
                found[-1][1].append(int(waveform[0]))
                yield number, [Segment(0.0, len(waveform) / RATE, f" {int(waveform[0])}")]

        return transcribe

    def at_once(_whisper, waveforms, _decoding, _size, chunk_length_s):
        assert chunk_length_s == WINDOW_S
        return algorithm("at once")(waveforms)

    monkeypatch.setattr(module, "transcribe_in_chunks", at_once)
    return found, algorithm("long")


def test_long_and_short_ones_go_their_ways_and_keep_their_names(runs):
    found, long_form = runs
    transcribe = Transcriber(Stub, None, 2, long_form, WINDOW_S)
    heard = dict(transcribe(iter(recordings(1, 9, 3, 4, 2, 9, 9, 1))))
    assert {number: each.text for number, each in heard.items()} == {n: str(n) for n in range(8)}
    assert {each.words for each in heard.values()} == {None}
    # Long ones stay side by side as long as no batch of short ones has gathered.
    assert found == [("long", [1]), ("at once", [0, 2]), ("long", [3, 5, 6]), ("at once", [4, 7])]


def test_a_recording_is_finished_before_the_last_is_read(runs):
    _, long_form = runs
    transcribe = Transcriber(Stub, None, 2, long_form, WINDOW_S)
    for seconds in (1, 9):
        read = []

        def source(seconds=seconds, read=read):
            for each in recordings(*[seconds] * 6):
                read.append(each[0])
                yield each

        next(iter(transcribe(source())))
        assert len(read) <= 2


def test_chunks_shorter_than_the_window_are_cut_already(runs):
    found, long_form = runs
    assert len(dict(Transcriber(Stub, None, 4, long_form, 1.5)(recordings(1.5, 2.0)))) == 2
    assert found == [("long", [1]), ("at once", [0])]


def test_nothing_is_heard_in_nothing(runs):
    assert list(Transcriber(Stub, None, 4, runs[1], WINDOW_S)([])) == []
