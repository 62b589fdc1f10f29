# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from jaxasa.acoustics import foa as ambisonics
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import foa_file


def wave(rate=SAMPLE_RATE):
    """A source at azimuth 90 degrees, elevation 0: W, Y, Z, X gains 1, 1, 0, 0."""
    x = 0.3 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)
    return x, np.stack([x, x, 0 * x, 0 * x], 1)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_ambix_is_read_unchanged(tmp_path, name):
    _, foa = wave()
    soundfile.write(tmp_path / name, foa, SAMPLE_RATE, subtype="PCM_24")
    got = foa_file.read_foa(tmp_path / name)
    assert got.dtype == np.float32 and np.abs(got - foa).max() < 1e-6


def test_other_rates_are_resampled(tmp_path):
    soundfile.write(tmp_path / "a.wav", wave(48_000)[1], 48_000, subtype="FLOAT")
    got = foa_file.read_foa(tmp_path / "a.wav")
    assert got.shape == (SAMPLE_RATE, 4) and np.abs(got - wave()[1])[100:-100].max() < 1e-3


def test_fuma_and_n3d_become_ambix(tmp_path):
    x, foa = wave()
    fuma = np.stack([x / 2**0.5, 0 * x, x, 0 * x], 1)  # W, X, Y, Z
    n3d = foa * [1, 3**0.5, 3**0.5, 3**0.5]
    for convention, samples in (("fuma", fuma), ("n3d", n3d)):
        soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
        assert np.abs(foa_file.read_foa(tmp_path / "a.wav", convention) - foa).max() < 1e-6
    with pytest.raises(ConfigError, match="acn"):
        foa_file.read_foa(tmp_path / "a.wav", "acn")


def test_bad_files_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "take 1.wav"
    with pytest.raises(ConfigError, match="take 1.wav: no such file"):
        foa_file.read_foa(path)
    cases = [
        (wave()[1][:, :2], "take 1.wav has 2 channels, expected 4"),
        (wave()[0], "has 1 channels"),
        (np.zeros((0, 4)), "take 1.wav: empty"),
        (np.full((100, 4), np.nan), "take 1.wav: not finite"),
    ]
    for samples, message in cases:
        soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
        with pytest.raises(ConfigError, match=message):
            foa_file.read_foa(path)
    path.write_bytes(b"RIFFjunk")
    with pytest.raises(ConfigError, match="take 1.wav: unreadable"):
        foa_file.read_foa(path)


def test_a_header_that_states_b_format_is_followed(tmp_path, capsys):
    x, foa = wave()
    path = tmp_path / "left.amb"
    fuma = np.stack([x / 2**0.5, 0 * x, x, 0 * x], 1)  # W, X, Y, Z
    soundfile.write(path, fuma, SAMPLE_RATE, format="WAVEX", subtype="FLOAT")
    plain = foa_file.read_foa(path)  # WAVEX alone states nothing
    content = bytearray(path.read_bytes())
    start = content.index(b"fmt ") + 8
    content[start + 20 : start + 24] = bytes(4)  # no loudspeakers
    content[start + 24 : start + 40] = bytes.fromhex("030000002107d3118644c8c1ca000000")
    path.write_bytes(content)
    for convention in (None, "fuma"):
        assert np.abs(foa_file.read_foa(path, convention) - foa).max() < 1e-6
    assert not capsys.readouterr().err
    np.testing.assert_array_equal(foa_file.read_foa(path, "ambix"), plain)
    assert "left.amb: the header states B-format" in capsys.readouterr().err


def _direction(audio):
    return ambisonics.cartesian_to_azel(ambisonics.intensity(audio.astype(float)))


@pytest.mark.parametrize("peak", [0.1, 1e-3, 1e-4, 3e-5, 1e-5, 1e-9])
def test_rounding_keeps_the_direction_at_any_level(peak):
    source = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    audio = source[:, None] * ambisonics.encode(40.0, 20.0)
    audio = (audio * peak / np.abs(audio).max()).astype(np.float32)
    rounded = foa_file.to_int16(audio)
    np.testing.assert_allclose(_direction(rounded), (40, 20), atol=0.5)
    processing = pytest.importorskip("jaxasa.hf.torch.processing_jaxasa")
    (clip,) = processing.JaxasaProcessor._audio(
        SimpleNamespace(channels=4, _scaled=processing.JaxasaProcessor._scaled), [audio], 1
    )
    np.testing.assert_array_equal(np.rint(clip.numpy() * 32767), rounded)


@pytest.mark.parametrize("full_scale", [32767, 32768])
def test_rounding_keeps_recordings_of_16_bits(full_scale):
    rng = np.random.default_rng(0)
    for steps in (1, 3, 100, 300, 32767):
        samples = rng.integers(-steps, steps + 1, (1000, 4))
        audio = (samples / full_scale).astype(np.float32)
        expected = np.rint(audio * 32767)
        np.testing.assert_array_equal(foa_file.to_int16(audio), expected)
    assert not foa_file.to_int16(np.zeros((100, 4), np.float32)).any()
