# SPDX-License-Identifier: Apache-2.0
"""What moves, for two ears: sources on a path, a listener who turns, or both.

The direct sound carries the motion that is heard, and is rendered sample by sample. A source at
the distance d(u) when it emits arrives at the head's centre at t = u + d(u) / c, so its signal is
s(u) / d(u) du/dt: Doppler comes with it. Each ear hears that earlier or later by its own delay,
which also moves; what remains of the HRTF is a filter without delay, and changes so little from
one direction to the next that it may cross-fade, every 8 ms.

Reflections and tail take turns: every 33 ms of the dry signal, faded into the next, goes through
the response of the place and the yaw of its middle. The tail is one draw of noise, coloured anew.

    >>> import numpy as np
    >>> from jaxasa.acoustics import binaural_motion, hrtf, rooms
    >>> room, listener, dry = (6.0, 5.0, 3.0), (3.0, 2.0, 1.5), np.ones(1600, np.float32)
    >>> walls = rooms.absorption(room, 0.2)
    >>> passing = lambda t: np.stack([1 + 4 * t, 4 + 0 * t, 1.5 + 0 * t], axis=-1)  # 4 m/s along x
    >>> binaural_motion.render_moving_binaural(
    ...     dry, 0, passing, lambda t: 0 * t, room, walls, listener, hrtf.SphereHrtf(),
    ...     lambda: np.random.default_rng(0), 4000,
    ... ).shape
    (2, 4000)
"""

from collections.abc import Callable

import numpy as np
import scipy.ndimage
import scipy.signal

from jaxasa.acoustics import bands, binaural_rir, hrtf, rir, rooms
from jaxasa.acoustics.hrtf import Hrtf
from jaxasa.acoustics.rir import PRE_SAMPLES
from jaxasa.core.audio import SAMPLE_RATE

_FINE = 4  # times as many samples of the dry signal are interpolated
_FRAME, _SIZE = 256, 1024
_MARGIN = 256  # samples around the dry signal, into which its interpolation rings
_TURN = SAMPLE_RATE // 30  # samples between the places whose reflections take turns

Place = Callable[[np.ndarray], np.ndarray]


def render_moving_binaural(
    dry: np.ndarray,
    start: int,
    place: Place,
    yaw: Place,
    room,
    absorption,
    listener,
    head: Hrtf,
    rng: Callable[[], np.random.Generator],
    length: int,
    scattering: float = 0.0,
) -> np.ndarray:
    """Returns two ears [2, length] float32 of a dry signal emitted from sample `start` on.

    place(seconds [T]) is the source's position [T, 3] (m) when it emits, yaw(seconds [T]) how far
    the listener has turned left (degrees) on arrival. rng() gives the same generator each time.
    Sources must be slower than sound. All else is as in binaural_rir.response.
    """
    dry = np.asarray(dry, np.float32)[: max(length - start, 0)]
    out = np.zeros((2, length), np.float32)
    if len(dry) == 0:
        return out
    where = np.asarray(listener, float)
    out += _direct(dry, start, place, yaw, where, head, length)
    count = -(-len(dry) // _TURN) + 1
    for k in range(count):
        # Triangles that overlap by half add up to one.
        first, last = (k - 1) * _TURN, (k + 1) * _TURN
        samples = np.arange(max(first, 0), min(last, len(dry)))
        if len(samples) == 0:
            continue
        part = dry[samples] * (1 - np.abs(samples - k * _TURN) / _TURN).astype(np.float32)
        middle = np.array([start + min(k * _TURN, len(dry) - 1)]) / SAMPLE_RATE
        source = place(middle)[0]
        flight = float(np.linalg.norm(source - where)) / rooms.SPEED_OF_SOUND
        turned = float(yaw(middle + flight)[0])
        response = binaural_rir.shoebox_brir(
            *(room, absorption, source, where, head, turned, rng()),
            direct=False,
            scattering=scattering,
        )
        at = start + samples[0]
        heard = scipy.signal.oaconvolve(part[None], response, axes=1)[:, PRE_SAMPLES:]
        heard = heard[:, : length - at]
        out[:, at : at + heard.shape[1]] += heard
    return out


def _direct(dry, start: int, place: Place, yaw: Place, listener, head: Hrtf, length: int):
    """Returns the direct sound [2, length]."""
    emitted = np.arange(-_MARGIN, len(dry) + _MARGIN)
    distance = np.linalg.norm(place((start + emitted) / SAMPLE_RATE) - listener, axis=1)
    arrival = start + emitted + distance * (SAMPLE_RATE / rooms.SPEED_OF_SOUND)
    level = 1 / (np.gradient(arrival) * distance)
    frames = np.arange(-1, -(-length // (_FRAME // 2)) + 1) * (_FRAME // 2)
    middle = frames + _FRAME // 2
    offset = place((start + np.interp(middle, arrival, emitted)) / SAMPLE_RATE) - listener
    angle = np.radians(-np.asarray(yaw(np.clip(middle, 0, length) / SAMPLE_RATE), float))
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = offset.T
    offset = np.stack([c * x - s * y, s * x + c * y, z], axis=1)
    taps, delay = head.filters(offset)
    spectra = np.fft.rfft(taps, _SIZE) * _air(np.linalg.norm(offset, axis=1))[:, None]
    # Read at fractions of a sample by splines of order 5, from four times as many samples.
    padded = np.pad(dry.astype(float), _MARGIN)
    fine = scipy.signal.resample(padded, len(padded) * _FINE)
    fine = scipy.ndimage.spline_filter1d(fine, 5, mode="constant")
    time = np.arange(frames[0], frames[-1] + _FRAME)
    window = np.sin(np.pi * (np.arange(_FRAME) + 0.5) / _FRAME) ** 2
    out = np.zeros((2, frames[-1] + 2 * _SIZE + _FRAME))
    for ear in (0, 1):
        late = time - np.interp(time, middle, delay[:, ear])
        at = (np.interp(late, arrival, emitted) + _MARGIN) * _FINE
        read = scipy.ndimage.map_coordinates(fine, [at], order=5, mode="constant", prefilter=False)
        read *= np.interp(late, arrival, level, left=0, right=0)
        for k, spectrum in enumerate(spectra[:, ear]):
            frame = read[k * _FRAME // 2 : k * _FRAME // 2 + _FRAME] * window
            if len(frame) == _FRAME and frame.any():
                low = frames[k] + _FRAME  # the output begins one frame early
                out[ear, low : low + _SIZE] += np.fft.irfft(np.fft.rfft(frame, _SIZE) * spectrum)
    # Filters begin LEAD samples early.
    begin = _FRAME + hrtf.PRE_TAPS
    return rir.high_pass(out[:, begin : begin + length]).astype(np.float32)


def _air(distance: np.ndarray) -> np.ndarray:
    """Returns what the air leaves of sound [N, F] after so many metres."""
    return np.exp(-0.5 * distance[:, None] * rooms.AIR_ABSORPTION) @ bands.rfft_gains(_SIZE)
