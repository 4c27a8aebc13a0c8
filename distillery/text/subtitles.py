"""Subtitles (SRT and WebVTT) to cues, what is said and when; and segments to subtitles."""

import codecs
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from distillery.text.spacing import joined
from distillery.text.timestamps import Segment

SUFFIXES = (".srt", ".vtt")
MAX_BYTES = 64 << 20

_TIME = r"(?:(\d+):)?([0-5]?\d):([0-5]?\d)(?:[.,](\d{1,3}))?"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_MARKUP = re.compile(r"</?[a-zA-Z0-9][^<>]*>|\{\\[^{}]*\}")  # <i>, <v Anna>, <00:01.500>, {\an8}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Cue:
    """One subtitle: from when to when it is shown, its text without markup, and its line."""

    start_ms: int
    end_ms: int
    text: str
    line: int


@dataclass(frozen=True)
class Subtitles:
    """A file's cues in the order of time, and (line, reason) of those that cannot be used."""

    cues: list[Cue]
    refused: list[tuple[int, str]]


def read_subtitles(path: Path) -> Subtitles:
    """Read a file of SRT or WebVTT, told apart by its content.

    Cues may come in any order and may overlap. Those of exactly the same time are one utterance on
    several places of the screen: their texts are joined.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 (or UTF-16 with a byte order mark), has no cue in it, or more
            than 64 MiB.
    """
    lines = re.split(r"\r\n|\r|\n", _decoded(path))
    is_webvtt = lines[0].startswith("WEBVTT")
    cues: list[Cue] = []
    refused = []
    for line, timing, texts in _blocks(lines, is_webvtt):
        cue = _cue(line, timing, texts)
        if isinstance(cue, Cue):
            cues.append(cue)
        else:
            refused.append((line, cue))
    if not cues and not refused:
        raise ValueError(f"{path} has no cues: is it SRT or WebVTT?")
    return Subtitles(_in_order(cues), refused)


def _decoded(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES >> 20} MiB: is it SRT or WebVTT?")
    content = path.read_bytes()
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark))
    try:
        return content.decode(next(marks, "utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error


def _blocks(lines: Sequence[str], is_webvtt: bool) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (line number, timing, lines of text) of each cue.

    What stands before a timing is a number, an identifier, or a block of notes or styles. In SRT a
    text may go on behind an empty line.
    """
    line, timing, texts = 0, "", [""]
    for number, text in enumerate(lines, start=1):
        if "-->" in text:
            if timing:
                yield line, timing, texts[:-1] if texts[-1].strip().isdigit() else texts
            line, timing, texts = number, text, [""]
        elif text.strip():
            texts.append(text)
        elif is_webvtt and timing:
            yield line, timing, texts
            timing = ""
    if timing:
        yield line, timing, texts


def _cue(line: int, timing: str, texts: Sequence[str]) -> Cue | str:
    """Return a cue, or the reason why it is none."""
    times = _TIMING.fullmatch(timing)
    if times is None:
        return "times not understood"
    start_ms, end_ms = _milliseconds(times.groups()[:4]), _milliseconds(times.groups()[4:])
    text = joined([" ".join(html.unescape(_MARKUP.sub("", text)).split()) for text in texts])
    if end_ms <= start_ms:
        return "ends before it starts"
    if not text:
        return "no text"
    return Cue(start_ms, end_ms, text, line)


def _milliseconds(parts: Sequence[str | None]) -> int:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
    return whole * 1000 + int(fraction.ljust(3, "0"))


def _in_order(cues: Sequence[Cue]) -> list[Cue]:
    """Sort cues by time, and make one of those that have the same."""
    ordered = []
    for _, group in groupby(sorted(cues, key=_times), key=_times):
        first, *more = group
        texts = dict.fromkeys([first.text, *(cue.text for cue in more)])  # each text once
        ordered.append(replace(first, text=joined(list(texts))))
    return ordered


def _times(cue: Cue) -> tuple[int, int]:
    return cue.start_ms, cue.end_ms


# --- writing --------------------------------------------------------------------------------------


def srt_text(segments: Iterable[Segment]) -> str:
    """Return SRT, with a cue for each segment that has a text."""
    cues = (
        f"{number}\n{_clock(start_ms, ',')} --> {_clock(end_ms, ',')}\n"
        # An arrow would be taken for the times of a cue.
        f"{text.replace('-->', '→')}\n"
        for number, (start_ms, end_ms, text) in enumerate(_spans(segments), start=1)
    )
    return "\n".join(cues)


def webvtt_text(segments: Iterable[Segment]) -> str:
    """Return WebVTT, with a cue for each segment that has a text."""
    cues = (
        f"{_clock(start_ms, '.')} --> {_clock(end_ms, '.')}\n{html.escape(text, quote=False)}\n"
        for start_ms, end_ms, text in _spans(segments)
    )
    return "\n".join(["WEBVTT\n", *cues])


def _spans(segments: Iterable[Segment]) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and text, on one line; a segment without length is shown for a moment."""
    for segment in segments:
        text = " ".join(segment.text.split())
        if text:
            start_ms = round(segment.start * 1000)
            yield start_ms, max(round(segment.end * 1000), start_ms + 1), text


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{ms:03}"
