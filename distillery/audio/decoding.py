"""Stored audio, in any format, to samples; and samples to the FLAC of a clip that was cut out.

Two decoders: libsndfile (WAV, FLAC, OGG, Opus, MP3, NIST Sphere and more), and for what it does not
know (M4A, MP4, WebM, WMA and more) FFmpeg's libraries, which are in the package `av`. A format is
known by its content; the name of a file does not matter.

Two checks are our own, because neither library makes them: whether all samples are there that the
header of a WAV, AIFF or NIST Sphere file claims, and whether an MP3 states its length.
"""

import functools
import io
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from distillery.audio import ffmpeg

Waveform: TypeAlias = NDArray[np.float32]
Source: TypeAlias = bytes | Path

LONGEST_S = 24 * 3600  # where the caller sets no limit; a broken header may claim any length
BLOCK_SAMPLES = 2**20  # of all channels together, decoded at once

UNKNOWN_LENGTH = 2**63 - 1  # frames that libsndfile reports for a file that it cannot read
UNKNOWN_FORMAT = (1, 3)  # libsndfile's codes: format not recognised, encoding not supported
MISSING_S = 0.1  # encoders count the frames of an MP3 a little differently
NIST_HEADER_BYTES = 1024


class AudioError(ValueError):
    """A clip that cannot be used; the message says why, without naming the clip."""


class TooLongError(AudioError):
    """A clip that is longer than the caller takes."""


class _UnknownFormatError(Exception):
    """The decoder cannot read this format; the message says why."""


def decode_audio(
    audio: Mapping[str, Any] | None, sampling_rate: int, max_duration_s: float | None = None
) -> Waveform:
    """Decode one clip to mono at a sampling rate.

    Args:
        audio: `bytes`, or the `path` of a file where `bytes` is None; None for a row without audio.
        sampling_rate: of the result, in Hz; channels are averaged.
        max_duration_s: refuse longer clips; no more than this is ever decoded.

    Returns:
        float32 (samples,), nominally between -1 and 1.

    Raises:
        AudioError: the clip is missing, unreadable, empty, cut short, too long, or holds NaN or
            infinities.
    """
    return _decoded(audio, max_duration_s, sampling_rate)[0]


def decode_at_own_rate(
    audio: Mapping[str, Any] | None, max_duration_s: float | None = None
) -> tuple[Waveform, int]:
    """Decode one clip to mono, and return it with the sampling rate that it is stored at.

    Arguments and errors are those of `decode_audio`.
    """
    return _decoded(audio, max_duration_s, None)


def _decoded(
    audio: Mapping[str, Any] | None, max_duration_s: float | None, wanted_rate: int | None
) -> tuple[Waveform, int]:
    """Return the samples at the rate that is wanted, else at their own, and their own rate."""
    source = _source(audio)
    reasons = []
    for decode in (_by_libsndfile, _by_ffmpeg):
        try:
            samples, rate = decode(source, max_duration_s, wanted_rate)
        except _UnknownFormatError as reason:
            reasons.append(str(reason))
        except (OSError, MemoryError, struct.error) as error:
            raise AudioError(f"cannot be decoded: {error}") from error
        else:
            if samples.size == 0:  # there are none, or less than one at the new rate
                raise AudioError("holds no samples")
            return samples, rate
    raise AudioError(f"cannot be decoded: {'; '.join(reasons)}")


def stated_seconds(audio: Mapping[str, Any] | None) -> float | None:
    """Return how long a clip's header says that it lasts; None where libsndfile cannot tell."""
    try:
        with _opened(_source(audio)) as stream, _sound_file(stream) as file:
            frames = _stated_frames(stream, file)
            return None if frames is None else frames / file.samplerate
    except (AudioError, _UnknownFormatError, soundfile.LibsndfileError):
        return None


def encode_flac(samples: Waveform, rate: int) -> bytes:
    """Return mono samples as FLAC of 16 bits, which keeps a 16-bit recording exactly.

    Finer samples (24 bits, lossy formats, the mean of channels) are rounded, and what is beyond
    full scale is clipped.
    """
    return _encoded(samples, rate, "FLAC")


def encode_wav(samples: Waveform, rate: int) -> bytes:
    """Return mono samples as WAV of 16 bits: the same samples as FLAC has, at no cost."""
    return _encoded(samples, rate, "WAV")


def _encoded(samples: Waveform, rate: int, container: str) -> bytes:
    # libsndfile would write 32767 for the 1.0 that it reads for 32768.
    whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, whole, rate, format=container, subtype="PCM_16")
    return buffer.getvalue()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name that is too long, for one
        raise AudioError(f"cannot be opened: {error.strerror}") from error


def _source(audio: Mapping[str, Any] | None) -> Source:
    if audio is None:
        raise AudioError("has no audio")
    content = audio.get("bytes")
    path = Path(audio.get("path") or "")
    if content is None and not _is_file(path):
        raise AudioError(f"file not found: {audio.get('path')}")
    if not (content if content is not None else path.stat().st_size):
        raise AudioError("is an empty file")
    return path if content is None else bytes(content)


class _Collector:
    """Mono samples of a recording, checked and resampled block by block as they come.

    There is one copy of them, at the rate that is wanted. Where the length is known beforehand,
    digital silence takes no memory at all: its pages are zeros that nobody has touched.
    """

    def __init__(
        self,
        rate: int,
        wanted_rate: int | None,
        max_duration_s: float | None,
        stated: int | None = None,
    ) -> None:
        """Expect samples at `rate`, in Hz; `stated` is their number where a header tells it."""
        self._rate, self._max_duration_s = rate, max_duration_s
        _check_length(stated or 0, rate, max_duration_s, exact=True)
        wanted_rate = wanted_rate or rate
        self._stream: soxr.ResampleStream | None = None
        if wanted_rate != rate:
            self._stream = soxr.ResampleStream(rate, wanted_rate, 1, dtype="float32")
        self._samples = np.zeros((stated or 0) * wanted_rate // rate + 1, dtype=np.float32)
        self._num_kept = 0
        self.num_decoded = 0  # at the stored rate

    def collect(self, blocks: Iterable[NDArray[np.float32]]) -> Waveform:
        """Return the mean of the channels of float32 (frames, channels) blocks."""
        for block in blocks:
            samples = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
            if not np.isfinite(samples).all():
                raise AudioError("holds NaN or infinite samples")
            self.num_decoded += len(samples)
            _check_length(self.num_decoded, self._rate, self._max_duration_s, exact=False)
            self._keep(self._resampled(samples))
        self._keep(self._resampled(np.zeros(0, dtype=np.float32), last=True))
        self._samples.resize(self._num_kept, refcheck=False)
        return self._samples

    def _resampled(self, samples: Waveform, last: bool = False) -> Waveform:
        if self._stream is None:
            return samples
        # The same numbers, to the bit, as from the whole recording at once.
        return np.asarray(self._stream.resample_chunk(np.ascontiguousarray(samples), last=last))

    def _keep(self, samples: Waveform) -> None:
        start, self._num_kept = self._num_kept, self._num_kept + len(samples)
        if self._num_kept > len(self._samples):
            # In place, where the system can: pages are moved, not copied.
            most = max(self._num_kept, len(self._samples) * 5 // 4)
            self._samples.resize(most, refcheck=False)
        if samples.any():
            self._samples[start : self._num_kept] = samples


def _check_length(frames: int, rate: int, max_duration_s: float | None, exact: bool) -> None:
    if rate < 1:
        raise AudioError(f"has a sampling rate of {rate} Hz")
    if frames <= (max_duration_s or LONGEST_S) * rate:
        return
    lasts = f"lasts {frames / rate:.2f} s," if exact else "lasts"
    if max_duration_s is None:
        raise AudioError(f"{lasts} longer than {LONGEST_S / 3600:g} hours, the most that is read")
    raise TooLongError(f"{lasts} longer than the model's window of {max_duration_s:g} s")


# --- libsndfile ----------------------------------------------------------------------------------


def _by_libsndfile(
    source: Source, max_duration_s: float | None, wanted_rate: int | None
) -> tuple[Waveform, int]:
    try:
        with _opened(source) as stream, _sound_file(stream) as file:
            stated, rate = _stated_frames(stream, file), file.samplerate
            collector = _Collector(rate, wanted_rate, max_duration_s, stated)
            samples = collector.collect(_blocks(file))
    except soundfile.LibsndfileError as error:
        # Its full text names the address of a buffer, which differs from run to run.
        reason = error.error_string.rstrip(".")
        if error.code in UNKNOWN_FORMAT:
            raise _UnknownFormatError(reason) from error
        raise AudioError(f"cannot be decoded: {reason}") from error
    if stated is not None and collector.num_decoded < stated - MISSING_S * rate:
        raise _cut_short(stated / rate, collector.num_decoded / rate)
    return samples, rate


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    """Open bytes or a file, and refuse a file that is cut short."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb", 0) as stream:
        _check_pcm_is_whole(stream)
        yield stream


def _sound_file(stream: IO[bytes]) -> soundfile.SoundFile:
    if isinstance(stream, io.BytesIO):
        return soundfile.SoundFile(stream)
    # By its number: a name ending in .raw would be believed, whatever the content.
    return soundfile.SoundFile(stream.fileno(), closefd=False)


def _blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    frames = max(1, BLOCK_SAMPLES // file.channels)
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        yield block


def _stated_frames(stream: IO[bytes], file: soundfile.SoundFile) -> int | None:
    """Return the number of frames that the header states; None where it is only an estimate."""
    if file.frames == UNKNOWN_LENGTH:  # a FLAC that was written to a pipe
        raise _UnknownFormatError("does not say how long it is")
    if file.format == "MP3" and not _has_frame_count(stream):
        return None
    if file.format == "NIST" and (count := _nist_sample_count(stream)) is not None:
        return count
    return int(file.frames)


def _nist_sample_count(stream: IO[bytes]) -> int | None:
    """Return the frames that a NIST Sphere file claims: libsndfile counts those that are there."""
    position = stream.tell()
    stream.seek(0)
    field = re.search(rb"^sample_count -i (\d+)", stream.read(NIST_HEADER_BYTES), re.MULTILINE)
    stream.seek(position)
    return None if field is None else int(field[1])


def _has_frame_count(mp3: IO[bytes]) -> bool:
    """Tell whether an MP3 begins with the frame that counts its frames (Xing's, LAME's "Info").

    Without one, libsndfile estimates the length from the first bit rate, and may be far off.
    """
    position = mp3.tell()
    mp3.seek(0)
    head = mp3.read(10)
    if head.startswith(b"ID3"):  # its size, in four bytes of seven bits, is that of what follows
        size = functools.reduce(lambda total, byte: total << 7 | byte, head[6:10], 0)
        mp3.seek(10 + size)
    else:
        mp3.seek(0)
    frame = mp3.read(256)
    mp3.seek(position)
    return b"Xing" in frame or b"Info" in frame


def _check_pcm_is_whole(stream: IO[bytes]) -> None:
    """Refuse a WAV or AIFF whose samples are fewer than its header says, which libsndfile reads.

    A program that writes to a pipe cannot know the length, and leaves the largest number there.
    """
    kind = stream.read(12)[:4]
    order, samples_id = {b"RIFF": ("<", b"data"), b"FORM": (">", b"SSND")}.get(kind, ("", b""))
    while order and len(header := stream.read(8)) == 8:
        size = struct.unpack(f"{order}I", header[4:])[0]
        start = stream.tell()
        if header[:4] == samples_id:
            present = stream.seek(0, io.SEEK_END) - start
            if present < size < 0x7FFFF000:
                raise AudioError(f"is cut short: {present} of {size} bytes of samples are there")
            break
        stream.seek(start + size + size % 2)  # chunks begin at even places
    stream.seek(0)


def _cut_short(stated_s: float, present_s: float) -> AudioError:
    return AudioError(f"is cut short: {present_s:.2f} s of {stated_s:.2f} s are there")


# --- FFmpeg --------------------------------------------------------------------------------------


def _by_ffmpeg(
    source: Source, max_duration_s: float | None, wanted_rate: int | None
) -> tuple[Waveform, int]:
    try:
        rate, blocks = ffmpeg.decode(source)
        return _Collector(rate, wanted_rate, max_duration_s).collect(blocks), rate
    except ffmpeg.FFmpegError as error:
        raise _UnknownFormatError(f"FFmpeg: {error}") from error
