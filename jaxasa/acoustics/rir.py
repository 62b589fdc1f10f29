# SPDX-License-Identifier: Apache-2.0
"""Room responses in first-order ambisonics: images for some mixing times, then a tail.

Early reflections are the images themselves (image_source.py), for EARLY mixing times: by then
most of a decay of 20 dB is over. The rest is noise with the energy, decay and directions that
the room expects of its images (tail.py), joined by a cosine cross-fade, so that energies add up
to the whole. The two lowest octaves have too few modes to be noise of a known level (Schroeder's
frequency 2000 sqrt(RT60 / V) is in them), and their images are followed through the decay, or
until there are MOST_LOW. Between uneven walls (rooms.uneven: given one by one, and not all alike)
late sound is no such noise: it lives on along the axes whose walls absorb least. There all images
are followed until the response ends, or until there are MOST_COARSE, late ones to the nearest
sample, unless walls scatter. `full=True` follows all images exactly instead: the reference. All
images are positive and add up at low frequencies, where no loudspeaker or microphone goes: a
high-pass at 100 Hz ends both.

    >>> import numpy as np
    >>> from jaxasa.acoustics import rir, rooms
    >>> room, source, listener = (6, 5, 3), (1, 1, 1.5), (3, 2, 1.5)
    >>> walls, rng = rooms.absorption(room, 0.4), np.random.default_rng(0)
    >>> response = rir.shoebox_rir(room, walls, source, listener, rng)
    >>> response.shape
    (4, 6464)
    >>> bool(0.3 < rir.rt60(response) < 0.5)
    True
"""

import math

import numpy as np
import scipy.signal

from jaxasa.acoustics import image_source, numba_jit, rooms, tail
from jaxasa.acoustics.bands import PRE_SAMPLES as PRE_SAMPLES
from jaxasa.acoustics.measure import drr as drr
from jaxasa.acoustics.measure import rt60 as rt60
from jaxasa.core.audio import SAMPLE_RATE

FADE_START = 2 / 3  # of the time at which all is tail: where it begins to replace the images
EARLY_MIXING_TIMES = 3.5  # mixing times that images are followed
# The lowest octaves have few modes, which are no noise: their images are cheap
# (few samples), and followed for the RT60 or until there are MOST_LOW of them.
NUM_LOW_BANDS, MAX_LOW_BAND_IMAGES = 2, 60_000
MAX_COARSE_IMAGES = 10_000_000  # between uneven walls: half a second's work at most
BAND_GROUPS = (
    (slice(NUM_LOW_BANDS, None), 1),
    (slice(NUM_LOW_BANDS), 8),
)  # octaves, and one in so many samples
HIGH_PASS_SOS = scipy.signal.butter(4, rooms.HIGH_PASS_HZ, "highpass", fs=SAMPLE_RATE, output="sos")


@numba_jit.njit_fastmath
def _cascade(sections, signal, out):
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
    """Returns signal [..., T] float32 without what is below 100 Hz (Butterworth, fourth order)."""
    out = np.empty(signal.shape, np.float32)
    rows = np.ascontiguousarray(signal).reshape(-1, signal.shape[-1])
    _cascade(HIGH_PASS_SOS, rows, out.reshape(rows.shape))
    return out


def mixing_time_at(room, distance, xp=np):
    """Returns the time (s) at which the response of a source at `distance` (m) is all tail.

    That of the room, but a far source in a flat room is heard before the cross-fade.
    """
    return xp.maximum(rooms.mixing_time(room), 1.5 * distance / rooms.SPEED_OF_SOUND + 0.005)


def rir_duration(room, absorption, distance: float, air: bool) -> float:
    """Returns how long (s) a response lasts: until all bands fell by 60 dB, and past the mixing."""
    decay = float(rooms.decay_time(room, absorption, air).max())
    return max(decay, float(mixing_time_at(room, distance)) + 0.005)


def image_end_times(size, logs, distance, air: bool, scattering=0.0, xp=np):
    """Returns for how long (s) images are followed: those of all octaves, of the LOW lowest.

    size: [3]. logs: rooms.log_absorption [7, 3]. distance (m): of the source. Walls that scatter
    (0 to 1) leave no wavefronts beyond one mixing time.
    """
    mixing = mixing_time_at(size, distance, xp)
    decay = rooms.millington_rt60(size, logs, air, xp)[:NUM_LOW_BANDS].max()
    low = xp.maximum(
        EARLY_MIXING_TIMES * mixing,
        xp.minimum(decay, _time_of_image_count(MAX_LOW_BAND_IMAGES, size)),
    )
    return tuple(
        mixing + (1 - scattering) * (end - mixing) for end in (EARLY_MIXING_TIMES * mixing, low)
    )


def _time_of_image_count(count: int, size):
    """Returns the time (s) by which so many images are heard: a sphere's volume over the room's."""
    return (3 / (4 * np.pi) * count * size[0] * size[1] * size[2]) ** (1 / 3) / rooms.SPEED_OF_SOUND


def coarse_image_end_time(size, absorption, seconds: float, scattering=0.0, xp=np):
    """Returns the time (s) at which the last image is heard where walls are uneven; 0 elsewhere.

    It is so far behind the response's end, after `seconds`, that none fades before, unless there
    are more than MOST_COARSE. Walls that scatter leave no wavefronts to follow.
    """
    end = xp.minimum(seconds / FADE_START, _time_of_image_count(MAX_COARSE_IMAGES, size))
    return xp.where(rooms.has_nonuniform_absorption(absorption, xp) & (scattering == 0), end, 0.0)


def image_crossfade(high, low, xp=np):
    """Returns tail.tail's `kept`: how much of the images of each band there is at a time."""
    ends = xp.stack([*[low] * NUM_LOW_BANDS, *[high] * (len(rooms.BANDS) - NUM_LOW_BANDS)])[:, None]
    return lambda times: xp.cos(crossfade_phase(times, ends))


def late_reverb(
    where, ends, seconds: float, rng, air: bool = True, scattering: float = 0.0
) -> np.ndarray:
    """Returns what comes beside images that are followed for `ends` (s), [4, LEAD + n] float32.

    where: room, absorption, source, listener as in `shoebox_rir`. ends: as from `image_end_times`.
    seconds: as from `rir_duration`. It is a tail, and where walls are uneven the later images, coarsely.
    """
    room, absorption, source, listener = where
    length, size = int(seconds * SAMPLE_RATE), np.asarray(room, float)
    last = float(coarse_image_end_time(size, absorption, seconds, scattering))
    begins = tuple(max(float(end), last) for end in ends)  # from when there is nothing else
    out = np.zeros((4, PRE_SAMPLES + length), np.float32)
    if min(begins) * FADE_START * SAMPLE_RATE < length:
        options = {"air": air, "scattering": scattering, "image_gain": image_crossfade(*begins)}
        out[:, PRE_SAMPLES:] = tail.noise_tail(
            room, absorption, length, rng, source, listener, **options
        )
        # No frame of noise may be heard before its fade.
        out[:, : PRE_SAMPLES + int(min(begins) * FADE_START * SAMPLE_RATE)] = 0
    if last > min(ends):
        inner, radius = (
            min(ends) * FADE_START * rooms.SPEED_OF_SOUND,
            min(last, seconds) * rooms.SPEED_OF_SOUND,
        )
        kept, exact = image_crossfade(*begins), image_crossfade(*ends)
        span = room, absorption, source, listener, inner, radius
        coarse = image_source.nearest_sample_rir(*span, lambda t: kept(t) - exact(t), air)
        n = min(coarse.shape[1], out.shape[1])
        out[:, :n] += coarse[:, :n]
    return out


def crossfade_phase(time: np.ndarray, mixing: float) -> np.ndarray:
    """Returns the phase (0 to pi / 2) of the cross-fade at times (s): cosine images, sine tail."""
    return ((time / mixing - FADE_START) / (1 - FADE_START)).clip(0, 1) * np.pi / 2


def shoebox_rir(
    room,
    absorption,
    source,
    listener,
    rng: np.random.Generator,
    full: bool = False,
    air: bool = True,
    scattering: float = 0.0,
) -> np.ndarray:
    """Returns the response [4, n] float32 (W, Y, Z, X in the room's frame) from source to listener.

    room, source, listener: x, y, z in metres. absorption: [7] of all walls, or [6, 7] by
    rooms.WALLS, per octave band. Time zero is sample LEAD, and the direct sound has the gain
    1 / distance. It lasts until the slowest band has fallen by 60 dB. rng draws the tail;
    full=True follows every image instead. air=False leaves the air's absorption out. scattering
    (0 to 1) mixes the tail's directions towards the isotropic, and lets it begin earlier; images
    that are followed to the end know none. Where walls are uneven there is then a tail, by the
    closed form. Raises ConfigError as rooms.validate does.
    """
    rooms.validate(room, absorption, source, listener)
    rooms.check(0 <= scattering <= 1, "scattering", scattering, "a share from 0 to 1")
    rooms.check(not (full and scattering), "scattering", scattering, "0 where all are images")
    distance = math.dist(source, listener)
    seconds = rir_duration(room, absorption, distance, air)
    where = (room, absorption, source, listener)
    if full:
        return high_pass(image_source.image_rir(*where, seconds * rooms.SPEED_OF_SOUND, air=air))
    size, logs = np.asarray(room, float), rooms.absorption_exponents(absorption)
    ends = image_end_times(size, logs, distance, air, scattering)
    out = late_reverb(where, ends, seconds, rng, air, scattering)
    for end, (octaves, step) in zip(ends, BAND_GROUPS, strict=True):
        radius = float(end) * rooms.SPEED_OF_SOUND
        images = image_source.image_rir(*where, radius, radius * FADE_START, air, octaves, step)
        n = min(images.shape[1], out.shape[1])
        out[:, :n] += images[:, :n]
    return high_pass(out)
