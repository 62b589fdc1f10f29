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
    >>> response = rir.response(room, walls, source, listener, rng)
    >>> response.shape
    (4, 6464)
    >>> bool(0.3 < rir.rt60(response) < 0.5)
    True
"""

import math

import numpy as np
import scipy.signal

from jaxasa.acoustics import image_source, numba_jit, rooms, tail
from jaxasa.acoustics.bands import LEAD as LEAD
from jaxasa.acoustics.measure import drr as drr
from jaxasa.acoustics.measure import rt60 as rt60
from jaxasa.core.audio import SAMPLE_RATE

FADE = 2 / 3  # of the time at which all is tail: where it begins to replace the images
EARLY = 3.5  # mixing times that images are followed
# The lowest octaves have few modes, which are no noise: their images are cheap
# (few samples), and followed for the RT60 or until there are MOST_LOW of them.
LOW, MOST_LOW = 2, 60_000
MOST_COARSE = 10_000_000  # between uneven walls: half a second's work at most
GROUPS = ((slice(LOW, None), 1), (slice(LOW), 8))  # octaves, and one in so many samples
HIGH_PASS = scipy.signal.butter(4, rooms.HIGH_PASS, "highpass", fs=SAMPLE_RATE, output="sos")


@numba_jit.fast
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
    _cascade(HIGH_PASS, rows, out.reshape(rows.shape))
    return out


def mixing_time(room, distance, xp=np):
    """Returns the time (s) at which the response of a source at `distance` (m) is all tail.

    That of the room, but a far source in a flat room is heard before the cross-fade.
    """
    return xp.maximum(rooms.mixing_time(room), 1.5 * distance / rooms.SPEED + 0.005)


def lasting(room, absorption, distance: float, air: bool) -> float:
    """Returns how long (s) a response lasts: until all bands fell by 60 dB, and past the mixing."""
    decay = float(rooms.decay_time(room, absorption, air).max())
    return max(decay, float(mixing_time(room, distance)) + 0.005)


def followed(size, logs, distance, air: bool, scattering=0.0, xp=np):
    """Returns for how long (s) images are followed: those of all octaves, of the LOW lowest.

    size: [3]. logs: rooms.log_absorption [7, 3]. distance (m): of the source. Walls that scatter
    (0 to 1) leave no wavefronts beyond one mixing time.
    """
    mixing = mixing_time(size, distance, xp)
    decay = rooms.mean_decay_time(size, logs, air, xp)[:LOW].max()
    low = xp.maximum(EARLY * mixing, xp.minimum(decay, _holding(MOST_LOW, size)))
    return tuple(mixing + (1 - scattering) * (end - mixing) for end in (EARLY * mixing, low))


def _holding(count: int, size):
    """Returns the time (s) by which so many images are heard: a sphere's volume over the room's."""
    return (3 / (4 * np.pi) * count * size[0] * size[1] * size[2]) ** (1 / 3) / rooms.SPEED


def coarse_end(size, absorption, seconds: float, scattering=0.0, xp=np):
    """Returns the time (s) at which the last image is heard where walls are uneven; 0 elsewhere.

    It is so far behind the response's end, after `seconds`, that none fades before, unless there
    are more than MOST_COARSE. Walls that scatter leave no wavefronts to follow.
    """
    end = xp.minimum(seconds / FADE, _holding(MOST_COARSE, size))
    return xp.where(rooms.uneven(absorption, xp) & (scattering == 0), end, 0.0)


def kept_by(high, low, xp=np):
    """Returns tail.tail's `kept`: how much of the images of each band there is at a time."""
    ends = xp.stack([*[low] * LOW, *[high] * (len(rooms.BANDS) - LOW)])[:, None]
    return lambda times: xp.cos(cross_fade(times, ends))


def late(where, ends, seconds: float, rng, air: bool = True, scattering: float = 0.0) -> np.ndarray:
    """Returns what comes beside images that are followed for `ends` (s), [4, LEAD + n] float32.

    where: room, absorption, source, listener as in `shoebox_rir`. ends: as from `followed`.
    seconds: as from `lasting`. It is a tail, and where walls are uneven the later images, coarsely.
    """
    room, absorption, source, listener = where
    length, size = int(seconds * SAMPLE_RATE), np.asarray(room, float)
    last = float(coarse_end(size, absorption, seconds, scattering))
    begins = tuple(max(float(end), last) for end in ends)  # from when there is nothing else
    out = np.zeros((4, LEAD + length), np.float32)
    if min(begins) * FADE * SAMPLE_RATE < length:
        options = {"air": air, "scattering": scattering, "kept": kept_by(*begins)}
        out[:, LEAD:] = tail.tail(room, absorption, length, rng, source, listener, **options)
        # No frame of noise may be heard before its fade.
        out[:, : LEAD + int(min(begins) * FADE * SAMPLE_RATE)] = 0
    if last > min(ends):
        inner, radius = min(ends) * FADE * rooms.SPEED, min(last, seconds) * rooms.SPEED
        kept, exact = kept_by(*begins), kept_by(*ends)
        span = room, absorption, source, listener, inner, radius
        coarse = image_source.coarse(*span, lambda t: kept(t) - exact(t), air)
        n = min(coarse.shape[1], out.shape[1])
        out[:, :n] += coarse[:, :n]
    return out


def cross_fade(time: np.ndarray, mixing: float) -> np.ndarray:
    """Returns the phase (0 to pi / 2) of the cross-fade at times (s): cosine images, sine tail."""
    return ((time / mixing - FADE) / (1 - FADE)).clip(0, 1) * np.pi / 2


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
    seconds = lasting(room, absorption, distance, air)
    where = (room, absorption, source, listener)
    if full:
        return high_pass(image_source.images(*where, seconds * rooms.SPEED, air=air))
    size, logs = np.asarray(room, float), rooms.log_absorption(absorption)
    ends = followed(size, logs, distance, air, scattering)
    out = late(where, ends, seconds, rng, air, scattering)
    for end, (octaves, step) in zip(ends, GROUPS, strict=True):
        radius = float(end) * rooms.SPEED
        images = image_source.images(*where, radius, radius * FADE, air, octaves, step)
        n = min(images.shape[1], out.shape[1])
        out[:, :n] += images[:, :n]
    return high_pass(out)
