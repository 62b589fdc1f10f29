# SPDX-License-Identifier: Apache-2.0
"""Measured HRTFs from SOFA files (AES69), read by the `sofar` package (pip install jaxasa[sofa]).

Only the convention SimpleFreeFieldHRIR is supported: free-field impulse responses of two ears from
directions all around. Each HRIR is resampled to 16 kHz; its delay is estimated by correlation with
its minimum-phase version (Nam, Abel and Smith 2008) and taken out. Filters and delays of other
directions are interpolated between the three measured directions around them, with the barycentric
weights of the triangle that the direction passes through. At a measured direction the result is
the measured HRIR.

Level and time of flight in a file are those of the laboratory. One gain and one delay for all
HRIRs bring them to the scale of hrtf.Hrtf: power 1 in a diffuse field, as the mean in dB of the
octaves from 250 Hz to 4 kHz and of both ears, and zero mean delay over directions. The frequency
response is not equalised, so that of a loudspeaker or an ear canal may remain in it.

    from jaxasa.acoustics.load_hrtf import load_hrtf
    kemar = load_hrtf("MIT_KEMAR_normal_pinna.sofa")
    taps, delay = kemar.filters([[0.0, 1.5, 0.0]])
"""

import contextlib
import hashlib
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import scipy.spatial
import soxr

from jaxasa.acoustics.hrtf import PRE_TAPS, sphere_nodes, window_hrir
from jaxasa.config import ConfigError, check, check_local_path
from jaxasa.core.audio import SAMPLE_RATE

CONVENTION = "SimpleFreeFieldHRIR"
_SIZE = 1024
_MAX_TAPS = 256  # at 16 kHz; longer HRIRs are truncated
_OVERSAMPLING = 8  # of the correlation by which delays are estimated


def read_sofa(path: Path | str) -> "MeasuredHrtf":
    """Reads the HRTF of a SOFA file; raises ConfigError, naming the file, if it is not valid."""
    check_local_path("HRTF", str(path))
    path = Path(path)
    check(path.is_file(), "HRTF", str(path), '"sphere" or a SOFA file')
    try:
        import sofar
    except ImportError:
        expected = "the package that reads it: pip install jaxasa[sofa]"
        raise ConfigError(f"HRTF is {str(path)!r}, expected {expected}") from None
    try:
        # sofar prints and warns for every field that older conventions wrote otherwise.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            file = sofar.read_sofa(str(path), verify=False, verbose=False)
    except Exception as error:  # netCDF, HDF5 and sofar have exceptions of their own
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: {problem}, expected a SOFA file") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return MeasuredHrtf(f"{path.name} ({digest})", *_contents(file, str(path)))


def _contents(file, path: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Returns positions [N, 3], HRIRs [N, 2, n], their sample rate (Hz) and delays [N, 2]."""
    convention = getattr(file, "GLOBAL_SOFAConventions", None)
    check(convention == CONVENTION, f"{path}: SOFAConventions", convention, CONVENTION)
    hrirs = np.asarray(getattr(file, "Data_IR", np.nan), float)
    shape = hrirs.shape
    ok = hrirs.ndim == 3 and shape[1] == 2 and 0 not in shape
    check(ok, f"{path}: shape of Data.IR", shape, "directions x 2 ears x samples")
    check(np.isfinite(hrirs).all(), f"{path}: Data.IR", "not finite", "finite samples")
    silent = bool((hrirs == 0).all(axis=2).any())
    check(not silent, f"{path}: Data.IR", "silent in some direction", "HRIRs")
    rate = np.asarray(getattr(file, "Data_SamplingRate", np.nan), float).ravel()
    ok = rate.size > 0 and bool((rate == rate[0]).all()) and 8000 <= rate[0] <= 400_000
    check(ok, f"{path}: Data.SamplingRate", rate[:3].tolist(), "one rate, 8 to 400 kHz")
    source = _cartesian(file, "SourcePosition", path)
    check(len(source) == shape[0], f"{path}: rows of SourcePosition", len(source), str(shape[0]))
    view = _cartesian(file, "ListenerView", path)
    up = np.array([[0.0, 0.0, 1.0]])  # AES69's default
    if np.size(getattr(file, "ListenerUp", ())):
        own_type = hasattr(file, "ListenerUp_Type")
        up = _cartesian(file, "ListenerUp", path, None if own_type else "ListenerView")
    # Rotated listeners are not supported: in files of this convention they look along x.
    for name, vector, axis in (("ListenerView", view, 0), ("ListenerUp", up, 2)):
        unit = vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-9)
        ok = bool((unit[:, axis] > 0.999).all())
        check(ok, f"{path}: {name}", vector[0].tolist(), f"along {'xyz'[axis]}")
    source = source - _cartesian(file, "ListenerPosition", path)
    delay = np.asarray(getattr(file, "Data_Delay", 0.0), float)
    try:
        delay = np.broadcast_to(delay, shape[:2])
    except ValueError:
        expected = f"{shape[0]} x 2 or 1 x 2"
        raise ConfigError(f"{path}: shape of Data.Delay is {delay.shape}, {expected}") from None
    ears = _cartesian(file, "ReceiverPosition", path)
    check(len(ears) == 2, f"{path}: rows of ReceiverPosition", len(ears), "2")
    left_first = bool(ears[0, 1] >= ears[1, 1])  # y points to the left
    measured = _left_is_first(source, hrirs, delay)
    if measured is not None and measured != left_first:
        name = "right" if measured else "left"
        print(
            f"{path}: ReceiverPosition has the {name} ear first, Data.IR has not; "
            "the ears are taken as in Data.IR",
            file=sys.stderr,
        )
        left_first = measured
    if not left_first:
        hrirs, delay = hrirs[:, ::-1], delay[:, ::-1]
    return source, hrirs, float(rate[0]), delay


def _left_is_first(source: np.ndarray, hrirs: np.ndarray, delay: np.ndarray) -> bool | None:
    """Whether output 0 is louder and earlier for sources at the left; None if these disagree.

    In files of several laboratories ReceiverPosition has the ears in another order than Data.IR.
    """
    side = source[:, 1] / np.maximum(np.linalg.norm(source, axis=1), 1e-9)
    level = np.log((hrirs**2).sum(axis=2))
    louder = side @ (level[:, 0] - level[:, 1])
    arrival = np.abs(hrirs).argmax(axis=2) + delay
    earlier = side @ (arrival[:, 1] - arrival[:, 0])
    return bool(louder > 0) if louder * earlier > 0 else None


def _cartesian(file, name: str, path: str, type_of: str | None = None) -> np.ndarray:
    """Returns a field of positions as [N, 3] (m), x front, y left, z up.

    type_of: the field that has its coordinate type, if that is another one.
    """
    value = np.asarray(getattr(file, name, np.nan), float)
    if value.ndim == 3:
        value = value[..., 0]
    ok = value.ndim == 2 and value.shape[1] == 3 and np.isfinite(value).all()
    check(bool(ok), f"{path}: shape of {name}", value.shape, "N x 3 finite numbers")
    kind = str(getattr(file, f"{type_of or name}_Type", "cartesian"))
    if kind != "spherical":
        return value
    units = str(getattr(file, f"{type_of or name}_Units", "degree"))
    check("rad" not in units.lower(), f"{path}: Units of {name}", units, "degree, degree, metre")
    azimuth, elevation = np.radians(value[:, 0]), np.radians(value[:, 1])
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    unit = np.stack([x, y, np.sin(elevation)], axis=1)
    return unit * value[:, 2:]


class MeasuredHrtf:
    """An HRTF measured at some directions; see hrtf.Hrtf.

    source [N, 3]: positions (m) around the head. hrirs [N, 2, n]: at `rate` Hz, left ear first.
    delay [N, 2]: samples at `rate` to add. Raises ConfigError if the directions do not surround the
    head.
    """

    def __init__(self, name: str, source, hrirs, rate: float, delay):
        self.name = name
        distance = np.linalg.norm(source, axis=1)
        check(bool((distance > 0).all()), f"{name}: SourcePosition", "zero", "directions")
        unit, first = np.unique(np.round(source / distance[:, None], 6), axis=0, return_index=True)
        try:
            hull = scipy.spatial.ConvexHull(unit)
            surrounds = bool((hull.equations[:, 3] < -0.1).all())
        except (scipy.spatial.QhullError, ValueError):
            surrounds = False
        expected = "directions all around the head"
        check(surrounds, f"{name}: SourcePosition", f"{len(unit)} directions", expected)
        self._corners = hull.simplices
        # Per corner of a triangle: its product with a direction is the weight of the corner.
        self._weight_vectors = (
            np.linalg.inv(np.swapaxes(unit[hull.simplices], 1, 2)).transpose(1, 2, 0).copy()
        )
        spectrum = _resampled_spectra(hrirs[first], rate)
        estimated = _estimate_delays(spectrum)
        phase = 2j * np.pi / _SIZE * np.arange(spectrum.shape[-1])
        samples = int(hrirs.shape[-1] * SAMPLE_RATE / rate) + 1
        taps = min(max(samples + PRE_TAPS, 3 * PRE_TAPS), _MAX_TAPS)
        self._taps = window_hrir(spectrum * np.exp(phase * estimated[..., None]), taps)
        self._delay = estimated + delay[first] * SAMPLE_RATE / rate
        self._normalise()

    def _normalise(self) -> None:
        """Sets the mean delay to 0, and the power in a diffuse field to 1."""
        offset, weight = sphere_nodes()
        taps, delay = self.filters(offset)
        self._delay -= weight @ delay.mean(axis=1)
        power = np.einsum("n,nef->f", weight, np.abs(np.fft.rfft(taps, 1024)) ** 2) / 2
        octave = [power[round(0.7 * k) : round(1.4 * k)].mean() for k in (16, 32, 64, 128, 256)]
        self._taps *= np.float32(np.exp(-np.log(octave).mean() / 2))

    def filters(self, offset) -> tuple[np.ndarray, np.ndarray]:
        """See hrtf.Hrtf.filters; measured at one distance, so only the direction matters."""
        offset = np.atleast_2d(np.asarray(offset, float))
        unit = offset / np.linalg.norm(offset, axis=1, keepdims=True)
        weights = [unit @ corner for corner in self._weight_vectors]
        # In the triangle that a direction passes through, no weight is negative.
        triangle = np.minimum(np.minimum(*weights[:2]), weights[2]).argmax(axis=1)
        weight = np.stack([w[np.arange(len(unit)), triangle] for w in weights], axis=1)
        weight = np.clip(weight, 0, None)
        weight /= weight.sum(axis=1, keepdims=True)
        corners = self._corners[triangle]
        taps = np.einsum("ni,niet->net", weight.astype(np.float32), self._taps[corners])
        return taps, np.einsum("ni,nie->ne", weight, self._delay[corners])


def _resampled_spectra(hrirs: np.ndarray, rate: float) -> np.ndarray:
    """Returns the spectra [N, 2, F] at 16 kHz; the gain does not depend on the rate."""
    n = hrirs.shape[-1]
    flat = hrirs.reshape(-1, n).T
    pad = round(rate * PRE_TAPS / SAMPLE_RATE)
    padded = np.pad(flat, ((pad, pad), (0, 0)))
    if rate != SAMPLE_RATE:
        padded = soxr.resample(padded, rate, SAMPLE_RATE, "HQ") * (rate / SAMPLE_RATE)
    shape = (*hrirs.shape[:2], -1)
    spectrum = np.fft.rfft(padded[:_SIZE].T.reshape(shape), _SIZE)
    phase = 2j * np.pi / _SIZE * np.arange(spectrum.shape[-1])
    return spectrum * np.exp(phase * pad * SAMPLE_RATE / rate)


def _estimate_delays(spectrum: np.ndarray) -> np.ndarray:
    """Returns the delays (samples) of HRIRs relative to their minimum-phase versions."""
    level = np.log(np.maximum(np.abs(spectrum), 1e-6 * np.abs(spectrum).max(-1, keepdims=True)))
    fold = np.zeros(_SIZE)
    fold[0] = fold[_SIZE // 2] = 1
    fold[1 : _SIZE // 2] = 2
    minimum_phase = np.exp(np.fft.rfft(np.fft.irfft(level) * fold))
    correlation = np.fft.irfft(spectrum * minimum_phase.conj(), _SIZE * _OVERSAMPLING)
    peak = correlation.argmax(axis=-1)
    # A parabola through the peak and its neighbours.
    size = correlation.shape[-1]
    left, centre, right = (
        np.take_along_axis(correlation, ((peak + d) % size)[..., None], -1)[..., 0]
        for d in (-1, 0, 1)
    )
    peak = peak + (left - right) / (2 * (left - 2 * centre + right))
    return np.where(peak > size / 2, peak - size, peak) / _OVERSAMPLING
