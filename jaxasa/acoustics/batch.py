"""Room responses for whole batches in JAX: rooms and sources at once, on any backend.

The same images, filters and closed form as rir.response, under jit and vmap: images agree to
-60 dB (delays are in single precision), tails in energy, direction and decay; their draws
differ. Shapes under jit are static, so `plan` looks at a batch on the host and chooses the
length and a box of image orders that serve all of its rooms; batches of rooms of one size waste
least. Where rooms differ much, `at_once` maps over a few at a time.

    >>> import jax
    >>> from jaxasa.acoustics import batch, rooms
    >>> sizes = [(6, 5, 3), (5, 4, 3)]
    >>> walls = [rooms.absorption(size, 0.3) for size in sizes]
    >>> sources, listeners = [[(1, 1, 1), (4, 3, 2)]] * 2, [(3, 2, 1.5)] * 2
    >>> shape = batch.plan(sizes, walls, sources, listeners)
    >>> batch.responses(sizes, walls, sources, listeners, jax.random.key(0), shape).shape
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

_RING_DOWN = 2048  # samples in which the high-pass has died away


@dataclass(frozen=True)
class Shape:
    """The static sizes of a batch.

    length: samples of a response after LEAD. seconds: that hold images of all octaves, and of the
    rir.LOW lowest. reach: pairs of images on either side along x, y and z, for each of the two.
    octaves: False where walls are flat and air is off.
    """

    length: int
    seconds: tuple[float, float]
    reach: tuple[tuple[int, int, int], tuple[int, int, int]]
    octaves: bool
    full: bool
    air: bool


def plan(sizes, absorption, sources, listeners, full: bool = False, air: bool = True) -> Shape:
    """Returns the Shape that serves all rooms of a batch; arguments as in `responses`.

    Raises ConfigError (rooms.validate) for the first room, source or listener that is none.
    """
    seconds, ends = 0.0, []
    for size, walls, here, listener in zip(sizes, absorption, sources, listeners, strict=True):
        for source in here:
            rooms.validate(size, walls, source, listener)
        far = max(math.dist(source, listener) for source in here)
        seconds = max(seconds, rir.lasting(size, walls, far, air))
        ends.append(rir.followed(np.asarray(size, float), walls, far, air))
    heard = np.full((len(ends), 2), seconds) if full else np.array(ends)
    reach = heard[:, :, None] * rooms.SPEED / (2 * np.asarray(sizes, float)[:, None])
    most = (reach.max(axis=0).astype(int) + 1).tolist()
    reflect = np.array([image_source.reflections(walls) for walls in absorption])
    length = int(seconds * bands.RATE)
    return Shape(
        length=length,
        seconds=tuple(np.minimum(heard.max(axis=0), length / bands.RATE).tolist()),
        reach=(tuple(most[0]), tuple(most[1])),
        octaves=air or not bool((reflect == reflect[..., :1]).all()),
        full=full,
        air=air,
    )


def responses(
    sizes,
    absorption,
    sources,
    listeners,
    key: jax.Array,
    shape: Shape,
    scattering: float | np.ndarray | jax.Array = 0.0,
    at_once: int | None = None,
) -> jax.Array:
    """Returns the responses [R, S, 4, LEAD + length] float32 of R rooms with S sources each.

    sizes: [R, 3] m. absorption: [R, 7] or [R, 6, 7]. sources: [R, S, 3], listeners: [R, 3], m.
    key: of the tails; room r takes fold_in(key, r). shape: of `plan`. scattering: of all rooms,
    or [R]. at_once: rooms that are vmapped together, all by default. Otherwise as rir.response,
    to the length of the longest.
    """
    if shape.full:
        none = not np.any(scattering)
        rooms.check(none, "scattering", scattering, "0 where all are images")
    return _responses(sizes, absorption, sources, listeners, key, shape, scattering, at_once)


@functools.partial(jax.jit, static_argnames=("shape", "at_once"))
def _responses(sizes, absorption, sources, listeners, key, shape: Shape, scattering, at_once):
    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(len(sizes)))
    parts = (sizes, absorption, sources, listeners, jnp.broadcast_to(scattering, len(sizes)))
    arrays = tuple(jnp.asarray(part, jnp.float32) for part in parts)

    def of_room(room):
        size, walls, here, listener, mixed, one = room
        each = jax.random.split(one, here.shape[0])
        single = functools.partial(_response, size, walls, shape=shape, scattering=mixed)
        return jax.vmap(lambda source, k: single(source, listener, k))(here, each)

    return jax.lax.map(of_room, (*arrays, keys), batch_size=at_once or len(sizes))


def _response(size, walls, source, listener, key, shape: Shape, scattering):
    where = (size, walls, source, listener)
    if shape.full:
        radius = shape.length / bands.RATE * rooms.SPEED
        return _high_pass(_images(*where, radius, None, shape, 0, slice(None), 1))
    distance = jnp.linalg.norm(source - listener)
    ends = rir.followed(size, walls, distance, shape.air, scattering, jnp)
    late = _tail(*where, key, shape, scattering, rir.kept_by(ends[0], ends[1], jnp))
    start = (jnp.minimum(*ends) * rir.FADE * bands.RATE).astype(int)
    late = jnp.where(jnp.arange(shape.length) < start, 0.0, late)
    out = jnp.pad(late, ((0, 0), (bands.LEAD, 0)))
    for i, (octaves, step) in enumerate(rir.GROUPS):
        radius = ends[i] * rooms.SPEED
        out += _images(*where, radius, radius * rir.FADE, shape, i, octaves, step)
    return _high_pass(out)


def _axis(source, listener, size, reach: int):
    """As image_source.axis_images, of a fixed number; far ones are for the caller to leave out."""
    i, mirrored = np.divmod(np.arange(-2 * reach, 2 * reach + 2), 2)
    offset = (1 - 2 * mirrored) * source + 2 * i * size - listener
    return offset, np.abs(i - mirrored), np.abs(i)


def _images(size, walls, source, listener, radius, fade, shape: Shape, i: int, octaves, step: int):
    """As image_source.images, of the group `i` of Shape's two: [4, LEAD + length]."""
    reflect = jnp.sqrt(1 - jnp.broadcast_to(walls, (len(rooms.WALLS), walls.shape[-1])))[:, octaves]
    if not shape.octaves:
        reflect = reflect[:, :1]
    count = math.ceil((int(shape.seconds[i] * bands.RATE) + 2) / step)
    rate = bands.RATE / step / rooms.SPEED
    offsets, gains = [], []
    for d in range(3):
        offset, low, high = _axis(source[d], listener[d], size[d], shape.reach[i][d])
        offsets.append(offset)
        gains.append(reflect[2 * d] ** low[:, None] * reflect[2 * d + 1] ** high[:, None])
    x, y, z = offsets
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
        powered = harmonic[..., None] * fraction[..., None, None] ** jnp.arange(image_source.ORDER)
        gain = gains[0][plane] * over
        values = gain[..., None] * powered.reshape(*distance.shape, 1, -1)
        where = jnp.where(level > 0, sample, count).astype(int).reshape(-1)
        return powers.at[where].add(values.reshape(-1, *values.shape[2:]), mode="drop")

    width = 4 * image_source.ORDER
    powers = jnp.zeros((count, reflect.shape[1], width), jnp.float32)
    powers = jax.lax.fori_loop(0, len(x), add_plane, powers)
    distance = np.arange(count)[:, None] / rate
    level = jnp.ones((1, 1))
    if shape.air:
        level = jnp.exp(-0.5 * distance * rooms.AIR[octaves])
    if fade is not None:
        level *= jnp.cos(jnp.clip((distance - fade) / (radius - fade), 0, 1) * jnp.pi / 2)
    powers *= level[:, :, None]
    n = image_source.transform_size(count * step, step)
    spectrum = jnp.fft.rfft(powers, n, axis=0).reshape(n // 2 + 1, -1, 4, image_source.ORDER)
    weights = bands.weights_of(n * step)[octaves, : n // 2 + 1]
    if not shape.octaves:
        weights = weights.sum(axis=0, keepdims=True)
    mixed = jnp.einsum("bf,fbck->fck", weights, spectrum)
    filtered = jnp.einsum("kf,fck->cf", image_source.spectra(n, step), mixed)
    found = jnp.fft.irfft(filtered, n * step)[:, : shape.length + bands.LEAD]
    return jnp.pad(found, ((0, 0), (0, shape.length + bands.LEAD - found.shape[1])))


def _tail(size, walls, source, listener, key, shape: Shape, scattering, kept):
    """As tail.tail: [4, length]."""
    frames, hop = -(-shape.length // (tail.FRAME // 2)) + 1, tail.FRAME // 2
    times = np.arange(frames) * hop / bands.RATE
    parts = rooms.parts(size, walls, times, shape.air, jnp)
    energy = rooms.combine(size, walls, times, parts, source, listener, scattering, jnp)
    level = jnp.sqrt(energy * (tail.FRAME / 2 / bands.RATE))
    weights = bands.weights_of(tail.FRAME)
    signs = jax.random.rademacher(key, (2, 4, frames, weights.shape[1]), jnp.float32)
    spectrum = jax.lax.complex(*signs) * jnp.einsum("bct,bf->ctf", level, weights)
    spectrum *= tail.beside(kept(times), weights, jnp)
    window = np.sin(np.pi * (np.arange(tail.FRAME) + 0.5) / tail.FRAME)
    framed = jnp.fft.irfft(spectrum, tail.FRAME) * window.astype(np.float32)
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(4, -1)[:, : shape.length]


def _high_pass(signal):
    """As rir.high_pass, by its exact response on a spectrum with room for its ring."""
    n = scipy.fft.next_fast_len(signal.shape[-1] + _RING_DOWN, real=True)
    f = np.fft.rfftfreq(n, 1 / bands.RATE)
    response = scipy.signal.sosfreqz(rir.HIGH_PASS, f, fs=bands.RATE)[1].astype(np.complex64)
    return jnp.fft.irfft(jnp.fft.rfft(signal, n) * response, n)[:, : signal.shape[-1]]
