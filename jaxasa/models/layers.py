# SPDX-License-Identifier: Apache-2.0
"""Layers that both encoders share: Whisper's transformer blocks, and resampling over time.

Whisper: arXiv:2212.04356.

Shapes: B batch, T time, D width, H heads, M mel bands.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Whisper's position embeddings [length, channels].

    Sines then cosines, angular wavelengths from 1 to 10,000 frames (arXiv:1706.03762).
    """
    scales = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * scales[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Attention(nn.Module):
    """Multi-head self-attention as in Whisper, [B, T, D] -> [B, T, D]; keys have no bias.

    mask: bool [B, T], the attention mask, False at padding; None: no padding.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        q = nn.Dense(width, dtype=self.dtype, name="q")(x).reshape(split)
        k = nn.Dense(width, dtype=self.dtype, name="k", use_bias=False)(x).reshape(split)
        v = nn.Dense(width, dtype=self.dtype, name="v")(x).reshape(split)
        mask = None if mask is None else mask[:, None, None]
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.Dense(width, dtype=self.dtype, name="o")(attended.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block as in Whisper: self-attention, and a GELU MLP of width 4 D."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")
        x = x + Attention(self.heads, self.dtype, name="attention")(norm(x), mask)
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        h = jax.nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="up")(h), approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="down")(h)


class Blocks(nn.Module):
    """`layers` blocks under one scan; their parameters have a leading layer axis."""

    heads: int
    layers: int
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        def step(block, x, _):
            return block(x, mask), None

        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=self.unroll,
        )
        x, _ = scanned(Block(self.heads, self.dtype, name="layers"), x, None)
        return x


def resample_time(
    x: jax.Array,
    length: int,
    frames: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """Averages x [B, T, D] over equal spans of time -> [B, length, D].

    A frame on the edge of two spans counts in both by its fraction, so that any rate works: 50
    frames a second give 4 or 12.5 tokens a second. Sums are in float32.

    frames, lengths: int [B] of padded clips: the first frames[b] of T become the first lengths[b]
    of `length`; the rest is zero.
    """
    index, out = np.arange(x.shape[1]), np.arange(length)[:, None]
    sums = jnp.float32
    if frames is None or lengths is None:
        # Edges in units of which a frame has `length` and a mean has T, so all are whole numbers.
        low = np.maximum(out * x.shape[1], index * length)
        high = np.minimum((out + 1) * x.shape[1], (index + 1) * length)
        weights = jnp.asarray(np.maximum(high - low, 0) / x.shape[1], sums)
        return jnp.einsum("lt,btd->bld", weights, x.astype(sums)).astype(x.dtype)
    t, n = frames[:, None, None], lengths[:, None, None]
    low = jnp.maximum(out * t, index * n)
    high = jnp.minimum((out + 1) * t, (index + 1) * n)
    weights = jnp.where(out < n, jnp.maximum(high - low, 0), 0) / t
    return jnp.einsum("blt,btd->bld", weights.astype(sums), x.astype(sums)).astype(x.dtype)


def length_mask(lengths: jax.Array | None, size: int) -> jax.Array | None:
    """Padding mask bool [B, size], True at the first lengths[b]; None if nothing is padded."""
    return None if lengths is None else jnp.arange(size) < lengths[:, None]


def interp_bands(curve: jax.Array, mels: int) -> jax.Array:
    """Linear interpolation of a curve over frequency, given at K points: [B, K] -> [B, mels]."""
    position = np.linspace(0, curve.shape[1] - 1, mels)
    weights = np.maximum(0, 1 - np.abs(position[None] - np.arange(curve.shape[1])[:, None]))
    return curve @ jnp.asarray(weights, curve.dtype)
