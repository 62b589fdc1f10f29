# SPDX-License-Identifier: Apache-2.0
"""Semantic encoder: Whisper's audio encoder of any size (arXiv:2212.04356), on one channel.

Clips are not padded to 30 s: position embeddings are cut to the clip's length. A clip that is
padded to share a compiled shape with others gives the same frames as alone: its padding is set to
zero before each convolution, and masked in attention.

Shapes: B batch, T frames at 50 a second, M mel bands, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.models.layers import Blocks, length_mask, sinusoids

FRAMES_PER_SECOND = 50


class SemanticEncoder(nn.Module):
    """log-mel [B, 2 T, M] -> [B, T // pool, D], 50 / pool frames a second.

    Two convolutions (the second halves the rate), sinusoidal positions, transformer blocks, and a
    norm. pool: as in Qwen2-Audio, frames averaged into one before the norm.
    """

    semantic: config.Semantic
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, log_mel: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """frames [B]: input frames of each clip, the rest is padding; None: no padding.

        Output frames of padding mean nothing. Raises ValueError for clips longer than max_seconds.
        """
        s = self.semantic
        mask = length_mask(frames, log_mel.shape[1])
        unpad = lambda x: x if mask is None else jnp.where(mask[..., None], x, 0)  # noqa: E731
        conv = lambda stride, name: nn.Conv(  # noqa: E731
            s.width, (3,), (stride,), padding=((1, 1),), dtype=self.dtype, name=name
        )
        x = jax.nn.gelu(conv(1, "conv1")(unpad(log_mel).astype(self.dtype)), approximate=False)
        x = jax.nn.gelu(conv(2, "conv2")(unpad(x)), approximate=False)
        limit = int(s.max_seconds * FRAMES_PER_SECOND)
        if x.shape[1] > limit:
            raise ValueError(f"{x.shape[1]} frames, expected at most {limit}")
        x = x + sinusoids(limit, s.width)[: x.shape[1]].astype(self.dtype)
        attention_mask = None if mask is None else mask[:, ::2]
        x = Blocks(s.heads, s.layers, self.unroll, self.dtype, name="blocks")(x, attention_mask)
        if s.pool > 1:
            # Frames that do not fill a mean are dropped, as in Qwen2-Audio.
            x = nn.avg_pool(x, (s.pool,), (s.pool,))
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
