"""Where sound comes from before anything is learnt: peaks of a histogram of intensity vectors.

Each time-frequency band votes for the direction of its intensity vector, the more the less diffuse
it is and whatever its power, so that a quiet source is found beside a loud one. Peaks are taken one
after another, each hiding what lies around it, and looked at closely by mean shift (Comaniciu and
Meer 2002). The bands that point at a peak say what is heard from there. Directions have no
gradient; there is nothing to learn in them.

Letters: B batch, F frames, M mel bands, S peaks, G directions of a grid.
"""

import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa.acoustics import foa

GRID = 256  # directions, some 13 degrees apart
TRUST = 6  # power of a vector's length with which it votes
# Degrees from a vector up to which it votes; between two peaks at least; from a peak up to which
# a band belongs to it.
WIDTH, APART, NEAR = 20.0, 25.0, 40.0
SHIFTS = 3
BLOCK = 32  # frames counted at a time: a vote for each direction of the grid is kept of no more


class Peaks(NamedTuple):
    """direction [B, S, 3]: unit vectors, strongest first. strength [B, S]: share of the votes.

    near [B, S, F, M]: how near a band points to a peak, 0 to 1, times how little diffuse it is.
    trusted [B, S, F, M]: that times a band's vote. heard [B, F]: no padding; None for none.
    """

    direction: jax.Array
    strength: jax.Array
    near: jax.Array
    trusted: jax.Array
    heard: jax.Array | None


@cache
def grid() -> np.ndarray:
    """[G, 3] float32."""
    return foa.sphere(GRID).astype(np.float32)


def closeness(cosine: jax.Array, degrees: float) -> jax.Array:
    """1 where an angle is 0, falling linearly in its cosine to 0 at so many degrees."""
    edge = math.cos(math.radians(degrees))
    return jnp.maximum((cosine - edge) / (1 - edge), 0.0)


def split(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths [...] and unit vectors [..., 3]."""
    length = jnp.sqrt((vectors**2).sum(-1) + 1e-12)
    return length, vectors / length[..., None]


def find(vectors: jax.Array, count: int, heard: jax.Array | None = None) -> Peaks:
    """The `count` strongest peaks of intensity vectors [B, F, M, 3]; heard [B, F]: no padding."""
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    if heard is not None:
        vectors = jnp.where(heard[..., None, None], vectors, 0.0)
    batch, frames, mels, _ = vectors.shape
    # Two neighbouring bands vote together: where they disagree, their mean is short.
    pairs = vectors[:, :, : mels // 2 * 2].reshape(batch, frames, -1, 2, 3).mean(3)
    length, towards = split(pairs)
    votes = length**TRUST
    counted = _histogram(votes, towards)
    votes, towards = votes.reshape(batch, -1), towards.reshape(batch, -1, 3)
    total = votes.sum(-1) + 1e-6
    places = jnp.asarray(grid())
    found, strength = [], []
    for _ in range(count):
        best = counted.argmax(-1)
        peak = places[best]
        strength.append(jnp.take_along_axis(counted, best[:, None], 1)[:, 0] / total)
        for _ in range(SHIFTS):
            pull = votes * closeness(jnp.einsum("bnc,bc->bn", towards, peak), WIDTH)
            # The peak itself stays where nothing votes.
            peak = split(jnp.einsum("bn,bnc->bc", pull, towards) + 1e-4 * peak)[1]
        found.append(peak)
        counted = jnp.where(peak @ places.T > math.cos(math.radians(APART)), 0.0, counted)
    direction = jnp.stack(found, 1)
    length, towards = split(vectors)
    near = closeness(jnp.einsum("bfmc,bsc->bsfm", towards, direction), NEAR)
    near = near * length[:, None]
    trusted = near * length[:, None] ** TRUST
    return Peaks(direction, jnp.stack(strength, 1), near, trusted, heard)


def _histogram(votes: jax.Array, towards: jax.Array) -> jax.Array:
    """votes [B, F, P] for directions [B, F, P, 3] -> [B, G], some frames at a time."""
    batch, frames = votes.shape[:2]
    blocks = -(-frames // BLOCK)
    extra = blocks * BLOCK - frames

    def by_block(x):
        x = jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(batch, blocks, -1, *x.shape[3:])
        return jnp.moveaxis(x, 1, 0)

    def add(total, block):
        vote, where = block
        near = closeness(where @ grid().T, WIDTH) ** 2
        return total + jnp.einsum("bn,bng->bg", vote, near), None

    start = jnp.zeros((batch, GRID), jnp.float32)
    return jax.lax.scan(add, start, (by_block(votes), by_block(towards)))[0]


def timbre(power: jax.Array, weights: jax.Array, heard: jax.Array | None = None) -> jax.Array:
    """What is heard from each peak: log power [B, F, M], weights [B, S, F, M] -> [B, S, 4 M + 2].

    For each band mean, spread and change from frame to frame of the log power, and how often it is
    heard from there; then the level and the unevenness of when. All are numbers of order 1.
    heard [B, F]: no padding, where weights are 0.
    """
    frames = weights.shape[2] if heard is None else heard.sum(-1)[:, None, None]
    total = weights.sum(2) + 1e-2
    mean = jnp.einsum("bsfm,bfm->bsm", weights, power) / total
    square = jnp.einsum("bsfm,bfm->bsm", weights, power**2) / total
    spread = jnp.sqrt(jnp.maximum(square - mean**2, 0.0) + 1e-6)
    change = jnp.abs(jnp.diff(power, axis=1, prepend=power[:, :1]))
    change = jnp.einsum("bsfm,bfm->bsm", weights, change) / total
    level = mean.mean(-1, keepdims=True)
    share = weights.mean(-1)
    moved = jnp.abs(jnp.diff(share, axis=2, prepend=share[..., :1]))
    if heard is not None:
        moved = moved * heard[:, None]
    uneven = moved.sum(-1, keepdims=True) / frames
    often = total / frames
    parts = [mean - level, 3 * spread, 3 * change, 3 * often, level, 10 * uneven]
    return jnp.concatenate(parts, -1)
