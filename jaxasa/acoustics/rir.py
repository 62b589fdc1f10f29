# SPDX-License-Identifier: Apache-2.0
"""Room impulse responses (RIRs) in first-order ambisonics: image sources, then a noise tail.

Early reflections are image sources (image_source.py) for EARLY_MIXING_TIMES; by then a decay of
20 dB is mostly over. The rest is noise with the energy, decay and directions expected of the
images (tail.py), after a cosine cross-fade in which energies add up to the whole.

In the two lowest octaves rooms have too few modes for noise of a known level: Schroeder's
frequency, 2000 sqrt(RT60 / V), is in this range. Their images are followed for the whole decay,
or up to MAX_LOW_BAND_IMAGES.

If absorption differs between walls (rooms.has_nonuniform_absorption), late sound is not diffuse:
it persists along the axes whose walls absorb least. Then all images are followed to the end of the
RIR, or up to MAX_COARSE_IMAGES, the late ones rounded to the nearest sample, unless walls scatter.

`full=True` follows all images exactly, as the reference. All images are positive and add up at
low frequencies that no loudspeaker or microphone reproduces: a high-pass at 100 Hz is applied last.

    >>> import numpy as np
    >>> from jaxasa.acoustics import measure, rir, rooms
    >>> room = rooms.Shoebox((6, 5, 3), rooms.absorption((6, 5, 3), 0.4))
    >>> foa = rir.shoebox_rir(room, (1, 1, 1.5), (3, 2, 1.5), np.random.default_rng(0))
    >>> foa.shape
    (4, 6464)
    >>> bool(0.3 < measure.rt60(foa) < 0.5)
    True
"""

import math

import numpy as np
import scipy.signal

from jaxasa.acoustics import image_source, numba_jit, rooms, tail
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

FADE_START = 2 / 3  # of the time at which the cross-fade from images to the tail ends
EARLY_MIXING_TIMES = 3.5
# The lowest octaves, whose images are computed at a low sample rate, so that they are cheap.
NUM_LOW_BANDS, MAX_LOW_BAND_IMAGES = 2, 60_000
MAX_COARSE_IMAGES = 10_000_000  # half a second of computation at most
# Octave bands whose images are computed together, and their decimation.
BAND_GROUPS = ((slice(NUM_LOW_BANDS, None), 1), (slice(NUM_LOW_BANDS), 8))
HIGH_PASS_SOS = scipy.signal.butter(4, rooms.HIGH_PASS_HZ, "highpass", fs=SAMPLE_RATE, output="sos")


@numba_jit.njit_fastmath
def _filter_sos(sections, signal, out):
    """Filters signal [C, T] through second-order sections [K, 6] (direct form II transposed)."""
    for c in range(signal.shape[0]):
        state = np.zeros((sections.shape[0], 2))
        for t in range(signal.shape[1]):
            value = np.float64(signal[c, t])
            for k in range(sections.shape[0]):
                b0, b1, b2, _, a1, a2 = sections[k]
                new = b0 * value + state[k, 0]
                state[k, 0] = b1 * value - a1 * new + state[k, 1]
                state[k, 1] = b2 * value - a2 * new
                value = new
            out[c, t] = value


def high_pass(signal: np.ndarray) -> np.ndarray:
    """Returns a signal [..., T] as float32 after a fourth-order Butterworth high-pass at 100 Hz."""
    out = np.empty(signal.shape, np.float32)
    rows = np.ascontiguousarray(signal).reshape(-1, signal.shape[-1])
    _filter_sos(HIGH_PASS_SOS, rows, out.reshape(rows.shape))
    return out


def mixing_time_at(size, distance, xp=np):
    """Returns the time (s) from which the RIR of a source at `distance` (m) may be noise only.

    The mixing time of the room, or later: the direct sound of a distant source in a flat room has
    to arrive before the cross-fade.
    """
    return xp.maximum(rooms.mixing_time(size), 1.5 * distance / rooms.SPEED_OF_SOUND + 0.005)


def rir_duration(room: rooms.Shoebox, distance: float) -> float:
    """Returns the length (s) of an RIR: all bands have decayed by 60 dB, and the tail has begun."""
    decay = float(rooms.decay_time(room).max())
    return max(decay, float(mixing_time_at(room.size, distance)) + 0.005)


def image_end_times(size, exponents, distance, air: bool, scattering=0.0, xp=np):
    """Returns the times (s) until which the images of the upper and of the low bands are followed.

    size: [3] m. exponents: [7, 3] of rooms.absorption_exponents. distance: of the source (m).
    Walls that scatter (0 to 1) leave no coherent wavefronts beyond one mixing time. Works on numpy
    arrays or, with xp=jax.numpy, under jit.
    """
    mixing = mixing_time_at(size, distance, xp)
    decay = rooms.millington_rt60(size, exponents, air, xp)[:NUM_LOW_BANDS].max()
    most = _time_of_image_count(MAX_LOW_BAND_IMAGES, size)
    low = xp.maximum(EARLY_MIXING_TIMES * mixing, xp.minimum(decay, most))
    ends = (EARLY_MIXING_TIMES * mixing, low)
    return tuple(mixing + (1 - scattering) * (end - mixing) for end in ends)


def _time_of_image_count(count: int, size):
    """Returns the time (s) by which `count` images have arrived: volume of a sphere / room."""
    radius = (3 / (4 * np.pi) * count * size[0] * size[1] * size[2]) ** (1 / 3)
    return radius / rooms.SPEED_OF_SOUND


def coarse_image_end_time(size, absorption, seconds: float, scattering=0.0, xp=np):
    """Returns the time (s) until which images rounded to samples are followed, or 0 for none.

    It is 0 if absorption is uniform or walls scatter. Otherwise it is so far beyond the RIR's
    length of `seconds` that the fade-out starts after its end, up to MAX_COARSE_IMAGES.
    """
    end = xp.minimum(seconds / FADE_START, _time_of_image_count(MAX_COARSE_IMAGES, size))
    nonuniform = rooms.has_nonuniform_absorption(absorption, xp)
    return xp.where(nonuniform & (scattering == 0), end, 0.0)


def image_crossfade(ends, xp=np):
    """Returns the function times [T] (s) -> gains [7, T] of images that end at the times `ends`.

    ends: (s) of the upper and of the low bands, as from `image_end_times`.
    """
    upper, low = ends
    per_band = [*[low] * NUM_LOW_BANDS, *[upper] * (len(rooms.BANDS) - NUM_LOW_BANDS)]
    stacked = xp.stack(per_band)[:, None]
    return lambda times: xp.cos(crossfade_phase(times, stacked))


def crossfade_phase(time: np.ndarray, end: float) -> np.ndarray:
    """Returns the phase (0 to pi / 2) of a cross-fade at times (s): cosine images, sine tail."""
    return ((time / end - FADE_START) / (1 - FADE_START)).clip(0, 1) * np.pi / 2


def late_reverb(room: rooms.Shoebox, source, listener, ends, seconds: float, rng) -> np.ndarray:
    """Returns the late part of an RIR, [4, PRE_SAMPLES + n] float32, without its high-pass.

    It complements images that end at the times `ends` (s) of `image_end_times`: a noise tail and,
    if absorption is nonuniform, late images rounded to samples. seconds: as from `rir_duration`.
    """
    length, size = int(seconds * SAMPLE_RATE), np.asarray(room.size, float)
    last = float(coarse_image_end_time(size, room.absorption, seconds, room.scattering))
    noise_ends = tuple(max(float(end), last) for end in ends)  # noise alone from then on
    out = np.zeros((4, PRE_SAMPLES + length), np.float32)
    if min(noise_ends) * FADE_START * SAMPLE_RATE < length:
        gain = image_crossfade(noise_ends)
        out[:, PRE_SAMPLES:] = tail.noise_tail(room, length, rng, source, listener, gain)
        # A frame of noise must not start before its fade.
        out[:, : PRE_SAMPLES + int(min(noise_ends) * FADE_START * SAMPLE_RATE)] = 0
    if last > min(ends):
        inner = min(ends) * FADE_START * rooms.SPEED_OF_SOUND
        radius = min(last, seconds) * rooms.SPEED_OF_SOUND
        all_images, exact_images = image_crossfade(noise_ends), image_crossfade(ends)
        coarse = image_source.nearest_sample_rir(
            room, source, listener, inner, radius, lambda t: all_images(t) - exact_images(t)
        )
        n = min(coarse.shape[1], out.shape[1])
        out[:, :n] += coarse[:, :n]
    return out


def shoebox_rir(
    room: rooms.Shoebox, source, listener, rng: np.random.Generator, full: bool = False
) -> np.ndarray:
    """Returns the RIR [4, n] float32 (W, Y, Z, X in room coordinates) from source to listener.

    source, listener: x, y, z (m). Time zero is sample PRE_SAMPLES, the direct sound has the gain
    1 / distance, and the RIR ends when the slowest band has decayed by 60 dB. rng draws the tail.
    full=True follows every image instead. If the room scatters, the directions of the tail are
    mixed towards the isotropic, and the tail starts earlier; late images have no part in it, so
    rooms with nonuniform absorption then have a tail too. Raises ConfigError for positions outside
    the room, and for scattering with full=True.
    """
    room.check_positions(source, listener)
    check(not (full and room.scattering), "scattering", room.scattering, "0 if full=True")
    distance = math.dist(source, listener)
    seconds = rir_duration(room, distance)
    if full:
        radius = seconds * rooms.SPEED_OF_SOUND
        return high_pass(image_source.image_rir(room, source, listener, radius))
    size, exponents = np.asarray(room.size, float), rooms.absorption_exponents(room.absorption)
    ends = image_end_times(size, exponents, distance, room.air, room.scattering)
    out = late_reverb(room, source, listener, ends, seconds, rng)
    for end, (octaves, decimation) in zip(ends, BAND_GROUPS, strict=True):
        radius = float(end) * rooms.SPEED_OF_SOUND
        images = image_source.image_rir(
            room, source, listener, radius, radius * FADE_START, octaves, decimation
        )
        n = min(images.shape[1], out.shape[1])
        out[:, :n] += images[:, :n]
    return high_pass(out)
