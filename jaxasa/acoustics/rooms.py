"""Shoebox rooms in closed form: absorption, reverberation time, the energy of the late tail.

All walls of a room share one absorption per octave band. An image heard from direction u after
the time t has met about c t sum_d |u_d| / L_d walls, so the expected energy of all images per
second, for sources of gain 1 / distance, is (after Lehmann and Johansson 2008; the
anisotropic form keeps the average over directions)

    e(t) = (4 pi c / V) < exp(-c t (a sum_d |u_d| / L_d + m)) >_u,    a = -ln(1 - absorption)

with m the energy attenuation of air per metre. Y, Z and X weigh the average by u_y^2, u_z^2
and u_x^2.

What it leaves out is the coherence of images at low frequencies: in the 250 Hz octave of a small
room, where axial modes outlive the rest, the images' own decay is about 10 % longer.
"""

import functools

import numpy as np

from jaxasa.config import check

SPEED = 343.0
BANDS = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
# Energy attenuation of air per metre in each band at 20 degrees C and 30 to 50 % humidity
# (Vorlaender, Auralization, 2008, table of the annex).
AIR = np.array([0.1, 0.3, 0.6, 1.0, 1.9, 5.8, 20.3]) * 1e-3
# Shares of the bands, cut midway between their centres, of the spectrum up to 8 kHz.
_BANDWIDTH = np.diff([0.0, *(2**0.5 * np.array(BANDS[:-1])), 8000.0]) / 8000.0


def volume(room) -> float:
    """Returns the volume (m3) of a room (length, width, height)."""
    return float(room[0] * room[1] * room[2])


def surface(room) -> float:
    """Returns the area (m2) of the six walls of a room (length, width, height)."""
    return float(2 * (room[0] * room[1] + room[0] * room[2] + room[1] * room[2]))


def sabine_floor(room) -> float:
    """Returns the RT60 (s) that Sabine's formula gives for walls of absorption 1: 0.161 V / S."""
    return 0.161 * volume(room) / surface(room)


def mixing_time(room) -> float:
    """Returns the time (s) after which images are dense enough to be taken for noise."""
    return 0.060 * (volume(room) / 60.0) ** 0.5


@functools.cache
def _directions(n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors [n*n, 3] (x, y, z) of one octant, and their weights, which sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    nodes, weights = (nodes + 1) / 2, weights / 2
    z, phi = np.repeat(nodes, n), np.tile(nodes, n) * np.pi / 2
    flat = np.sqrt(1 - z * z)
    unit = np.stack([flat * np.cos(phi), flat * np.sin(phi), z], axis=1)
    return unit, np.repeat(weights, n) * np.tile(weights, n)


def _wall_rate(room) -> np.ndarray:
    """Returns the walls met per metre of path in each direction."""
    return _directions()[0] @ (1.0 / np.asarray(room, float))


def _unit_decay(room) -> float:
    """Returns c * T20 (m, extrapolated to 60 dB) of the closed form for a = 1 and no air.

    Decay depends on a c t alone, so T20 of any absorption is this over a c.
    """
    rate, weight = _wall_rate(room), _directions()[1]
    path = np.linspace(0.0, 5.9 / rate.min(), 96)
    decay = np.exp(-np.outer(path, rate)) @ (weight / rate)
    level = 10 * np.log10(decay / decay[0])
    use = (level <= -5) & (level >= -25)
    x, y = path[use] - path[use].mean(), level[use]
    return float(-60.0 * (x @ x) / (x @ y))


def absorption(room, rt60) -> np.ndarray:
    """Returns the absorption [7] that gives each octave band its `rt60` (s; scalar or [7]).

    Calibrated on the decay of the closed form, which includes air. Raises ConfigError below
    the floor of Sabine's formula, and above what air alone allows.
    """
    target = np.broadcast_to(np.asarray(rt60, float), len(BANDS))
    floor = sabine_floor(room)
    check(target.min() >= floor, "rt60", float(target.min()), f"at least {floor:.3f} s (Sabine)")
    # Decay rates of walls and air add, each 6 ln(10) / T60.
    air = SPEED * AIR
    walls = 6 * np.log(10) / target - air
    ceiling = 6 * np.log(10) / max(float(air.max()), 1e-9)
    check(walls.min() > 0, "rt60", float(target.max()), f"at most {ceiling:.2f} s (air)")
    return 1 - np.exp(-walls * _unit_decay(room) / (SPEED * 6 * np.log(10)))


def decay_time(room, absorption) -> np.ndarray:
    """Returns the RT60 (s) [7] of each octave band; the inverse of `absorption`."""
    rate = _log_absorption(absorption) * SPEED * 6 * np.log(10) / _unit_decay(room)
    return 6 * np.log(10) / (rate + SPEED * AIR)


def _log_absorption(absorption) -> np.ndarray:
    return -np.log(np.maximum(1 - np.asarray(absorption, float), 1e-12))


def tail_energy(room, absorption, times: np.ndarray) -> np.ndarray:
    """Returns the expected energy per second [7, 4, len(times)] of W, Y, Z, X in each band."""
    unit, weight = _directions()
    moments = np.stack([weight, *(weight * unit[:, [1, 2, 0]].T ** 2)])
    rate = SPEED * (np.outer(_log_absorption(absorption), _wall_rate(room)) + AIR[:, None])
    decay = np.exp(-rate[:, :, None] * np.asarray(times))
    return 4 * np.pi * SPEED / volume(room) * (moments @ decay)


def expected_drr(room, absorption, distance: float) -> float:
    """Returns the direct-to-reverberant ratio (dB) expected on W for white sound to 8 kHz.

    All energy after the direct sound, by the closed form (Barron's revised theory).
    """
    rate = np.outer(_log_absorption(absorption), _wall_rate(room)) + AIR[:, None]
    reverberant = (np.exp(-rate * distance) / rate) @ _directions()[1] @ _BANDWIDTH
    reverberant *= 4 * np.pi / volume(room)
    return float(-10 * np.log10(distance**2 * reverberant))
