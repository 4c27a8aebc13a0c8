import io
import itertools
import struct
import sys

import numpy as np
import pytest
import soundfile
import soxr
from child_memory import peak_mib
from datasets import Audio, Dataset
from tiny import SHARED, broken_av, broken_torchcodec, write_by_av

from distillery.audio import decoding, ffmpeg
from distillery.audio.decoding import AudioError, decode_at_own_rate, decode_audio, encode_flac

RATE = 16_000
MP3S = sorted((SHARED / "data" / "common_voice_zh_tw" / "audios").glob("*.mp3"))
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared absent")


@pytest.fixture(autouse=True)
def helper_of_its_own():
    """Let a test start its helper in its own environment."""
    yield
    for helper in vars(ffmpeg._thread).values():
        helper.stop()
    vars(ffmpeg._thread).clear()


def noise(num_samples, *channels, seed=0):
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal((num_samples, *channels))).astype(np.float32)


def tone(seconds, rate, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def encoded(samples, rate=RATE, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decoded(content, max_duration_s=None):
    return decode_audio({"bytes": content, "path": "clip"}, RATE, max_duration_s)


# --- libsndfile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_lossless_formats_give_the_samples(kind):
    wave = decoded(encoded(noise(1000), kind=kind))
    assert (wave.dtype, wave.shape) == (np.float32, (1000,))
    assert wave.flags.c_contiguous
    np.testing.assert_allclose(wave, noise(1000), atol=1 / 32768)


def test_float_samples_are_not_changed():
    np.testing.assert_array_equal(decoded(encoded(noise(1000), subtype="FLOAT")), noise(1000))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg(subtype):
    wave = decoded(encoded(tone(1, RATE), kind="OGG", subtype=subtype))
    assert wave.shape == (RATE,)
    assert np.corrcoef(wave, tone(1, RATE))[0, 1] > 0.95


def test_mp3():
    wave = decoded(encoded(tone(1, RATE), kind="MP3"))
    assert wave.shape == (RATE,)
    assert np.corrcoef(wave, tone(1, RATE))[0, 1] > 0.95


@needs_shared
def test_real_mp3s_from_bytes_and_from_paths():
    assert len(MP3S) == 8
    for path in MP3S:
        wave = decode_audio({"bytes": path.read_bytes(), "path": None}, RATE, 30.0)
        assert 1.0 < len(wave) / RATE < 15.0
        assert 0.01 < np.abs(wave).max() < 1.5
        np.testing.assert_array_equal(wave, decode_audio({"path": str(path)}, RATE))


@needs_shared
def test_real_flac():
    wave = decode_audio({"path": str(SHARED / "data" / "jfk.flac")}, RATE)
    assert len(wave) / RATE == pytest.approx(11.0, abs=0.01)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_averaged(channels):
    samples = noise(500, channels)
    wave = decoded(encoded(samples, subtype="FLOAT"))
    np.testing.assert_allclose(wave, samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 192_000])
def test_resampling_keeps_the_tone(rate):
    wave = decoded(encoded(tone(1, rate), rate))
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(RATE, abs=1)
    inner = slice(1000, 15_000)  # away from the edges, where filters ring
    np.testing.assert_allclose(wave[inner], tone(1, RATE)[inner], atol=1e-3)


def test_a_tone_that_the_new_rate_cannot_hold_is_filtered_out():
    wave = decoded(encoded(tone(1, 48_000, frequency=12_000), 48_000))
    assert np.abs(wave[1000:15_000]).max() < 1e-3


@pytest.mark.parametrize("name", ["clip.mp3", "clip.ogg", "clip.txt", "clip.raw", "clip"])
@pytest.mark.parametrize("kind", ["FLAC", "MP3", "OGG", "WAV"])
def test_a_wrong_extension_does_not_matter(tmp_path, name, kind):
    content = encoded(noise(4000), kind=kind)
    (tmp_path / name).write_bytes(content)
    found = decode_audio({"path": str(tmp_path / name)}, RATE)
    np.testing.assert_array_equal(found, decoded(content))
    assert found.shape == (4000,)


def claiming(flac, num_samples):
    """Return a FLAC file whose header names another number of samples (36 bits)."""
    changed = bytearray(flac)
    changed[21] = changed[21] & 0xF0 | num_samples >> 32
    changed[22:26] = struct.pack(">I", num_samples & 0xFFFFFFFF)
    return bytes(changed)


FLAC = encoded(noise(RATE), kind="FLAC")
FLIPPED = bytes([*FLAC[:9000], FLAC[9000] ^ 0xFF, *FLAC[9001:]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is an empty file"),
        (b"this is no audio", "cannot be decoded: Format not recognised"),
        (b"<html>" + b" " * 5000, "cannot be decoded"),
        (bytes(5000), "cannot be decoded"),
        (encoded(noise(0)), "holds no samples"),
        (encoded(noise(1), 48_000), "holds no samples"),  # none is left at 16 kHz
        (encoded(np.array([0, np.nan, 1]), subtype="FLOAT"), "holds NaN or infinite samples"),
        (encoded(np.array([0, np.inf, 1]), subtype="FLOAT"), "holds NaN or infinite samples"),
        (encoded(np.array([0, 1e300, 1]), subtype="DOUBLE"), "holds NaN or infinite samples"),
        (FLAC[:30], "cannot be decoded"),
        (FLAC[: len(FLAC) // 2], "cannot be decoded"),
        (FLAC[:-10], "cannot be decoded"),
        (FLIPPED, "cannot be decoded"),
        (claiming(FLAC, 2**36 - 1), "longer than 24 hours"),
        (claiming(FLAC, 2 * RATE), "cannot be decoded"),
    ],
    ids=itertools.count(),  # pytest would name the cases by their bytes
)
def test_unusable_content_is_named(content, reason):
    with pytest.raises(AudioError, match=reason) as error:
        decoded(content)
    assert " at 0x" not in str(error.value)


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (None, "has no audio"),
        ({}, "file not found: None"),
        ({"bytes": None, "path": ""}, "file not found"),
        ({"bytes": None, "path": "/no/such/clip.wav"}, "file not found: /no/such/clip.wav"),
        ({"bytes": None, "path": "/" + "x" * 5000}, "cannot be opened: File name too long"),
    ],
)
def test_missing_audio_is_named(audio, reason):
    with pytest.raises(AudioError, match=reason):
        decode_audio(audio, RATE)


def test_a_folder_is_not_a_clip(tmp_path):
    with pytest.raises(AudioError, match="file not found"):
        decode_audio({"path": str(tmp_path)}, RATE)


def test_raw_samples_without_a_header_are_named(tmp_path):
    (tmp_path / "clip.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match="cannot be decoded"):
        decode_audio({"path": str(tmp_path / "clip.raw")}, RATE)


def test_too_long_clips_are_refused_before_they_are_decoded():
    assert decoded(encoded(noise(4 * RATE)), 4.0).shape == (4 * RATE,)
    with pytest.raises(AudioError, match=r"lasts 4\.00 s, longer than the model's window of 4 s"):
        decoded(encoded(noise(4 * RATE + 1)), 4.0)
    with pytest.raises(AudioError, match=r"lasts 4294967\.30 s, longer"):
        decoded(claiming(FLAC, 2**36 - 1), 30.0)


@pytest.mark.parametrize("minutes", [1, 180])
def test_hours_of_silence_are_refused_by_the_header(minutes):
    silence = encoded(np.zeros(minutes * 60 * 1000, np.int16), 1000, kind="FLAC")
    with pytest.raises(AudioError, match=f"lasts {60 * minutes:.2f} s, longer"):
        decoded(silence, 30.0)


def test_without_a_limit_a_day_is_the_most():
    content = claiming(FLAC, 86_401 * RATE)
    with pytest.raises(AudioError, match=r"lasts 86401\.00 s, longer than 24 hours"):
        decoded(content)


def test_more_samples_than_a_block_are_joined(monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK_SAMPLES", 300)
    samples = noise(1000, 2)
    wave = decoded(encoded(samples, subtype="FLOAT"))
    np.testing.assert_allclose(wave, samples.mean(axis=1), atol=1e-7)


# --- files that are cut short --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
def test_pcm_of_which_a_part_is_missing(tmp_path, kind):
    content = encoded(noise(1000), kind=kind)
    assert decoded(content).shape == (1000,)
    for size in (len(content) - 1, len(content) // 2):
        (tmp_path / "clip").write_bytes(content[:size])
        for source in ({"bytes": content[:size]}, {"path": str(tmp_path / "clip")}):
            with pytest.raises(AudioError, match=r"is cut short: \d+ of 200\d bytes of samples"):
                decode_audio(source, RATE)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_written_to_a_pipe_is_whole(size):
    content = bytearray(encoded(noise(1000)))
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    assert decoded(bytes(content)).shape == (1000,)


def test_chunks_before_and_behind_the_samples_are_passed_over():
    content = encoded(noise(1000))
    at = content.index(b"data")
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    assert decoded(content[:at] + odd + content[at:] + odd).shape == (1000,)
    with pytest.raises(AudioError, match="is cut short"):
        decoded(content[:at] + odd + content[at:-100])


# 13 is where libsndfile's encoder has put the frame count of an MP3; ID3 comes before it.
MP3 = encoded(tone(4, RATE), kind="MP3")
TAG = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)


@pytest.mark.parametrize("tag", [b"", TAG])
def test_an_mp3_that_counts_its_frames_shows_where_it_was_cut(tag):
    assert b"Xing" in MP3[:40]
    assert decoded(tag + MP3, 4.0).shape == (4 * RATE,)
    with pytest.raises(AudioError, match=r"is cut short: [12]\.\d\d s of 4\.00 s are there"):
        decoded(tag + MP3[: len(MP3) // 2])
    with pytest.raises(AudioError, match=r"lasts 4\.00 s, longer"):
        decoded(tag + MP3, 3.0)


def test_an_mp3_without_a_count_is_measured_while_it_is_decoded():
    """Its first frames are silence, from which libsndfile estimates twice the real length."""
    quiet_then_loud = np.concatenate([np.zeros(5 * RATE), tone(4, RATE) * noise(4 * RATE)])
    counted = encoded(quiet_then_loud, kind="MP3")
    content = counted[counted.index(b"\xff\xf3", 4) :]  # its first frame holds the count
    assert b"Xing" not in content
    assert soundfile.info(io.BytesIO(content)).duration > 10
    assert len(decoded(content, 9.5)) == pytest.approx(9 * RATE, abs=2500)
    with pytest.raises(AudioError, match=r"lasts longer than the model's window of 4 s"):
        decoded(content, 4.0)


def test_a_nist_sphere_file():
    content = encoded(noise(RATE), kind="NIST")
    np.testing.assert_allclose(decoded(content), noise(RATE), atol=1 / 32768)
    with pytest.raises(AudioError, match=r"is cut short: 0\.48 s of 1\.00 s are there"):
        decoded(content[: len(content) // 2])


# --- FFmpeg --------------------------------------------------------------------------------------

FORMATS = {
    "clip.m4a": ("aac", "ipod"),
    "clip.mp4": ("aac", "mp4"),
    "clip.webm": ("libopus", "webm"),
    "clip.mka": ("flac", "matroska"),
    "clip.wma": ("wmav2", "asf"),
    "clip.aac": ("aac", "adts"),
}


def by_av(folder, samples, name, **options):
    faststart = {"movflags": "+faststart"} if name == "clip.mp4" else {}
    return write_by_av(folder / name, samples, *FORMATS[name], **faststart, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_what_libsndfile_does_not_know_is_read_by_ffmpeg(tmp_path, name):
    content = by_av(tmp_path, tone(1, RATE), name)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(io.BytesIO(content))
    wave = decoded(content, 30.0)
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(RATE, abs=1500)  # without an edit list, padding stays
    assert np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave) == pytest.approx(440, abs=2)
    (tmp_path / "clip.wav").write_bytes(content)  # a wrong extension
    np.testing.assert_array_equal(decode_audio({"path": str(tmp_path / "clip.wav")}, RATE), wave)


def test_no_program_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert decoded(by_av(tmp_path, tone(1, RATE), "clip.m4a")).shape == (RATE,)


def test_channels_and_rate_of_an_m4a(tmp_path):
    left = tone(1, RATE)
    content = by_av(tmp_path, np.stack([left, 0 * left], 1), "clip.m4a", rate=44_100)
    samples, rate = decode_at_own_rate({"bytes": content})
    assert (rate, len(samples)) == (44_100, 44_100)
    assert np.abs(samples[5000:-5000]).max() == pytest.approx(0.25, abs=0.02)


def test_a_flac_that_was_written_to_a_pipe():
    np.testing.assert_array_equal(decoded(claiming(FLAC, 0)), decoded(FLAC))
    with pytest.raises(AudioError, match="does not say how long it is; FFmpeg: "):
        decoded(claiming(FLAC, 0)[:9000])


def test_ffmpeg_stops_at_the_limit(tmp_path, monkeypatch):
    content = by_av(tmp_path, np.zeros(3600 * RATE // 4), "clip.m4a")
    num_read = []
    decode = ffmpeg.decode

    def counted(source):
        rate, blocks = decode(source)
        return rate, (num_read.append(len(block)) or block for block in blocks)

    monkeypatch.setattr(ffmpeg, "decode", counted)
    with pytest.raises(AudioError, match="lasts longer than the model's window of 30 s"):
        decoded(content, 30.0)
    assert 30 * RATE < sum(num_read) < 60 * RATE  # of 14 million samples
    assert decoded(by_av(tmp_path, tone(1, RATE), "clip.m4a")).shape == (RATE,)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_that_ffmpeg_finds(tmp_path, name):
    content = by_av(tmp_path, noise(RATE), name)
    broken = content[: len(content) // 2]
    with pytest.raises(AudioError, match="cannot be decoded: Format not recognised; FFmpeg: ") as e:
        decoded(broken)
    assert " 0x" not in str(e.value)
    assert str(tmp_path) not in str(e.value)


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{clip}\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile {clip}\n",
        b"<html>" + b" " * 5000,
        bytes(5000),
    ],
    ids=["a playlist", "a list of files", "a web page", "zeros"],
)
def test_ffmpeg_reads_audio_and_nothing_else(tmp_path, content):
    by_av(tmp_path, tone(1, RATE), "clip.aac")
    with pytest.raises(AudioError, match="cannot be decoded: Format not recognised; FFmpeg: "):
        decoded(content.replace(b"{clip}", bytes(tmp_path / "clip.aac")))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "FFmpeg: stopped by signal 9"),
        ("os.kill(os.getpid(), 11)", "FFmpeg: stopped by signal 11"),
        ("sys.exit(3)", "FFmpeg: exit status 3"),
        ("time.sleep(60)", "FFmpeg: not done after 1 s"),
    ],
)
def test_an_ffmpeg_that_crashes_or_hangs_costs_one_clip(tmp_path, monkeypatch, behaviour, reason):
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(broken_av(tmp_path, behaviour)))
        patch.setattr(ffmpeg, "TIMEOUT_S", 1)
        with pytest.raises(AudioError, match=reason):
            decoded(b"some format")
    assert decoded(by_av(tmp_path, tone(1, RATE), "clip.m4a")).shape == (RATE,)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("send('something broke')", "FFmpeg: something broke"),
        ("pass", "FFmpeg: exit status 0"),
        ("send(16000)", "FFmpeg: exit status 0"),
        ("send(16000); send(None)", "holds no samples"),
        ("send(0); send(numpy.zeros((9, 1))); send(None)", "rate of 0 Hz"),
    ],
)
def test_an_ffmpeg_that_fails_gives_a_reason(tmp_path, monkeypatch, behaviour, reason):
    program = tmp_path / "helper.py"
    program.write_text(
        "import sys, numpy\n"
        "from multiprocessing.connection import Connection\n"
        "connection = Connection(int(sys.argv[1]))\n"
        "connection.recv()\n"
        "send = connection.send\n"
        f"{behaviour}\n"
    )
    monkeypatch.setattr(ffmpeg, "__file__", str(program))
    with pytest.raises(AudioError, match=reason):
        decoded(b"some format")


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise ImportError('no libavutil')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AudioError, match=r"Format not recognised; .*no libavutil.*pip install av"):
        decoded(b"some format")


def test_a_helper_serves_many_clips_and_no_forked_process(tmp_path, monkeypatch):
    content = by_av(tmp_path, tone(1, RATE), "clip.m4a")
    decoded(content)
    first = ffmpeg._helper()
    with pytest.raises(AudioError, match="FFmpeg"):
        decoded(b"some format")
    decoded(content)
    assert ffmpeg._helper() is first
    monkeypatch.setattr(first, "owner", -1)
    decoded(content)
    assert ffmpeg._helper() is not first
    assert first.stop() == 0


# --- torchcodec, which nothing needs -------------------------------------------------------------


@pytest.mark.parametrize("error", ["OSError('no libavutil')", "RuntimeError('no')", "ImportError"])
@pytest.mark.parametrize("module", ["__init__", "decoders"])
def test_a_torchcodec_that_does_not_load_is_not_asked(tmp_path, monkeypatch, error, module):
    monkeypatch.syspath_prepend(broken_torchcodec(tmp_path, module, error))
    # The datasets library takes half a package for a whole one.
    monkeypatch.setattr("datasets.config.TORCHCODEC_AVAILABLE", True)
    rows = Dataset.from_list([{"id": "a", "audio": {"bytes": FLAC, "path": "a.flac"}}])
    rows = rows.cast_column("audio", Audio(decode=False)).map(lambda row: {"again": row["id"]})
    assert decode_audio(rows[0]["audio"], RATE).shape == (RATE,)
    assert "torchcodec" not in sys.modules


# --- memory --------------------------------------------------------------------------------------

DECODE = """
import sys
from distillery.audio.decoding import decode_audio
decode_audio({"bytes": None, "path": sys.argv[1]}, int(sys.argv[2]))
"""


def flac_of_minutes(path, minutes, minute, rate):
    with soundfile.SoundFile(path, "w", rate, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(minutes):
            file.write(minute)
    return path


def test_hours_of_silence_take_no_memory(tmp_path):
    path = flac_of_minutes(tmp_path / "a.flac", 240, np.zeros(60 * RATE, np.int16), RATE)
    assert path.stat().st_size < 1e6
    # An interpreter with NumPy takes some 40 MiB; the samples would be 879.
    assert peak_mib(DECODE, path, RATE) < 150


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_a_long_recording_is_held_once_at_the_rate_that_is_wanted(tmp_path, rate):
    minute = np.random.default_rng(0).integers(-99, 99, 60 * rate).astype(np.int16)
    path = flac_of_minutes(tmp_path / "a.flac", 30, minute, rate)
    # 110 MiB of samples at 16 kHz, and an interpreter of some 40; twice the samples are 220.
    assert peak_mib(DECODE, path, RATE) < 200


def test_blocks_are_resampled_as_if_they_were_one():
    samples = noise(3 * decoding.BLOCK_SAMPLES + 5)
    found = decode_audio({"bytes": encoded(samples, 44_100, subtype="FLOAT")}, RATE)
    np.testing.assert_array_equal(found, soxr.resample(samples, 44_100, RATE))


# --- clips that were cut out ---------------------------------------------------------------------


def test_flac_keeps_16_bits_exactly():
    whole = np.array([-32768, -32767, -1, 0, 1, 12345, 32766, 32767], dtype=np.int16)
    samples, rate = decode_at_own_rate({"bytes": encoded(whole, 44_100)})
    assert rate == 44_100
    again = encode_flac(samples, rate)
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(again), dtype="int16")[0], whole)
    assert soundfile.info(io.BytesIO(again)).samplerate == 44_100


def test_flac_rounds_finer_samples_and_clips_beyond_full_scale():
    fine = np.array([1.0, -1.5, 0.4 / 32768, 0.6 / 32768], dtype=np.float32)
    found = soundfile.read(io.BytesIO(encode_flac(fine, RATE)), dtype="int16")[0]
    np.testing.assert_array_equal(found, [32767, -32768, 0, 1])
