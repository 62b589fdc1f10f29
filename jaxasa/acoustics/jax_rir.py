# SPDX-License-Identifier: Apache-2.0
"""RIRs for whole batches of rooms and sources in JAX, on any backend.

The same images, filters and closed form as rir.shoebox_rir, under jit and vmap: images agree to
-60 dB (delays are in single precision), tails in energy, direction and decay; their random draws
differ. Shapes under jit are static: `plan_shape` looks at a batch on the host, and chooses the
length and the extent of the image lattice that serve all of its rooms. Batches of rooms of similar
size therefore waste least; `rooms_per_chunk` limits the memory of large batches.

    >>> import jax
    >>> from jaxasa.acoustics import jax_rir, rooms
    >>> sizes = [(6, 5, 3), (5, 4, 3)]
    >>> walls = [rooms.absorption(size, 0.3) for size in sizes]
    >>> sources, listeners = [[(1, 1, 1), (4, 3, 2)]] * 2, [(3, 2, 1.5)] * 2
    >>> shape = jax_rir.plan_shape(sizes, walls, sources, listeners)
    >>> jax_rir.batch_rirs(sizes, walls, sources, listeners, jax.random.key(0), shape).shape
    (2, 2, 4, 4864)

Shapes: B rooms, S sources per room, N samples after PRE_SAMPLES.
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
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE

_RINGING = 2048  # samples in which the high-pass decays


@dataclass(frozen=True)
class RirBatchShape:
    """The static sizes of a batch.

    length: samples of an RIR after PRE_SAMPLES. seconds: that contain the images of the upper
    bands, of the rir.NUM_LOW_BANDS lowest, and those rounded to samples (0 if there are none).
    periods: of the image lattice (2 L) on either side along x, y and z, for each of these three.
    octaves: False if nothing depends on frequency (equal absorption in all bands, no air).
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
    """Returns the shape that serves all rooms of a batch; arguments as in `batch_rirs`.

    full: follow all images, as in rir.shoebox_rir. air: whether air absorbs sound. Raises
    ConfigError as rooms.Shoebox does.
    """
    seconds, ends, exponents = 0.0, [], []
    for size, walls, positions, listener in zip(sizes, absorption, sources, listeners, strict=True):
        room = rooms.Shoebox(size, walls, air=air)
        for source in positions:
            room.check_positions(source, listener)
        farthest = max(math.dist(source, listener) for source in positions)
        seconds = max(seconds, rir.rir_duration(room, farthest))
        exponents.append(rooms.absorption_exponents(walls))
        ends.append(rir.image_end_times(np.asarray(size, float), exponents[-1], farthest, air))
    length = int(seconds * SAMPLE_RATE)
    seconds = length / SAMPLE_RATE
    per_room = np.broadcast_to(scattering, len(ends))
    coarse = [
        float(rir.coarse_image_end_time(np.asarray(size, float), walls, seconds, scattering))
        for size, walls, scattering in zip(sizes, absorption, per_room, strict=True)
    ]
    limits = np.column_stack([ends, coarse]).clip(max=seconds)
    if full:
        limits[:] = seconds, seconds, 0.0
    periods = limits[:, :, None] * rooms.SPEED_OF_SOUND / (2 * np.asarray(sizes, float)[:, None])
    # Along an axis, only as many rounded images as are not below MIN_WALL_GAIN.
    most = -math.log(image_source.MIN_WALL_GAIN) / np.min(exponents, axis=1)
    periods[:, 2] = np.minimum(periods[:, 2], most)
    reflection = np.array([image_source.reflection_coefficients(walls) for walls in absorption])
    return RirBatchShape(
        length=length,
        seconds=tuple(limits.max(axis=0).tolist()),
        periods=tuple(tuple(group) for group in (periods.max(axis=0).astype(int) + 1).tolist()),
        octaves=air or not bool((reflection == reflection[..., :1]).all()),
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
    """Returns the RIRs [B, S, 4, PRE_SAMPLES + N] float32 of B rooms with S sources each.

    sizes: [B, 3] m. absorption: [B, 7] or [B, 6, 7]. sources: [B, S, 3], listeners: [B, 3], m.
    key: of the tails; room b uses fold_in(key, b). shape: of `plan_shape`, given the same
    scattering, which is a number or [B]. rooms_per_chunk: rooms that are vmapped together, all by
    default. All RIRs are as long as the longest; otherwise as rir.shoebox_rir.
    """
    if shape.full:
        check(not np.any(scattering), "scattering", scattering, "0 if full=True")
    return _batch_rirs(
        sizes, absorption, sources, listeners, key, shape, scattering, rooms_per_chunk
    )


@functools.partial(jax.jit, static_argnames=("shape", "rooms_per_chunk"))
def _batch_rirs(
    sizes, absorption, sources, listeners, key, shape: RirBatchShape, scattering, rooms_per_chunk
):
    keys = jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(len(sizes)))
    columns = (sizes, absorption, sources, listeners, jnp.broadcast_to(scattering, len(sizes)))
    arrays = tuple(jnp.asarray(column, jnp.float32) for column in columns)

    def room_rirs(room):
        size, walls, positions, listener, scattering, key = room
        keys = jax.random.split(key, positions.shape[0])
        single = functools.partial(_rir, size, walls, shape=shape, scattering=scattering)
        return jax.vmap(lambda source, key: single(source, listener, key))(positions, keys)

    return jax.lax.map(room_rirs, (*arrays, keys), batch_size=rooms_per_chunk or len(sizes))


def _rir(size, walls, source, listener, key, shape: RirBatchShape, scattering):
    room = (size, walls, source, listener)
    if shape.full:
        radius = shape.length / SAMPLE_RATE * rooms.SPEED_OF_SOUND
        return _high_pass(_image_rir(*room, radius, None, shape, 0, slice(None), 1))
    exponents = rooms.absorption_exponents(walls, jnp)
    distance = jnp.linalg.norm(source - listener)
    ends = rir.image_end_times(size, exponents, distance, shape.air, scattering, jnp)
    noise_ends, seconds = ends, shape.length / SAMPLE_RATE
    if shape.seconds[2]:
        last = rir.coarse_image_end_time(size, walls, seconds, scattering, jnp)
        noise_ends = tuple(jnp.maximum(end, last) for end in ends)
    all_images = rir.image_crossfade(noise_ends, jnp)
    late = _noise_tail(*room, key, shape, scattering, all_images)
    start = (jnp.minimum(*noise_ends) * rir.FADE_START * SAMPLE_RATE).astype(int)
    late = jnp.where(jnp.arange(shape.length) < start, 0.0, late)
    out = jnp.pad(late, ((0, 0), (PRE_SAMPLES, 0)))
    for i, (octaves, decimation) in enumerate(rir.BAND_GROUPS):
        radius = ends[i] * rooms.SPEED_OF_SOUND
        out += _image_rir(*room, radius, radius * rir.FADE_START, shape, i, octaves, decimation)
    if shape.seconds[2]:
        inner = jnp.minimum(*ends) * rir.FADE_START * rooms.SPEED_OF_SOUND
        radius = jnp.minimum(last, seconds) * rooms.SPEED_OF_SOUND
        exact_images = rir.image_crossfade(ends, jnp)
        out += _nearest_sample_rir(
            *room, inner, radius, lambda t: all_images(t) - exact_images(t), shape
        )
    return _high_pass(out)


def _axis_images(source, listener, size, periods: int):
    """As image_source.axis_images, but a fixed number of images: not limited by a radius."""
    i, mirrored = np.divmod(np.arange(-2 * periods, 2 * periods + 2), 2)
    offset = (1 - 2 * mirrored) * source + 2 * i * size - listener
    return offset, np.abs(i - mirrored), np.abs(i)


def _axes(source, listener, size, reflection, periods):
    """Returns offsets [n] and gains [n, bands] of the images along x, y and z."""
    offsets, gains = [], []
    for d in range(3):
        offset, low, high = _axis_images(source[d], listener[d], size[d], periods[d])
        offsets.append(offset)
        gains.append(reflection[2 * d] ** low[:, None] * reflection[2 * d + 1] ** high[:, None])
    return offsets, gains


def _image_rir(
    size,
    walls,
    source,
    listener,
    radius,
    fade_start,
    shape: RirBatchShape,
    group: int,
    octaves,
    decimation: int,
):
    """As image_source.image_rir, for one `group` of RirBatchShape: [4, PRE_SAMPLES + N]."""
    six = jnp.broadcast_to(walls, (len(rooms.WALLS), walls.shape[-1]))
    reflection = jnp.sqrt(1 - six)[:, octaves]
    if not shape.octaves:
        reflection = reflection[:, :1]
    count = math.ceil((int(shape.seconds[group] * SAMPLE_RATE) + 2) / decimation)
    rate = SAMPLE_RATE / decimation / rooms.SPEED_OF_SOUND
    (x, y, z), gains = _axes(source, listener, size, reflection, shape.periods[group])
    gain_yz = gains[1][:, None] * gains[2]

    def add_plane(plane, powers):
        # One plane of images at a time: scattering all at once is three to five times slower.
        distance = jnp.sqrt(x[plane] ** 2 + y[:, None] ** 2 + z**2)
        time = distance * rate
        sample = jnp.floor(time + 0.5)
        fraction = time - sample
        level = jnp.where(distance < radius, 1 / distance, 0.0)
        axes = jnp.broadcast_arrays(distance, y[:, None], z, x[plane])
        harmonic = level[..., None] * jnp.stack(axes, -1) / distance[..., None]
        exponents = jnp.arange(image_source.NUM_POWERS)
        powered = harmonic[..., None] * fraction[..., None, None] ** exponents
        gain = gains[0][plane] * gain_yz
        values = gain[..., None] * powered.reshape(*distance.shape, 1, -1)
        index = jnp.where(level > 0, sample, count).astype(int).reshape(-1)
        return powers.at[index].add(values.reshape(-1, *values.shape[2:]), mode="drop")

    width = 4 * image_source.NUM_POWERS
    powers = jnp.zeros((count, reflection.shape[1], width), jnp.float32)
    powers = jax.lax.fori_loop(0, len(x), add_plane, powers)
    distance = np.arange(count)[:, None] / rate
    level = jnp.ones((1, 1))
    if shape.air:
        level = jnp.exp(-0.5 * distance * rooms.AIR_ABSORPTION[octaves])
    if fade_start is not None:
        progress = jnp.clip((distance - fade_start) / (radius - fade_start), 0, 1)
        level *= jnp.cos(progress * jnp.pi / 2)
    powers *= level[:, :, None]
    n = image_source.fft_size(count * decimation, decimation)
    spectrum = jnp.fft.rfft(powers, n, axis=0).reshape(n // 2 + 1, -1, 4, image_source.NUM_POWERS)
    band_gains = bands.rfft_gains(n * decimation)[octaves, : n // 2 + 1]
    if not shape.octaves:
        band_gains = band_gains.sum(axis=0, keepdims=True)
    summed = jnp.einsum("bf,fbck->fck", band_gains, spectrum)
    filtered = jnp.einsum("kf,fck->cf", image_source.farrow_spectra(n, decimation), summed)
    images = jnp.fft.irfft(filtered, n * decimation)[:, : shape.length + PRE_SAMPLES]
    return jnp.pad(images, ((0, 0), (0, shape.length + PRE_SAMPLES - images.shape[1])))


def _nearest_sample_rir(
    size, walls, source, listener, inner, radius, image_gain, shape: RirBatchShape
):
    """As image_source.nearest_sample_rir: [4, PRE_SAMPLES + N]."""
    reflection = jnp.sqrt(1 - walls)
    (x, y, z), gains = _axes(source, listener, size, reflection, shape.periods[2])
    count = int(shape.seconds[2] * SAMPLE_RATE) + 2
    rate = SAMPLE_RATE / rooms.SPEED_OF_SOUND
    gain_yz = gains[1][:, None] * gains[2]

    def add_plane(plane, octaves):
        distance = jnp.sqrt(x[plane] ** 2 + y[:, None] ** 2 + z**2)
        in_range = (distance >= inner) & (distance < radius)
        gain = gains[0][plane] * gain_yz
        gain = jnp.where((gain >= image_source.MIN_WALL_GAIN) & in_range[..., None], gain, 0.0)
        axes = jnp.stack(jnp.broadcast_arrays(distance, y[:, None], z, x[plane]), -1)
        harmonic = axes / (distance**2)[..., None]
        values = (gain[..., None] * harmonic[..., None, :]).reshape(-1, *octaves.shape[1:])
        index = jnp.where(in_range, jnp.floor(distance * rate + 0.5), count).astype(int)
        return octaves.at[index.reshape(-1)].add(values, mode="drop")

    octaves = jnp.zeros((count, reflection.shape[1], 4), jnp.float32)
    octaves = jax.lax.fori_loop(0, len(x), add_plane, octaves)
    distance = np.arange(count) / rate
    level = image_gain(distance / rooms.SPEED_OF_SOUND)
    if shape.air:
        level *= jnp.exp(-0.5 * rooms.AIR_ABSORPTION[:, None] * distance)
    n = image_source.fft_size(count)
    spectrum = jnp.fft.rfft(octaves * level.T[:, :, None], n, axis=0)
    summed = jnp.einsum("bf,fbc->cf", bands.rfft_gains(n), spectrum)
    images = jnp.pad(jnp.fft.irfft(summed, n)[:, : shape.length], ((0, 0), (PRE_SAMPLES, 0)))
    return jnp.pad(images, ((0, 0), (0, shape.length + PRE_SAMPLES - images.shape[1])))


def _noise_tail(size, walls, source, listener, key, shape: RirBatchShape, scattering, image_gain):
    """As tail.noise_tail: [4, N]."""
    frames, hop = -(-shape.length // (tail.FRAME // 2)) + 1, tail.FRAME // 2
    times = np.arange(frames) * hop / SAMPLE_RATE
    energies = rooms.mode_energies(size, walls, times, shape.air, jnp)
    energy = rooms.sum_modes(size, walls, times, energies, source, listener, scattering, jnp)
    level = jnp.sqrt(energy * (tail.FRAME / 2 / SAMPLE_RATE))
    band_gains = bands.rfft_gains(tail.FRAME)
    signs = jax.random.rademacher(key, (2, 4, frames, band_gains.shape[1]), jnp.float32)
    spectrum = jax.lax.complex(*signs) * jnp.einsum("bct,bf->ctf", level, band_gains)
    spectrum *= tail.complementary_gain(image_gain(times), band_gains, jnp)
    window = np.sin(np.pi * (np.arange(tail.FRAME) + 0.5) / tail.FRAME)
    framed = jnp.fft.irfft(spectrum, tail.FRAME) * window.astype(np.float32)
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(4, -1)[:, : shape.length]


def _high_pass(signal):
    """As rir.high_pass, by its frequency response on a spectrum long enough for its ringing."""
    n = scipy.fft.next_fast_len(signal.shape[-1] + _RINGING, real=True)
    f = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    response = scipy.signal.sosfreqz(rir.HIGH_PASS_SOS, f, fs=SAMPLE_RATE)[1].astype(np.complex64)
    return jnp.fft.irfft(jnp.fft.rfft(signal, n) * response, n)[:, : signal.shape[-1]]
