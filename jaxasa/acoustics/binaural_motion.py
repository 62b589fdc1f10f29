# SPDX-License-Identifier: Apache-2.0
"""Binaural rendering of motion: moving sources, a listener who turns, or both.

The audible motion is in the direct sound, which is rendered sample by sample. A source at the
distance d(u) at emission arrives at the head's centre at t = u + d(u) / c, so its signal is
s(u) / d(u) du/dt, Doppler effect included. Each ear receives it earlier or later by a delay that
changes as well. The remaining HRTF is a filter without delay, which differs so little between
neighbouring directions that it can be cross-faded, every 8 ms.

Reflections and tail are rendered in segments: every 33 ms of the dry signal, overlapping with the
next, is convolved with the BRIR of the position and yaw at its centre. All BRIRs use the same
random numbers for the tail.

    >>> import numpy as np
    >>> from jaxasa.acoustics import rooms
    >>> from jaxasa.acoustics.binaural_motion import render_moving_binaural
    >>> from jaxasa.acoustics.sphere_hrtf import SphereHrtf
    >>> room = rooms.Shoebox((6.0, 5.0, 3.0), rooms.absorption((6, 5, 3), 0.2))
    >>> position = lambda t: np.stack([1 + 4 * t, 4 + 0 * t, 1.5 + 0 * t], axis=-1)  # 4 m/s along x
    >>> render_moving_binaural(
    ...     np.ones(1600, np.float32), 0, position, lambda t: 0 * t, room, (3.0, 2.0, 1.5),
    ...     SphereHrtf(), lambda: np.random.default_rng(0), 4000,
    ... ).shape
    (2, 4000)
"""

from collections.abc import Callable

import numpy as np
import scipy.ndimage
import scipy.signal

from jaxasa.acoustics import bands, rir, rooms
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.acoustics.binaural_rir import shoebox_brir
from jaxasa.acoustics.hrtf import PRE_TAPS, Hrtf
from jaxasa.core.audio import SAMPLE_RATE

_OVERSAMPLING = 4  # of the dry signal, for its interpolation
_FRAME, _SIZE = 256, 1024
_MARGIN = 256  # samples around the dry signal, for the ringing of its interpolation
_SEGMENT = SAMPLE_RATE // 30  # samples between the BRIRs of reflections

Trajectory = Callable[[np.ndarray], np.ndarray]


def render_moving_binaural(
    dry: np.ndarray,
    start: int,
    position: Trajectory,
    yaw: Trajectory,
    room: rooms.Shoebox,
    listener,
    hrtf: Hrtf,
    rng: Callable[[], np.random.Generator],
    length: int,
) -> np.ndarray:
    """Renders a dry signal that is emitted from sample `start` on, to two ears [2, length] float32.

    position(seconds [T]) is the position of the source [T, 3] (m) at emission, yaw(seconds [T]) the
    yaw of the listener (degrees) at arrival. rng() must return the same generator each time.
    Sources must be slower than sound. Everything else is as in binaural_rir.shoebox_brir.
    """
    dry = np.asarray(dry, np.float32)[: max(length - start, 0)]
    out = np.zeros((2, length), np.float32)
    if len(dry) == 0:
        return out
    centre = np.asarray(listener, float)
    out += _direct_sound(dry, start, position, yaw, room.air, centre, hrtf, length)
    for k in range(-(-len(dry) // _SEGMENT) + 1):
        # Triangular windows that overlap by half sum to 1.
        first, last = (k - 1) * _SEGMENT, (k + 1) * _SEGMENT
        samples = np.arange(max(first, 0), min(last, len(dry)))
        if len(samples) == 0:
            continue
        window = 1 - np.abs(samples - k * _SEGMENT) / _SEGMENT
        segment = dry[samples] * window.astype(np.float32)
        middle = np.array([start + min(k * _SEGMENT, len(dry) - 1)]) / SAMPLE_RATE
        source = position(middle)[0]
        flight = float(np.linalg.norm(source - centre)) / rooms.SPEED_OF_SOUND
        segment_yaw = float(yaw(middle + flight)[0])
        brir = shoebox_brir(room, source, centre, hrtf, segment_yaw, rng(), direct=False)
        begin = start + samples[0]
        ears = scipy.signal.oaconvolve(segment[None], brir, axes=1)[:, PRE_SAMPLES:]
        ears = ears[:, : length - begin]
        out[:, begin : begin + ears.shape[1]] += ears
    return out


def _direct_sound(
    dry,
    start: int,
    position: Trajectory,
    yaw: Trajectory,
    air: bool,
    listener,
    hrtf: Hrtf,
    length: int,
) -> np.ndarray:
    """Returns the direct sound [2, length]; arguments as in `render_moving_binaural`."""
    emitted = np.arange(-_MARGIN, len(dry) + _MARGIN)
    distance = np.linalg.norm(position((start + emitted) / SAMPLE_RATE) - listener, axis=1)
    arrival = start + emitted + distance * (SAMPLE_RATE / rooms.SPEED_OF_SOUND)
    level = 1 / (np.gradient(arrival) * distance)
    frames = np.arange(-1, -(-length // (_FRAME // 2)) + 1) * (_FRAME // 2)
    middle = frames + _FRAME // 2
    offset = position((start + np.interp(middle, arrival, emitted)) / SAMPLE_RATE) - listener
    angle = np.radians(-np.asarray(yaw(np.clip(middle, 0, length) / SAMPLE_RATE), float))
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = offset.T
    offset = np.stack([c * x - s * y, s * x + c * y, z], axis=1)
    taps, delay = hrtf.filters(offset)
    attenuation = 0.5 * np.linalg.norm(offset, axis=1)[:, None] * rooms.AIR_ABSORPTION * air
    air_gain = np.exp(-attenuation) @ bands.rfft_gains(_SIZE)
    spectra = np.fft.rfft(taps, _SIZE) * air_gain[:, None]
    # Fractions of a sample are interpolated by splines of order 5, after oversampling.
    padded = np.pad(dry.astype(float), _MARGIN)
    fine = scipy.signal.resample(padded, len(padded) * _OVERSAMPLING)
    fine = scipy.ndimage.spline_filter1d(fine, 5, mode="constant")
    time = np.arange(frames[0], frames[-1] + _FRAME)
    window = np.sin(np.pi * (np.arange(_FRAME) + 0.5) / _FRAME) ** 2
    out = np.zeros((2, frames[-1] + 2 * _SIZE + _FRAME))
    for ear in (0, 1):
        delayed = time - np.interp(time, middle, delay[:, ear])
        index = (np.interp(delayed, arrival, emitted) + _MARGIN) * _OVERSAMPLING
        signal = scipy.ndimage.map_coordinates(
            fine, [index], order=5, mode="constant", prefilter=False
        )
        signal *= np.interp(delayed, arrival, level, left=0, right=0)
        for k, spectrum in enumerate(spectra[:, ear]):
            frame = signal[k * _FRAME // 2 : k * _FRAME // 2 + _FRAME] * window
            if len(frame) == _FRAME and frame.any():
                low = frames[k] + _FRAME  # the output begins one frame early
                out[ear, low : low + _SIZE] += np.fft.irfft(np.fft.rfft(frame, _SIZE) * spectrum)
    begin = _FRAME + PRE_TAPS
    return rir.high_pass(out[:, begin : begin + length]).astype(np.float32)
