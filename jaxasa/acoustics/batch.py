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

    length: samples of a response after LEAD. early: samples that hold images. reach: pairs of
    images on either side along x, y and z. octaves: False where walls are flat and air is off.
    """

    length: int
    early: int
    reach: tuple[int, int, int]
    octaves: bool
    full: bool
    air: bool


def plan(sizes, absorption, sources, listeners, full: bool = False, air: bool = True) -> Shape:
    """Returns the Shape that serves all rooms of a batch; arguments as in `responses`.

    Raises ConfigError (rooms.validate) for the first room, source or listener that is none.
    """
    mixing, seconds, radii = 0.0, 0.0, []
    for size, walls, here, listener in zip(sizes, absorption, sources, listeners, strict=True):
        for source in here:
            rooms.validate(size, walls, source, listener)
        far = max(math.dist(source, listener) for source in here)
        late = float(rir.mixing_time(size, far))
        decay = max(float(rooms.decay_time(size, walls, air).max()), late + 0.005)
        mixing, seconds = max(mixing, late), max(seconds, decay)
        radii.append(late)
    heard = np.full(len(radii), seconds) if full else np.array(radii)
    reach = heard[:, None] * rooms.SPEED / (2 * np.asarray(sizes, float))
    reflect = np.array([image_source.reflections(walls) for walls in absorption])
    length = int(seconds * bands.RATE)
    return Shape(
        length=length,
        early=min(int(heard.max() * bands.RATE) + 2, length),
        reach=tuple((reach.max(axis=0).astype(int) + 1).tolist()),
        octaves=air or not bool((reflect == reflect[..., :1]).all()),
        full=full,
        air=air,
    )


@functools.partial(jax.jit, static_argnames=("shape", "at_once"))
def responses(
    sizes,
    absorption,
    sources,
    listeners,
    key: jax.Array,
    shape: Shape,
    scattering: float = 0.0,
    at_once: int | None = None,
) -> jax.Array:
    """Returns the responses [R, S, 4, LEAD + length] float32 of R rooms with S sources each.

    sizes: [R, 3] m. absorption: [R, 7] or [R, 6, 7]. sources: [R, S, 3], listeners: [R, 3], m.
    key: of the tails; room r takes fold_in(key, r). shape: of `plan`. at_once: rooms that are
    vmapped together, all by default. Otherwise as rir.response, to the length of the longest.
    """
    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(len(sizes)))
    parts = (sizes, absorption, sources, listeners)
    arrays = tuple(jnp.asarray(part, jnp.float32) for part in parts)

    def of_room(room):
        size, walls, here, listener, one = room
        each = jax.random.split(one, here.shape[0])
        single = functools.partial(_response, size, walls, shape=shape, scattering=scattering)
        return jax.vmap(lambda source, k: single(source, listener, k))(here, each)

    return jax.lax.map(of_room, (*arrays, keys), batch_size=at_once or len(sizes))


def _response(size, walls, source, listener, key, shape: Shape, scattering):
    distance = jnp.linalg.norm(source - listener)
    mixing = rir.mixing_time(size, distance, jnp)
    radius = shape.length / bands.RATE * rooms.SPEED if shape.full else mixing * rooms.SPEED
    fade = radius if shape.full else radius * rir.FADE
    early = _images(size, walls, source, listener, radius, fade, shape)
    out = jnp.pad(early, ((0, 0), (0, shape.length + bands.LEAD - early.shape[1])))
    if not shape.full:
        late = _tail(size, walls, source, listener, key, shape, scattering)
        progress = (jnp.arange(shape.length) / bands.RATE / mixing - rir.FADE) / (1 - rir.FADE)
        late *= jnp.sin(jnp.clip(progress, 0, 1) * jnp.pi / 2)
        out = out.at[:, bands.LEAD :].add(late)
    return _high_pass(out)


def _axis(source, listener, size, reach: int):
    """As image_source.axis_images, of a fixed number; far ones are for the caller to leave out."""
    i, mirrored = np.divmod(np.arange(-2 * reach, 2 * reach + 2), 2)
    offset = (1 - 2 * mirrored) * source + 2 * i * size - listener
    return offset, np.abs(i - mirrored), np.abs(i)


def _images(size, walls, source, listener, radius, fade, shape: Shape):
    """As image_source.images: [4, early + LEAD]."""
    reflect = jnp.sqrt(1 - jnp.broadcast_to(walls, (len(rooms.WALLS), walls.shape[-1])))
    if not shape.octaves:
        reflect = reflect[:, :1]
    offsets, gains = [], []
    for d in range(3):
        offset, low, high = _axis(source[d], listener[d], size[d], shape.reach[d])
        offsets.append(offset)
        gains.append(reflect[2 * d] ** low[:, None] * reflect[2 * d + 1] ** high[:, None])
    x, y, z = offsets
    over = gains[1][:, None] * gains[2]

    def add_plane(i, powers):
        # A plane of images at a time: flat scatters of all are three to five times slower.
        distance = jnp.sqrt(x[i] ** 2 + y[:, None] ** 2 + z**2)
        time = distance * (bands.RATE / rooms.SPEED)
        sample = jnp.floor(time + 0.5)
        fraction = time - sample
        progress = jnp.clip((distance - fade) / jnp.maximum(radius - fade, 1e-6), 0, 1)
        level = jnp.where(distance < radius, jnp.cos(progress * jnp.pi / 2) / distance, 0.0)
        turn = jnp.broadcast_arrays(distance, y[:, None], z, x[i])
        harmonic = level[..., None] * jnp.stack(turn, -1) / distance[..., None]
        powered = harmonic[..., None] * fraction[..., None, None] ** jnp.arange(image_source.ORDER)
        gain = gains[0][i] * over
        if shape.air:
            gain *= jnp.exp(-0.5 * distance[..., None] * rooms.AIR.astype(np.float32))
        values = gain[..., None] * powered.reshape(*distance.shape, 1, -1)
        where = jnp.where(level > 0, sample, shape.early).astype(int).reshape(-1)
        return powers.at[where].add(values.reshape(-1, *values.shape[2:]), mode="drop")

    width = 4 * image_source.ORDER
    powers = jnp.zeros((shape.early, reflect.shape[1], width), jnp.float32)
    powers = jax.lax.fori_loop(0, len(x), add_plane, powers)
    n = image_source.transform_size(shape.early)
    spectrum = jnp.fft.rfft(powers, n, axis=0).reshape(n // 2 + 1, -1, 4, image_source.ORDER)
    weights = bands.weights_of(n) if shape.octaves else np.ones((1, n // 2 + 1), np.float32)
    mixed = jnp.einsum("bf,fbck->fck", weights, spectrum)
    filtered = jnp.einsum("kf,fck->cf", image_source.spectra(n), mixed)
    return jnp.fft.irfft(filtered, n)[:, : shape.early + bands.LEAD]


def _tail(size, walls, source, listener, key, shape: Shape, scattering):
    """As tail.tail: [4, length]."""
    frames, hop = -(-shape.length // (tail.FRAME // 2)) + 1, tail.FRAME // 2
    times = np.arange(frames) * hop / bands.RATE
    logs = rooms.log_absorption(walls, jnp)
    parts = rooms.parts(size, logs, times, shape.air, jnp)
    energy = rooms.combine(size, logs, times, parts, source, listener, scattering, jnp)
    level = jnp.sqrt(energy * (tail.FRAME / 2 / bands.RATE))
    weights = bands.weights_of(tail.FRAME)
    signs = jax.random.rademacher(key, (2, 4, frames, weights.shape[1]), jnp.float32)
    spectrum = jax.lax.complex(*signs) * jnp.einsum("bct,bf->ctf", level, weights)
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
