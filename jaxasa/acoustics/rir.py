"""Room responses in first-order ambisonics: images straight into spherical harmonics, then a tail.

Each image of the source (Allen and Berkley 1979) is encoded from its own direction into
W, Y, Z, X: no microphones. Its gain is 1 / distance, times the walls' reflection and the air's
attenuation in each octave band. Fractional delays are a Farrow structure: the taps of an image
at n + f samples are a polynomial in f whose coefficients are six fixed filters.

Images are exact up to the mixing time. The rest is Gaussian noise with the energy, decay and
anisotropy that `rooms.tail_energy` expects of the images, joined by a sine and cosine
cross-fade. `full=True` follows all images to the end instead: the reference.
"""

import functools
import math

import numba
import numpy as np
import scipy.fft
import scipy.signal

from jaxasa.acoustics import rooms

RATE = 16000
LEAD = 64  # samples of a response before time zero: delay filters are symmetric
_TAPS, _ORDER = 81, 6
_FRAME = 256
_HIGH_PASS = scipy.signal.butter(4, 100.0, "highpass", fs=RATE, output="sos")


def band_weights(frequencies: np.ndarray) -> np.ndarray:
    """Returns the weight of each octave band [7, F] at frequencies (Hz); they sum to 1."""
    octave = np.log2(np.maximum(frequencies, 1e-3) / rooms.BANDS[0])
    position = np.clip(octave, 0, len(rooms.BANDS) - 1)
    distance = np.abs(position - np.arange(len(rooms.BANDS))[:, None])
    return np.cos(np.pi / 2 * np.minimum(distance, 1)) ** 2


@functools.lru_cache(maxsize=64)
def _band_weights_of(size: int) -> np.ndarray:
    return band_weights(np.fft.rfftfreq(size, 1 / RATE)).astype(np.float32)


@functools.cache
def _farrow() -> np.ndarray:
    """Returns the filters [6, 81]: sum_k f^k filter_k is the Hann-windowed sinc delayed by f."""
    fraction = np.linspace(-0.5, 0.5, 129)
    offset = np.arange(_TAPS) - _TAPS // 2 - fraction[:, None]
    target = np.sinc(offset) * (0.5 + 0.5 * np.cos(2 * np.pi * offset / (_TAPS + 1)))
    powers = np.vander(fraction, _ORDER, increasing=True)
    return np.linalg.lstsq(powers, target, rcond=None)[0].astype(np.float32)


@numba.njit(cache=True, fastmath=True)
def _add_images(out, x, y, z, hits_x, hits_y, hits_z, radius, fade, reflection, air, filters):
    """Adds each image to out [4, 7, n + 80]; x, y, z (m) are its offsets from the listener."""
    orders, width = filters.shape
    taps = np.empty(width, np.float32)
    harmonic = np.empty(4)
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
                time = distance * (RATE / rooms.SPEED)
                sample = int(time + 0.5)
                fraction = np.float32(time - sample)
                taps[:] = filters[orders - 1]
                for order in range(orders - 2, -1, -1):
                    for t in range(width):
                        taps[t] = taps[t] * fraction + filters[order, t]
                level = 1.0 / distance
                if distance > fade:
                    level *= math.cos(0.5 * math.pi * (distance - fade) / (radius - fade))
                harmonic[0] = level
                harmonic[1] = level * y[j] / distance
                harmonic[2] = level * z[k] / distance
                harmonic[3] = level * x[i] / distance
                hits = hits_x[i] + hits_y[j] + hits_z[k]
                for b in range(out.shape[1]):
                    gain = reflection[hits, b] * math.exp(-0.5 * air[b] * distance)
                    for c in range(4):
                        amplitude = np.float32(gain * harmonic[c])
                        row = out[c, b, sample : sample + width]
                        for t in range(width):
                            row[t] += amplitude * taps[t]


def _axis(source: float, listener: float, size: float, radius: float):
    """Returns offsets (m) of the images along one axis, and how many walls each has met."""
    reach = int(radius / (2 * size)) + 1
    i, mirrored = np.divmod(np.arange(-2 * reach, 2 * reach + 2), 2)
    offset = (1 - 2 * mirrored) * float(source) + 2 * i * size - listener
    near = np.abs(offset) < radius
    return offset[near], (np.abs(i - mirrored) + np.abs(i))[near]


def _images(room, absorption, source, listener, radius: float, fade: float) -> np.ndarray:
    """Returns the images nearer than `radius` (m), [4, n + LEAD], faded out from `fade` (m)."""
    axes = [_axis(*a, radius) for a in zip(source, listener, room, strict=True)]
    (x, y, z), hits = zip(*axes, strict=True)
    most = sum(int(h.max()) for h in hits)
    reflect = np.sqrt(1 - np.asarray(absorption))
    reflection = reflect ** np.arange(most + 1)[:, None]
    length = int(radius * RATE / rooms.SPEED) + 2
    out = np.zeros((4, len(rooms.BANDS), length + _TAPS - 1), np.float32)
    _add_images(out, x, y, z, *hits, float(radius), float(fade), reflection, rooms.AIR, _farrow())
    # The filters of low bands ring on both sides: room for them, circularly.
    size = scipy.fft.next_fast_len(out.shape[-1] + LEAD + 1024, real=True)
    weights = _band_weights_of(size)
    mixed = np.einsum("cbf,bf->cf", scipy.fft.rfft(out, size), weights)
    return np.roll(scipy.fft.irfft(mixed, size), LEAD - _TAPS // 2, axis=1)[:, : length + LEAD]


def noise_spectrum(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns complex64 [*shape], real and imaginary parts of variance 1, to be transformed.

    Uniform draws cost a fifth of normal ones, and any transform of a hundred of them is normal.
    """
    draws = rng.random((*shape[:-1], 2 * shape[-1]), np.float32)
    draws -= np.float32(0.5)
    draws *= np.float32(12**0.5)
    return draws.view(np.complex64)


def _tail(room, absorption, length: int, rng: np.random.Generator) -> np.ndarray:
    """Returns noise [4, length] with the expected energy of all images in each band and time.

    Frames of shaped noise overlap by half under a sine window, so that powers add up.
    """
    frames, hop = -(-length // (_FRAME // 2)) + 1, _FRAME // 2
    energy = rooms.tail_energy(room, absorption, np.arange(frames) * hop / RATE) / RATE
    weights = _band_weights_of(_FRAME)
    shape = np.einsum("bct,bf->ctf", np.sqrt(energy), weights) * (_FRAME / 2) ** 0.5
    spectrum = noise_spectrum(rng, 4, frames, weights.shape[1]) * shape.astype(np.float32)
    window = np.sin(np.pi * (np.arange(_FRAME) + 0.5) / _FRAME).astype(np.float32)
    framed = scipy.fft.irfft(spectrum, _FRAME) * window
    # Frame t is centred on t * hop: its first half belongs to the hop before.
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(4, -1)[:, :length]


def high_pass(signal: np.ndarray) -> np.ndarray:
    """Returns signal [..., T] without what is below 100 Hz (Butterworth, fourth order).

    All images are positive and add up at DC, where no loudspeaker or microphone goes.
    """
    return scipy.signal.sosfilt(_HIGH_PASS, signal).astype(np.float32, copy=False)


def response(
    room, absorption, source, listener, rng: np.random.Generator, full: bool = False
) -> np.ndarray:
    """Returns the response [4, n] float32 (W, Y, Z, X in the room's frame) from source to listener.

    room, source, listener: x, y, z in metres. absorption: [7], of all walls, per octave band.
    Time zero is sample LEAD, and the direct sound has the gain 1 / distance. It lasts until the
    slowest band has fallen by 60 dB. rng draws the tail; full=True follows every image instead.
    """
    direct = math.dist(source, listener) / rooms.SPEED
    # A far source in a flat room: its direct sound must come before the cross-fade.
    mixing = max(rooms.mixing_time(room), 1.5 * direct + 0.005)
    seconds = max(float(rooms.decay_time(room, absorption).max()), mixing + 0.005)
    length = int(seconds * RATE)
    if full:
        radius = seconds * rooms.SPEED
        return high_pass(_images(room, absorption, source, listener, radius, radius))
    radius = mixing * rooms.SPEED
    early = _images(room, absorption, source, listener, radius, radius * 2 / 3)
    out = np.zeros((4, length + LEAD), np.float32)
    out[:, : early.shape[1]] = early[:, : length + LEAD]
    start = int(mixing * 2 / 3 * RATE)
    phase = (np.arange(length) / RATE / mixing * 3 - 2).clip(0, 1) * np.pi / 2
    late = _tail(room, absorption, length, rng) * np.sin(phase).astype(np.float32)
    out[:, LEAD + start :] += late[:, start:]
    return high_pass(out)


def rt60(response: np.ndarray) -> float:
    """Returns the RT60 (s) of a response [4, n]: T20 on W, mean of the 500 Hz and 1 kHz octaves.

    Schroeder's backward integration, then a line fitted from -5 to -25 dB (ISO 3382). NaN where
    the direct sound alone exceeds the rest by so much that no line can be fitted.
    """
    signal = response[0, LEAD:]
    size = scipy.fft.next_fast_len(len(signal) + 2048, real=True)
    spectrum = scipy.fft.rfft(signal, size)
    f = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 1e-3)
    decays = []
    for centre in (500.0, 1000.0):
        # Third-order Butterworth band-pass of one octave (IEC 61260), without its phase.
        octave = 1 / np.sqrt(1 + (2**0.5 * (f / centre - centre / f)) ** 6)
        band = scipy.fft.irfft(spectrum * octave.astype(np.float32), size)[: len(signal)]
        decays.append(_t20(band))
    return float(np.mean(decays))


def _t20(signal: np.ndarray, step: int = 8) -> float:
    """Returns the T20 (s, extrapolated to 60 dB) of a signal, in energies of `step` samples."""
    usable = len(signal) // step * step
    energy = (signal[:usable].reshape(-1, step).astype(float) ** 2).sum(axis=1)
    decay = np.cumsum(energy[::-1])[::-1]
    level = 10 * np.log10(decay / decay[0] + 1e-12)
    use = np.flatnonzero((level <= -5) & (level >= -25))
    if len(use) * step < RATE // 200:
        return float("nan")
    x, y = use - use.mean(), level[use]
    return float(-60 * step * (x @ x) / (x @ y) / RATE)


def drr(response: np.ndarray, distance: float) -> float:
    """Returns the direct-to-reverberant ratio (dB) on W of a response [4, n].

    Direct is what comes up to 2.5 ms after the direct sound of a source at `distance` (m).
    """
    split = LEAD + round(distance / rooms.SPEED * RATE) + RATE // 400
    energy = response[0].astype(float) ** 2
    return float(10 * np.log10(energy[:split].sum() / max(energy[split:].sum(), 1e-12)))
