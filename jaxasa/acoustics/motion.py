# SPDX-License-Identifier: Apache-2.0
"""The sound of a moving source: time-varying delays for direct sound and early images.

A point source of signal s on the path p(s) gives, in the free field (the retarded solution of
the wave equation; Morse and Ingard, Theoretical Acoustics, 1968, chapter 11),

    y(t) = s(u) / (d(u) (1 + d'(u) / c)),    u + d(u) / c = t,    d(u) = |p(u) - listener|

which is what superposing the room's responses does when each sample of s is given the response
of the place where it was emitted. Doppler comes with it. The images of a moving source in a
shoebox move with it, mirrored, so each early image has a path, a direction and a delay of its
own. The diffuse tail has no paths: tails drawn independently take turns, every half metre, with
gains whose squares sum to 1. Where walls are uneven there are late images instead, which stand
still at each of these places and take the same turns.

Delays and gains are computed every HOP samples of emission, and between them u is linear in t:
at speed v and distance d that errs by v^2 HOP^2 / (8 d) metres, at 2 m/s and 0.5 m 1/20000 of a
sample. The signal at a fractional time u is read by a Farrow structure turned around: seven
filtered copies of the dry signal, once for all images, then a polynomial in the fraction for
each sample and image.

    >>> import numpy as np
    >>> from jaxasa.acoustics import motion, rooms
    >>> room, listener = (6.0, 5.0, 3.0), (3.0, 2.0, 1.5)
    >>> path = np.array([[0.0, 1.0, 4.0, 1.5], [1.0, 5.0, 4.0, 1.5]])
    >>> dry = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    >>> motion.early_sound(dry, 0, path, room, rooms.absorption(room, 0.4), listener, 20000).shape
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
TAIL_STEP_M = 0.5  # metres that a source moves from one tail to the next
_TAPS, _ORDER = 81, 7
_DRIFT = 0.2  # samples
_CHUNK = 32  # hops: what they add to stays in the cache while all images pass
_MARGIN = 64  # samples before and after the dry signal, for its interpolation; a multiple of HOP
_RING = 1024  # samples that the filters of low bands ring on
_NOTHING = 1e-5  # reflection (-100 dB) below which an image is left out
_SAMPLES = SAMPLE_RATE / rooms.SPEED_OF_SOUND  # samples a metre


@functools.cache
def _readers() -> np.ndarray:
    """Returns filters [7, 81]: a signal f samples later is sum_k f^k (filter_k * signal).

    The fractions go a little beyond a half: the delay moves on while one offset serves.
    """
    fraction = np.linspace(-0.5 - _DRIFT / 2, 0.5 + _DRIFT / 2, 129)
    offset = np.arange(_TAPS) - _TAPS // 2 + fraction[:, None]
    target = np.sinc(offset) * (0.5 + 0.5 * np.cos(2 * np.pi * offset / (_TAPS + 1)))
    powers = np.vander(fraction, _ORDER, increasing=True)
    return np.linalg.lstsq(powers, target, rcond=None)[0].astype(np.float32)


@numba_jit.njit_strict
def _place(points, low, high, first, signs, shifts, radius, fade, arrival, gains):
    """Sets arrival [n] (samples) and gains [5, n] (W, Y, Z, X, distance); False if out of reach.

    No fast arithmetic here: an arrival computed twice must be the same number twice.
    """
    near = False
    for m in range(low, high + 1):
        x = signs[0] * points[m, 0] + shifts[0]
        y = signs[1] * points[m, 1] + shifts[1]
        z = signs[2] * points[m, 2] + shifts[2]
        distance = math.sqrt(x * x + y * y + z * z)
        level = 0.0
        if distance < radius:
            near = True
            level = 1.0 / distance
            if distance > fade:
                level *= math.cos(0.5 * math.pi * (distance - fade) / (radius - fade))
        arrival[m - low] = first + m * HOP + distance * _SAMPLES
        gains[0, m - low] = level
        gains[1, m - low] = level * y / distance
        gains[2, m - low] = level * z / distance
        gains[3, m - low] = level * x / distance
        gains[4, m - low] = distance
    return near


@numba_jit.njit_fastmath
def _read(out, copies, low, high, arrival, gains, reflection, air, values, encoded):
    """Adds one image to out [4, 7, n] for the hops low to high of the dry signal's copies."""
    hops = high - low
    for m in range(hops):
        before, after = arrival[m], arrival[m + 1]
        start = max(int(math.ceil(before)), 0)
        count = min(int(math.ceil(after)), out.shape[2]) - start
        if count <= 0:
            continue
        slope = HOP / (after - before)
        into = (start - before) * slope  # samples of emission since the hop began
        # While the delay moves by less than _DRIFT, one offset between the two clocks serves.
        block = count
        if abs(slope - 1) * count > _DRIFT:
            block = int(_DRIFT / abs(slope - 1))
        for first in range(0, count, block):
            last = min(first + block, count)
            offset = int(into + 0.5 * (first + last - 1) * (slope - 1) + 0.5)
            f, step = np.float32(into - offset), np.float32(slope - 1)
            at = (low + m) * HOP + offset
            for n in range(first, last):
                fraction = f + step * np.float32(n)
                value = copies[_ORDER - 1, at + n]
                for order in range(2, _ORDER + 1):
                    value = value * fraction + copies[_ORDER - order, at + n]
                values[n] = value
        ramp, begun = np.float32(slope / HOP), np.float32(into / HOP)
        for c in range(4):
            # dt/du, the Doppler effect on levels, is the slope.
            level = np.float32(gains[c, m] * slope)
            rise = np.float32(gains[c, m + 1] * slope) - level
            row = encoded[c]
            for n in range(count):
                row[n] = values[n] * (level + rise * (begun + ramp * np.float32(n)))
        # Air changes little along a chunk, and in between evenly enough.
        share = (m + 0.5) / hops
        for b in range(out.shape[1]):
            gain = np.float32(reflection[b] * (air[0, b] * (1 - share) + air[1, b] * share))
            for c in range(4):
                total, row = out[c, b, start : start + count], encoded[c]
                for n in range(count):
                    total[n] += gain * row[n]


@numba_jit.njit_strict
def _add_images(out, copies, points, first, x, y, z, radius, fade, reflection, air):
    """Adds all images to out [4, 7, n]. x, y, z: [images, 3 + 7] of each axis, as _axis has them.

    reflection: [hits + 1, 7], of walls that all are the loudest of their band.
    """
    arrival, gains = np.empty(_CHUNK + 1), np.empty((5, _CHUNK + 1))
    ends = np.empty((2, len(air)))
    # A hop is heard stretched by v / c at most: twice its length is plenty.
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
                    if gain.max() < _NOTHING:
                        continue
                    where = (points, low, high, first, signs, shifts, radius, fade)
                    if _place(*where, arrival, gains):
                        for b in range(len(air)):
                            ends[0, b] = math.exp(-0.5 * air[b] * gains[4, 0])
                            ends[1, b] = math.exp(-0.5 * air[b] * gains[4, high - low])
                        heard = (arrival, gains, gain, ends)
                        _read(out, copies, low, high, *heard, values, encoded)


def _axis(
    points: np.ndarray, listener: float, size: float, radius: float, walls: np.ndarray
) -> np.ndarray:
    """Returns the images along one axis, [n, 3 + 7]: sign, shift, walls met, and seven gains.

    offset = sign * source + shift. walls: reflection [2, 7] of the two, over that of the loudest
    wall of the room; gains are theirs, 1 where all walls are alike.
    """
    reach = int(radius / (2 * size)) + 1
    i, mirrored = np.divmod(np.arange(-2 * reach, 2 * reach + 2), 2)
    sign, shift = 1.0 - 2 * mirrored, 2 * i * size - listener
    ends = sign[:, None] * [points.min(), points.max()] + shift[:, None]
    near = (np.abs(ends).min(axis=1) < radius) | (ends[:, 0] * ends[:, 1] < 0)
    low, high = np.abs(i - mirrored), np.abs(i)
    gains = walls[0] ** low[:, None] * walls[1] ** high[:, None]
    images = np.concatenate([np.stack([sign, shift, low + high], axis=1), gains], axis=1)
    return images[near].astype(float)


def mixing_radius(path: np.ndarray, room, listener) -> float:
    """Returns the path length (m) up to which images are followed: of one mixing time."""
    furthest = np.linalg.norm(path[:, 1:] - listener, axis=1).max()
    return float(rir.mixing_time_at(room, furthest) * rooms.SPEED_OF_SOUND)


def early_sound(
    dry: np.ndarray,
    start: int,
    path,
    room,
    absorption,
    listener,
    length: int,
    full: bool = False,
    air: bool = True,
) -> np.ndarray:
    """Returns direct sound and early images [4, length] float32 (W, Y, Z, X in the room's frame).

    dry: mono at 16 kHz, emitted from sample `start` on. path: [K, 4] (see paths), in seconds of
    emission. absorption: [7], or [6, 7] by rooms.WALLS, per octave band. Images fade out where
    the tail of a response comes in; full=True follows all of them until they have fallen by 60
    dB. air=False leaves the air's absorption out.
    """
    path = np.asarray(path, float)
    radius = mixing_radius(path, room, listener)
    fade = radius * rir.FADE_START
    if full:
        decay = float(rooms.decay_time(room, absorption, air).max()) * rooms.SPEED_OF_SOUND
        radius = fade = max(decay, radius + 0.005 * rooms.SPEED_OF_SOUND)
    hops = -(-(len(dry) + 2 * _MARGIN) // HOP)
    times = (start - _MARGIN + HOP * np.arange(hops + 1)) / SAMPLE_RATE
    points = paths.position_at(path, times)
    walls = image_source.reflection_coefficients(absorption)
    loudest = walls.max(axis=0)
    walls = np.divide(walls, loudest, out=np.ones_like(walls), where=loudest > 0)
    x, y, z = (
        _axis(points[:, c], listener[c], room[c], radius, walls[2 * c : 2 * c + 2])
        for c in range(3)
    )
    most = int(sum(axis[:, 2].max() for axis in (x, y, z)))
    reflection = loudest ** np.arange(most + 1)[:, None]
    out = np.zeros((4, len(rooms.BANDS), _MARGIN + length + _RING), np.float32)
    # Both the dry signal's margin and the room for it in `out` are _MARGIN: `start` remains.
    args = (out, _copies(dry, hops), points, float(start), x, y, z, radius, fade)
    _add_images(*args, reflection, rooms.AIR_ABSORPTION * air)
    size = scipy.fft.next_fast_len(out.shape[-1] + _RING, real=True)
    weights = bands.rfft_gains(size)
    spectrum = np.zeros((4, weights.shape[1]), np.complex64)
    for band, weight in enumerate(weights):
        spectrum += scipy.fft.rfft(out[:, band], size) * weight
    return rir.high_pass(scipy.fft.irfft(spectrum, size)[:, _MARGIN : _MARGIN + length])


def _copies(dry: np.ndarray, hops: int) -> np.ndarray:
    """Returns the filtered copies [7, hops * HOP + 2] of a signal with _MARGIN before it."""
    padded = np.zeros(hops * HOP + 2, np.float32)
    padded[_MARGIN : _MARGIN + len(dry)] = dry
    # "same" is centred on the first argument, and takes its shape from there.
    repeated = np.broadcast_to(padded, (_ORDER, len(padded)))
    copies = scipy.signal.oaconvolve(repeated, _readers(), mode="same", axes=1)
    return np.ascontiguousarray(copies, dtype=np.float32)


def late_segments(
    dry: np.ndarray,
    start: int,
    path,
    room,
    absorption,
    listener,
    rng: np.random.Generator,
    air: bool = True,
    scattering: float = 0.0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields parts of the dry signal [n] and what each is heard through, [4, m]: see rir.late.

    The squares of the parts sum to that of the signal, and tails are independent of each other:
    so is a room's diffuse field at places half a metre apart (at 1 kHz, from 0.17 m on).
    scattering: as in rir.response.
    """
    path = np.asarray(path, float)
    travelled = paths.cumulative_length(path)
    way = np.interp((start + np.arange(len(dry))) / SAMPLE_RATE, path[:, 0], travelled)
    length = way[-1] - way[0]
    steps = max(round(length / TAIL_STEP_M), 1) if length > 0 else 0
    position = (way - way[0]) / length * steps if steps else np.zeros(len(dry))
    marks = np.linspace(way[0], way[-1], steps + 1)
    places = np.stack([np.interp(marks, travelled, path[:, c]) for c in (1, 2, 3)], axis=1)
    if mixing_radius(path, room, listener) > rooms.mixing_time(room) * rooms.SPEED_OF_SOUND:
        # Far in a flat room: no tail may begin earlier than the images' fade.
        away = np.linalg.norm(path[:, 1:] - listener, axis=1)
        places[:] = path[away.argmax(), 1:]
    for k, place in enumerate(places):
        near = np.maximum(1 - np.abs(position - k), 0)
        part = dry * np.sin(np.pi / 2 * near).astype(np.float32)
        where = (room, absorption, place, listener)
        distance = math.dist(place, listener)
        ends = (float(rir.mixing_time_at(room, distance)),) * 2  # as images that move are followed
        seconds = rir.rir_duration(room, absorption, distance, air)
        late = rir.late_reverb(where, ends, seconds, rng, air, scattering)
        yield part, rir.high_pass(late)
