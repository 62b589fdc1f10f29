# SPDX-License-Identifier: Apache-2.0
"""Room responses for two ears: every image through the head, then a tail of its own.

First-order ambisonics holds the sound field around a point, up to about 600 Hz at the distance of
the ears. So a room that is known as data is not decoded from FOA: each image goes to each ear
with that ear's delay (to a fraction of a sample, by a Farrow structure as in `rir`) and through
the HRTF's filter for its own direction and distance. After the mixing time the response is noise
whose spectrum at both ears together,

    S(t, f) = int e(u, t, f) H(f, u) H(f, u)^H du,

follows from the directions u that energy still comes from in this room (`directional_energy`, by
the closed form of `rooms`) and from the HRTF itself. So the tail's interaural coherence, levels
and colour are the head's in this room's field, and they turn with the listener. As in the FOA
tail, images count as uncorrelated: below 600 Hz in small rooms, where they interfere as modes,
the real coherence of late sound is lower.

    >>> from jaxasa.acoustics import binaural_rir, hrtf, rooms
    >>> from jaxasa.core import keys
    >>> room, head = (6.0, 5.0, 3.0), hrtf.SphereHrtf()
    >>> walls, left, here = rooms.absorption(room, 0.4), (3, 4, 1.5), (3, 2, 1.5)
    >>> ears = binaural_rir.shoebox_brir(room, walls, left, here, head, 0.0, keys.rng(0))
    >>> len(ears), bool((ears[0] ** 2).sum() > (ears[1] ** 2).sum())
    (2, True)
"""

import functools
import math

import numpy as np
import scipy.fft

from jaxasa.acoustics import bands, hrtf, image_source, images, noise, numba_jit, rir, rooms
from jaxasa.acoustics.hrtf import Hrtf
from jaxasa.acoustics.rir import PRE_SAMPLES
from jaxasa.core.audio import SAMPLE_RATE

_ORDER, _TAPS = image_source.farrow_filters().shape
_BEFORE = 64  # samples of room for what arrives at an ear before the head's centre
_CHUNK = 4096  # images at once
_NOTHING = 1e-6  # of the direct sound's gain (-120 dB): what is below it is left out
_FRAME = 256


def shoebox_brir(
    room,
    absorption,
    source,
    listener,
    head: Hrtf,
    yaw: float,
    rng: np.random.Generator,
    full: bool = False,
    direct: bool = True,
    scattering: float = 0.0,
) -> np.ndarray:
    """Returns the response [2, n] float32 (left, right ear) of a listener turned left by `yaw`.

    room, source, listener: x, y, z in metres; absorption: of the walls, as in images.image_sources; yaw
    in degrees from the room's x axis. Time zero is sample LEAD, and the direct sound has the
    level of an HRTF at 1 / distance. rng draws the tail; full=True follows every image instead.
    direct=False leaves the direct sound out. scattering (0 to 1) mixes the tail's directions
    towards the isotropic, and is 0 with full=True. Raises ConfigError for another.
    """
    rooms.check(0 <= scattering <= 1, "scattering", scattering, "a share from 0 to 1")
    rooms.check(not (full and scattering), "scattering", scattering, "0 where all are images")
    mixing = float(rir.mixing_time_at(room, math.dist(source, listener)))
    seconds = max(float(rooms.decay_time(room, absorption).max()), mixing + 0.005)
    length = int(seconds * SAMPLE_RATE)
    reach = seconds if full else mixing
    offset, gain = images.image_sources(
        room, absorption, source, listener, reach * rooms.SPEED_OF_SOUND
    )
    loud = gain.max(axis=1) > _NOTHING * gain.max()
    loud[0] = direct  # it is nearer than any image
    offset, gain = offset[loud], gain[loud]
    time = np.linalg.norm(offset, axis=1) / rooms.SPEED_OF_SOUND
    if not full:
        gain *= np.cos(rir.crossfade_phase(time, mixing))[:, None]
    out = np.zeros((2, length + PRE_SAMPLES), np.float32)
    early = _add_up(rotate_about_z(offset, -yaw), gain, head, int(reach * SAMPLE_RATE) + 1)
    count = min(early.shape[1], out.shape[1])
    out[:, :count] = early[:, :count]
    if not full:
        start = int(mixing * rir.FADE_START * SAMPLE_RATE)
        progress = (np.arange(length) / SAMPLE_RATE / mixing - rir.FADE_START) / (
            1 - rir.FADE_START
        )
        phase = progress.clip(0, 1) * np.pi / 2
        late = _tail(room, absorption, head, yaw, length, rng, scattering) * np.sin(phase).astype(
            np.float32
        )
        out[:, PRE_SAMPLES + start :] += late[:, start:]
    return rir.high_pass(out)


def rotate_about_z(offset: np.ndarray, yaw: float) -> np.ndarray:
    """Returns offsets [N, 3] rotated by +`yaw` degrees about z."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    x, y, z = np.moveaxis(np.asarray(offset, float), -1, 0)
    return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)


@numba_jit.njit_fastmath
def _add(out, start, fraction, gain, taps):
    """Adds filters [N, 2, n], times gain [N, 7] and fraction^k, to out [2, 7, 6, T] at `start`."""
    width = taps.shape[2]
    for i in range(len(gain)):
        for ear in range(2):
            one = taps[i, ear]
            for band in range(out.shape[1]):
                amplitude = gain[i, band]
                for k in range(out.shape[2]):
                    row = out[ear, band, k, start[i, ear] : start[i, ear] + width]
                    for t in range(width):
                        row[t] += amplitude * one[t]
                    amplitude *= fraction[i, ear]


def _add_up(offset: np.ndarray, gain: np.ndarray, head: Hrtf, length: int) -> np.ndarray:
    """Returns the sum [2, n] of images at offsets [N, 3] in the head's frame with gains [N, 7]."""
    width = head.filters([[1.0, 0.0, 0.0]])[0].shape[-1]
    spare = _BEFORE + width + SAMPLE_RATE // 100  # an ear's delay is not in `length`
    out = np.zeros((2, gain.shape[1], _ORDER, length + spare), np.float32)
    for low in range(0, len(offset), _CHUNK):
        part = offset[low : low + _CHUNK]
        taps, delay = head.filters(part)
        time = (
            np.linalg.norm(part, axis=1, keepdims=True) * (SAMPLE_RATE / rooms.SPEED_OF_SOUND)
            + delay
        )
        sample = np.rint(time).astype(np.int64)
        fraction = (time - sample).astype(np.float32)
        start = sample + (_BEFORE - hrtf.PRE_TAPS)
        _add(out, start, fraction, gain[low : low + _CHUNK].astype(np.float32), taps)
    # The filters of low bands ring on both sides: room for them, circularly.
    size = scipy.fft.next_fast_len(out.shape[-1] + _TAPS + 1024, real=True)
    bands, delays = _filters_of(size)
    mixed = ((scipy.fft.rfft(out, size) * delays).sum(axis=2) * bands).sum(axis=1)
    whole = scipy.fft.irfft(mixed, size)
    return np.roll(whole, PRE_SAMPLES - _BEFORE - _TAPS // 2, axis=1)[:, : length + spare]


@functools.lru_cache(maxsize=64)
def _filters_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    weights = bands.rfft_gains(size)
    return weights, scipy.fft.rfft(image_source.farrow_filters(), size).astype(np.complex64)


def directional_energy(room, absorption, times, scattering: float = 0.0) -> np.ndarray:
    """Returns the expected energy [7, D, len(times)] per second from each octant direction.

    The directions are hrtf.octant_nodes(); an octant stands for all eight, as sound meets both
    walls across an axis in turn. Energies follow exp(-c t (sum_d a_d |u_d| / L_d + m)), the
    images' own law, tilted by a quadratic form in u so that their mean, and those weighted by
    the squares of x, y and z, are what rooms.tail_energy says of W, X, Y and Z: this tail and
    that of FOA are of one room. absorption as in images.image_sources. scattering mixes them towards
    their mean over directions.
    """
    unit, weight = hrtf.octant_nodes(_NODES)
    times = np.asarray(times, float)
    wall = -np.log(np.maximum(1 - np.asarray(absorption, float), 1e-12))
    pairs = np.broadcast_to(wall, (6, len(rooms.BANDS))).reshape(3, 2, -1).mean(axis=1)
    rate = rooms.SPEED_OF_SOUND * (pairs.T / np.asarray(room, float)) @ unit.T
    shape = np.exp((rate.min(axis=1, keepdims=True) - rate)[..., None] * times)
    square = (unit**2).T
    moments = np.einsum("bdt,id,jd,d->btij", shape, square, square, weight, optimize=True)
    wanted = rooms.tail_energy(room, absorption, times)
    # Late in a flat room nearly nothing comes along an axis: no more than rounding is added.
    moments += 1e-9 * np.trace(moments, axis1=2, axis2=3)[..., None, None] * np.eye(3)
    tilt = np.linalg.solve(moments, wanted[:, [3, 1, 2]].transpose(0, 2, 1)[..., None])[..., 0]
    energy = shape * np.maximum(np.einsum("bti,id->bdt", tilt, square), 0)
    total = np.einsum("bdt,d->bt", energy, weight)
    energy = energy * (wanted[:, 0] / np.maximum(total, 1e-300))[:, None]
    return energy + scattering * (wanted[:, :1] - energy)


_NODES = 10  # a side of an octant: 100 in an octant, 800 around, fine enough for 8 kHz


def _tail(room, absorption, head: Hrtf, yaw: float, length: int, rng, scattering) -> np.ndarray:
    """Returns noise [2, length] with the ears' expected spectra of all images at each time.

    Frames of shaped noise overlap by half under a sine window, so that powers add up.
    """
    frames, hop = -(-length // (_FRAME // 2)) + 1, _FRAME // 2
    times = np.arange(frames) * hop / SAMPLE_RATE
    energy = directional_energy(room, absorption, times, scattering) / SAMPLE_RATE
    bands, _ = _filters_of(_FRAME)
    # Bands mix as amplitudes do in an image's spectrum.
    root = np.sqrt(energy).transpose(0, 2, 1).astype(np.float32)
    power = np.square(np.tensordot(bands, root, (0, 0)))
    left, right, real, imaginary = (power @ _octants(head, round(yaw, 6))).T
    shaped = correlated_noise(left, right, real + 1j * imaginary, rng)
    window = np.sin(np.pi * (np.arange(_FRAME) + 0.5) / _FRAME).astype(np.float32)
    framed = scipy.fft.irfft(shaped * np.float32((_FRAME / 2) ** 0.5), _FRAME) * window
    # Frame t is centred on t * hop: its first half belongs to the hop before.
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(2, -1)[:, :length]


def correlated_noise(left, right, cross, rng) -> np.ndarray:
    """Returns noise spectra [2, ...] with powers `left`, `right` and cross-spectrum `cross`.

    cross is E[L R*]. The factor is Cholesky's; real and imaginary parts of unit noise have the
    variance 1 each.
    """
    first, second = noise.random_sign_spectrum(rng, 2, *left.shape)
    shared = cross.conj() / np.sqrt(np.maximum(left, 1e-30))
    rest = np.maximum(right - np.abs(shared) ** 2, 0)
    return np.stack([np.sqrt(left) * first, shared * first + np.sqrt(rest) * second]).astype(
        np.complex64
    )


@functools.lru_cache(maxsize=16)
def _octants(head: Hrtf, yaw: float) -> np.ndarray:
    """Returns mean |L|^2, |R|^2, Re and Im of L R^* [F, D, 4] of each direction's eight mirrors.

    Directions are the room's, weighted; the head is turned by `yaw` degrees.
    """
    offset, weight = hrtf.sphere_nodes(_NODES)
    found = hrtf.hrtf_spectrum(head, rotate_about_z(offset, -yaw), _FRAME)
    left, right = np.moveaxis(found, 1, 0)
    cross = left * right.conj()
    parts = np.stack([np.abs(left) ** 2, np.abs(right) ** 2, cross.real, cross.imag], axis=-1)
    mean = (parts * weight[:, None, None]).reshape(8, -1, *parts.shape[1:]).sum(axis=0)
    return np.ascontiguousarray(np.swapaxes(mean, 0, 1), np.float32)
