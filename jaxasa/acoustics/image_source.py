"""The image-source method for shoeboxes (Allen and Berkley 1979), straight into FOA.

The walls of a room mirror a source into a lattice of images. Each one within the radius sends
an impulse that arrives after distance / c, with the gain 1 / distance, times sqrt(1 - absorption)
of each wall that it has met, times what air takes. No microphones: an image is encoded
by its own direction into W, Y, Z, X.

Delays are fractions of a sample. A Hann-windowed sinc delayed by f is nearly a polynomial in f
whose coefficients are fixed filters (Farrow 1988), so an image only adds its gains times
1, f, ..., f^5 at its nearest sample, and all filters run once per response, on spectra, together
with the gains of the octave bands. The error is below -60 dB up to 7 kHz.

    >>> from jaxasa.acoustics import bands, image_source
    >>> direct = image_source.images((9, 9, 9), [1.0] * 7, (6.43, 4, 4), (3, 4, 4), 5.0, air=False)
    >>> int(direct[0].argmax()) - bands.LEAD  # 3.43 m, 10 ms, 160 samples
    160
"""

import functools
import math

import numba
import numpy as np
import scipy.fft

from jaxasa.acoustics import bands, rooms

ORDER = 6  # powers of the fractional delay
_TAPS = 81
# The filters of low bands ring on both sides, and transforms are circular.
_RING = 1024


@functools.cache
def farrow() -> np.ndarray:
    """Returns the filters [6, 81]: sum_k f^k filter_k is the Hann-windowed sinc delayed by f."""
    fraction = np.linspace(-0.5, 0.5, 129)
    offset = np.arange(_TAPS) - _TAPS // 2 - fraction[:, None]
    target = np.sinc(offset) * (0.5 + 0.5 * np.cos(2 * np.pi * offset / (_TAPS + 1)))
    powers = np.vander(fraction, ORDER, increasing=True)
    return np.linalg.lstsq(powers, target, rcond=None)[0]


@functools.lru_cache(maxsize=32)
def spectra(size: int) -> np.ndarray:
    """Returns the filters' spectra [6, size // 2 + 1] complex64; time zero moves to LEAD."""
    shifted = np.zeros((ORDER, size))
    start = bands.LEAD - _TAPS // 2
    shifted[:, start : start + _TAPS] = farrow()
    return np.fft.rfft(shifted).astype(np.complex64)


def transform_size(length: int) -> int:
    """Returns the size of the transform that holds `length` samples and what rings around them."""
    return scipy.fft.next_fast_len(length + bands.LEAD + _RING, real=True)


def axis_images(source: float, listener: float, size: float, radius: float):
    """Returns the images of one axis within `radius` (m) of the listener.

    Offsets from the listener (m), and how often each has met the wall at 0 and at `size`.
    """
    reach = int(radius / (2 * size)) + 1
    i, mirrored = np.divmod(np.arange(-2 * reach, 2 * reach + 2), 2)
    offset = (1 - 2 * mirrored) * float(source) + 2 * i * size - listener
    near = np.abs(offset) < radius
    return offset[near], np.abs(i - mirrored)[near], np.abs(i)[near]


def reflections(absorption) -> np.ndarray:
    """Returns the pressure reflection [6, 7] of each wall per band; absorption: [7] or [6, 7]."""
    reflect = np.sqrt(1 - np.asarray(absorption, float))
    return np.broadcast_to(reflect, (len(rooms.WALLS), reflect.shape[-1]))


@numba.njit(cache=True, fastmath=True)
def _add_images(out, x, y, z, gain_x, gain_y, gain_z, radius, fade, air):
    """Adds the powers of each image to out [n, bands, 24]; x, y, z (m) are from the listener."""
    count = out.shape[1]
    values = np.empty(24, np.float32)
    damped = air.max() > 0
    for i in range(len(x)):
        for j in range(len(y)):
            flat = x[i] * x[i] + y[j] * y[j]
            if flat >= radius * radius:
                continue
            for k in range(len(z)):
                square = flat + z[k] * z[k]
                if square >= radius * radius:
                    continue
                distance = math.sqrt(square)
                time = distance * (bands.RATE / rooms.SPEED)
                sample = int(time + 0.5)
                fraction = time - sample
                level = 1.0 / distance
                if distance > fade:
                    level *= math.cos(0.5 * math.pi * (distance - fade) / (radius - fade))
                over = level / distance
                power = 1.0
                for p in range(6):
                    values[p] = level * power
                    values[6 + p] = over * y[j] * power
                    values[12 + p] = over * z[k] * power
                    values[18 + p] = over * x[i] * power
                    power *= fraction
                for b in range(count):
                    gain = gain_x[i, b] * gain_y[j, b] * gain_z[k, b]
                    if damped:
                        gain *= np.float32(math.exp(-0.5 * air[b] * distance))
                    row = out[sample, b]
                    for v in range(24):
                        row[v] += gain * values[v]


@numba.njit(cache=True, fastmath=True)
def _filter(spectrum, filters, weights):
    """Returns [4, F]: the powers' spectrum [F, bands, 24] through their filters, bands weighed."""
    out = np.empty((4, spectrum.shape[0]), np.complex64)
    for f in range(spectrum.shape[0]):
        for c in range(4):
            total = np.complex64(0)
            for k in range(6):
                mixed = np.complex64(0)
                for b in range(spectrum.shape[1]):
                    mixed += weights[b, f] * spectrum[f, b, 6 * c + k]
                total += filters[k, f] * mixed
            out[c, f] = total
    return out


def images(
    room, absorption, source, listener, radius: float, fade: float | None = None, air: bool = True
) -> np.ndarray:
    """Returns the images nearer than `radius` (m), [4, n + LEAD] float32; time zero is LEAD.

    room, source, listener: x, y, z in metres. absorption: [7] of all walls, or [6, 7] by
    rooms.WALLS, per octave band. From the distance `fade` (m) on images fade out as a cosine
    that ends at `radius`.
    """
    axes = [axis_images(*a, radius) for a in zip(source, listener, room, strict=True)]
    reflect = reflections(absorption)
    damping = rooms.AIR if air else np.zeros(1)
    if not air and (reflect == reflect[:, :1]).all():
        reflect = reflect[:, :1]  # flat walls: one band does for all
    gains = [
        (reflect[2 * d] ** low[:, None] * reflect[2 * d + 1] ** high[:, None]).astype(np.float32)
        for d, (_, low, high) in enumerate(axes)
    ]
    length = int(radius * bands.RATE / rooms.SPEED) + 2
    size = transform_size(length)
    powers = np.zeros((size, reflect.shape[1], 24), np.float32)
    offsets = [offset for offset, _, _ in axes]
    fade = radius if fade is None else fade
    _add_images(powers[:length], *offsets, *gains, float(radius), float(fade), damping)
    weights = np.ones((1, size // 2 + 1), np.float32)
    if reflect.shape[1] > 1:
        weights = bands.weights_of(size)
    spectrum = _filter(scipy.fft.rfft(powers, axis=0), spectra(size), weights)
    return scipy.fft.irfft(spectrum, size)[:, : length + bands.LEAD]
