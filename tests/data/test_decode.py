# SPDX-License-Identifier: Apache-2.0
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import decode, foa_file
from jaxasa.data.decode import LOUDNESS_DBFS, UnusableSound, read_mono, resample, split_into_clips


def tone(seconds, frequency=440.0, rate=SAMPLE_RATE):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def test_read_mixes_down_and_resamples(tmp_path):
    x = tone(1, rate=44100)
    soundfile.write(tmp_path / "a.wav", np.stack([0.8 * x, 0 * x], 1), 44100, subtype="FLOAT")
    got = read_mono(tmp_path / "a.wav")
    assert got.dtype == np.float32 and got.shape == (SAMPLE_RATE,)
    assert np.abs(got - 0.4 * tone(1))[200:-200].max() < 2e-3


def test_read_accepts_the_bytes_of_a_file():
    out = io.BytesIO()
    soundfile.write(out, tone(0.5) * 0.5, SAMPLE_RATE, format="FLAC")
    assert np.abs(read_mono(out.getvalue()) - 0.5 * tone(0.5)).max() < 1e-4


@pytest.mark.parametrize("content", [b"RIFF not a sound", b"", None])
def test_unreadable_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableSound, match="unreadable"):
        read_mono(path)


def test_a_file_without_a_format_is_refused(tmp_path):
    """soundfile asks for a rate; a bank goes on without the file."""
    path = tmp_path / "headerless.raw"
    path.write_bytes(bytes(3200))
    with pytest.raises(UnusableSound, match="unreadable"):
        read_mono(path)


def test_a_sample_rate_of_zero_is_refused(tmp_path):
    path = tmp_path / "zero.wav"
    soundfile.write(path, tone(0.5), SAMPLE_RATE)
    content = bytearray(path.read_bytes())
    at = content.index(b"fmt ") + 12
    content[at : at + 4] = bytes(4)
    path.write_bytes(bytes(content))
    with pytest.raises(UnusableSound, match="sample rate 0"):
        read_mono(path)
    for rate in (0, -16000):
        with pytest.raises(ConfigError, match=f"sample rate is {rate}, expected hertz above 0"):
            resample(np.zeros(9, np.float32), rate)


def test_files_that_libsndfile_cannot_read_go_to_system_decoders(tmp_path, monkeypatch):
    stereo = np.stack([tone(0.5), 0 * tone(0.5)]).astype(np.float32)

    def load(path, sr, mono, dtype):
        if path.name == "bad.m4a":
            raise EOFError
        return stereo, SAMPLE_RATE

    monkeypatch.setitem(sys.modules, "librosa", SimpleNamespace(load=load))
    for name in ("good.m4a", "bad.m4a"):
        (tmp_path / name).write_bytes(b"an AAC stream")
    np.testing.assert_allclose(read_mono(tmp_path / "good.m4a"), 0.5 * stereo[0])
    with pytest.raises(UnusableSound, match="unreadable"):
        read_mono(tmp_path / "bad.m4a")


def test_clipped_recordings_are_refused_at_any_level(tmp_path):
    rng = np.random.default_rng(0)
    loud = 0.1 * np.convolve(rng.standard_normal(SAMPLE_RATE + 8), np.ones(9), "valid")  # 0.3 RMS
    for scale in (1.0, 0.3):
        cut = scale * np.clip(loud, -0.6, 0.6)  # 2.3 % lie on each side beyond two deviations
        soundfile.write(tmp_path / "cut.wav", np.stack([0 * cut, cut], 1), SAMPLE_RATE)
        with pytest.raises(UnusableSound, match="clipped"):
            read_mono(tmp_path / "cut.wav")
    # Full scale alone is no fault, nor a few samples, nor the steps of a soft sine.
    few = np.clip(loud, -0.9, 0.9)
    for wave in (loud / np.abs(loud).max(), tone(1), tone(1, 50), 0.005 * tone(1, 50), few):
        soundfile.write(tmp_path / "whole.wav", wave, SAMPLE_RATE)
        assert len(read_mono(tmp_path / "whole.wav")) == SAMPLE_RATE


def test_inverted_channels_do_not_cancel(tmp_path):
    x = 0.5 * tone(1)
    soundfile.write(tmp_path / "a.wav", np.stack([x, -0.9 * x], 1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_mono(tmp_path / "a.wav"), x, atol=1e-6)
    soundfile.write(
        tmp_path / "b.wav", np.stack([x, 0 * x, 0 * x], 1), SAMPLE_RATE, subtype="FLOAT"
    )
    np.testing.assert_allclose(read_mono(tmp_path / "b.wav"), x / 3, atol=1e-6)


def test_empty_and_not_finite_are_refused(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    with pytest.raises(UnusableSound, match="empty"):
        read_mono(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(9000, np.nan), SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(UnusableSound, match="finite"):
        read_mono(tmp_path / "nan.wav")


def test_silence_at_the_edges_and_dc_are_removed():
    x = np.concatenate([np.zeros(8000), 0.5 * tone(1), np.zeros(8000)]) + 0.2
    (clip,) = split_into_clips(x.astype(np.float32), 4.0)
    # An offset that starts with the file rings for some frames in the high-pass.
    assert SAMPLE_RATE <= len(clip) <= SAMPLE_RATE + 0.35 * SAMPLE_RATE
    assert abs(clip.mean()) < 2e-3


def test_quiet_onset_is_not_shifted():
    x = np.concatenate([np.zeros(8000), 0.5 * tone(1), np.zeros(8000)]).astype(np.float32)
    (clip,) = split_into_clips(x, 4.0)
    assert abs(len(clip) - SAMPLE_RATE) <= 320


@pytest.mark.parametrize("gain", [1e-3, 0.05, 1.0])
def test_active_frames_have_one_loudness(gain):
    x = np.concatenate([tone(0.5), np.zeros(SAMPLE_RATE), tone(0.5)]).astype(np.float32)
    (clip,) = split_into_clips(gain * x, 4.0)
    rms = np.sqrt(np.mean(np.concatenate([clip[400:7600], clip[-7600:-400]]) ** 2))
    assert 20 * np.log10(rms) == pytest.approx(LOUDNESS_DBFS, abs=0.5)


def test_peak_is_limited():
    x = 0.02 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    x[4000::4000] = 1.0
    (clip,) = split_into_clips(x.astype(np.float32), 4.0)
    assert 0.9 < np.abs(clip).max() <= 0.9501


def test_long_recordings_give_at_most_six_evenly_spread_clips():
    rng = np.random.default_rng(0)
    sections = [tone(1, 200 + 100 * k) + 0.01 * rng.standard_normal(SAMPLE_RATE) for k in range(20)]
    clips = split_into_clips(np.concatenate(sections).astype(np.float32), 1.0)
    assert len(clips) == 6
    pitches = [np.abs(np.fft.rfft(clip, SAMPLE_RATE)).argmax() for clip in clips]
    assert abs(pitches[0] - 200) < 5 and abs(pitches[-1] - 2100) < 5
    assert all(len(clip) <= SAMPLE_RATE for clip in clips)


def test_a_short_remainder_is_not_a_clip():
    x = tone(4.5).astype(np.float32)
    assert [len(c) for c in split_into_clips(x, 4.0)] == [4 * SAMPLE_RATE]
    assert len(split_into_clips(tone(5.5).astype(np.float32), 4.0)) == 2


@pytest.mark.parametrize(
    "x, reason", [(np.zeros(SAMPLE_RATE), "silent"), (np.zeros(0), "silent"), (tone(0.1), "0.15")]
)
def test_silent_and_short_are_refused(x, reason):
    with pytest.raises(UnusableSound, match=reason):
        split_into_clips(x.astype(np.float32), 4.0)


def flac_of_unknown_length(path, samples):
    """A FLAC file as encoders write it to a pipe: neither its length nor its checksum is stated."""
    soundfile.write(path, samples, SAMPLE_RATE, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    path.write_bytes(content)


@pytest.mark.parametrize("block", [3000, 4000, 2**20])
def test_a_file_of_unknown_length_is_read_to_its_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(decode, "_BLOCK", block)
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (8000, 4))
    soundfile.write(tmp_path / "good.flac", samples, SAMPLE_RATE)
    flac_of_unknown_length(tmp_path / "pipe.flac", samples)
    expected, _ = decode.decode_audio(tmp_path / "good.flac")
    for source in (tmp_path / "pipe.flac", (tmp_path / "pipe.flac").read_bytes()):
        np.testing.assert_array_equal(decode.decode_audio(source)[0], expected)
    assert foa_file.duration_s(tmp_path / "pipe.flac") == 0.5
