# SPDX-License-Identifier: Apache-2.0
"""The sound of a moving source: time-varying delays for direct sound and early images.

A point source of signal s on the path p(s) gives, in the free field (the retarded solution of
the wave equation; Morse and Ingard, Theoretical Acoustics, 1968, chapter 11),

    y(t) = s(u) / (d(u) (1 + d'(u) / c)),    u + d(u) / c = t,    d(u) = |p(u) - listener|

which equals the superposition of RIRs in which each sample of s has the RIR of the position where
it was emitted, Doppler effect included. The images of a moving source in a shoebox move with it,
mirrored, so each early image has a path, a direction and a delay of its own. The diffuse tail has
no paths: independent tails are cross-faded, one every half metre, with gains whose squares sum to
1. If absorption is nonuniform, late images at rest at each of these positions are cross-faded too.

Delays and gains are computed every HOP samples of emission, and between them u is linear in t:
at speed v and distance d the error is v^2 HOP^2 / (8 d) metres, at 2 m/s and 0.5 m 1/20000 of a
sample. The signal at a fractional time u is read by a transposed Farrow structure: seven
filtered copies of the dry signal, computed once for all images, then a polynomial in the fraction
for each sample and image.

    >>> import numpy as np
    >>> from jaxasa.acoustics import motion, rooms
    >>> room = rooms.Shoebox((6.0, 5.0, 3.0), rooms.absorption((6, 5, 3), 0.4))
    >>> path = np.array([[0.0, 1.0, 4.0, 1.5], [1.0, 5.0, 4.0, 1.5]])
    >>> dry = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    >>> motion.early_sound(dry, 0, path, room, (3.0, 2.0, 1.5), 20000).shape
    (4, 20000)
"""

import functools
import math
from collections.abc import Iterator

import numpy as np
import scipy.fft
import scipy.signal

from jaxasa.acoustics import bands, image_source, numba_jit, paths, rir, rooms
from jaxasa.core.audio import SAMPLE_RATE

HOP = 32  # samples between computed delays
TAIL_STEP_M = 0.5  # distance travelled from one tail to the next
_TAPS, _NUM_POWERS = 81, 7  # of the Farrow structure
_MAX_DRIFT = 0.2  # samples by which a delay may change while one integer offset is used
_CHUNK = 32  # hops: their output stays in the cache while all images are added
_MARGIN = 64  # samples before and after the dry signal, for its interpolation; a multiple of HOP
_RINGING = 1024  # samples of the low bands' zero-phase filters
_MIN_GAIN = 1e-5  # -100 dB: images that reflections weaken below it are left out
_SAMPLES_PER_M = SAMPLE_RATE / rooms.SPEED_OF_SOUND


@functools.cache
def _farrow_filters() -> np.ndarray:
    """Returns filters [7, 81]: a signal f samples later is sum_k f^k (filter_k * signal).

    Fractions go a little beyond a half, because the delay changes while one offset is used.
    """
    fraction = np.linspace(-0.5 - _MAX_DRIFT / 2, 0.5 + _MAX_DRIFT / 2, 129)
    offset = np.arange(_TAPS) - _TAPS // 2 + fraction[:, None]
    target = np.sinc(offset) * (0.5 + 0.5 * np.cos(2 * np.pi * offset / (_TAPS + 1)))
    powers = np.vander(fraction, _NUM_POWERS, increasing=True)
    return np.linalg.lstsq(powers, target, rcond=None)[0].astype(np.float32)


@numba_jit.njit_strict
def _locate(points, low, high, first, signs, shifts, radius, fade, arrival, gains):
    """Sets arrival [n] (samples) and gains [5, n] (W, Y, Z, X, distance); False if all are too far.

    Compiled without fastmath: an arrival that is computed twice must be the same number twice.
    """
    in_range = False
    for m in range(low, high + 1):
        x = signs[0] * points[m, 0] + shifts[0]
        y = signs[1] * points[m, 1] + shifts[1]
        z = signs[2] * points[m, 2] + shifts[2]
        distance = math.sqrt(x * x + y * y + z * z)
        level = 0.0
        if distance < radius:
            in_range = True
            level = 1.0 / distance
            if distance > fade:
                level *= math.cos(0.5 * math.pi * (distance - fade) / (radius - fade))
        arrival[m - low] = first + m * HOP + distance * _SAMPLES_PER_M
        gains[0, m - low] = level
        gains[1, m - low] = level * y / distance
        gains[2, m - low] = level * z / distance
        gains[3, m - low] = level * x / distance
        gains[4, m - low] = distance
    return in_range


@numba_jit.njit_fastmath
def _add_image(out, copies, low, high, arrival, gains, reflection, air, values, encoded):
    """Adds one image to out [4, 7, n], for hops low to high of the dry signal's filtered copies."""
    hops = high - low
    for m in range(hops):
        before, after = arrival[m], arrival[m + 1]
        start = max(math.ceil(before), 0)
        count = min(math.ceil(after), out.shape[2]) - start
        if count <= 0:
            continue
        slope = HOP / (after - before)
        emitted = (start - before) * slope  # samples of emission since the hop began
        # One integer offset between the two clocks while the delay changes by less than _MAX_DRIFT.
        block = count
        if abs(slope - 1) * count > _MAX_DRIFT:
            block = int(_MAX_DRIFT / abs(slope - 1))
        for first in range(0, count, block):
            last = min(first + block, count)
            offset = int(emitted + 0.5 * (first + last - 1) * (slope - 1) + 0.5)
            f, step = np.float32(emitted - offset), np.float32(slope - 1)
            at = (low + m) * HOP + offset
            for n in range(first, last):
                fraction = f + step * np.float32(n)
                value = copies[_NUM_POWERS - 1, at + n]
                for order in range(2, _NUM_POWERS + 1):
                    value = value * fraction + copies[_NUM_POWERS - order, at + n]
                values[n] = value
        ramp, ramp_start = np.float32(slope / HOP), np.float32(emitted / HOP)
        for c in range(4):
            # The slope is du/dt, the Doppler effect on levels.
            level = np.float32(gains[c, m] * slope)
            rise = np.float32(gains[c, m + 1] * slope) - level
            row = encoded[c]
            for n in range(count):
                row[n] = values[n] * (level + rise * (ramp_start + ramp * np.float32(n)))
        # Air attenuation changes little along a chunk: linear interpolation.
        weight = (m + 0.5) / hops
        for b in range(out.shape[1]):
            gain = np.float32(reflection[b] * (air[0, b] * (1 - weight) + air[1, b] * weight))
            for c in range(4):
                total, row = out[c, b, start : start + count], encoded[c]
                for n in range(count):
                    total[n] += gain * row[n]


@numba_jit.njit_strict
def _add_images(out, copies, points, first, x, y, z, radius, fade, reflection, air):
    """Adds all images to out [4, 7, n].

    x, y, z: [images, 3 + 7] of `_axis_images`. reflection: [order + 1, 7], powers of the largest
    reflection coefficient in each band.
    """
    arrival, gains = np.empty(_CHUNK + 1), np.empty((5, _CHUNK + 1))
    ends = np.empty((2, len(air)))
    # Doppler stretches a hop by v / c at most: twice its length suffices.
    values, encoded = np.empty(2 * HOP, np.float32), np.empty((4, 2 * HOP), np.float32)
    signs, shifts = np.empty(3), np.empty(3)
    last = len(points) - 1
    for low in range(0, last, _CHUNK):
        high = min(low + _CHUNK, last)
        for i in range(len(x)):
            signs[0], shifts[0] = x[i, 0], x[i, 1]
            for j in range(len(y)):
                signs[1], shifts[1] = y[j, 0], y[j, 1]
                for k in range(len(z)):
                    signs[2], shifts[2] = z[k, 0], z[k, 1]
                    gain = reflection[int(x[i, 2] + y[j, 2] + z[k, 2])]
                    gain = gain * x[i, 3:] * y[j, 3:] * z[k, 3:]
                    if gain.max() < _MIN_GAIN:
                        continue
                    segment = (points, low, high, first, signs, shifts, radius, fade)
                    if _locate(*segment, arrival, gains):
                        for b in range(len(air)):
                            ends[0, b] = math.exp(-0.5 * air[b] * gains[4, 0])
                            ends[1, b] = math.exp(-0.5 * air[b] * gains[4, high - low])
                        _add_image(
                            out, copies, low, high, arrival, gains, gain, ends, values, encoded
                        )


def _axis_images(
    points: np.ndarray, listener: float, size: float, radius: float, walls: np.ndarray
) -> np.ndarray:
    """Returns the images along one axis, [n, 3 + 7]: sign, shift, reflections, and seven gains.

    offset = sign * source + shift. walls: reflection coefficients [2, 7] of the two walls, relative
    to the largest of the room; so are the gains, which are 1 if all walls are the same.
    """
    periods = int(radius / (2 * size)) + 1
    i, mirrored = np.divmod(np.arange(-2 * periods, 2 * periods + 2), 2)
    sign, shift = 1.0 - 2 * mirrored, 2 * i * size - listener
    ends = sign[:, None] * [points.min(), points.max()] + shift[:, None]
    in_range = (np.abs(ends).min(axis=1) < radius) | (ends[:, 0] * ends[:, 1] < 0)
    low, high = np.abs(i - mirrored), np.abs(i)
    gains = walls[0] ** low[:, None] * walls[1] ** high[:, None]
    images = np.concatenate([np.stack([sign, shift, low + high], axis=1), gains], axis=1)
    return images[in_range].astype(float)


def mixing_radius(path: np.ndarray, size, listener) -> float:
    """Returns the path length (m) up to which images are followed: one mixing time."""
    farthest = np.linalg.norm(path[:, 1:] - listener, axis=1).max()
    return float(rir.mixing_time_at(size, farthest) * rooms.SPEED_OF_SOUND)


def early_sound(
    dry: np.ndarray,
    start: int,
    path,
    room: rooms.Shoebox,
    listener,
    length: int,
    full: bool = False,
) -> np.ndarray:
    """Returns direct sound and early images [4, length] float32 (W, Y, Z, X in room coordinates).

    dry: mono at 16 kHz, emitted from sample `start` on. path: [K, 4] (see paths), in seconds of
    emission. Images fade out while the noise tail fades in; full=True follows all of them until
    they have decayed by 60 dB.
    """
    path = np.asarray(path, float)
    radius = mixing_radius(path, room.size, listener)
    fade = radius * rir.FADE_START
    if full:
        decay = float(rooms.decay_time(room).max()) * rooms.SPEED_OF_SOUND
        radius = fade = max(decay, radius + 0.005 * rooms.SPEED_OF_SOUND)
    hops = -(-(len(dry) + 2 * _MARGIN) // HOP)
    times = (start - _MARGIN + HOP * np.arange(hops + 1)) / SAMPLE_RATE
    points = paths.position_at(path, times)
    walls = image_source.reflection_coefficients(room.absorption)
    loudest = walls.max(axis=0)
    walls = np.divide(walls, loudest, out=np.ones_like(walls), where=loudest > 0)
    x, y, z = (
        _axis_images(points[:, c], listener[c], room.size[c], radius, walls[2 * c : 2 * c + 2])
        for c in range(3)
    )
    most = int(sum(axis[:, 2].max() for axis in (x, y, z)))
    reflection = loudest ** np.arange(most + 1)[:, None]
    out = np.zeros((4, len(rooms.BANDS), _MARGIN + length + _RINGING), np.float32)
    # The dry signal and `out` have the same margin, so `start` remains valid.
    args = (out, _filtered_copies(dry, hops), points, float(start), x, y, z, radius, fade)
    _add_images(*args, reflection, rooms.AIR_ABSORPTION * room.air)
    size = scipy.fft.next_fast_len(out.shape[-1] + _RINGING, real=True)
    band_gains = bands.rfft_gains(size)
    spectrum = np.zeros((4, band_gains.shape[1]), np.complex64)
    for band, gain in enumerate(band_gains):
        spectrum += scipy.fft.rfft(out[:, band], size) * gain
    return rir.high_pass(scipy.fft.irfft(spectrum, size)[:, _MARGIN : _MARGIN + length])


def _filtered_copies(dry: np.ndarray, hops: int) -> np.ndarray:
    """Returns the filtered copies [7, hops * HOP + 2] of a signal with _MARGIN before it."""
    padded = np.zeros(hops * HOP + 2, np.float32)
    padded[_MARGIN : _MARGIN + len(dry)] = dry
    # "same" is centred on the first argument, and takes its shape from there.
    repeated = np.broadcast_to(padded, (_NUM_POWERS, len(padded)))
    copies = scipy.signal.oaconvolve(repeated, _farrow_filters(), mode="same", axes=1)
    return np.ascontiguousarray(copies, dtype=np.float32)


def late_segments(
    dry: np.ndarray, start: int, path, room: rooms.Shoebox, listener, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields faded segments of the dry signal [n], and the late RIR [4, m] of each.

    The squares of the fades sum to 1, and the tails (rir.late_reverb) are independent of each
    other, as the diffuse field is at positions half a metre apart (at 1 kHz, from 0.17 m on).
    """
    path = np.asarray(path, float)
    lengths = paths.cumulative_length(path)
    distance = np.interp((start + np.arange(len(dry))) / SAMPLE_RATE, path[:, 0], lengths)
    total = distance[-1] - distance[0]
    steps = max(round(total / TAIL_STEP_M), 1) if total > 0 else 0
    progress = (distance - distance[0]) / total * steps if steps else np.zeros(len(dry))
    stops = np.linspace(distance[0], distance[-1], steps + 1)
    positions = np.stack([np.interp(stops, lengths, path[:, c]) for c in (1, 2, 3)], axis=1)
    if (
        mixing_radius(path, room.size, listener)
        > rooms.mixing_time(room.size) * rooms.SPEED_OF_SOUND
    ):
        # A distant source in a flat room: no tail may begin before the images fade out.
        distances = np.linalg.norm(path[:, 1:] - listener, axis=1)
        positions[:] = path[distances.argmax(), 1:]
    for k, position in enumerate(positions):
        weight = np.maximum(1 - np.abs(progress - k), 0)
        segment = dry * np.sin(np.pi / 2 * weight).astype(np.float32)
        source_distance = math.dist(position, listener)
        # As the moving images: one mixing time in all bands.
        ends = (float(rir.mixing_time_at(room.size, source_distance)),) * 2
        seconds = rir.rir_duration(room, source_distance)
        late = rir.late_reverb(room, position, listener, ends, seconds, rng)
        yield segment, rir.high_pass(late)
