import pickle

import librosa
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from distillery.audio.log_mel import LogMel

RATE = 16_000


def noise(num_samples, *channels, seed=0):
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal((num_samples, *channels))).astype(np.float32)


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


def test_a_batch_in_one_pass_is_its_clips_one_by_one(extractor):
    log_mel = LogMel(extractor)
    waves = [
        torch.from_numpy(each[: extractor.n_samples])
        for each in clips(extractor.n_samples).values()
    ]
    by_length = sorted(waves, key=len)
    for some in (by_length[:4], by_length):  # all far from the window's end, or up to it
        padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        found = log_mel.of_batch(padded)
        assert found.shape == (len(some), extractor.feature_size, extractor.nb_max_frames)
        wanted = log_mel([wave.numpy() for wave in some])
        # As far from the feature extractor's as those one by one may be.
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-7)


def test_other_processes_are_sent_nothing_of_a_gpu(extractor):
    log_mel = LogMel(extractor)
    log_mel._on[torch.device("meta")] = (torch.empty(1, device="meta"),) * 2
    sent = pickle.loads(pickle.dumps(log_mel))  # noqa: S301
    assert list(sent._on) == [torch.device("cpu")]
    assert torch.equal(sent([noise(RATE)]), log_mel([noise(RATE)]))


def test_a_named_device_makes_the_same_and_is_not_waited_for(extractor, monkeypatch):
    log_mel = LogMel(extractor)
    for name, wave in clips(extractor.n_samples).items():
        direct = log_mel([wave])

        def wait(*values):
            raise AssertionError("a number was fetched from the device")

        with monkeypatch.context() as patched:
            for method in ("__float__", "item", "tolist", "numpy", "cpu"):
                patched.setattr(torch.Tensor, method, wait)
            found = log_mel([wave], torch.device("cpu"))
        assert torch.equal(found, direct), name


def test_the_padding_is_the_silence_that_was_computed_before(extractor):
    log_mel = LogMel(extractor)
    for name, wave in clips(extractor.n_samples).items():
        frames = log_mel.real_frames(wave)
        silence = max(-1.5, float(frames.max()) - 2.0)
        width = log_mel.num_frames - frames.shape[-1]
        expected = torch.nn.functional.pad(frames, (0, width), value=silence)
        assert torch.equal(log_mel.pad(frames), expected), name


def test_a_gpu_gets_pinned_samples_and_is_not_waited_for(extractor, monkeypatch):
    """No GPU is at hand: what would be copied to one is caught on its way."""
    pinned, copies = [], []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)

    def caught(self, device, *, non_blocking):
        copies.append((device, non_blocking))
        return to(self, "cpu")

    monkeypatch.setattr(torch.Tensor, "to", caught)
    log_mel = LogMel(extractor)
    wave = noise(RATE)
    found = log_mel([wave], "cuda")
    assert [len(samples) for samples in pinned] == [RATE]
    assert copies == [("cuda", True)]
    monkeypatch.undo()
    assert torch.equal(found, log_mel([wave]))


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
