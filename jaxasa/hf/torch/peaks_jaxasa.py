# SPDX-License-Identifier: Apache-2.0
"""Directions of arrival as peaks of a histogram of intensity vectors (models/peaks.py of jaxasa).

Shapes: B batch, F frames, M mel bands, S peaks, G directions of a grid.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

GRID_SIZE, VOTE_EXPONENT, MEAN_SHIFT_STEPS = 256, 6, 3
KERNEL_WIDTH_DEG, MIN_SEPARATION_DEG, ASSOCIATION_DEG = 20.0, 25.0, 40.0


class Peaks(NamedTuple):
    """Unit vectors direction [B, S, 3], strength [B, S] (share of the votes); for each band how
    near it points to a peak, proximity [B, S, F, M], and vote_weight, that times its vote."""

    direction: torch.Tensor
    strength: torch.Tensor
    proximity: torch.Tensor
    vote_weight: torch.Tensor


def direction_grid():
    """Unit vectors [G, 3], spread evenly over the sphere (a Fibonacci lattice)."""
    k = np.arange(GRID_SIZE) + 0.5
    z = 1 - 2 * k / GRID_SIZE
    angle = np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], -1).astype(np.float32)


def angular_kernel(cosine, width_deg):
    """1 at an angle of 0, falling linearly in its cosine to 0 at `width_deg`."""
    edge = math.cos(math.radians(width_deg))
    return ((cosine - edge) / (1 - edge)).clamp_min(0)


def length_and_direction(vectors):
    """Lengths [...] and unit vectors [..., 3] of vectors [..., 3]."""
    length = torch.sqrt((vectors**2).sum(-1) + 1e-12)
    return length, vectors / length[..., None]


def find_doa_peaks(vectors, count):
    """The `count` strongest peaks of intensity vectors [B, F, M, 3]."""
    vectors = vectors.float()
    batch, frames, mels, _ = vectors.shape
    pairs = vectors[:, :, : mels // 2 * 2].reshape(batch, frames, -1, 2, 3).mean(3)
    length, towards = length_and_direction(pairs)
    votes, towards = (length**VOTE_EXPONENT).flatten(1), towards.flatten(1, 2)
    grid = torch.from_numpy(direction_grid()).to(vectors)
    histogram = torch.stack(
        [
            v @ angular_kernel(t @ grid.T, KERNEL_WIDTH_DEG) ** 2
            for v, t in zip(votes, towards, strict=True)
        ]
    )
    total = votes.sum(-1) + 1e-6
    directions, strengths = [], []
    for _ in range(count):
        best = histogram.argmax(-1)
        peak = grid[best]
        strengths.append(histogram.gather(1, best[:, None])[:, 0] / total)
        for _ in range(MEAN_SHIFT_STEPS):
            cosine = torch.einsum("bnc,bc->bn", towards, peak)
            pull = votes * angular_kernel(cosine, KERNEL_WIDTH_DEG)
            shifted = torch.einsum("bn,bnc->bc", pull, towards) + 1e-4 * peak
            peak = length_and_direction(shifted)[1]
        directions.append(peak)
        is_near = peak @ grid.T > math.cos(math.radians(MIN_SEPARATION_DEG))
        histogram = histogram.masked_fill(is_near, 0.0)
    direction = torch.stack(directions, 1)
    length, towards = length_and_direction(vectors)
    cosine = torch.einsum("bfmc,bsc->bsfm", towards, direction)
    proximity = angular_kernel(cosine, ASSOCIATION_DEG) * length[:, None]
    vote_weight = proximity * length[:, None] ** VOTE_EXPONENT
    return Peaks(direction, torch.stack(strengths, 1), proximity, vote_weight)


def peak_spectra(power, weights):
    """Spectral statistics of the sound from each peak: [B, F, M], [B, S, F, M] -> [B, S, 4 M + 2].

    For each band the mean, spread and frame-to-frame change of its log power, and its share of
    the time; then the level, and how much the weights fluctuate over time.
    """
    total = weights.sum(2) + 1e-2
    mean = torch.einsum("bsfm,bfm->bsm", weights, power) / total
    square = torch.einsum("bsfm,bfm->bsm", weights, power**2) / total
    spread = torch.sqrt((square - mean**2).clamp_min(0) + 1e-6)
    change = torch.diff(power, dim=1, prepend=power[:, :1]).abs()
    change = torch.einsum("bsfm,bfm->bsm", weights, change) / total
    level = mean.mean(-1, keepdim=True)
    share = weights.mean(-1)
    fluctuation = torch.diff(share, dim=2, prepend=share[..., :1]).abs().mean(-1, keepdim=True)
    time_share = total / weights.shape[2]
    parts = [mean - level, 3 * spread, 3 * change, 3 * time_share, level, 10 * fluctuation]
    return torch.cat(parts, -1)
