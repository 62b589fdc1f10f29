# SPDX-License-Identifier: Apache-2.0
"""Room responses for whole batches in JAX: rooms and sources at once, on any backend.

The same images, filters and closed form as rir.response, under jit and vmap: images agree to
-60 dB (delays are in single precision), tails in energy, direction and decay; their draws
differ. Shapes under jit are static, so `plan` looks at a batch on the host and chooses the
length and a box of image orders that serve all of its rooms; batches of rooms of one size waste
least. Where rooms differ much, `at_once` maps over a few at a time.

    >>> import jax
    >>> from jaxasa.acoustics import jax_rir, rooms
    >>> sizes = [(6, 5, 3), (5, 4, 3)]
    >>> walls = [rooms.absorption(size, 0.3) for size in sizes]
    >>> sources, listeners = [[(1, 1, 1), (4, 3, 2)]] * 2, [(3, 2, 1.5)] * 2
    >>> shape = jax_rir.plan_shape(sizes, walls, sources, listeners)
    >>> jax_rir.batch_rirs(sizes, walls, sources, listeners, jax.random.key(0), shape).shape
    (2, 2, 4, 4864)
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.signal

from jaxasa.acoustics import bands, image_source, rir, rooms, tail
from jaxasa.core.audio import SAMPLE_RATE

_RING_DOWN = 2048  # samples in which the high-pass has died away


@dataclass(frozen=True)
class RirBatchShape:
    """The static sizes of a batch.

    length: samples of a response after LEAD. seconds: that hold images of all octaves, of the
    rir.LOW lowest, and those of uneven walls that are followed coarsely (0 where there are none).
    reach: pairs of images on either side along x, y and z, for each of the three.
    octaves: False where walls are flat and air is off.
    """

    length: int
    seconds: tuple[float, ...]
    periods: tuple[tuple[int, int, int], ...]
    octaves: bool
    full: bool
    air: bool


def plan_shape(
    sizes,
    absorption,
    sources,
    listeners,
    full: bool = False,
    air: bool = True,
    scattering: float | np.ndarray = 0.0,
) -> RirBatchShape:
    """Returns the Shape that serves all rooms of a batch; arguments as in `rir_rooms`.

    Raises ConfigError (rooms.validate) for the first room, source or listener that is none.
    """
    seconds, ends, lost = 0.0, [], []
    for size, walls, here, listener in zip(sizes, absorption, sources, listeners, strict=True):
        for source in here:
            rooms.validate(size, walls, source, listener)
        far = max(math.dist(source, listener) for source in here)
        seconds = max(seconds, rir.rir_duration(size, walls, far, air))
        lost.append(rooms.absorption_exponents(walls))
        ends.append(rir.image_end_times(np.asarray(size, float), lost[-1], far, air))
    length = int(seconds * SAMPLE_RATE)
    seconds = length / SAMPLE_RATE
    mixed = np.broadcast_to(scattering, len(ends))
    coarse = [
        0.0
        if full
        else float(rir.coarse_image_end_time(np.asarray(size, float), walls, seconds, part))
        for size, walls, part in zip(sizes, absorption, mixed, strict=True)
    ]
    heard = np.full((len(ends), 2), seconds) if full else np.array(ends)
    heard = np.column_stack([heard, coarse]).clip(max=seconds)
    reach = heard[:, :, None] * rooms.SPEED_OF_SOUND / (2 * np.asarray(sizes, float)[:, None])
    # Of what is followed coarsely, axes hold only as many as are not faint.
    reach[:, 2] = np.minimum(
        reach[:, 2], -math.log(image_source.MIN_WALL_GAIN) / np.min(lost, axis=1)
    )
    reflect = np.array([image_source.reflection_coefficients(walls) for walls in absorption])
    return RirBatchShape(
        length=length,
        seconds=tuple(heard.max(axis=0).tolist()),
        periods=tuple(tuple(group) for group in (reach.max(axis=0).astype(int) + 1).tolist()),
        octaves=air or not bool((reflect == reflect[..., :1]).all()),
        full=full,
        air=air,
    )


def batch_rirs(
    sizes,
    absorption,
    sources,
    listeners,
    key: jax.Array,
    shape: RirBatchShape,
    scattering: float | np.ndarray | jax.Array = 0.0,
    rooms_per_chunk: int | None = None,
) -> jax.Array:
    """Returns the responses [R, S, 4, LEAD + length] float32 of R rooms with S sources each.

    sizes: [R, 3] m. absorption: [R, 7] or [R, 6, 7]. sources: [R, S, 3], listeners: [R, 3], m.
    key: of the tails; room r takes fold_in(key, r). shape: of `plan`, given the same scattering,
    which is of all rooms, or [R]. at_once: rooms that are vmapped together, all by default.
    Otherwise as rir.response, to the length of the longest.
    """
    if shape.full:
        none = not np.any(scattering)
        rooms.check(none, "scattering", scattering, "0 where all are images")
    return _responses(
        sizes, absorption, sources, listeners, key, shape, scattering, rooms_per_chunk
    )


@functools.partial(jax.jit, static_argnames=("shape", "at_once"))
def _responses(
    sizes, absorption, sources, listeners, key, shape: RirBatchShape, scattering, at_once
):
    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(len(sizes)))
    parts = (sizes, absorption, sources, listeners, jnp.broadcast_to(scattering, len(sizes)))
    arrays = tuple(jnp.asarray(part, jnp.float32) for part in parts)

    def of_room(room):
        size, walls, here, listener, mixed, one = room
        each = jax.random.split(one, here.shape[0])
        single = functools.partial(_response, size, walls, shape=shape, scattering=mixed)
        return jax.vmap(lambda source, k: single(source, listener, k))(here, each)

    return jax.lax.map(of_room, (*arrays, keys), batch_size=at_once or len(sizes))


def _response(size, walls, source, listener, key, shape: RirBatchShape, scattering):
    where = (size, walls, source, listener)
    if shape.full:
        radius = shape.length / SAMPLE_RATE * rooms.SPEED_OF_SOUND
        return _high_pass(_images(*where, radius, None, shape, 0, slice(None), 1))
    logs, distance = rooms.absorption_exponents(walls, jnp), jnp.linalg.norm(source - listener)
    ends = rir.image_end_times(size, logs, distance, shape.air, scattering, jnp)
    noise, seconds = ends, shape.length / SAMPLE_RATE
    if shape.seconds[2]:
        last = rir.coarse_image_end_time(size, walls, seconds, scattering, jnp)
        noise = tuple(jnp.maximum(end, last) for end in ends)
    late = _tail(*where, key, shape, scattering, rir.image_crossfade(noise[0], noise[1], jnp))
    start = (jnp.minimum(*noise) * rir.FADE_START * SAMPLE_RATE).astype(int)
    late = jnp.where(jnp.arange(shape.length) < start, 0.0, late)
    out = jnp.pad(late, ((0, 0), (bands.PRE_SAMPLES, 0)))
    for i, (octaves, step) in enumerate(rir.BAND_GROUPS):
        radius = ends[i] * rooms.SPEED_OF_SOUND
        out += _images(*where, radius, radius * rir.FADE_START, shape, i, octaves, step)
    if shape.seconds[2]:
        inner = jnp.minimum(*ends) * rir.FADE_START * rooms.SPEED_OF_SOUND
        radius = jnp.minimum(last, seconds) * rooms.SPEED_OF_SOUND
        kept, exact = (rir.image_crossfade(two[0], two[1], jnp) for two in (noise, ends))
        out += _coarse(*where, inner, radius, lambda t: kept(t) - exact(t), shape)
    return _high_pass(out)


def _axis(source, listener, size, reach: int):
    """As image_source.axis_images, of a fixed number; far ones are for the caller to leave out."""
    i, mirrored = np.divmod(np.arange(-2 * reach, 2 * reach + 2), 2)
    offset = (1 - 2 * mirrored) * source + 2 * i * size - listener
    return offset, np.abs(i - mirrored), np.abs(i)


def _axes(source, listener, size, reflect, reach):
    """Returns offsets [n] and gains [n, bands] of the images along x, y and z."""
    offsets, gains = [], []
    for d in range(3):
        offset, low, high = _axis(source[d], listener[d], size[d], reach[d])
        offsets.append(offset)
        gains.append(reflect[2 * d] ** low[:, None] * reflect[2 * d + 1] ** high[:, None])
    return offsets, gains


def _images(
    size, walls, source, listener, radius, fade, shape: RirBatchShape, i: int, octaves, step: int
):
    """As image_source.images, of the group `i` of Shape's two: [4, LEAD + length]."""
    reflect = jnp.sqrt(1 - jnp.broadcast_to(walls, (len(rooms.WALLS), walls.shape[-1])))[:, octaves]
    if not shape.octaves:
        reflect = reflect[:, :1]
    count = math.ceil((int(shape.seconds[i] * SAMPLE_RATE) + 2) / step)
    rate = SAMPLE_RATE / step / rooms.SPEED_OF_SOUND
    (x, y, z), gains = _axes(source, listener, size, reflect, shape.periods[i])
    over = gains[1][:, None] * gains[2]

    def add_plane(plane, powers):
        # A plane of images at a time: flat scatters of all are three to five times slower.
        distance = jnp.sqrt(x[plane] ** 2 + y[:, None] ** 2 + z**2)
        time = distance * rate
        sample = jnp.floor(time + 0.5)
        fraction = time - sample
        level = jnp.where(distance < radius, 1 / distance, 0.0)
        turn = jnp.broadcast_arrays(distance, y[:, None], z, x[plane])
        harmonic = level[..., None] * jnp.stack(turn, -1) / distance[..., None]
        powered = harmonic[..., None] * fraction[..., None, None] ** jnp.arange(
            image_source.NUM_POWERS
        )
        gain = gains[0][plane] * over
        values = gain[..., None] * powered.reshape(*distance.shape, 1, -1)
        where = jnp.where(level > 0, sample, count).astype(int).reshape(-1)
        return powers.at[where].add(values.reshape(-1, *values.shape[2:]), mode="drop")

    width = 4 * image_source.NUM_POWERS
    powers = jnp.zeros((count, reflect.shape[1], width), jnp.float32)
    powers = jax.lax.fori_loop(0, len(x), add_plane, powers)
    distance = np.arange(count)[:, None] / rate
    level = jnp.ones((1, 1))
    if shape.air:
        level = jnp.exp(-0.5 * distance * rooms.AIR_ABSORPTION[octaves])
    if fade is not None:
        level *= jnp.cos(jnp.clip((distance - fade) / (radius - fade), 0, 1) * jnp.pi / 2)
    powers *= level[:, :, None]
    n = image_source.fft_size(count * step, step)
    spectrum = jnp.fft.rfft(powers, n, axis=0).reshape(n // 2 + 1, -1, 4, image_source.NUM_POWERS)
    weights = bands.rfft_gains(n * step)[octaves, : n // 2 + 1]
    if not shape.octaves:
        weights = weights.sum(axis=0, keepdims=True)
    mixed = jnp.einsum("bf,fbck->fck", weights, spectrum)
    filtered = jnp.einsum("kf,fck->cf", image_source.farrow_spectra(n, step), mixed)
    found = jnp.fft.irfft(filtered, n * step)[:, : shape.length + bands.PRE_SAMPLES]
    return jnp.pad(found, ((0, 0), (0, shape.length + bands.PRE_SAMPLES - found.shape[1])))


def _coarse(size, walls, source, listener, inner, radius, level, shape: RirBatchShape):
    """As image_source.coarse: [4, LEAD + length]."""
    reflect = jnp.sqrt(1 - walls)
    (x, y, z), gains = _axes(source, listener, size, reflect, shape.periods[2])
    count = int(shape.seconds[2] * SAMPLE_RATE) + 2
    rate = SAMPLE_RATE / rooms.SPEED_OF_SOUND
    over = gains[1][:, None] * gains[2]

    def add_plane(plane, found):
        distance = jnp.sqrt(x[plane] ** 2 + y[:, None] ** 2 + z**2)
        near = (distance >= inner) & (distance < radius)
        gain = gains[0][plane] * over
        gain = jnp.where((gain >= image_source.MIN_WALL_GAIN) & near[..., None], gain, 0.0)
        turn = jnp.stack(jnp.broadcast_arrays(distance, y[:, None], z, x[plane]), -1)
        harmonic = turn / (distance**2)[..., None]
        values = (gain[..., None] * harmonic[..., None, :]).reshape(-1, *found.shape[1:])
        where = jnp.where(near, jnp.floor(distance * rate + 0.5), count).astype(int)
        return found.at[where.reshape(-1)].add(values, mode="drop")

    found = jnp.zeros((count, reflect.shape[1], 4), jnp.float32)
    found = jax.lax.fori_loop(0, len(x), add_plane, found)
    distance = np.arange(count) / rate
    heard = level(distance / rooms.SPEED_OF_SOUND)
    if shape.air:
        heard *= jnp.exp(-0.5 * rooms.AIR_ABSORPTION[:, None] * distance)
    n = image_source.fft_size(count)
    spectrum = jnp.fft.rfft(found * heard.T[:, :, None], n, axis=0)
    mixed = jnp.einsum("bf,fbc->cf", bands.rfft_gains(n), spectrum)
    made = jnp.pad(jnp.fft.irfft(mixed, n)[:, : shape.length], ((0, 0), (bands.PRE_SAMPLES, 0)))
    return jnp.pad(made, ((0, 0), (0, shape.length + bands.PRE_SAMPLES - made.shape[1])))


def _tail(size, walls, source, listener, key, shape: RirBatchShape, scattering, kept):
    """As tail.tail: [4, length]."""
    frames, hop = -(-shape.length // (tail.FRAME // 2)) + 1, tail.FRAME // 2
    times = np.arange(frames) * hop / SAMPLE_RATE
    parts = rooms.mode_energies(size, walls, times, shape.air, jnp)
    energy = rooms.sum_modes(size, walls, times, parts, source, listener, scattering, jnp)
    level = jnp.sqrt(energy * (tail.FRAME / 2 / SAMPLE_RATE))
    weights = bands.rfft_gains(tail.FRAME)
    signs = jax.random.rademacher(key, (2, 4, frames, weights.shape[1]), jnp.float32)
    spectrum = jax.lax.complex(*signs) * jnp.einsum("bct,bf->ctf", level, weights)
    spectrum *= tail.complementary_gain(kept(times), weights, jnp)
    window = np.sin(np.pi * (np.arange(tail.FRAME) + 0.5) / tail.FRAME)
    framed = jnp.fft.irfft(spectrum, tail.FRAME) * window.astype(np.float32)
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(4, -1)[:, : shape.length]


def _high_pass(signal):
    """As rir.high_pass, by its exact response on a spectrum with room for its ring."""
    n = scipy.fft.next_fast_len(signal.shape[-1] + _RING_DOWN, real=True)
    f = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    response = scipy.signal.sosfreqz(rir.HIGH_PASS_SOS, f, fs=SAMPLE_RATE)[1].astype(np.complex64)
    return jnp.fft.irfft(jnp.fft.rfft(signal, n) * response, n)[:, : signal.shape[-1]]
