# SPDX-License-Identifier: Apache-2.0
"""Shoebox rooms in closed form: absorption, reverberation time, energy of late reverberation.

Mean energy. An image in direction u whose sound arrives at time t has been reflected
c t |u_d| / L_d times along each axis d. The expected energy of all images per second, for sources
of gain 1 / distance, is therefore (after Lehmann and Johansson, JASA 124, 2008; the anisotropic
form keeps the average over directions)

    e(t) = (4 pi c / V) < exp(-c t (sum_d a_d |u_d| / L_d + m)) >_u

with a_d the mean of -ln(1 - absorption) over the two walls of the axis, and m the energy
attenuation of air per metre. For Y, Z and X the average is weighted by u_y^2, u_z^2 and u_x^2.

Room modes. Images add up coherently, and their sum equals a sum over the modes of the room.
Besides the oblique modes of e(t) there are tangential ones (u in the plane of two axes) and axial
ones (u along one axis). At the wave number k, the surface and edge terms of Weyl's mode count
give them the weights

    1 : A pi / (2 V k) for each pair of axes of area A : L pi / (2 V k^2) for each axis,

averaged over all positions. They are reflected less often and decay more slowly. They also depend
on the positions of source (s) and listener (r): a mode of low order n along an axis has the energy
(1 + cos 2 pi n s / L) (1 + cos 2 pi n r / L). Summed over n (Poisson's formula) with the decay
exp(-g n), g = c t a pi / (L^2 k), the weight of the modes without this axis becomes

    2 (-1 + (P(s) + P(r)) / 2 + (P(s + r) + P(s - r)) / 4)

times its average, with P(x) = sinh g / (cosh g - cos 2 pi x / L): larger near a wall, smaller in
the middle of the room.

Layers of images. The above assumes that walls absorb little per reflection. If those of an axis
absorb much (carpet below tiles), late sound comes from few layers of images, spaced by L along the
axis. Compared with the layer of the source, one at x arrives later by x^2 / 2 c t. Layers
therefore add up as waves, not as energies: at first like modes, in the end in phase, when each
layer decays as 1 / t. With b_x the amplitude that the walls of the axis leave of an image, the mean
over u_d of exp(-c t a |u_d| / L), which is L / (c t a), becomes

    L / (2 c t) < |sum_x b_x exp(i k x^2 / 2 c t)|^2 >_k,

and the excess is assigned to the modes without this axis. This term, and a quadrature that is
densest along the walls, is used for rooms whose six walls have coefficients of their own. The
result applies where images end: in rooms that scatter, for moving sources, and beyond
rir.MAX_COARSE_IMAGES.

    >>> from jaxasa.acoustics import rooms
    >>> absorption = rooms.absorption((6, 5, 3), 0.5)  # per octave band, 125 Hz to 8 kHz
    >>> rooms.decay_time(rooms.Shoebox((6, 5, 3), absorption)).round(3)
    array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from jaxasa.config import check

SPEED_OF_SOUND = 343.0  # m/s
BANDS = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)  # Hz, octave bands
WALLS = ("back", "front", "right", "left", "floor", "ceiling")  # x = 0, x = length, y = 0, ...
# Energy attenuation per metre in each band at 20 degrees C and 30 to 50 % humidity (Vorlaender,
# Auralization, 2008, table of the annex).
AIR_ABSORPTION = np.array([0.1, 0.3, 0.6, 1.0, 1.9, 5.8, 20.3]) * 1e-3
METHODS = ("calibrated", "eyring", "sabine")
MIN_SOURCE_DISTANCE = 0.05  # m; a nearer source would be inside the listener's head
HIGH_PASS_HZ = 100.0  # RIRs have nothing below it (rir.high_pass)
_SIXTY_DB = 6 * math.log(10)
_NODES = 6  # per dimension of the quadrature over directions
_DENSE_NODES = 8  # likewise, if each wall has coefficients of its own
# Sum over layers: round trips to either side, wave numbers per band, and points in time.
_LAYERS, _WAVE_NUMBERS, _LAYER_TIMES = 8, 5, 24
# -ln(1 - absorption) of an axis from which the layer term is blended in, and used alone.
_LAYER_BLEND = (0.3, 0.6)
# Widths of the bands, cut midway between their centres, relative to the spectrum up to 8 kHz.
_BANDWIDTH = np.diff([0.0, *(2**0.5 * np.array(BANDS[:-1])), 8000.0]) / 8000.0


@dataclass(frozen=True)
class Shoebox:
    """A shoebox room: its size and what its walls and its air do to sound.

    size: length, width, height (m), along x, y and z from the origin in a corner. absorption:
    energy absorption coefficients in (0, 1], [7] per octave band for all walls, or [6, 7] by
    WALLS. scattering: 0 to 1, how far walls mix the directions of late reverberation towards the
    isotropic. air: whether air absorbs sound. Raises ConfigError for values out of range.
    """

    size: tuple[float, float, float]
    absorption: tuple[float, ...] | tuple[tuple[float, ...], ...] | np.ndarray
    scattering: float = 0.0
    air: bool = True

    def __post_init__(self):
        _check_size(self.size)
        n, values = len(BANDS), self.absorption
        ok = _is_finite(values, (n,)) or _is_finite(values, (len(WALLS), n))
        ok = ok and bool(np.all(np.greater(values, 0)) and np.all(np.less_equal(values, 1)))
        check(ok, "absorption", _as_list(values), f"[{n}] or [6, {n}] above 0 and up to 1")
        ok = _is_finite(self.scattering, ()) and 0 <= self.scattering <= 1
        check(ok, "scattering", self.scattering, "a number from 0 to 1")

    def check_positions(self, source, listener) -> None:
        """Raises ConfigError unless both are inside the room, MIN_SOURCE_DISTANCE or more apart."""
        for name, point in (("source", source), ("listener", listener)):
            ok = _is_finite(point, (3,))
            ok = ok and all(0 < p < s for p, s in zip(point, self.size, strict=True))
            expected = f"x, y, z in metres inside the room {_as_list(self.size)}"
            check(ok, name, _as_list(point), expected)
        ok = math.dist(source, listener) >= MIN_SOURCE_DISTANCE
        expected = f"{MIN_SOURCE_DISTANCE} m or more from the listener"
        check(ok, "source", _as_list(source), expected)


def _check_size(size) -> None:
    ok = _is_finite(size, (3,)) and min(size) > 0
    check(ok, "room", _as_list(size), "length, width and height above 0 metres")


def _is_finite(values, shape: tuple[int, ...]) -> bool:
    try:
        values = np.asarray(values, float)
    except (TypeError, ValueError):
        return False
    return values.shape == shape and bool(np.isfinite(values).all())


def _as_list(values):
    return values.tolist() if isinstance(values, np.ndarray) else values


def volume(size) -> float:
    """Returns the volume (m3) of a room of size length, width, height (m)."""
    return float(size[0] * size[1] * size[2])


def surface_area(size) -> float:
    """Returns the area (m2) of the six walls of a room of size length, width, height (m)."""
    return float(2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2]))


def sabine_min_rt60(size) -> float:
    """Returns the lowest RT60 (s) of Sabine's formula, with absorption 1: 0.161 V / S."""
    return 0.161 * volume(size) / surface_area(size)


def air_limited_rt60() -> np.ndarray:
    """Returns RT60s [7] (s) at 90 % of the limit that air absorption alone sets."""
    return 0.9 * 6 * math.log(10) / (SPEED_OF_SOUND * AIR_ABSORPTION)


def mixing_time(size) -> float:
    """Returns the mixing time (s): from then on images are dense enough to be modelled as noise."""
    return 0.060 * (size[0] * size[1] * size[2] / 60.0) ** 0.5


@functools.cache
def _inverse_wave_numbers() -> tuple[np.ndarray, np.ndarray]:
    """Returns the means [7] of 1 / k and 1 / k^2 over each band for white sound.

    Bands overlap by sin^2 and cos^2 of the octave (bands.gains); the high-pass bounds the lowest.
    """
    f = np.arange(2.0, 8000.0, 4.0)
    octave = np.clip(np.log2(f / BANDS[0]), 0, len(BANDS) - 1) - np.arange(len(BANDS))[:, None]
    energy = np.cos(np.pi / 2 * np.minimum(abs(octave), 1)) ** 4 / (1 + (HIGH_PASS_HZ / f) ** 8)
    k = 2 * np.pi * f / SPEED_OF_SOUND
    return energy @ (1 / k) / energy.sum(axis=1), energy @ (1 / k**2) / energy.sum(axis=1)


@functools.cache
def _octant_directions(dense: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors [D, 3] inside one octant, on its three edges and its axes, and weights.

    The weights [D] of the inside sum to 1, and so do those of each edge (x = 0, y = 0, z = 0).
    dense: nodes are densest at the edges, for decays that differ much between axes.
    """
    count = _DENSE_NODES if dense else _NODES
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = (nodes + 1) / 2, weights / 2
    if dense:
        nodes, weights = nodes**2 * (3 - 2 * nodes), weights * 6 * nodes * (1 - nodes)
    z, phi = np.repeat(nodes, count), np.tile(nodes, count) * np.pi / 2
    horizontal = np.sqrt(1 - z * z)
    inside = np.stack([horizontal * np.cos(phi), horizontal * np.sin(phi), z], axis=1)
    circle = np.stack([np.cos(nodes * np.pi / 2), np.sin(nodes * np.pi / 2)], axis=1)
    edges = [np.insert(circle, axis, 0.0, axis=1) for axis in range(3)]
    weight = [np.repeat(weights, count) * np.tile(weights, count), *[weights] * 3, np.ones(3)]
    return np.concatenate([inside, *edges, np.eye(3)]), np.concatenate(weight)


def _mode_weights(size, xp=np, dense: bool = False):
    """Returns the weights [7, D] of all directions in each band, averaged over positions.

    Oblique directions have a total of 1; tangential and axial ones are added to it.
    """
    # Per axis: pi / 2 V times the area of the wall across it, and times its length.
    areas, lengths = np.pi / 2 / size, np.pi / 2 / (size[0] * size[1] * size[2]) * size
    first, second = (mean[:, None] for mean in _inverse_wave_numbers())
    count = _DENSE_NODES if dense else _NODES
    oblique = xp.ones((len(BANDS), count**2))
    weights = [oblique, first * xp.repeat(areas, count), second * lengths]
    return xp.concatenate(weights, axis=1) * _octant_directions(dense)[1]


@functools.lru_cache(maxsize=8)
def _cached_mode_weights(size: bytes) -> np.ndarray:
    return _mode_weights(np.frombuffer(size))


def has_nonuniform_absorption(absorption, xp=np):
    """Returns whether absorption ([7] or [6, 7]) differs between walls."""
    walls = xp.asarray(absorption)
    return xp.any(walls != walls[:1]) if walls.ndim == 2 else xp.asarray(False)


def absorption_exponents(absorption, xp=np):
    """Returns -ln(1 - absorption) [7, 3], the mean over the two walls of each axis.

    absorption: [7] or [6, 7]. Works on numpy arrays or, with xp=jax.numpy, under jit.
    """
    walls = -xp.log(xp.maximum(1 - xp.asarray(absorption, float), 1e-12))
    if walls.ndim == 1:
        return xp.repeat(walls[:, None], 3, axis=1)
    return (walls[0::2] + walls[1::2]).T / 2


def _wall_loss(size, exponents, dense: bool = False):
    """Returns the energy lost to walls per metre of path [7, D] in each direction."""
    return (exponents / size) @ _octant_directions(dense)[0].T


def _position_factor(size, exponents, times, source, listener, xp=np):
    """Returns the energy [7, 3, T] of the modes without an axis at these two positions.

    It is relative to their average over all positions.
    """
    wave = (exponents * _inverse_wave_numbers()[0][:, None]) / size**2
    # Beyond 20 the sums are 1 to the last digit; at 0 they may diverge.
    g = xp.clip(SPEED_OF_SOUND * np.pi * wave[:, :, None] * times, 1e-3, 20.0)
    sine, cosine = xp.sinh(g), xp.cosh(g)

    def mode_sum(x):
        return sine / (cosine - xp.cos(2 * np.pi * x / size)[:, None])

    single = mode_sum(source) + mode_sum(listener)
    return single + (mode_sum(source + listener) + mode_sum(source - listener)) / 2 - 2


def _layer_factor(size, absorption, times, source, listener, xp=np):
    """As `_position_factor`, for the layers of images between strongly absorbing walls [6, 7]."""
    walls = -0.5 * xp.log(xp.maximum(1 - xp.asarray(absorption, float), 1e-12)).T
    low, high = walls[:, 0::2, None], walls[:, 1::2, None]
    # Images of one axis, as in image_source.axis_images.
    i, mirrored = np.divmod(np.arange(-2 * _LAYERS, 2 * _LAYERS + 2), 2)
    x = (1 - 2 * mirrored) * source[:, None] + 2 * i * size[:, None] - listener[:, None]
    gain = xp.exp(-low * np.abs(i - mirrored) - high * np.abs(i)).astype(np.float32)
    # Changes slowly with time: computed at a few path lengths, and interpolated between them.
    path = SPEED_OF_SOUND * times
    knots = np.geomspace(1.0, max(2.0, path.max()), _LAYER_TIMES)
    interpolation = np.stack([np.interp(path, knots, unit) for unit in np.eye(_LAYER_TIMES)])
    octave = np.linspace(-0.5, 0.5, _WAVE_NUMBERS)
    k = 2 * np.pi / SPEED_OF_SOUND * np.clip(np.outer(BANDS, 2**octave), HIGH_PASS_HZ, 8000.0)
    phase = (0.5 * x**2)[:, None] / knots[:, None]
    phase = (k[:, :, None, None, None] * phase).astype(np.float32)
    real, imaginary = (xp.einsum("bdx,bkdtx->bkdt", gain, f(phase)) for f in (xp.cos, xp.sin))
    power = (real**2 + imaginary**2).mean(axis=1)
    excess = (power / 2 - 1 / (low + high)) * size[:, None] ** 2 / knots
    return excess @ interpolation * (2 / np.pi / _inverse_wave_numbers()[0][:, None, None])


@functools.lru_cache(maxsize=256)
def _decay_paths(size: tuple, exponents: bytes) -> np.ndarray:
    """Returns the path lengths [7] (m) of a 60 dB decay of the closed form without air (T20)."""
    lengths = np.array(size)
    rate = _wall_loss(lengths, np.frombuffer(exponents).reshape(-1, 3))
    weight = _mode_weights(lengths) / rate
    path = np.linspace(0.0, 1.0, 128) * (5.9 / rate.min(axis=1))[:, None]
    decay = np.einsum("bd,bpd->bp", weight, np.exp(-path[:, :, None] * rate[:, None]))
    level = 10 * np.log10(decay / decay[:, :1])
    use = (level <= -5) & (level >= -25)
    count = use.sum(axis=1, keepdims=True)
    x = np.where(use, path - (path * use).sum(axis=1, keepdims=True) / count, 0.0)
    return -60.0 * (x * x).sum(axis=1) / (x * level).sum(axis=1)


def _wall_decay(size, exponents) -> np.ndarray:
    """Returns the decay rates [7] (1 / s) due to the walls alone, by T20 of the closed form."""
    raw = np.ascontiguousarray(exponents, float).tobytes()
    return _SIXTY_DB * SPEED_OF_SOUND / _decay_paths(tuple(float(v) for v in size), raw)


def absorption(size, rt60, method: str = "calibrated", air: bool = True) -> np.ndarray:
    """Returns the absorption [7] of all walls that gives each octave band its RT60.

    size: m. rt60: s, a number or [7]. method: "calibrated" inverts `decay_time`, the decay of the
    rendered RIRs; "eyring" solves -ln(1 - absorption) S + 4 m V = 0.161 V / rt60 (1930); "sabine"
    solves absorption S + 4 m V = 0.161 V / rt60. air=False sets m to 0. Raises ConfigError for an
    RT60 below `sabine_min_rt60` (except for "eyring", which has no minimum), or above the limit
    that air absorption alone sets.
    """
    check(method in METHODS, "method", method, "one of " + ", ".join(METHODS))
    _check_size(size)
    target = np.broadcast_to(np.asarray(rt60, float), len(BANDS))
    ok = bool(np.isfinite(target).all() and target.min() > 0)
    check(ok, "rt60", _as_list(rt60), "seconds above 0")
    if method != "eyring":
        lowest = sabine_min_rt60(size)
        expected = f"at least {lowest:.3f} s (Sabine)"
        check(target.min() >= lowest, "rt60", float(target.min()), expected)
    # The decay rates of walls and air add up, each 6 ln(10) / RT60.
    air_decay = SPEED_OF_SOUND * AIR_ABSORPTION if air else np.zeros(len(BANDS))
    walls = _SIXTY_DB / target - air_decay
    if walls.min() <= 0:
        worst = int(walls.argmin())
        highest = _SIXTY_DB / air_decay[worst]
        expected = f"at most {highest:.2f} s at {BANDS[worst]:.0f} Hz (air)"
        check(False, "rt60", float(target[worst]), expected)
    if method == "calibrated":
        return 1 - np.exp(-walls / _wall_decay(size, np.ones((len(BANDS), 3))))
    mean = 0.161 * volume(size) / surface_area(size) * walls / _SIXTY_DB
    # At the minimum itself rounding may exceed 1.
    return np.minimum(mean, 1.0) if method == "sabine" else 1 - np.exp(-mean)


def decay_time(room: Shoebox) -> np.ndarray:
    """Returns the RT60 (s) [7] of each octave band by the closed form.

    If all walls are the same, this is the inverse of `absorption`.
    """
    rate = _wall_decay(room.size, absorption_exponents(room.absorption))
    return _SIXTY_DB / (rate + SPEED_OF_SOUND * AIR_ABSORPTION * room.air)


def millington_rt60(size, exponents, air: bool, xp=np):
    """Returns the RT60 (s) [7] by Millington and Sette's formula (JASA 4, 1932).

    It is Eyring's formula if all walls are the same. size: [3] m. exponents: [7, 3] of
    `absorption_exponents`. Works on numpy arrays or, with xp=jax.numpy, under jit.
    """
    return _SIXTY_DB / (
        SPEED_OF_SOUND * ((exponents / size).sum(axis=1) / 2 + AIR_ABSORPTION * air)
    )


def tail_energy(room: Shoebox, times: np.ndarray, source=None, listener=None) -> np.ndarray:
    """Returns the expected energy per second [7, 4, T] of W, Y, Z, X in each band at times [T] (s).

    source, listener: x, y, z (m); without them, the average over all positions. Scattering mixes
    the covariance of the channels towards the isotropic diag(1, 1/3, 1/3, 1/3); W keeps its energy.
    """
    size, times = np.asarray(room.size, float), np.asarray(times, float)
    walls = np.asarray(room.absorption, float)
    if walls.ndim == 2 and not has_nonuniform_absorption(walls):
        walls = walls[0]
    key = (size.tobytes(), walls.tobytes(), times.tobytes(), bool(room.air))
    if source is not None:
        source, listener = np.asarray(source, float), np.asarray(listener, float)
    energies = _cached_mode_energies(*key)
    return sum_modes(size, walls, times, energies, source, listener, room.scattering)


@functools.lru_cache(maxsize=8)
def _cached_mode_energies(*key) -> tuple[np.ndarray, ...]:
    # All sources of a scene share them.
    size, walls, times = (np.frombuffer(part) for part in key[:3])
    walls = walls if len(walls) == len(BANDS) else walls.reshape(len(WALLS), -1)
    return mode_energies(size, walls, times, key[3])


def mode_energies(size, absorption, times, air: bool, xp=np) -> tuple:
    """Returns the position-independent energies of oblique, tangential and axial modes.

    Shapes: [7, 4, T], [7, 4, 3, T] by the missing axis, [7, 4, 3, T] by the axis of the mode.
    size: [3] m. absorption: [7] or [6, 7]. Works on numpy arrays or, with xp=jax.numpy, under jit.
    """
    dense = absorption.ndim == 2
    unit, count = _octant_directions(dense)[0], _DENSE_NODES if dense else _NODES
    squares = np.concatenate([np.ones((1, len(unit))), unit[:, [1, 2, 0]].T ** 2])
    walls = _wall_loss(size, absorption_exponents(absorption, xp), dense)
    rate = SPEED_OF_SOUND * (walls + AIR_ABSORPTION[:, None] * air)
    decay = xp.exp((-rate[:, :, None] * times).astype(np.float32))
    decay = _mode_weights(size, xp, dense)[:, :, None] * decay
    n = count**2
    oblique = xp.einsum("cd,bdt->bct", squares[:, :n], decay[:, :n])
    edges = decay[:, n:-3].reshape(len(BANDS), 3, count, -1)
    tangential = xp.einsum("cad,badt->bcat", squares[:, n:-3].reshape(4, 3, count), edges)
    return oblique, tangential, squares[:, -3:, None] * decay[:, None, -3:]


def sum_modes(size, absorption, times, energies, source, listener, scattering, xp=np):
    """Returns the energy [7, 4, T] of `tail_energy` from the `mode_energies` of a room."""
    oblique, tangential, axial = energies
    if source is not None:
        exponents = absorption_exponents(absorption, xp)
        factor = _position_factor(size, exponents, times, source, listener, xp)
        if absorption.ndim == 2:
            low, high = _LAYER_BLEND
            blend = xp.clip((exponents - low) / (high - low), 0, 1)[..., None]
            blend = blend * has_nonuniform_absorption(absorption, xp)
            layered = _layer_factor(size, absorption, times, source, listener, xp)
            factor = factor + blend * (layered - factor)
        tangential = tangential * factor[:, None]
        # An axial mode lacks the other two axes.
        axial = axial * (factor[:, [1, 0, 0]] * factor[:, [2, 2, 1]])[:, None]
    total = oblique + tangential.sum(axis=2) + axial.sum(axis=2)
    # First-order sums may fall short of the energy of the few modes of a low band.
    total = xp.maximum(total, 0.1 * oblique)
    w = total[:, :1]
    total = xp.concatenate([w, total[:, 1:] + scattering * (w / 3 - total[:, 1:])], axis=1)
    return 4 * np.pi * SPEED_OF_SOUND / (size[0] * size[1] * size[2]) * total


def expected_drr(room: Shoebox, distance: float) -> float:
    """Returns the direct-to-reverberant ratio (dB) expected on W for white sound up to 8 kHz.

    Energy after the arrival of the direct sound by the closed form (Barron's revised theory).
    """
    size = np.asarray(room.size, float)
    loss = _wall_loss(size, absorption_exponents(room.absorption))
    rate = loss + AIR_ABSORPTION[:, None] * room.air
    weights = _cached_mode_weights(size.tobytes())
    reverberant = (weights * np.exp(-rate * distance) / rate).sum(axis=1) @ _BANDWIDTH
    reverberant *= 4 * np.pi / volume(room.size)
    return float(-10 * np.log10(distance**2 * reverberant))
