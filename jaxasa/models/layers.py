"""Layers shared by the encoders: attention, transformer block, log-mel features' positions.

Letters: B batch, T time, D width, N heads, H head width, F hidden.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Whisper's positions: `[length, channels]`, sines then cosines, wavelengths to 10,000."""
    scales = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * scales[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nn.Module):
    """Whisper's self-attention: `[B, T, D] -> [B, T, D]`, no bias on keys."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        q = nn.Dense(width, dtype=self.dtype, name="q")(x).reshape(split)
        k = nn.Dense(width, dtype=self.dtype, name="k", use_bias=False)(x).reshape(split)
        v = nn.Dense(width, dtype=self.dtype, name="v")(x).reshape(split)
        mixed = jax.nn.dot_product_attention(q, k, v)
        return nn.Dense(width, dtype=self.dtype, name="o")(mixed.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block with a GELU of four times the width, as in Whisper."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")
        x = x + Attention(self.heads, self.dtype, name="attention")(norm(x))
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        h = jax.nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="up")(h), approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="down")(h)


class Blocks(nn.Module):
    """`layers` blocks under one scan; parameters carry a leading layer axis."""

    heads: int
    layers: int
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def step(block, x, _):
            return block(x), None

        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=self.unroll,
        )
        x, _ = scanned(Block(self.heads, self.dtype, name="layers"), x, None)
        return x


def resample_time(x: jax.Array, length: int) -> jax.Array:
    """`[B, T, D] -> [B, length, D]`: means over equal spans of time, fractions of frames counted.

    Works for any rate, so 50 frames a second give 4 or 12.5 tokens a second.
    """
    frames = x.shape[1]
    edges = np.linspace(0, frames, length + 1)
    index = np.arange(frames)
    low = np.maximum(edges[:-1, None], index[None])
    high = np.minimum(edges[1:, None], index[None] + 1)
    weights = np.maximum(high - low, 0) / (frames / length)
    return jnp.einsum("lt,btd->bld", jnp.asarray(weights, x.dtype), x)


def over_bands(curve: jax.Array, mels: int) -> jax.Array:
    """A curve given at K points, `[B, K] -> [B, mels]`, by linear interpolation."""
    place = np.linspace(0, curve.shape[1] - 1, mels)
    weights = np.maximum(0, 1 - np.abs(place[None] - np.arange(curve.shape[1])[:, None]))
    return curve @ jnp.asarray(weights, curve.dtype)
