# SPDX-License-Identifier: Apache-2.0
"""Binaural decoding of FOA: a linear decoder, with a correction by the direction of each tile.

Four channels cannot hold an HRTF: first order alone has errors of 1 dB and 80 microseconds at
400 Hz for a lateral source, and is wrong above 600 Hz. Two known remedies are combined here, in the
short-time Fourier transform.

The *linear decoder* D(f) [2, 4] is the least-squares fit to the HRTF up to 600 Hz. Above, it fits
magnitudes only, with phases continued from the frequency below (MagLS; Schoerkhuber, Zaunschirm
and Hoeldrich, DAGA 2018), and a 2 x 2 matrix then gives it the covariance that the HRTF has in a
diffuse field (Zaunschirm, Schoerkhuber and Hoeldrich, JASA 143, 2018).

The *correction* is that of directional audio coding (Pulkki, JAES 55, 2007): the active intensity
of a tile gives a direction u and 1 - diffuseness g (1 for a single plane wave, 0 in a diffuse
field), and s = (W + u . (X, Y, Z)) / 2 is the signal of that wave. The linear decoder renders
it as D y(u) s, the HRTF would render it as H(u) s:

    ears = D (W, Y, Z, X) + g (H(u) - D y(u)) s

A single source therefore has the delays and levels of the HRTF at all frequencies, a diffuse field
has its coherence, and intermediate cases are no worse than with the linear decoder. At low
frequencies the correction vanishes by itself. Errors and limits are in the tests.

    >>> import numpy as np
    >>> from jaxasa.acoustics import foa, foa_decoder
    >>> from jaxasa.acoustics.sphere_hrtf import SphereHrtf
    >>> noise = np.random.default_rng(0).standard_normal((16000, 1))
    >>> ears = foa_decoder.decode(noise * foa.encode(90, 0), SphereHrtf())  # from the left
    >>> ears.shape, bool(ears[:, 0].std() > ears[:, 1].std())
    ((16000, 2), True)
"""

import functools

import numpy as np
import scipy.fft

from jaxasa.acoustics import foa
from jaxasa.acoustics.hrtf import PRE_TAPS, Hrtf, hrtf_spectrum, sphere_nodes
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

MAGNITUDE_FIT_HZ = 600.0  # below, phases are fitted too
_FRAME, _HOP, _SIZE = 512, 128, 1024
_STEP = 5  # degrees between tabulated directions of the HRTF
_BLOCK = 256  # frames processed at once
_SMOOTHING = 0.75  # weight of the previous frame in the intensity: a time constant of 28 ms
_LATENCY = 64  # samples by which the decoder's filters are delayed; removed from the output


def decode(signal: np.ndarray, hrtf: Hrtf) -> np.ndarray:
    """Returns binaural audio [T, 2] float32 of an FOA signal [T, 4] (W, Y, Z, X, SN3D) at 16 kHz.

    The listener looks along x. Time and level are those of the FOA signal: a plane wave of
    amplitude 1 on W is rendered as the HRTF, with its arrival at the head's centre. Raises
    ConfigError for other shapes and for samples that are not finite.
    """
    signal = np.asarray(signal)
    check(signal.ndim == 2 and signal.shape[1] == 4, "FOA signal", signal.shape, "[T, 4]")
    check(bool(np.isfinite(signal).all()), "FOA signal", "not finite", "finite samples")
    frames = -(-len(signal) // _HOP) + _FRAME // _HOP
    padded = np.zeros(((frames + _FRAME // _HOP) * _HOP, 4), np.float32)
    padded[_FRAME : _FRAME + len(signal)] = signal
    # Hann windows at hops of a quarter sum to 2. There is no synthesis window, which would cut the
    # ringing of the filters.
    window = (np.hanning(_FRAME + 1)[:-1] / 2).astype(np.float32)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, _FRAME, axis=0)[::_HOP]
    out = np.zeros((2, len(padded) + _SIZE), np.float32)
    decoder, state = _Decoder.cached(hrtf), None
    for low in range(0, len(blocks), _BLOCK):
        spectrum = scipy.fft.rfft(blocks[low : low + _BLOCK] * window, _SIZE)
        ears, state = decoder.ears(spectrum, state)
        frames_out = scipy.fft.irfft(ears, _SIZE)
        for t in range(frames_out.shape[0]):
            start = (low + t) * _HOP
            out[:, start : start + _SIZE] += frames_out[t]
    begin = _FRAME + _LATENCY
    return np.ascontiguousarray(out[:, begin : begin + len(signal)].T)


class _Decoder:
    """The linear decoder and a table of the HRTF, both at the bins of an rfft of _SIZE samples."""

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def cached(hrtf: Hrtf) -> "_Decoder":
        return _Decoder(hrtf)

    def __init__(self, hrtf: Hrtf):
        bins = np.arange(_SIZE // 2 + 1)
        self._latency = np.exp(-2j * np.pi / _SIZE * bins * _LATENCY).astype(np.complex64)
        self.linear = linear_decoder(hrtf, _SIZE).astype(np.complex64)
        azimuth = np.arange(-180, 180 + _STEP, _STEP)
        elevation = np.arange(-90, 90 + _STEP, _STEP)
        grid = np.stack(np.meshgrid(azimuth, elevation, indexing="ij"), axis=-1)
        unit = foa.encode(grid[..., 0], grid[..., 1])[..., [3, 1, 2]]
        taps, delay = hrtf.filters(100.0 * unit.reshape(-1, 3))
        shift = np.exp(2j * np.pi / _SIZE * bins * PRE_TAPS)
        table = scipy.fft.rfft(taps, _SIZE) * shift.astype(np.complex64)
        # [F, ear, direction]: neighbouring directions are contiguous.
        self._table = np.ascontiguousarray(np.moveaxis(table, 0, -1).swapaxes(0, 1))
        self._delay = delay.T.astype(np.float32)
        self._columns = len(elevation)

    def ears(self, spectrum: np.ndarray, state) -> tuple[np.ndarray, tuple]:
        """Returns the ears [t, 2, F] of frames [t, 4, F], and the state for the next frames."""
        unit, directness, state = _directions(spectrum, state)
        linear = np.einsum("fec,tcf->tef", self.linear, spectrum)
        wave = 0.5 * (spectrum[:, 0] + (unit * spectrum[:, 1:]).sum(axis=1))
        decoded = np.einsum("fec,tcf->tef", self.linear[..., 1:], unit)
        decoded += self.linear[..., 0].T
        correction = (directness * wave)[:, None] * (self._hrtf_at(unit) - decoded)
        return (linear + correction) * self._latency, state

    def _hrtf_at(self, unit: np.ndarray) -> np.ndarray:
        """Returns H [t, 2, F] in directions [t, 3, F] (y, z, x): bilinear in azimuth, elevation."""
        y, z, x = np.moveaxis(unit, 1, 0)
        azimuth = (np.degrees(np.arctan2(y, x)) + 180) / _STEP
        elevation = (np.degrees(np.arcsin(np.clip(z, -1, 1))) + 90) / _STEP
        i = np.minimum(azimuth.astype(np.int32), 360 // _STEP - 1)
        j = np.minimum(elevation.astype(np.int32), 180 // _STEP - 1)
        a, e = azimuth - i, elevation - j
        bins = np.arange(unit.shape[-1])
        ears = np.arange(2)[:, None]
        filters = delays = np.float32(0)
        for di, dj, weight in (
            (0, 0, (1 - a) * (1 - e)),
            (0, 1, (1 - a) * e),
            (1, 0, a * (1 - e)),
            (1, 1, a * e),
        ):
            index = ((i + di) * self._columns + j + dj)[:, None]
            filters = filters + weight[:, None] * self._table[bins, ears, index]
            delays = delays + weight[:, None] * self._delay[ears, index]
        phase = np.float32(-2 * np.pi / _SIZE) * bins.astype(np.float32) * delays
        return filters * (np.cos(phase) + 1j * np.sin(phase))


def _directions(spectrum: np.ndarray, state) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Returns directions [t, 3, F] (y, z, x) and 1 - diffuseness [t, F] of frames [t, 4, F].

    Intensity and energy are averaged over some 28 ms and three bins. state: the averages of the
    previous frame, returned last.
    """
    w, yzx = spectrum[:, :1], spectrum[:, 1:]
    intensity = (w.conj() * yzx).real
    energy = 0.5 * (np.abs(w) ** 2 + (np.abs(yzx) ** 2).sum(axis=1, keepdims=True))
    mean = np.concatenate([intensity, energy], axis=1)
    mean[..., 1:-1] = (mean[..., :-2] + mean[..., 1:-1] + mean[..., 2:]) / 3
    previous = mean[0] if state is None else state
    for t in range(len(mean)):
        previous = mean[t] = _SMOOTHING * previous + (1 - _SMOOTHING) * mean[t]
    length = np.linalg.norm(mean[:, :3], axis=1)
    unit = mean[:, :3] / np.maximum(length, 1e-20)[:, None]
    unit[:, 2][length < 1e-20] = 1
    return unit, np.minimum(length / np.maximum(mean[:, 3], 1e-20), 1), mean[-1]


def linear_decoder(hrtf: Hrtf, size: int) -> np.ndarray:
    """Returns D [F, 2, 4]: ears from W, Y, Z, X at the frequencies of an rfft of `size` samples."""
    offset, weight = sphere_nodes()
    target = hrtf_spectrum(hrtf, offset, size).transpose(2, 1, 0)
    unit = offset / np.linalg.norm(offset, axis=1, keepdims=True)
    harmonics = np.concatenate([np.ones((len(unit), 1)), unit[:, [1, 2, 0]]], axis=1)
    # Least squares over the sphere: W, Y, Z, X are orthogonal, with powers 1, 1/3, 1/3, 1/3.
    projection = weight[:, None] * harmonics * np.array([1, 3, 3, 3])
    decoder = target @ projection
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    for k in np.flatnonzero(frequency > MAGNITUDE_FIT_HZ):
        phase = decoder[k - 1] @ harmonics.T
        phase /= np.maximum(np.abs(phase), 1e-12)
        decoder[k] = (np.abs(target[k]) * phase) @ projection
    power = np.array([1, 1 / 3, 1 / 3, 1 / 3])
    covariance = np.einsum("fec,fgc,c->feg", decoder, decoder.conj(), power)
    target_covariance = (target * weight) @ target.conj().swapaxes(1, 2)
    matched = _covariance_match(covariance, target_covariance) @ decoder
    # From least squares to matched covariance over the octave below MAGNITUDE_FIT_HZ.
    blend = np.clip(2 * frequency / MAGNITUDE_FIT_HZ - 1, 0, 1)[:, None, None]
    return (1 - blend) * decoder + blend * matched


def _covariance_match(covariance: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns M [F, 2, 2], nearest to 1, with M covariance M^H = target (Vilkamo et al. 2013)."""
    floor = 1e-9 * np.trace(target, axis1=1, axis2=2).real[:, None, None] * np.eye(2)
    root, target_root = (np.linalg.cholesky(c + floor) for c in (covariance, target))
    left, _, right = np.linalg.svd(np.swapaxes(root, 1, 2).conj() @ target_root)
    rotation = np.swapaxes(right, 1, 2).conj() @ np.swapaxes(left, 1, 2).conj()
    return target_root @ rotation @ np.linalg.inv(root)
