import io
import itertools
import struct

import librosa
import numpy as np
import pytest
import soundfile
import torch
from tiny import SHARED
from transformers import WhisperFeatureExtractor

from distillery.features import AudioError, LogMel, decode_audio

RATE = 16_000
MP3S = sorted((SHARED / "data" / "common_voice_zh_tw" / "audios").glob("*.mp3"))
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared absent")


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


# --- decoding ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["clip.mp3", "clip.ogg", "clip.txt", "clip"])
def test_a_wrong_extension_does_not_matter(tmp_path, name):
    (tmp_path / name).write_bytes(encoded(noise(1000), kind="FLAC"))
    assert decode_audio({"path": str(tmp_path / name)}, RATE).shape == (1000,)


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
        (claiming(FLAC, 0), "does not say how long it is"),
        (claiming(FLAC, 2**36 - 1), "cannot be decoded"),
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


# --- log-mel -------------------------------------------------------------------------------------

SHAPES = [(80, 30), (128, 30), (80, 4), (128, 5)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]} mels, {shape[1]} s")
def extractor(request):
    mels, window_s = request.param
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=window_s)


def clips(window):
    """Return clips of all kinds, by name, for a window of so many samples."""
    return {
        "one sample": noise(1),
        "100 samples": noise(100),
        "a second": noise(RATE),
        "no multiple of a frame": noise(12_345),
        "faint": noise(RATE) * np.float32(1e-6),
        "clipped": np.sign(noise(RATE)),
        "sound, then silence": np.concatenate([noise(4000), np.zeros(12_000, np.float32)]),
        "zeros": np.zeros(8000, np.float32),
        "one sample of zero": np.zeros(1, np.float32),
        "a transform less than the window": noise(window - 400),
        "half a transform less": noise(window - 200),
        "one sample less": noise(window - 1),
        "the window": noise(window),
        "more than the window": noise(window + 5000),
    }


def test_log_mel_equals_the_feature_extractor(extractor):
    log_mel = LogMel(extractor)
    for name, wave in clips(extractor.n_samples).items():
        expected = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features[0]
        found = log_mel([wave])[0]
        assert found.dtype == torch.float32
        # Measured: at most 1.2e-7, one unit in the last place.
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-7, msg=f"{name} differs")


def test_a_batch_is_its_clips(extractor):
    log_mel = LogMel(extractor)
    waves = [noise(100), noise(RATE, seed=1), noise(20_000, seed=2)]
    batch = log_mel(waves)
    assert batch.shape == (3, extractor.feature_size, extractor.nb_max_frames)
    for row, wave in zip(batch, waves, strict=True):
        assert torch.equal(row, log_mel([wave])[0])


def test_sizes_come_from_the_extractor(extractor):
    log_mel = LogMel(extractor)
    assert log_mel.window_s == extractor.chunk_length
    assert log_mel.num_mels == extractor.feature_size
    assert log_mel.num_frames == 100 * extractor.chunk_length


def test_stored_frames_and_padding_give_the_direct_result(extractor):
    log_mel = LogMel(extractor)
    for name, wave in clips(extractor.n_samples).items():
        frames = log_mel.real_frames(wave)
        direct = log_mel([wave])[0]
        assert torch.equal(log_mel.pad(frames), direct), name
        stored = frames.half().float()
        # Half precision between -1.5 and 2 rounds by at most 2**-11.
        torch.testing.assert_close(log_mel.pad(stored), direct, rtol=0, atol=2**-11 * 1.01)


def test_only_real_frames_are_stored():
    log_mel = LogMel(WhisperFeatureExtractor(chunk_length=30))
    assert log_mel.real_frames(noise(RATE)).shape == (80, 102)
    assert log_mel.real_frames(noise(30 * RATE)).shape == (80, 3000)


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_what_librosa_computes(mels):
    """Whisper's features by their definition, with another library's transform and filters."""
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=3)
    wave = noise(24_000)
    padded = np.pad(wave, (0, extractor.n_samples - len(wave)))
    power = np.abs(librosa.stft(padded, n_fft=400, hop_length=160, pad_mode="reflect")) ** 2
    bands = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=mels) @ power[:, :-1]
    decades = np.log10(np.maximum(bands, 1e-10))
    wanted = (np.maximum(decades, decades.max() - 8) + 4) / 4
    found = LogMel(extractor)([wave])[0].numpy()
    assert found.shape == wanted.shape == (mels, 300)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
