# SPDX-License-Identifier: Apache-2.0
"""The image-source method for shoeboxes (Allen and Berkley 1979), straight into FOA.

The walls of a room mirror a source into a lattice of images. Each one within the radius sends
an impulse that arrives after distance / c, with the gain 1 / distance, times sqrt(1 - absorption)
of each wall that it has met, times what air takes. No microphones: an image is encoded
by its own direction into W, Y, Z, X.

Delays are fractions of a sample. A Hann-windowed sinc delayed by f is nearly a polynomial in f
whose coefficients are fixed filters (Farrow 1988), so an image only adds its gains times
1, f, ..., f^5 at its nearest sample, and all filters run once per response, on spectra, together
with the gains of the octave bands. The error is below -60 dB up to 7 kHz. Late images are so many
that no ear or decay curve knows their delays to less than a sample: `nearest_sample_rir` leaves fractions out.

    >>> from jaxasa.acoustics import bands, image_source
    >>> direct = image_source.image_rir((9, 9, 9), [1.0] * 7, (6.43, 4, 4), (3, 4, 4), 5.0, air=False)
    >>> int(direct[0].argmax()) - bands.PRE_SAMPLES  # 3.43 m, 10 ms, 160 samples
    160
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.fft

from jaxasa.acoustics import bands, numba_jit, rooms
from jaxasa.core.audio import SAMPLE_RATE

NUM_POWERS = 6  # powers of the fractional delay
MIN_WALL_GAIN = (
    1e-3  # amplitude that walls leave of an image: 60 dB down, `nearest_sample_rir` leaves it out
)
_TAPS = 81
# The filters of low bands ring on both sides, and transforms are circular.
_RING = 1024


@functools.cache
def farrow_filters() -> np.ndarray:
    """Returns the filters [6, 81]: sum_k f^k filter_k is the Hann-windowed sinc delayed by f."""
    fraction = np.linspace(-0.5, 0.5, 129)
    offset = np.arange(_TAPS) - _TAPS // 2 - fraction[:, None]
    target = np.sinc(offset) * (0.5 + 0.5 * np.cos(2 * np.pi * offset / (_TAPS + 1)))
    powers = np.vander(fraction, NUM_POWERS, increasing=True)
    return np.linalg.lstsq(powers, target, rcond=None)[0]


@functools.lru_cache(maxsize=32)
def farrow_spectra(size: int, decimation: int = 1) -> np.ndarray:
    """Returns the filters' spectra [6, size // 2 + 1] complex64 at SAMPLE_RATE / step.

    Time zero moves to LEAD of SAMPLE_RATE.
    """
    shifted = np.zeros((NUM_POWERS, size))
    shifted[:, :_TAPS] = farrow_filters()
    shifted = np.roll(shifted, bands.PRE_SAMPLES // decimation - _TAPS // 2, axis=1)
    return np.fft.rfft(shifted).astype(np.complex64)


def fft_size(length: int, decimation: int = 1) -> int:
    """Returns the size at SAMPLE_RATE / step for `length` samples and the filters' ringing."""
    return scipy.fft.next_fast_len(
        -(-(length + bands.PRE_SAMPLES + _RING) // decimation), real=True
    )


def axis_images(source: float, listener: float, size: float, radius: float):
    """Returns the images of one axis within `radius` (m) of the listener, in rising order.

    Offsets from the listener (m), and how often each has met the wall at 0 and at `size`.
    """
    return _axis_images(float(source), float(listener), float(size), float(radius))


@numba_jit.njit_strict
def _axis_images(source, listener, size, radius):
    reach = int(radius / (2 * size)) + 1
    offset = np.empty(4 * reach + 2)
    low, high = np.empty(len(offset), np.int64), np.empty(len(offset), np.int64)
    n = 0
    for i in range(-reach, reach + 1):
        for mirrored in (1, 0):  # -s, s, 2 L - s, 2 L + s: a mirrored one comes before its twin
            away = (1 - 2 * mirrored) * source + 2 * i * size - listener
            if abs(away) < radius:
                offset[n], low[n], high[n] = away, abs(i - mirrored), abs(i)
                n += 1
    return offset[:n], low[:n], high[:n]


def _axes(room, reflect, source, listener, radius: float):
    """Returns the offsets [n] and gains [n, bands] float32 of the images along x, y and z."""
    axes = [axis_images(*a, radius) for a in zip(source, listener, room, strict=True)]
    gains = [
        (reflect[2 * d] ** low[:, None] * reflect[2 * d + 1] ** high[:, None]).astype(np.float32)
        for d, (_, low, high) in enumerate(axes)
    ]
    return [offset for offset, _, _ in axes], gains


def reflection_coefficients(absorption) -> np.ndarray:
    """Returns the pressure reflection [6, 7] of each wall per band; absorption: [7] or [6, 7]."""
    reflect = np.sqrt(1 - np.asarray(absorption, float))
    return np.broadcast_to(reflect, (len(rooms.WALLS), reflect.shape[-1]))


@numba_jit.njit_fastmath
def _add_images(out, x, y, z, gain_x, gain_y, gain_z, radius, rate):
    """Adds each image's powers of W, Y, Z, X to out [bands, n, 24], the lowest power first.

    x, y, z (m) are from the listener, z rising. rate: samples per metre.
    """
    count, most = out.shape[0], len(z)
    sample, fraction = np.empty(most, np.int32), np.empty(most, np.float32)
    inverse, over = np.empty(most, np.float32), np.empty(count, np.float32)
    for i in range(len(x)):
        for j in range(len(y)):
            flat = x[i] * x[i] + y[j] * y[j]
            left = radius * radius - flat
            if left <= 0:
                continue
            to_x, to_y = np.float32(x[i]), np.float32(y[j])
            first = np.searchsorted(z, -math.sqrt(left), side="right")
            last = np.searchsorted(z, math.sqrt(left))
            for k in range(first, last):  # apart from the rest, eight of a row at a time
                distance = math.sqrt(flat + z[k] * z[k])
                time = distance * rate
                sample[k] = int(time + 0.5)
                fraction[k] = time - sample[k]
                inverse[k] = 1.0 / distance
            for b in range(count):
                over[b] = gain_x[i, b] * gain_y[j, b]
            for k in range(first, last):
                f, near, to_z = fraction[k], inverse[k], np.float32(z[k])
                square = f * f
                for b in range(count):
                    row = out[b, sample[k]]
                    # Two powers side by side: eight sums in an instruction.
                    w = over[b] * gain_z[k, b] * near
                    u = w * near
                    v_y, v_z, v_x = u * to_y, u * to_z, u * to_x
                    w_f, y_f, z_f, x_f = w * f, v_y * f, v_z * f, v_x * f
                    for p in range(0, 24, 8):
                        row[p] += w
                        row[p + 1] += v_y
                        row[p + 2] += v_z
                        row[p + 3] += v_x
                        row[p + 4] += w_f
                        row[p + 5] += y_f
                        row[p + 6] += z_f
                        row[p + 7] += x_f
                        w *= square
                        v_y *= square
                        v_z *= square
                        v_x *= square
                        w_f *= square
                        y_f *= square
                        z_f *= square
                        x_f *= square


@numba_jit.njit_fastmath
def _filter(spectrum, filters, weights):
    """Returns [4, F]: the powers' spectrum [bands, F, 24] through their filters, bands weighed."""
    out = np.empty((4, spectrum.shape[1]), np.complex64)
    mixed = np.empty(24, np.complex64)
    for f in range(spectrum.shape[1]):
        for p in range(24):
            mixed[p] = weights[0, f] * spectrum[0, f, p]
        for b in range(1, spectrum.shape[0]):
            weight = weights[b, f]
            if weight != 0:
                for p in range(24):
                    mixed[p] += weight * spectrum[b, f, p]
        first = filters[0, f]
        w, y, z, x = first * mixed[0], first * mixed[1], first * mixed[2], first * mixed[3]
        for p in range(4, 24, 4):
            one = filters[p // 4, f]
            w += one * mixed[p]
            y += one * mixed[p + 1]
            z += one * mixed[p + 2]
            x += one * mixed[p + 3]
        out[0, f], out[1, f], out[2, f], out[3, f] = w, y, z, x
    return out


def image_rir(
    room,
    absorption,
    source,
    listener,
    radius: float,
    fade: float | None = None,
    air: bool = True,
    octaves: slice = slice(None),
    decimation: int = 1,
) -> np.ndarray:
    """Returns the images nearer than `radius` (m), [4, n + LEAD] float32; time zero is LEAD.

    room, source, listener: x, y, z in metres. absorption: [7] of all walls, or [6, 7] by
    rooms.WALLS, per octave band. From the distance `fade` (m) on images fade out as a cosine
    that ends at `radius`. Only what is in `octaves` is heard, made at SAMPLE_RATE / step: twice the
    frequency at which the highest of them ends, or more.
    """
    reflect = reflection_coefficients(absorption)[:, octaves]
    damping = rooms.AIR_ABSORPTION[octaves] if air else np.zeros(1)
    alike = not air and bool((reflect == reflect[:, :1]).all())
    if alike:
        reflect = reflect[:, :1]  # of flat walls, one band does for all
    offsets, gains = _axes(room, reflect, source, listener, radius)
    length = int(radius * SAMPLE_RATE / rooms.SPEED_OF_SOUND) + 2
    size = fft_size(length, decimation)
    powers = np.zeros((reflect.shape[1], size, 24), np.float32)
    rate = SAMPLE_RATE / decimation / rooms.SPEED_OF_SOUND
    _add_images(powers, *offsets, *gains, float(radius), rate)
    # All images of a sample have come from one distance, as far as air and fade can tell.
    distance = np.arange(math.ceil(length / decimation)) / rate
    level = np.exp(-0.5 * damping[:, None] * distance)
    if fade is not None:
        level *= np.cos(np.pi / 2 * ((distance - fade) / (radius - fade)).clip(0, 1))
    if air or fade is not None:
        powers[:, : level.shape[1]] *= level[:, :, None].astype(np.float32)
    weights = bands.rfft_gains(size * decimation)[octaves, : size // 2 + 1]
    if alike:
        weights = weights.sum(axis=0, keepdims=True)
    spectrum = _filter(scipy.fft.rfft(powers, axis=1), farrow_spectra(size, decimation), weights)
    return scipy.fft.irfft(spectrum, size * decimation)[:, : length + bands.PRE_SAMPLES]


@numba_jit.njit_fastmath
def _add_coarse(out, x, y, z, gain_x, gain_y, gain_z, peak, inner, radius, rate):
    """Adds images from `inner` to `radius` (m) to out [n, bands, 4], each at its nearest sample.

    As _add_images. peak: the largest of gain_z over bands. A band's image below FAINT is left out.
    """
    count = out.shape[1]
    over = np.empty(count, np.float32)
    for i in range(len(x)):
        for j in range(len(y)):
            flat = x[i] * x[i] + y[j] * y[j]
            left, hole = radius * radius - flat, inner * inner - flat
            loudest = np.float32(0)
            for b in range(count):
                over[b] = gain_x[i, b] * gain_y[j, b]
                loudest = max(loudest, over[b])
            if left <= 0 or loudest < MIN_WALL_GAIN:
                continue
            first = np.searchsorted(z, -math.sqrt(left), side="right")
            last = np.searchsorted(z, math.sqrt(left))
            while first < last and loudest * peak[first] < MIN_WALL_GAIN:
                first += 1
            while first < last and loudest * peak[last - 1] < MIN_WALL_GAIN:
                last -= 1
            for k in range(first, last):
                square = z[k] * z[k]
                if square < hole:
                    continue
                distance = math.sqrt(flat + square)
                row = out[int(distance * rate + 0.5)]
                inverse = np.float32(1.0 / distance)
                y_of, z_of = np.float32(y[j]) * inverse, np.float32(z[k]) * inverse
                x_of = np.float32(x[i]) * inverse
                for b in range(count):
                    gain = over[b] * gain_z[k, b]
                    if gain >= MIN_WALL_GAIN:
                        w = gain * inverse
                        row[b, 0] += w
                        row[b, 1] += w * y_of
                        row[b, 2] += w * z_of
                        row[b, 3] += w * x_of


def nearest_sample_rir(
    room,
    absorption,
    source,
    listener,
    inner: float,
    radius: float,
    level: Callable[[np.ndarray], np.ndarray],
    air: bool = True,
) -> np.ndarray:
    """Returns the images from `inner` to `radius` (m) at their nearest samples, [4, n + LEAD].

    As `image_rir`, at a tenth of its cost or less. What walls have weakened to FAINT is left out, so
    that few layers are left along an axis whose walls absorb much. level(times [n] in s) gives the
    amplitudes [7, n] with which images are heard.
    """
    reflect = reflection_coefficients(absorption)
    offsets, gains = _axes(room, reflect, source, listener, radius)
    for d, gain in enumerate(gains):
        loud = np.flatnonzero(gain.max(axis=1) >= MIN_WALL_GAIN)
        offsets[d], gains[d] = (part[loud[0] : loud[-1] + 1] for part in (offsets[d], gain))
    rate = SAMPLE_RATE / rooms.SPEED_OF_SOUND
    length = int(radius * rate) + 2
    found = np.zeros((length, reflect.shape[1], 4), np.float32)
    _add_coarse(found, *offsets, *gains, gains[2].max(axis=1), float(inner), float(radius), rate)
    distance = np.arange(length) / rate
    heard = level(distance / rooms.SPEED_OF_SOUND)
    if air:
        heard = heard * np.exp(-0.5 * rooms.AIR_ABSORPTION[:, None] * distance)
    found *= heard.T[:, :, None].astype(np.float32)
    size = fft_size(length)
    spectrum = np.zeros((4, size // 2 + 1), np.complex64)
    for band, weight in enumerate(bands.rfft_gains(size)):
        spectrum += scipy.fft.rfft(found[:, band].T, size) * weight
    return np.roll(scipy.fft.irfft(spectrum, size), bands.PRE_SAMPLES, axis=1)[
        :, : length + bands.PRE_SAMPLES
    ]
