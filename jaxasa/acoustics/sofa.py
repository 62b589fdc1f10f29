# SPDX-License-Identifier: Apache-2.0
"""Measured HRTFs from SOFA files (AES69), through the `sofar` package (pip install jaxasa[sofa]).

Only the convention SimpleFreeFieldHRIR is read: impulse responses of two ears, measured without
a room from directions all around. Each response is brought to 16 kHz; its delay is found by
correlating it with its own minimum-phase version (Nam, Abel and Smith 2008) and taken out; the
filters and delays of other directions are interpolated among the three measured directions
around them, with the barycentric weights of the triangle that the direction passes through. At
a measured direction this gives the measured response back.

A file's level and its time of flight are those of the laboratory. They are put on the scale of
hrtf.Hrtf by one gain and one delay for all: power in a diffuse field 1, as the mean in dB of the
octaves from 250 Hz to 4 kHz and of both ears; mean delay over directions zero. The file's
colour is kept, a loudspeaker's or an ear canal's too where nobody has equalised them.

    from jaxasa.acoustics import hrtf
    kemar = hrtf.load("MIT_KEMAR_normal_pinna.sofa")
    taps, delay = kemar.at([[0.0, 1.5, 0.0]])
"""

import contextlib
import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import scipy.spatial
import soxr

from jaxasa.acoustics import hrtf
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE

CONVENTION = "SimpleFreeFieldHRIR"
_SIZE = 1024
_LONGEST = 256  # samples at 16 kHz: the rest of longer responses is cut
_FINE = 8  # fractions of a sample that delays are first found in


def read_sofa(path: Path | str) -> "MeasuredHrtf":
    """Returns the HRTF of a SOFA file; raises ConfigError, naming the file, for any other."""
    path = Path(path)
    check(path.is_file(), "HRTF", str(path), '"sphere" or a SOFA file')
    try:
        import sofar
    except ImportError:
        expected = "the package that reads it: pip install jaxasa[sofa]"
        raise ConfigError(f"HRTF is {str(path)!r}, expected {expected}") from None
    try:
        # sofar prints and warns of every field that an older convention wrote otherwise.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            file = sofar.read_sofa(str(path), verify=False, verbose=False)
    except Exception as error:  # netCDF, HDF5 and sofar each raise their own
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: {problem}, expected a SOFA file") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return MeasuredHrtf(f"{path.name} ({digest})", *_contents(file, str(path)))


def _contents(file, path: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Returns directions [N, 3], responses [N, 2, n], their rate (Hz) and delays [N, 2]."""
    convention = getattr(file, "GLOBAL_SOFAConventions", None)
    check(convention == CONVENTION, f"{path}: SOFAConventions", convention, CONVENTION)
    responses = np.asarray(getattr(file, "Data_IR", np.nan), float)
    shape = responses.shape
    ok = responses.ndim == 3 and shape[1] == 2 and 0 not in shape
    check(ok, f"{path}: shape of Data.IR", shape, "directions x 2 ears x samples")
    check(np.isfinite(responses).all(), f"{path}: Data.IR", "not finite", "finite samples")
    silent = bool((responses == 0).all(axis=2).any())
    check(not silent, f"{path}: Data.IR", "silent in some direction", "responses")
    rate = np.asarray(getattr(file, "Data_SamplingRate", np.nan), float).ravel()
    ok = rate.size > 0 and bool((rate == rate[0]).all()) and 8000 <= rate[0] <= 400_000
    check(ok, f"{path}: Data.SamplingRate", rate[:3].tolist(), "one rate, 8 to 400 kHz")
    source = _cartesian(file, "SourcePosition", path)
    check(len(source) == shape[0], f"{path}: rows of SourcePosition", len(source), str(shape[0]))
    view, up = (_cartesian(file, name, path, "ListenerView") for name in _POSE)
    # A listener placed otherwise would need turning: files of this convention look along x.
    for name, found, axis in (("ListenerView", view, 0), ("ListenerUp", up, 2)):
        unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        ok = bool((unit[:, axis] > 0.999).all())
        check(ok, f"{path}: {name}", found[0].tolist(), f"along {'xyz'[axis]}")
    source = source - _cartesian(file, "ListenerPosition", path)
    delay = np.asarray(getattr(file, "Data_Delay", 0.0), float)
    try:
        delay = np.broadcast_to(delay, shape[:2])
    except ValueError:
        expected = f"{shape[0]} x 2 or 1 x 2"
        raise ConfigError(f"{path}: shape of Data.Delay is {delay.shape}, {expected}") from None
    ears = _cartesian(file, "ReceiverPosition", path)
    check(len(ears) == 2, f"{path}: rows of ReceiverPosition", len(ears), "2")
    if ears[0, 1] < ears[1, 1]:  # y points to the left
        responses, delay = responses[:, ::-1], delay[:, ::-1]
    return source, responses, float(rate[0]), delay


_POSE = ("ListenerView", "ListenerUp")


def _cartesian(file, name: str, path: str, typed: str | None = None) -> np.ndarray:
    """Returns a position of the file as [N, 3] in metres, x front, y left, z up."""
    value = np.asarray(getattr(file, name, np.nan), float)
    if value.ndim == 3:
        value = value[..., 0]
    ok = value.ndim == 2 and value.shape[1] == 3 and np.isfinite(value).all()
    check(bool(ok), f"{path}: shape of {name}", value.shape, "N x 3 finite numbers")
    kind = str(getattr(file, f"{typed or name}_Type", "cartesian"))
    if kind != "spherical":
        return value
    azimuth, elevation = np.radians(value[:, 0]), np.radians(value[:, 1])
    flat = np.cos(elevation)
    unit = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    return unit * value[:, 2:]


class MeasuredHrtf:
    """An HRTF measured in some directions.

    source [N, 3]: positions (m) around the head. responses [N, 2, n] at `rate` Hz, left ear
    first, delay [N, 2]: samples at `rate` to add. Raises ConfigError where the directions do not
    surround the head.
    """

    def __init__(self, name: str, source, responses, rate: float, delay):
        self.name = name
        distance = np.linalg.norm(source, axis=1)
        check(bool((distance > 0).all()), f"{name}: SourcePosition", "zero", "directions")
        unit, first = np.unique(np.round(source / distance[:, None], 6), axis=0, return_index=True)
        try:
            hull = scipy.spatial.ConvexHull(unit)
            around = bool((hull.equations[:, 3] < -0.1).all())
        except (scipy.spatial.QhullError, ValueError):
            around = False
        expected = "directions all around the head"
        check(around, f"{name}: SourcePosition", f"{len(unit)} directions", expected)
        self._corners = hull.simplices
        # Of each corner: a vector whose product with a direction is the corner's weight.
        self._solve = (
            np.linalg.inv(np.swapaxes(unit[hull.simplices], 1, 2)).transpose(1, 2, 0).copy()
        )
        spectrum = _resampled(responses[first], rate)
        at = _delays(spectrum)
        turn = 2j * np.pi / _SIZE * np.arange(spectrum.shape[-1])
        samples = int(responses.shape[-1] * SAMPLE_RATE / rate) + 1
        taps = min(max(samples + hrtf.PRE_TAPS, 3 * hrtf.PRE_TAPS), _LONGEST)
        self._taps = hrtf.window_hrir(spectrum * np.exp(turn * at[..., None]), taps)
        self._delay = at + delay[first] * SAMPLE_RATE / rate
        self._level()

    def _level(self) -> None:
        offset, weight = hrtf.sphere_nodes()
        taps, delay = self.filters(offset)
        self._delay -= weight @ delay.mean(axis=1)
        power = np.einsum("n,nef->f", weight, np.abs(np.fft.rfft(taps, 1024)) ** 2) / 2
        octave = [power[round(0.7 * k) : round(1.4 * k)].mean() for k in (16, 32, 64, 128, 256)]
        self._taps *= np.float32(np.exp(-np.log(octave).mean() / 2))

    def filters(self, offset) -> tuple[np.ndarray, np.ndarray]:
        """See hrtf.Hrtf.at; measured at one distance, so only the direction matters."""
        offset = np.atleast_2d(np.asarray(offset, float))
        unit = offset / np.linalg.norm(offset, axis=1, keepdims=True)
        weights = [unit @ corner for corner in self._solve]
        # In the triangle that a direction passes through, no weight is negative.
        triangle = np.minimum(np.minimum(*weights[:2]), weights[2]).argmax(axis=1)
        chosen = np.stack([w[np.arange(len(unit)), triangle] for w in weights], axis=1)
        chosen = np.clip(chosen, 0, None)
        chosen /= chosen.sum(axis=1, keepdims=True)
        corners = self._corners[triangle]
        taps = np.einsum("ni,niet->net", chosen.astype(np.float32), self._taps[corners])
        return taps, np.einsum("ni,nie->ne", chosen, self._delay[corners])


def _resampled(responses: np.ndarray, rate: float) -> np.ndarray:
    """Returns the spectra [N, 2, F] at 16 kHz; the gain of a response does not depend on rate."""
    n = responses.shape[-1]
    flat = responses.reshape(-1, n).T
    pad = round(rate * hrtf.PRE_TAPS / SAMPLE_RATE)
    padded = np.pad(flat, ((pad, pad), (0, 0)))
    if rate != SAMPLE_RATE:
        padded = soxr.resample(padded, rate, SAMPLE_RATE, "HQ") * (rate / SAMPLE_RATE)
    shape = (*responses.shape[:2], -1)
    spectrum = np.fft.rfft(padded[:_SIZE].T.reshape(shape), _SIZE)
    turn = 2j * np.pi / _SIZE * np.arange(spectrum.shape[-1])
    return spectrum * np.exp(turn * pad * SAMPLE_RATE / rate)


def _delays(spectrum: np.ndarray) -> np.ndarray:
    """Returns the delays (samples) of responses over their minimum-phase versions."""
    level = np.log(np.maximum(np.abs(spectrum), 1e-6 * np.abs(spectrum).max(-1, keepdims=True)))
    fold = np.zeros(_SIZE)
    fold[0] = fold[_SIZE // 2] = 1
    fold[1 : _SIZE // 2] = 2
    least = np.exp(np.fft.rfft(np.fft.irfft(level) * fold))
    matched = np.fft.irfft(spectrum * least.conj(), _SIZE * _FINE)
    peak = matched.argmax(axis=-1)
    # A parabola through the peak and its neighbours.
    size = matched.shape[-1]
    before, at, after = (
        np.take_along_axis(matched, ((peak + d) % size)[..., None], -1)[..., 0] for d in (-1, 0, 1)
    )
    peak = peak + (before - after) / (2 * (before - 2 * at + after))
    return np.where(peak > size / 2, peak - size, peak) / _FINE
