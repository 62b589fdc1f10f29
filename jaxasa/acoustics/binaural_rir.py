# SPDX-License-Identifier: Apache-2.0
"""Binaural room impulse responses (BRIRs): images through an HRTF, then a binaural noise tail.

First-order ambisonics describes the sound field around a point, up to about 600 Hz at the distance
of the ears. The BRIR of a known room is therefore not decoded from FOA: each image reaches each ear
with the delay of that ear (to a fraction of a sample, by a Farrow structure as in image_source) and
through the HRTF filter of its own direction and distance. After the mixing time the BRIR is noise
with the cross-spectrum of the ears

    S(t, f) = int e(u, t, f) H(f, u) H(f, u)^H du,

in which e is the energy that still arrives from direction u in this room (`directional_energy`, by
the closed form of `rooms`) and H the HRTF. Interaural coherence, levels and spectrum of the tail
are thus those of the head in this field, and rotate with the listener. As in the FOA tail, images
count as uncorrelated: below 600 Hz in small rooms, where they interfere as modes, the true
coherence of late sound is lower.

    >>> from jaxasa.acoustics import rooms
    >>> from jaxasa.acoustics.binaural_rir import shoebox_brir
    >>> from jaxasa.acoustics.sphere_hrtf import SphereHrtf
    >>> from jaxasa.core import keys
    >>> room = rooms.Shoebox((6, 5, 3), rooms.absorption((6, 5, 3), 0.4))
    >>> left, listener = (3, 4, 1.5), (3, 2, 1.5)
    >>> brir = shoebox_brir(room, left, listener, SphereHrtf(), yaw=0.0, rng=keys.rng(0))
    >>> len(brir), bool((brir[0] ** 2).sum() > (brir[1] ** 2).sum())
    (2, True)
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.fft

from jaxasa.acoustics import bands, image_source, noise, numba_jit, rir, rooms
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.acoustics.hrtf import PRE_TAPS, Hrtf, hrtf_spectrum, octant_nodes, sphere_nodes
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

_NUM_POWERS, _TAPS = image_source.farrow_filters().shape
_MARGIN = 64  # samples for sound that reaches an ear before the head's centre
_CHUNK = 4096  # images processed at once
_MIN_GAIN = 1e-6  # relative to the direct sound (-120 dB); fainter images are left out
_FRAME = 256
_NODES = 10  # per dimension of an octant: 800 directions in all, dense enough for 8 kHz


def shoebox_brir(
    room: rooms.Shoebox,
    source,
    listener,
    hrtf: Hrtf,
    yaw: float,
    rng: np.random.Generator,
    full: bool = False,
    direct: bool = True,
) -> np.ndarray:
    """Returns the BRIR [2, n] float32 (left, right ear) of a listener whose head is at `yaw`.

    source, listener: x, y, z (m). yaw: degrees counter-clockwise from the room's x axis. Time zero
    is sample PRE_SAMPLES, and the direct sound has the level of the HRTF at 1 / distance. rng draws
    the tail; full=True follows every image instead. direct=False leaves out the direct sound.
    Scattering mixes the directions of the tail towards the isotropic. Raises ConfigError for
    scattering with full=True.
    """
    check(not (full and room.scattering), "scattering", room.scattering, "0 if full=True")
    mixing = float(rir.mixing_time_at(room.size, math.dist(source, listener)))
    seconds = max(float(rooms.decay_time(room).max()), mixing + 0.005)
    length = int(seconds * SAMPLE_RATE)
    early_seconds = seconds if full else mixing
    radius = early_seconds * rooms.SPEED_OF_SOUND
    offset, gain = image_source.image_sources(room, source, listener, radius)
    loud = gain.max(axis=1) > _MIN_GAIN * gain.max()
    loud[0] = direct  # the nearest one
    offset, gain = offset[loud], gain[loud]
    time = np.linalg.norm(offset, axis=1) / rooms.SPEED_OF_SOUND
    if not full:
        gain *= np.cos(rir.crossfade_phase(time, mixing))[:, None]
    out = np.zeros((2, length + PRE_SAMPLES), np.float32)
    in_head_frame = rotate_about_z(offset, -yaw)
    early = _sum_images(in_head_frame, gain, hrtf, int(early_seconds * SAMPLE_RATE) + 1)
    count = min(early.shape[1], out.shape[1])
    out[:, :count] = early[:, :count]
    if not full:
        start = int(mixing * rir.FADE_START * SAMPLE_RATE)
        fade = np.sin(rir.crossfade_phase(np.arange(length) / SAMPLE_RATE, mixing))
        late = _noise_tail(room, hrtf, yaw, length, rng) * fade.astype(np.float32)
        out[:, PRE_SAMPLES + start :] += late[:, start:]
    return rir.high_pass(out)


def rotate_about_z(offset: np.ndarray, yaw: float) -> np.ndarray:
    """Returns offsets [N, 3] rotated by +`yaw` degrees about z."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    x, y, z = np.moveaxis(np.asarray(offset, float), -1, 0)
    return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)


@numba_jit.njit_fastmath
def _add_filters(out, start, fraction, gain, taps):
    """Adds filters [N, 2, n], times gain [N, 7] and fraction^k, to out [2, 7, 6, T] at `start`."""
    width = taps.shape[2]
    for i in range(len(gain)):
        for ear in range(2):
            filter_taps = taps[i, ear]
            for band in range(out.shape[1]):
                amplitude = gain[i, band]
                for k in range(out.shape[2]):
                    row = out[ear, band, k, start[i, ear] : start[i, ear] + width]
                    for t in range(width):
                        row[t] += amplitude * filter_taps[t]
                    amplitude *= fraction[i, ear]


def _sum_images(offset: np.ndarray, gain: np.ndarray, hrtf: Hrtf, length: int) -> np.ndarray:
    """Returns the sum [2, n] of images at offsets [N, 3] in the head's frame with gains [N, 7]."""
    width = hrtf.filters([[1.0, 0.0, 0.0]])[0].shape[-1]
    padding = _MARGIN + width + SAMPLE_RATE // 100  # `length` does not include the ears' delays
    out = np.zeros((2, gain.shape[1], _NUM_POWERS, length + padding), np.float32)
    for low in range(0, len(offset), _CHUNK):
        chunk = offset[low : low + _CHUNK]
        taps, delay = hrtf.filters(chunk)
        distance = np.linalg.norm(chunk, axis=1, keepdims=True)
        time = distance * (SAMPLE_RATE / rooms.SPEED_OF_SOUND) + delay
        sample = np.rint(time).astype(np.int64)
        fraction = (time - sample).astype(np.float32)
        start = sample + (_MARGIN - PRE_TAPS)
        _add_filters(out, start, fraction, gain[low : low + _CHUNK].astype(np.float32), taps)
    # The filters of low bands ring on both sides, and the transform is circular.
    size = scipy.fft.next_fast_len(out.shape[-1] + _TAPS + 1024, real=True)
    band_gains, farrow_spectra = _filters_of_size(size)
    powers = (scipy.fft.rfft(out, size) * farrow_spectra).sum(axis=2)
    ears = scipy.fft.irfft((powers * band_gains).sum(axis=1), size)
    return np.roll(ears, PRE_SAMPLES - _MARGIN - _TAPS // 2, axis=1)[:, : length + padding]


@functools.lru_cache(maxsize=64)
def _filters_of_size(size: int) -> tuple[np.ndarray, np.ndarray]:
    filters = image_source.farrow_filters()
    return bands.rfft_gains(size), scipy.fft.rfft(filters, size).astype(np.complex64)


def directional_energy(room: rooms.Shoebox, times) -> np.ndarray:
    """Returns the expected energy per second [7, D, T] from each octant direction at times [T] (s).

    The directions are hrtf.octant_nodes(); one octant represents all eight, because sound is
    reflected by both walls of an axis in turn. Energies follow the law of the images,
    exp(-c t (sum_d a_d |u_d| / L_d + m)), times a quadratic form in u such that their mean over
    directions, and the means weighted by x^2, y^2 and z^2, equal those of rooms.tail_energy for W,
    X, Y and Z: this tail and that of FOA belong to the same room. Scattering mixes the energies
    towards their mean over directions.
    """
    unit, weight = octant_nodes(_NODES)
    times = np.asarray(times, float)
    wall = -np.log(np.maximum(1 - np.asarray(room.absorption, float), 1e-12))
    pairs = np.broadcast_to(wall, (6, len(rooms.BANDS))).reshape(3, 2, -1).mean(axis=1)
    rate = rooms.SPEED_OF_SOUND * (pairs.T / np.asarray(room.size, float)) @ unit.T
    shape = np.exp((rate.min(axis=1, keepdims=True) - rate)[..., None] * times)
    square = (unit**2).T
    moments = np.einsum("bdt,id,jd,d->btij", shape, square, square, weight, optimize=True)
    target = rooms.tail_energy(dataclasses.replace(room, scattering=0.0), times)
    # Late in a flat room the moment along one axis nearly vanishes: regularised by rounding error.
    moments += 1e-9 * np.trace(moments, axis1=2, axis2=3)[..., None, None] * np.eye(3)
    form = np.linalg.solve(moments, target[:, [3, 1, 2]].transpose(0, 2, 1)[..., None])[..., 0]
    energy = shape * np.maximum(np.einsum("bti,id->bdt", form, square), 0)
    total = np.einsum("bdt,d->bt", energy, weight)
    energy = energy * (target[:, 0] / np.maximum(total, 1e-300))[:, None]
    return energy + room.scattering * (target[:, :1] - energy)


def _noise_tail(room: rooms.Shoebox, hrtf: Hrtf, yaw: float, length: int, rng) -> np.ndarray:
    """Returns noise [2, length] with the expected cross-spectrum of all images in each frame.

    Frames of shaped noise overlap by half under a sine window, so that powers sum to 1.
    """
    frames, hop = -(-length // (_FRAME // 2)) + 1, _FRAME // 2
    times = np.arange(frames) * hop / SAMPLE_RATE
    energy = directional_energy(room, times) / SAMPLE_RATE
    # Bands are combined as amplitudes, as in the spectrum of an image.
    amplitude = np.sqrt(energy).transpose(0, 2, 1).astype(np.float32)
    power = np.square(np.tensordot(bands.rfft_gains(_FRAME), amplitude, (0, 0)))
    left, right, real, imaginary = (power @ _octant_covariance(hrtf, round(yaw, 6))).T
    shaped = correlated_noise(left, right, real + 1j * imaginary, rng)
    window = np.sin(np.pi * (np.arange(_FRAME) + 0.5) / _FRAME).astype(np.float32)
    framed = scipy.fft.irfft(shaped * np.float32((_FRAME / 2) ** 0.5), _FRAME) * window
    # Frame t is centred on t * hop: its first half belongs to the hop before.
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(2, -1)[:, :length]


def correlated_noise(left, right, cross, rng) -> np.ndarray:
    """Returns noise spectra [2, ...] with powers `left`, `right` and cross-spectrum `cross`.

    cross is E[L R*]. Unit noise, whose real and imaginary parts have variance 1 each, is multiplied
    by the Cholesky factor of the covariance.
    """
    first, second = noise.random_sign_spectrum(rng, 2, *left.shape)
    common = cross.conj() / np.sqrt(np.maximum(left, 1e-30))
    remainder = np.maximum(right - np.abs(common) ** 2, 0)
    return np.stack([np.sqrt(left) * first, common * first + np.sqrt(remainder) * second]).astype(
        np.complex64
    )


@functools.lru_cache(maxsize=16)
def _octant_covariance(hrtf: Hrtf, yaw: float) -> np.ndarray:
    """Returns the mean |L|^2, |R|^2, Re and Im of L R^* [F, D, 4] of a direction's eight mirrors.

    Directions are in room coordinates, weighted; the head is at `yaw` degrees.
    """
    offset, weight = sphere_nodes(_NODES)
    spectrum = hrtf_spectrum(hrtf, rotate_about_z(offset, -yaw), _FRAME)
    left, right = np.moveaxis(spectrum, 1, 0)
    cross = left * right.conj()
    parts = np.stack([np.abs(left) ** 2, np.abs(right) ** 2, cross.real, cross.imag], axis=-1)
    mean = (parts * weight[:, None, None]).reshape(8, -1, *parts.shape[1:]).sum(axis=0)
    return np.ascontiguousarray(np.swapaxes(mean, 0, 1), np.float32)
