# SPDX-License-Identifier: Apache-2.0
"""SOFA files written by sofar, of a sphere whose HRTF is known in every direction."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxasa.acoustics import hrtf, rooms, sofa
from jaxasa.acoustics.load_hrtf import load_hrtf
from jaxasa.acoustics.sphere_hrtf import (
    EAR_AZIMUTH,
    HEAD_RADIUS,
    SphereHrtf,
    sphere_transfer_function,
)
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE

sofar = pytest.importorskip("sofar")

A, C = HEAD_RADIUS, rooms.SPEED_OF_SOUND
FLIGHT = 1.4 / C  # seconds from the loudspeaker to the head's centre
EARS = np.radians([EAR_AZIMUTH, -EAR_AZIMUTH])


def _directions(step: int = 15) -> np.ndarray:
    """Azimuth, elevation in degrees: rings from -45 to 75 degrees, and the zenith."""
    rings = [(a, e) for e in range(-45, 90, step) for a in range(0, 360, step)]
    return np.array([*rings, (0, 90)], float)


def _unit(directions) -> np.ndarray:
    a, e = np.radians(np.asarray(directions, float)).T
    return np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], axis=1)


def _exact(unit, frequency) -> np.ndarray:
    """The sphere's plane-wave HRTF [N, 2, F]."""
    ears = np.stack([np.cos(EARS), np.sin(EARS), np.zeros(2)], axis=1)
    theta = np.arccos(np.clip(unit @ ears.T, -1, 1))
    mu = 2 * np.pi * frequency * A / C
    return sphere_transfer_function(np.inf, mu, theta.ravel()).reshape(*theta.shape, -1)


def _responses(unit, rate: float, samples: int = 512) -> np.ndarray:
    frequency = np.fft.rfftfreq(samples, 1 / rate)
    spectrum = np.ones((len(unit), 2, len(frequency)), complex)
    spectrum[..., 1:] = _exact(unit, frequency[1:])
    # The band limit of a measurement system keeps the impulse response short.
    spectrum *= np.exp(-2j * np.pi * frequency * FLIGHT) / (1 + (frequency / 0.42 / rate) ** 32)
    return np.fft.irfft(spectrum, samples)


def _sofa(path, rate=44_100.0, **changes):
    directions = _directions()
    file = sofar.Sofa("SimpleFreeFieldHRIR")
    file.Data_IR = _responses(_unit(directions), rate)
    file.Data_SamplingRate = rate
    file.Data_Delay = np.zeros((1, 2))
    file.SourcePosition = np.column_stack([directions % 360, np.full(len(directions), 1.4)])
    file.SourcePosition_Type, file.SourcePosition_Units = "spherical", "degree, degree, metre"
    file.ReceiverPosition = np.array([[0, 0.09, 0], [0, -0.09, 0]])
    for name, value in changes.items():
        setattr(file, name, value)
    file.verify(issue_handling="ignore")
    sofar.write_sofa(str(path), file)
    return str(path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return load_hrtf(_sofa(tmp_path_factory.mktemp("sofa") / "sphere.sofa"))


BANDS = ((150, 300), (300, 600), (600, 1200), (1200, 2400), (2400, 4800), (4800, 7000))


def _errors(head, directions, bands=BANDS):
    """Max. errors of level difference (dB) and interaural delay (s) over directions and bands."""
    unit = _unit(directions)
    size = 1024
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    actual = hrtf.hrtf_spectrum(head, unit, size)
    level, delay = 0.0, 0.0
    for low, high in bands:
        use = (frequency >= low) & (frequency < high)
        pair = actual[..., use], _exact(unit, frequency[use])
        ratio = [10 * np.log10((np.abs(h) ** 2).sum(-1)) @ [1, -1] for h in pair]
        level = max(level, float(np.abs(ratio[0] - ratio[1]).max()))
        cross = [h[:, 0] * h[:, 1].conj() for h in pair]
        lag = np.angle((cross[0] * cross[1].conj()).sum(-1)) / (2 * np.pi * (low + high) / 2)
        delay = max(delay, float(np.abs(lag).max()))
    return level, delay


def test_measured_directions_are_reproduced(measured):
    level, delay = _errors(measured, _directions())
    assert level < 0.2 and delay < 2e-6


def test_other_directions_are_interpolated(measured):
    """Measured every 15 degrees, evaluated between grid points, also where the shadow is steep."""
    between = [d for d in _directions()[:-1] + [7.5, 7.5] if d[1] < 75]
    level, delay = _errors(measured, between, BANDS[:4])
    assert level < 1.0 and delay < 20e-6
    level, delay = _errors(measured, between)
    assert level < 4 and delay < 40e-6
    below = measured.filters([[0.1, 0.2, -3.0]])
    assert np.isfinite(below[0]).all() and np.abs(below[1]).max() < 8


def test_delay_and_level_of_the_measurement_are_removed(measured):
    taps, delay = measured.filters(hrtf.sphere_nodes(6)[0])
    exact, expected = SphereHrtf().filters(hrtf.sphere_nodes(6)[0])
    # Delays of the sphere average 9 microseconds: low frequencies are slower than rays.
    arrival = [_centre(t) + d for t, d in ((taps, delay), (exact, expected))]
    assert np.mean(arrival[0]) == pytest.approx(np.mean(arrival[1]), abs=1.5)
    # One gain for all: the spectrum is not equalised.
    power = [np.abs(hrtf.diffuse_field(head, 512)[0, 0]) for head in (measured, SphereHrtf())]
    difference = 10 * np.log10(power[0][5:220] / power[1][5:220])
    assert np.ptp(difference) < 0.6 and abs(np.mean(difference)) < 3


def _centre(taps):
    energy = taps.astype(float) ** 2
    return (energy * (np.arange(taps.shape[-1]) - hrtf.PRE_TAPS)).sum(-1) / energy.sum(-1)


@pytest.mark.parametrize("rate", [16_000.0, 48_000.0])
def test_other_sample_rates_are_resampled(tmp_path, rate):
    level, delay = _errors(load_hrtf(_sofa(tmp_path / "x.sofa", rate)), _directions()[::7])
    # A file at 16 kHz has a band limit of its own.
    assert level < 0.3 and delay < 3e-6


def test_equivalent_files_give_the_same_hrtf(tmp_path, measured):
    directions = _directions()
    unit, responses = _unit(directions), _responses(_unit(directions), 44_100.0)
    delay = np.tile([[20.0, 20.0]], (len(unit), 1))
    files = [
        {"SourcePosition": 1.4 * unit, "SourcePosition_Type": "cartesian"}
        | {"SourcePosition_Units": "metre"},
        # The right ear first, as given by ReceiverPosition.
        {"Data_IR": responses[:, ::-1], "ReceiverPosition": np.array([[0, -1, 0], [0, 1, 0]])},
        {"Data_Delay": delay, "Data_IR": np.roll(responses, -20, axis=-1)},
    ]
    where = 2.0 * _unit(directions[::5])
    expected = hrtf.hrtf_spectrum(measured, where, 512)
    for i, changes in enumerate(files):
        head = load_hrtf(_sofa(tmp_path / f"{i}.sofa", **changes))
        np.testing.assert_allclose(hrtf.hrtf_spectrum(head, where, 512), expected, atol=0.06)


def test_name_identifies_the_content(tmp_path, measured):
    again = load_hrtf(_sofa(tmp_path / "sphere.sofa", 48_000.0))
    assert again.name.startswith("sphere.sofa (") and again.name != measured.name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Data_IR": np.full((217, 2, 64), np.nan)}, "not finite"),
        ({"Data_IR": np.zeros((217, 2, 64))}, "silent"),
        ({"ListenerView": [[0, 1, 0]]}, "ListenerView"),
        ({"ListenerUp": [[0, 1, 0]]}, "ListenerUp"),
        ({"Data_SamplingRate": 1.0}, "Data.SamplingRate"),
    ],
    ids=["nan", "silent", "view", "up", "rate"],
)
def test_damaged_contents_raise(tmp_path, changes, words):
    assert len(_directions()) == 217
    path = _sofa(tmp_path / "bad.sofa", **changes)
    with pytest.raises(ConfigError, match=words) as raised:
        load_hrtf(path)
    assert "bad.sofa" in str(raised.value) and "\n" not in str(raised.value)


def test_horizontal_ring_raises(tmp_path):
    ring = np.array([(a, 0.0) for a in range(0, 360, 15)])
    position = np.column_stack([ring, np.full(24, 1.4)])
    data = _responses(_unit(ring), 44_100.0)
    path = _sofa(tmp_path / "ring.sofa", Data_IR=data, SourcePosition=position)
    with pytest.raises(ConfigError, match=r"ring\.sofa.*all around the head"):
        load_hrtf(path)


def test_other_conventions_raise(tmp_path):
    file = sofar.Sofa("GeneralFIR")
    sofar.write_sofa(str(tmp_path / "room.sofa"), file)
    with pytest.raises(ConfigError, match=r"room\.sofa.*GeneralFIR.*SimpleFreeFieldHRIR"):
        load_hrtf(str(tmp_path / "room.sofa"))
    file = sofar.Sofa("SimpleFreeFieldHRTF")
    sofar.write_sofa(str(tmp_path / "spectra.sofa"), file)
    with pytest.raises(ConfigError, match="SimpleFreeFieldHRTF"):
        load_hrtf(str(tmp_path / "spectra.sofa"))


@pytest.mark.parametrize("content", [b"", b"no SOFA", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_other_files_raise(tmp_path, content):
    path = tmp_path / "none.sofa"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"none\.sofa"):
        load_hrtf(str(path))


def test_one_ear_raises(tmp_path):
    directions = _directions()
    path = _sofa(
        tmp_path / "mono.sofa",
        Data_IR=_responses(_unit(directions), 44_100.0)[:, :1],
        Data_Delay=np.zeros((1, 1)),
        ReceiverPosition=np.array([[0, 0.09, 0]]),
    )
    with pytest.raises(ConfigError, match=r"mono\.sofa.*2 ears"):
        load_hrtf(path)


def test_ears_are_taken_as_the_data_have_them(tmp_path, measured, capsys):
    swapped = np.array([[0, -0.09, 0], [0, 0.09, 0]])
    head = load_hrtf(_sofa(tmp_path / "swapped.sofa", ReceiverPosition=swapped))
    assert "swapped.sofa: ReceiverPosition has the right ear first" in capsys.readouterr().err
    np.testing.assert_array_equal(head.filters([[0, 3, 0]])[0], measured.filters([[0, 3, 0]])[0])
    load_hrtf(_sofa(tmp_path / "good.sofa"))
    assert not capsys.readouterr().err


def _file(**fields):
    """What sofar reads from a file, with some fields changed or, if None, absent."""
    unit = _unit(_directions())
    file = {
        "GLOBAL_SOFAConventions": sofa.CONVENTION,
        "Data_IR": _responses(unit, 44_100.0),
        "Data_SamplingRate": 44_100.0,
        "SourcePosition": unit,
        "ListenerPosition": [[0, 0, 0]],
        "ListenerView": [[0, 0, 1]],
        "ListenerView_Type": "spherical",
        "ListenerUp": [[0, 0, 1]],
        "ReceiverPosition": [[0, 0.09, 0], [0, -0.09, 0]],
    } | fields
    return SimpleNamespace(**{name: value for name, value in file.items() if value is not None})


def test_the_pose_may_lack_the_upward_axis_or_have_two_types():
    for fields in ({"ListenerUp": None}, {"ListenerUp_Type": "cartesian"}):
        source, *_ = sofa._contents(_file(**fields), "x.sofa")
        np.testing.assert_array_equal(source, _unit(_directions()))
    radians = {"SourcePosition_Type": "spherical", "SourcePosition_Units": "radian, radian, metre"}
    with pytest.raises(ConfigError, match="Units of SourcePosition is .*radian.*degree"):
        sofa._contents(_file(**radians), "x.sofa")
