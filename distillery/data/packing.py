"""Utterances laid into windows of a model's length: which ones share a window, and where each lies.

Whisper hears a window of 30 s, whatever is in it; most of one that holds a single utterance is
silence. Here is only the arithmetic, in samples; `packed_windows` has rows and audio.

What comes out depends on the order of the utterances alone. Chunks of rows are packed each for
itself, so that any process can pack any chunk, and a resumed run makes the same windows.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from distillery.text.tokens import TIMESTAMP_STEP_S

Row = TypeVar("Row")

PAUSE_S = 0.5  # of silence between two parts
MOST_WAITING = 64  # utterances that `best_fit` chooses from


@dataclass(frozen=True)
class Utterance(Generic[Row]):
    """What is to be laid into a window.

    Attributes:
        row: whatever belongs to it.
        num_samples: its length.
        group: what all parts of a window must have in common, such as speaker and recording.
    """

    row: Row
    num_samples: int
    group: Hashable = None


@dataclass(frozen=True)
class Part(Generic[Row]):
    """An utterance in its window; `start` is its first sample there."""

    row: Row
    start: int
    num_samples: int

    @property
    def end(self) -> int:
        """The sample behind its last one."""
        return self.start + self.num_samples


@dataclass(frozen=True)
class Window(Generic[Row]):
    """Parts that do not overlap, in order; at least one."""

    parts: tuple[Part[Row], ...]

    @property
    def num_samples(self) -> int:
        """Length of the audio, up to the end of the last part."""
        return self.parts[-1].end

    @property
    def speech_samples(self) -> int:
        """Length of the parts."""
        return sum(part.num_samples for part in self.parts)


@dataclass(frozen=True)
class Layout:
    """How parts lie in a window: a short silence apart, each beginning where a timestamp can.

    The times of a part are then moved into its window and back without any rounding.

    Attributes:
        sampling_rate: in Hz.
        window_samples: length of the model's window.
        pause_s: least silence between two parts. distil-whisper lays them end to end; but clips
            that are cut close to the words then run into each other, and a teacher writes one
            passage for two of them (benchmarks, "Packed labels").
    """

    sampling_rate: int
    window_samples: int
    pause_s: float = PAUSE_S

    @property
    def pause_samples(self) -> int:
        """Least silence between two parts, as whole steps of a timestamp."""
        return self.room(round(self.pause_s * self.sampling_rate))

    def room(self, num_samples: int) -> int:
        """Return the samples that an utterance takes: whole steps of a timestamp."""
        step = round(TIMESTAMP_STEP_S * self.sampling_rate)
        return -(-num_samples // step) * step

    def window(self, utterances: Iterable[Utterance[Row]]) -> Window[Row]:
        """Lay utterances out, in their order."""
        parts, start = [], 0
        for utterance in utterances:
            parts.append(Part(utterance.row, start, utterance.num_samples))
            start += self.room(utterance.num_samples) + self.pause_samples
        return Window(tuple(parts))


def alone(utterances: Iterable[Utterance[Row]], layout: Layout) -> Iterator[Window[Row]]:
    """Give each utterance a window of its own."""
    for utterance in utterances:
        yield layout.window([utterance])


def in_order(utterances: Iterable[Utterance[Row]], layout: Layout) -> Iterator[Window[Row]]:
    """Lay neighbours of one group into windows, in order, as long as they fit.

    This is the `concatenate_audio` of distil-whisper. One utterance that is longer than a window
    stands alone, as a window that is too long.
    """
    waiting: list[Utterance[Row]] = []
    taken = 0
    for utterance in utterances:
        room = layout.room(utterance.num_samples)
        is_next = waiting and waiting[-1].group == utterance.group
        if waiting and not (is_next and taken + room <= layout.window_samples):
            yield layout.window(waiting)
            waiting, taken = [], 0
        waiting.append(utterance)
        taken += room + layout.pause_samples
    if waiting:
        yield layout.window(waiting)


def best_fit(
    utterances: Iterable[Utterance[Row]], layout: Layout, most_waiting: int = MOST_WAITING
) -> Iterator[Window[Row]]:
    """Fill one window after another, each time with the longest utterance that still fits.

    Only for rows whose order carries no meaning. One utterance that is longer than a window
    stands alone, as a window that is too long.

    Args:
        utterances: only as many as may wait are read ahead.
        layout: of a window.
        most_waiting: utterances that are chosen from, and so kept at once.
    """
    # Sorted by length; of equally long ones, the last is the one that came first.
    waiting: list[tuple[int, int, Utterance[Row]]] = []
    for number, utterance in enumerate(utterances):
        insort(waiting, (layout.room(utterance.num_samples), -number, utterance), key=_length)
        if len(waiting) >= most_waiting:
            yield layout.window(_take_window(waiting, layout))
    while waiting:
        yield layout.window(_take_window(waiting, layout))


def _length(waiting: tuple[int, int, Any]) -> tuple[int, int]:
    return waiting[:2]


def _take_window(
    waiting: list[tuple[int, int, Utterance[Row]]], layout: Layout
) -> list[Utterance[Row]]:
    """Take the longest utterance, and then the longest one of its group that fits beside it."""
    room, _, first = waiting.pop()
    taken = [first]
    left = layout.window_samples - room - layout.pause_samples
    place = len(waiting)
    while (place := bisect_right(waiting, (left, 0), hi=place, key=_length)) > 0:
        place -= 1
        if waiting[place][2].group == first.group:
            room, _, utterance = waiting.pop(place)
            taken.append(utterance)
            left -= room + layout.pause_samples
    return taken


Packer: TypeAlias = Callable[[Iterable[Utterance[Any]], Layout], Iterator[Window[Any]]]

PACKERS: dict[str, Packer] = {"in_order": in_order, "best_fit": best_fit, "none": alone}


@dataclass(frozen=True)
class Fill:
    """How full windows are.

    Attributes:
        num_utterances, num_windows: that they came from, and that there are.
        speech_s: seconds of the utterances.
        window_s: seconds of the windows, each as long as the model's.
    """

    num_utterances: int = 0
    num_windows: int = 0
    speech_s: float = 0.0
    window_s: float = 0.0

    def __add__(self, other: "Fill") -> "Fill":
        return Fill(
            self.num_utterances + other.num_utterances,
            self.num_windows + other.num_windows,
            self.speech_s + other.speech_s,
            self.window_s + other.window_s,
        )

    @property
    def share(self) -> float:
        """Seconds of speech in a second of window; 0 without windows."""
        return self.speech_s / self.window_s if self.window_s else 0.0

    @property
    def windows_saved(self) -> int:
        """Windows less than one for each utterance."""
        return self.num_utterances - self.num_windows

    def to_dict(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {**asdict(self), "fill": self.share, "windows_saved": self.windows_saved}

    def __str__(self) -> str:
        return (
            f"{self.num_utterances:,} utterances in {self.num_windows:,} windows, "
            f"{self.windows_saved:,} windows saved; {self.share:.0%} of each is speech"
        )


def fill(windows: Iterable[Window[Any]], layout: Layout) -> Fill:
    """Return how full windows are."""
    seconds = layout.window_samples / layout.sampling_rate
    return sum(
        (
            Fill(len(window.parts), 1, window.speech_samples / layout.sampling_rate, seconds)
            for window in windows
        ),
        Fill(),
    )
