# SPDX-License-Identifier: Apache-2.0
"""The image-source method for shoeboxes (Allen and Berkley 1979): image lists, and RIRs in FOA.

The walls of a room mirror a source into a lattice of images. Along an axis of length L, the images
of a source at s lie at 2 i L + s, after |i| reflections in each wall, and at 2 i L - s, after
|i - 1| reflections in the wall at 0 and |i| in the wall at L. Each image within the radius adds an
impulse that arrives after distance / c, with the gain 1 / distance, times sqrt(1 - absorption) of
each wall that reflected it, times the attenuation by air. No microphones are simulated: an image
is encoded into W, Y, Z, X by its own direction.

Delays are fractional. A Hann-windowed sinc delayed by f samples is nearly a polynomial in f
whose coefficients are fixed filters (Farrow 1988). An image therefore only adds its gains times
1, f, ..., f^5 at its nearest sample, and all filters are applied once per RIR, in the frequency
domain, together with the gains of the octave bands. The error is below -60 dB up to 7 kHz. Late
images are so dense that fractions of a sample are inaudible and do not change the decay:
`nearest_sample_rir` leaves them out.

    >>> from jaxasa.acoustics import bands, image_source, rooms
    >>> room, source, listener = rooms.Shoebox((6, 5, 3), [0.2] * 7), (2, 1, 1), (4, 3, 1.5)
    >>> offset, gain = image_source.image_sources(room, source, listener, radius=20.0)
    >>> offset[0].tolist(), gain.shape  # the source itself, then its images
    ([-2.0, -2.0, -0.5], (379, 7))
    >>> anechoic = rooms.Shoebox((9, 9, 9), [1.0] * 7, air=False)
    >>> direct = image_source.image_rir(anechoic, (6.43, 4, 4), (3, 4, 4), radius=5.0)
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

NUM_POWERS = 6  # of the fractional delay, 0 to 5
MIN_WALL_GAIN = 1e-3  # -60 dB: `nearest_sample_rir` skips images that reflections weaken below it
_TAPS = 81
# Samples of ringing of the low bands' zero-phase filters, on both sides; transforms are circular.
_RINGING = 1024


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
    """Returns the filters' spectra [6, size // 2 + 1] complex64 at SAMPLE_RATE / decimation.

    They delay by PRE_SAMPLES of SAMPLE_RATE.
    """
    shifted = np.zeros((NUM_POWERS, size))
    shifted[:, :_TAPS] = farrow_filters()
    shifted = np.roll(shifted, bands.PRE_SAMPLES // decimation - _TAPS // 2, axis=1)
    return np.fft.rfft(shifted).astype(np.complex64)


def fft_size(length: int, decimation: int = 1) -> int:
    """Returns the FFT size at SAMPLE_RATE / decimation for `length` samples and the ringing."""
    return scipy.fft.next_fast_len(
        -(-(length + bands.PRE_SAMPLES + _RINGING) // decimation), real=True
    )


def axis_images(source: float, listener: float, size: float, radius: float):
    """Returns the images along one axis within `radius` (m) of the listener, in rising order.

    They are offsets from the listener (m), and numbers of reflections in the walls at 0 and at
    `size`, [n] each.
    """
    return _axis_images(float(source), float(listener), float(size), float(radius))


@numba_jit.njit_strict
def _axis_images(source, listener, size, radius):
    periods = int(radius / (2 * size)) + 1
    offset = np.empty(4 * periods + 2)
    low, high = np.empty(len(offset), np.int64), np.empty(len(offset), np.int64)
    n = 0
    for i in range(-periods, periods + 1):
        for mirrored in (1, 0):  # in rising order: -s, s, 2 L - s, 2 L + s
            distance = (1 - 2 * mirrored) * source + 2 * i * size - listener
            if abs(distance) < radius:
                offset[n], low[n], high[n] = distance, abs(i - mirrored), abs(i)
                n += 1
    return offset[:n], low[:n], high[:n]


def _axes(size, reflection, source, listener, radius: float):
    """Returns the offsets [n] and gains [n, bands] float32 of the images along x, y and z."""
    axes = [axis_images(*a, radius) for a in zip(source, listener, size, strict=True)]
    gains = [
        (reflection[2 * d] ** low[:, None] * reflection[2 * d + 1] ** high[:, None]).astype(
            np.float32
        )
        for d, (_, low, high) in enumerate(axes)
    ]
    return [offset for offset, _, _ in axes], gains


def reflection_coefficients(absorption) -> np.ndarray:
    """Returns the walls' pressure reflection coefficients [6, 7]; absorption: [7] or [6, 7]."""
    reflection = np.sqrt(1 - np.asarray(absorption, float))
    return np.broadcast_to(reflection, (len(rooms.WALLS), reflection.shape[-1]))


def image_sources(
    room: rooms.Shoebox, source, listener, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets [N, 3] (m) and gains [N, 7] of the images nearer than `radius` (m).

    Offsets are from the listener, in room coordinates, nearest first. Gains are 1 / distance,
    times sqrt(1 - absorption) per reflection, times the attenuation by air, per octave band.
    """
    axes = [axis_images(*a, radius) for a in zip(source, listener, room.size, strict=True)]
    (x, *_), (y, *_), (z, *_) = axes
    # The two longer lists first: most pairs of x and y are already too far.
    i, j = np.nonzero(np.add.outer(x * x, y * y) < radius * radius)
    square = np.add.outer(x[i] ** 2 + y[j] ** 2, z * z)
    pair, k = np.nonzero(square < radius * radius)
    distance = np.sqrt(square[pair, k])
    order = np.argsort(distance, kind="stable")
    pair, k, distance = pair[order], k[order], distance[order]
    indices = i[pair], j[pair], k
    walls = reflection_coefficients(room.absorption)
    attenuation = rooms.AIR_ABSORPTION * room.air
    gain = np.exp(-0.5 * distance[:, None] * attenuation) / distance[:, None]
    for d, (axis, index) in enumerate(zip(axes, indices, strict=True)):
        for reflections, wall in zip(axis[1:], walls[2 * d : 2 * d + 2], strict=True):
            gain *= (wall ** reflections[:, None])[index]
    offset = [axis[0][index] for axis, index in zip(axes, indices, strict=True)]
    return np.stack(offset, axis=1), gain


@numba_jit.njit_fastmath
def _add_images(out, x, y, z, gain_x, gain_y, gain_z, radius, rate):
    """Adds W, Y, Z, X of each image times f^0 ... f^5 to out [bands, n, 24].

    x, y, z: offsets from the listener (m), z rising. rate: samples per metre.
    """
    num_bands, num_z = out.shape[0], len(z)
    sample, fraction = np.empty(num_z, np.int32), np.empty(num_z, np.float32)
    inverse, gain_xy = np.empty(num_z, np.float32), np.empty(num_bands, np.float32)
    for i in range(len(x)):
        for j in range(len(y)):
            square_xy = x[i] * x[i] + y[j] * y[j]
            max_square_z = radius * radius - square_xy
            if max_square_z <= 0:
                continue
            x_i, y_j = np.float32(x[i]), np.float32(y[j])
            first = np.searchsorted(z, -math.sqrt(max_square_z), side="right")
            last = np.searchsorted(z, math.sqrt(max_square_z))
            for k in range(first, last):  # a loop of its own: it is vectorised
                distance = math.sqrt(square_xy + z[k] * z[k])
                time = distance * rate
                sample[k] = int(time + 0.5)
                fraction[k] = time - sample[k]
                inverse[k] = 1.0 / distance
            for b in range(num_bands):
                gain_xy[b] = gain_x[i, b] * gain_y[j, b]
            for k in range(first, last):
                f, inverse_k, z_k = fraction[k], inverse[k], np.float32(z[k])
                f_squared = f * f
                for b in range(num_bands):
                    row = out[b, sample[k]]
                    # Two powers at a time: eight additions in one instruction.
                    w = gain_xy[b] * gain_z[k, b] * inverse_k
                    u = w * inverse_k
                    v_y, v_z, v_x = u * y_j, u * z_k, u * x_i
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
                        w *= f_squared
                        v_y *= f_squared
                        v_z *= f_squared
                        v_x *= f_squared
                        w_f *= f_squared
                        y_f *= f_squared
                        z_f *= f_squared
                        x_f *= f_squared


@numba_jit.njit_fastmath
def _filter(spectrum, filters, band_gains):
    """Returns the filtered spectrum [4, F] of the powers' [bands, F, 24], summed over bands."""
    out = np.empty((4, spectrum.shape[1]), np.complex64)
    summed = np.empty(24, np.complex64)
    for f in range(spectrum.shape[1]):
        for p in range(24):
            summed[p] = band_gains[0, f] * spectrum[0, f, p]
        for b in range(1, spectrum.shape[0]):
            band_gain = band_gains[b, f]
            if band_gain != 0:
                for p in range(24):
                    summed[p] += band_gain * spectrum[b, f, p]
        filter_0 = filters[0, f]
        w, y, z, x = (
            filter_0 * summed[0],
            filter_0 * summed[1],
            filter_0 * summed[2],
            filter_0 * summed[3],
        )
        for p in range(4, 24, 4):
            filter_p = filters[p // 4, f]
            w += filter_p * summed[p]
            y += filter_p * summed[p + 1]
            z += filter_p * summed[p + 2]
            x += filter_p * summed[p + 3]
        out[0, f], out[1, f], out[2, f], out[3, f] = w, y, z, x
    return out


def image_rir(
    room: rooms.Shoebox,
    source,
    listener,
    radius: float,
    fade_start: float | None = None,
    octaves: slice = slice(None),
    decimation: int = 1,
) -> np.ndarray:
    """Returns the RIR [4, n] float32 of the images nearer than `radius` (m); see rir.shoebox_rir.

    From the distance `fade_start` (m) on, images fade out as a cosine that ends at `radius`. Only
    the bands in `octaves` are included, computed at SAMPLE_RATE / decimation, which must be at
    least twice the frequency at which the highest of them ends. Time zero is sample PRE_SAMPLES.
    """
    reflection = reflection_coefficients(room.absorption)[:, octaves]
    attenuation = rooms.AIR_ABSORPTION[octaves] if room.air else np.zeros(1)
    same_in_all_bands = not room.air and bool((reflection == reflection[:, :1]).all())
    if same_in_all_bands:
        reflection = reflection[:, :1]
    offsets, gains = _axes(room.size, reflection, source, listener, radius)
    length = int(radius * SAMPLE_RATE / rooms.SPEED_OF_SOUND) + 2
    size = fft_size(length, decimation)
    powers = np.zeros((reflection.shape[1], size, 24), np.float32)
    rate = SAMPLE_RATE / decimation / rooms.SPEED_OF_SOUND
    _add_images(powers, *offsets, *gains, float(radius), rate)
    # Air and fade change so slowly that all images of filter_p sample share a distance.
    distance = np.arange(math.ceil(length / decimation)) / rate
    level = np.exp(-0.5 * attenuation[:, None] * distance)
    if fade_start is not None:
        level *= np.cos(np.pi / 2 * ((distance - fade_start) / (radius - fade_start)).clip(0, 1))
    if room.air or fade_start is not None:
        powers[:, : level.shape[1]] *= level[:, :, None].astype(np.float32)
    band_gains = bands.rfft_gains(size * decimation)[octaves, : size // 2 + 1]
    if same_in_all_bands:
        band_gains = band_gains.sum(axis=0, keepdims=True)
    filters = farrow_spectra(size, decimation)
    spectrum = _filter(scipy.fft.rfft(powers, axis=1), filters, band_gains)
    return scipy.fft.irfft(spectrum, size * decimation)[:, : length + bands.PRE_SAMPLES]


@numba_jit.njit_fastmath
def _add_to_nearest_samples(out, x, y, z, gain_x, gain_y, gain_z, peak, inner, radius, rate):
    """Adds images from `inner` to `radius` (m) to out [n, bands, 4], each at its nearest sample.

    Other arguments as in _add_images. peak: the maximum of gain_z over bands. An image is skipped
    in bands where its gain is below MIN_WALL_GAIN.
    """
    num_bands = out.shape[1]
    gain_xy = np.empty(num_bands, np.float32)
    for i in range(len(x)):
        for j in range(len(y)):
            square_xy = x[i] * x[i] + y[j] * y[j]
            max_square_z, min_square_z = radius * radius - square_xy, inner * inner - square_xy
            loudest = np.float32(0)
            for b in range(num_bands):
                gain_xy[b] = gain_x[i, b] * gain_y[j, b]
                loudest = max(loudest, gain_xy[b])
            if max_square_z <= 0 or loudest < MIN_WALL_GAIN:
                continue
            first = np.searchsorted(z, -math.sqrt(max_square_z), side="right")
            last = np.searchsorted(z, math.sqrt(max_square_z))
            while first < last and loudest * peak[first] < MIN_WALL_GAIN:
                first += 1
            while first < last and loudest * peak[last - 1] < MIN_WALL_GAIN:
                last -= 1
            for k in range(first, last):
                square_z = z[k] * z[k]
                if square_z < min_square_z:
                    continue
                distance = math.sqrt(square_xy + square_z)
                row = out[int(distance * rate + 0.5)]
                inverse = np.float32(1.0 / distance)
                unit_y, unit_z = np.float32(y[j]) * inverse, np.float32(z[k]) * inverse
                unit_x = np.float32(x[i]) * inverse
                for b in range(num_bands):
                    gain = gain_xy[b] * gain_z[k, b]
                    if gain >= MIN_WALL_GAIN:
                        w = gain * inverse
                        row[b, 0] += w
                        row[b, 1] += w * unit_y
                        row[b, 2] += w * unit_z
                        row[b, 3] += w * unit_x


def nearest_sample_rir(
    room: rooms.Shoebox,
    source,
    listener,
    inner: float,
    radius: float,
    image_gain: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Returns the RIR [4, n] of the images from `inner` to `radius` (m), at their nearest samples.

    As `image_rir`, at a tenth of its cost or less. Images that reflections weaken below
    MIN_WALL_GAIN are left out, so that few layers remain along an axis whose walls absorb much.
    image_gain(times [n] in s) gives the factors [7, n] by which images are weighted.
    """
    reflection = reflection_coefficients(room.absorption)
    offsets, gains = _axes(room.size, reflection, source, listener, radius)
    for d, gain in enumerate(gains):
        loud = np.flatnonzero(gain.max(axis=1) >= MIN_WALL_GAIN)
        offsets[d], gains[d] = (part[loud[0] : loud[-1] + 1] for part in (offsets[d], gain))
    rate = SAMPLE_RATE / rooms.SPEED_OF_SOUND
    length = int(radius * rate) + 2
    rir = np.zeros((length, reflection.shape[1], 4), np.float32)
    limits = float(inner), float(radius)
    _add_to_nearest_samples(rir, *offsets, *gains, gains[2].max(axis=1), *limits, rate)
    distance = np.arange(length) / rate
    level = image_gain(distance / rooms.SPEED_OF_SOUND)
    if room.air:
        level = level * np.exp(-0.5 * rooms.AIR_ABSORPTION[:, None] * distance)
    rir *= level.T[:, :, None].astype(np.float32)
    size = fft_size(length)
    spectrum = np.zeros((4, size // 2 + 1), np.complex64)
    for band, band_gain in enumerate(bands.rfft_gains(size)):
        spectrum += scipy.fft.rfft(rir[:, band].T, size) * band_gain
    delayed = np.roll(scipy.fft.irfft(spectrum, size), bands.PRE_SAMPLES, axis=1)
    return delayed[:, : length + bands.PRE_SAMPLES]
