"""Stored audio, in any format, to samples; and samples to the FLAC of a clip that was cut out.

Three decoders, each for what the one before does not know: libsndfile (WAV, FLAC, OGG, Opus, MP3),
torchcodec where it is installed and works, and the program `ffmpeg` where there is one (M4A, WebM
and more). A format is known by its content; the name of a file does not matter.
"""

import functools
import io
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Waveform: TypeAlias = NDArray[np.float32]
Source: TypeAlias = bytes | Path

LONGEST_S = 24 * 3600  # where the caller sets no limit; a broken header may claim any length
BLOCK_SAMPLES = 2**20  # of all channels together, decoded at once
FFMPEG_TIMEOUT_S = 600

UNKNOWN_LENGTH = 2**63 - 1  # frames, as libsndfile gives them; it cannot read such a file
UNKNOWN_FORMAT = (1, 3)  # libsndfile's codes: format not recognised, encoding not supported
MISSING_S = 0.1  # encoders count the frames of an MP3 a little differently

# What `ffmpeg` may read: containers of audio. A playlist would make it open other files.
FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,m4a,matroska,mov,mp3,mp4,mpeg,mpegts,"
    "ogg,tta,w64,wav,webm,wv"
)


class AudioError(ValueError):
    """A clip that cannot be used; the message says why, without naming the clip."""


class _NotMine(Exception):
    """The decoder does not know this format, or is not there; the message says which."""


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
    samples, rate = decode_at_own_rate(audio, max_duration_s)
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate)
    if samples.size == 0:  # less than one sample at the new rate
        raise AudioError("holds no samples")
    return np.ascontiguousarray(samples, dtype=np.float32)


def decode_at_own_rate(
    audio: Mapping[str, Any] | None, max_duration_s: float | None = None
) -> tuple[Waveform, int]:
    """Decode one clip to mono, and return it with the sampling rate that it is stored at.

    Arguments and errors are those of `decode_audio`.
    """
    source = _source(audio)
    reasons = []
    for decode in (_by_libsndfile, _by_torchcodec, _by_ffmpeg):
        try:
            samples, rate = decode(source, max_duration_s)
        except _NotMine as reason:
            reasons.append(str(reason))
        except (OSError, MemoryError, struct.error) as error:
            raise AudioError(f"cannot be decoded: {error}") from error
        else:
            if samples.size == 0:
                raise AudioError("holds no samples")
            return samples, rate
    raise AudioError(f"cannot be decoded: {'; '.join(reason for reason in reasons if reason)}")


def encode_flac(samples: Waveform, rate: int) -> bytes:
    """Return mono samples as FLAC of 16 bits, which keeps a 16-bit recording exactly.

    Finer samples (24 bits, lossy formats, the mean of channels) are rounded, and what is beyond
    full scale is clipped.
    """
    # libsndfile would write 32767 for the 1.0 that it reads for 32768.
    whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, whole, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _source(audio: Mapping[str, Any] | None) -> Source:
    if audio is None:
        raise AudioError("has no audio")
    content = audio.get("bytes")
    path = Path(audio.get("path") or "")
    if content is None and not path.is_file():
        raise AudioError(f"file not found: {audio.get('path')}")
    if not (content if content is not None else path.stat().st_size):
        raise AudioError("is an empty file")
    return path if content is None else bytes(content)


def _mono(
    blocks: Iterable[NDArray[np.float32]], rate: int, max_duration_s: float | None
) -> Waveform:
    """Average the channels of float32 (frames, channels) blocks, and check them as they come."""
    kept, num_samples = [np.zeros(0, dtype=np.float32)], 0
    for block in blocks:
        samples = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
        if not np.isfinite(samples).all():
            raise AudioError("holds NaN or infinite samples")
        num_samples += len(samples)
        _check_length(num_samples, rate, max_duration_s, exact=False)
        kept.append(samples)
    return np.concatenate(kept)


def _check_length(frames: int, rate: int, max_duration_s: float | None, exact: bool) -> None:
    if rate < 1:
        raise AudioError(f"has a sampling rate of {rate} Hz")
    if frames <= (max_duration_s or LONGEST_S) * rate:
        return
    lasts = f"lasts {frames / rate:.2f} s," if exact else "lasts"
    if max_duration_s is None:
        raise AudioError(f"{lasts} longer than {LONGEST_S / 3600:g} hours, the most that is read")
    raise AudioError(f"{lasts} longer than the model's window of {max_duration_s:g} s")


# --- libsndfile ----------------------------------------------------------------------------------


def _by_libsndfile(source: Source, max_duration_s: float | None) -> tuple[Waveform, int]:
    try:
        with _opened(source) as stream, _sound_file(stream) as file:
            stated = _stated_frames(stream, file)
            if stated is not None:
                _check_length(stated, file.samplerate, max_duration_s, exact=True)
            samples = _mono(_blocks(file), file.samplerate, max_duration_s)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        # Its full text names the address of a buffer, which differs from run to run.
        reason = error.error_string.rstrip(".")
        if error.code in UNKNOWN_FORMAT:
            raise _NotMine(reason) from error
        raise AudioError(f"cannot be decoded: {reason}") from error
    if stated is not None and len(samples) < stated - MISSING_S * rate:
        raise _cut_short(stated / rate, len(samples) / rate)
    return samples, rate


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    """Open bytes or a file, and refuse a file of which a part is missing."""
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
    if file.frames == UNKNOWN_LENGTH:
        raise _NotMine("does not say how long it is, as a FLAC written to a pipe; encode it again")
    if file.format == "MP3" and not _has_frame_count(stream):
        return None
    return int(file.frames)


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
            there = stream.seek(0, io.SEEK_END) - start
            if there < size < 0x7FFFF000:
                raise AudioError(f"is cut short: {there} of {size} bytes of samples are there")
            break
        stream.seek(start + size + size % 2)  # chunks begin at even places
    stream.seek(0)


def _cut_short(stated_s: float, found_s: float) -> AudioError:
    return AudioError(f"is cut short: {found_s:.2f} s of {stated_s:.2f} s are there")


# --- torchcodec ----------------------------------------------------------------------------------


def _by_torchcodec(source: Source, max_duration_s: float | None) -> tuple[Waveform, int]:
    decoder_class = _torchcodec_decoder()
    if decoder_class is None:
        raise _NotMine("")
    try:
        decoder = decoder_class(source if isinstance(source, bytes) else str(source))
        most_s = (max_duration_s or LONGEST_S) + 1
        found = decoder.get_samples_played_in_range(0.0, most_s)
    except (RuntimeError, ValueError) as error:
        raise _NotMine(f"torchcodec: {_first_line(str(error))}") from error
    return _mono([found.data.numpy().T], found.sample_rate, max_duration_s), found.sample_rate


@functools.cache
def _torchcodec_decoder() -> Callable[..., Any] | None:
    """Return torchcodec's decoder, or None where it is not installed or does not load."""
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):  # its wheel may not fit torch, or lack FFmpeg
        # Half a package would stay behind, which the datasets library takes for a whole one.
        sys.modules.pop("torchcodec", None)
        return None
    return AudioDecoder  # type: ignore[no-any-return]


# --- the program ffmpeg --------------------------------------------------------------------------


def _by_ffmpeg(source: Source, max_duration_s: float | None) -> tuple[Waveform, int]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise _NotMine(
            "for M4A, WebM and the like install the program ffmpeg (or a torchcodec that fits)"
        )
    with tempfile.TemporaryDirectory(prefix="distillery-") as folder:
        path = source if isinstance(source, Path) else Path(folder) / "clip"
        if isinstance(source, bytes):
            path.write_bytes(source)  # an M4A cannot be read from a pipe: its index is at the end
        with (Path(folder) / "errors").open("w+b") as errors:
            process = subprocess.Popen(
                _ffmpeg_command(program, path),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            watchdog = threading.Timer(FFMPEG_TIMEOUT_S, process.kill)
            watchdog.start()
            try:
                return _from_ffmpeg(process, errors, path, max_duration_s)
            finally:
                watchdog.cancel()
                process.kill()
                process.communicate()


def _ffmpeg_command(program: str, path: Path) -> list[str]:
    return [
        *(program, "-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1"),
        *("-xerror", "-err_detect", "crccheck+explode"),  # a damaged file is no clip
        *("-protocol_whitelist", "file", "-format_whitelist", FFMPEG_FORMATS),
        *("-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"),
    ]


def _from_ffmpeg(
    process: subprocess.Popen[bytes], errors: IO[bytes], path: Path, max_duration_s: float | None
) -> tuple[Waveform, int]:
    """Read an AU stream of floats; whatever was read counts only where the program ends well."""
    assert process.stdout is not None
    header = process.stdout.read(24)
    if len(header) == 24:
        _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
        process.stdout.read(offset - 24)
        samples = _mono(_au_blocks(process.stdout, channels), rate, max_duration_s)
    status = process.wait()
    if status < 0:
        raise AudioError(f"cannot be decoded: ffmpeg was stopped by signal {-status}")
    if status > 0 or len(header) < 24:
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").replace(f"file:{path}: ", "")
        raise _NotMine(f"ffmpeg: {_first_line(said) or f'exit status {status}'}")
    return samples, rate


def _au_blocks(stream: IO[bytes], channels: int) -> Iterator[NDArray[np.float32]]:
    frame_bytes = 4 * channels
    size = max(1, BLOCK_SAMPLES // channels) * frame_bytes
    while len(block := stream.read(size)) >= frame_bytes:
        whole = len(block) // frame_bytes * frame_bytes
        yield np.frombuffer(block[:whole], ">f4").astype(np.float32).reshape(-1, channels)


def _first_line(text: str) -> str:
    """Return where a report of errors begins, without addresses, which differ from run to run."""
    first = text.strip().partition("\n")[0]
    return re.sub(r"\[[^\]]* @ 0x[0-9a-f]+\] ", "", first).strip()
