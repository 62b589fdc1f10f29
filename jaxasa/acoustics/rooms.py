# SPDX-License-Identifier: Apache-2.0
"""Shoebox rooms in closed form: absorption, reverberation time, the energy of the late tail.

An image heard from direction u after the time t has met c t |u_d| / L_d walls along each axis
d, so the expected energy of all images per second, for sources of gain 1 / distance, is (after
Lehmann and Johansson 2008; the anisotropic form keeps the average over directions)

    e(t) = (4 pi c / V) < exp(-c t (sum_d a_d |u_d| / L_d + m)) >_u

with a_d the mean of -ln(1 - absorption) over the two walls of the axis, and m the energy
attenuation of air per metre. Y, Z and X weigh the average by u_y^2, u_z^2 and u_x^2.

Images are coherent, though, and their sum is one over the modes of the room. Tangential modes (u
in the plane of two axes) and axial ones (u along an axis) count beside the oblique ones, with
the shares that the surface and edge terms of Weyl's mode count give them at the wave number k,

    1 : A pi / (2 V k) for each pair of axes of area A : L pi / (2 V k^2) for each axis,

on the average over all positions. They meet fewer walls and outlive the rest. Where the source
(s) and the listener (r) are matters too: modes of low order n along an axis have the energy
(1 + cos 2 pi n s / L) (1 + cos 2 pi n r / L) there. Summed over n (Poisson's formula) under the
decay exp(-g n), g = c t a pi / (L^2 k), the share of modes without this axis becomes

    2 (-1 + (P(s) + P(r)) / 2 + (P(s + r) + P(s - r)) / 4)

times its average, P(x) = sinh g / (cosh g - cos 2 pi x / L): near a wall there is more of it, in
the middle less.

All this takes walls to absorb little at each reflection. Where those of an axis absorb much (carpet
below tiles), late sound is in few layers of images, L apart on it. One at x is behind its like
in the plane by x^2 / 2 c t: layers add up as waves, not as energies, first like modes, at last
in step, when sound dies as 1 / t in each layer. With the amplitude b_x that the walls of
the axis leave of an image, the mean over u_d of exp(-c t a |u_d| / L), L / (c t a), becomes

    L / (2 c t) < |sum_x b_x exp(i k x^2 / 2 c t)|^2 >_k,

and what it has more belongs to the modes without this axis. Rooms whose six walls are given one by
one have it, and directions densest along the walls; walls that are alike have the plain form. It
serves where images end: in rooms that scatter, for sources that move, and behind MOST_COARSE (rir).

    >>> from jaxasa.acoustics import rooms
    >>> walls = rooms.absorption((6, 5, 3), 0.5)  # per octave band, 125 Hz to 8 kHz
    >>> rooms.decay_time((6, 5, 3), walls).round(3)
    array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
"""

import functools
import math

import numpy as np

from jaxasa.config import check

SPEED_OF_SOUND = 343.0
BANDS = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
WALLS = ("back", "front", "right", "left", "floor", "ceiling")  # x, y and z of 0 and of the size
# Energy attenuation of air per metre in each band at 20 degrees C and 30 to 50 % humidity
# (Vorlaender, Auralization, 2008, table of the annex).
AIR_ABSORPTION = np.array([0.1, 0.3, 0.6, 1.0, 1.9, 5.8, 20.3]) * 1e-3
METHODS = ("calibrated", "eyring", "sabine")
MIN_SOURCE_DISTANCE = 0.05  # metres: a source this near is inside the listener's head
HIGH_PASS_HZ = 100.0  # hertz: what responses leave out below (rir.high_pass)
_SIXTY_DB = 6 * math.log(10)
_NODES = 6  # of the quadrature over directions
_DENSE_NODES = 8  # of that where walls have absorptions of their own
# Of the sum over layers: round trips to either side, wave numbers a band, and moments.
_LAYERS, _WAVE_NUMBERS, _LAYER_TIMES = 8, 5, 24
_LAYERED_FROM_TO = (
    0.3,
    0.6,
)  # -ln(1 - absorption) of an axis from which layers begin to count, and alone do
# Shares of the bands, cut midway between their centres, of the spectrum up to 8 kHz.
_BANDWIDTH = np.diff([0.0, *(2**0.5 * np.array(BANDS[:-1])), 8000.0]) / 8000.0


def validate(room, absorption=None, source=None, listener=None) -> None:
    """Raises ConfigError naming the first argument that no response can be made of.

    room: three sizes above 0 (m). absorption: [7], or [6, 7] in the order of WALLS, in (0, 1].
    source, listener: inside the room, NEAREST or more apart (m).
    """
    ok = _is_finite(room, (3,)) and min(room) > 0
    check(ok, "room", _as_list(room), "length, width and height above 0 metres")
    if absorption is not None:
        n = len(BANDS)
        ok = _is_finite(absorption, (n,)) or _is_finite(absorption, (len(WALLS), n))
        ok = ok and bool(np.all(np.greater(absorption, 0)) and np.all(np.less_equal(absorption, 1)))
        check(ok, "absorption", _as_list(absorption), f"[{n}] or [6, {n}] above 0 and up to 1")
    for name, point in (("source", source), ("listener", listener)):
        if point is not None:
            ok = _is_finite(point, (3,)) and all(
                0 < p < s for p, s in zip(point, room, strict=True)
            )
            expected = f"x, y, z in metres inside the room {_as_list(room)}"
            check(ok, name, _as_list(point), expected)
    if source is not None and listener is not None:
        apart = math.dist(source, listener)
        check(
            apart >= MIN_SOURCE_DISTANCE,
            "source",
            _as_list(source),
            f"{MIN_SOURCE_DISTANCE} m or more from the listener",
        )


def _is_finite(values, shape: tuple[int, ...]) -> bool:
    try:
        values = np.asarray(values, float)
    except (TypeError, ValueError):
        return False
    return values.shape == shape and bool(np.isfinite(values).all())


def _as_list(values):
    return values.tolist() if isinstance(values, np.ndarray) else values


def volume(room) -> float:
    """Returns the volume (m3) of a room (length, width, height)."""
    return float(room[0] * room[1] * room[2])


def surface_area(room) -> float:
    """Returns the area (m2) of the six walls of a room (length, width, height)."""
    return float(2 * (room[0] * room[1] + room[0] * room[2] + room[1] * room[2]))


def sabine_min_rt60(room) -> float:
    """Returns the RT60 (s) that Sabine's formula gives for walls of absorption 1: 0.161 V / S."""
    return 0.161 * volume(room) / surface_area(room)


def mixing_time(room) -> float:
    """Returns the time (s) after which images are dense enough to be taken for noise."""
    return 0.060 * (room[0] * room[1] * room[2] / 60.0) ** 0.5


@functools.cache
def _inverse_wave_numbers() -> tuple[np.ndarray, np.ndarray]:
    """Returns the means [7] of 1 / k and 1 / k^2 over each band, as white sound has it.

    Bands overlap by sin^2 and cos^2 of the octave (bands.weights), and the high-pass ends the
    lowest one.
    """
    f = np.arange(2.0, 8000.0, 4.0)
    octave = np.clip(np.log2(f / BANDS[0]), 0, len(BANDS) - 1) - np.arange(len(BANDS))[:, None]
    energy = np.cos(np.pi / 2 * np.minimum(abs(octave), 1)) ** 4 / (1 + (HIGH_PASS_HZ / f) ** 8)
    k = 2 * np.pi * f / SPEED_OF_SOUND
    return energy @ (1 / k) / energy.sum(axis=1), energy @ (1 / k**2) / energy.sum(axis=1)


@functools.cache
def _octant(dense: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors [D, 3] of one octant, its three edges and its axes, and weights [D].

    The weights of the octant sum to 1, and those of each edge (x = 0, y = 0, z = 0) too. steep
    has nodes densest at the edges, for decays that differ much between axes.
    """
    count = _DENSE_NODES if dense else _NODES
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = (nodes + 1) / 2, weights / 2
    if dense:
        nodes, weights = nodes**2 * (3 - 2 * nodes), weights * 6 * nodes * (1 - nodes)
    z, phi = np.repeat(nodes, count), np.tile(nodes, count) * np.pi / 2
    flat = np.sqrt(1 - z * z)
    inside = np.stack([flat * np.cos(phi), flat * np.sin(phi), z], axis=1)
    circle = np.stack([np.cos(nodes * np.pi / 2), np.sin(nodes * np.pi / 2)], axis=1)
    edges = [np.insert(circle, axis, 0.0, axis=1) for axis in range(3)]
    weight = [np.repeat(weights, count) * np.tile(weights, count), *[weights] * 3, np.ones(3)]
    return np.concatenate([inside, *edges, np.eye(3)]), np.concatenate(weight)


def _mode_weights(size, xp=np, steep: bool = False):
    """Returns the weights [7, D] of all directions in each band, positions averaged.

    Oblique directions weigh 1 together; tangential and axial ones come on top.
    """
    # Of each axis: pi / 2 V times the area of the wall across it, and times its length.
    areas, lengths = np.pi / 2 / size, np.pi / 2 / (size[0] * size[1] * size[2]) * size
    first, second = (mean[:, None] for mean in _inverse_wave_numbers())
    count = _DENSE_NODES if steep else _NODES
    oblique = xp.ones((len(BANDS), count**2))
    shares = [oblique, first * xp.repeat(areas, count), second * lengths]
    return xp.concatenate(shares, axis=1) * _octant(steep)[1]


@functools.lru_cache(maxsize=8)
def _cached_mode_weights(size: bytes) -> np.ndarray:
    return _mode_weights(np.frombuffer(size))


def has_nonuniform_absorption(absorption, xp=np):
    """Returns whether walls are given one by one and not all alike; absorption [7] or [6, 7]."""
    walls = xp.asarray(absorption)
    return xp.any(walls != walls[:1]) if walls.ndim == 2 else xp.asarray(False)


def absorption_exponents(absorption, xp=np):
    """Returns -ln(1 - absorption) [7, 3] of [7] or [6, 7], the mean of the two walls of an axis.

    Arrays of numpy or, with xp=jax.numpy, under jit.
    """
    walls = -xp.log(xp.maximum(1 - xp.asarray(absorption, float), 1e-12))
    if walls.ndim == 1:
        return xp.repeat(walls[:, None], 3, axis=1)
    return (walls[0::2] + walls[1::2]).T / 2


def _wall_loss(size, logs, steep: bool = False):
    """Returns the energy lost to walls per metre of path [7, D] in each direction."""
    return (logs / size) @ _octant(steep)[0].T


def _position_factor(size, logs, times, source, listener, xp=np):
    """Returns how much more [7, 3, T] of the modes without an axis there is at two positions."""
    wave = (logs * _inverse_wave_numbers()[0][:, None]) / size**2
    # Beyond 20 the sums are 1 to the last digit; at 0 they may have no limit.
    g = xp.clip(SPEED_OF_SOUND * np.pi * wave[:, :, None] * times, 1e-3, 20.0)
    sine, cosine = xp.sinh(g), xp.cosh(g)

    def summed(x):
        return sine / (cosine - xp.cos(2 * np.pi * x / size)[:, None])

    alone = summed(source) + summed(listener)
    return alone + (summed(source + listener) + summed(source - listener)) / 2 - 2


def _layer_factor(size, absorption, times, source, listener, xp=np):
    """As _placed, of the layers of images between walls [6, 7] that absorb much."""
    walls = -0.5 * xp.log(xp.maximum(1 - xp.asarray(absorption, float), 1e-12)).T
    low, high = walls[:, 0::2, None], walls[:, 1::2, None]
    # Images of one axis, as in image_source.axis_images.
    i, mirrored = np.divmod(np.arange(-2 * _LAYERS, 2 * _LAYERS + 2), 2)
    x = (1 - 2 * mirrored) * source[:, None] + 2 * i * size[:, None] - listener[:, None]
    gain = xp.exp(-low * np.abs(i - mirrored) - high * np.abs(i)).astype(np.float32)
    # Slow in time: moments are few, and what is between is interpolated.
    path = SPEED_OF_SOUND * times
    moments = np.geomspace(1.0, max(2.0, path.max()), _LAYER_TIMES)
    between = np.stack([np.interp(path, moments, one) for one in np.eye(_LAYER_TIMES)])
    octave = np.linspace(-0.5, 0.5, _WAVE_NUMBERS)
    k = 2 * np.pi / SPEED_OF_SOUND * np.clip(np.outer(BANDS, 2**octave), HIGH_PASS_HZ, 8000.0)
    phase = (0.5 * x**2)[:, None] / moments[:, None]
    phase = (k[:, :, None, None, None] * phase).astype(np.float32)
    summed = [xp.einsum("bdx,bkdtx->bkdt", gain, f(phase)) for f in (xp.cos, xp.sin)]
    power = (summed[0] ** 2 + summed[1] ** 2).mean(axis=1)
    beyond = (power / 2 - 1 / (low + high)) * size[:, None] ** 2 / moments
    return beyond @ between * (2 / np.pi / _inverse_wave_numbers()[0][:, None, None])


@functools.lru_cache(maxsize=256)
def _decay_paths(room: tuple, logs: bytes) -> np.ndarray:
    """Returns the paths [7] (m) on which the closed form falls by 60 dB, without air (T20)."""
    size = np.array(room)
    rate = _wall_loss(size, np.frombuffer(logs).reshape(-1, 3))
    weight = _mode_weights(size) / rate
    path = np.linspace(0.0, 1.0, 128) * (5.9 / rate.min(axis=1))[:, None]
    decay = np.einsum("bd,bpd->bp", weight, np.exp(-path[:, :, None] * rate[:, None]))
    level = 10 * np.log10(decay / decay[:, :1])
    use = (level <= -5) & (level >= -25)
    count = use.sum(axis=1, keepdims=True)
    x = np.where(use, path - (path * use).sum(axis=1, keepdims=True) / count, 0.0)
    return -60.0 * (x * x).sum(axis=1) / (x * level).sum(axis=1)


def _wall_decay(room, logs) -> np.ndarray:
    """Returns the decay rates [7] (1 / s) that walls alone give, by T20 of the closed form."""
    size = tuple(float(v) for v in room)
    raw = np.ascontiguousarray(logs, float).tobytes()
    return _SIXTY_DB * SPEED_OF_SOUND / _decay_paths(size, raw)


def absorption(room, rt60, method: str = "calibrated", air: bool = True) -> np.ndarray:
    """Returns the absorption [7] of all walls that gives each octave band its `rt60` (s).

    rt60: scalar or [7]. method: "calibrated" on the decay of this module's closed form, which is
    what responses have; "eyring", -ln(1 - absorption) S + 4 m V = 0.161 V / rt60 (1930);
    or "sabine", absorption S + 4 m V = 0.161 V / rt60. air=False leaves air out of it. Raises
    ConfigError below the floor of Sabine's formula (not for "eyring", which has none), and above
    what air alone allows.
    """
    check(method in METHODS, "method", method, "one of " + ", ".join(METHODS))
    validate(room)
    target = np.broadcast_to(np.asarray(rt60, float), len(BANDS))
    ok = bool(np.isfinite(target).all() and target.min() > 0)
    check(ok, "rt60", _as_list(rt60), "seconds above 0")
    if method != "eyring":
        floor = sabine_min_rt60(room)
        expected = f"at least {floor:.3f} s (Sabine)"
        check(target.min() >= floor, "rt60", float(target.min()), expected)
    # Decay rates of walls and air add, each 6 ln(10) / T60.
    lost = SPEED_OF_SOUND * AIR_ABSORPTION if air else np.zeros(len(BANDS))
    walls = _SIXTY_DB / target - lost
    if walls.min() <= 0:
        worst = int(walls.argmin())
        ceiling = _SIXTY_DB / lost[worst]
        expected = f"at most {ceiling:.2f} s at {BANDS[worst]:.0f} Hz (air)"
        check(False, "rt60", float(target[worst]), expected)
    if method == "calibrated":
        return 1 - np.exp(-walls / _wall_decay(room, np.ones((len(BANDS), 3))))
    mean = 0.161 * volume(room) / surface_area(room) * walls / _SIXTY_DB
    # At the floor itself rounding may pass 1 by a hair.
    return np.minimum(mean, 1.0) if method == "sabine" else 1 - np.exp(-mean)


def decay_time(room, absorption, air: bool = True) -> np.ndarray:
    """Returns the RT60 (s) [7] of each octave band by the closed form.

    absorption: [7] of all walls (then this is the inverse of `absorption`), or [6, 7] by WALLS.
    """
    rate = _wall_decay(room, absorption_exponents(absorption))
    return _SIXTY_DB / (rate + SPEED_OF_SOUND * AIR_ABSORPTION * air)


def millington_rt60(size, logs, air: bool, xp=np):
    """Returns the RT60 (s) [7] of the mean free path, 4 V / S where all walls are alike.

    size: [3]. logs: log_absorption [7, 3]. Eyring's, with each axis weighed by its own walls.
    Arrays of numpy or, with xp=jax.numpy, under jit.
    """
    return _SIXTY_DB / (SPEED_OF_SOUND * ((logs / size).sum(axis=1) / 2 + AIR_ABSORPTION * air))


def tail_energy(
    room,
    absorption,
    times: np.ndarray,
    source=None,
    listener=None,
    air: bool = True,
    scattering: float = 0.0,
) -> np.ndarray:
    """Returns the expected energy per second [7, 4, len(times)] of W, Y, Z, X in each band.

    absorption: [7], or [6, 7] by WALLS. times: s. source, listener: x, y, z in metres; without
    them the average over all positions. scattering, from 0 to 1, mixes the covariance of the
    channels towards the isotropic diag(1, 1/3, 1/3, 1/3); W keeps its energy.
    """
    size, times = np.asarray(room, float), np.asarray(times, float)
    walls = np.asarray(absorption, float)
    if walls.ndim == 2 and not has_nonuniform_absorption(walls):
        walls = walls[0]
    raw = (size.tobytes(), walls.tobytes(), times.tobytes(), bool(air))
    if source is not None:
        source, listener = np.asarray(source, float), np.asarray(listener, float)
    return sum_modes(size, walls, times, _cached_mode_energies(*raw), source, listener, scattering)


@functools.lru_cache(maxsize=8)
def _cached_mode_energies(*raw) -> tuple[np.ndarray, ...]:
    # All sources of a scene share them.
    size, walls, times = (np.frombuffer(part) for part in raw[:3])
    walls = walls if len(walls) == len(BANDS) else walls.reshape(len(WALLS), -1)
    return mode_energies(size, walls, times, raw[3])


def mode_energies(size, absorption, times, air: bool, xp=np) -> tuple:
    """The energy of oblique [7, 4, T], tangential and axial modes [7, 4, 3, T] by missing axis.

    size: [3]. absorption: [7] or [6, 7]. Arrays of numpy or, with xp=jax.numpy, under jit.
    Axial modes are by the axis along which they are.
    """
    steep = absorption.ndim == 2
    unit, count = _octant(steep)[0], _DENSE_NODES if steep else _NODES
    squares = np.concatenate([np.ones((1, len(unit))), unit[:, [1, 2, 0]].T ** 2])
    rate = SPEED_OF_SOUND * (
        _wall_loss(size, absorption_exponents(absorption, xp), steep)
        + AIR_ABSORPTION[:, None] * air
    )
    decay = xp.exp((-rate[:, :, None] * times).astype(np.float32))
    decay = _mode_weights(size, xp, steep)[:, :, None] * decay
    n = count**2
    oblique = xp.einsum("cd,bdt->bct", squares[:, :n], decay[:, :n])
    edges = decay[:, n:-3].reshape(len(BANDS), 3, count, -1)
    edges = xp.einsum("cad,badt->bcat", squares[:, n:-3].reshape(4, 3, count), edges)
    return oblique, edges, squares[:, -3:, None] * decay[:, None, -3:]


def sum_modes(size, absorption, times, kept, source, listener, scattering, xp=np):
    """The sum of `parts` for positions [3] (or None), mixed by scattering: tail_energy."""
    oblique, edges, axial = kept
    if source is not None:
        logs = absorption_exponents(absorption, xp)
        more = _position_factor(size, logs, times, source, listener, xp)
        if absorption.ndim == 2:
            share = xp.clip(
                (logs - _LAYERED_FROM_TO[0]) / (_LAYERED_FROM_TO[1] - _LAYERED_FROM_TO[0]), 0, 1
            )[..., None]
            share = share * has_nonuniform_absorption(absorption, xp)
            layered = _layer_factor(size, absorption, times, source, listener, xp)
            more = more + share * (layered - more)
        edges = edges * more[:, None]
        # An axial mode lacks the other two axes.
        axial = axial * (more[:, [1, 0, 0]] * more[:, [2, 2, 1]])[:, None]
    total = oblique + edges.sum(axis=2) + axial.sum(axis=2)
    # First-order sums may fall short of what the few modes of a low band have.
    total = xp.maximum(total, 0.1 * oblique)
    w = total[:, :1]
    total = xp.concatenate([w, total[:, 1:] + scattering * (w / 3 - total[:, 1:])], axis=1)
    return 4 * np.pi * SPEED_OF_SOUND / (size[0] * size[1] * size[2]) * total


def expected_drr(room, absorption, distance: float, air: bool = True) -> float:
    """Returns the direct-to-reverberant ratio (dB) expected on W for white sound to 8 kHz.

    All energy after the direct sound, by the closed form (Barron's revised theory).
    """
    size = np.asarray(room, float)
    rate = _wall_loss(size, absorption_exponents(absorption)) + AIR_ABSORPTION[:, None] * air
    shares = _cached_mode_weights(size.tobytes())
    reverberant = (shares * np.exp(-rate * distance) / rate).sum(axis=1) @ _BANDWIDTH
    reverberant *= 4 * np.pi / volume(room)
    return float(-10 * np.log10(distance**2 * reverberant))
