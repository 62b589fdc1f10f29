"""Peaks of the histogram of intensity vectors, and what is heard from each.

Letters: B batch, F frames, M mel bands, S peaks, G directions of a grid.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

GRID, TRUST, WIDTH, APART, NEAR, SHIFTS = 256, 6, 20.0, 25.0, 40.0, 3


class Peaks(NamedTuple):
    """direction [B, S, 3], strength [B, S] (share of the votes), near and trusted [B, S, F, M]."""

    direction: torch.Tensor
    strength: torch.Tensor
    near: torch.Tensor
    trusted: torch.Tensor


def grid():
    """[G, 3], spread evenly over the sphere."""
    k = np.arange(GRID) + 0.5
    z = 1 - 2 * k / GRID
    turn = np.pi * (1 + 5**0.5) * k
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], -1).astype(np.float32)


def closeness(cosine, degrees):
    """1 where an angle is 0, falling linearly in its cosine to 0 at so many degrees."""
    edge = math.cos(math.radians(degrees))
    return ((cosine - edge) / (1 - edge)).clamp_min(0)


def split(vectors):
    """Lengths [...] and unit vectors [..., 3]."""
    length = torch.sqrt((vectors**2).sum(-1) + 1e-12)
    return length, vectors / length[..., None]


def find(vectors, count):
    """The `count` strongest peaks of intensity vectors [B, F, M, 3]."""
    vectors = vectors.float()
    batch, frames, mels, _ = vectors.shape
    pairs = vectors[:, :, : mels // 2 * 2].reshape(batch, frames, -1, 2, 3).mean(3)
    length, towards = split(pairs)
    votes, towards = (length**TRUST).flatten(1), towards.flatten(1, 2)
    places = torch.from_numpy(grid()).to(vectors)
    counted = torch.stack(
        [v @ closeness(t @ places.T, WIDTH) ** 2 for v, t in zip(votes, towards, strict=True)]
    )
    total = votes.sum(-1) + 1e-6
    found, strength = [], []
    for _ in range(count):
        best = counted.argmax(-1)
        peak = places[best]
        strength.append(counted.gather(1, best[:, None])[:, 0] / total)
        for _ in range(SHIFTS):
            pull = votes * closeness(torch.einsum("bnc,bc->bn", towards, peak), WIDTH)
            peak = split(torch.einsum("bn,bnc->bc", pull, towards) + 1e-4 * peak)[1]
        found.append(peak)
        hidden = peak @ places.T > math.cos(math.radians(APART))
        counted = counted.masked_fill(hidden, 0.0)
    direction = torch.stack(found, 1)
    length, towards = split(vectors)
    near = closeness(torch.einsum("bfmc,bsc->bsfm", towards, direction), NEAR)
    near = near * length[:, None]
    return Peaks(direction, torch.stack(strength, 1), near, near * length[:, None] ** TRUST)


def timbre(power, weights):
    """What comes from each peak sounds like: [B, F, M], [B, S, F, M] -> [B, S, 4 M + 2]."""
    total = weights.sum(2) + 1e-2
    mean = torch.einsum("bsfm,bfm->bsm", weights, power) / total
    square = torch.einsum("bsfm,bfm->bsm", weights, power**2) / total
    spread = torch.sqrt((square - mean**2).clamp_min(0) + 1e-6)
    change = torch.diff(power, dim=1, prepend=power[:, :1]).abs()
    change = torch.einsum("bsfm,bfm->bsm", weights, change) / total
    level = mean.mean(-1, keepdim=True)
    share = weights.mean(-1)
    uneven = torch.diff(share, dim=2, prepend=share[..., :1]).abs().mean(-1, keepdim=True)
    often = total / weights.shape[2]
    return torch.cat([mean - level, 3 * spread, 3 * change, 3 * often, level, 10 * uneven], -1)
