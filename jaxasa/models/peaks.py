# SPDX-License-Identifier: Apache-2.0
"""Directions of arrival (DOA) before anything is learnt: peaks of an intensity histogram.

Each time-frequency band votes for the direction of its intensity vector. Its vote depends on how
diffuse it is and not on its power, so that a quiet source is found next to a loud one. Peaks are
taken one after another, each masking its neighbourhood, and refined by mean shift (Comaniciu and
Meer 2002). The bands that point to a peak give the spectrum of the sound from there. No gradient
passes through directions.

Shapes: B batch, F frames, M mel bands, S peaks, G directions of a grid.
"""

import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa.acoustics import foa

GRID_SIZE = 256  # directions, some 13 degrees apart
VOTE_EXPONENT = 6  # a vector votes with this power of its length
KERNEL_WIDTH_DEG = 20.0  # a vector votes for directions up to this angle from it
MIN_SEPARATION_DEG = 25.0  # between two peaks
ASSOCIATION_DEG = 40.0  # a band belongs to a peak up to this angle from it
MEAN_SHIFT_STEPS = 3
BLOCK_FRAMES = 32  # frames counted at a time, which bounds memory


class Peaks(NamedTuple):
    """The strongest directions, and which bands belong to them.

    direction [B, S, 3]: unit vectors, strongest first. strength [B, S]: share of all votes.
    proximity [B, S, F, M]: 1 if a band points to the peak, 0 from ASSOCIATION_DEG on, times the
        length of its vector (1 for a plane wave, 0 in a diffuse field).
    vote_weight [B, S, F, M]: proximity times the band's vote.
    frame_mask: bool [B, F], False at padding; None if there is none.
    """

    direction: jax.Array
    strength: jax.Array
    proximity: jax.Array
    vote_weight: jax.Array
    frame_mask: jax.Array | None


@cache
def direction_grid() -> np.ndarray:
    """Unit vectors [G, 3] float32, spread evenly over the sphere."""
    return foa.fibonacci_sphere(GRID_SIZE).astype(np.float32)


def angular_kernel(cosine: jax.Array, width_deg: float) -> jax.Array:
    """1 at an angle of 0, falling linearly in its cosine to 0 at `width_deg`."""
    edge = math.cos(math.radians(width_deg))
    return jnp.maximum((cosine - edge) / (1 - edge), 0.0)


def length_and_direction(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lengths [...] and unit vectors [..., 3] of vectors [..., 3]."""
    length = jnp.sqrt((vectors**2).sum(-1) + 1e-12)
    return length, vectors / length[..., None]


def find_doa_peaks(vectors: jax.Array, count: int, frame_mask: jax.Array | None = None) -> Peaks:
    """The `count` strongest peaks of intensity vectors [B, F, M, 3].

    frame_mask: bool [B, F], False at padding.
    """
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    if frame_mask is not None:
        vectors = jnp.where(frame_mask[..., None, None], vectors, 0.0)
    batch, frames, mels, _ = vectors.shape
    # Two neighbouring bands vote together: if they disagree, their mean is short.
    pairs = vectors[:, :, : mels // 2 * 2].reshape(batch, frames, -1, 2, 3).mean(3)
    length, towards = length_and_direction(pairs)
    votes = length**VOTE_EXPONENT
    histogram = _histogram(votes, towards)
    votes, towards = votes.reshape(batch, -1), towards.reshape(batch, -1, 3)
    total = votes.sum(-1) + 1e-6
    grid = jnp.asarray(direction_grid())
    directions, strengths = [], []
    for _ in range(count):
        best = histogram.argmax(-1)
        peak = grid[best]
        strengths.append(jnp.take_along_axis(histogram, best[:, None], 1)[:, 0] / total)
        for _ in range(MEAN_SHIFT_STEPS):
            cosine = jnp.einsum("bnc,bc->bn", towards, peak)
            pull = votes * angular_kernel(cosine, KERNEL_WIDTH_DEG)
            # The peak itself is added, so that it stays if nothing votes.
            shifted = jnp.einsum("bn,bnc->bc", pull, towards) + 1e-4 * peak
            peak = length_and_direction(shifted)[1]
        directions.append(peak)
        is_near = peak @ grid.T > math.cos(math.radians(MIN_SEPARATION_DEG))
        histogram = jnp.where(is_near, 0.0, histogram)
    direction = jnp.stack(directions, 1)
    length, towards = length_and_direction(vectors)
    cosine = jnp.einsum("bfmc,bsc->bsfm", towards, direction)
    proximity = angular_kernel(cosine, ASSOCIATION_DEG) * length[:, None]
    vote_weight = proximity * length[:, None] ** VOTE_EXPONENT
    return Peaks(direction, jnp.stack(strengths, 1), proximity, vote_weight, frame_mask)


def _histogram(votes: jax.Array, towards: jax.Array) -> jax.Array:
    """Sums votes [B, F, M / 2] for directions [B, F, M / 2, 3] over frames and bands -> [B, G]."""
    batch, frames = votes.shape[:2]
    blocks = -(-frames // BLOCK_FRAMES)
    extra = blocks * BLOCK_FRAMES - frames

    def by_block(x):
        x = jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(batch, blocks, -1, *x.shape[3:])
        return jnp.moveaxis(x, 1, 0)

    def add(total, block):
        vote, direction = block
        kernel = angular_kernel(direction @ direction_grid().T, KERNEL_WIDTH_DEG) ** 2
        return total + jnp.einsum("bn,bng->bg", vote, kernel), None

    zeros = jnp.zeros((batch, GRID_SIZE), jnp.float32)
    return jax.lax.scan(add, zeros, (by_block(votes), by_block(towards)))[0]


def peak_spectra(
    power: jax.Array, weights: jax.Array, frame_mask: jax.Array | None = None
) -> jax.Array:
    """Spectral statistics of the sound from each peak, [B, S, 4 M + 2], of order 1.

    power [B, F, M]: log power. weights [B, S, F, M]: of each band for each peak, 0 at padding.
    For each band the mean, spread and frame-to-frame change of its log power, and its share of
    the time; then the level, and how much the weights fluctuate over time.
    """
    frames = weights.shape[2] if frame_mask is None else frame_mask.sum(-1)[:, None, None]
    total = weights.sum(2) + 1e-2
    mean = jnp.einsum("bsfm,bfm->bsm", weights, power) / total
    square = jnp.einsum("bsfm,bfm->bsm", weights, power**2) / total
    spread = jnp.sqrt(jnp.maximum(square - mean**2, 0.0) + 1e-6)
    change = jnp.abs(jnp.diff(power, axis=1, prepend=power[:, :1]))
    change = jnp.einsum("bsfm,bfm->bsm", weights, change) / total
    level = mean.mean(-1, keepdims=True)
    share = weights.mean(-1)
    fluctuation = jnp.abs(jnp.diff(share, axis=2, prepend=share[..., :1]))
    if frame_mask is not None:
        fluctuation = fluctuation * frame_mask[:, None]
    fluctuation = fluctuation.sum(-1, keepdims=True) / frames
    time_share = total / frames
    parts = [mean - level, 3 * spread, 3 * change, 3 * time_share, level, 10 * fluctuation]
    return jnp.concatenate(parts, -1)
