# SPDX-License-Identifier: Apache-2.0
"""FOA recordings for two ears: a linear decoder, corrected by the direction each tile comes from.

Four channels cannot hold an HRTF: its first order alone is 1 dB and 80 microseconds off at 400 Hz
for a lateral source, and wrong above 600 Hz. Two known remedies are joined here, in the
short-time Fourier transform.

The *linear decoder* D(f) [2, 4] is the least-squares fit to the HRTF up to 600 Hz. Above, it fits
magnitudes only, with phases continued from the frequency below (MagLS; Schoerkhuber, Zaunschirm
and Hoeldrich, DAGA 2018), and a 2 x 2 matrix then gives it the covariance that the HRTF has in a
diffuse field (Zaunschirm, Schoerkhuber and Hoeldrich, JASA 143, 2018).

The *correction* belongs to directional audio coding (Pulkki, JAES 55, 2007): the active
intensity of a tile gives a direction u and 1 - diffuseness g (1 for a single plane wave, 0 in a
diffuse field), and s = (W + u . (X, Y, Z)) / 2 is that wave's signal. Where the linear decoder
renders the wave as D y(u) s, the head would have made H(u) s of it:

    ears = D (W, Y, Z, X) + g (H(u) - D y(u)) s

A single source therefore has the delays and levels of the HRTF at all frequencies, a diffuse
field its coherence, and what lies between them is no worse than the linear decoder: at low
frequencies the correction goes to zero by itself. Errors and limits are in the tests.

    >>> import numpy as np
    >>> from jaxasa.acoustics import foa, foa_decoder, hrtf
    >>> noise = np.random.default_rng(0).standard_normal((16000, 1))
    >>> ears = foa_decoder.decode(noise * foa.encode(90, 0), hrtf.SphereHrtf())  # from the left
    >>> ears.shape, bool(ears[:, 0].std() > ears[:, 1].std())
    ((16000, 2), True)
"""

import functools

import numpy as np
import scipy.fft

from jaxasa.acoustics import foa, hrtf
from jaxasa.acoustics.hrtf import Hrtf
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

MAGNITUDE_FIT_HZ = 600.0  # Hz: up to here phases are fitted, above it magnitudes
_FRAME, _HOP, _SIZE = 512, 128, 1024
_STEP = 5  # degrees between directions in which the HRTF is tabulated
_BLOCK = 256  # frames at once
_SMOOTH = 0.75  # of a frame's intensity that is kept to the next: 28 ms


def decode(signal: np.ndarray, head: Hrtf) -> np.ndarray:
    """Returns two ears [T, 2] float32 of an FOA signal [T, 4] (W, Y, Z, X, SN3D) at 16 kHz.

    The listener looks along x. Time and level are kept: a plane wave of amplitude 1 on W gives
    the ears the HRTF, arriving at the head's centre. Raises ConfigError for other shapes and
    for samples that are not finite.
    """
    signal = np.asarray(signal)
    check(signal.ndim == 2 and signal.shape[1] == 4, "FOA signal", signal.shape, "[T, 4]")
    check(bool(np.isfinite(signal).all()), "FOA signal", "not finite", "finite samples")
    frames = -(-len(signal) // _HOP) + _FRAME // _HOP
    padded = np.zeros(((frames + _FRAME // _HOP) * _HOP, 4), np.float32)
    padded[_FRAME : _FRAME + len(signal)] = signal
    # A Hann window at hops of a quarter adds up to 2; squared roots on both sides would let
    # the filters' ringing be cut, so all of the window is in the analysis.
    window = (np.hanning(_FRAME + 1)[:-1] / 2).astype(np.float32)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, _FRAME, axis=0)[::_HOP]
    out = np.zeros((2, len(padded) + _SIZE), np.float32)
    decoder, state = _Decoder.of(head), None
    for low in range(0, len(blocks), _BLOCK):
        spectrum = scipy.fft.rfft(blocks[low : low + _BLOCK] * window, _SIZE)
        ears, state = decoder.ears(spectrum, state)
        frames_out = scipy.fft.irfft(ears, _SIZE)
        for t in range(frames_out.shape[0]):
            start = (low + t) * _HOP
            out[:, start : start + _SIZE] += frames_out[t]
    begin = _FRAME + _LATENCY
    return np.ascontiguousarray(out[:, begin : begin + len(signal)].T)


_LATENCY = 64  # samples that the decoder's filters are delayed by, and the signal is put back


class _Decoder:
    """The linear decoder and the HRTF's table, both at the bins of an rfft of _SIZE samples."""

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def of(head: Hrtf) -> "_Decoder":
        return _Decoder(head)

    def __init__(self, head: Hrtf):
        bins = np.arange(_SIZE // 2 + 1)
        self._late = np.exp(-2j * np.pi / _SIZE * bins * _LATENCY).astype(np.complex64)
        self.linear = linear_decoder(head, _SIZE).astype(np.complex64)
        azimuth = np.arange(-180, 180 + _STEP, _STEP)
        elevation = np.arange(-90, 90 + _STEP, _STEP)
        grid = np.stack(np.meshgrid(azimuth, elevation, indexing="ij"), axis=-1)
        unit = foa.encode(grid[..., 0], grid[..., 1])[..., [3, 1, 2]]
        taps, delay = head.filters(100.0 * unit.reshape(-1, 3))
        shift = np.exp(2j * np.pi / _SIZE * bins * hrtf.PRE_TAPS)
        table = scipy.fft.rfft(taps, _SIZE) * shift.astype(np.complex64)
        # [F, ear, direction]: neighbours in direction are gathered together.
        self._table = np.ascontiguousarray(np.moveaxis(table, 0, -1).swapaxes(0, 1))
        self._delay = delay.T.astype(np.float32)
        self._columns = len(elevation)

    def ears(self, spectrum: np.ndarray, state) -> tuple[np.ndarray, tuple]:
        """Returns the ears [t, 2, F] of frames [t, 4, F], and what the next frames need."""
        unit, share, state = _direction(spectrum, state)
        linear = np.einsum("fec,tcf->tef", self.linear, spectrum)
        wave = 0.5 * (spectrum[:, 0] + (unit * spectrum[:, 1:]).sum(axis=1))
        found = np.einsum("fec,tcf->tef", self.linear[..., 1:], unit)
        found += self.linear[..., 0].T
        return (linear + (share * wave)[:, None] * (self._head(unit) - found)) * self._late, state

    def _head(self, unit: np.ndarray) -> np.ndarray:
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
            at = ((i + di) * self._columns + j + dj)[:, None]
            filters = filters + weight[:, None] * self._table[bins, ears, at]
            delays = delays + weight[:, None] * self._delay[ears, at]
        turn = np.float32(-2 * np.pi / _SIZE) * bins.astype(np.float32) * delays
        return filters * (np.cos(turn) + 1j * np.sin(turn))


def _direction(spectrum: np.ndarray, state) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Returns directions [t, 3, F] (y, z, x) and 1 - diffuseness [t, F] of frames [t, 4, F].

    Intensity and energy are averaged over some 28 ms and three bins. state: the averages before.
    """
    w, rest = spectrum[:, :1], spectrum[:, 1:]
    intensity = (w.conj() * rest).real
    energy = 0.5 * (np.abs(w) ** 2 + (np.abs(rest) ** 2).sum(axis=1, keepdims=True))
    now = np.concatenate([intensity, energy], axis=1)
    now[..., 1:-1] = (now[..., :-2] + now[..., 1:-1] + now[..., 2:]) / 3
    before = now[0] if state is None else state
    for t in range(len(now)):
        before = now[t] = _SMOOTH * before + (1 - _SMOOTH) * now[t]
    length = np.linalg.norm(now[:, :3], axis=1)
    unit = now[:, :3] / np.maximum(length, 1e-20)[:, None]
    unit[:, 2][length < 1e-20] = 1
    return unit, np.minimum(length / np.maximum(now[:, 3], 1e-20), 1), now[-1]


def linear_decoder(head: Hrtf, size: int) -> np.ndarray:
    """Returns D [F, 2, 4]: ears from W, Y, Z, X at the frequencies of an rfft of `size` samples."""
    offset, weight = hrtf.sphere_nodes()
    wanted = hrtf.hrtf_spectrum(head, offset, size).transpose(2, 1, 0)
    unit = offset / np.linalg.norm(offset, axis=1, keepdims=True)
    gains = np.concatenate([np.ones((len(unit), 1)), unit[:, [1, 2, 0]]], axis=1)
    # Least squares over the sphere: W, Y, Z, X are orthogonal, of powers 1, 1/3, 1/3, 1/3.
    solve = weight[:, None] * gains * np.array([1, 3, 3, 3])
    found = wanted @ solve
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    for k in np.flatnonzero(frequency > MAGNITUDE_FIT_HZ):
        phase = found[k - 1] @ gains.T
        phase /= np.maximum(np.abs(phase), 1e-12)
        found[k] = (np.abs(wanted[k]) * phase) @ solve
    power = np.array([1, 1 / 3, 1 / 3, 1 / 3])
    have = np.einsum("fec,fgc,c->feg", found, found.conj(), power)
    want = (wanted * weight) @ wanted.conj().swapaxes(1, 2)
    mixed = _matching(have, want) @ found
    # From least squares to matched covariance over the octave below the limit and the limit.
    blend = np.clip(2 * frequency / MAGNITUDE_FIT_HZ - 1, 0, 1)[:, None, None]
    return (1 - blend) * found + blend * mixed


def _matching(have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Returns M [F, 2, 2] nearest to 1 with M have M^H = want (Vilkamo, Baeckstroem and Kuntz)."""
    floor = 1e-9 * np.trace(want, axis1=1, axis2=2).real[:, None, None] * np.eye(2)
    root, target = (np.linalg.cholesky(c + floor) for c in (have, want))
    left, _, right = np.linalg.svd(np.swapaxes(root, 1, 2).conj() @ target)
    turn = np.swapaxes(right, 1, 2).conj() @ np.swapaxes(left, 1, 2).conj()
    return target @ turn @ np.linalg.inv(root)
